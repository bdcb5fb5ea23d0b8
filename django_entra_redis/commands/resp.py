"""Replies out of a stream of bytes ("Redis serialization protocol specification").

hiredis does it where it is installed. Else this does, for RESP 2: redis-py's own
parser reads from a socket, and can't be fed.
"""

from collections.abc import Callable
from typing import Any, Protocol

from redis.exceptions import InvalidResponse

try:
    import hiredis
except ImportError:  # pragma: no cover - one of the two is covered in each environment
    hiredis = None  # type: ignore[assignment]

#: What a reader gives while a reply is not there as a whole.
INCOMPLETE: Any = object()

MakeError = Callable[[str], Exception]


class ReplyReader(Protocol):
    """Is fed bytes; gives replies."""

    def feed(self, data: bytes, /) -> Any:
        """Take in what has come."""

    def gets(self) -> Any:
        """Return the next reply, :data:`INCOMPLETE` if it is not there yet.

        Raises:
            InvalidResponse: what came is no reply.
        """


def make_reader(make_error: MakeError) -> ReplyReader:
    """Return a reader of replies.

    Parameters:
        make_error: makes an exception of an error reply's text. It stands where the
            reply would.
    """
    if hiredis is None:
        return PythonReader(make_error)
    reader: ReplyReader = hiredis.Reader(
        protocolError=InvalidResponse, replyError=make_error, notEnoughData=INCOMPLETE
    )
    return reader


class PythonReader:
    """Reads replies of RESP 2.

    Parameters:
        make_error: makes an exception of an error reply's text.
    """

    def __init__(self, make_error: MakeError) -> None:
        self._make_error = make_error
        self._buffer = bytearray()
        self._at = 0
        # Arrays begun, the outermost first: what is there, and how much it is to be.
        self._open: list[tuple[list[Any], int]] = []

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def gets(self) -> Any:
        """Return the next reply, :data:`INCOMPLETE` if it is not there yet.

        Raises:
            InvalidResponse: what came is no reply.
        """
        while True:
            value = self._item()
            if value is INCOMPLETE:
                return INCOMPLETE
            if type(value) is _Array and value.size > 0:
                self._open.append(([], value.size))
                continue
            if type(value) is _Array:
                value = None if value.size < 0 else []
            while self._open:
                items, size = self._open[-1]
                items.append(value)
                if len(items) < size:
                    break
                value = items
                self._open.pop()
            else:
                return value

    def _item(self) -> Any:
        end = self._buffer.find(b"\r\n", self._at)
        if end < 0:
            return INCOMPLETE
        kind, line = self._buffer[self._at : self._at + 1], self._line(end)
        if kind == b"$":
            return self._bulk(_number(line), end + 2)
        self._at = end + 2
        if kind == b"+":
            return line
        if kind == b"-":
            return self._make_error(line.decode(errors="replace"))
        if kind == b":":
            return _number(line)
        if kind == b"*":
            return _Array(_number(line))
        raise InvalidResponse(f"Protocol error: {bytes(kind)!r} begins no reply.")

    def _line(self, end: int) -> bytes:
        return bytes(self._buffer[self._at + 1 : end])

    def _bulk(self, size: int, start: int) -> Any:
        if size < 0:
            self._at = start
            return None
        end = start + size
        if len(self._buffer) < end + 2:
            return INCOMPLETE
        self._at = end + 2
        return bytes(self._buffer[start:end])


class _Array:
    """An array's header."""

    def __init__(self, size: int) -> None:
        self.size = size


def _number(line: bytes) -> int:
    try:
        return int(line)
    except ValueError:
        raise InvalidResponse(f"Protocol error: {line!r} is no number.") from None
