"""django-redis' methods: what they do, sync and async, and that others pay nothing."""

import asyncio
import enum
import inspect
import math
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.test import override_settings
from redis.exceptions import LockError
from redis.lock import Lock

from django_entra_redis import get_redis_connection
from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.cache.locks import AsyncLock
from django_entra_redis.connections import event_loops, registry
from emulator import Emulator
from tests.support.caches import PATIENCE, Database, let_in, make_cache, wait_until


@pytest.fixture(autouse=True, scope="module")
def thread_for_all() -> None:
    """Have asgiref start the one thread that it keeps as long as the process lives."""
    asyncio.run(sync_to_async(int)())


@pytest.fixture(autouse=True)
def empty(database: Database) -> Iterator[None]:
    """Begin with nothing, and leave no connection."""
    database.admin.flushall()
    yield
    registry.reset()


class Caller:
    """Calls a cache's methods, or their asynchronous forms on a loop."""

    def __init__(self, cache: EntraRedisCache, *, native: bool) -> None:
        self.cache = cache
        self._native = native

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not self._native:
            return getattr(self.cache, name)  # type: ignore[no-any-return]

        def call(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(self._call(name, *args, **kwargs))

        return call

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.cache, f"a{name}")(*args, **kwargs)
        if inspect.isasyncgen(result):
            return [item async for item in result]
        return await result


@pytest.fixture(params=["sync", "async"])
def call(
    request: pytest.FixtureRequest,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> Caller:
    """Give a cache without an identity, in both ways."""
    # The loop has its own connection from the first operation on.
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    return Caller(database.cache(), native=request.param == "async")


def test_how_long_a_key_lives(call: Caller) -> None:
    """Seconds or milliseconds; None for ever, 0 for a key that is not there."""
    call.set("forever", 1, None)
    call.set("minute", 1, 60)
    assert (call.ttl("forever"), call.pttl("forever")) == (None, None)
    assert (call.ttl("none"), call.pttl("none")) == (0, 0)
    assert 0 < call.ttl("minute") <= 60
    assert 1000 < call.pttl("minute") <= 60_000
    assert call.ttl("minute", version=2) == 0


@pytest.mark.parametrize("timeout", [60, None])
def test_the_default_life(
    database: Database, call: Caller, timeout: int | None
) -> None:
    """DEFAULT_TIMEOUT is the cache's TIMEOUT, as it is for Django's own methods."""
    cache = database.cache(params={"TIMEOUT": timeout})
    call = Caller(cache, native=call._native)
    for method in ("expire", "pexpire"):
        cache.set("key", 1, 10)
        assert getattr(call, method)("key", DEFAULT_TIMEOUT) is True
        left = call.ttl("key")
        assert left is None if timeout is None else 10 < left <= 60
        assert getattr(call, method)("none", DEFAULT_TIMEOUT) is False
    # There is no change in this one, but the key is there.
    assert call.expire("key", DEFAULT_TIMEOUT) is True


def test_the_longest_lives(database: Database, call: Caller) -> None:
    """Whatever Redis can count: Python's timedelta ends sooner where multiplied."""
    call.set("key", "value", None)
    for method in ("expire", "pexpire"):
        assert getattr(call, method)("key", timedelta.max) is True
        assert call.ttl("key") > timedelta.max.total_seconds() - 1000
        assert call.persist("key") is True
    cache = database.cache(params={"TIMEOUT": 10**14})
    call = Caller(cache, native=call._native)
    assert call.pexpire("key", DEFAULT_TIMEOUT) is True
    assert call.ttl("key") > 10**14 - 1000


@pytest.mark.parametrize(
    ("methods", "argument", "says"),
    [
        (
            "expire pexpire",
            datetime(2030, 1, 1),
            "seconds or a timedelta, not datetime",
        ),
        ("expire pexpire", date(2030, 1, 1), "seconds or a timedelta, not date"),
        ("expire pexpire", None, "persist"),
        ("expire pexpire", "10", "seconds or a timedelta, not str"),
        ("expire pexpire", [], "seconds or a timedelta, not list"),
        ("expire_at pexpire_at", timedelta(days=1), "or a datetime, not timedelta"),
        ("expire_at pexpire_at", date(2030, 1, 1), "or a datetime, not date"),
        ("expire_at pexpire_at", "2030-01-01", "or a datetime, not str"),
        ("expire_at pexpire_at", None, "or a datetime, not NoneType"),
        ("expire_at pexpire_at", DEFAULT_TIMEOUT, "or a datetime, not object"),
        ("expire pexpire expire_at pexpire_at", math.nan, "not nan"),
        ("expire pexpire expire_at pexpire_at", math.inf, "not inf"),
    ],
)
def test_a_life_that_is_none(
    call: Caller, methods: str, argument: Any, says: str
) -> None:
    """What is no duration, or no moment, is an error; the key stays as it is."""
    call.set("key", "value", 1000)
    for method in methods.split():
        with pytest.raises((TypeError, ValueError), match=says):
            getattr(call, method)("key", argument)
        assert 900 < call.ttl("key") <= 1000


@pytest.mark.parametrize("delta", [None, 1.5, 2.0, "one", "", b"1.5", []])
def test_a_delta_that_can_not_be_added(call: Caller, delta: Any) -> None:
    """The error names it, and the number stays as it is."""
    call.set("key", 5)
    for method in ("incr", "decr"):
        with pytest.raises((TypeError, ValueError), match="delta"):
            getattr(call, method)("key", delta)
    assert call.get("key") == 5


class Step(enum.IntEnum):
    """An integer that is no plain one."""

    TWO = 2


@pytest.mark.parametrize("delta", [2, True, Step.TWO, "2", b"-3"])
def test_a_delta_that_can_be_added(call: Caller, delta: Any) -> None:
    """Any integer, or what Redis reads as one."""
    call.set("key", 5)
    assert call.incr("key", delta) == 5 + int(delta)


@pytest.mark.parametrize(
    ("method", "argument", "most"),
    [
        ("expire", 50, 50),
        ("expire", timedelta(seconds=50), 50),
        ("pexpire", 50_000, 50),
        ("pexpire", timedelta(seconds=50), 50),
        ("expire_at", lambda: int(time.time()) + 50, 50),
        ("expire_at", lambda: datetime.now(UTC) + timedelta(seconds=50), 50),
        ("pexpire_at", lambda: int(time.time() * 1000) + 50_000, 50),
        ("pexpire_at", lambda: datetime.now(UTC) + timedelta(seconds=50), 50),
    ],
)
def test_a_shorter_life(call: Caller, method: str, argument: Any, most: int) -> None:
    """It can be given in any way, and whether the key is there is told."""
    if callable(argument):
        argument = argument()
    call.set("key", "value", None)
    assert getattr(call, method)("key", argument) is True
    assert most - 20 < call.ttl("key") <= most
    assert getattr(call, method)("none", argument) is False
    assert call.persist("key") is True
    assert call.ttl("key") is None
    assert call.persist("key") is False


def test_set_on_a_condition(call: Caller) -> None:
    """Only if it is not there, or only if it is; and then told."""
    assert call.set("key", 1, xx=True) is False
    assert call.get("key") is None
    assert call.set("key", 1, nx=True) is True
    assert call.set("key", 2, nx=True) is False
    assert call.get("key") == 1
    assert call.set("key", {"a": 3}, xx=True, timeout=None) is True
    assert (call.get("key"), call.ttl("key")) == ({"a": 3}, None)
    assert call.set("key", 4, 0, xx=True) is True
    assert call.has_key("key") is False
    assert call.set("key", 4, 0, xx=True) is False
    assert call.set("key", 4) is None
    with pytest.raises(ValueError, match="exclude each other"):
        call.set("key", 5, nx=True, xx=True)


def test_value_that_needs_the_database(
    call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is pickled in a thread, on a condition as well."""

    class Lazy:
        """Something like a queryset that has not been evaluated yet."""

        def __reduce__(self) -> tuple[Any, ...]:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return dict, ()
            from django.core.exceptions import SynchronousOnlyOperation

            raise SynchronousOnlyOperation("no database here")

    assert call.set("key", Lazy(), nx=True) is True
    assert call.get("key") == {}


def test_which_keys_there_are(database: Database, call: Caller) -> None:
    """By a glob pattern, without prefix and version, and none of another cache."""
    names = {f"user:{number}" for number in range(2500)}
    call.cache.set_many(dict.fromkeys(names, 1))
    call.set("other", 1)
    call.set("user:0", 1, version=2)
    params = {"KEY_PREFIX": "pre:*"}
    beside = Caller(database.cache(params=params), native=call._native)
    beside.set("user:beside", 1)
    assert set(call.keys("user:*")) == names
    assert len(call.keys("user:*")) == len(names)
    assert set(call.iter_keys("user:*", itersize=100)) == names
    assert call.keys("user:*", version=2) == ["user:0"]
    assert beside.keys() == ["user:beside"]
    assert call.keys("nothing*") == []


def test_keys_are_deleted_by_pattern(database: Database, call: Caller) -> None:
    """In batches, those of this cache and version alone; KEYS is never sent."""
    call.cache.set_many({f"user:{number}": 1 for number in range(2500)})
    call.set("user:0", 1, version=2)
    call.set("other", 1)
    before = database.admin.info("commandstats")
    assert call.delete_pattern("user:*", itersize=100) == 2500
    after = database.admin.info("commandstats")
    assert "cmdstat_keys" not in after
    sent = {
        name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
        for name in ("cmdstat_scan", "cmdstat_unlink")
    }
    assert 10 < sent["cmdstat_scan"] < 60
    assert sent["cmdstat_unlink"] == 2500  # one a key: they may be in several slots
    assert (call.keys(), call.keys(version=2)) == (["other"], ["user:0"])
    assert call.delete_pattern("none*") == 0
    made = database.cache(params={"KEY_PREFIX": "elsewhere"})
    made.set("user:1", 1)
    assert call.delete_pattern("user:*", prefix="elsewhere") == 1


def test_key_functions_of_ones_own(database: Database) -> None:
    """What one puts around a name is taken off; one that hides it can't be listed."""
    around = database.cache(
        params={
            "KEY_FUNCTION": lambda key, prefix, version: f"{version}<{key}>{prefix}"
        }
    )
    around.set("a:b", 1)
    assert around.keys() == ["a:b"]
    assert around.delete_pattern("a*") == 1
    named = database.cache(params={"VERSION": "v*"})
    named.set("a", 1)
    assert named.keys() == ["a"]
    assert named.delete_pattern("*") == 1
    counted = database.cache(
        params={"KEY_FUNCTION": lambda key, prefix, version: f"{version:d}/{key}"}
    )
    counted.set("a", 1)
    assert counted.keys() == ["a"]
    hidden = database.cache(
        params={"KEY_FUNCTION": lambda key, prefix, version: str(hash(key))}
    )
    with pytest.raises(ValueError, match="KEY_FUNCTION hides"):
        hidden.keys()
    with pytest.raises(ValueError, match="KEY_FUNCTION hides"):
        hidden.delete_pattern("*")
    twice = database.cache(
        params={"KEY_FUNCTION": lambda key, prefix, version: f"{key}/{version}/{key}"}
    )
    twice.set("a", 1)
    for search in (twice.keys, twice.delete_pattern):
        with pytest.raises(ValueError, match="or repeats them"):
            search("*")


def test_keys_that_are_no_text(
    database: Database, call: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of somebody else are left out, and told of for whoever wants to know."""
    call.set("key", 1)
    database.admin.set(b":1:\xff\xfe", 1)
    with caplog.at_level("DEBUG", "django_entra_redis"):
        assert call.keys() == ["key"]
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert r"b':1:\xff\xfe'" in caplog.text
    assert list(call.iter_keys("*")) == ["key"]
    assert call.delete_pattern("*") == 2


def test_key_made_by_a_subclass(database: Database) -> None:
    """What a subclass makes of a key is found again, too."""

    class Sharded(EntraRedisCache):
        def make_key(self, key: Any, version: int | None = None) -> str:
            return f"shard-1*{super().make_key(key, version)}"

    options = {"identity": None, "clear_by_scan": True}
    cache = Sharded(database.url, {"OPTIONS": options})
    cache.set("a", 1)
    cache.set("a", 1, version=2)
    database.admin.set("shard-10:1:a", 1)
    assert cache.keys() == ["a"]
    assert cache.clear()
    assert database.admin.keys("*") == [b"shard-10:1:a"]


def test_an_iterator_holds_no_connection(database: Database) -> None:
    """Between two batches it is anybody's."""
    cache = database.cache(max_connections=1, pool_timeout=PATIENCE)
    cache.set_many({f"key-{number}": number for number in range(300)})
    found = {name: cache.get(name) for name in cache.iter_keys("key-*", itersize=10)}
    assert found == {f"key-{number}": number for number in range(300)}


def test_a_cache_that_is_down_is_empty(call: Caller) -> None:
    """With ignore_exceptions, for these as for Django's own."""
    cache = make_cache("redis://127.0.0.1:1", identity=None, ignore_exceptions=True)
    down = Caller(cache, native=call._native)
    assert (down.ttl("key"), down.pttl("key")) == (0, 0)
    assert not any((down.persist("key"), down.expire("key", 5)))
    assert not any((down.set("key", 1, nx=True), down.set("key", 1, xx=True)))
    assert (down.keys(), down.delete_pattern("*")) == ([], 0)


# -- locks


def test_lock(database: Database) -> None:
    """redis-py's, on the cache's connections and with its keys."""
    cache = database.cache(params={"KEY_PREFIX": "p"})
    with cache.lock("lock", timeout=60, version=3) as held:
        assert held.owned()
        assert database.admin.exists("p:3:lock")
        assert not cache.lock("lock", version=3, blocking=False).acquire()
    assert not database.admin.exists("p:3:lock")


def test_lock_of_tasks(database: Database) -> None:
    """One task at a time is inside; who waits does not keep the loop from others."""
    cache = database.cache()
    inside: list[int] = []

    async def work(number: int) -> None:
        async with cache.alock("lock", timeout=60, sleep=0.01) as held:
            inside.append(number)
            assert len(inside) == 1
            assert await held.owned()
            assert await held.locked()
            assert await held.extend(5)
            await asyncio.sleep(0)
            inside.remove(number)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(10)))
        async with cache.alock("lock"):
            other = cache.alock("lock", blocking=False)
            assert not await other.acquire()
            assert not await other.acquire(blocking=True, blocking_timeout=0.05)
            impatient = cache.alock("lock", blocking_timeout=0.05, sleep=0.01)
            with pytest.raises(LockError, match="Unable to acquire"):
                await impatient.__aenter__()
        with pytest.raises(LockError):
            await other.release()

    asyncio.run(main())


def test_a_cancelled_task_leaves_no_lock(database: Database) -> None:
    """Wherever it is cancelled, the lock is free afterwards."""
    cache = database.cache()

    async def work() -> None:
        async with cache.alock("lock"):
            pass

    async def main() -> None:
        for number in range(60):
            task = asyncio.create_task(work())
            await asyncio.sleep(number * 1e-4)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert not cache.lock("lock").locked()


def test_a_lock_that_tasks_share(database: Database) -> None:
    """Their threads may come for it at once: whoever has it can let go of it."""
    cache = database.cache()
    together = threading.Barrier(2)

    def make() -> Lock:
        together.wait(PATIENCE)
        return cache.lock("lock", thread_local=False)

    async def use(lock: AsyncLock) -> Lock:
        async with lock:
            return lock._lock

    async def main() -> None:
        lock = AsyncLock(make, sleep=0.01, blocking_timeout=PATIENCE)
        made = [asyncio.to_thread(lambda: lock._lock) for _ in range(2)]
        first, second = await asyncio.gather(*made)
        assert first is second
        assert set(await asyncio.gather(use(lock), use(lock))) == {first}

    asyncio.run(main())
    assert not cache.lock("lock").locked()


def test_a_lock_that_is_not_waited_for(database: Database) -> None:
    """With no time to wait there is one try, as with redis-py's."""
    cache = database.cache()

    async def main() -> None:
        free = cache.alock("lock", blocking_timeout=0)
        assert await free.acquire()
        assert not await cache.alock("lock", blocking_timeout=0).acquire()
        await free.release()

    asyncio.run(main())


def test_a_task_that_is_cancelled_twice_leaves_no_lock(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a loop that ends."""
    cache = database.cache()
    trying, go_on = threading.Event(), threading.Event()
    acquire = Lock.acquire

    def slow(lock: Any, **kwargs: Any) -> bool:
        trying.set()
        go_on.wait(PATIENCE)
        return bool(acquire(lock, **kwargs))

    monkeypatch.setattr(Lock, "acquire", slow)

    async def main(end: Callable[[asyncio.Task[Any]], Awaitable[object]]) -> None:
        trying.clear()
        go_on.clear()
        lock = cache.alock("lock")
        task = asyncio.create_task(lock.acquire())
        await asyncio.to_thread(trying.wait, PATIENCE)
        await end(task)

    async def twice(task: asyncio.Task[Any]) -> None:
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def by_the_loop(task: asyncio.Task[Any]) -> None:
        asyncio.get_running_loop().call_later(0.01, go_on.set)

    for end in (twice, by_the_loop):
        asyncio.run(main(end))
        assert not cache.lock("lock").locked()
    # Another's lock is let be.
    cache.set("lock", "another's")
    asyncio.run(main(twice))
    assert cache.lock("lock").locked()


def test_a_cancelled_task_stays_so(database: Database) -> None:
    """Whatever comes of the lock meanwhile, the caller's timeout is what it gets."""
    cache = database.cache()

    async def main() -> None:
        lock = cache.alock("lock", timeout=60)
        assert await lock.acquire()
        await cache.adelete("lock")
        task = asyncio.create_task(lock.release())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


# -- get_redis_connection()


def test_redis_connection(database: Database) -> None:
    """It is redis-py's client; another backend's cache has none."""
    local = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    ours = {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": database.url,
        "OPTIONS": {"identity": None},
    }
    with override_settings(CACHES={"default": ours, "local": local}):
        client: Any = get_redis_connection()
        assert isinstance(client, redis.Redis)
        assert client.set("raw", "value")
        assert get_redis_connection("default", write=False).get("raw") == b"value"
        with pytest.raises(NotImplementedError, match="EntraRedisCache"):
            get_redis_connection("local")
        cache: Any = caches["default"]
        assert client is cache.get_client(write=True)


# -- what it costs those who do without


def test_imported_at_first_use() -> None:
    """Importing the package and its backend brings none of it in."""
    code = """
import sys, django_entra_redis, django_entra_redis.cache
known = {"cache.locks", "commands.operations", "clients.sync"}
print([name for name in known if f"django_entra_redis.{name}" in sys.modules])
print("redis" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "False"]


def test_with_an_identity(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it works on connections that a token has let in."""
    with let_in(emulator, monkeypatch):
        cache = make_cache(
            emulator.redis_url,
            ssl_ca_certs=str(emulator.ca_file),
            pool_timeout=PATIENCE,
        )
        cache.set("key", 1, 60)
        assert cache.ttl("key")
        assert cache.keys() == ["key"]
        taken = threading.Event()

        def hold() -> None:
            with cache.lock("lock", timeout=60):
                taken.set()
                wait_until(lambda: cache.get("done"))

        thread = threading.Thread(target=hold)
        thread.start()
        assert taken.wait(PATIENCE)
        assert not cache.lock("lock", blocking=False).acquire()
        cache.set("done", 1)
        thread.join(PATIENCE)
        assert cache.delete_pattern("*") == 2


# -- what packages use that are made for django-redis


def test_client_of_django_redis(database: Database) -> None:
    """``cache.client`` gives redis-py's client; all else of it is the cache's."""
    cache = database.cache()
    assert cache.client.get_client() is cache.get_client(write=True)
    assert cache.client.get_client(False, None).ping()
    assert cache.get_master_client() is cache.get_client(write=True)
    cache.client.set("key", 1)
    assert cache.client.keys("*") == ["key"]
    with pytest.raises(AttributeError, match="_server"):
        _ = cache.client._server


def test_get_of_a_client(database: Database) -> None:
    """``get(client=)`` asks that one, and takes its answer for the cache's own."""
    cache = database.cache()
    cache.set("key", {"a": 1})
    for client in (cache.get_client(write=True), database.admin):
        assert cache.get("key", client=client) == {"a": 1}
        assert cache.get("missing", 7, client=client) == 7

    async def read() -> list[Any]:
        async with redis.asyncio.Redis.from_url(database.url) as client:
            return [
                await cache.aget("key", client=client),
                await cache.aget("missing", 7, client=client),
            ]

    assert asyncio.run(read()) == [{"a": 1}, 7]


def test_get_of_a_client_that_decodes(database: Database) -> None:
    """The cache's own clients do, with ``decode_responses``; values are bytes still."""
    cache = database.cache(decode_responses=True)
    cache.set_many({"pickle": {"a": 1}, "number": 5})

    async def read() -> list[Any]:
        client = cache.get_async_client()
        return [await cache.aget(name, client=client) for name in ("pickle", "number")]

    client = cache.get_client()
    assert cache.get("pickle", client=client) == {"a": 1}
    assert cache.get("number", client=client) == 5
    assert asyncio.run(read()) == [{"a": 1}, 5]


def test_a_default_timeout_that_is_no_whole_number(database: Database) -> None:
    """It is cut, as that of ``set()``."""
    cache = database.cache()
    cache.default_timeout = 57.5
    cache.set("key", 1)
    assert cache.expire("key", DEFAULT_TIMEOUT)
    assert 50 < database.admin.ttl(":1:key") <= 57


@pytest.mark.parametrize("copies", [None, True])
def test_counting_from_nothing(database: Database, copies: bool | None) -> None:
    """``incr(ignore_key_check=True)`` makes the key, which incr() alone refuses."""
    cache = database.cache(client_side_cache=copies)
    with pytest.raises(ValueError, match="not found"):
        cache.incr("key")
    assert cache.incr("key", 2, ignore_key_check=True) == 2
    assert cache.get("key") == 2
    assert asyncio.run(cache.aincr("key", ignore_key_check=True)) == 3
    assert cache.get("key") == 3
    assert cache.incr("key") == 4


def test_counting_while_it_is_down() -> None:
    """With ``ignore_exceptions`` the answer is that of an empty cache."""
    cache = make_cache("redis://localhost:1", identity=None, ignore_exceptions=True)
    assert cache.incr("key", 5, ignore_key_check=True) == 5
