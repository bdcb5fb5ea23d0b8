"""The round trip: the commands of Django's cache API, tried on the servers."""

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
from .redis_session import Conversation
from .runner import Examination, StepError

#: Round trips that are measured on each server.
ROUND_TRIPS = 20
#: Seconds that what was written may take to the other servers in ``LOCATION``.
REPLICATION = 2.0
#: Keys that are made up to find one that a node has; of a thousand nodes, one.
TRIES = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """A server that is written to, and keys that it has.

    Parameters:
        conversation: with it.
        key, counter: as Redis has them.
    """

    conversation: Conversation
    key: str
    counter: str


def try_out(exam: Examination) -> str:
    """Write, read and count on each server that is written to; return what was found.

    Raises:
        StepError: something is refused, or is not what it should be.
    """
    try:
        return _try_places(exam, uuid.uuid4().hex.encode())
    except ClusterUnavailableError as error:
        raise StepError("cluster_unavailable", str(error)) from None


def facts_of(info: Any) -> dict[str, str]:
    """Return what INFO says."""
    text = info.decode() if isinstance(info, bytes) else str(info)
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


def _try_places(exam: Examination, value: bytes) -> str:
    times: list[float] = []
    notes: dict[str, None] = {}
    for place in _places(exam):
        try:
            notes |= dict.fromkeys(_try_commands(exam, place, value))
            times += _measure(place, value)
            if not exam.nodes:
                _await_replicas(exam, place.key, value)
        finally:
            with contextlib.suppress(StepError):
                place.conversation.ask("DEL", place.key)
    with contextlib.suppress(StepError):
        facts = facts_of(exam.conversations[-1].ask("INFO", "memory"))
        notes[f"memory policy {facts.get('maxmemory_policy', '?')}"] = None
    found = (
        f"min {min(times):.2f}, median {statistics.median(times):.2f}, "
        f"max {max(times):.2f} ms of {len(times)}"
    )
    return "; ".join([found, *notes])


def _places(exam: Examination) -> Iterator[Place]:
    if not isinstance(exam.cache, EntraRedisClusterCache):
        key = _make_key(exam)
        yield Place(exam.conversations[0], key, f"{key}.counter")
        return
    topology = exam.cache.get_topology()
    for address, conversation in exam.nodes.items():
        keys = (_make_key(exam) for _ in range(TRIES))
        endpoint = topology.endpoint_at(address)
        # None where a hash tag in KEY_PREFIX keeps all keys on another node.
        own = (key for key in keys if topology.endpoint_of(key) is endpoint)
        pair = tuple(itertools.islice(own, 2))
        if len(pair) == 2:
            yield Place(conversation, *pair)


def _make_key(exam: Examination) -> str:
    return str(exam.cache.make_key(f"entra_redis_check.{uuid.uuid4()}"))


def _try_commands(exam: Examination, place: Place, value: bytes) -> list[str]:
    """Try what Django's cache API comes down to; return what is worth knowing.

    All but FLUSHDB, which would take the users' data with it.

    Raises:
        StepError: naming all commands that are refused.
    """
    ask, key, counter = place.conversation.ask, place.key, place.counter
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
    if not exam.nodes:
        commands.append(("MGET", key, counter))
    if exam.cache.options.clear_by_scan:
        commands += [("SCAN", 0, "MATCH", counter, "COUNT", 1), ("UNLINK", counter)]
    refused: dict[str, str] = {}
    notes = []
    for command in commands:
        try:
            ask(*command)
        except StepError as error:
            if command[0] == "MGET" and error.code == "cluster_policy_oss":
                # The server has both keys, and yet they are in two slots.
                if _tells_slots(ask):
                    raise
                notes.append("no MGET across slots, so get_many() sends a GET each")
                continue
            if exam.nodes and error.code == "cluster_policy_oss":
                raise StepError("cluster_unavailable", str(error)) from None
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
        notes.append("no scripts (EVAL), so incr() takes two round trips")
    return notes


def _tells_slots(ask: Callable[..., Any]) -> bool:
    """Whether a server is a node of a cluster that clients see."""
    try:
        ask("CLUSTER", "SLOTS")
    except StepError:
        return False
    return True


def _measure(place: Place, value: bytes) -> list[float]:
    times = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        found = place.conversation.ask("GET", place.key)
        times.append((time.perf_counter() - begun) * 1000)
        if found != value:
            what = "is not there" if found is None else "has another value"
            raise StepError(
                "round_trip_wrong_value", f"'{place.key}', just set, {what}."
            )
    return times


def _await_replicas(exam: Examination, key: str, value: bytes) -> None:
    readers = exam.conversations[1:]
    for server, reader in zip(exam.servers[1:], readers, strict=True):
        _await_replica(server.name, reader, key, value, exam.left)


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
