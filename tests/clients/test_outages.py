"""A server that is down: one request at a time finds out, all others fail at once."""

import asyncio
import functools
import itertools
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from django_entra_redis.cache import EntraRedisCache, EntraRedisClusterCache
from django_entra_redis.connections import event_loops, registry
from django_entra_redis.exceptions import (
    ClusterUnavailableError,
    ServerDownError,
    UncertainResultError,
)
from emulator import Emulator
from tests.support.caches import Database, Proxy, let_in, make_cache, wait_until
from tests.support.clusters import admin, primaries

#: Seconds that a silent server is waited for.
TIMEOUT = 0.4


@pytest.fixture
def database(redis_server: str, tmp_path: Path) -> Iterator[Database]:
    """Run a real redis-server."""
    running = Database(tmp_path, redis_server)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def no_connection_left() -> Iterator[None]:
    """Leave none."""
    yield
    registry.reset()


class Caller:
    """Calls a cache's methods, or their asynchronous forms in one loop."""

    def __init__(self, cache: EntraRedisCache, runner: asyncio.Runner | None) -> None:
        self.cache = cache
        self._runner = runner

    def __call__(self, name: str, *args: Any) -> Any:
        if self._runner is None:
            return getattr(self.cache, name)(*args)
        return self._runner.run(getattr(self.cache, f"a{name}")(*args))

    def errors(self, *calls: tuple[Any, ...]) -> list[Exception | None]:
        """Return what calls raise, one after the other."""
        found: list[Exception | None] = []
        for call in calls:
            try:
                self(*call)
            except redis.RedisError as error:
                found.append(error)
            else:
                found.append(None)
        return found


@pytest.fixture(params=["sync", "async"])
def runner(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[asyncio.Runner | None]:
    """Give an event loop, or none."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    if request.param == "sync":
        yield None
        return
    with asyncio.Runner() as made:
        yield made


PAGE = [
    ("get", "key"),
    ("set", "key", 1),
    ("get_many", ["key", "other"]),
    ("set_many", {"key": 1}),
    ("add", "key", 1),
    ("incr", "key"),
    ("delete", "key"),
    ("has_key", "key"),
] * 3


@pytest.mark.parametrize("first", ["get", "add"])
def test_a_page_costs_one_timeout(database: Database, runner: Any, first: str) -> None:
    """The first operation waits, the others fail at once, and say why."""
    call = Caller(database.cache(socket_timeout=TIMEOUT), runner)
    call("set", "key", 1)
    connections = database.received()
    with database.frozen():
        failure, *others = call.errors((first, "key", 1), *PAGE)
    kind = UncertainResultError if first == "add" else redis.TimeoutError
    assert isinstance(failure, kind)
    # On a busy machine the page may take so long that another one asks again.
    assert [type(error) for error in others].count(ServerDownError) > len(PAGE) - 4
    assert any("is down, and will be asked again in" in str(error) for error in others)
    wait_until(lambda: call.errors(("get", "key")) == [None])
    assert set(call.errors(*PAGE)) == {None}
    assert database.received() <= connections + 10


def test_locks_take_part(database: Database, runner: Any) -> None:
    """They find out that a server is down as other operations do, and fail at once
    while that is known; they notice its end, too."""
    # Errors of a lock are never hidden.
    cache = database.cache(socket_timeout=TIMEOUT, ignore_exceptions=True)

    # A server that was frozen carries out later what was sent to it.
    names = (f"lock-{number}" for number in itertools.count())

    def attempt() -> type[Exception] | None:
        name = next(names)
        try:
            if runner is None:
                assert cache.lock(name, timeout=9).acquire(blocking=False)
            else:
                lock = cache.alock(name, timeout=9)
                assert runner.run(lock.acquire(blocking=False))
        except redis.RedisError as error:
            return type(error)
        return None

    assert attempt() is None
    with database.frozen():
        assert attempt() is redis.TimeoutError
        # On a busy machine one of them may ask again.
        assert [attempt() for _ in range(9)].count(ServerDownError) > 5
        with pytest.raises((ServerDownError, redis.TimeoutError)):
            cache.lock("lock").locked()
        assert cache.get("key") is None
    wait_until(lambda: attempt() is None)
    assert not cache.lock("lock").locked()
    assert cache._cache.endpoints[0].outages.current() == []
    with pytest.raises(redis.ResponseError):
        cache._cache.get_lock_client().execute_command("NONE")


def test_a_lock_is_released_after_an_outage(database: Database) -> None:
    """Also while an acquire would still fail at once: it might last for ever."""
    cache = database.cache(socket_timeout=TIMEOUT)
    outages = cache._cache.endpoints[0].outages
    with cache.lock("lock") as lock:
        with database.frozen(), pytest.raises(redis.TimeoutError):
            cache.lock("another").acquire(blocking=False)
        # As if no time had passed since the last probe.
        now = outages.clock()
        outages.clock = lambda: now
        with pytest.raises(ServerDownError):
            cache.lock("another").acquire(blocking=False)
        assert lock.owned()
    assert b"lock" not in b" ".join(database.admin.keys())


def test_an_empty_cache_costs_one_timeout(
    database: Database, runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With ignore_exceptions; the outage is logged once, at its end with its cost."""
    call = Caller(
        database.cache(socket_timeout=TIMEOUT, ignore_exceptions=True), runner
    )
    call("set", "key", 1)
    page: list[tuple[Any, ...]]
    page = [("get", "key"), ("set", "key", 2), ("get_many", ["key"])]
    with caplog.at_level("INFO", "django_entra_redis"):
        with database.frozen():
            for name, *arguments in page * 7:
                assert not call(name, *arguments)
        wait_until(lambda: call("get", "key") == 1)
        for name, *arguments in page * 3:
            call(name, *arguments)
    begin, end = caplog.records
    assert (begin.levelname, end.levelname) == ("WARNING", "INFO")
    assert "can't be used" in begin.getMessage()
    operations = int(re.findall(r"cost (\d+) operations", end.getMessage())[0])
    assert operations >= 21


def test_one_at_a_time_asks(database: Database) -> None:
    """Of many threads one waits, while the others fail at once."""
    cache = database.cache(socket_timeout=TIMEOUT)
    cache.set("key", 1)
    with database.frozen():
        with pytest.raises(redis.TimeoutError):
            cache.get("key")
        errors: list[Exception] = []

        def work(_: int) -> None:
            for _ in range(20):
                with pytest.raises((redis.TimeoutError, ServerDownError)) as caught:
                    cache.get("key")
                errors.append(caught.value)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    waited = [error for error in errors if not isinstance(error, ServerDownError)]
    assert len(errors) == 160
    # Each of those takes so long that all the others are through meanwhile.
    assert len(waited) <= 4


def test_refused_connections_cost_their_tries_once(
    database: Database, runner: Any
) -> None:
    """Where nobody listens, the retries of one operation stand for the next ones."""
    call = Caller(make_cache("redis://127.0.0.1:1", identity=None), runner)
    failure, *others = call.errors(*PAGE)
    assert not isinstance(failure, ServerDownError)
    assert ServerDownError in {type(error) for error in others}


def test_one_bad_connection_is_no_outage(database: Database, runner: Any) -> None:
    """A connection that falls silent, or breaks, takes no other operation with it."""
    proxy = Proxy(database.address)
    try:
        cache = make_cache(proxy.url(database.url), identity=None, socket_timeout=1.0)
        call = Caller(cache, runner)
        for _ in range(2):
            call("set", "key", 1)
            proxy.arm(0, stall=True)
            assert isinstance(call.errors(("get", "key"))[0], redis.TimeoutError)
            assert call("get", "key") == 1
            proxy.arm(0)
            assert isinstance(call.errors(("add", "x", 1))[0], UncertainResultError)
            assert call("get", "key") == 1
            proxy.arm(0)
            assert call("get", "key") == 1
    finally:
        registry.reset()
        proxy.close()


def more_than(found: list[Exception], number: int) -> bool:
    """Return whether there are more than so many."""
    return len(found) > number


def test_one_bad_connection_among_many_threads(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The others notice nothing, nor is an outage logged."""
    proxy = Proxy(database.address)
    cache = make_cache(proxy.url(database.url), identity=None, socket_timeout=TIMEOUT)
    stop = threading.Event()
    errors: list[Exception] = []

    def work() -> None:
        while not stop.is_set():
            try:
                cache.get("key")
            except redis.RedisError as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for expected in range(1, 4):
            proxy.arm(0, stall=True)
            wait_until(functools.partial(more_than, errors, expected - 1))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        registry.reset()
        proxy.close()
    assert {type(error) for error in errors} == {redis.TimeoutError}
    assert caplog.records == []


def test_a_server_that_refuses_the_second_opinion(
    database: Database, runner: Any
) -> None:
    """It answers, if only with an error: it is not down."""
    url = database.url_of("somebody", "~* +@all -ping")
    call = Caller(make_cache(url, identity=None, socket_timeout=TIMEOUT), runner)
    call("set", "key", 1)
    # Writes alone wait.
    database.admin.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    failure, second = call.errors(("set", "key", 2), ("get", "key"))
    database.admin.execute_command("CLIENT", "UNPAUSE")
    assert isinstance(failure, redis.TimeoutError)
    assert second is None


def test_a_full_server_is_told_of_once(
    database: Database, runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What it does all the same, reading and deleting, is no end of that."""
    call = Caller(database.cache(ignore_exceptions=True), runner)
    call("set", "there", "x")
    database.admin.config_set("maxmemory-policy", "noeviction")
    database.admin.config_set("maxmemory", "1")
    with caplog.at_level("INFO", "django_entra_redis"):
        for _ in range(5):
            call("set", "key", "x" * 1000)
            assert call("set_many", {"a": 1, "b": 2}) == ["a", "b"]
            assert call("add", "key", "x") is False
            assert call("get", "there") == "x"
            call("delete", "none")
            call("touch", "there", 100)
        (begin,) = caplog.records
        assert begin.levelname == "WARNING"
        assert "is full" in begin.getMessage()
        database.admin.config_set("maxmemory", "0")
        assert call("get", "there") == "x"
        for _ in range(3):
            call("set", "key", "x")
    (_, end) = caplog.records
    assert end.levelname == "INFO"
    assert "cost 15 operations" in end.getMessage()


def test_a_dead_replica_is_told_of_once(
    database: Database, runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What another server does is no end of that, and its own reads are."""
    cache = make_cache(
        [database.url, "redis://127.0.0.1:1"], identity=None, ignore_exceptions=True
    )
    call = Caller(cache, runner)
    with caplog.at_level("INFO", "django_entra_redis"):
        for _ in range(5):
            call("set", "key", 1)
            assert call("get", "key") is None
    (begin,) = caplog.records
    assert begin.levelname == "WARNING"
    assert "127.0.0.1:1 " in begin.getMessage()


def test_a_replica_in_place_of_the_primary_is_told_of_once(
    database: Database, runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads go on, and are no end of an outage of writes."""
    call = Caller(database.cache(ignore_exceptions=True), runner)
    call("set", "key", 1)
    database.admin.replicaof("127.0.0.1", "1")
    with caplog.at_level("INFO", "django_entra_redis"):
        for _ in range(3):
            call("set", "key", 2)
            assert call("get", "key") == 1
        (begin,) = caplog.records
        assert "takes no writes" in begin.getMessage()
        database.admin.replicaof("NO", "ONE")
        wait_until(lambda: call("set", "key", 2) or call("get", "key") == 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def rejected(admin: Any) -> int:
    """Return how many SETs a server has refused to carry out."""
    stats = admin.info("commandstats").get("cmdstat_set", {})
    return int(stats.get("rejected_calls", 0))


@contextmanager
def without_writes(database: Database, how: str) -> Iterator[None]:
    """Have a server take no writes."""
    admin = database.admin
    if how == "READONLY":
        admin.replicaof("127.0.0.1", "1")
    else:
        admin.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        admin.replicaof("NO", "ONE")
        admin.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize("how", ["READONLY", "NOREPLICAS"])
def test_a_server_without_writes(database: Database, runner: Any, how: str) -> None:
    """One write at a time asks; the others fail at once, and reads go on."""
    call = Caller(database.cache(), runner)
    call("set", "key", 1)
    page = [("set", "key", 2), ("get", "key"), ("set_many", {"key": 2}), ("keys", "*")]
    with without_writes(database, how):
        failure, *others = call.errors(*page * 10)
        assert isinstance(failure, redis.ReadOnlyError)
        assert set(others[::2]) == {None}
        kinds = [type(error) for error in others[1::2]]
        assert kinds.count(ServerDownError) > len(kinds) - 4
        said = next(str(one) for one in others if isinstance(one, ServerDownError))
        assert "takes no writes, and will be asked again in" in said
    wait_until(lambda: call.errors(("set", "key", 2)) == [None])
    assert set(call.errors(*page * 3)) == {None}


def test_an_empty_cache_without_writes(database: Database, runner: Any) -> None:
    """With ignore_exceptions, few of a page's writes cost their retries."""
    call = Caller(database.cache(ignore_exceptions=True), runner)
    call("set", "key", 1)
    before = rejected(database.admin)
    with without_writes(database, "READONLY"):
        for _ in range(20):
            call("set", "key", 2)
            assert call("get", "key") == 1
        # Four for each that asked; a busy machine may give some the time to.
        assert rejected(database.admin) - before <= 16


def test_counters_notice_that_writes_are_back(database: Database, runner: Any) -> None:
    """Nothing else need be called: the reply to a lost script decides nothing."""
    call = Caller(database.cache(), runner)
    call("set", "number", 1)
    with without_writes(database, "READONLY"):
        failures = call.errors(("incr", "number"), ("incr", "number"))
        assert None not in failures
    database.admin.script_flush()
    wait_until(lambda: call.errors(("incr", "number")) == [None])
    assert call("get", "number") == 2


@pytest.mark.parametrize("how", ["MASTERDOWN", "BUSY"])
def test_a_server_that_carries_nothing_out(
    database: Database, runner: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is down, whatever word it has for that."""
    call = Caller(database.cache(ignore_exceptions=True), runner)
    call("set", "key", 1)
    admin = database.admin
    with caplog.at_level("INFO", "django_entra_redis"), ThreadPoolExecutor(1) as pool:
        if how == "BUSY":
            admin.config_set("lua-time-limit", 1)
            pool.submit(database.spin)
            wait_until(lambda: "BUSY" in refusal(admin))
        else:
            admin.config_set("replica-serve-stale-data", "no")
            admin.replicaof("127.0.0.1", "1")
        for _ in range(5):
            assert call("get", "key") is None
            assert call("set_many", {"key": 2}) == ["key"]
            assert call("add", "key", 2) is False
        if how == "BUSY":
            admin.script_kill()
        else:
            admin.replicaof("NO", "ONE")
            admin.config_set("replica-serve-stale-data", "yes")
        wait_until(lambda: call("get", "key") == 1)
    # A replica refuses a write as what it is, and one may have been the probe.
    begin, end = (
        record for record in caplog.records if "can't be used" in record.getMessage()
    )
    assert (begin.levelname, end.levelname) == ("WARNING", "INFO")
    assert how in begin.getMessage()


def refusal(admin: Any) -> str:
    """Return the error reply to a read; nothing if there is none."""
    try:
        admin.get("key")
    except redis.RedisError as error:
        return str(error)
    return ""


def test_an_outage_that_comes_and_goes(
    database: Database, runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of once, and not with each operation."""
    call = Caller(database.cache(ignore_exceptions=True), runner)
    database.admin.config_set("maxmemory-policy", "noeviction")
    with caplog.at_level("INFO", "django_entra_redis"):
        for _ in range(5):
            database.admin.config_set("maxmemory", "1")
            call("set", "key", "x")
            database.admin.config_set("maxmemory", "0")
            call("set", "key", "x")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def nodes(cluster: Emulator) -> Iterator[Any]:
    """Yield administrators' clients of the primaries."""
    for node in primaries(cluster):
        with admin(cluster, node.number) as connection:
            yield connection


def holder(node: Any, name: str) -> int:
    """Return the process ID of a node if it has a key, else 0."""
    found = node.keys(f"*:{name}")
    return int(node.info("server")["process_id"]) if found else 0


def test_a_node_is_a_server_of_its_own(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, runner: Any
) -> None:
    """What is known of one is not held against the others."""
    options = {"socket_timeout": TIMEOUT, "ssl_ca_certs": str(cluster.ca_file)}
    with let_in(cluster, monkeypatch):
        cache = EntraRedisClusterCache(cluster.redis_url, {"OPTIONS": options})
        call = Caller(cache, runner)
        names = [f"key-{number}" for number in range(20)]
        call("set_many", dict.fromkeys(names, 1))
        call("delete_many", [])
        endpoints = {
            name: cache.get_topology().endpoint_of(cache.make_key(name))
            for name in names
        }
        lost = endpoints[names[0]]
        theirs = [name for name in names if endpoints[name] is lost]
        others = [name for name in names if endpoints[name] is not lost]
        (pid,) = filter(None, [holder(node, names[0]) for node in nodes(cluster)])
        os.kill(pid, signal.SIGSTOP)
        try:
            failure, *more = call.errors(*(("get", name) for name in theirs[:3]))
            assert isinstance(failure, redis.TimeoutError)
            assert ServerDownError in {type(error) for error in more}
            assert isinstance(call.errors(("get_many", names))[0], redis.RedisError)
            # On a busy machine one of them may itself be slow for once.
            wait_until(
                lambda: set(call.errors(*(("get", name) for name in others))) == {None}
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: set(call.errors(*(("get", n) for n in names))) == {None})


def test_a_node_without_writes(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, runner: Any
) -> None:
    """Its own writes fail at once; its reads, and all of other nodes, go on."""
    options = {"ssl_ca_certs": str(cluster.ca_file)}
    with let_in(cluster, monkeypatch), ExitStack() as stack:
        cache = EntraRedisClusterCache(cluster.redis_url, {"OPTIONS": options})
        call = Caller(cache, runner)
        names = [f"key-{number}" for number in range(20)]
        call("set_many", dict.fromkeys(names, 1))
        lost = next(iter(primaries(cluster)))
        node = stack.enter_context(admin(cluster, lost.number))
        theirs = [name for name in names if node.keys(f"*:{name}")]
        others = [name for name in names if name not in theirs]
        node.config_set("min-replicas-to-write", 5)
        stack.callback(node.config_set, "min-replicas-to-write", 0)
        failure, *more = call.errors(*[("set", theirs[0], 2)] * 40)
        assert isinstance(failure, redis.ReadOnlyError)
        # Few of these wait for a look at the cluster.
        assert [type(error) for error in more].count(ServerDownError) > 34
        assert call("get_many", names) == dict.fromkeys(names, 1)
        assert set(call.errors(*(("set", name, 2) for name in others))) == {None}
        assert isinstance(
            call.errors(("set_many", dict.fromkeys(names, 3)))[0], redis.RedisError
        )
        node.config_set("min-replicas-to-write", 0)
        wait_until(lambda: call.errors(("set_many", dict.fromkeys(names, 4))) == [None])
        assert call("get_many", names) == dict.fromkeys(names, 4)


def test_a_part_of_a_batch_that_waits_in_vain(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, runner: Any
) -> None:
    """It tells as much of its node as a single command does."""
    options = {
        "socket_timeout": TIMEOUT,
        "ssl_ca_certs": str(cluster.ca_file),
        "ignore_exceptions": True,
    }
    with let_in(cluster, monkeypatch):
        cache = EntraRedisClusterCache(cluster.redis_url, {"OPTIONS": options})
        call = Caller(cache, runner)
        names = [f"key-{number}" for number in range(20)]
        call("set_many", dict.fromkeys(names, 1))
        cluster.freeze()
        assert call("get_many", names) == {}
        assert call("get_many", names) == {}
        assert call("set_many", dict.fromkeys(names, 2)) == names
        cluster.freeze(False)
        wait_until(lambda: call("get_many", names) == dict.fromkeys(names, 1))


def test_a_cluster_that_nobody_can_reach(
    runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One operation pays for finding that out, and it is logged once."""
    location = "redis://127.0.0.1:1"
    options = {"identity": None}
    call = Caller(EntraRedisClusterCache(location, {"OPTIONS": options}), runner)
    failure, *others = call.errors(*[("get", "key")] * 9)
    assert not isinstance(failure, ServerDownError)
    assert {type(error) for error in others} == {ServerDownError}
    registry.reset()
    caplog.clear()
    forgiving = {**options, "ignore_exceptions": True}
    call = Caller(EntraRedisClusterCache(location, {"OPTIONS": forgiving}), runner)
    with caplog.at_level("INFO", "django_entra_redis"):
        for _ in range(5):
            assert call("get", "key") is None
            assert call("get_many", ["key"]) == {}
            assert call("set_many", {"key": 1}) == ["key"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_cluster_that_serves_no_slot(
    cluster: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    runner: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That no node is to blame for is logged once, and its end."""
    options = {"ssl_ca_certs": str(cluster.ca_file), "ignore_exceptions": True}
    with let_in(cluster, monkeypatch):
        cache = EntraRedisClusterCache(cluster.redis_url, {"OPTIONS": options})
        call = Caller(cache, runner)
        call("set", "key", 1)
        topology = cache.get_topology()
        with caplog.at_level("INFO", "django_entra_redis"):
            with monkeypatch.context() as patch:
                patch.setattr(topology, "endpoint_of", unserved)
                for _ in range(5):
                    assert call("get", "key") is None
            for _ in range(3):
                assert call("get", "key") == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def unserved(key: str) -> Any:
    """Say that no node has a key."""
    raise ClusterUnavailableError(f"No node of the cluster serves {key}.")
