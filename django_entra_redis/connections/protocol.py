"""One connection that many tasks share: commands in, replies out, in order.

Everything happens in the callbacks of an ``asyncio.Protocol``: there is no task that
the end of an event loop could destroy half-way.
"""

import asyncio
import os
import select
from collections import deque
from contextlib import suppress
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..commands.resp import INCOMPLETE, PLAIN, UNREADABLE, make_reader, verify
from ..exceptions import ConnectionPoolTimeout
from ..identity.redaction import one_line
from .deadlines import REPLY, allowance
from .refusals import read_error, refused_from

#: Commands that may be under way on one connection: a bound on memory, far above what a
#: loop usually has. Further ones wait.
MAX_IN_FLIGHT = 4096
#: Bytes that are sent in one iteration of the loop: a large value is encrypted and sent
#: in pieces, so that the loop's other tasks are not held up.
PIECE = 256 * 1024
#: Loop iterations to wait, after the timeout fired, for a reply that is already there:
#: some loops run timers before reads.
LATE_READS = 2


class ConnectionLostError(RedisConnectionError):
    """A connection broke.

    Parameters:
        message: the reason.
        sent: whether the command may have reached the server.
    """

    # The default is for pickle alone, which sets the attribute afterwards.
    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class ConnectionClosedError(ConnectionLostError):
    """This process has closed the connection: its event loop, or its node, is gone."""


class ReplyTimeoutError(RedisTimeoutError):
    """A server did not answer in time; the command may have reached it."""

    sent = True


class _Call:
    """Commands to send, the number of their replies, and the future for these."""

    __slots__ = (
        "count",
        "future",
        "mark",
        "moved",
        "packed",
        "replies",
        "sent_at",
        "timer",
    )

    def __init__(
        self,
        packed: bytes,
        count: int,
        mark: bytes | None,
        future: "asyncio.Future[Any]",
    ) -> None:
        self.packed = packed
        self.count = count
        self.mark = mark
        self.future = future
        self.replies: list[Any] = []
        self.timer: asyncio.TimerHandle | None = None
        # When it was sent, and what the connection had moved until then.
        self.sent_at, self.moved = 0.0, 0

    def fail(self, error: Exception) -> None:
        """Set an error, unless the waiting task has been cancelled."""
        if not self.future.done():
            self.future.set_exception(error)


class RedisProtocol(asyncio.Protocol):
    """One connection, as Redis' protocol has it: commands in, replies out.

    Parameters:
        loop: the event loop that it lives in.
        name: what to call the server in a message.
        timeout: seconds without a byte of a reply, nor of a command that it is still
            taking in, after which a server that owes a reply counts as lost; and how
            long a reply may take as a whole, with more time for what comes and goes
            meanwhile (:mod:`.deadlines`). ``None`` for no bound.
        wait_timeout: seconds that a command waits while too many are under way.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        *,
        timeout: float | None = 5.0,
        wait_timeout: float = 5.0,
    ) -> None:
        self.closed = False
        self._loop = loop
        self._name = name
        self._timeout = timeout
        self._wait_timeout = wait_timeout
        self._reason: object = "the server closed it"
        self._transport: Any = None
        self._reader = make_reader(read_error)
        # Commands that the transport has not got yet, and those to be answered; of the
        # last of these it may lack a part.
        self._waiting: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()
        self._rest: memoryview | None = None
        self._flushing = False
        self._paused = False
        self._finishing = False
        self._moved_at = 0.0
        # Bytes that have come and gone, and what replies count for.
        self._moved = 0
        self._watch: asyncio.Handle | None = None

    def submit(
        self, packed: bytes, count: int = 0, *, mark: bytes | None = None
    ) -> "asyncio.Future[Any]":
        """Send commands in this turn of the loop; return a future of the reply.

        Parameters:
            packed: the commands.
            count: 0 for one command, else how many there are: the result is a list
                then. An error reply stands in its place as an exception.
            mark: the last of several replies, if it is known. One that comes too early
                tells that a reply is missing.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        call = _Call(packed, count, mark, future)
        if self.closed:
            call.fail(self._broken(sent=False))
            return future
        under_way = len(self._waiting) + len(self._sent)
        if not under_way:
            self._moved_at = self._loop.time()
        elif under_way >= MAX_IN_FLIGHT:
            call.timer = self._loop.call_later(self._wait_timeout, self._give_up, call)
        if self._watch is None and self._timeout is not None:
            self._watch = self._loop.call_later(self._timeout, self._check_timeout)
        self._waiting.append(call)
        self._flush_soon()
        return future

    def finish(self) -> None:
        """Close the connection once all calls under way have their replies."""
        self._finishing = True
        self._close_if_done()

    def abort(self, reason: object = None) -> None:
        """Close the connection at once; all calls under way get an error."""
        if self.closed:
            return
        self.closed = True
        self._reason = reason or self._reason
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._rest = None
        for call in self._waiting:
            if call.timer is not None:
                call.timer.cancel()
            call.fail(self._broken(sent=False))
        self._waiting.clear()
        for call in self._sent:
            if isinstance(reason, ReplyTimeoutError):
                call.fail(ReplyTimeoutError(*reason.args))
            else:
                call.fail(self._broken(sent=True))
        self._sent.clear()

    def _broken(self, *, sent: bool) -> ConnectionLostError:
        # The reason may be an error reply.
        reason = one_line(str(self._reason))
        text = f"Connection to {self._name} closed: {reason}"
        return ConnectionLostError(text, sent=sent)

    def _close_if_done(self) -> None:
        if self._finishing and not self._sent and not self._waiting:
            self.abort("replaced by a newer one")

    # -- the transport's calls -------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Note the transport."""
        self._transport = transport
        if self.closed:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let all calls under way fail."""
        if self._sent and isinstance(exc, OSError) and not self.closed:
            # The transport has failed to write. What the server has sent before that,
            # such as that a value is too large, has not been read.
            self.data_received(_unread(self._transport))
        self._end_batch()
        self.abort(exc)

    def eof_received(self) -> bool:
        """Close the connection: the server will send no more replies."""
        self._end_batch()
        self.abort()
        return False

    def _end_batch(self) -> None:
        """End a batch of which the server has refused to read the rest."""
        if self._sent and not self.closed:
            call = self._sent[0]
            refused = refused_from(call.replies, call.count)
            if refused is not None:
                self._sent.popleft()
                if not call.future.done():
                    call.future.set_result(refused)

    def data_received(self, data: bytes) -> None:
        """Parse replies, and set the results of their calls."""
        if self.closed:
            return
        reader, sent = self._reader, self._sent
        try:
            self._moved_at = self._loop.time()
            self._moved += len(data)
            reader.feed(data)
            reply = reader.gets()
            while reply is not INCOMPLETE and sent:
                if type(reply) not in PLAIN:
                    verify(reply)
                call = sent[0]
                if call.count:
                    call.replies.append(reply)
                    early = len(call.replies) < call.count
                    if call.mark is not None and early and reply == call.mark:
                        # What follows would be taken for the answer to something else.
                        raise InvalidResponse("an answer is missing")
                    reply = call.replies
                if len(call.replies) == call.count:
                    sent.popleft()
                    self._moved += REPLY
                    # A task that was cancelled leaves its reply to be dropped here.
                    if not call.future.done():
                        call.future.set_result(reply)
                reply = reader.gets()
        except UNREADABLE as error:
            detail = str(error) or type(error).__name__
            self.abort(f"the server's answer is not a Redis reply ({detail})")
            return
        except BaseException:
            # A signal handler has raised: replies may be out of step with calls.
            self.abort("interrupted")
            raise
        if reply is not INCOMPLETE:
            # Such as "max number of clients reached", before anything is asked.
            unasked = isinstance(reply, Exception)
            self.abort(reply if unasked else "it said what nothing had asked for")
        elif self._waiting:
            self._flush_soon()
        else:
            self._close_if_done()

    def pause_writing(self) -> None:
        """Stop sending: the server does not read fast enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """Send again."""
        self._paused = False
        self._moved_at = self._loop.time()
        self._flush_soon()

    # -- sending ---------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._loop.call_soon(self._flush)
            self._flushing = True

    def _flush(self) -> None:
        """Send the commands that have gathered, or a piece of them."""
        self._flushing = False
        if self.closed or self._paused:
            return
        try:
            self._send()
        except BaseException as error:
            # A signal handler's: what counts as sent may not be, yet gets replies. Or a
            # transport's, in whose frames is what was to be sent, such as AUTH.
            self.abort("interrupted")
            raise error.with_traceback(None) from None

    def _send(self) -> None:
        now = self._loop.time()
        if self._rest or not self._sent:
            # Only now does the server get what it is to answer. More that goes out
            # while it owes a reply must not hide that it is silent.
            self._moved_at = now
        if self._rest and _is_readable(self._transport):
            # The server may refuse the rest and close the connection: its error reply
            # must be read before that.
            self._flush_soon()
            return
        piece = self._rest or self._gather(now)
        if len(piece) > PIECE:
            view = memoryview(piece)
            piece, self._rest = view[:PIECE], view[PIECE:]
        elif self._rest:
            self._rest = None
            self._sent[-1].sent_at = self._moved_at
        if piece:
            self._moved += len(piece)
            self._transport.write(piece)
        if self._rest or (self._waiting and len(self._sent) < MAX_IN_FLIGHT):
            self._flush_soon()
        # Where all that waited was cancelled, no reply comes to close it after.
        self._close_if_done()

    def _gather(self, now: float) -> bytes:
        """Return the commands to send next: from here on they may reach the server.

        Parameters:
            now: the time, on the loop's clock.
        """
        waiting, sent = self._waiting, self._sent
        parts: list[bytes] = []
        room = PIECE
        moved = self._moved
        while waiting and len(sent) < MAX_IN_FLIGHT:
            call = waiting[0]
            if not call.future.done():
                if parts and len(call.packed) > room:
                    break  # to copy what is large would take as long as to send it
                room -= len(call.packed)
                parts.append(call.packed)
                sent.append(call)
                call.sent_at, call.moved = now, moved
                call.packed = b""
            if call.timer is not None:
                call.timer.cancel()
            waiting.popleft()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _give_up(self, call: _Call) -> None:
        """Let a command fail that has waited for too long to be sent."""
        call.fail(
            ConnectionPoolTimeout(
                f"{MAX_IN_FLIGHT} commands are under way at {self._name}, and there "
                f"was no room for another within {self._wait_timeout:g} s "
                "(OPTIONS['pool_timeout'])."
            )
        )

    def _check_timeout(self, turns: int = LATE_READS) -> None:
        """Look whether the server still answers, and the loop has lost no flush."""
        self._watch = None
        if self._timeout is None or not (self._sent or self._waiting):
            return
        end = self._moved_at + self._timeout
        said = "nothing"
        if self._sent:
            # The others have been waiting for less time.
            first = self._sent[0]
            moved = self._moved - first.moved
            whole = first.sent_at + allowance(self._timeout, moved)
            if whole < end:
                end, said = whole, "no whole reply"
        left = end - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._check_timeout)
            return
        if turns:
            self._watch = self._loop.call_soon(self._check_timeout, turns - 1)
            return
        self.abort(
            ReplyTimeoutError(
                f"Timeout reading from {self._name}: {said} within "
                f"{self._timeout:g} s (OPTIONS['socket_timeout'])."
            )
        )


def _is_readable(transport: Any) -> bool:
    """Return whether something has arrived on a transport's socket."""
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _unread(transport: Any) -> bytes:
    """Return the bytes on a transport's socket that have not been read.

    Behind TLS that is nothing which could be read here: see :func:`_is_readable`.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or transport.get_extra_info("sslcontext") is not None:
        return b""
    with suppress(OSError):
        return os.read(sock.fileno(), PIECE)
    return b""
