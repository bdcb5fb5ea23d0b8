"""Deadlines for a whole reply, however slowly it arrives.

A socket's timeout bounds the wait for the next byte: a server that sends a byte now and
then would keep its reader waiting for ever. A :class:`Deadline` bounds the reply as a
whole: the timeout, and more time for each byte received, so that a large value still
gets through a slow network.

Readers of a socket make a deadline only if the first read did not have the whole reply,
so that all other replies cost nothing more::

    data = read(timeout)
    deadline = None
    while (reply := parse(data)) is INCOMPLETE:
        deadline = deadline or Deadline(timeout)
        data = read(min(timeout, deadline.left(len(data))))

This module does so for redis-py's parsers (:func:`bounded_parser`). An event loop's
connection compares the same numbers in a timer (:func:`allowance`).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import MethodType
from typing import Any

from .refusals import read_error

#: Bytes a second that a reply has to arrive with, on average, once the timeout is over:
#: half a megabit, at which no cache is of any use.
RATE = 64 * 1024
#: Bytes by which each reply of a batch extends the common deadline, beside its own: at
#: ``RATE`` this gives the server 5 ms to carry out each command.
REPLY = 320


def allowance(timeout: float, received: int) -> float:
    """Return the seconds that a reply may take in all.

    Parameters:
        timeout: seconds for a small reply.
        received: bytes of the reply that have been received.
    """
    return timeout + received / RATE


class Deadline:
    """The time by which a reply has to be complete.

    Parameters:
        timeout: seconds for a small reply, from now on.
        clock: the clock, in seconds.
    """

    def __init__(
        self, timeout: float, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._clock = clock
        self._end = clock() + timeout

    def left(self, received: int) -> float:
        """Return the seconds that are left.

        Parameters:
            received: bytes received since the last call.

        Raises:
            TimeoutError: no time is left.
        """
        self._end += received / RATE
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _BoundedSocket:
    """A socket as redis-py's parsers use it, with a deadline for each reply.

    Parameters:
        sock: the socket.
        timeout: the socket's timeout, in seconds.
    """

    def __init__(self, sock: Any, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        self._deadline: Deadline | None = None
        self._received = 0
        # Whether nothing of the expected replies has been read yet, and the bytes by
        # which they extend the deadline (see REPLY).
        self.fresh = True
        self.credit = 0
        self._recv, self._recv_into = sock.recv, sock.recv_into
        # The socket's other methods as attributes, not by __getattr__: each check for
        # something to read calls some of them.
        kind = type(sock)
        self.__dict__ |= {
            name: getattr(sock, name)
            for name in dir(kind)
            if not (name.startswith("_") or hasattr(_BoundedSocket, name))
            and callable(getattr(kind, name))
        }

    def recv(self, *args: int) -> bytes:
        """Receive bytes."""
        if self.fresh:
            self.fresh, self._deadline = False, None
            data: bytes = self._recv(*args)
        else:
            data = self._receive_more(self._recv, *args)
            self._received += len(data)
        return data

    def recv_into(self, buffer: Any) -> int:
        """Receive bytes into a buffer; return their number."""
        if self.fresh:
            self.fresh, self._deadline = False, None
            size: int = self._recv_into(buffer)
        else:
            size = self._receive_more(self._recv_into, buffer)
            self._received += size
        return size

    def _receive_more(self, receive: Callable[..., Any], *args: Any) -> Any:
        timeout = self._sock.gettimeout()
        if not timeout:
            # The caller checks for something to read, or wants to wait for ever.
            return receive(*args)
        if self._deadline is None:
            self._deadline = Deadline(self._timeout)
            self._received = self.credit
        received, self._received = self._received, 0
        left = self._deadline.left(received)
        if left >= timeout:
            return receive(*args)
        self._sock.settimeout(left)
        try:
            return receive(*args)
        finally:
            self._sock.settimeout(timeout)


class _View:
    """A connection with another socket, as it is handed to its parser."""

    def __init__(self, connection: Any, sock: Any) -> None:
        self._connection = connection
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@functools.cache
def bounded_parser(kind: type[Any]) -> type[Any]:
    """Return a parser class, redis-py's or a user's, with a deadline for each reply.

    It parses error replies by :func:`.refusals.read_error`.
    """
    read_response = kind.read_response

    class BoundedParser(kind):  # type: ignore[misc]  # its parent is a variable
        bounded: _BoundedSocket | None = None

        @classmethod
        def parse_error(cls, response: str) -> Exception:
            return read_error(response, super().parse_error)

        def on_connect(self, connection: Any) -> None:
            timeout = connection.socket_timeout
            if timeout:
                self.bounded = _BoundedSocket(connection._sock, timeout)
                connection = _View(connection, self.bounded)
            super().on_connect(connection)

        def on_disconnect(self) -> None:
            self.bounded = None
            super().on_disconnect()

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            found = read_response(self, *args, **kwargs)
            bounded = self.bounded
            if bounded is not None:
                bounded.fresh = True
            return found

        @contextmanager
        def expecting(self, replies: int) -> Iterator[None]:
            """Bound this number of replies by one common deadline."""
            bounded = self.bounded
            if bounded is None:
                yield
                return
            bounded.fresh, bounded.credit = True, replies * REPLY
            # Replaces the method above, which would begin a deadline for each reply.
            self.__dict__["read_response"] = MethodType(read_response, self)
            try:
                yield
            finally:
                bounded.credit = 0
                # Also breaks the reference cycle of parser and method.
                del self.__dict__["read_response"]

    return BoundedParser
