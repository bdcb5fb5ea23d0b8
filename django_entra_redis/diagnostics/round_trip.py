"""The step "round_trip": it tries the commands of Django's cache API on the servers."""

import contextlib
import itertools
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..cache.backend import EntraRedisClusterCache
from ..exceptions import ClusterUnavailableError
from .redis_session import RedisSession
from .runner import Diagnosis, StepError

#: Round trips that are measured on each server.
ROUND_TRIPS = 20
#: Seconds within which a written value must have reached the replicas in ``LOCATION``.
REPLICATION = 2.0
#: Random keys that are tried to find one on a given node: Redis Cluster is designed for
#: up to a thousand nodes.
TRIES = 1000


@dataclass(frozen=True, slots=True)
class Trial:
    """A server to try the commands on, and two keys that lie on it.

    Parameters:
        session: a session with the server.
        key, counter: the keys in Redis, with prefix and version.
    """

    session: RedisSession
    key: str
    counter: str


def try_out(diagnosis: Diagnosis) -> str:
    """Write, read and count on each server that takes writes; return the findings.

    Raises:
        StepError: a command is refused, or a reply is wrong.
    """
    try:
        return _try_all(diagnosis, uuid.uuid4().hex.encode())
    except ClusterUnavailableError as error:
        raise StepError("cluster_unavailable", str(error)) from None


def facts_of(info: Any) -> dict[str, str]:
    """Return the fields of a reply to INFO."""
    text = info.decode() if isinstance(info, bytes) else str(info)
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


def _try_all(diagnosis: Diagnosis, value: bytes) -> str:
    times: list[float] = []
    notes: dict[str, None] = {}
    for trial in _trials(diagnosis):
        try:
            notes |= dict.fromkeys(_try_commands(diagnosis, trial, value))
            times += _measure(trial, value)
            if not diagnosis.nodes:
                _await_replicas(diagnosis, trial.key, value)
        finally:
            with contextlib.suppress(StepError):
                trial.session.ask("DEL", trial.key)
    with contextlib.suppress(StepError):
        facts = facts_of(diagnosis.sessions[-1].ask("INFO", "memory"))
        notes[f"memory policy {facts.get('maxmemory_policy', '?')}"] = None
    found = (
        f"min {min(times):.2f}, median {statistics.median(times):.2f}, "
        f"max {max(times):.2f} ms of {len(times)}"
    )
    return "; ".join([found, *notes])


def _trials(diagnosis: Diagnosis) -> Iterator[Trial]:
    if not isinstance(diagnosis.cache, EntraRedisClusterCache):
        key = _make_key(diagnosis)
        yield Trial(diagnosis.sessions[0], key, f"{key}.counter")
        return
    topology = diagnosis.cache.get_topology()
    for address, session in diagnosis.nodes.items():
        keys = (_make_key(diagnosis) for _ in range(TRIES))
        endpoint = topology.endpoint_at(address)
        # There is none if a hash tag in KEY_PREFIX keeps all keys on another node.
        own = (key for key in keys if topology.endpoint_of(key) is endpoint)
        pair = tuple(itertools.islice(own, 2))
        if len(pair) == 2:
            yield Trial(session, *pair)


def _make_key(diagnosis: Diagnosis) -> str:
    return str(diagnosis.cache.make_key(f"entra_redis_check.{uuid.uuid4()}"))


def _try_commands(diagnosis: Diagnosis, trial: Trial, value: bytes) -> list[str]:
    """Try the commands of Django's cache API; return notes for the user.

    FLUSHDB is left out, since it would delete the users' data.

    Raises:
        StepError: some commands are refused, which it names.
    """
    ask, key, counter = trial.session.ask, trial.key, trial.counter
    commands: list[tuple[Any, ...]] = [
        ("SET", key, value, "EX", 60),
        ("SET", counter, 1, "NX", "EX", 60),
        ("INCRBY", counter, 1),
        ("GET", key),
        ("EXISTS", key),
        ("PERSIST", key),
        ("EXPIRE", key, 60),
        ("DEL", counter),
    ]
    if not diagnosis.nodes:
        commands.append(("MGET", key, counter))
    if diagnosis.cache.options.clear_by_scan:
        commands += [("SCAN", 0, "MATCH", counter, "COUNT", 1), ("UNLINK", counter)]
    refused: dict[str, str] = {}
    notes = []
    for command in commands:
        try:
            ask(*command)
        except StepError as error:
            if command[0] == "MGET" and error.code == "cluster_policy_oss":
                # CROSSSLOT: the keys are in two slots, though maybe on one server.
                if _tells_slots(ask):
                    raise
                notes.append("no MGET across slots, so get_many() sends a GET each")
                continue
            if diagnosis.nodes and error.code == "cluster_policy_oss":
                raise StepError("cluster_unavailable", str(error)) from None
            if error.code != "access_policy_too_narrow":
                raise
            refused.setdefault(command[0], str(error))
    if refused:
        pattern = diagnosis.cache.make_key("*")
        raise StepError(
            "access_policy_too_narrow",
            f"{', '.join(refused)} on keys such as '{pattern}': "
            f"{next(iter(refused.values()))}",
        )
    try:
        ask("EVAL", "return redis.call('EXISTS', KEYS[1])", 1, key)
    except StepError:
        notes.append("no scripts (EVAL), so incr() takes two round trips")
    return notes


def _tells_slots(ask: Callable[..., Any]) -> bool:
    """Whether a server lists the nodes of a Redis Cluster."""
    try:
        ask("CLUSTER", "SLOTS")
    except StepError:
        return False
    return True


def _measure(trial: Trial, value: bytes) -> list[float]:
    times = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        found = trial.session.ask("GET", trial.key)
        times.append((time.perf_counter() - begun) * 1000)
        if found != value:
            what = "is not there" if found is None else "has another value"
            raise StepError(
                "round_trip_wrong_value", f"'{trial.key}', just set, {what}."
            )
    return times


def _await_replicas(diagnosis: Diagnosis, key: str, value: bytes) -> None:
    readers = diagnosis.sessions[1:]
    for server, reader in zip(diagnosis.servers[1:], readers, strict=True):
        _await_replica(server.name, reader, key, value, diagnosis.left)


def _await_replica(
    name: str, reader: RedisSession, key: str, value: bytes, left: Callable[[], float]
) -> None:
    until = time.monotonic() + min(REPLICATION, left() / 2)
    while reader.ask("GET", key) != value:
        if time.monotonic() >= until:
            raise StepError(
                "replica_behind", f"'{key}', set on the first server, is not on {name}."
            )
        time.sleep(0.02)
