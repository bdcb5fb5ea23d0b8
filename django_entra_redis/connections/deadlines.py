"""How long a whole reply may take, however it drips in.

A socket's timeout bounds the wait for the next byte: a server that sends one now and
then holds whoever waits for ever. A :class:`Deadline` bounds the reply: it has the
timeout, and more time for each byte that has come, so that a large value on a slow
network gets through.

Whoever reads from a socket asks it only once a reply was not there in the first read,
which costs the others nothing::

    data = read(timeout)
    deadline = None
    while (reply := parse(data)) is INCOMPLETE:
        deadline = deadline or Deadline(timeout)
        data = read(min(timeout, deadline.left(len(data))))

Here that is done for redis-py's parsers (:func:`bounded_parser`); an event loop's
connection compares the same numbers in a timer (:func:`allowance`).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import MethodType
from typing import Any

from .refusals import read_error

#: Bytes that come in a second at least, on average, once the timeout is over: half a
#: megabit, at which no cache is of any use.
RATE = 64 * 1024
#: Bytes that each reply of several counts for, beside its own: 5 ms for the server to
#: carry the command out.
REPLY = 320


def allowance(timeout: float, received: int) -> float:
    """Return the seconds that a reply may take, of which so many bytes have come."""
    return timeout + received / RATE


class Deadline:
    """When a reply is to be there.

    Parameters:
        timeout: seconds for a small one, from now on.
        clock: seconds, to measure with.
    """

    def __init__(
        self, timeout: float, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._clock = clock
        self._end = clock() + timeout

    def left(self, received: int) -> float:
        """Return the seconds that are left.

        Parameters:
            received: bytes that have come since the last call.

        Raises:
            TimeoutError: none are.
        """
        self._end += received / RATE
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _BoundedSocket:
    """What redis-py's parsers need of a socket, with a deadline for each reply.

    Parameters:
        sock: the socket.
        timeout: seconds; what it is set to.
    """

    def __init__(self, sock: Any, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        self._deadline: Deadline | None = None
        self._received = 0
        # Whether nothing has been read yet of what is expected, and what that counts
        # for beside its bytes.
        self.fresh = True
        self.credit = 0
        self._recv, self._recv_into = sock.recv, sock.recv_into
        # The socket's other methods, without a detour: each look whether there is
        # something to read goes through some of them.
        kind = type(sock)
        self.__dict__ |= {
            name: getattr(sock, name)
            for name in dir(kind)
            if not (name.startswith("_") or hasattr(_BoundedSocket, name))
            and callable(getattr(kind, name))
        }

    def recv(self, *args: int) -> bytes:
        """Return what has come."""
        if self.fresh:
            self.fresh, self._deadline = False, None
            data: bytes = self._recv(*args)
        else:
            data = self._receive_more(self._recv, *args)
            self._received += len(data)
        return data

    def recv_into(self, buffer: Any) -> int:
        """Take in what has come; return how much."""
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
            # Somebody only looks whether there is something, or waits for ever.
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
    """A connection as its parser sees it: with another socket."""

    def __init__(self, connection: Any, sock: Any) -> None:
        self._connection = connection
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@functools.cache
def bounded_parser(kind: type[Any]) -> type[Any]:
    """Return a parser class of redis-py's, or a user's, with a deadline for a reply.

    It reads errors as all other connections here do.
    """
    read_response = kind.read_response

    class BoundedParser(kind):  # type: ignore[misc]
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
            """Have so many replies come within one deadline."""
            bounded = self.bounded
            if bounded is None:
                yield
                return
            bounded.fresh, bounded.credit = True, replies * REPLY
            # Shorter than the method above, which would begin anew each time.
            self.__dict__["read_response"] = MethodType(read_response, self)
            try:
                yield
            finally:
                bounded.credit = 0
                # The two must not keep each other.
                del self.__dict__["read_response"]

    return BoundedParser
