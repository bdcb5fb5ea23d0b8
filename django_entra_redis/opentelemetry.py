"""OpenTelemetry: spans of the cache's requests and of token requests, and metrics.

``EntraRedisInstrumentor().instrument()`` switches them on (extra ``opentelemetry``).
``opentelemetry-instrument`` finds the class by the package's entry point
``opentelemetry_instrumentor``. Spans, metrics and attributes have the names of the
semantic conventions for database clients and for Redis.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import Meter, Observation, get_meter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_tracer
from redis.exceptions import ResponseError

from . import __version__
from .cache.backend import entra_caches
from .clients.observation import Command, observe_with
from .connections.pool import ConnectionPool, known_pools
from .credentials.provider import (
    get_credential_provider,
    observe_token_requests,
    started_identities,
)
from .exceptions import ConfigurationError, ConnectionPoolTimeout, TokenError

Attributes = dict[str, Any]

#: Seconds, as the conventions advise.
_DURATIONS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0]
#: Commands that are named with the word after them.
_CONTAINERS = frozenset({"ACL", "CLIENT", "CLUSTER", "CONFIG", "SCRIPT"})


class EntraRedisInstrumentor(BaseInstrumentor):
    """Instruments the caches and identities of this process."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the packages that must be installed beside this one: none."""
        return ()

    def _instrument(
        self,
        *,
        tracer_provider: Any = None,
        meter_provider: Any = None,
        capture_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        """Start to make spans and to record metrics.

        Parameters:
            tracer_provider, meter_provider: providers to use in place of the global
                ones.
            capture_keys: whether spans get the attribute ``db.query.text``: the
                commands with their keys, and with ``?`` in place of each value.
        """
        tracer = get_tracer(__name__, __version__, tracer_provider)
        meter = get_meter(__name__, __version__, meter_provider)
        observe_with(_Requests(tracer, meter, capture_keys))
        observe_token_requests(functools.partial(_token_request, tracer))
        self._pools = _Pools(meter)
        _observe_identities(meter)
        _observe_copies(meter)

    def _uninstrument(self, **kwargs: Any) -> None:
        """Stop; OpenTelemetry can't remove a meter's observable metrics: they stay."""
        observe_with(None)
        observe_token_requests(None)
        self._pools.end()


class _Requests:
    """Observes the requests of caches: each gets a span, and its duration is recorded.

    Parameters:
        tracer, meter: make the spans, and the histogram of durations.
        capture_keys: whether spans get the commands with their keys.
    """

    def __init__(self, tracer: Tracer, meter: Meter, capture_keys: bool) -> None:
        self._tracer = tracer
        self._capture_keys = capture_keys
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of database client operations.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )

    @contextmanager
    def __call__(
        self, commands: list[Command], options: Mapping[str, Any]
    ) -> Iterator[None]:
        """Make a span of a request, and record its duration."""
        name = _operation(commands)
        measured = {**_server(options), "db.operation.name": name}
        attributes: Attributes = {**measured}
        if len(commands) > 1:
            attributes["db.operation.batch.size"] = len(commands)
        if self._capture_keys:
            attributes["db.query.text"] = "\n".join(map(_query, commands))
        begun = time.perf_counter()
        try:
            # Without this, an instrumentation of redis-py would make a second span.
            with (
                _span(self._tracer, name, attributes, measured),
                suppress_instrumentation(),
            ):
                yield
        finally:
            self._duration.record(time.perf_counter() - begun, measured)


@contextmanager
def _token_request(tracer: Tracer, identity: str, kind: str) -> Iterator[None]:
    """Make a span of a request for a token."""
    attributes: Attributes = {
        "entra_redis.identity": identity,
        "entra_redis.identity.kind": kind,
    }
    with _span(tracer, "entra_redis.token_request", attributes, {}):
        yield


@contextmanager
def _span(
    tracer: Tracer, name: str, attributes: Attributes, measured: Attributes
) -> Iterator[Span]:
    """Make a span; add the type of an error to ``measured`` as well.

    The span gets an error's type and text, but not its traceback, which OpenTelemetry
    would add by itself.
    """
    with tracer.start_as_current_span(
        name,
        kind=SpanKind.CLIENT,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except Exception as error:
            described = _error(error)
            measured.update(described)
            span.set_attributes(described)
            # Redis' own words may quote the command, with its key.
            text = None if isinstance(error, ResponseError) else str(error)
            span.set_status(Status(StatusCode.ERROR, text))
            raise


def _error(error: Exception) -> Attributes:
    """Return the attributes of an error by the conventions."""
    kind = type(error).__qualname__
    if isinstance(error, TokenError):
        return {"error.type": error.code}
    if not isinstance(error, ResponseError):
        return {"error.type": kind}
    # redis-py strips the code ERR from a message.
    code = re.match(r"[A-Z]+(?= )", str(error))
    return {
        "error.type": kind,
        "db.response.status_code": code[0] if code else "ERR",
    }


def _operation(commands: list[Command]) -> str:
    """Return the name of one command, or of a pipeline with the name all share."""
    names = {_name(command) for command in commands}
    if len(commands) == 1:
        return names.pop()
    return f"PIPELINE {names.pop()}" if len(names) == 1 else "PIPELINE"


def _name(command: Command) -> str:
    name = str(command[0])
    return f"{name} {command[1]}" if name in _CONTAINERS else name


def _query(command: Command) -> str:
    """Return a command with its keys, and with ``?`` in place of other arguments."""
    words = [_text(word) for word in command]
    if words[0] in ("EVAL", "EVALSHA"):
        words[1] = "?"
        shown = 4  # the script and the number of keys come before the one key
    elif words[0] in ("DEL", "MGET", "UNLINK"):
        shown = len(words)
    else:
        shown = 2
    return " ".join(words[:shown] + ["?"] * len(words[shown:]))


def _text(word: Any) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)


def _server(options: Mapping[str, Any]) -> Attributes:
    """Return the attributes of a server by the conventions."""
    found: Attributes = {
        "db.system.name": "redis",
        "db.namespace": str(options.get("db") or 0),
        "server.address": options.get("path") or options.get("host") or "localhost",
    }
    if "path" not in options:
        found["server.port"] = int(options.get("port") or 6379)
    return found


class _Pools:
    """Records the use of this process' connection pools."""

    def __init__(self, meter: Meter) -> None:
        self._wait_time = meter.create_histogram(
            "db.client.connection.wait_time",
            "s",
            "The time it took to obtain an open connection from the pool.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self._timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "Connection timeouts that occurred trying to obtain one from the pool.",
        )
        meter.create_observable_up_down_counter(
            "db.client.connection.count",
            [_connections],
            "{connection}",
            "Connections that are in the state of the attribute.",
        )
        meter.create_observable_up_down_counter(
            "db.client.connection.max",
            [_limits],
            "{connection}",
            "The maximum number of open connections allowed.",
        )
        self._check_out = ConnectionPool.check_out
        ConnectionPool.check_out = self._measured(self._check_out)  # type: ignore[method-assign]  # until end()

    def end(self) -> None:
        """Stop recording."""
        ConnectionPool.check_out = self._check_out  # type: ignore[method-assign]  # as it was

    def _measured(self, check_out: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(check_out)
        def measured(pool: ConnectionPool) -> Any:
            begun = time.perf_counter()
            try:
                return check_out(pool)
            except ConnectionPoolTimeout:
                self._timeouts.add(1, _pool(pool))
                raise
            finally:
                self._wait_time.record(time.perf_counter() - begun, _pool(pool))

        return measured


def _pool(pool: ConnectionPool) -> Attributes:
    """Return the name of a pool: that of its server, and the database."""
    server = _server(pool.connection_kwargs)
    parts = (server["server.address"], server.get("server.port"))
    where = ":".join(str(part) for part in parts if part is not None)
    return {"db.client.connection.pool.name": f"{where}/{server['db.namespace']}"}


def _connections(options: Any) -> Iterable[Observation]:
    return _summed(
        ({**_pool(pool), "db.client.connection.state": state}, count)
        for pool in known_pools()
        for state, count in zip(("idle", "used"), pool.counts(), strict=True)
    )


def _limits(options: Any) -> Iterable[Observation]:
    return _summed((_pool(pool), pool.max_connections) for pool in known_pools())


def _summed(measured: Iterable[tuple[Attributes, int]]) -> Iterable[Observation]:
    """Return one observation for each set of attributes.

    A server has several pools where caches differ in their options; their numbers are
    added up.
    """
    sums: dict[tuple[tuple[str, Any], ...], int] = {}
    for attributes, value in measured:
        key = tuple(attributes.items())
        sums[key] = sums.get(key, 0) + value
    return [Observation(value, dict(key)) for key, value in sums.items()]


def _observe_identities(meter: Meter) -> None:
    """Observe the identities whose tokens are renewed in this process."""
    meter.create_observable_counter(
        "entra_redis.token.renewals",
        [lambda options: _of_identities(lambda status, now: status.renewals)],
        "{renewal}",
        "Tokens that have replaced another one.",
    )
    meter.create_observable_counter(
        "entra_redis.token.failures",
        [lambda options: _of_identities(lambda status, now: status.failures)],
        "{request}",
        "Requests for a token that failed.",
    )
    meter.create_observable_gauge(
        "entra_redis.token.time_to_expiry",
        [lambda options: _of_identities(_time_to_expiry)],
        "s",
        "Seconds until the token expires; negative once it has.",
    )


def _time_to_expiry(status: Any, now: float) -> float | None:
    return None if status.expires_at is None else status.expires_at.timestamp() - now


def _of_identities(
    measure: Callable[[Any, float], float | None],
) -> Iterable[Observation]:
    for identity in sorted(started_identities()):
        status = get_credential_provider(identity).status()
        value = measure(status, time.time())
        if value is not None:
            yield Observation(value, {"entra_redis.identity": identity})


def _observe_copies(meter: Meter) -> None:
    """Observe the client-side caches of this process."""
    for name, unit, description in (
        ("hits", "{value}", "Values that were read from copies in this process."),
        (
            "misses",
            "{value}",
            "Values that were read from Redis, as there was no copy.",
        ),
    ):
        meter.create_observable_counter(
            f"entra_redis.client_side_cache.{name}",
            [functools.partial(_of_copies, name)],
            unit,
            description,
        )


def _of_copies(name: str, options: Any) -> Iterable[Observation]:
    if not apps.ready:
        return  # An exporter may be there before Django's settings are.
    for alias, cache in entra_caches().items():
        with contextlib.suppress(ConfigurationError):
            info = cache.client_side_cache_info()
            if info is not None:
                yield Observation(getattr(info, name), {"entra_redis.cache": alias})
