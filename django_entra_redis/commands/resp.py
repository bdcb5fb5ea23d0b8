"""A reader of replies in a stream of bytes ("Redis serialization protocol").

It is hiredis where that is installed, else one in Python, for RESP 2. redis-py's
own parser reads from a socket, and can't be fed with bytes.

A hijacked server may send anything. The reader accepts well-formed numbers alone,
checks the end of each value, reads each byte once, and bounds lines and nesting.
"""

import re
from collections.abc import Callable
from typing import Any, Protocol

from redis.exceptions import InvalidResponse

from .addresses import NO_HOST, is_host, is_port

try:
    import hiredis
except ImportError:  # pragma: no cover - one of the two is covered in each environment
    hiredis = None  # type: ignore[assignment]  # a module otherwise

#: The result of a reader as long as a reply is incomplete.
INCOMPLETE: Any = object()
#: Errors of a reader for bytes that are not a reply. hiredis raises some of Python's
#: own errors, such as for a map with a list as a key, or an array of four billion
#: items; so does redis-py for some malformed error replies.
UNREADABLE: tuple[type[Exception], ...] = (
    InvalidResponse,
    ArithmeticError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
#: Bytes of a line at most, such as an error, or a status that a script returns.
MAX_LINE = 1024 * 1024
_TOO_LONG = f"a line of more than {MAX_LINE} bytes"
#: Depth of nested arrays at most, as in hiredis. Python can't print or compare deeper
#: ones.
MAX_DEPTH = 1024
#: Items of an array at most, as in hiredis.
MAX_ARRAY = 2**32 - 1
_STATUS, _ERROR, _INTEGER, _BULK, _ARRAY, _ZERO = b"+-:$*0"
_NEGATIVE = re.compile(rb"-[1-9][0-9]{0,18}")

# The host may be missing: then it is the host of the node that was asked.
_REDIRECT = re.compile(r"(?:MOVED|ASK) ([0-9]{1,5}) ([^ ]*):([0-9]{1,5})", re.ASCII)
#: Slots of a cluster ("Redis cluster specification").
SLOTS = 16384

#: Types of replies, and of items of arrays, that need no :func:`verify`.
PLAIN = frozenset((bytes, int, type(None)))

MakeError = Callable[[str], Exception]


class ReplyReader(Protocol):
    """A reader: it is fed with bytes, and returns replies."""

    def feed(self, data: bytes, /) -> Any:
        """Append received bytes."""

    def gets(self) -> Any:
        """Return the next reply; :data:`INCOMPLETE`: there is none yet.

        Raises:
            One of :data:`UNREADABLE`: the bytes are not a reply.
        """

    def has_data(self) -> bool:
        """Whether there are bytes, or parts of a reply, after the last reply."""
        ...


def make_reader(make_error: MakeError) -> ReplyReader:
    """Return a reader of replies.

    Callers must pass replies that are not :data:`PLAIN` to :func:`verify`.

    Parameters:
        make_error: makes an exception of an error reply's text; it is returned, not
            raised.
    """
    if hiredis is None:
        return PythonReader(safe_error_maker(make_error))
    return hiredis_reader(make_error)


def hiredis_reader(make_error: MakeError) -> ReplyReader:
    """Return a reader of hiredis, which must be installed."""
    assert hiredis is not None
    reader: ReplyReader = hiredis.Reader(
        protocolError=InvalidResponse,
        replyError=safe_error_maker(make_error),
        notEnoughData=INCOMPLETE,
    )
    return reader


def safe_error_maker(make_error: MakeError) -> MakeError:
    """Return a function that makes an exception of any text, however malformed."""

    def make(text: str) -> Exception:
        # redis-py parses some error replies, and fails if they are malformed.
        try:
            if not is_malformed_redirect(text):
                return make_error(text)
        except Exception:
            pass  # An exception for this is returned below.
        return _protocol_error(f"{text[:100]!r} is not an error reply")

    return make


def is_malformed_redirect(text: str) -> bool:
    """Whether an error reply begins like a redirection, but has no usable address.

    redis-py would raise one of Python's errors, as it makes the exception or later.
    """
    if text.partition(" ")[0] not in ("MOVED", "ASK"):
        return False
    found = _REDIRECT.fullmatch(text)
    if found is None or int(found[1]) >= SLOTS or not is_port(int(found[3])):
        return True
    return found[2] not in NO_HOST and not is_host(found[2])


def verify(reply: Any) -> None:
    """Check that a reply is one of RESP 2.

    hiredis reads RESP 3, too. A push message would be taken for the reply to a command,
    and each later reply for the reply to the command after it.

    Raises:
        InvalidResponse: it is not, or is a malformed error reply.
    """
    pending = [reply]
    while pending:
        item = pending.pop()
        if type(item) is list:
            if not PLAIN.issuperset(map(type, item)):
                pending += [inner for inner in item if type(inner) not in PLAIN]
        elif isinstance(item, InvalidResponse):
            # A copy: a frame of the traceback would keep this one alive.
            raise InvalidResponse(*item.args)
        elif not isinstance(item, Exception):
            kind = type(item).__name__
            raise _protocol_error(f"{kind} is not a reply of RESP 2")


class PythonReader:
    """Reads replies of RESP 2.

    Parameters:
        make_error: makes an exception of an error reply's text.
    """

    def __init__(self, make_error: MakeError) -> None:
        self._make_error = make_error
        self._buffer = bytearray()
        self._at = 0
        # The position up to which there is no end of a line.
        self._searched = 0
        # Arrays that are incomplete, the outermost first, with their items so far.
        self._open: list[tuple[list[Any], Array]] = []

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        if self._at:
            del self._buffer[: self._at]
            self._searched = max(0, self._searched - self._at)
            self._at = 0
        self._buffer += data

    def gets(self) -> Any:
        """Return the next reply; :data:`INCOMPLETE`: there is none yet.

        Raises:
            InvalidResponse: the bytes are not a reply.
        """
        while True:
            value = self._item()
            if value is INCOMPLETE:
                return INCOMPLETE
            if type(value) is Array and value.size > 0:
                if len(self._open) == MAX_DEPTH:
                    raise _protocol_error(f"arrays more than {MAX_DEPTH} deep")
                self._open.append((value.kind(), value))
                continue
            if type(value) is Array:
                value = None if value.size < 0 else value.kind()
            while self._open:
                items, array = self._open[-1]
                items.append(value)
                if len(items) < array.size:
                    break
                value = items
                self._open.pop()
            else:
                return value

    def has_data(self) -> bool:
        """Whether there are bytes, or parts of a reply, after the last reply."""
        return self._at < len(self._buffer) or bool(self._open)

    def _item(self) -> Any:
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\r\n", self._searched or at)
        if end < 0:
            # The last byte may be the "\r" of the end.
            self._searched = max(at, len(buffer) - 1)
            if len(buffer) - at > MAX_LINE:
                raise _protocol_error(_TOO_LONG)
            return INCOMPLETE
        self._searched = 0
        if end - at > MAX_LINE:
            raise _protocol_error(_TOO_LONG)
        kind, line = buffer[at], bytes(buffer[at + 1 : end])
        if kind == _BULK:
            return self._bulk(_number(line), end + 2)
        self._at = end + 2
        if kind == _INTEGER:
            return _number(line)
        if kind == _ARRAY:
            return Array(array_size(line))
        if kind not in (_STATUS, _ERROR):
            return self.other(kind, line)
        if b"\r" in line or b"\n" in line:
            raise _protocol_error("half the end of a line is in a line")
        if kind == _STATUS:
            return line
        return self._make_error(line.decode(errors="replace"))

    def other(self, kind: int, line: bytes) -> Any:
        """Return the item of a line of another type.

        Raises:
            InvalidResponse: RESP 2 has no such type.
        """
        raise _protocol_error(f"{chr(kind)!r} begins no reply")

    def _bulk(self, size: int, start: int) -> Any:
        if size < 0:
            if size < -1:
                raise _protocol_error(f"a value of {size} bytes")
            self._at = start
            return None
        end = start + size
        if len(self._buffer) < end + 2:
            return INCOMPLETE
        if not self._buffer.startswith(b"\r\n", end):
            raise _protocol_error("a value does not end where it should")
        self._at = end + 2
        return bytes(self._buffer[start:end])


class Array:
    """The header of an array.

    Parameters:
        size: the number of items; below 0: there is no array.
        kind: the class of the list of items.
    """

    def __init__(self, size: int, kind: type[list[Any]] = list) -> None:
        self.size = size
        self.kind = kind


def array_size(line: bytes) -> int:
    """Return the number of an array's items.

    Raises:
        InvalidResponse: it is not a number, or not one that Redis would send.
    """
    size = _number(line)
    if not -1 <= size <= MAX_ARRAY:
        raise _protocol_error(f"an array of {size}")
    return size


def _number(line: bytes) -> int:
    """Return a number in Redis' notation; Python's int() accepts others, too."""
    if line.isdigit():
        if (line[0] != _ZERO or line == b"0") and len(line) < 20:
            number = int(line)
            if number < 2**63:
                return number
    elif _NEGATIVE.fullmatch(line) and int(line) >= -(2**63):
        return int(line)
    raise _protocol_error(f"{line[:40]!r} is not a number")


def _protocol_error(message: str) -> InvalidResponse:
    return InvalidResponse(f"Protocol error: {message}.")
