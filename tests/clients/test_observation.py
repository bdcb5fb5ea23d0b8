"""Tools that observe redis-py: each request goes through what they put there."""

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.client
import redis.asyncio.cluster
import redis.client
import redis.cluster
from asgiref.sync import sync_to_async

from django_entra_redis.cache import EntraRedisCache, EntraRedisClusterCache
from django_entra_redis.clients.observation import INSTRUMENTATION, commands_of, is_own
from django_entra_redis.commands.cluster import ClusterOperations
from django_entra_redis.commands.packing import pack_all, pack_gets, pack_set
from django_entra_redis.commands.request import Request
from django_entra_redis.commands.server_facts import ServerFacts
from django_entra_redis.connections.event_loops import FIRST_OPERATIONS
from django_entra_redis.serializers import PickleSerializer
from emulator import Emulator
from tests.support.caches import Database, let_in, make_cache, wait_until

#: What tools replace: the class, its method.
REPLACED: dict[str, tuple[Any, str]] = {
    "command": (redis.Redis, "execute_command"),
    "pipeline": (redis.client.Pipeline, "execute"),
    "async command": (redis.asyncio.Redis, "execute_command"),
    "async pipeline": (redis.asyncio.client.Pipeline, "execute"),
    "cluster command": (redis.cluster.RedisCluster, "execute_command"),
    "cluster pipeline": (redis.cluster.ClusterPipeline, "execute"),
    "async cluster command": (redis.asyncio.cluster.RedisCluster, "execute_command"),
    "async cluster pipeline": (redis.asyncio.cluster.ClusterPipeline, "execute"),
}


class Tool:
    """Notes what goes through, as tracers do it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.addresses: set[Any] = set()
        self._own = {
            kind: vars(owner)[name] for kind, (owner, name) in REPLACED.items()
        }

    def instrument(self) -> None:
        """Replace the functions."""
        for kind, (owner, name) in REPLACED.items():
            setattr(owner, name, self._wrap(kind, self._own[kind]))

    def uninstrument(self) -> None:
        """Take that back."""
        for kind, (owner, name) in REPLACED.items():
            setattr(owner, name, self._own[kind])

    def _wrap(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(client: Any, *args: Any, **kwargs: Any) -> Any:
            noted = [
                queued(command) for command in getattr(client, "command_stack", ())
            ]
            self.seen.append((kind, noted or args))
            options = client.connection_pool.connection_kwargs
            self.addresses.add((options["host"], options["port"]))
            return function(client, *args, **kwargs)

        return wrapped

    def take(self) -> list[tuple[str, Any]]:
        """Return what has been seen, and forget it."""
        seen, self.seen = self.seen, []
        return seen


def queued(command: Any) -> Any:
    """Return the words of a command that is queued in a pipeline."""
    return getattr(command, "args", None) or command[0]


@pytest.fixture
def tool() -> Iterator[Tool]:
    """Give a tool that has replaced nothing yet."""
    made = Tool()
    yield made
    made.uninstrument()


@pytest.fixture(scope="module", autouse=True)
def thread() -> None:
    """Have the one thread begin that all synchronous code of Django goes through."""
    asyncio.run(sync_to_async(int)())


#: What each operation of a cache is seen as; the cluster's is a name longer.
OPERATIONS: list[tuple[str, tuple[Any, ...], str, Any]] = [
    ("set", ("a", "x", 300), "command", ("SET", ":1:a")),
    ("get", ("a",), "command", ("GET", ":1:a")),
    ("add", ("a", 1, 300), "command", ("SET", ":1:a")),
    ("touch", ("a", 300), "command", ("EXPIRE", ":1:a")),
    ("has_key", ("a",), "command", ("EXISTS", ":1:a")),
    ("delete", ("a",), "command", ("DEL", ":1:a")),
    ("set_many", ({"a": 1, "b": 2},), "pipeline", [("SET", ":1:a"), ("SET", ":1:b")]),
    ("incr", ("a",), "command", ("EVALSHA",)),
    ("clear", (), "command", ("FLUSHDB",)),
]


def begins(seen: Any, expected: Any) -> bool:
    """Whether what was seen is what was expected, with more words after it."""
    if isinstance(expected, list):
        return len(seen) == len(expected) and all(map(begins, seen, expected))
    return bool(tuple(seen[: len(expected)]) == expected)


def answer(cache: Any, name: str, args: tuple[Any, ...]) -> Any:
    """Return what an operation answers."""
    return getattr(cache, name)(*args)


def test_each_operation(database: Database, tool: Tool) -> None:
    """It is one call, with its words, and answers as without a tool."""
    before = [answer(database.cache(), name, args) for name, args, _, _ in OPERATIONS]
    assert tool.take() == []
    tool.instrument()
    cache = database.cache()
    for (name, args, kind, expected), reply in zip(OPERATIONS, before, strict=True):
        assert answer(cache, name, args) == reply
        ((noted, words),) = tool.take()
        assert noted == kind
        assert begins(words, expected)
    assert tool.addresses == {database.address}


@pytest.mark.parametrize("first", [True, False])
def test_each_operation_in_a_loop(database: Database, tool: Tool, first: bool) -> None:
    """The same in an event loop, also while it works through threads."""
    cache = database.cache()
    before = [answer(cache, name, args) for name, args, _, _ in OPERATIONS]

    async def main() -> None:
        for _ in range(0 if first else FIRST_OPERATIONS + 1):
            await cache.aget("x")
        tool.instrument()
        for (name, args, kind, expected), reply in zip(OPERATIONS, before, strict=True):
            assert await answer(cache, f"a{name}", args) == reply
            ((noted, words),) = tool.take()
            assert noted == f"async {kind}"
            assert begins(words, expected)

    asyncio.run(main())


def test_each_operation_on_a_cluster(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, tool: Tool
) -> None:
    """The same on a cluster, with what tools replace in its clients."""
    operations = [
        *OPERATIONS,
        ("get_many", (["a", "b"],), "pipeline", [("GET", ":1:a"), ("GET", ":1:b")]),
        ("delete_many", (["a", "b"],), "pipeline", [("DEL", ":1:a"), ("DEL", ":1:b")]),
    ]
    cache = EntraRedisClusterCache(
        cluster.redis_url, {"OPTIONS": {"ssl_ca_certs": str(cluster.ca_file)}}
    )

    async def main() -> None:
        for _ in range(FIRST_OPERATIONS + 1):
            await cache.aget("x")
        tool.instrument()
        for name, args, kind, expected in operations:
            reply = await answer(cache, f"a{name}", args)
            ((noted, words),) = tool.take()
            assert (noted, reply) == (f"async cluster {kind}", before[name])
            assert begins(words, expected)

    with let_in(cluster, monkeypatch):
        before = {name: answer(cache, name, args) for name, args, _, _ in operations}
        tool.instrument()
        for name, args, kind, expected in operations:
            assert answer(cache, name, args) == before[name]
            ((noted, words),) = tool.take()
            assert noted == f"cluster {kind}"
            assert begins(words, expected)
        tool.uninstrument()
        asyncio.run(main())


def test_before_and_after(database: Database, tool: Tool) -> None:
    """A tool may come before the cache is made and after it, and go."""
    tool.instrument()
    cache = database.cache()
    cache.set("a", 1)
    assert len(tool.take()) == 1
    tool.uninstrument()
    cache.get("a")
    assert tool.take() == []
    tool.instrument()
    cache.get("a")
    assert len(tool.take()) == 1


def test_errors_go_through(database: Database, tool: Tool) -> None:
    """A tool sees the errors that the cache raises, once, after all retries."""
    tool.instrument()
    cache: Any = make_cache("redis://127.0.0.1:1", identity=None)
    with pytest.raises(redis.ConnectionError):
        cache.get("a")
    with pytest.raises(redis.ConnectionError):
        cache.set_many({"a": 1})
    assert [kind for kind, _ in tool.take()] == ["command", "pipeline"]
    wrong = database.cache()
    wrong.get_client().lpush(":1:list", "x")
    tool.take()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        wrong.get("list")
    assert len(tool.take()) == 1


def test_replicas(database: Database, tool: Tool) -> None:
    """A tool is told the server that is asked."""
    tool.instrument()
    cache: Any = make_cache([database.url, "redis://127.0.0.1:1"], identity=None)
    cache.set("a", 1)
    with pytest.raises(redis.ConnectionError):
        cache.get("a")
    assert tool.addresses == {database.address, ("127.0.0.1", 1)}


def test_copies_are_dropped(database: Database, tool: Tool) -> None:
    """What a tool sees changes copies in this process as ever, and so do reads."""
    cache: Any = database.cache(client_side_cache=True)

    def kept() -> bool:
        """Read the key; return whether Redis was not asked."""
        tool.take()
        return cache.get("copied") is not None and not tool.take()

    async def main() -> None:
        await cache.aset("copied", 3)
        assert await cache.aget("copied") == 3
        assert tool.seen[0][0] == "async command"
        assert [words[:2] for _, words in tool.take()] == [
            ("SET", ":1:copied"),
            ("GET", ":1:copied"),
        ]

    cache.set("copied", 1)
    wait_until(kept)
    tool.instrument()
    assert kept()
    cache.set("copied", 2)
    assert cache.get("copied") == 2
    wait_until(kept)
    assert cache.get_many(["copied", "other"]) == {"copied": 2}
    assert [words for _, words in tool.take()] == [("GET", ":1:other")]
    asyncio.run(main())
    wait_until(kept)


def test_outages_are_covered_up(tool: Tool) -> None:
    """With ``ignore_exceptions`` a tool sees the error, and the cache answers."""
    tool.instrument()
    cache = make_cache("redis://127.0.0.1:1", identity=None, ignore_exceptions=True)
    assert cache.get("a", "default") == "default"
    assert len(tool.take()) == 1


def test_a_tool_that_answers_itself(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a function returns is what the cache gets, as with redis-py."""
    monkeypatch.setattr(redis.Redis, "execute_command", lambda *args, **kwargs: b"7")
    cache: EntraRedisCache = database.cache()
    assert cache.get("a") == 7


def test_commands_as_callers_give_them() -> None:
    """Names and keys are text; what is no text stays as it is."""
    packed = Request(pack_set("a", b"\xff", 5) + pack_all([("GET", b"\xff")]), 2)
    assert commands_of(packed) == [("SET", "a", b"\xff", b"EX", b"5"), ("GET", b"\xff")]
    assert commands_of(Request(b"*1\r\n$4\r\nPING\r\n")) == [("PING",)]
    assert commands_of(Request(("DEL", "a"))) == [("DEL", "a")]
    operations = ClusterOperations(PickleSerializer(), ServerFacts())
    several = operations.each_key(pack_gets, ["a", "b"])
    assert commands_of(several) == [("GET", "a"), ("GET", "b")]


def test_own_functions_are_known() -> None:
    """A test double is a replacement, whatever it says that it is."""
    own = vars(redis.Redis)["execute_command"]
    double = SimpleNamespace(__globals__=own.__globals__)
    assert is_own(own)
    assert not is_own(double)
    assert not is_own(lambda: None)
    for namespace in ({"__name__": None}, {}):  # as templates of decorators leave them
        made: dict[str, Any] = dict(namespace)
        exec("def wrapper(): pass", made)
        assert not is_own(made["wrapper"])
    assert INSTRUMENTATION.idle()
