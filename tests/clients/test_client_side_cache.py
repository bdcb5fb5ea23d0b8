"""Copies of values in this process: each rule, broken on purpose."""

import asyncio
import gc
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import redis
import redis.asyncio

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.clients.local_copies import local_copies
from django_entra_redis.connections import registry, tracking
from django_entra_redis.connections.tracked_connection import TrackedConnection
from django_entra_redis.exceptions import ServerDownError
from django_entra_redis.status import ClientSideCacheInfo
from emulator import Emulator
from tests.processes.forks import fork
from tests.support.caches import (
    PATIENCE,
    Database,
    Proxy,
    let_in,
    make_cache,
    recovered,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("asgiref_thread")


@pytest.fixture(autouse=True)
def empty(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with nothing, and leave no connection; connect anew at once."""
    monkeypatch.setattr(tracking, "RETRY_AFTER", 0.0)
    database.admin.flushall()
    yield
    registry.reset()


@pytest.fixture
def cache(database: Database) -> EntraRedisCache:
    """Give a cache that keeps copies."""
    return database.cache(client_side_cache=True)


@pytest.fixture
def other(database: Database) -> EntraRedisCache:
    """Give a cache that keeps none, as if it were another process'."""
    return database.cache()


def info(cache: EntraRedisCache) -> ClientSideCacheInfo:
    """Return a snapshot of a cache's copies."""
    found = cache.client_side_cache_info()
    assert found is not None
    return found


def local(cache: EntraRedisCache) -> Any:
    """Return the copies of a cache."""
    client: Any = cache._cache
    return client.local


def deafen(cache: EntraRedisCache) -> None:
    """Have a cache's connection hear of nothing more, until it waits for a value."""
    for tracker in local(cache)._trackers.values():
        tracker.connection.has_come = lambda: False


def copied(cache: EntraRedisCache, *keys: str) -> None:
    """Have keys been read, so that there are copies of them."""
    for key in keys:
        before = info(cache).hits
        # Redis' message of an earlier change may keep the first one out.
        wait_until(lambda: (cache.get(key), info(cache).hits > before)[1])  # noqa: B023


class Loop:
    """An event loop in which a cache's asynchronous methods are called."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def __enter__(self) -> Callable[[Any], Any]:
        """Return what runs a coroutine."""
        return self._runner.run

    def __exit__(self, *args: object) -> None:
        self._runner.close()


# -- hits


def test_a_hit_asks_nobody(
    database: Database, cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """Nothing goes over the wire; each caller gets a value of its own."""
    value = {"list": [1, 2]}
    other.set("k", value)
    assert cache.get("k") == value
    commands = database.received("total_commands_processed")
    first, second = cache.get("k"), cache.get("k")
    assert database.received("total_commands_processed") == commands + 1  # INFO
    assert first == second == value
    first["list"].append(3)
    assert cache.get("k") == value
    snapshot = info(cache)
    assert (snapshot.hits, snapshot.misses, snapshot.entries) == (3, 1, 1)
    assert snapshot.connected
    assert snapshot.unsupported is None
    assert snapshot.last_confirmed is not None
    assert snapshot.last_confirmed <= datetime.now(UTC)
    assert datetime.now(UTC) - snapshot.last_confirmed < timedelta(minutes=1)


def test_it_is_off_unless_asked_for(database: Database, other: EntraRedisCache) -> None:
    """Then the server is asked for nothing that it was not asked for before."""
    other.set("k", 1)
    assert other.client_side_cache_info() is None
    assert other.get("k") == 1
    clients = database.admin.client_list()
    assert [client for client in clients if "t" in client["flags"]] == []
    assert type(other._cache).__name__ == "CacheClient"


def test_all_reads(cache: EntraRedisCache, other: EntraRedisCache) -> None:
    """Each finds copies, and makes them where it reads values."""
    other.set_many({"a": 1, "b": {"x": 2}, "c": 3})
    names = ["a", "missing", "b"]
    assert list(cache.get_many(names).items()) == [("a", 1), ("b", {"x": 2})]
    assert info(cache).entries == 2
    assert cache.get_many(["c", *names]) == {"c": 3, "a": 1, "b": {"x": 2}}
    assert info(cache).hits == 2
    assert cache.has_key("a")
    assert info(cache).hits == 3
    assert not cache.has_key("missing")
    assert cache.get_many([]) == {}
    assert cache.get_or_set("a", pytest.fail) == 1
    assert cache.get("missing", "default") == "default"
    with Loop() as run:
        assert run(cache.aget("a")) == 1
        assert run(cache.aget_many(names)) == {"a": 1, "b": {"x": 2}}
        assert run(cache.ahas_key("a"))
        assert not run(cache.ahas_key("missing"))
        assert run(cache.aget("missing", 5)) == 5


@pytest.mark.parametrize("kind", ["int", "dict"])
def test_in_an_event_loop(
    database: Database, cache: EntraRedisCache, other: EntraRedisCache, kind: str
) -> None:
    """A loop reads natively once it is worth a connection, and waits for no thread."""
    value: Any = {"int": 5, "dict": {"a": 1}}[kind]

    async def main() -> None:
        for number in range(20):
            await other.aset(f"k{number}", value)
            assert await cache.aget(f"k{number}") == value
            assert await cache.aget(f"k{number}") == value
        await other.aset("k0", "new")
        await asyncio.to_thread(wait_until, lambda: cache.get("k0") == "new")
        assert await cache.aget("k0") == "new"
        tasks = [cache.aget(f"m{number}", number) for number in range(100)]
        assert await asyncio.gather(*tasks) == list(range(100))

    asyncio.run(main())
    snapshot = info(cache)
    assert snapshot.hits >= 20
    assert snapshot.invalidations >= 1


def test_loops_leave_nothing_behind(
    cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """A process may make thousands of them."""

    async def main() -> None:
        for number in range(12):
            await cache.aget(f"k{number}")

    asyncio.run(main())
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) <= files + 1


# -- rule 2: copies do not outlive their keys


def test_a_copy_expires_with_its_key(
    cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """Also if nobody hears of it."""
    other.set("k", 1)
    other.pexpire("k", 300)
    copied(cache, "k")
    deafen(cache)
    assert cache.get("k") == 1
    time.sleep(0.31)
    assert cache.get("k") is None
    assert info(cache).entries == 0


def test_missing_keys_are_not_kept(
    cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """Who adds one is seen at once."""
    assert cache.get("k") is None
    deafen(cache)
    other.set("k", 1)
    assert cache.get("k") == 1


# -- rules 3 and 4: changes


def test_another_process_writes(cache: EntraRedisCache, other: EntraRedisCache) -> None:
    """What Redis has pushed is taken in before the next hit."""
    for number in range(50):
        other.set("k", number)
        wait_until(lambda: cache.get("k") == number)  # noqa: B023 - it ends in here
    other.delete("k")
    wait_until(lambda: cache.get("k") is None)


#: Each operation that changes what a read gives, on the key "k" or all keys.
WRITES: dict[str, Callable[[Any], Any]] = {
    "set": lambda cache: cache.set("k", 2),
    "set 0": lambda cache: cache.set("k", 2, 0),
    "set nx": lambda cache: cache.set("k", 2, nx=True),
    "set xx": lambda cache: cache.set("k", 2, xx=True),
    "add": lambda cache: cache.add("k", 2),
    "delete": lambda cache: cache.delete("k"),
    "touch": lambda cache: cache.touch("k", 100),
    "touch None": lambda cache: cache.touch("k", None),
    "touch 0": lambda cache: cache.touch("k", 0),
    "incr": lambda cache: cache.incr("k"),
    "decr": lambda cache: cache.decr("k"),
    "set_many": lambda cache: cache.set_many({"x": 1, "k": 2}),
    "delete_many": lambda cache: cache.delete_many(["x", "k"]),
    "clear": lambda cache: cache.clear(),
    "delete_pattern": lambda cache: cache.delete_pattern("*"),
    "expire": lambda cache: cache.expire("k", 100),
    "pexpire": lambda cache: cache.pexpire("k", 100_000),
    "expire_at": lambda cache: cache.expire_at("k", 1),
    "pexpire_at": lambda cache: cache.pexpire_at("k", 1),
    "persist": lambda cache: cache.persist("k"),
    "lock": lambda cache: cache.lock("k", blocking=False).acquire(),
    "incr_version": lambda cache: cache.incr_version("k"),
}
ASYNC_WRITES: dict[str, Callable[[Any], Any]] = {
    "aset": lambda cache: cache.aset("k", 2),
    "aadd": lambda cache: cache.aadd("k", 2),
    "adelete": lambda cache: cache.adelete("k"),
    "atouch": lambda cache: cache.atouch("k", 100),
    "aincr": lambda cache: cache.aincr("k"),
    "aset_many": lambda cache: cache.aset_many({"k": 2}),
    "adelete_many": lambda cache: cache.adelete_many(["k"]),
    "aclear": lambda cache: cache.aclear(),
    "adelete_pattern": lambda cache: cache.adelete_pattern("*"),
    "aexpire": lambda cache: cache.aexpire("k", 100),
    "apersist": lambda cache: cache.apersist("k"),
}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_own_writes_drop_copies(
    database: Database, other: EntraRedisCache, name: str, scan: bool
) -> None:
    """By themselves, when the reply comes: Redis' message may come later."""
    cache = database.cache(client_side_cache=True, clear_by_scan=scan)
    other.set("k", 1, None)
    copied(cache, "k")
    deafen(cache)
    WRITES[name](cache)
    assert info(cache).entries == 0
    assert cache.get("k") == other.get("k")


#: Each operation that changes the key under a version of its own, or gives it another.
OTHER_VERSIONS: dict[str, Callable[[Any], Any]] = {
    "set": lambda cache: cache.set("k", 9, version=2),
    "set_many": lambda cache: cache.set_many({"k": 9}, version=2),
    "incr": lambda cache: cache.incr("k", version=2),
    "delete_many": lambda cache: cache.delete_many(["k"], version=2),
    "delete_pattern": lambda cache: cache.delete_pattern("k*", version=2),
    "incr_version": lambda cache: cache.incr_version("k"),
    "decr_version": lambda cache: cache.decr_version("k", version=2),
    "aincr_version": lambda cache: asyncio.run(cache.aincr_version("k")),
}


@pytest.mark.parametrize("name", OTHER_VERSIONS)
def test_own_writes_of_other_versions(
    cache: EntraRedisCache, other: EntraRedisCache, name: str
) -> None:
    """Drop the copies of all keys that they change, and no own write is read late."""
    for version in (1, 2):
        other.set("k", 10 * version, None, version=version)
        cache.get("k", version=version)

    def read(any_: EntraRedisCache) -> list[Any]:
        return [any_.get("k", version=version) for version in (1, 2, 3)]

    wait_until(lambda: (read(cache), info(cache).entries == 2)[1])
    deafen(cache)
    OTHER_VERSIONS[name](cache)
    assert read(cache) == read(other)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize(
    "options", [{"client_side_cache": {"prefixes": ["x"]}}, {"socket_timeout": 3}]
)
def test_own_writes_through_a_cache_of_other_settings(
    database: Database,
    cache: EntraRedisCache,
    other: EntraRedisCache,
    name: str,
    options: dict[str, Any],
) -> None:
    """They drop the copies of all caches of this process on the same server."""
    second = database.cache(**{"client_side_cache": True, **options})
    other.set("k", 1, None)
    copied(cache, "k")
    assert local(second) is not local(cache)
    fill = local(cache).copies.begin(cache.make_key("k"), object())
    deafen(cache)
    WRITES[name](second)
    assert info(cache).entries == 0
    assert fill.tainted
    assert cache.get("k") == other.get("k")


def test_own_writes_to_another_server(
    database: Database, cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """They leave the copies of this one alone."""
    other.set("k", 1, None)
    copied(cache, "k")
    local_copies(
        SimpleNamespace(local_copies={}),
        cache.options,
        ["elsewhere:6379"],
        lambda: None,
    ).forget(None)
    assert info(cache).entries == 1


def test_caches_that_are_gone(database: Database) -> None:
    """They leave no copies behind, and no tracking connection."""
    made = []
    for _ in range(3):
        found = database.cache(client_side_cache=True)
        found.set("k", 1)
        copied(found, "k")
        made.append(ref(local(found)))
        registry.reset()
        del found
    last = database.cache(client_side_cache=True)
    gc.collect()
    assert [one() for one in made] == [None] * 3
    # Of those that are gone it knows until others come.
    last.set("k", 2)
    assert last.get("k") == 2


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", ASYNC_WRITES)
def test_own_writes_in_a_loop_drop_copies(
    cache: EntraRedisCache, other: EntraRedisCache, name: str, warm: bool
) -> None:
    """In a thread or natively."""
    other.set("k", 1, None)

    async def main() -> None:
        for _ in range(20 * warm):
            await cache.aget("missing")
        await cache.aget("k")
        deafen(cache)
        await ASYNC_WRITES[name](cache)
        assert info(cache).entries == 0
        assert await cache.aget("k") == await other.aget("k")

    asyncio.run(main())


def test_a_lock_drops_the_copy_of_its_key(
    cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """With each of its commands."""
    lock: Any = cache.lock("k", timeout=10)
    assert lock.acquire()
    for command in (lambda: lock.extend(5), lock.reacquire, lock.release):
        # A lock's value is none of the cache's.
        key = cache.make_key("k")
        tracker = local(cache).tracker(cache._cache.endpoints[0])
        wait_until(lambda: (tracker.fetch([key]), info(cache).entries)[1])  # noqa: B023
        deafen(cache)
        command()
        assert info(cache).entries == 0


def test_writes_that_fail_drop_copies(
    database: Database, other: EntraRedisCache
) -> None:
    """Whatever the reply: it may have been carried out."""
    url = database.url_of("writer", "~* +@all -set -flushdb")
    cache = make_cache(url, identity=None, client_side_cache=True)
    other.set("k", 1)
    writes: list[Callable[[], Any]] = [lambda: cache.set("k", 2), cache.clear]
    for write in writes:
        copied(cache, "k")
        with pytest.raises(redis.ResponseError):
            write()
        assert info(cache).entries == 0


def test_readers_keep_copies(cache: EntraRedisCache, other: EntraRedisCache) -> None:
    """What only reads drops nothing."""
    other.set("k", 1, 100)
    copied(cache, "k")
    cache.ttl("k")
    cache.pttl("k")
    cache.keys()
    cache.has_key("x")
    cache.get_many(["k", "x"])
    cache.get_or_set("k", lambda: 5)
    assert info(cache).entries == 1


def test_own_writes_are_read_always(database: Database, cache: EntraRedisCache) -> None:
    """By each of many threads, of its own keys and of one that all count up."""

    def work(worker: int) -> int:
        stale = 0
        for number in range(150):
            cache.set(f"k{worker}", number)
            stale += cache.get(f"k{worker}") != number
            stale += cache.get(f"k{worker}") != number
            sum_ = cache.incr("sum")
            stale += cache.get("sum") < sum_
        return stale

    cache.set("sum", 0)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [0] * 8
    assert cache.get("sum") == 8 * 150


def test_a_hit_waits_for_no_miss(database: Database, other: EntraRedisCache) -> None:
    """Another thread's value may take as long as it likes."""
    proxy = Proxy(database.address)
    try:
        cache = make_cache(
            proxy.url(database.url), identity=None, client_side_cache=True
        )
        other.set("k", 1)
        copied(cache, "k")
        proxy.arm(1, stall=True)
        with ThreadPoolExecutor(1) as pool:
            miss = pool.submit(cache.get, "other")
            tracker = next(iter(local(cache)._trackers.values()))
            wait_until(lambda: tracker.connection._poller)
            assert cache.get("k") == 1
            assert not miss.done()
            tracker.close()
            assert miss.result() is None
    finally:
        registry.reset()
        proxy.close()


def test_a_loop_waits_for_no_miss(database: Database, other: EntraRedisCache) -> None:
    """Its other tasks go on, and have their hits."""
    proxy = Proxy(database.address)
    try:
        cache = make_cache(
            proxy.url(database.url), identity=None, client_side_cache=True
        )
        other.set("k", 1)

        async def main() -> Any:
            for _ in range(20):
                await cache.aget("missing")
            hits = info(cache).hits
            while info(cache).hits == hits:
                assert await cache.aget("k") == 1
            proxy.arm(1, stall=True)
            miss = asyncio.create_task(cache.aget("other"))
            tracker = next(iter(local(cache)._trackers.values()))
            while not (tracker.connection._under_way and proxy.replied):
                await asyncio.sleep(0.001)
            assert await cache.aget("k") == 1
            assert not miss.done()
            tracker.close()
            return await miss

        assert asyncio.run(main()) is None
    finally:
        registry.reset()
        proxy.close()


# -- rules 5 and 6: silence and loss


def test_silence_is_not_health(database: Database, other: EntraRedisCache) -> None:
    """Without proof that Redis would tell, a copy is used for so long and no longer."""
    proxy = Proxy(database.address)
    try:
        cache = make_cache(
            proxy.url(database.url),
            identity=None,
            client_side_cache={"max_staleness": 0.4},
            socket_timeout=0.2,
        )
        other.set("k", 1)
        copied(cache, "k")
        started = time.monotonic()
        proxy.arm(0, stall=True)
        other.set("k", 2)
        while cache.get("k") == 1:
            assert time.monotonic() - started < 20
        assert time.monotonic() - started <= 10
        assert cache.get("k") == 2
        assert info(cache).flushes >= 1
    finally:
        registry.reset()
        proxy.close()


@pytest.mark.parametrize(
    ("how", "connected"),
    [
        ("get", True),
        ("get_many", True),
        ("get_many", False),
        ("aget", True),
        ("aget", False),
    ],
)
def test_a_silent_server_is_waited_for_once(
    database: Database, how: str, connected: bool
) -> None:
    """Not on the tracking connection first and then on another. While it is known to be
    down, the one request that probes it makes no tracking connection, either."""
    cache = database.cache(client_side_cache=True, socket_timeout=0.5)
    reads: dict[str, Callable[[], Any]] = {
        "get": lambda: cache.get("k"),
        "get_many": lambda: cache.get_many(["k", "l"]),
        "aget": lambda: run(cache.aget("k")),
    }
    with Loop() as run:
        # So many that the loop has a connection of its own.
        for _ in range(20):
            reads[how]()
        tracker = local(cache).tracker(cache._cache.endpoints[0])
        if not connected:
            tracker.close()
        with database.frozen():
            with pytest.raises(ServerDownError):
                reads[how]()
            asked = tracker._retry_at
            with pytest.raises(redis.TimeoutError):
                recovered(reads[how])
            assert tracker._retry_at == asked
        assert recovered(reads[how]) == ({} if how == "get_many" else None)
        wait_until(lambda: (reads[how](), tracker.connected)[1])


def test_more_keys_than_are_sent_at_once(
    database: Database,
    cache: EntraRedisCache,
    other: EntraRedisCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest is read in one go without copies, which the next reads make."""
    fetches: list[int] = []
    fetch = TrackedConnection.fetch

    def counted(self: Any, keys: Any, *args: Any) -> Any:
        fetches.append(len(keys))
        return fetch(self, keys, *args)

    monkeypatch.setattr(TrackedConnection, "fetch", counted)
    values = {f"key-{number}": number for number in range(2000)}
    other.set_many(values)
    with Loop() as run:
        for _ in range(20):
            run(cache.aget("missing"))
        for read in (cache.get_many, lambda keys: run(cache.aget_many(keys))):
            local(cache).copies.flush()
            del fetches[:]
            before = info(cache).misses
            assert read(values) == values
            assert len(fetches) == 1
            assert info(cache).entries == fetches[0] > 300
            assert info(cache).misses == before + 2000
            for _ in range(5):
                assert read(values) == values
            assert info(cache).entries == 2000 == sum(fetches)
            assert len(fetches) < 7
    clients = database.admin.client_list()
    assert len([client for client in clients if "t" in client["flags"]]) == 1


@pytest.mark.filterwarnings("ignore:Cache key will cause errors")
def test_a_key_that_is_too_long_for_a_fetch(cache: EntraRedisCache) -> None:
    """It is read without a copy."""
    key = "x" * 40_000
    cache.set(key, 1)
    assert cache.get_many([key, "missing"]) == {key: 1}
    assert info(cache).entries == 0


def test_health_is_asked_for_in_time(
    database: Database, other: EntraRedisCache
) -> None:
    """Early, and without waiting: hits go on, and nothing is dropped."""
    # A machine that stalls for less than half of it makes no difference.
    cache = database.cache(client_side_cache={"max_staleness": 2.0})
    other.set("k", 1)
    copied(cache, "k")
    first = info(cache)

    def pings() -> int:
        counted = database.admin.info("commandstats").get("cmdstat_ping", {})
        return int(counted.get("calls", 0))

    before = pings()

    def asked_twice() -> bool:
        assert cache.get("k") == 1
        return pings() >= before + 2

    wait_until(asked_twice)
    last = info(cache)
    assert first.last_confirmed is not None
    assert last.last_confirmed is not None
    assert last.last_confirmed > first.last_confirmed
    assert (last.misses, last.flushes) == (first.misses, first.flushes)


def test_after_a_long_pause(database: Database, other: EntraRedisCache) -> None:
    """The first read asks Redis, which tells that all is well."""
    cache = database.cache(client_side_cache={"max_staleness": 0.1})
    other.set("k", 1)
    copied(cache, "k")
    time.sleep(0.15)
    hits = info(cache).hits
    assert cache.get("k") == 1
    assert info(cache).hits == hits
    copied(cache, "k")
    assert info(cache).flushes == 0


def kill_all(database: Database) -> None:
    """Have the server close all connections but ours."""
    database.admin.client_kill_filter(_type="normal", skipme=True)


LOSSES: dict[str, Callable[[Database], Any]] = {
    "closed": kill_all,
    "flushdb": lambda database: database.admin.flushdb(),
    "flushall": lambda database: database.admin.flushall(asynchronous=True),
}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_flush(
    database: Database,
    cache: EntraRedisCache,
    other: EntraRedisCache,
    name: str,
    native: bool,
) -> None:
    """All copies of a server go when nobody hears of changes, or all has changed."""
    other.set("k", 1)
    copied(cache, "k")
    LOSSES[name](database)
    other.set("k", 2)

    def read() -> Any:
        return asyncio.run(cache.aget("k")) if native else cache.get("k")

    wait_until(lambda: read() == 2)
    assert info(cache).flushes >= 1
    copied(cache, "k")


def test_the_server_s_table_overflows(
    database: Database, cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """Redis then tells that keys have changed that have not."""
    database.admin.config_set("tracking-table-max-keys", 5)
    try:
        for number in range(50):
            other.set(f"k{number}", number)
            assert cache.get(f"k{number}") == number
        wait_until(lambda: cache.get("missing") or info(cache).entries <= 10)
    finally:
        database.admin.config_set("tracking-table-max-keys", 1_000_000)


@pytest.mark.parametrize("how", ["read only", "asked"])
def test_a_server_that_becomes_a_replica(
    database: Database, other: EntraRedisCache, how: str
) -> None:
    """Its copies go: with a write that it refuses, or when it is asked how it is."""
    cache = database.cache(client_side_cache={"max_staleness": 0.2}, retry_on_error=[])
    other.set("k", 1)
    copied(cache, "k")
    database.admin.replicaof("127.0.0.1", "1")
    try:
        if how == "read only":
            with pytest.raises(redis.exceptions.ReadOnlyError):
                cache.set("x", 1)
            assert info(cache).entries == 0
        wait_until(lambda: (cache.get("k"), info(cache).entries == 0)[1])
        assert not info(cache).connected
        assert cache.get("k") == 1
        with pytest.raises(redis.exceptions.ReadOnlyError):
            recovered(lambda: asyncio.run(cache.aset("x", 1)))

        async def natively() -> None:
            for _ in range(20):
                await cache.aget("k")
            await cache.aset("x", 1)

        with pytest.raises(redis.exceptions.ReadOnlyError):
            recovered(lambda: asyncio.run(natively()))
    finally:
        database.admin.replicaof("NO", "ONE")


@pytest.mark.parametrize("rules", ["-get", "resetkeys ~none"])
def test_access_that_is_lost(
    database: Database, other: EntraRedisCache, rules: str
) -> None:
    """Copies are not used any more within ``max_staleness``; an error says why."""
    url = database.url_of("reader", "~* +@all")
    cache = make_cache(url, identity=None, client_side_cache={"max_staleness": 0.2})
    other.set("k", 1)
    copied(cache, "k")
    database.admin.execute_command("ACL", "SETUSER", "reader", *rules.split())
    with pytest.raises(redis.ResponseError, match="permission"):
        wait_until(lambda: cache.get("k") != 1)
    assert info(cache).entries == 0


def test_a_user_that_is_gone(database: Database, other: EntraRedisCache) -> None:
    """Redis closes its connections, and an error says why."""
    url = database.url_of("leaving", "~* +@all")
    cache = make_cache(url, identity=None, client_side_cache=True)
    other.set("k", 1)
    copied(cache, "k")
    database.admin.acl_deluser("leaving")
    with pytest.raises(redis.AuthenticationError):
        wait_until(lambda: cache.get("k") != 1)


def test_a_server_that_is_down(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Copies go with it; with ``ignore_exceptions`` it answers like an empty cache."""
    database = Database(tmp_path_factory.mktemp("redis"), redis_server)
    cache = database.cache(client_side_cache=True, ignore_exceptions=True)
    cache.set("k", 1)
    copied(cache, "k")
    database.stop()
    wait_until(lambda: cache.get("k", "default") == "default")
    assert cache.get_many(["k"]) == {}
    assert asyncio.run(cache.aget("k", "default")) == "default"
    assert info(cache).entries == 0
    assert not info(cache).connected
    assert info(cache).last_confirmed is None
    registry.reset()


# -- rule 7: forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_begins_with_nothing(
    database: Database, cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """And connects by itself; neither disturbs the other."""
    other.set("k", 1)
    copied(cache, "k")

    def child() -> Any:
        begun = info(cache)
        cache.get("k")
        wait_until(lambda: cache.get("k") == 2)
        copied(cache, "k")
        return [begun.entries, begun.connected, info(cache).connected]

    result = fork(child)
    assert cache.get("k") == 1
    other.set("k", 2)
    wait_until(lambda: cache.get("k") == 2)
    assert result() == [0, False, True]
    copied(cache, "k")
    other.set("k", 3)
    wait_until(lambda: cache.get("k") == 3)
    assert info(cache).flushes == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_while_a_value_is_on_its_way(
    database: Database, other: EntraRedisCache
) -> None:
    """The child reads by itself, and the parent's value still comes."""
    other.set_many({"k": 1, "late": 2})
    proxy = Proxy(database.address)
    try:
        cache = make_cache(
            proxy.url(database.url),
            identity=None,
            client_side_cache=True,
            # A fork takes a busy machine longer than the default.
            socket_timeout=PATIENCE,
        )
        copied(cache, "k")
        proxy.arm(1, stall=True)
        tracker = next(iter(local(cache)._trackers.values()))
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(cache.get, "late")
            wait_until(lambda: tracker.connection._poller)

            def child() -> Any:
                return [cache.get("k"), cache.get("late"), info(cache).flushes]

            assert fork(child)() == [1, 2, 0]
            assert not late.done()
            assert info(cache).entries == 1
            tracker.close()
            assert late.result() == 2
    finally:
        registry.reset()
        proxy.close()


# -- rule 8: what is not kept


def test_bounded(database: Database, other: EntraRedisCache) -> None:
    """By bytes; of a value that is too large there is no copy, and that is known."""
    cache = database.cache(
        client_side_cache={"max_bytes": 20_000, "max_value_bytes": 1000}
    )
    other.set_many({f"k{number}": "x" * 500 for number in range(100)})
    other.set("large", "x" * 2000)
    for number in range(100):
        assert cache.get(f"k{number}") == "x" * 500
        assert info(cache).bytes <= 20_000
    assert info(cache).entries > 10
    for _ in range(3):
        assert cache.get("large") == "x" * 2000
    with Loop() as run:
        assert run(cache.aget("large")) == "x" * 2000
    assert cache.get_many(["large", "k99"]) == {"large": "x" * 2000, "k99": "x" * 500}
    assert cache.has_key("large")
    other.set("large", 1)
    wait_until(lambda: cache.get("large") == 1)


def test_prefixes(database: Database, other: EntraRedisCache) -> None:
    """Other keys are read as ever, and sessions are unless asked for."""
    cache = database.cache(client_side_cache={"prefixes": ["menu"]})
    session = "django.contrib.sessions.cacheabc"
    other.set_many({"menu:1": 1, "other": 2, session: 3})
    for _ in range(2):
        assert cache.get("menu:1") == 1
        assert cache.get("other") == 2
        assert cache.get(session) == 3
        assert cache.get_many(["menu:1", "other"]) == {"menu:1": 1, "other": 2}
    assert info(cache).entries == 1


def test_counters_come_from_the_server(
    cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """incr and add never look at a copy."""
    other.set("n", 1, None)
    copied(cache, "n")
    deafen(cache)
    other.set("n", 5, None)
    assert cache.incr("n") == 6
    copied(cache, "n")
    other.delete("n")
    assert cache.add("n", 1)


def test_a_replica_in_disguise(database: Database, other: EntraRedisCache) -> None:
    """It answers steady reads of other keys as ever; its role is asked for all the
    same."""
    options: Any = {"client_side_cache": {"max_staleness": 0.2}, "retry_on_error": []}
    cache = database.cache(**options)
    other.set("k", 1, None)
    copied(cache, "k")
    numbers = itertools.count()

    def noticed() -> bool:
        cache.get(f"missing-{next(numbers)}")
        return info(cache).flushes > 0

    database.admin.replicaof("127.0.0.1", "1")
    try:
        wait_until(noticed)
    finally:
        database.admin.replicaof("NO", "ONE")


# -- rule 9: servers that can't


@pytest.mark.parametrize("rules", ["-client|tracking", "-client", "-pttl"])
def test_a_server_that_does_not_track(
    database: Database,
    other: EntraRedisCache,
    caplog: pytest.LogCaptureFixture,
    rules: str,
) -> None:
    """Everything works without copies, and the log says so once."""
    url = database.url_of("narrow", f"~* +@all {rules}")
    cache = make_cache(url, identity=None, client_side_cache=True)
    other.set("k", 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert cache.get("k") == 1
            assert cache.get_many(["k"]) == {"k": 1}
            cache.set("k", 1)

        async def natively() -> list[Any]:
            return [await cache.aget("k") for _ in range(20)]

        assert asyncio.run(natively()) == [1] * 20
    assert len(caplog.records) == 1
    assert "refuses to track" in caplog.text
    assert info(cache).entries == 0
    assert "permission" in str(info(cache).unsupported)


def test_a_user_who_may_read_few_keys_and_not_ping(
    database: Database, other: EntraRedisCache
) -> None:
    """It has copies as others do, and one connection."""
    url = database.url_of("few", "~:1:k* +@all -ping")
    options: Any = {"client_side_cache": {"max_staleness": 0.2}}
    cache = make_cache(url, identity=None, **options)
    other.set("k", 1, None)
    copied(cache, "k")
    for _ in range(8):
        time.sleep(0.05)
        assert cache.get("k") == 1
    assert info(cache).flushes == 0
    assert info(cache).unsupported is None


def test_connections_of_one_s_own(
    database: Database, other: EntraRedisCache, caplog: pytest.LogCaptureFixture
) -> None:
    """What they do, a tracking connection may not: then there are no copies."""

    class Own(redis.Connection):
        pass

    other.set("k", 1)
    for _ in range(2):
        cache = database.cache(client_side_cache=True, connection_class=Own)
        assert cache.get("k") == 1
        assert asyncio.run(cache.aget("k")) == 1
        assert cache.get_many(["k"]) == {"k": 1}
    assert info(cache).entries == 0
    assert info(cache).unsupported == "OPTIONS have connection_class"
    assert caplog.text.count("has no effect") == 1


def test_a_value_of_another_type(
    database: Database, cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """Is the error that it is without copies, and costs the others nothing."""
    other.set("k", 1)
    copied(cache, "k")
    database.admin.rpush(":1:list", 1)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        cache.get("list")
    assert info(cache).entries == 1
    assert info(cache).flushes == 0


# -- with an identity


@pytest.mark.parametrize("tls", [False, True])
def test_authenticates_in_place(monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
    """Through the renewals of a token one connection stays, and so do the copies."""
    with (
        Emulator(token_lifetime=4.0) as emulator,
        let_in(emulator, monkeypatch, refresh_ratio=0.3),
    ):
        cache = make_cache(
            emulator.redis_url if tls else emulator.plaintext_url,
            client_side_cache={"max_staleness": 5.0},
            **({"ssl_ca_certs": str(emulator.ca_file)} if tls else {}),
        )
        cache.set("k", 1)
        copied(cache, "k")
        deadline = time.monotonic() + 4.5
        while time.monotonic() < deadline:
            assert cache.get("k") == 1
            time.sleep(0.005)
        snapshot = info(cache)
        registry.reset()
    assert (snapshot.flushes, snapshot.misses) == (0, 1)


def test_settings_that_change(
    database: Database, cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """Connections are made anew, and copies with them."""
    other.set("k", 1)
    copied(cache, "k")
    registry.disconnect()
    assert info(cache).entries == 0
    assert cache.get("k") == 1
    assert info(cache).connected


def test_caches_share_copies(database: Database, other: EntraRedisCache) -> None:
    """Each thread has a cache object of its own."""
    other.set("k", 1)
    copied(database.cache(client_side_cache=True), "k")
    assert info(database.cache(client_side_cache=True)).entries == 1
    small = database.cache(client_side_cache={"max_bytes": 1000})
    assert info(small).entries == 0


def test_each_user_has_copies_of_its_own(
    database: Database, other: EntraRedisCache
) -> None:
    """Nobody is given a copy of what the server would refuse."""
    other.set("k", 1)
    made = [
        make_cache(database.url_of(*user), identity=None, client_side_cache=True)
        for user in (("first", "~* +@all"), ("second", "~other +@all"))
    ]
    copied(made[0], "k")
    with pytest.raises(redis.ResponseError, match="permission"):
        made[1].get("k")
    assert [info(cache).entries for cache in made] == [1, 0]


def test_copies_come_from_the_server_that_is_written_to(
    database: Database, other: EntraRedisCache
) -> None:
    """The others may lag behind: here, another database has nothing at all."""
    locations = [database.url, f"{database.url}/1"]
    cache = make_cache(locations, identity=None, client_side_cache=True)
    other.set("k", 1)
    copied(cache, "k")
    assert cache.get_many(["k"]) == {"k": 1}
    assert asyncio.run(cache.aget("k")) == 1


@pytest.mark.parametrize("replicas", [1, 2])
def test_all_reads_are_of_the_server_that_is_written_to(
    database: Database, replicas: int
) -> None:
    """So that own writes are read, whatever there are no copies of."""
    locations = [database.url, *[f"{database.url}/1"] * replicas]
    settings = {"prefixes": ["none"]}
    cache = make_cache(locations, identity=None, client_side_cache=settings)
    cache.set("k", 1)
    cache.set("other", 2)

    async def read() -> tuple[Any, ...]:
        return (
            await cache.aget("k"),
            await cache.aget_many(["k", "other"]),
            await cache.ahas_key("k"),
            await cache.attl("k"),
        )

    found = (
        cache.get("k"),
        cache.get_many(["k", "other"]),
        cache.has_key("k"),
        cache.ttl("k"),
    )
    assert found == asyncio.run(read()) == (1, {"k": 1, "other": 2}, True, 300)
    assert sorted(cache.keys("*")) == ["k", "other"]


def test_threads_that_miss_at_once(
    database: Database, cache: EntraRedisCache, other: EntraRedisCache
) -> None:
    """They share one connection, and each gets its own value."""
    other.set_many({f"k{number}": number for number in range(400)})
    start = threading.Barrier(8)

    def read(worker: int) -> list[int]:
        start.wait()
        return [cache.get(f"k{number}") for number in range(worker, 400, 8)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(8)))
    assert sorted(itertools.chain(*found)) == list(range(400))
    tracking_clients = [
        client for client in database.admin.client_list() if "t" in client["flags"]
    ]
    assert len(tracking_clients) == 1
    assert json.dumps(info(cache).misses)


def watched(self: Any, *args: Any, **options: Any) -> Any:
    """Do what a tool has made of redis-py's way to send a command."""
    return COMMAND(self, *args, **options)


COMMAND: Any = redis.Redis.execute_command


@pytest.mark.parametrize("name", ["set", "delete_many", "incr"])
def test_own_writes_that_a_tool_watches(
    cache: EntraRedisCache,
    other: EntraRedisCache,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Drop copies as the others do."""
    other.set("k", 1, None)
    copied(cache, "k")
    monkeypatch.setattr(redis.Redis, "execute_command", watched)
    deafen(cache)
    WRITES[name](cache)
    assert info(cache).entries == 0
    assert cache.get("k") == other.get("k")


@pytest.mark.parametrize("warm", [False, True])
def test_own_writes_in_a_loop_that_a_tool_watches(
    cache: EntraRedisCache,
    other: EntraRedisCache,
    monkeypatch: pytest.MonkeyPatch,
    warm: bool,
) -> None:
    """Too."""
    other.set("k", 1, None)

    async def main() -> None:
        for _ in range(20 * warm):
            await cache.aget("missing")
        await cache.aget("k")
        monkeypatch.setattr(redis.asyncio.Redis, "execute_command", awatched)
        monkeypatch.setattr(redis.Redis, "execute_command", watched)
        deafen(cache)
        await cache.aset("k", 2)
        assert info(cache).entries == 0
        assert await cache.aget("k") == 2

    asyncio.run(main())


async def awatched(self: Any, *args: Any, **options: Any) -> Any:
    """Do the same with the asynchronous one."""
    return await ASYNC_COMMAND(self, *args, **options)


ASYNC_COMMAND: Any = redis.asyncio.Redis.execute_command
