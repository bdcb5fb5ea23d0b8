"""Other packages on a cache or an identity of this one, with tokens that last 6 s.

``python -m soak.ecosystem`` runs each package's own calls in a process of its own, all
at once, until three tokens have expired, and prints a table: what had to be configured,
the spans that OpenTelemetry's instrumentation saw of one call, and the errors. A token
in a span counts as one.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

LIFE = 6.0
EXPIRIES = 3
#: Seconds that a package's calls go on for; then that a process may take altogether.
DURATION = LIFE * EXPIRIES
PATIENCE = 75.0
#: Seconds between two calls: connections are busy, idle for a moment, and for longer.
PAUSES = (0.0, 0.05, 0.3)

Work = Callable[[], object]
AsyncWork = Callable[[], Awaitable[object]]
Made = tuple[Work | None, AsyncWork | None]

PROVIDER = "django_entra_redis.credentials.EntraCredentialProvider"


@dataclass(frozen=True)
class Row:
    """A package.

    Parameters:
        name: the distribution's.
        make: returns what is to be called again and again, for threads and for an event
            loop; either may be ``None``.
        lines: the settings that it takes, as the table shows and this program runs
            them. ``URL`` is the cache's with a credential provider, ``LOCATION`` is
            without.
        apps: what it adds to INSTALLED_APPS.
        more: settings that it needs with any Redis.
        short: whether it is one of the ten of the short form.
    """

    name: str
    make: Callable[[], Made]
    lines: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    more: str = ""
    short: bool = False


def _sessions() -> Made:
    store = import_module("django.contrib.sessions.backends.cache").SessionStore

    def work() -> None:
        session = store()
        session["a"] = 1
        session.save()
        assert store(session.session_key)["a"] == 1

    async def awork() -> None:
        session = store()
        await session.aset("a", 1)
        await session.asave()
        assert await store(session.session_key).aget("a") == 1

    return work, awork


def _rest_framework() -> Made:
    base: Any = import_module("rest_framework.throttling").SimpleRateThrottle

    class Throttle(base):  # type: ignore[misc]  # of a package without types
        rate = "1000000/day"

        def get_cache_key(self, request: Any, view: Any) -> str:
            return "somebody"

    def work() -> None:
        assert Throttle().allow_request(None, None)

    return work, None


def _ratelimit() -> Made:
    is_ratelimited = import_module("django_ratelimit.core").is_ratelimited
    request = import_module("django.test").RequestFactory().get("/")

    def work() -> None:
        limited = is_ratelimited(
            request, group="all", key="ip", rate="1000000/d", increment=True
        )
        assert limited is False

    return work, None


def _defender() -> Made:
    utils = import_module("defender.utils")

    def work() -> None:
        assert utils.increment_key("somebody") > 0
        assert not utils.is_user_already_locked("somebody")
        assert utils.get_blocked_ips() == []

    return work, None


def _rq() -> Made:
    queue = import_module("django_rq").get_queue()
    worker = import_module("rq").SimpleWorker([queue], connection=queue.connection)

    def work() -> None:
        job = queue.enqueue(len, "abc")
        worker.work(burst=True, logging_level="ERROR")
        assert job.return_value(refresh=True) == 3

    return work, None


def _q2() -> Made:
    broker = import_module("django_q.brokers").get_broker()

    def work() -> None:
        broker.enqueue("task")
        assert broker.dequeue() == [(None, b"task")]

    return work, None


def _huey() -> Made:
    djhuey = import_module("huey.contrib.djhuey")
    huey = djhuey.HUEY

    @djhuey.task()  # type: ignore[untyped-decorator]
    def length(text: str) -> int:
        return len(text)

    def work() -> None:
        result: Any = length("abc")
        huey.execute(huey.dequeue())
        assert result.get(blocking=True, timeout=5) == 3

    return work, None


def _dramatiq() -> Made:
    dramatiq = import_module("dramatiq")
    broker = dramatiq.get_broker()
    done = threading.Event()

    @dramatiq.actor  # type: ignore[untyped-decorator]
    def note() -> None:
        done.set()

    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()

    def work() -> None:
        done.clear()
        note.send()
        assert done.wait(20)

    return work, None


def _constance() -> Made:
    config = import_module("constance").config

    def work() -> None:
        config.ANSWER = 43
        assert config.ANSWER == 43

    return work, None


def _cacheops() -> Made:
    cacheops = import_module("cacheops")

    @cacheops.cached(timeout=60)  # type: ignore[untyped-decorator]
    def double(number: int) -> int:
        return 2 * number

    def work() -> None:
        assert double(2) == 4

    return work, None


def _sorl() -> Made:
    store = import_module("sorl.thumbnail.kvstores.redis_kvstore").KVStore()

    def work() -> None:
        store._set_raw("key", "value")
        assert store._get_raw("key") == b"value"

    return work, None


def make_celery() -> Any:
    """Return a Celery application of the settings, with one task."""
    app = import_module("celery").Celery("ecosystem")
    app.config_from_object("django.conf:settings", namespace="CELERY")

    @app.task(name="length")  # type: ignore[untyped-decorator]
    def length(text: str) -> int:
        return len(text)

    return app


def _celery() -> Made:
    celery = import_module("celery")
    app = make_celery()
    command = ("celery", "-A", "soak.ecosystem_celery", "worker", "--pool=threads")
    subprocess.Popen(
        [sys.executable, "-m", *command, "--concurrency=2", "--loglevel=ERROR"],
        stdin=subprocess.DEVNULL,
        # Not this process's own, whose end somebody waits for.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def work() -> None:
        result = app.send_task("length", ("abc",))
        # As the documentation has it: who waits at an expiry may not be woken.
        for _ in range(10):
            with suppress(celery.exceptions.TimeoutError):
                assert result.get(timeout=3) == 3
                return
        raise AssertionError("no result")

    return work, None


def _redbeat() -> Made:
    kind = import_module("redbeat").RedBeatSchedulerEntry
    every = import_module("celery.schedules").schedule(10)
    app = make_celery()

    def work() -> None:
        entry = kind("entry", "length", every, app=app)
        entry.save()
        assert kind.from_key(entry.key, app=app).task == "length"

    return work, None


def _singleton() -> Made:
    app = make_celery()
    kind = import_module("celery_singleton").Singleton

    @app.task(base=kind, name="one")  # type: ignore[untyped-decorator]
    def task() -> None:
        """Nothing is done: its locks are what this is about."""

    def work() -> None:
        backend = task.singleton_backend
        assert backend.lock("lock", "id", expiry=60)
        assert backend.get("lock") == "id"
        backend.unlock("lock")

    return work, None


def _flower() -> Made:
    app = make_celery()
    broker = import_module("flower.utils.broker").Broker

    async def awork() -> None:
        # Flower makes one for each look at the queues.
        seen = broker(
            app.conf.broker_url,
            broker_use_ssl=app.conf.broker_use_ssl,
            # Its own, 1 and 2 s, are short on a machine with all of this at once.
            broker_options={"socket_connect_timeout": 20, "socket_timeout": 20},
        )
        assert await seen.queues(["empty"]) == [{"name": "empty", "messages": 0}]

    return None, awork


def _taskiq() -> Made:
    from django.conf import settings

    broker = import_module("taskiq_redis").ListQueueBroker(settings.TASKIQ_URL)

    @broker.task  # type: ignore[untyped-decorator]
    async def length(text: str) -> int:
        return len(text)

    async def awork() -> None:
        await length.kiq("abc")
        async for message in broker.listen():
            assert b"abc" in message
            break

    return None, awork


_CELERY = (
    'TLS = {"ssl_cert_reqs": "required", "protocol": 2, '
    '"credential_provider": EntraCredentialProvider()}',
    "CELERY_BROKER_URL = CELERY_RESULT_BACKEND = LOCATION",
    "CELERY_BROKER_USE_SSL = CELERY_REDIS_BACKEND_USE_SSL = TLS",
)
_CELERY_MORE = (
    'TLS["ssl_ca_certs"] = CA\n'
    'CELERY_BROKER_TRANSPORT_OPTIONS = {"reauth_check_interval": 0.2}\n'
    "CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True"
)

ROWS = (
    Row(
        "django",
        _sessions,
        ('SESSION_ENGINE = "django.contrib.sessions.backends.cache"',),
    ),
    Row("djangorestframework", _rest_framework, short=True),
    Row(
        "django-ratelimit",
        _ratelimit,
        (
            'SILENCED_SYSTEM_CHECKS = ["django_ratelimit.E003", '
            '"django_ratelimit.W001"]',
        ),
        ("django_ratelimit",),
        short=True,
    ),
    Row(
        "django-defender",
        _defender,
        ('DEFENDER_REDIS_NAME = "default"',),
        ("defender",),
        short=True,
    ),
    Row(
        "django-rq",
        _rq,
        ('RQ_QUEUES = {"default": {"USE_REDIS_CACHE": "default"}}',),
        ("django_rq",),
        short=True,
    ),
    Row(
        "django-q2",
        _q2,
        ('Q_CLUSTER = {"name": "site", "django_redis": "default"}',),
        ("django_q",),
    ),
    Row(
        "huey",
        _huey,
        ('HUEY = {"connection": {"url": URL}, "immediate": False}',),
        ("huey.contrib.djhuey",),
        short=True,
    ),
    Row(
        "dramatiq",
        _dramatiq,
        (
            'DRAMATIQ_BROKER = {"BROKER": "dramatiq.brokers.redis.RedisBroker", '
            '"OPTIONS": {"url": URL}}',
        ),
        ("django_dramatiq",),
        short=True,
    ),
    Row(
        "django-constance",
        _constance,
        ("CONSTANCE_REDIS_CONNECTION = URL",),
        ("constance",),
        'CONSTANCE_BACKEND = "constance.backends.redisd.RedisBackend"\n'
        'CONSTANCE_CONFIG = {"ANSWER": (42, "")}',
        short=True,
    ),
    Row(
        "django-cacheops",
        _cacheops,
        ("CACHEOPS_REDIS = URL",),
        ("cacheops",),
        short=True,
    ),
    Row(
        "sorl-thumbnail",
        _sorl,
        ("THUMBNAIL_REDIS_URL = URL",),
        ("sorl.thumbnail",),
    ),
    Row("celery", _celery, _CELERY, more=_CELERY_MORE, short=True),
    Row("celery-redbeat", _redbeat, _CELERY, more=_CELERY_MORE, short=True),
    Row(
        "celery-singleton",
        _singleton,
        (*_CELERY, "CELERY_SINGLETON_BACKEND_KWARGS = TLS"),
        more=_CELERY_MORE,
    ),
    Row("flower", _flower, _CELERY, more=_CELERY_MORE),
    Row("taskiq-redis", _taskiq, ("TASKIQ_URL = URL",)),
)


def configure(row: Row) -> None:
    """Set Django up with a row's settings."""
    django = import_module("django")
    location, ca = os.environ["REDIS_URL"], os.environ["REDIS_CA_CERTS"]
    names: dict[str, Any] = {
        "EntraCredentialProvider": import_module(
            "django_entra_redis.credentials"
        ).EntraCredentialProvider,
        "LOCATION": location,
        "URL": f"{location}?credential_provider={PROVIDER}&ssl_ca_certs={quote(ca)}",
        "CA": ca,
    }
    exec("\n".join((*row.lines, row.more)), names)
    apps = ("contenttypes", "auth", "sessions", "messages", "admin")
    import_module("django.conf").settings.configure(
        **{name: value for name, value in names.items() if name.isupper()},
        SECRET_KEY="for the soak only",
        USE_TZ=True,
        INSTALLED_APPS=[
            *(f"django.contrib.{app}" for app in apps),
            "django_entra_redis",
            *row.apps,
        ],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        },
        CACHES={
            "default": {
                "BACKEND": "django_entra_redis.cache.EntraRedisCache",
                "LOCATION": location,
                "OPTIONS": {"ssl_ca_certs": ca},
            }
        },
        ENTRA_REDIS={"default": {"INSTANCE_DISCOVERY": False}},
    )
    django.setup()


@contextmanager
def _spans() -> Iterator[Callable[[], list[Any]]]:
    """Have redis-py instrumented; yield what returns the spans since it was asked."""
    export = import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    trace = import_module("opentelemetry.sdk.trace")
    processor = import_module("opentelemetry.sdk.trace.export").SimpleSpanProcessor
    exporter, provider = export.InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(processor(exporter))
    instrumentor = import_module("opentelemetry.instrumentation.redis")
    instrumentor.RedisInstrumentor().instrument(tracer_provider=provider)

    def take() -> list[Any]:
        spans = list(exporter.get_finished_spans())
        exporter.clear()
        return spans

    yield take


def measure(row: Row) -> dict[str, Any]:
    """Do a row's work until the tokens have expired; return what has been seen."""
    configure(row)
    errors: list[str] = []
    counts = {"calls": 0, "sync": 0, "async": 0}
    kept: list[Any] = []
    with _spans() as take:
        work, awork = row.make()
        until = time.monotonic() + DURATION
        take()

        async def alone() -> None:
            assert awork is not None
            first = True
            while first or time.monotonic() < until:
                try:
                    await awork()
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {error}")
                counts["calls"] += 1
                spans = take()
                if first:
                    counts["async"] = len(spans)
                kept.extend(spans)
                first = False
                await asyncio.sleep(PAUSES[counts["calls"] % len(PAUSES)])

        first = True
        while work is not None and (first or time.monotonic() < until):
            try:
                work()
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            counts["calls"] += 1
            spans = take()
            if first:
                counts["sync"] = len(spans)
            kept.extend(spans)
            first = False
            time.sleep(PAUSES[counts["calls"] % len(PAUSES)])
        if awork is not None:
            until = time.monotonic() + DURATION
            asyncio.run(alone())
    if any("eyJ" in str(dict(span.attributes or {})) for span in kept):
        errors.append("a token is in a span")
    return {
        **counts,
        "sync": counts["sync"] if work else None,
        "async": counts["async"] if awork else None,
        "errors": errors,
        "version": metadata.version(row.name),
    }


def run(row: Row, environ: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start a process that measures a row."""
    return subprocess.Popen(
        [sys.executable, "-m", "soak.ecosystem", "--row", row.name],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What it starts ends with it.
        start_new_session=True,
    )


def outcome(process: "subprocess.Popen[str]", deadline: float) -> dict[str, Any]:
    """Return what a process has printed; how it failed if it has printed nothing."""
    try:
        output, log = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        output, log = "", f"no end within {PATIENCE:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    try:
        found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = log.strip().splitlines()[-1:] or ["nothing was printed"]
        found = {
            "errors": last,
            "version": "?",
            "sync": None,
            "async": None,
            "calls": 0,
        }
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the documentation."""
    lines = [
        "| package | version | settings | spans, sync | spans, async | errors |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        if row.name in found:
            seen = found[row.name]
            lines_of = [f"`{line}`" for line in row.lines]
            if row.name != "celery" and row.lines[: len(_CELERY)] == _CELERY:
                lines_of[: len(_CELERY)] = ["those of celery"]
            shown = "<br>".join(lines_of) or "none"
            spans = (
                "-" if seen[kind] is None else seen[kind] for kind in ("sync", "async")
            )
            cells = [row.name, seen["version"], shown, *spans, len(seen["errors"])]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the ten most used only")
    parser.add_argument("--only", action="append", help="this package; may be repeated")
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    by_name = {row.name: row for row in ROWS}
    if arguments.row:
        print(json.dumps(measure(by_name[arguments.row])), flush=True)
        # A worker's threads may not end by themselves.
        os._exit(0)
    from emulator import Emulator

    chosen = [
        row
        for row in ROWS
        if (row.short or not arguments.short)
        and (not arguments.only or row.name in arguments.only)
    ]
    with Emulator(token_lifetime=LIFE) as emulator:
        environ = {**os.environ, **emulator.environ("service_principal")}
        deadline = time.monotonic() + PATIENCE
        processes = {row.name: run(row, environ) for row in chosen}
        found = {
            name: outcome(process, deadline) for name, process in processes.items()
        }
        refused = [a.reason for a in emulator.authentications if not a.accepted]
        tokens = emulator.stats.token_requests
    print(table(found))
    for name, seen in found.items():
        for error in dict.fromkeys(seen["errors"]):
            print(f"{name}: {error}", file=sys.stderr)
    print(f"{tokens} tokens, {len(refused)} refused", file=sys.stderr)
    if arguments.write:
        arguments.write.write_text(f"{table(found)}\n", encoding="utf-8")
    return (
        1 if any(seen["errors"] or not seen["calls"] for seen in found.values()) else 0
    )


if __name__ == "__main__":
    sys.exit(main())
