"""The exchange of commands for replies on a connection's socket, in few system calls.

redis-py's ``send_packed_command()`` and ``read_response()`` support everything, and
cost several times what the kernel takes. For an ordinary connection an
:class:`Exchanger` does the same on the socket: it keeps a poll object, sends by one
write, and reads directly into the reader of replies. It raises redis-py's errors.
"""

import builtins
import io
import os
import select
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

from redis.exceptions import ConnectionError, TimeoutError

from .._errors import without_frames
from ..commands.resp import INCOMPLETE, PLAIN, UNREADABLE, make_reader, verify
from ..exceptions import InvalidReplyError
from .deadlines import REPLY, Deadline
from .memory import keep_memory
from .refusals import read_error, refused_from

#: Bytes to read at a time. From 128 KB on, malloc would map new memory each time.
CHUNK = 120 * 1024
#: Bytes of the smallest and the largest value that is read into a buffer of its own
#: size. The largest one is a bound, since a hijacked server may announce any size.
LARGE, LARGEST = 32 * 1024, 16 * 1024 * 1024
#: Errors of a read: no reply has come, or the bytes that have come are not a reply.
FAILURES: tuple[type[Exception], ...] = (*UNREADABLE, OSError)
#: What :meth:`Exchanger.exchange` returns where it has sent nothing.
UNSENT: Any = object()
#: Modules of the sockets on which the system's own calls may be used. On the socket of
#: a greenlet, such a call would block all other greenlets.
_MODULES = ("socket", "ssl")


def make_exchanger(sock: Any, timeout: float | None) -> "Exchanger | None":
    """Return an exchanger on a socket; ``None``: the socket is not suitable.

    Parameters:
        sock: the socket, connected, with nothing under way.
        timeout: seconds to wait until it takes bytes, or has some; ``None``: no bound.
    """
    if not hasattr(select, "poll") or type(sock).__module__ not in _MODULES:
        return None
    return Exchanger(sock, timeout, tls=isinstance(sock, ssl.SSLSocket))


class Exchanger:
    """Exchanges commands for replies on the socket of a connection.

    Parameters:
        sock, timeout: see :func:`make_exchanger`.
        tls: whether it is a socket of TLS.
    """

    def __init__(self, sock: Any, timeout: float | None, *, tls: bool) -> None:
        self._socket = sock
        self._timeout = None if timeout is None else timeout * 1000
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        self._poll = poll.poll
        reader = make_reader(read_error)
        self._feed, self._gets = reader.feed, reader.gets
        self._has_data = reader.has_data
        # Returns the number of bytes that TLS has decrypted already, of which the poll
        # object knows nothing; None without TLS.
        self._pending: Callable[[], int] | None = None
        self._write: Callable[[bytes], int]
        self._read_some: Callable[[], bytes]
        if tls:
            self._pending = sock.pending
            self._write = sock.write
            self._read_some = partial(sock.read, CHUNK)
        else:
            # The socket has a timeout, so that the system never blocks on it, and
            # nothing is under way, so that there is room. Python's own methods would
            # ask first.
            self._write = partial(os.write, sock.fileno())
            self._read_some = partial(os.read, sock.fileno(), CHUNK)

    def exchange(self, packed: bytes, count: int = 0) -> Any:
        """Send commands; return the reply, of an error reply the exception.

        Parameters:
            packed: the commands.
            count: 0 for one command, else how many there are: a list is returned then.

        Returns:
            :data:`UNSENT` if there is something to read before, be it the end of the
            connection: that is no answer to what has not been sent yet. The caller must
            close the connection then.

        Raises:
            ConnectionError, TimeoutError, InvalidReplyError: no reply has come, or the
                bytes are not one. The caller must close the connection, as after any
                other exception.
        """
        pending = self._pending
        if self._poll(0) or self._has_data() or (pending is not None and pending()):
            return UNSENT
        try:
            sent = self._write(packed)
            if sent < len(packed):
                self._socket.sendall(memoryview(packed)[sent:])
        except OSError as error:
            failure: Exception = _failed_writing(error)
        else:
            try:
                # As _read() has it, without its call.
                if not (
                    (pending is not None and pending()) or self._poll(self._timeout)
                ):
                    raise builtins.TimeoutError
                try:
                    data = self._read_some()
                except BlockingIOError:
                    data = self._read(self._timeout)
                if count:
                    return self._receive_many(count, data)
                # All replies end so; a value that is not here as a whole rarely does.
                if data.endswith(b"\r\n"):
                    self._feed(data)
                    reply = self._gets()
                    if type(reply) in PLAIN:
                        return reply
                    if reply is INCOMPLETE:
                        reply = self._receive_rest(len(data))
                else:
                    reply = self._receive(data)
                if type(reply) not in PLAIN:
                    verify(reply)
                return reply
            except ConnectionError:
                raise
            except FAILURES as error:
                failure = _failed_reading(error)
        try:
            raise failure
        finally:
            del failure  # Otherwise this frame would keep it alive.

    def send(self, packed: bytes) -> None:
        """Send commands; the first half of :meth:`exchange`.

        The caller has made sure that there is nothing to read on the socket before.

        Parameters:
            packed: the commands.

        Raises:
            ConnectionError, TimeoutError: they have not been sent, or not all of them;
                or more replies have come before than were asked for.
        """
        if self._has_data():
            raise ConnectionError("The server has sent a reply without a command.")
        try:
            self._socket.sendall(packed)
        except OSError as error:
            failure = _failed_writing(error)
        else:
            return
        try:
            raise failure
        finally:
            del failure  # Otherwise this frame would keep it alive.

    def receive(self, count: int, *, wait: bool = True) -> list[Any]:
        """Return the replies to commands that have been sent, error replies as
        exceptions; the second half of :meth:`exchange`.

        Parameters:
            count: the number of commands.
            wait: whether to wait for the first reply, if it has not come yet.

        Raises:
            What :meth:`exchange` raises.
        """
        timeout = self._timeout
        try:
            return self._receive_many(count, self._read(timeout if wait else 0))
        except ConnectionError:
            raise
        except FAILURES as error:
            failure = _failed_reading(error)
        try:
            raise failure
        finally:
            del failure  # Otherwise this frame would keep it alive.

    def _receive_many(self, count: int, data: bytes) -> list[Any]:
        """Return the replies to several commands.

        Parameters:
            count: the number of commands.
            data: the first bytes that have come.

        Raises:
            ConnectionError: an error reply that is about the connection or the server.
        """
        # To the reader they are one array: it takes a call for all, and not one each.
        self._feed(b"*%d\r\n" % count)
        self._feed(_some(data))
        replies: Any = self._gets()
        if replies is INCOMPLETE:
            replies = self._receive_others(count, data)
        if not PLAIN.issuperset(map(type, replies)):
            verify(replies)
            for reply in replies:
                # One that redis-py treats as a disconnect, such as LOADING or NOAUTH.
                if isinstance(reply, ConnectionError):
                    raise without_frames(reply)
        found: list[Any] = replies
        return found

    def _receive_others(self, count: int, seen: bytes) -> Any:
        """Return the replies to several commands, once the missing bytes have come.

        Parameters:
            count: the number of commands.
            seen: the bytes that have come, which the reader has.
        """
        deadline = _ReplyDeadline(self._timeout)
        received = len(seen) + count * REPLY
        total = len(seen)
        # Kept to find a refusal in. A server refuses to read writes only, whose replies
        # are short.
        kept: bytes | None = seen
        while True:
            try:
                data = self._read(deadline.left(received))
            except (ConnectionError, builtins.ConnectionError):
                refused = refused_from(_replies_in(kept or b""), count)
                if refused is None:
                    raise
                return refused
            self._feed(data)
            replies = self._gets()
            total += len(data)
            if replies is not INCOMPLETE:
                keep_memory(total)
                return replies
            received = len(data)
            kept = None if kept is None or len(kept) >= CHUNK else kept + data

    def _receive(self, data: bytes) -> Any:
        """Return the reply that begins with these bytes."""
        value = self._read_value(_some(data))
        if value is not None:
            return value
        self._feed(data)
        reply = self._gets()
        return self._receive_rest(len(data)) if reply is INCOMPLETE else reply

    def _receive_rest(self, received: int) -> Any:
        """Return the reply of which the reader has the first bytes: so many."""
        deadline = _ReplyDeadline(self._timeout)
        total = received
        while True:
            data = self._read(deadline.left(received))
            self._feed(data)
            reply = self._gets()
            total += len(data)
            if reply is not INCOMPLETE:
                keep_memory(total)
                return reply
            received = len(data)

    def _read(self, timeout: float | None) -> bytes:
        """Return what has come, once something has within so many milliseconds."""
        pending = self._pending
        while (pending is not None and pending()) or self._poll(timeout):
            try:
                data: bytes = self._read_some()
            except BlockingIOError:
                continue
            return _some(data)
        raise builtins.TimeoutError

    def _read_value(self, data: bytes) -> bytes | None:
        """Return a large value that begins here; ``None`` if it is something else.

        The reader would move it twice: into its buffer, and out of there.
        """
        end = data.find(b"\r\n", 0, 12)
        # Of the number itself, only a part may have come.
        if end < 0 or data[:1] != b"$" or not data[1:end].isdigit():
            return None
        size = int(data[1:end])
        read = len(data) - end - 2
        if not LARGE <= size <= LARGEST or read > size + 2:
            return None
        keep_memory(size)
        deadline = _ReplyDeadline(self._timeout)
        buffer = io.BytesIO(bytes(size + 2))
        with buffer.getbuffer() as view:
            view[:read] = data[end + 2 :]
            at = read
            while at < size + 2:
                read = self._read_into(view[at:], deadline.left(read))
                at += read
            whole = view[size:].tobytes() == b"\r\n"
        if not whole:
            raise InvalidReplyError(
                "The server's answer is not a Redis reply (a value does not end right)."
            )
        buffer.truncate(size)
        return buffer.getvalue()

    def _read_into(self, view: memoryview, timeout: float | None) -> int:
        """Do as :meth:`_read` does, into a buffer; return how much."""
        pending = self._pending
        while (pending is not None and pending()) or self._poll(timeout):
            try:
                read: int = (
                    os.readv(self._socket.fileno(), [view])
                    if pending is None
                    else self._socket.recv_into(view)
                )
            except BlockingIOError:
                continue
            if not read:
                raise _closed()
            return read
        raise builtins.TimeoutError


def _some(data: bytes) -> bytes:
    """Return what has been read, unless that is the end of the connection."""
    if not data:
        raise _closed()
    return data


def _replies_in(data: bytes) -> list[Any]:
    """Return the replies that some bytes hold, up to the first that is incomplete."""
    reader = make_reader(read_error)
    reader.feed(data)
    return [*iter(reader.gets, INCOMPLETE)]


def _closed() -> ConnectionError:
    return ConnectionError("Connection closed by server.")


def _failed_writing(error: OSError) -> Exception:
    """Return what redis-py raises where a socket does not take a command in."""
    if isinstance(error, builtins.TimeoutError):
        return TimeoutError("Timeout writing to socket")
    number, text = error.args if len(error.args) == 2 else ("UNKNOWN", error)
    return ConnectionError(f"Error {number} while writing to socket. {text}.")


def _failed_reading(error: Exception) -> Exception:
    """Return what redis-py raises where no reply comes, or none that is one."""
    if isinstance(error, builtins.TimeoutError):
        return TimeoutError("Timeout reading from socket")
    if isinstance(error, OSError):
        return ConnectionError(f"Error while reading from socket: {error.args}")
    said = str(error) or type(error).__name__
    return InvalidReplyError(f"The server's answer is not a Redis reply ({said}).")


class _ReplyDeadline:
    """The deadline of a reply, of which a part may have come.

    Parameters:
        timeout: milliseconds; ``None`` for no bound.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._deadline = None if timeout is None else Deadline(timeout / 1000)

    def left(self, received: int) -> float | None:
        """Return the milliseconds that are left; see :meth:`Deadline.left`."""
        if self._deadline is None or self._timeout is None:
            return None
        return min(self._timeout, self._deadline.left(received) * 1000)
