"""A reply that drips in: it has a deadline as a whole, in threads and in loops."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.connections import deadlines, event_loops, registry
from django_entra_redis.connections.deadlines import RATE, Deadline, allowance
from tests.support.peers import Peer, PeerHost

#: Seconds of a timeout that a test waits for, and of one that it does not.
SHORT, LONG = 0.3, 30.0
#: What a server sends a bit at a time; it is as slow as a test lets it be.
VALUE = b"$9\r\n\x80\x05\x8c\x01x\x94.  \r\n"


def test_deadline() -> None:
    """It is the timeout, and more for what has come; then there is no time left."""
    now = [100.0]
    deadline = Deadline(5.0, clock=lambda: now[0])
    assert deadline.left(0) == 5.0
    now[0] += 4.0
    assert deadline.left(1) == pytest.approx(1.0, abs=0.001)
    assert deadline.left(RATE) == pytest.approx(2.0, abs=0.001)
    now[0] += 2.1
    with pytest.raises(TimeoutError):
        deadline.left(1)
    assert allowance(5.0, 3 * RATE) == 8.0


class Drip:
    """A server that answers a byte at a time.

    Parameters:
        piece: what it sends, again and again.
        pause: seconds between two of them.
    """

    def __init__(self, piece: bytes, pause: float) -> None:
        self.piece = piece
        self.pause = pause
        self.peers: list[Peer] = []

    def __call__(self, peer: Peer, command: list[bytes]) -> bytes | None:
        """Begin to answer; what a connection begins with is answered at once."""
        if command[0] in (b"CLIENT", b"AUTH", b"SELECT"):
            return b"+OK\r\n"
        if peer not in self.peers:
            self.peers.append(peer)
            self.drip(peer)
        return None

    def drip(self, peer: Peer) -> None:
        """Send a piece, and more of them later."""
        if not peer.transport.is_closing():
            peer.transport.write(self.piece)
            asyncio.get_running_loop().call_later(self.pause, self.drip, peer)


def operate(
    answer: Callable[[Peer, list[bytes]], bytes | None],
    how: str,
    name: str,
    *args: Any,
    timeout: float | None = SHORT,
    **options: Any,
) -> Any:
    """Carry out an operation at a server, in a thread or in a loop."""

    async def main() -> Any:
        async with PeerHost(answer) as host:
            cache = EntraRedisCache(
                f"redis://127.0.0.1:{host.port}",
                {"OPTIONS": {"identity": None, "socket_timeout": timeout, **options}},
            )
            try:
                if how == "async":
                    return await getattr(cache, f"a{name}")(*args)
                return await asyncio.to_thread(getattr(cache, name), *args)
            finally:
                registry.reset()

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have loops connect at once."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)


ways = pytest.mark.parametrize("how", ["sync", "async"])


@ways
@pytest.mark.parametrize(
    ("piece", "name", "args"),
    [
        # A status, a value and an array that do not come to an end, and replies of
        # several commands of which each comes in time, but not all.
        (b"+", "get", ("key",)),
        (b"$", "get", ("key",)),
        (b"*1\r\n", "get_many", (["a", "b"],)),
        (b"+OK\r\n", "set_many", ({str(number): 1 for number in range(99)},)),
    ],
)
def test_a_byte_now_and_then(how: str, piece: bytes, name: str, args: Any) -> None:
    """Each comes within the timeout; the reply does not."""
    drip = Drip(piece, SHORT / 6)
    with pytest.raises(redis.TimeoutError, match="Timeout reading"):
        operate(drip, how, name, *args)
    assert drip.peers


@ways
def test_while_connecting(how: str) -> None:
    """What a connection begins with has a deadline, too."""

    def answer(peer: Peer, command: list[bytes]) -> None:
        drip.drip(peer)

    drip = Drip(b"+", SHORT / 6)
    with pytest.raises(redis.TimeoutError):
        operate(answer, how, "get", "key", password="secret", retry_on_timeout=False)


@ways
def test_a_large_value_gets_time(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """In proportion to what comes of it."""
    monkeypatch.setattr(deadlines, "RATE", 20)
    value = b"$%d\r\n%b\r\n" % (80, b"\x80\x05\x8cK" + b"x" * 75 + b".")
    sent = [value[at : at + 6] for at in range(0, len(value), 6)]

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] != b"GET":
            return b"+OK\r\n"
        loop = asyncio.get_running_loop()
        for number, piece in enumerate(sent):
            loop.call_later(number * SHORT / 6, peer.transport.write, piece)
        return None

    assert operate(answer, how, "get", "key") == "x" * 75


def test_no_bound() -> None:
    """Where there is no timeout there is no deadline."""
    answered = threading.Event()

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] != b"GET":
            return b"+OK\r\n"
        loop = asyncio.get_running_loop()
        for number in range(len(VALUE)):
            piece = VALUE[number : number + 1]
            loop.call_later(number * 0.01, peer.transport.write, piece)
        loop.call_later(0.01 * len(VALUE), answered.set)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadlines, "RATE", 10**9)
        assert operate(answer, "sync", "get", "key", timeout=None) == "x"


def test_pubsub_waits() -> None:
    """Messages are waited for one by one, however long that takes."""
    message = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n"
    subscribed = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] != b"SUBSCRIBE":
            return b"+OK\r\n"
        loop = asyncio.get_running_loop()
        for number in range(1, 9):
            loop.call_later(number * SHORT / 3, peer.transport.write, message)
        return subscribed

    def listen(cache: EntraRedisCache) -> int:
        with cache.get_client().pubsub() as pubsub:
            pubsub.subscribe("c")
            found = 0
            while found < 9:
                found += bool(pubsub.get_message(timeout=LONG))
            return found

    async def main() -> int:
        async with PeerHost(answer) as host:
            cache = EntraRedisCache(
                f"redis://127.0.0.1:{host.port}",
                {"OPTIONS": {"identity": None, "socket_timeout": SHORT}},
            )
            try:
                return await asyncio.to_thread(listen, cache)
            finally:
                registry.reset()

    assert asyncio.run(main()) == 9
