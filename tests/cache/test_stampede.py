"""get_or_set(): one computation for all who miss a key, and none too late."""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.cache.backends.redis import RedisCache

from django_entra_redis.cache import (
    EntraRedisCache,
    computations,
    get_or_set,
    stampede,
)
from django_entra_redis.cache.computations import Computations, Ledger
from django_entra_redis.cache.stampede import make_names
from django_entra_redis.commands.stampede import Facts, Stampedes
from django_entra_redis.connections import registry
from tests.support.caches import Database, Proxy, wait_until

ROOT = Path(__file__).resolve().parents[2]
#: Has every hit compute the value anew.
ALWAYS = {"beta": 1e4}
#: A key of a computation.
KEY = ("server", "k")


pytestmark = pytest.mark.usefixtures("asgiref_thread")


@pytest.fixture(autouse=True)
def empty(database: Database) -> Iterator[None]:
    """Begin with nothing, and leave no connection."""
    database.admin.flushall()
    yield
    registry.reset()


@pytest.fixture(autouse=True)
def luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Throw the dice beforehand: 2.3 times as early as is best on average."""
    monkeypatch.setattr(random, "random", lambda: 0.9)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose patience soon."""
    monkeypatch.setattr(stampede, "WAIT", 0.05)
    monkeypatch.setattr(stampede, "LOCK", 0.2)


class Computing:
    """What ``get_or_set()`` is given: counts its calls, and lasts until told to end."""

    def __init__(self, value: Any = "computed") -> None:
        self.value = value
        self.calls = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> Any:
        """Return the value, or raise it."""
        self.calls += 1
        self.begun.set()
        assert self.go_on.wait(30)
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    async def wait(self) -> Any:
        """Do the same as a coroutine function."""
        self.calls += 1
        self.begun.set()
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        return self.value


def waiting(name: str) -> int:
    """Return how many wait for the computation of a key."""
    found: dict[Any, Any] = dict(computations.computations.under_way())
    return sum(
        computation.waiters
        for (_, made), computation in found.items()
        if made.endswith(f":{name}")
    )


def crowd(
    cache: EntraRedisCache, computing: Computing, count: int = 8
) -> "list[Future[Any]]":
    """Have threads miss a key at once; return what becomes of each."""
    with ThreadPoolExecutor(count) as pool:
        found = [pool.submit(cache.get_or_set, "k", computing, 60)]
        assert computing.begun.wait(30)
        found += [
            pool.submit(cache.get_or_set, "k", computing, 60) for _ in range(1, count)
        ]
        wait_until(lambda: waiting("k") == count - 1)
        computing.go_on.set()
    return found


# -- one process


def test_one_computes_for_all(database: Database) -> None:
    """The others wait, and each gets a copy of its own."""
    computing = Computing({"list": [1]})
    values = [future.result() for future in crowd(database.cache(), computing)]
    assert computing.calls == 1
    assert values == [{"list": [1]}] * 8
    assert len({id(value["list"]) for value in values}) == 8
    builtin: Any = RedisCache(database.url, {})
    assert builtin.get("k") == {"list": [1]}
    builtin._cache.get_client().connection_pool.disconnect()


@pytest.mark.parametrize("value", [5, 1.5, "text", None, b"bytes"])
def test_all_kinds_of_values(database: Database, value: Any) -> None:
    """Numbers, which are not pickled, and None are shared as they are."""
    computing = Computing(value)
    values = [future.result() for future in crowd(database.cache(), computing, 3)]
    assert values == [value] * 3
    assert [type(found) for found in values] == [type(value)] * 3


def test_its_exception_is_theirs(database: Database) -> None:
    """A failed computation is not repeated by all who waited for it."""
    computing = Computing(ZeroDivisionError("why"))
    for future in crowd(database.cache(), computing):
        with pytest.raises(ZeroDivisionError, match="why"):
            future.result()
    assert computing.calls == 1
    assert database.cache().get_or_set("k", lambda: 1) == 1


class UncopiedError(Exception):
    """One that is made of more than its arguments."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class ChangedError(Exception):
    """One whose copy says something else."""

    def __init__(self, message: str) -> None:
        super().__init__(f"no {message}")


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_each_traceback_is_its_own(
    database: Database, copied: bool, native: bool
) -> None:
    """It does not grow with those who wait, but says where the computation failed."""
    cache, found = database.cache(), list[tuple[str, list[str]]]()
    error = KeyError("a") if copied else UncopiedError("b", 1)

    def note(caught: Exception) -> None:
        trace = traceback.extract_tb(caught.__traceback__)
        found.append((repr(caught), [frame.name for frame in trace]))

    async def fail() -> None:
        while waiting("k") < 4:
            await asyncio.sleep(0.001)
        raise error

    async def ask() -> None:
        try:
            await cache.aget_or_set("k", fail)
        except type(error) as caught:
            note(caught)

    async def main() -> None:
        await asyncio.gather(*(ask() for _ in range(5)))

    if native:
        asyncio.run(main())
    else:
        for future in crowd(cache, Computing(error), 5):
            caught = future.exception()
            assert isinstance(caught, type(error))
            note(caught)
    assert [text for text, _ in found] == [repr(error)] * 5
    assert all(names.count("_lead") == 1 for _, names in found)
    # Threads that raise one object at the same time see each other's frames.
    most = 1 if copied or native else 5
    assert all(names.count("missed") <= most for _, names in found)


@dataclass(frozen=True)
class FrozenError(Exception):
    """Takes no attribute, such as its cause."""


@pytest.mark.parametrize(
    "error", [UncopiedError("b", 1), ChangedError("c"), FrozenError()]
)
def test_an_error_that_can_t_be_copied(error: Exception) -> None:
    """It is what all get."""
    assert stampede.another(error) is error


def test_a_copy_of_an_error() -> None:
    """With all that belongs to it; the notes of one are not the others'."""
    error = OSError(2, "why", "file")
    error.__cause__, error.__context__ = KeyError("cause"), KeyError("context")
    error.add_note("note")
    made = stampede.another(error)
    assert made is not error
    assert (type(made), str(made)) == (type(error), str(error))
    assert made.__cause__ is error.__cause__
    assert made.__context__ is error.__context__
    assert made.__suppress_context__
    made.add_note("another")
    assert error.__notes__ == ["note"]
    assert made.__notes__ == ["note", "another"]
    plain = stampede.another(ValueError("no note"))
    assert not hasattr(plain, "__notes__")


def test_one_that_is_broken_off_is_begun_anew(database: Database) -> None:
    """Whoever waits does not end because somebody else's thread does."""
    computing = Computing(SystemExit())
    cache, other = database.cache(), Computing()
    other.go_on.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_set, "k", computing, 60)
        assert computing.begun.wait(30)
        second = pool.submit(cache.get_or_set, "k", other, 60)
        wait_until(lambda: waiting("k") == 1)
        computing.go_on.set()
        assert second.result() == "computed"
    with pytest.raises(SystemExit):
        first.result()


@pytest.mark.parametrize("options", [{}, {"stampede": ALWAYS}])
def test_broken_off_again_and_again(
    database: Database, options: dict[str, Any]
) -> None:
    """However many end in turn, as requests do whose users leave: never do two compute
    at once."""
    cache = database.cache(**options)
    leaders: list[Any] = []
    at_once = most = 0

    async def compute() -> str:
        nonlocal at_once, most
        leaders.append(asyncio.current_task())
        at_once += 1
        most = max(most, at_once)
        try:
            await asyncio.sleep(30 if len(leaders) < 6 else 0)
        finally:
            at_once -= 1
        return "computed"

    async def main() -> None:
        tasks = [
            asyncio.create_task(cache.aget_or_set("k", compute, 60)) for _ in range(10)
        ]
        while waiting("k") < 9:
            await asyncio.sleep(0.001)
        for done in range(5):
            while len(leaders) == done:
                await asyncio.sleep(0.001)
            leaders[done].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(one, asyncio.CancelledError) for one in found) == 5
        assert found.count("computed") == 5

    asyncio.run(main())
    assert (len(leaders), most) == (6, 1)


def test_an_iterator_that_has_ended(database: Database) -> None:
    """Python lets StopIteration out of no generator, but a function may raise it."""
    cache, computing = database.cache(), Computing(StopIteration("over"))
    for future in crowd(cache, computing, 2):
        with pytest.raises(StopIteration, match="over"):
            future.result()
    assert computing.calls == 1


def test_an_iterator_that_has_ended_in_a_thread(database: Database) -> None:
    """A task that waits for the thread is told what Python makes of it in a task."""
    cache, computing = database.cache(), Computing(StopIteration("over"))

    async def join() -> None:
        joining = asyncio.create_task(cache.aget_or_set("k", computing, 60))
        while not waiting("k"):
            await asyncio.sleep(0.005)
        computing.go_on.set()
        with pytest.raises(RuntimeError, match="StopIteration"):
            await joining

    with ThreadPoolExecutor(1) as pool:
        leading = pool.submit(cache.get_or_set, "k", computing, 60)
        assert computing.begun.wait(30)
        asyncio.run(join())
        assert isinstance(leading.exception(), StopIteration)
    assert computing.calls == 1


@pytest.mark.parametrize("options", [{}, {"stampede": ALWAYS}])
def test_a_task_that_its_loop_drops(
    database: Database, options: dict[str, Any]
) -> None:
    """Its coroutine is closed, in any context, and can't wait for a reply any more."""
    cache, computing = database.cache(**options), Computing()
    cache.set("k", 1, 60)
    cache.delete("k")
    loop = asyncio.new_event_loop()
    coroutine = cache.aget_or_set("k", computing.wait, 60)
    task = loop.create_task(coroutine)
    loop.run_until_complete(asyncio.to_thread(computing.begun.wait, 30))
    coroutine.close()
    assert waiting("k") == 0
    assert computations.computations.under_way() == {}
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("options", [{}, {"stampede": ALWAYS}])
def test_a_function_that_raises_generator_exit(
    database: Database, options: dict[str, Any], native: bool
) -> None:
    """It is not taken for a task that is dropped, which can't release its lock."""
    cache, computing = database.cache(**options), Computing(GeneratorExit("why"))
    computing.go_on.set()

    def ask() -> Any:
        if native:
            return asyncio.run(cache.aget_or_set("k", computing, 60))
        return cache.get_or_set("k", computing, 60)

    with pytest.raises(GeneratorExit, match="why"):
        ask()
    assert database.admin.keys("*lock*") == []
    assert not computations.computations.under_way()


@pytest.mark.usefixtures("pace")
def test_one_that_hangs_is_not_waited_for_long(database: Database) -> None:
    """After some time the next one computes, and whoever comes waits for that one."""
    cache, hanging, quick = database.cache(), Computing("late"), Computing("quick")
    quick.go_on.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_set, "k", hanging, 60)
        assert hanging.begun.wait(30)
        assert pool.submit(cache.get_or_set, "k", quick, 60).result() == "quick"
        hanging.go_on.set()
        # As in Django: what is there stays.
        assert first.result() == "quick"


@pytest.mark.usefixtures("pace")
def test_nobody_waits_for_ever(database: Database) -> None:
    """Whoever has waited for two that hang computes the value."""
    cache, hanging = database.cache(), Computing("late")
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(cache.get_or_set, "k", hanging, 60) for _ in range(8)]
        wait_until(lambda: hanging.calls == 8)
        hanging.go_on.set()
        assert {future.result() for future in found} == {"late"}


def test_a_value_that_is_not_kept(database: Database) -> None:
    """With a timeout of 0 nothing is in the cache, and all get the value anyway."""
    cache, computing = database.cache(stampede=ALWAYS), Computing("gone")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_set, "k", computing, 0)
        assert computing.begun.wait(30)
        second = pool.submit(cache.get_or_set, "k", computing, 0)
        wait_until(lambda: waiting("k") == 1)
        computing.go_on.set()
        assert first.result() == second.result() == "gone"
    assert database.admin.keys("*") == []
    assert computing.calls == 1


def test_a_value_that_can_t_be_shared(database: Database) -> None:
    """One that can't be serialized twice is computed by each, as Django does it."""

    class Once:
        calls = 0

        def dumps(self, obj: Any) -> bytes:
            Once.calls += 1
            if Once.calls == 2:
                raise ValueError
            return str(obj).encode()

        def loads(self, data: bytes) -> str:
            return data.decode()

    computing = Computing("x")
    cache = database.cache(serializer=Once)
    assert [future.result() for future in crowd(cache, computing, 2)] == ["x", "x"]
    assert (computing.calls, Once.calls) == (2, 3)


def test_computing_the_same_key_within(database: Database) -> None:
    """Who asks for what he is computing does not wait for himself."""
    cache = database.cache()
    asked: list[Any] = []

    def outer() -> int:
        asked.append(cache.get_or_set("k", lambda: 1))
        return 2

    assert cache.get_or_set("k", outer) == 1
    assert asked == [1]


@pytest.mark.parametrize("native", [False, True])
def test_a_circle_is_none(database: Database, native: bool) -> None:
    """Two that each compute a key and ask for the other's do not wait for ever."""
    cache = database.cache()
    meet = threading.Barrier(2, timeout=30)

    def compute(other: str) -> Callable[[], str]:
        def outer() -> str:
            meet.wait()
            return "of " + str(cache.get_or_set(other, lambda: other))

        return outer

    async def cross() -> Any:
        both = asyncio.Barrier(2)

        async def one(key: str, other: str) -> Any:
            async def outer() -> str:
                await both.wait()
                return "of " + str(await cache.aget_or_set(other, lambda: other))

            return await cache.aget_or_set(key, outer)

        return await asyncio.gather(one("a", "b"), one("b", "a"))

    if native:
        found = asyncio.run(cross())
    else:
        with ThreadPoolExecutor(2) as pool:
            futures = [
                pool.submit(cache.get_or_set, key, compute(other))
                for key, other in [("a", "b"), ("b", "a")]
            ]
            found = [future.result() for future in futures]
    # One of the two computed the other's key for itself.
    assert set(found) & {"of a", "of b"}


def test_a_circle_of_nested_computations(database: Database) -> None:
    """A computation within another one waits for a third, which asks for the outer."""
    cache = database.cache()
    begun, waits = threading.Event(), threading.Event()

    def inner() -> Any:
        assert begun.wait(30)
        waits.set()
        return cache.get_or_set("c", lambda: "its own")

    def third() -> Any:
        begun.set()
        assert waits.wait(30)
        wait_until(lambda: waiting("c"))
        return cache.get_or_set("a", lambda: "its own")

    with ThreadPoolExecutor(2) as pool:
        outer = pool.submit(cache.get_or_set, "a", lambda: cache.get_or_set("b", inner))
        other = pool.submit(cache.get_or_set, "c", third)
        assert outer.result(10) == other.result(10) == "its own"


def test_a_circle_through_one_of_several_tasks(database: Database) -> None:
    """A computation waits for two others at once, and one of these asks for it."""
    cache = database.cache()

    async def scenario() -> list[Any]:
        waits = asyncio.Event()

        async def first() -> Any:
            while not waiting("b") or not waiting("c"):
                await asyncio.sleep(0.005)
            return await cache.aget_or_set("a", lambda: "its own")

        async def second() -> str:
            await waits.wait()
            return "second"

        async def both() -> Any:
            return await asyncio.gather(
                cache.aget_or_set("b", lambda: "its own"),
                cache.aget_or_set("c", lambda: "its own"),
            )

        async with asyncio.timeout(10):
            tasks = [
                asyncio.ensure_future(cache.aget_or_set(key, compute))
                for key, compute in [("b", first), ("c", second), ("a", both)]
            ]
            found = await tasks[0]
            waits.set()
            return [found, *await asyncio.gather(*tasks[1:])]

    assert asyncio.run(scenario())[:2] == ["its own", "second"]


def test_who_stops_waiting_for_one_waits_for_the_other() -> None:
    """The end of one of two waits of a computation is not the end of the other."""
    ours: Any = Computations()
    waiter, one, other = (ours.lead(("server", key), None) for key in "abc")
    assert ours.join(("server", "b"), (waiter,), None) is one
    assert ours.join(("server", "c"), (waiter,), None) is other
    ours.leave((waiter,), one)
    assert ours.join(("server", "a"), (other,), None) is None
    assert ours.join(("server", "a"), (one,), None) is waiter
    ours.leave((one,), waiter)
    ours.leave((waiter,), other)
    assert ours.join(("server", "a"), (other,), None) is waiter


def test_caches_that_share_a_server_share_a_computation(database: Database) -> None:
    """Each thread has a cache object of its own."""
    computing = Computing()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(database.cache().get_or_set, "k", computing)]
        assert computing.begun.wait(30)
        futures.append(pool.submit(database.cache().get_or_set, "k", computing))
        other = pool.submit(database.cache(db=1).get_or_set, "k", lambda: "other")
        wait_until(lambda: waiting("k") == 1)
        computing.go_on.set()
        assert [future.result() for future in futures] == ["computed"] * 2
        assert other.result() == "other"


def test_what_is_no_function_is_set_as_it_is(database: Database) -> None:
    """And a function is not called for a key that is there."""
    for options in ({}, {"stampede": ALWAYS}):
        cache = database.cache(**options)
        database.admin.flushall()
        assert cache.get_or_set("k", [1], 60) == [1]
        assert cache.get_or_set("k", [2], 60) == [1]
        assert asyncio.run(cache.aget_or_set("k", [2], 60)) == [1]
        assert asyncio.run(cache.aget_or_set("a", [3], 60)) == [3]
        assert database.admin.keys("*stampede*") == []
    assert database.cache().get_or_set("k", pytest.fail) == [1]


def test_without_the_option_the_wire_is_django_s(database: Database) -> None:
    """The same commands in the same order, for a miss and for a hit."""
    cache, builtin = database.cache(), RedisCache(database.url, {})
    seen = []
    for one in (cache, builtin):
        database.admin.flushall()
        with database.admin.monitor() as monitor:
            one.get_or_set("k", lambda: [1], 60)
            one.get_or_set("k", lambda: [1], 60)
            database.admin.ping()
            commands = [entry["command"] for entry in monitor_until(monitor, "PING")]
        words = [line.split() for line in commands]
        # redis-py's versions differ in the order of NX and EX.
        seen.append([sorted(line) for line in words if line[0] in ("GET", "SET")])
    assert seen[0] == seen[1]
    assert ["GET" in line for line in seen[0]] == [True, False, True, True]
    client: Any = builtin
    client._cache.get_client().connection_pool.disconnect()


def monitor_until(monitor: Any, last: str) -> Iterator[dict[str, str]]:
    """Yield what the server is told until a command comes."""
    while not (entry := monitor.next_command())["command"].startswith(last):
        yield entry


class Counting(EntraRedisCache):
    """A user's subclass."""

    reads = 0

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Count the reads."""
        self.reads += 1
        return super().get(*args, **kwargs)


class Own(EntraRedisCache):
    """Another one, with a way of its own."""

    def get_or_set(self, *args: Any, **kwargs: Any) -> Any:
        """Compute nothing."""
        return "own"


def test_subclasses(database: Database) -> None:
    """Their methods are used: for each read, and by the asynchronous twin."""
    params = {"OPTIONS": {"identity": None}}
    cache = Counting(database.url, params)
    assert cache.get_or_set("k", lambda: 1) == 1
    assert cache.reads == 2
    own = Own(database.url, params)
    assert asyncio.run(own.aget_or_set("k", lambda: 1)) == "own"


# -- a key that is removed while its value is computed


#: The ways to remove the key "k", each with the options that it takes.
REMOVALS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "delete": (lambda cache: cache.delete("k"), {}),
    "delete_many": (lambda cache: cache.delete_many(["k", "l"]), {}),
    "clear": (lambda cache: cache.clear(), {}),
    "clear_by_scan": (lambda cache: cache.clear(), {"clear_by_scan": True}),
    "delete_pattern": (lambda cache: cache.delete_pattern("[j-l]*"), {}),
    "set": (lambda cache: cache.set("k", 1, 0), {}),
    "set_xx": (lambda cache: cache.set("k", 1, 0, xx=True), {}),
    "set_many": (lambda cache: cache.set_many({"k": 1}, -1), {}),
    "touch": (lambda cache: cache.touch("k", 0), {}),
    "expire": (lambda cache: cache.expire("k", 0), {}),
    "pexpire_at": (lambda cache: cache.pexpire_at("k", 1000), {}),
    "adelete": (lambda cache: asyncio.run(cache.adelete("k")), {}),
    "adelete_many": (lambda cache: asyncio.run(cache.adelete_many(["k"])), {}),
    "aclear": (lambda cache: asyncio.run(cache.aclear()), {}),
    "adelete_pattern": (lambda cache: asyncio.run(cache.adelete_pattern("?")), {}),
    "aset": (lambda cache: asyncio.run(removed_in_loop(cache)), {}),
    "aset_xx": (lambda cache: asyncio.run(cache.aset("k", 1, 0, xx=True)), {}),
    "aset_many": (lambda cache: asyncio.run(cache.aset_many({"k": 1}, 0)), {}),
    "atouch": (lambda cache: asyncio.run(cache.atouch("k", 0)), {}),
    "aexpire": (lambda cache: asyncio.run(cache.aexpire("k", -1)), {}),
    "general": (lambda cache: cache.set("k", 1, 0), {"ignore_exceptions": True}),
}


async def removed_in_loop(cache: EntraRedisCache) -> None:
    """Remove a key on a connection that is there already."""
    await cache.aget("other")
    await cache.aset("k", 1, 0)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "stampede"])
@pytest.mark.parametrize("how", REMOVALS)
def test_removed_meanwhile(database: Database, how: str, shared: bool) -> None:
    """Who asks for it afterwards gets a value that is not older, and waits for nobody;
    neither does the computation that began before then cache its value."""
    remove, options = REMOVALS[how]
    cache, old = database.cache(**options, stampede=shared), Computing("old")
    with ThreadPoolExecutor(2) as pool:
        before = [pool.submit(cache.get_or_set, "k", old, 60)]
        assert old.begun.wait(30)
        before.append(pool.submit(cache.get_or_set, "k", pytest.fail, 60))
        wait_until(lambda: waiting("k") == 1)
        remove(cache)
        began = time.monotonic()
        assert cache.get_or_set("k", lambda: "new", 60) == "new"
        assert time.monotonic() - began < stampede.LOCK / 2
        remove(cache)
        old.go_on.set()
        assert [future.result() for future in before] == ["old", "old"]
    assert cache.get("k") is None
    assert not database.admin.keys("*lock*")
    assert not computations.computations.locks


def test_another_key_removed_meanwhile(database: Database) -> None:
    """Only computations of the keys that are removed are begun anew."""
    cache, computing = database.cache(), Computing()
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(cache.get_or_set, "k", computing, 60)]
        assert computing.begun.wait(30)
        cache.delete("l")
        cache.delete_many(["l", "kk"])
        cache.delete_pattern("l*")
        cache.expire("k", 1)
        cache.persist("k")
        cache.set("l", 1, 5)
        database.cache(db=1).clear()
        found.append(pool.submit(cache.get_or_set, "k", pytest.fail, 60))
        wait_until(lambda: waiting("k") == 1)
        computing.go_on.set()
        assert [future.result() for future in found] == ["computed"] * 2
    assert cache.get("k") == "computed"


def test_removed_by_the_computation(database: Database) -> None:
    """Its value is not older than that removal, and is cached."""
    cache = database.cache()

    def compute() -> str:
        cache.clear()
        return "new"

    assert cache.get_or_set("k", compute, 60) == "new"
    assert cache.get("k") == "new"


def test_a_circle_through_a_removed_key(database: Database) -> None:
    """A computation that nobody can join any more may still be waited for."""
    cache = database.cache()
    inner: list[Future[Any]] = []

    def of_a() -> str:
        inner.append(pool.submit(cache.get_or_set, "b", of_b, 60))
        wait_until(lambda: waiting("a") == 1)
        # By another thread: one's own removal changes nothing.
        pool.submit(cache.delete, "a").result()
        return f"a of {cache.get_or_set('b', lambda: 'own', 60)}"

    def of_b() -> str:
        return f"b of {cache.get_or_set('a', pytest.fail, 60)}"

    with ThreadPoolExecutor(3) as pool:
        assert pool.submit(cache.get_or_set, "a", of_a, 60).result(20) == "a of own"
        assert inner[0].result(20) == "own"


# -- event loops


def test_one_task_computes_for_all(database: Database) -> None:
    """Tasks wait without blocking their loop, for a coroutine function, too."""
    cache, computing = database.cache(), Computing([1])

    async def main() -> list[Any]:
        tasks = [
            asyncio.ensure_future(cache.aget_or_set("k", computing.wait, 60))
            for _ in range(200)
        ]
        while waiting("k") < 199:
            await asyncio.sleep(0.005)
        computing.go_on.set()
        return await asyncio.gather(*tasks)

    values = asyncio.run(main())
    assert values == [[1]] * 200
    assert len({id(value) for value in values}) == 200
    assert computing.calls == 1


@pytest.mark.parametrize("native", [False, True])
def test_one_who_has_missed_it_long_ago(database: Database, native: bool) -> None:
    """Who resumes after another one's computation has ended computes no second time."""
    other = database.cache()

    class Slow(EntraRedisCache):
        def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            found = super().get(key, *args, **kwargs)
            other.get_or_set("k", lambda: "other", 60)
            return found

        async def aget(self, key: str, *args: Any, **kwargs: Any) -> Any:
            found = await super().aget(key, *args, **kwargs)
            await other.aget_or_set("k", lambda: "other", 60)
            return found

    cache: Any = Slow(database.url, {"OPTIONS": {"identity": None}})
    if native:
        assert asyncio.run(cache.aget_or_set("k", pytest.fail, 60)) == "other"
    else:
        assert cache.get_or_set("k", pytest.fail, 60) == "other"


def test_a_function_computes_once_in_a_loop(database: Database) -> None:
    """Which blocks the loop, yet the others have missed the key already."""
    cache, computing = database.cache(), Computing()
    computing.go_on.set()

    async def main() -> list[Any]:
        return await asyncio.gather(
            *(cache.aget_or_set("k", computing, 60) for _ in range(200))
        )

    assert asyncio.run(main()) == ["computed"] * 200
    assert computing.calls == 1


@pytest.mark.parametrize("first", ["task", "thread"])
def test_threads_and_tasks_wait_for_each_other(database: Database, first: str) -> None:
    """A process has one computation, wherever it runs."""
    cache, computing = database.cache(), Computing()
    ways: dict[str, Callable[[], Any]] = {
        "task": lambda: asyncio.run(cache.aget_or_set("k", computing.wait, 60)),
        "thread": lambda: cache.get_or_set("k", computing, 60),
    }
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(ways.pop(first))]
        assert computing.begun.wait(30)
        futures.append(pool.submit(*ways.values()))
        wait_until(lambda: waiting("k") == 1)
        computing.go_on.set()
        assert [future.result() for future in futures] == ["computed"] * 2
    assert computing.calls == 1


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_blocked_loop_is_not_waited_for(database: Database, in_thread: bool) -> None:
    """The synchronous API does not wait for a task that could not go on meanwhile: used
    in the loop by mistake, or in the one thread that all tasks share."""
    cache, computing = database.cache(), Computing()

    async def main() -> tuple[Any, Any]:
        task = asyncio.ensure_future(cache.aget_or_set("k", computing.wait, 60))
        while not computing.begun.is_set():
            await asyncio.sleep(0.005)
        if in_thread:
            at_once = await sync_to_async(cache.get_or_set)("k", lambda: "at once", 60)
        else:
            at_once = cache.get_or_set("k", lambda: "at once", 60)
        computing.go_on.set()
        return at_once, await task

    assert asyncio.run(main()) == ("at once", "at once")


def test_a_task_that_is_cancelled(database: Database) -> None:
    """Others begin anew if it was computing, and go on if it was waiting."""
    cache, computing, other = database.cache(), Computing("first"), Computing("second")
    other.go_on.set()

    async def main() -> Any:
        leader = asyncio.ensure_future(cache.aget_or_set("k", computing.wait, 60))
        while not computing.begun.is_set():
            await asyncio.sleep(0.005)
        tasks = [
            asyncio.ensure_future(cache.aget_or_set("k", other, 60)) for _ in range(2)
        ]
        while waiting("k") < 2:
            await asyncio.sleep(0.005)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        leader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leader
        return await tasks[1]

    assert asyncio.run(main()) == "second"


def test_an_exception_in_a_loop_is_theirs(database: Database) -> None:
    """And asyncio has nothing to complain of."""
    cache = database.cache()
    calls = []

    async def fail() -> Any:
        calls.append(1)
        await asyncio.sleep(0.05)
        raise ZeroDivisionError

    async def main() -> list[Any]:
        complaints: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        found = await asyncio.gather(
            *(cache.aget_or_set("k", fail, 60) for _ in range(5)),
            return_exceptions=True,
        )
        return [*(type(error) for error in found), *complaints]

    assert asyncio.run(main()) == [ZeroDivisionError] * 5
    assert len(calls) == 1


# -- before it expires


@pytest.mark.parametrize("native", [False, True])
def test_computed_before_it_expires(database: Database, native: bool) -> None:
    """With a large beta at each hit; the value lives its whole time from then on."""
    cache = database.cache(stampede=ALWAYS)
    numbers = iter(range(10))

    def compute() -> int:
        time.sleep(0.01)
        return next(numbers)

    def ask() -> Any:
        if native:
            return asyncio.run(cache.aget_or_set("k", compute, 50))
        return cache.get_or_set("k", compute, 50)

    assert ask() == 0
    database.admin.expire(":1:k", 5)
    assert ask() == 1
    assert 45 < database.admin.ttl(":1:k") <= 50
    assert cache.get("k") == 1
    assert database.admin.keys("*lock*") == []


def test_what_another_process_has_measured(database: Database) -> None:
    """A process that has never computed a value knows from the others what it cost."""
    cache = database.cache(stampede=ALWAYS)
    cache.get_or_set("k", lambda: time.sleep(0.01), 50)
    computations.ledger.forget()
    assert cache.get_or_set("k", lambda: "early", 50) == "early"


def test_not_before_it_is_time(database: Database) -> None:
    """Nor where nobody knows what the value cost, with a beta of 0, or for ever."""
    for beta, timeout in ((1.0, 50), (0, 50), (1e4, None)):
        database.admin.flushall()
        cache = database.cache(stampede={"beta": beta})
        assert cache.get_or_set("k", lambda: time.sleep(0.001), timeout) is None
        assert cache.get_or_set("k", pytest.fail, timeout) is None
    database.admin.flushall()
    computations.ledger.forget()
    cache = database.cache(stampede=ALWAYS)
    cache.set("k", 1, 50)
    assert cache.get_or_set("k", pytest.fail, 50) == 1
    # It is not asked for at each hit.
    commands = database.received("total_commands_processed")
    assert cache.get_or_set("k", pytest.fail, 50) == 1
    assert database.received("total_commands_processed") == commands + 2  # INFO


def test_old_news(database: Database) -> None:
    """What a process remembers is asked for once more before anything is computed."""
    cache = database.cache(stampede={"beta": 1.0})
    cache.set("k", 1, 500)
    name = cache._operations.server, ":1:k"
    computations.ledger.put(name, Facts(cost=1e6, left=50))
    database.admin.set(":stampede-cost:1:k", "0.001", ex=500)
    assert cache.get_or_set("k", pytest.fail, 500) == 1
    known = computations.ledger.get(name)
    assert known is not None
    assert known.cost == 0.001


def test_one_process_at_a_time_early(database: Database) -> None:
    """Whoever finds the lock taken goes on with the value that is there."""
    cache = database.cache(stampede=ALWAYS)
    cache.get_or_set("k", lambda: time.sleep(0.01), 50)
    database.admin.set(":stampede-lock:1:k", 1, px=50_000)
    assert cache.get_or_set("k", pytest.fail, 50) is None


def test_one_thread_at_a_time_early(database: Database) -> None:
    """So does whoever finds another thread at it."""
    cache, computing = database.cache(stampede=ALWAYS), Computing("new")
    cache.get_or_set("k", lambda: time.sleep(0.01), 50)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_or_set, "k", computing, 50)
        assert computing.begun.wait(30)
        assert cache.get_or_set("k", pytest.fail, 50) is None
        computing.go_on.set()
        assert first.result() == "new"


def test_another_process_was_quicker(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been computed just before the lock was taken is not computed again."""
    cache = database.cache(stampede={"beta": 1.0})
    facts = iter([Facts(1e6, 50.0), Facts(0.001, 50.0)])

    def asked(self: object, names: object) -> Generator[Any, Any, Facts]:
        yield from ()
        return next(facts)

    monkeypatch.setattr(Stampedes, "facts", asked)
    cache.set("k", 1, 50)
    assert cache.get_or_set("k", pytest.fail, 50) == 1
    assert database.admin.keys("*lock*") == []


def test_a_failure_before_it_expires(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The value that is there is as good as it was; the failure is logged."""
    cache = database.cache(stampede=ALWAYS)
    cache.get_or_set("k", lambda: time.sleep(0.01), 50)
    assert cache.get_or_set("k", lambda: 1 / 0, 50) is None
    assert "could not be computed before it expires" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert database.admin.keys("*lock*") == []


def test_what_is_deleted_meanwhile_stays_away(database: Database) -> None:
    """Who deletes a key wants what was computed before then to be seen no more."""
    cache = database.cache(stampede=ALWAYS)
    cache.get_or_set("k", lambda: time.sleep(0.01), 50)

    def compute() -> str:
        cache.delete("k")
        return "old"

    assert cache.get_or_set("k", compute, 50) == "old"
    assert cache.get("k") is None


def slowly_found() -> str:
    """Take long enough for the value to be computed anew."""
    time.sleep(0.01)
    return "found"


@pytest.mark.parametrize("value", [ZeroDivisionError(), "late"])
@pytest.mark.parametrize("native", [False, True])
def test_what_is_over_is_nobody_s_but_its_finder_s(
    database: Database, native: bool, value: Any
) -> None:
    """Who misses a key that another process has removed gets no value from before."""
    cache = database.cache(stampede=ALWAYS)
    cache.get_or_set("k", slowly_found, 50)
    early = Computing(value)

    async def miss() -> Any:
        return await cache.aget_or_set("k", lambda: "new", 50)

    with ThreadPoolExecutor(2) as pool:
        finder = pool.submit(cache.get_or_set, "k", early, 50)
        assert early.begun.wait(30)
        database.admin.delete(":1:k")
        if native:
            other = pool.submit(lambda: asyncio.run(miss()))
        else:
            other = pool.submit(cache.get_or_set, "k", lambda: "new", 50)
        wait_until(lambda: waiting("k") == 1)
        early.go_on.set()
        assert finder.result() == ("late" if value == "late" else "found")
        assert other.result() == "new"
    assert cache.get("k") == "new"


def test_a_lock_that_is_another_s_early(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who misses the key meanwhile is not given the old value either."""
    cache, locked = database.cache(stampede=ALWAYS), Stampedes.lock
    cache.get_or_set("k", slowly_found, 50)
    others: list[Future[Any]] = []

    def lock(*args: Any) -> Any:
        monkeypatch.undo()
        database.admin.delete(":1:k")
        others.append(pool.submit(cache.get_or_set, "k", lambda: "new", 50))
        wait_until(lambda: waiting("k") == 1)
        yield from locked(*args)
        return False

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(Stampedes, "lock", lock)
        finder = cache.get_or_set("k", pytest.fail, 50)
        database.admin.delete(":stampede-lock:1:k")
        assert finder == "found"
        assert others[0].result() == "new"


@pytest.mark.parametrize(
    ("write", "left"),
    [
        (lambda cache: cache.set("k", "new", 90), (85, 90)),
        (lambda cache: [cache.delete("k"), cache.set("k", "new", 50)], (40, 50)),
        (lambda cache: cache.incr("k"), (40, 50)),
        (lambda cache: cache.persist("k"), (-1, -1)),
        (lambda cache: cache.touch("k", 90), (85, 90)),
        (lambda cache: cache.touch("k", 20), (15, 20)),
        (lambda cache: cache.expire("k", 20), (15, 20)),
        (lambda cache: cache.set("k", 5, 20), (15, 20)),
    ],
    ids=["set", "delete", "incr", "persist", "touch", "earlier", "expire", "same"],
)
@pytest.mark.parametrize("native", [False, True])
def test_what_is_written_meanwhile_stays(
    database: Database,
    write: Callable[[Any], Any],
    left: tuple[int, int],
    native: bool,
) -> None:
    """It is newer than what the value was computed from, and so is its expiry."""
    cache = database.cache(stampede=ALWAYS)

    def first() -> int:
        time.sleep(0.01)
        return 5

    cache.get_or_set("k", first, 50)

    def compute() -> str:
        write(cache)
        expected.append(cache.get("k"))
        return "old"

    expected: list[Any] = []
    if native:
        early = sync_to_async(compute, thread_sensitive=False)
        got = asyncio.run(cache.aget_or_set("k", early, 50))
    else:
        got = cache.get_or_set("k", compute, 50)
    assert [got] == [cache.get("k")] == expected
    assert left[0] <= database.admin.ttl(":1:k") <= left[1]


@pytest.mark.parametrize("native", [False, True])
def test_full_before_it_expires(
    database: Database, caplog: pytest.LogCaptureFixture, native: bool
) -> None:
    """What is there is returned where a new value can't be written."""
    cache = database.cache(stampede=ALWAYS)
    cache.get_or_set("k", lambda: time.sleep(0.01), 50)

    def compute() -> str:
        database.admin.config_set("maxmemory", 1)
        return "new"

    try:
        for _ in range(2):  # the lock can't be written either, the second time
            if native:
                assert asyncio.run(cache.aget_or_set("k", compute, 50)) is None
            else:
                assert cache.get_or_set("k", compute, 50) is None
    finally:
        database.admin.config_set("maxmemory", 0)
    assert "OutOfMemoryError" in caplog.text


def test_no_timeout_is_left_before_it_expires(database: Database) -> None:
    """A value of somebody who would keep none is not computed early."""
    cache = database.cache(stampede=ALWAYS)
    cache.get_or_set("k", lambda: time.sleep(0.01), 50)
    assert cache.get_or_set("k", pytest.fail, 0) is None
    assert database.admin.ttl(":1:k") > 40


# -- between processes


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Give something that cuts connections."""
    made = Proxy(database.address)
    yield made
    made.close()


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_nobody_waits_for_itself(
    database: Database, proxy: Proxy, native: bool, taken: bool
) -> None:
    """Where the reply to its lock is lost, a process may hold it or not.

    It computes, and leaves the lock alone if it is another one's.
    """
    options = {"identity": None, "stampede": True}
    cache = EntraRedisCache(proxy.url(database.url), {"OPTIONS": options})
    began = time.monotonic()

    async def ask() -> Any:
        await cache.aget("other")
        proxy.arm(len("$-1\r\n+"))
        return await cache.aget_or_set("k", compute, 60)

    def compute() -> str:
        return "value"

    if taken:
        database.admin.set(":stampede-lock:1:k", "another", px=50_000)
    if native:
        assert asyncio.run(ask()) == "value"
    else:
        cache.get("other")
        proxy.arm(len("$-1\r\n+"))
        assert cache.get_or_set("k", compute, 60) == "value"
    assert time.monotonic() - began < stampede.LOCK
    held = database.admin.get(":stampede-lock:1:k")
    assert held == (b"another" if taken else None)


def test_a_task_that_is_dropped_while_it_acquires_the_lock(database: Database) -> None:
    """It can send nothing any more; the lock ends by itself."""
    cache: Any = database.cache(stampede=True)
    steps = cache._get_or_set(get_or_set._MISSING, 0, "k", pytest.fail, 60, None)
    next(steps)
    steps.close()
    assert not computations.computations.under_way()


def test_a_task_that_is_cancelled_leaves_no_lock(database: Database) -> None:
    """Not even while it acquires it."""
    cache = database.cache(stampede=True)

    async def main() -> None:
        await cache.aget("k")
        # Writes wait, reads don't.
        database.admin.execute_command("CLIENT", "PAUSE", 300, "WRITE")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await cache.aget_or_set("k", pytest.fail, 60)
        # The connection stays open until Redis has answered.
        await cache.adelete("other")

    asyncio.run(main())
    assert database.admin.keys("*lock*") == []


def test_another_process_is_waited_for(database: Database) -> None:
    """Until it has the value, or has let go of the lock without one."""
    cache = database.cache(stampede=True)
    database.admin.set(":stampede-lock:1:k", 1, px=50_000)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cache.get_or_set, "k", pytest.fail, 50)
        wait_until(lambda: tries(database) >= 2)
        database.cache().set("k", "another's")
        assert asked.result() == "another's"
        cache.delete("k")
        asked = pool.submit(cache.get_or_set, "k", lambda: "own", 50)
        database.admin.delete(":stampede-lock:1:k")
        assert asked.result() == "own"
    assert database.admin.keys("*lock*") == []


def tries(database: Database) -> int:
    """Return how often a lock has been asked for."""
    stats = database.admin.info("commandstats")
    return int(stats["cmdstat_set"]["calls"]) - 1


def test_a_value_that_came_with_the_lock(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that another process has set just before is not computed again."""
    cache, locked = database.cache(stampede=True), Stampedes.lock

    def lock(*args: Any) -> Any:
        database.admin.set(":1:k", 5)
        return locked(*args)

    monkeypatch.setattr(Stampedes, "lock", lock)
    assert cache.get_or_set("k", pytest.fail, 50) == 5
    assert database.admin.keys("*lock*") == []


@pytest.mark.usefixtures("pace")
def test_a_process_that_has_died(database: Database) -> None:
    """Its lock is not waited for long; nor is another one's taken away."""
    cache = database.cache(stampede=True)
    database.admin.set(":stampede-lock:1:k", 1, px=50_000)
    assert cache.get_or_set("k", lambda: "own", 50) == "own"
    assert database.admin.keys("*lock*") == [b":stampede-lock:1:k"]
    database.admin.delete(":stampede-lock:1:k")

    def late() -> str:
        time.sleep(stampede.LOCK + 0.05)
        database.admin.set(":stampede-lock:1:late", 1, px=50_000)
        return "late"

    assert cache.get_or_set("late", late, 50) == "late"
    assert database.admin.keys("*lock*") == [b":stampede-lock:1:late"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(("option", "computed"), [("0", 8), ("1", 1)])
def test_processes(database: Database, option: str, computed: int) -> None:
    """200 tasks in each of 8 processes compute once per process, or once in all."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.processes.stampede", database.url, option],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == {"computed": computed, "values": ["value"]}


# -- down


@pytest.mark.parametrize("option", [None, True])
def test_a_cache_that_is_down(
    redis_server: str, tmp_path: Path, option: bool | None
) -> None:
    """With ``ignore_exceptions`` each process computes, once at a time."""
    database = Database(tmp_path, redis_server)
    cache = database.cache(ignore_exceptions=True, stampede=option)
    database.stop()
    computing = Computing([1])
    assert [future.result() for future in crowd(cache, computing, 3)] == [[1]] * 3
    assert computing.calls == 1


def test_refused(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """What an access policy forbids is told once, and nobody waits in vain."""
    options = {"identity": None, "stampede": True}
    url = database.url_of("reader", "~* +@all -pttl -get")
    cache = EntraRedisCache(url, {"OPTIONS": options})
    cache.set("k", 1)
    with pytest.raises(Exception, match="no permissions"):
        cache.get_or_set("k", pytest.fail)
    url = database.url_of("reader", "~* +@all -pttl -del")
    stampede._told.clear()
    for number in range(3):
        cache = EntraRedisCache(url, {"OPTIONS": options})
        assert cache.get_or_set("k", pytest.fail) == 1
        assert cache.get_or_set(f"missing-{number}", lambda: "made") == "made"
    # The lock, which it can't release, and the facts, which it can't read.
    warnings = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    url = database.url_of("writer", "~:1:* +@all")
    cache = EntraRedisCache(url, {"OPTIONS": options})
    assert cache.get_or_set("of-these-keys-alone", lambda: "made") == "made"


# -- its parts


@pytest.mark.parametrize(
    ("params", "beside"),
    [
        ({}, [":stampede-cost:1:k", ":stampede-lock:1:k"]),
        ({"KEY_PREFIX": "p"}, ["p:stampede-cost:1:k", "p:stampede-lock:1:k"]),
        (
            {"KEY_FUNCTION": lambda key, prefix, version: f"{key}|{version:d}"},
            ["k|1:stampede-cost", "k|1:stampede-lock"],
        ),
        (
            {"KEY_FUNCTION": lambda key, prefix, version: f"{prefix}{key}"},
            ["k:stampede-cost", "k:stampede-lock"],
        ),
    ],
)
def test_names(database: Database, params: dict[str, Any], beside: list[str]) -> None:
    """They begin with the prefix, are not each other's, and nobody finds them."""
    cache = database.cache(params=params, stampede=True)
    names = make_names(cache, "k", None)
    assert [names.cost, names.lock] == beside
    cache.get_or_set("k", lambda: 1, 60)
    expected = {names.value, names.cost}
    assert {key.decode() for key in database.admin.keys("*")} == expected


def test_keys_does_not_find_them(database: Database) -> None:
    """And clear_by_scan leaves them to expire."""
    cache = database.cache(stampede=True, clear_by_scan=True)
    cache.get_or_set("k", lambda: 1, 60)
    assert cache.keys() == ["k"]
    assert cache.delete_pattern("*") == 1
    assert 0 < database.admin.ttl(":stampede-cost:1:k") <= 60


def test_a_ledger_forgets() -> None:
    """What it knows ages with the clock, and it holds so many values at most."""
    now = 0.0
    ledger = Ledger(lambda: now)
    assert ledger.get("k") is None
    ledger.put("k", Facts(1.0, 10.0))
    now = 4.0
    assert ledger.get("k") == Facts(1.0, 6.0)
    now = 10.0
    assert ledger.get("k") is None
    ledger.put("ever", Facts(1.0))
    now += computations.KNOWN
    assert ledger.get("ever") is None
    for number in range(computations.MOST_KNOWN + 1):
        ledger.put(number, Facts(1.0))
    assert ledger.get(0) is None
    assert ledger.get(1) == Facts(1.0)


def test_one_that_got_lost_is_not_waited_for() -> None:
    """A signal handler's exception may come before whoever began it knows of it."""
    ours = Computations()
    lost = ours.lead(KEY, None)
    assert lost is not None
    assert ours.lead(KEY, None) is None
    del lost
    assert ours.join(KEY, (), None) is None
    assert ours.lead(KEY, None) is not None


def test_a_child_begins_anew() -> None:
    """The parent's threads do not compute in there; what the fork was in ends well."""
    ours = Computations()
    made = ours.lead(KEY, None)
    assert made is not None
    ours.reset()
    other = ours.lead(KEY, None)
    assert other is not None
    assert not ours.end(KEY, made)
    assert ours.lead(KEY, None) is None
