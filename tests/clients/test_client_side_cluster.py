"""Copies of values on a cluster: a connection for each primary, and none to others."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.core.cache import caches
from django.test import override_settings
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from django_entra_redis.connections import event_loops, registry, tracking
from django_entra_redis.connections.tracked_calls import Fetch
from django_entra_redis.connections.tracked_connection import TrackedConnection
from emulator import Emulator
from tests.support.caches import let_in, wait_until
from tests.support.clusters import admin, primaries, replica_of

NAMES = [f"name-{number}" for number in range(30)]
#: Slots that move, the first of the first node's.
SLOTS = 100
VALUES = {name: {"name": name} for name in NAMES}


@contextmanager
def use(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give caches on a cluster, let in with Entra: with copies, and without."""
    settings = {
        "BACKEND": "django_entra_redis.cache.EntraRedisClusterCache",
        "LOCATION": emulator.redis_url,
    }
    options = {"ssl_ca_certs": str(emulator.ca_file)}
    copying = {**options, "client_side_cache": {"max_staleness": 1.0}}
    both = {
        "default": {**settings, "OPTIONS": copying},
        "other": {**settings, "OPTIONS": options},
    }
    with let_in(emulator, monkeypatch), override_settings(CACHES=both):
        yield caches["default"], caches["other"]


@pytest.fixture
def both(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the caches on the module's cluster."""
    with use(cluster, monkeypatch) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have loops and tracking connections connect at once; leave no connection."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    monkeypatch.setattr(tracking, "RETRY_AFTER", 0.0)
    yield
    registry.reset()


def copied(cache: Any, names: Any = NAMES) -> None:
    """Have there be a copy of each key, and of no other."""
    wait_until(
        lambda: (cache.get_many(names), info(cache).entries >= len(list(names)))[1]
    )


def info(cache: Any) -> Any:
    """Return a snapshot of the copies."""
    return cache.client_side_cache_info()


@pytest.mark.parametrize("native", [False, True])
def test_reads_and_writes(both: Any, native: bool) -> None:
    """Hits ask nobody; own writes are read at once, others' soon."""
    cache, other = both
    other.set_many(VALUES)

    def get(name: str) -> Any:
        return asyncio.run(cache.aget(name)) if native else cache.get(name)

    assert get("name-0") == VALUES["name-0"]
    copied(cache)
    hits = info(cache).hits
    assert [get(name) for name in NAMES] == list(VALUES.values())
    assert cache.get_many(NAMES) == VALUES
    assert info(cache).hits == hits + 2 * len(NAMES)
    assert info(cache).connected
    for name in NAMES:
        cache.set(name, 1)
        assert get(name) == 1
        other.set(name, 2)
        wait_until(lambda: get(name) == 2)  # noqa: B023 - it ends in here
    copied(cache)
    cache.set_many(dict.fromkeys(NAMES, 3))
    assert info(cache).entries == 0
    assert cache.get_many(NAMES) == dict.fromkeys(NAMES, 3)
    copied(cache)
    cache.delete_many(NAMES[:10])
    assert cache.get_many(NAMES) == dict.fromkeys(NAMES[10:], 3)
    assert asyncio.run(cache.aget_many(NAMES)) == dict.fromkeys(NAMES[10:], 3)
    cache.clear()
    assert info(cache).entries == 0
    assert cache.get_many(NAMES) == {}


@pytest.mark.parametrize("native", [False, True])
def test_the_first_read_of_a_process(both: Any, native: bool) -> None:
    """It has nodes looked for, before any of them can be asked for copies."""
    cache, _ = both
    assert not cache.get_topology().known
    found = asyncio.run(cache.aget_many(NAMES)) if native else cache.get_many(NAMES)
    assert found == {}
    assert cache.get_topology().known


def test_one_connection_for_each_primary(cluster: Emulator, both: Any) -> None:
    """And none to a replica."""
    cache, other = both
    other.set_many(VALUES)
    copied(cache)
    tracked = {}
    for node in cluster.nodes():
        with admin(cluster, node.number) as connection:
            clients = [each["flags"] for each in connection.client_list()]
        tracked[node.number] = sum("t" in flags for flags in clients)
    numbers = {node.number for node in primaries(cluster)}
    assert tracked == {number: int(number in numbers) for number in tracked}


@pytest.mark.parametrize("native", [False, True])
def test_all_primaries_at_once(
    both: Any, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is sent its keys before the first one's answer is waited for."""
    cache, other = both
    other.set_many(VALUES)
    with asyncio.Runner() as runner:

        def read() -> Any:
            if native:
                return runner.run(cache.aget_many(NAMES))
            return cache.get_many(NAMES)

        wait_until(lambda: (read(), info(cache).connected)[1])
        trackers = list(cache._cache.local._trackers.values())
        assert len(trackers) == 3
        seen: list[str] = []

        def note(owner: Any, name: str) -> None:
            method = getattr(owner, name)

            def noting(*args: Any, **kwargs: Any) -> Any:
                seen.append(name)
                return method(*args, **kwargs)

            monkeypatch.setattr(owner, name, noting)

        note(TrackedConnection, "fetch")
        note(Fetch, "finish")
        cache._cache.local.copies.flush()
        assert read() == VALUES
    assert seen == ["fetch"] * 3 + ["finish"] * 3


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("silent", [False, True])
def test_a_primary_that_can_t_be_asked(
    both: Any, native: bool, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All values are asked for in another way; whoever reads from a primary that has
    been asked already waits for no turn of this thread's."""
    cache, other = both
    other.set_many(VALUES)
    with asyncio.Runner() as runner:

        def read() -> Any:
            if native:
                return runner.run(cache.aget_many(NAMES))
            return cache.get_many(NAMES)

        wait_until(lambda: (read(), info(cache).connected)[1])
        local = cache._cache.local
        keys = [cache.make_key(name) for name in NAMES]
        parts = cache._cache.parts_of(keys)
        first, *_, last = map(local.tracker, parts)

        def fail(*args: Any) -> None:
            if silent:
                raise RedisTimeoutError("The test says so.")

        async def afail(*args: Any) -> None:
            fail()

        local.copies.flush()
        monkeypatch.setattr(last, "begin", fail)
        monkeypatch.setattr(last, "afetch", afail)
        assert read() == VALUES
    assert all(call.turn is None for call in first.connection._under_way)
    some = [keys[index] for index in next(iter(parts.values()))]
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(first.fetch, some).result()) == len(some)


@pytest.mark.parametrize("native", [False, True])
def test_failover(cluster: Emulator, both: Any, native: bool) -> None:
    """What a primary has told is believed no longer than it is one."""
    cache, other = both
    other.set_many(VALUES)
    copied(cache)
    for node in primaries(cluster):
        cluster.failover(replica_of(cluster, node.number).number)
    other.set_many(dict.fromkeys(NAMES, 1))

    def read() -> Any:
        if native:
            return asyncio.run(cache.aget_many(NAMES))
        return {name: cache.get(name) for name in NAMES}

    wait_until(lambda: read() == dict.fromkeys(NAMES, 1))
    cache.set_many(dict.fromkeys(NAMES, 2))
    assert read() == dict.fromkeys(NAMES, 2)
    copied(cache)


def test_a_primary_dies(cluster: Emulator, both: Any) -> None:
    """Its copies go, and the others' stay."""
    cache, other = both
    other.set_many(VALUES)
    copied(cache)
    cluster.kill_node(primaries(cluster)[0].number)

    def lost() -> Any:
        for name in NAMES:
            with suppress(RedisError):
                cache.get(name)
        return info(cache).flushes > 0

    wait_until(lost)
    assert 0 < info(cache).entries < len(NAMES)

    def back() -> Any:
        with suppress(RedisError):
            return cache.get_many(NAMES) == VALUES

    wait_until(back)


def test_resharding(cluster_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that moves takes its copies along, whoever tells of it first."""
    with (
        Emulator(cluster=3, redis_server=cluster_server) as emulator,
        use(emulator, monkeypatch) as (cache, other),
    ):
        names = [
            name
            for name in (f"n{number}" for number in range(2000))
            if key_slot(cache.make_key(name).encode()) < SLOTS
        ]
        assert len(names) > 5
        other.set_many(dict.fromkeys(names, 0))
        copied(cache, names)
        emulator.migrate_slots(1, 2, SLOTS)
        other.set_many(dict.fromkeys(names, 1))
        wait_until(lambda: {cache.get(name) for name in names} == {1})
        cache.set_many(dict.fromkeys(names, 2))
        assert {cache.get(name) for name in names} == {2}
        copied(cache, names)
        registry.reset()


def test_a_primary_that_has_left(both: Any) -> None:
    """The connection to it counts no more, whether it is closed or not."""
    cache, other = both
    other.set_many(VALUES)
    copied(cache)
    topology = cache._cache.topology
    topology.discover()
    slots = list(topology.slots)
    gone, stays = list(dict.fromkeys(slots))[:2]
    trackers = cache._cache.local._trackers
    tracker = trackers[gone]
    topology.slots = [stays if slot is gone else slot for slot in slots]
    assert info(cache).connected
    assert not tracker.connected
    assert gone not in trackers
    # One that comes later is as good as any.
    topology.slots = slots
    copied(cache)
    assert info(cache).connected
    topology.slots = None
    assert info(cache).connected


def test_a_copy_from_elsewhere(both: Any) -> None:
    """A copy counts only if it comes from where the key is now."""
    cache, other = both
    other.set_many(VALUES)
    copied(cache)
    client = cache._cache
    # None may be under way that would put the slots back.
    client.topology.discover()
    slots = list(client.topology.slots)
    key = cache.make_key("name-0")
    slot = key_slot(key.encode())
    client.topology.slots[slot] = next(
        endpoint for endpoint in slots if endpoint is not slots[slot]
    )
    assert client.find(key) is None
    assert info(cache).entries == len(NAMES) - 1
    client.topology.slots[slot] = None
    client.local.copies.end(client.local.copies.begin(key, object()), b"1", 1e12)
    assert client.find(key) is None
    assert client.fetch([key]) is None
    # So does a loop that reads in a thread.
    assert client.fetch_directly([key]) is None
    with suppress(RedisError):
        asyncio.run(cache.aget("name-0"))
    client.topology.slots = slots
    assert cache.get("name-0") == VALUES["name-0"]


def test_before_the_first_look(both: Any) -> None:
    """The nodes are asked for as ever, and copies are kept from then on."""
    cache, other = both
    assert asyncio.run(cache.aget("k")) is None
    registry.reset()
    assert cache.get("k") is None
    registry.reset()
    other.set("k", 1)
    assert cache.get("k") == 1
    copied(cache, ["k"])
