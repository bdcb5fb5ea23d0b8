"""Finding out why a cache can't be reached: the steps behind ``entra_redis_check``.

Each step is a function that returns what it found, or raises :class:`StepError`.
"""

import contextlib
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .cache import EntraRedisCache
from .conf import Identity, load_identity
from .conversation import Conversation
from .credentials import EntraCredentialProvider
from .endpoints import Endpoint
from .examination import Examination, Step, StepError
from .exceptions import TokenError
from .problems import ConfigurationError

#: Round trips that are measured.
ROUND_TRIPS = 20
#: Seconds that what was written may take to the other servers in ``LOCATION``.
REPLICATION = 2.0


def diagnose(alias: str, cache: EntraRedisCache, timeout: float) -> Iterator[Step]:
    """Examine a cache; yield each step's outcome, up to the first that fails.

    Parameters:
        alias: its name in ``CACHES``.
        timeout: seconds that all steps may take together.
    """
    return Examination(alias, cache, timeout).take(STEPS)


def _settings(exam: Examination) -> str:
    where = f"CACHES[{exam.alias!r}]"
    try:
        options = exam.cache.read_options(where)
        identity = options.identity and load_identity(options.identity)
        exam.servers = [Endpoint(pool, exam.left) for pool in exam.cache._cache.pools]
        for server in exam.servers:
            server.connection()
    except ConfigurationError as error:
        hint = " ".join(problem.hint for problem in error.problems)
        what = " ".join(f"{p.where}: {p.message}" for p in error.problems)
        raise StepError("settings_invalid", what, hint) from None
    # What a dotted path leads to, and what redis-py makes of the options that go on
    # to it, may raise anything.
    except Exception as error:
        what = f"{where}['OPTIONS']: {error}."
        raise StepError("settings_invalid", what) from None
    if not identity:
        return "no identity (OPTIONS['identity'] is None)"
    exam.identity = identity
    client = f", client {identity.client_id}" if identity.client_id else ""
    return f"identity '{identity.alias}': {identity.kind}{client}"


def _dns(exam: Examination) -> str:
    return _found(server.resolve() for server in exam.servers)


def _tcp(exam: Examination) -> str:
    return _found(server.reach() for server in exam.servers)


def _tls(exam: Examination) -> str:
    return _found(server.shake_hands() for server in exam.servers)


def _token(exam: Examination) -> str:
    if exam.identity is None:
        return "not used"
    renewal = EntraCredentialProvider(exam.identity.alias).renewal
    try:
        exam.token = token = renewal.current()
    except TokenError as error:
        code = _narrowed(error.code, exam.identity)
        raise StepError(code, str(error)) from None
    claims = token.claims
    parts = [f"principal {renewal.status().oid}"]
    if claims.get("tid"):
        parts.append(f"tenant {claims['tid']}")
    application = claims.get("appid") or claims.get("azp")
    if application:
        parts.append(f"application {application}")
    now = renewal.clock.monotonic()
    parts.append(f"{_span(now - token.received_at)} old")
    parts.append(f"expires in {_span(token.expires_at - now)}")
    # Where it is due, it is under way.
    due_at = renewal.state.due_at or now
    parts.append(f"renewed in {_span(max(0.0, due_at - now))}")
    return ", ".join(parts)


def _narrowed(code: str, identity: Identity) -> str:
    """Return what a failed token request's code means for this sort of identity."""
    if code == "token_assertion_expired" and identity.client_certificate:
        # What a certificate signs is made anew for each request.
        return "token_clock_off"
    if code == "token_timeout" and identity.kind == "managed_identity":
        return "managed_identity_timeout"
    return code


def _auth(exam: Examination) -> str:
    for server in exam.servers:
        conversation = Conversation(server.connection(), exam.token)
        exam.conversations.append(conversation)
        conversation.begin()
    return "not used" if exam.token is None else f"let in as {exam.token.username}"


def _ping(exam: Examination) -> str:
    return _found(_version(conversation) for conversation in exam.conversations)


def _version(conversation: Conversation) -> str:
    conversation.ask("PING")
    try:
        facts = _facts(conversation.ask("INFO", "server"))
    except StepError:
        return "server version not told (INFO is refused)"
    version, mode = facts.get("redis_version", "?"), facts.get("redis_mode", "?")
    if mode == "cluster":
        raise StepError("cluster_policy_oss", f"Redis {version} runs as a cluster.")
    return f"Redis {version}, {mode}: one endpoint for all keys"


def _round_trip(exam: Examination) -> str:
    writer, *readers = exam.conversations
    key = exam.cache.make_key(f"entra_redis_check.{uuid.uuid4()}")
    value = uuid.uuid4().hex.encode()
    try:
        notes = _try_commands(exam, key, value)
        times = _measure(writer, key, value)
        for server, reader in zip(exam.servers[1:], readers, strict=True):
            _await_replica(server.name, reader, key, value, exam.left)
    finally:
        with contextlib.suppress(StepError):
            writer.ask("DEL", key)
    with contextlib.suppress(StepError):
        facts = _facts(writer.ask("INFO", "memory"))
        notes.append(f"memory policy {facts.get('maxmemory_policy', '?')}")
    found = (
        f"min {min(times):.2f}, median {statistics.median(times):.2f}, "
        f"max {max(times):.2f} ms of {len(times)}"
    )
    return "; ".join([found, *notes])


def _try_commands(exam: Examination, key: str, value: bytes) -> list[str]:
    """Try what Django's cache API comes down to; return what is worth knowing.

    All but FLUSHDB, which would take the users' data with it.

    Raises:
        StepError: naming all commands that are refused.
    """
    ask, counter = exam.conversations[0].ask, f"{key}.counter"
    commands: list[tuple[Any, ...]] = [
        ("SET", key, value, "EX", 60),
        ("SET", counter, 1, "NX", "EX", 60),
        ("INCRBY", counter, 1),
        ("GET", key),
        ("MGET", key, counter),
        ("EXISTS", key),
        ("PERSIST", key),
        ("EXPIRE", key, 60),
        ("DEL", counter),
    ]
    if exam.cache.options.clear_by_scan:
        commands += [("SCAN", 0, "MATCH", counter, "COUNT", 1), ("UNLINK", counter)]
    refused: dict[str, str] = {}
    for command in commands:
        try:
            ask(*command)
        except StepError as error:
            if error.code != "access_policy_too_narrow":
                raise
            refused.setdefault(command[0], str(error))
    if refused:
        pattern = exam.cache.make_key("*")
        raise StepError(
            "access_policy_too_narrow",
            f"{', '.join(refused)} on keys such as '{pattern}': "
            f"{next(iter(refused.values()))}",
        )
    try:
        ask("EVAL", "return redis.call('EXISTS', KEYS[1])", 1, key)
    except StepError:
        return ["no scripts (EVAL), so incr() takes two round trips"]
    return []


def _measure(writer: Conversation, key: str, value: bytes) -> list[float]:
    times = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        found = writer.ask("GET", key)
        times.append((time.perf_counter() - begun) * 1000)
        if found != value:
            what = "is not there" if found is None else "has another value"
            raise StepError("round_trip_wrong_value", f"'{key}', just set, {what}.")
    return times


def _await_replica(
    name: str, reader: Conversation, key: str, value: bytes, left: Callable[[], float]
) -> None:
    until = time.monotonic() + min(REPLICATION, left() / 2)
    while reader.ask("GET", key) != value:
        if time.monotonic() >= until:
            raise StepError(
                "replica_behind", f"'{key}', set on the first server, is not on {name}."
            )
        time.sleep(0.02)


STEPS: Mapping[str, Callable[[Examination], str]] = {
    "settings": _settings,
    "dns": _dns,
    "tcp": _tcp,
    "tls": _tls,
    "token": _token,
    "auth": _auth,
    "ping": _ping,
    "round_trip": _round_trip,
}


def _found(found: Iterator[str]) -> str:
    """Return what was found at the servers, each thing once."""
    return "; ".join(dict.fromkeys(found))


def _facts(info: Any) -> dict[str, str]:
    text = info.decode() if isinstance(info, bytes) else str(info)
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
