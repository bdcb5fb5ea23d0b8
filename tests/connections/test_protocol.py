"""A connection that many tasks share: each gets its own replies, whatever happens."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from django_entra_redis.commands.packing import pack_all, pack_get
from django_entra_redis.connections import protocol as protocols
from django_entra_redis.connections.deadlines import RATE
from django_entra_redis.connections.protocol import (
    PIECE,
    ConnectionLostError,
    RedisProtocol,
    ReplyTimeoutError,
)
from django_entra_redis.exceptions import ConnectionPoolTimeout


class Clockwork(asyncio.SelectorEventLoop):
    """A loop whose clock stands still until it is put forward."""

    now = 0.0

    def time(self) -> float:
        """Return what the clock shows."""
        return self.now

    async def forward(self, seconds: float) -> None:
        """Put the clock forward, and have happen what is due."""
        self.now += seconds
        await turns()


class Transport:
    """Takes what a protocol writes; is full when told to be."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = 0
        self.full_after = 10**9
        self.extra: dict[str, Any] = {}
        self.protocol: RedisProtocol | None = None

    def get_extra_info(self, name: str) -> Any:
        """Have no socket, unless it is given one."""
        return self.extra.get(name)

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes; hold the protocol back when there are too many."""
        self.written.append(bytes(data))
        if self.protocol is not None and len(self.written) >= self.full_after:
            self.protocol.pause_writing()

    def abort(self) -> None:
        """Close."""
        self.aborted += 1


class Wire:
    """A protocol, its transport, and the loop that they are in."""

    def __init__(self, loop: Clockwork, **options: Any) -> None:
        self.loop = loop
        self.protocol = RedisProtocol(loop, "redis:6379", **options)
        self.transport = Transport()
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)

    @property
    def written(self) -> bytes:
        """All that was written."""
        return b"".join(self.transport.written)


async def turns(count: int = 5) -> None:
    """Let the loop have some turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def on_wire(test: Callable[[Wire], Awaitable[None]], **options: Any) -> None:
    """Run a test with a wire; nothing may be left to be complained about."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clockwork)
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await test(Wire(loop, **options))
        await turns()

    with asyncio.Runner(loop_factory=Clockwork) as runner:
        runner.run(main())
    assert complaints == []


def test_commands_gather() -> None:
    """What is submitted in one turn goes out in one piece, answered in order."""

    async def test(wire: Wire) -> None:
        futures = [wire.protocol.submit(pack_get(f"key-{n}")) for n in range(3)]
        await turns()
        assert wire.transport.written == [
            pack_all([("GET", f"key-{n}") for n in range(3)])
        ]
        wire.protocol.data_received(b"$1\r\n0\r\n$1\r\n1\r\n$1")
        wire.protocol.data_received(b"\r\n2\r\n")
        assert await asyncio.gather(*futures) == [b"0", b"1", b"2"]

    on_wire(test)


def test_what_the_server_says_of_a_large_value() -> None:
    """It is read before more of the value is sent, and as the transport gives up."""

    async def test(wire: Wire) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            wire.transport.extra["socket"] = ours
            future = wire.protocol.submit(b"x" * (3 * PIECE))
            await turns(1)
            theirs.sendall(b"-ERR too large\r\n")
            await turns()
            assert len(wire.written) == PIECE
            assert not future.done()
            wire.protocol.connection_lost(OSError("reset"))
            assert str(await future) == "too large"

    on_wire(test)


@pytest.mark.parametrize("waits", [True, False])
def test_a_server_that_refuses_the_rest(waits: bool) -> None:
    """What it says stands for all commands, if there is still somebody to be told."""

    async def test(wire: Wire) -> None:
        future = wire.protocol.submit(b"two", 2)
        await turns()
        wire.protocol.data_received(b"-ERR too large\r\n")
        if not waits:
            future.cancel()
        assert not wire.protocol.eof_received()
        if waits:
            assert [*map(str, await future)] == ["too large"] * 2
        assert wire.protocol.closed

    on_wire(test)


@pytest.mark.parametrize("extra", [{"sslcontext": True}, {}])
def test_what_can_not_be_read_any_more(extra: dict[str, Any]) -> None:
    """Behind TLS, or of a socket that is reset, nothing is: the connection is lost."""

    async def test(wire: Wire) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            wire.transport.extra = {"socket": ours, **extra}
            future = wire.protocol.submit(b"x")
            await turns(1)
            ours.setblocking(False)
            wire.protocol.connection_lost(OSError("reset"))
            with pytest.raises(ConnectionLostError, match="reset"):
                await future

    on_wire(test)


def test_several_commands_of_one_task() -> None:
    """Their replies are a list, in which an error stands in its place."""

    async def test(wire: Wire) -> None:
        many = wire.protocol.submit(b"three", 3)
        one = wire.protocol.submit(b"one", 1)
        plain = wire.protocol.submit(b"plain")
        await turns()
        wire.protocol.data_received(b"+OK\r\n-ERR no\r\n")
        assert not many.done()
        wire.protocol.data_received(b"*1\r\n:3\r\n:4\r\n-ERR neither\r\n")
        first, error, last = await many
        assert (first, str(error), last) == (b"OK", "no", [3])
        assert await one == [4]
        assert str(await plain) == "neither"

    on_wire(test)


def test_cancelled_tasks_leave_their_replies() -> None:
    """What was sent for one is answered and dropped; what was not is never sent."""

    async def test(wire: Wire) -> None:
        sent = [wire.protocol.submit(pack_get(f"key-{n}")) for n in range(3)]
        await turns()
        sent[1].cancel()
        late = [wire.protocol.submit(pack_get(f"late-{n}")) for n in range(2)]
        late[0].cancel()
        await turns()
        assert b"late-0" not in wire.written
        assert b"late-1" in wire.written
        wire.protocol.data_received(b"$1\r\n0\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\nl\r\n")
        assert [await sent[0], await sent[2], await late[1]] == [b"0", b"2", b"l"]

    on_wire(test)


def test_all_cancelled() -> None:
    """Then nothing is sent."""

    async def test(wire: Wire) -> None:
        wire.protocol.submit(b"command").cancel()
        await turns()
        assert wire.transport.written == []

    on_wire(test)


def test_large_values_go_a_piece_at_a_time() -> None:
    """The loop has its turns in between, and what came later follows."""

    async def test(wire: Wire) -> None:
        small, large = (
            wire.protocol.submit(b"small"),
            wire.protocol.submit(b"x" * PIECE * 3),
        )
        last = wire.protocol.submit(b"last")
        sizes = []
        for _ in range(10):
            await asyncio.sleep(0)
            sizes.append(len(wire.transport.written))
        assert sorted(set(sizes)) == [1, 2, 3, 4, 5]
        assert max(map(len, wire.transport.written)) == PIECE
        assert wire.written == b"small" + b"x" * PIECE * 3 + b"last"
        wire.protocol.data_received(b":1\r\n:2\r\n:3\r\n")
        assert [await small, await large, await last] == [1, 2, 3]

    on_wire(test)


def test_server_that_does_not_keep_up() -> None:
    """Nothing more is handed to the transport until it has room."""

    async def test(wire: Wire) -> None:
        wire.transport.full_after = 2
        wire.protocol.submit(b"x" * PIECE * 4)
        other = wire.protocol.submit(b"other")
        await turns(10)
        assert len(wire.transport.written) == 2
        wire.transport.full_after = 10**9
        wire.protocol.resume_writing()
        await turns(10)
        assert wire.written == b"x" * PIECE * 4 + b"other"
        wire.protocol.data_received(b"+OK\r\n+OK\r\n")
        assert await other == b"OK"

    on_wire(test)


def test_commands_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them wait for their turn, first come, first served."""
    monkeypatch.setattr(protocols, "MAX_IN_FLIGHT", 3)

    async def test(wire: Wire) -> None:
        futures = [wire.protocol.submit(b"%d," % n) for n in range(6)]
        await turns()
        assert wire.written == b"0,1,2,"
        futures[3].cancel()
        wire.protocol.data_received(b":0\r\n:1\r\n")
        await turns()
        assert wire.written == b"0,1,2,4,5,"
        wire.protocol.data_received(b":2\r\n:4\r\n:5\r\n")
        done = [futures[n] for n in (0, 1, 2, 4, 5)]
        assert await asyncio.gather(*done) == [0, 1, 2, 4, 5]
        await wire.loop.forward(60)

    on_wire(test)


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited too long is told, and the command is not sent any more."""
    monkeypatch.setattr(protocols, "MAX_IN_FLIGHT", 2)

    async def test(wire: Wire) -> None:
        futures = [wire.protocol.submit(b"%d," % n) for n in range(3)]
        await turns()
        await wire.loop.forward(3)
        with pytest.raises(ConnectionPoolTimeout, match=r"within 2 s .*pool_timeout"):
            await futures[2]
        wire.protocol.data_received(b":0\r\n:1\r\n")
        assert await asyncio.gather(*futures[:2]) == [0, 1]
        await turns()
        assert wire.written == b"0,1,"

    on_wire(test, wait_timeout=2.0)


# -- silence


def test_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up; what it may have got is told from what it has not."""
    monkeypatch.setattr(protocols, "MAX_IN_FLIGHT", 1)

    async def test(wire: Wire) -> None:
        sent, waiting = wire.protocol.submit(b"sent"), wire.protocol.submit(b"waiting")
        await turns()
        await wire.loop.forward(5)
        with pytest.raises(ReplyTimeoutError, match=r"nothing within 5 s") as silent:
            await sent
        with pytest.raises(ConnectionLostError) as broken:
            await waiting
        assert silent.value.sent
        assert not broken.value.sent
        assert wire.protocol.closed
        assert wire.transport.aborted == 1

    on_wire(test, wait_timeout=60.0)


def test_silence_is_counted_from_the_question() -> None:
    """A server has all its time for a command that follows a long pause."""

    async def test(wire: Wire) -> None:
        first = wire.protocol.submit(b"first")
        await turns()
        wire.protocol.data_received(b"+OK\r\n")
        await first
        await wire.loop.forward(4)
        second = wire.protocol.submit(b"second")
        await turns()
        await wire.loop.forward(4)
        assert not wire.protocol.closed
        wire.protocol.data_received(b"+OK\r\n")
        await second
        await wire.loop.forward(60)
        assert not wire.protocol.closed
        third = wire.protocol.submit(b"third")
        await turns()
        await wire.loop.forward(5)
        with pytest.raises(ReplyTimeoutError):
            await third

    on_wire(test)


def test_slow_is_not_silent() -> None:
    """As long as bytes move, either way, nothing is given up."""

    async def test(wire: Wire) -> None:
        wire.transport.full_after = 1
        future = wire.protocol.submit(b"x" * PIECE * 4)
        for _ in range(4):
            await turns()
            await wire.loop.forward(4)
            wire.protocol.resume_writing()
        await wire.loop.forward(4)
        wire.protocol.data_received(b"$%d\r\n" % (3 * RATE))
        for _ in range(3):
            await wire.loop.forward(1)
            wire.protocol.data_received(b"x" * RATE)
        await wire.loop.forward(4)
        wire.protocol.data_received(b"\r\n")
        assert await future == b"x" * RATE * 3

    on_wire(test)


def test_a_reply_that_drips() -> None:
    """Bytes that come too slowly are no better than none."""

    async def test(wire: Wire) -> None:
        first, second = wire.protocol.submit(b"first"), wire.protocol.submit(b"second")
        await turns()
        wire.protocol.data_received(b"+OK\r\n")
        assert await first == b"OK"
        for _ in range(4):
            await wire.loop.forward(1.2)
            assert not wire.protocol.closed
            wire.protocol.data_received(b"+")
        await wire.loop.forward(1.2)
        with pytest.raises(ReplyTimeoutError, match="no whole reply"):
            await second

    on_wire(test)


def test_commands_do_not_hide_silence() -> None:
    """A server that answers none of them is given up, however many go out meanwhile."""

    async def test(wire: Wire) -> None:
        futures = []
        for _ in range(5):
            futures.append(wire.protocol.submit(b"command"))
            await turns()
            await wire.loop.forward(1)
        for future in futures:
            with pytest.raises(ReplyTimeoutError):
                await future

    on_wire(test)


def test_loop_that_stalls_before_it_sends() -> None:
    """The server has all its time for what it gets only afterwards."""

    async def test(wire: Wire) -> None:
        future = wire.protocol.submit(b"x" * (PIECE + 1))
        for _ in range(2):  # the pieces
            wire.loop.now += 6
            await asyncio.sleep(0)
        assert len(wire.written) == PIECE + 1
        await wire.loop.forward(4)
        wire.protocol.data_received(b"+OK\r\n")
        assert await future == b"OK"

    on_wire(test)


def test_loop_that_stalls_before_it_reads() -> None:
    """A reply that is there when it goes on counts, though the time is over."""

    async def test(wire: Wire) -> None:
        future = wire.protocol.submit(b"command")
        await turns()
        wire.loop.now += 6
        for _ in range(2):
            await asyncio.sleep(0)
        wire.protocol.data_received(b"+OK\r\n")
        assert await future == b"OK"

    on_wire(test)


def test_no_bound_on_silence() -> None:
    """``socket_timeout`` of None waits."""

    async def test(wire: Wire) -> None:
        future = wire.protocol.submit(b"command")
        await turns()
        await wire.loop.forward(10**6)
        wire.protocol.data_received(b"+OK\r\n")
        assert await future == b"OK"

    on_wire(test, timeout=None)


# -- signal handlers


class Interrupted(BaseException):
    """What a signal handler raises, such as for a task's time limit."""


@pytest.mark.parametrize("error", [Interrupted, MemoryError])
def test_interrupted_while_sending(error: type[BaseException]) -> None:
    """What counts as sent and was not gets no other command's reply."""

    async def test(wire: Wire) -> None:
        def interrupt(data: bytes) -> None:
            raise error

        first = wire.protocol.submit(pack_get("first"))
        wire.transport.write = interrupt  # type: ignore[assignment,method-assign]
        with pytest.raises(error):
            wire.protocol._flush()
        assert wire.transport.aborted == 1
        with pytest.raises(ConnectionLostError, match="interrupted") as broken:
            await first
        assert broken.value.sent
        with pytest.raises(ConnectionLostError):
            await wire.protocol.submit(pack_get("second"))

    on_wire(test)


def test_interrupted_while_reading() -> None:
    """A reply that nobody has got is not made up for by the next one."""

    async def test(wire: Wire) -> None:
        first = wire.protocol.submit(pack_get("first"))
        second = wire.protocol.submit(pack_get("second"))
        await turns()

        class Reader:
            def feed(self, data: bytes) -> None:
                raise Interrupted

        reader, wire.protocol._reader = wire.protocol._reader, Reader()  # type: ignore[assignment]
        with pytest.raises(Interrupted):
            wire.protocol.data_received(b"$5\r\nfirst\r\n")
        wire.protocol._reader = reader
        # What was already on its way.
        wire.protocol.data_received(b"$6\r\nsecond\r\n")
        for future in (first, second):
            with pytest.raises(ConnectionLostError, match="interrupted"):
                await future
        assert wire.transport.aborted == 1

    on_wire(test)


def test_interrupted_before_sending() -> None:
    """A loop that loses a callback leaves nobody waiting for ever."""

    async def test(wire: Wire) -> None:
        wire.protocol._flushing = True  # by a callback that never comes
        future = wire.protocol.submit(pack_get("key"))
        await turns()
        assert not wire.written
        await wire.loop.forward(5)
        with pytest.raises(ConnectionLostError, match="nothing within 5 s") as broken:
            await future
        assert not broken.value.sent

    on_wire(test)


# -- the end


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda protocol: protocol.eof_received(), "the server closed it"),
        (lambda protocol: protocol.connection_lost(None), "the server closed it"),
        (lambda protocol: protocol.connection_lost(OSError("reset")), "reset"),
        (lambda protocol: protocol.data_received(b"HTTP/1.1 400\r\n"), "Protocol"),
        (lambda protocol: protocol.abort("enough"), "enough"),
    ],
)
def test_lost(end: Callable[[RedisProtocol], object], said: str) -> None:
    """Whoever waits is told, and so is whoever comes later."""

    async def test(wire: Wire) -> None:
        sent = wire.protocol.submit(b"sent")
        cancelled = wire.protocol.submit(b"cancelled")
        await turns()
        cancelled.cancel()
        unsent = wire.protocol.submit(b"unsent")
        end(wire.protocol)
        wire.protocol.connection_lost(None)
        for future, reached in (
            (sent, True),
            (unsent, False),
            (wire.protocol.submit(b"late"), False),
        ):
            with pytest.raises(ConnectionLostError, match=said) as broken:
                await future
            assert broken.value.sent == reached
        await wire.loop.forward(60)
        assert wire.transport.aborted == 1
        assert b"unsent" not in wire.written

    on_wire(test)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"-ERR max number of clients reached\r\n", "max number of clients"),
        (b"+hello\r\n", "nothing had asked for"),
    ],
)
def test_unasked(data: bytes, said: str) -> None:
    """A reply that nothing asked for is nobody's: an error among them is the reason."""

    async def test(wire: Wire) -> None:
        wire.protocol.data_received(data)
        with pytest.raises(ConnectionLostError, match=said):
            await wire.protocol.submit(b"command")

    on_wire(test)


@pytest.mark.parametrize(
    "data",
    [
        # Of RESP 3, which has not been asked for.
        b">2\r\n+invalidate\r\n*0\r\n",
        b"*1\r\n>1\r\n:1\r\n",
        b"#t\r\n",
        b"%0\r\n",
        b"%1\r\n*0\r\n:1\r\n",
        # Redirections that lead nowhere.
        b"-MOVED\r\n",
        b"-MOVED x y:z\r\n",
        b"-ASK 1\r\n",
        b"*1\r\n-MOVED 1 host\r\n",
    ],
)
def test_what_is_no_reply(data: bytes) -> None:
    """It answers no command, and no other one after it either."""

    async def test(wire: Wire) -> None:
        first, second = wire.protocol.submit(b"first"), wire.protocol.submit(b"second")
        await turns()
        wire.protocol.data_received(data + b"$5\r\nvalue\r\n$5\r\nother\r\n")
        for future in (first, second):
            with pytest.raises(ConnectionLostError, match="is not a Redis reply"):
                await future
        assert wire.transport.aborted == 1

    on_wire(test)


def test_lost_while_a_large_value_is_on_its_way() -> None:
    """Then a part of it may be there."""

    async def test(wire: Wire) -> None:
        wire.transport.full_after = 1
        future = wire.protocol.submit(b"x" * PIECE * 2)
        await turns()
        wire.protocol.connection_lost(None)
        wire.protocol.resume_writing()
        with pytest.raises(ConnectionLostError) as broken:
            await future
        assert broken.value.sent
        assert len(wire.transport.written) == 1

    on_wire(test)


def test_finish() -> None:
    """What is under way is answered first."""

    async def test(wire: Wire) -> None:
        future = wire.protocol.submit(b"command")
        wire.protocol.finish()
        await turns()
        assert not wire.protocol.closed
        wire.protocol.data_received(b"+OK\r\n")
        assert await future == b"OK"
        assert wire.protocol.closed

    on_wire(test)


def test_finish_after_all_were_cancelled() -> None:
    """No reply has to come where nothing was sent."""

    async def test(wire: Wire) -> None:
        wire.protocol.submit(b"command").cancel()
        wire.protocol.finish()
        await turns()
        assert wire.transport.aborted == 1

    on_wire(test)


def test_finish_at_once() -> None:
    """Where nothing is under way there is nothing to wait for."""

    async def test(wire: Wire) -> None:
        wire.protocol.finish()
        assert wire.transport.aborted == 1

    on_wire(test)


def test_waiting_commands_are_told_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """They never reached the server, and are not told twice."""
    monkeypatch.setattr(protocols, "MAX_IN_FLIGHT", 1)

    async def test(wire: Wire) -> None:
        wire.protocol.submit(b"sent").cancel()
        futures = [wire.protocol.submit(b"command") for _ in range(3)]
        await turns()
        wire.protocol.abort()
        errors = await asyncio.gather(*futures, return_exceptions=True)
        told = [
            error.sent for error in errors if isinstance(error, ConnectionLostError)
        ]
        assert told == [True, False, False]
        await wire.loop.forward(60)

    on_wire(test)


def test_closed_before_it_is_up() -> None:
    """A transport that comes too late is closed."""

    async def test(wire: Wire) -> None:
        protocol = RedisProtocol(wire.loop, "redis:6379")
        protocol.abort()
        transport = Transport()
        protocol.connection_made(transport)
        assert transport.aborted == 1

    on_wire(test)
