"""Replies of the wrong kind: they are none, on whichever way they come."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.commands.replies import (
    done,
    done_or_integer,
    integer,
    scanned,
    sum_or_nothing,
    value_of,
    values_of,
)
from django_entra_redis.connections import event_loops, registry
from django_entra_redis.exceptions import InvalidReplyError, UncertainResultError
from tests.support.peers import PeerHost


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (integer, [0, -5], [None, b"5", [], True, "5", 5.0]),
        (value_of, [None, b""], [0, "text", [], {}, bytearray()]),
        (done, [None, b"OK"], [b"QUEUED", 1, [], b""]),
        (done_or_integer, [None, b"OK", 1], [b"1", []]),
        (sum_or_nothing, [None, 7, b"-7"], [b"1_0", b"", b" 7", [], b"7" * 21]),
        (values_of(2), [[None, b""]], [[b""], [b"", 1], None, b"ab", 2, (b"", b"")]),
        (
            scanned,
            [[b"0", []], [b"18446744073709551615", [b"key"]]],
            [
                [b"0"],
                [0, []],
                [b"x", []],
                [b"-1", []],
                [b"", []],
                [b"0", None],
                [b"0", [1]],
                [b"0", b"key"],
                [b"1" * 21, []],
                None,
            ],
        ),
    ],
)
def test_kinds(parse: Callable[[Any], Any], good: list[Any], bad: list[Any]) -> None:
    """What a command may be answered with, and nothing else."""
    for reply in good:
        parse(reply)
    for reply in bad:
        with pytest.raises(InvalidReplyError, match="should have answered"):
            parse(reply)


#: Each operation, its answer as from an empty cache, and a reply of another kind.
OPERATIONS: dict[str, tuple[Callable[[Any], Any], Any, bytes]] = {
    "get": (lambda cache: cache.get("key"), None, b":1\r\n"),
    "set": (lambda cache: cache.set("key", 1), None, b"*0\r\n"),
    "add": (lambda cache: cache.add("key", 1), False, b":1\r\n"),
    "touch": (lambda cache: cache.touch("key", 9), False, b"+OK\r\n"),
    "delete": (lambda cache: cache.delete("key"), False, b"*1\r\n:1\r\n"),
    "get_many": (lambda cache: cache.get_many(["a", "b"]), {}, b"*1\r\n$-1\r\n"),
    "set_many": (lambda cache: cache.set_many({"a": 1}), ["a"], b"*0\r\n"),
    "delete_many": (lambda cache: cache.delete_many(["a"]), None, b"+OK\r\n"),
    "has_key": (lambda cache: cache.has_key("key"), False, b"$1\r\n1\r\n"),
    "ttl": (lambda cache: cache.ttl("key"), 0, b"$1\r\nx\r\n"),
    "keys": (lambda cache: cache.keys("*"), [], b"*2\r\n:0\r\n*0\r\n"),
    "clear": (lambda cache: cache.clear(), False, b":1\r\n"),
    # No reply at all.
    "garbled": (lambda cache: cache.get("key"), None, b"$x\r\n0123456789\r\n"),
    "redirect": (lambda cache: cache.get("key"), None, b"-MOVED x y:z\r\n"),
    "out of range": (lambda cache: cache.get("key"), None, b"-MOVED 16384 h:1\r\n"),
    "pushed": (lambda cache: cache.get_many(["a"]), {}, b"%0\r\n"),
}


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_wrong_replies(monkeypatch: pytest.MonkeyPatch, how: str, name: str) -> None:
    """They are connection errors: repeated elsewhere, ignored where those are."""
    operation, empty, answer = OPERATIONS[name]
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)

    async def main() -> None:
        async with PeerHost(lambda peer, command: _answer(command, answer)) as host:
            url = f"redis://127.0.0.1:{host.port}"
            options: dict[str, Any] = {"identity": None}
            cache = EntraRedisCache(url, {"OPTIONS": options})
            once = name == "add"
            kind = UncertainResultError if once else redis.ConnectionError
            with pytest.raises(kind):
                await _carry_out(operation, cache, how)
            # Each on a connection of its own, since the last one is closed.
            words = _words(host.commands)
            assert len(words) == (1 if once else 4)
            assert sum(bool(_words(peer.commands)) for peer in host.peers) == len(words)
            forgiving = EntraRedisCache(
                url, {"OPTIONS": {**options, "ignore_exceptions": True}}
            )
            assert await _carry_out(operation, forgiving, how) == empty
            registry.reset()

    asyncio.run(main())


_GREETING = (b"CLIENT", b"HELLO")
#: A server that took long is asked once more, whether it answers at all.
_BESIDE = (*_GREETING, b"PING")


def _words(commands: list[list[bytes]]) -> list[list[bytes]]:
    return [command for command in commands if command[0] not in _BESIDE]


def _answer(command: list[bytes], answer: bytes) -> bytes:
    return b"+OK\r\n" if command[0] in _GREETING else answer


async def _carry_out(
    operation: Callable[[Any], Any], cache: EntraRedisCache, how: str
) -> Any:
    """Carry out an operation in a thread, or its asynchronous twin."""
    if how == "sync":
        return await asyncio.to_thread(operation, cache)

    class Twin:
        def __getattr__(self, name: str) -> Any:
            return getattr(cache, f"a{name}")

    return await operation(Twin())
