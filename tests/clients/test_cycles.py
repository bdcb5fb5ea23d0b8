"""Errors keep nothing alive: no cycle leads through the frames of their tracebacks.

A connection that an exception has had somebody lose counts no longer once nothing
refers to it. In a cycle it would until the next full garbage collection, and a pool
would run dry meanwhile.
"""

import asyncio
import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis

from django_entra_redis._errors import hidden
from django_entra_redis.cache import EntraRedisCache, EntraRedisClusterCache
from django_entra_redis.cache.computations import computations
from django_entra_redis.connections import event_loops, registry
from django_entra_redis.connections.connection import PlainConnection
from django_entra_redis.diagnostics.health import cache_health
from tests.support.caches import wait_until
from tests.support.peers import Peer, PeerHost
from tests.support.threads import all_ended

VALUES = {"a": 1, "b": 2}
OPERATIONS: list[Callable[[Any], Any]] = [
    lambda cache: cache.get("key"),
    lambda cache: cache.add("key", 1),
    lambda cache: cache.incr("key"),
    lambda cache: cache.get_many(["a", "b"]),
    lambda cache: cache.set_many(VALUES),
    lambda cache: cache.keys("*"),
    lambda cache: cache.clear(),
]
#: What is asked of one server in an outage, and by whoever watches it.
PROBES: list[Callable[[Any], Any]] = [
    lambda cache: cache._cache.endpoints[0].answers(0.5),
    lambda cache: cache_health("default", cache),
]
SLOTS = b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$0\r\n\r\n:%d\r\n$2\r\nid\r\n"


@contextmanager
def uncollected() -> Iterator[list[Any]]:
    """Give a list, into which goes what would have had to be collected."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def errors_in(found: list[Any]) -> list[str]:
    """Return the errors and connections among objects that were in cycles.

    redis-py's own connections are another test's, such as those of an emulator that a
    thread is stopping.
    """
    kinds = (BaseException, PlainConnection)
    return [
        f"{type(each).__name__}: {each}" for each in found if isinstance(each, kinds)
    ]


#: What a server does when it is asked something.
FAULTS: dict[str, Callable[[Peer, list[bytes]], bytes | None]] = {
    "an error": lambda peer, command: b"-ERR no\r\n",
    "read only": lambda peer, command: b"-READONLY a replica\r\n",
    "loading": lambda peer, command: b"-LOADING reading\r\n",
    "not logged in": lambda peer, command: b"-NOAUTH who\r\n",
    "moved": lambda peer, command: b"-MOVED 1 x:y\r\n",
    "closed": lambda peer, command: peer.transport.abort(),
    "no reply": lambda peer, command: b"HTTP/1.1 400\r\n",
    "another kind": lambda peer, command: b"*1\r\n*0\r\n",
    "silent": lambda peer, command: None,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("kind", [EntraRedisCache, EntraRedisClusterCache])
def test_no_cycles(
    monkeypatch: pytest.MonkeyPatch, kind: type[EntraRedisCache], how: str, fault: str
) -> None:
    """Whatever goes wrong, and however often it is tried again."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)

    async def main(found: list[Any] | None = None) -> None:
        def answer(peer: Peer, command: list[bytes]) -> bytes | None:
            if command[0] == b"CLUSTER":
                return SLOTS % host.port
            if command[0] == b"CLIENT":
                return b"+OK\r\n"
            return FAULTS[fault](peer, command)

        async with PeerHost(answer) as host:
            silent = fault == "silent"
            options = {"identity": None, "socket_timeout": 0.05 if silent else 5}
            cache = kind(f"redis://127.0.0.1:{host.port}", {"OPTIONS": options})
            for operation in PROBES if kind is EntraRedisCache else ():
                await asyncio.to_thread(_fail, operation, cache)
            for operation in OPERATIONS:
                if how == "async":
                    with suppress(redis.RedisError, ValueError):
                        await operation(_Twin(cache))
                else:
                    await asyncio.to_thread(_fail, operation, cache)

    # A discovery may still be under way. What it holds is not the next test's.
    with all_ended():
        with uncollected() as found:
            asyncio.run(main())
        registry.reset()
    assert errors_in(found) == []


def _fail(operation: Callable[[Any], Any], cache: EntraRedisCache) -> None:
    with suppress(redis.RedisError, ValueError):
        operation(cache)


class _Twin:
    """A cache's asynchronous methods under the names of the others."""

    def __init__(self, cache: EntraRedisCache) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, f"a{name}")


def _joined() -> bool:
    return any(one.waiters for one in computations.under_way().values())


class _UncopiedError(Exception):
    """One that is raised as it is in all who wait for a computation."""

    def __init__(self) -> None:
        super().__init__("it is made of no arguments")


@pytest.mark.parametrize("kind", [LookupError, StopIteration, _UncopiedError])
def test_no_cycles_of_a_computation(kind: type[Exception]) -> None:
    """An error of the caller's own function, alone and with one that waits for it."""

    def fail() -> None:
        raise kind

    def fail_once_joined() -> None:
        wait_until(_joined)
        raise kind

    def get(cache: EntraRedisCache, default: Any) -> None:
        with suppress(kind):
            cache.get_or_set("key", default)

    async def main() -> None:
        async with PeerHost(lambda peer, command: b"$-1\r\n") as host:
            cache = EntraRedisCache(
                f"redis://127.0.0.1:{host.port}", {"OPTIONS": {"identity": None}}
            )
            await asyncio.to_thread(get, cache, fail)
            both = (asyncio.to_thread(get, cache, fail_once_joined) for _ in "ab")
            await asyncio.gather(*both)

    with all_ended():
        with uncollected() as found:
            asyncio.run(main())
        registry.reset()
    assert errors_in(found) == []


@pytest.mark.parametrize("kind", [LookupError, _UncopiedError])
def test_no_cycles_of_an_asynchronous_computation(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """The same, with tasks."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)

    async def fail_once_joined() -> None:
        while not _joined():
            await asyncio.sleep(0.001)
        raise kind

    async def get(cache: EntraRedisCache) -> None:
        with suppress(kind):
            await cache.aget_or_set("key", fail_once_joined)

    async def main() -> None:
        async with PeerHost(lambda peer, command: b"$-1\r\n") as host:
            cache = EntraRedisCache(
                f"redis://127.0.0.1:{host.port}", {"OPTIONS": {"identity": None}}
            )
            await asyncio.gather(get(cache), get(cache))

    with all_ended():
        with uncollected() as found:
            asyncio.run(main())
        registry.reset()
    assert errors_in(found) == []


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_no_cycles_of_what_is_hidden() -> None:
    """A greenlet's kill, or a signal handler's error, while a connection is made."""
    with uncollected() as found, suppress(KeyboardInterrupt):
        hidden(_interrupt)
    assert errors_in(found) == []


def test_no_cycles_without_a_server() -> None:
    """Nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    cache = EntraRedisCache(
        f"redis://127.0.0.1:{port}", {"OPTIONS": {"identity": None}}
    )
    with uncollected() as found:
        for operation in OPERATIONS:
            _fail(operation, cache)
    registry.reset()
    assert errors_in(found) == []
