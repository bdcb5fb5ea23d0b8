"""Replies out of a stream of bytes ("Redis serialization protocol specification").

hiredis does it where it is installed. Else this does, for RESP 2: redis-py's own
parser reads from a socket, and can't be fed.

Whoever has hijacked a server may send anything. A reader believes no number that is
none, looks where a value ends, reads each byte once, and bounds lines and nesting.
"""

import re
from collections.abc import Callable
from typing import Any, Protocol

from redis.exceptions import InvalidResponse

try:
    import hiredis
except ImportError:  # pragma: no cover - one of the two is covered in each environment
    hiredis = None  # type: ignore[assignment]

#: What a reader gives while a reply is not there as a whole.
INCOMPLETE: Any = object()
#: What a reader raises where there is no reply: hiredis some of Python's own errors, at
#: a map with a list for a key, or an array of four billion items.
#: Or redis-py, which takes some replies apart as it reads them.
UNREADABLE: tuple[type[Exception], ...] = (
    InvalidResponse,
    ArithmeticError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
#: Bytes of a line at most: of an error, of a status that a script returns.
MAX_LINE = 1024 * 1024
_TOO_LONG = f"a line of more than {MAX_LINE} bytes"
#: Arrays within each other at most, as in hiredis: what is deeper can't be printed, or
#: compared.
MAX_DEPTH = 1024
#: Items of an array at most, as in hiredis.
MAX_ARRAY = 2**32 - 1
_STATUS, _ERROR, _INTEGER, _BULK, _ARRAY, _ZERO = b"+-:$*0"
_NEGATIVE = re.compile(rb"-[1-9][0-9]{0,18}")

# The host may be missing: then it is the one that has been asked.
_REDIRECT = re.compile(r"(?:MOVED|ASK) ([0-9]{1,5}) [^ ]*:([0-9]{1,5})", re.ASCII)
#: Slots of a cluster ("Redis cluster specification").
SLOTS = 16384

#: Types of replies, and of what is in arrays, that need no :func:`verify`.
PLAIN = frozenset((bytes, int, type(None)))

MakeError = Callable[[str], Exception]


class ReplyReader(Protocol):
    """Is fed bytes; gives replies."""

    def feed(self, data: bytes, /) -> Any:
        """Take in what has come."""

    def gets(self) -> Any:
        """Return the next reply, :data:`INCOMPLETE` if it is not there yet.

        Raises:
            What is :data:`UNREADABLE`: what came is no reply.
        """

    def has_data(self) -> bool:
        """Whether it was fed more than the replies that it has given."""
        ...


def make_reader(make_error: MakeError) -> ReplyReader:
    """Return a reader of replies.

    What is not :data:`PLAIN` is to go through :func:`verify`.

    Parameters:
        make_error: makes an exception of an error reply's text. It stands where the
            reply would.
    """
    if hiredis is None:
        return PythonReader(safely(make_error))
    return hiredis_reader(make_error)


def hiredis_reader(make_error: MakeError) -> ReplyReader:
    """Return hiredis' reader, which is to be installed."""
    assert hiredis is not None
    reader: ReplyReader = hiredis.Reader(
        protocolError=InvalidResponse,
        replyError=safely(make_error),
        notEnoughData=INCOMPLETE,
    )
    return reader


def safely(make_error: MakeError) -> MakeError:
    """Return what makes an exception of any error reply's text."""

    def make(text: str) -> Exception:
        # redis-py takes some errors apart as it makes them.
        try:
            if not is_malformed_redirect(text):
                return make_error(text)
        except Exception:
            pass  # It is told below.
        return _protocol_error(f"{text[:100]!r} is not an error reply")

    return make


def is_malformed_redirect(text: str) -> bool:
    """Whether an error reply begins as a redirection does, but leads nowhere.

    redis-py finds that out as it makes the error, or as it uses it, with an error of
    Python's; its versions before 6 make none of it at all.
    """
    if text.partition(" ")[0] not in ("MOVED", "ASK"):
        return False
    found = _REDIRECT.fullmatch(text)
    return found is None or int(found[1]) >= SLOTS or not 0 < int(found[2]) < 65536


def verify(reply: Any) -> None:
    """See that a reply is one of RESP 2.

    hiredis reads RESP 3, too: a push message, which no command has asked for, would be
    taken for the answer to one, and each later answer for the one to the next command.

    Raises:
        InvalidResponse: it is not, or is an error reply that can't be read.
    """
    pending = [reply]
    while pending:
        item = pending.pop()
        if type(item) is list:
            if not PLAIN.issuperset(map(type, item)):
                pending += [inner for inner in item if type(inner) not in PLAIN]
        elif isinstance(item, InvalidResponse):
            # Another one: this one would be kept by a frame of its own traceback.
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
        # How far the end of a line has been looked for in vain.
        self._searched = 0
        # Arrays begun, the outermost first, each with what is there of it.
        self._open: list[tuple[list[Any], Array]] = []

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        if self._at:
            del self._buffer[: self._at]
            self._searched = max(0, self._searched - self._at)
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
        """Whether it was fed more than the replies that it has given."""
        return self._at < len(self._buffer) or bool(self._open)

    def _item(self) -> Any:
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\r\n", self._searched or at)
        if end < 0:
            # A "\r" may have been the last byte so far.
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
        """Return what a line that begins in another way stands for.

        Raises:
            InvalidResponse: nothing, in RESP 2.
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
    """An array's header.

    Parameters:
        size: how many items it has, below 0 if it stands for nothing.
        kind: what they are to be.
    """

    def __init__(self, size: int, kind: type[list[Any]] = list) -> None:
        self.size = size
        self.kind = kind


def array_size(line: bytes) -> int:
    """Return how many items an array has.

    Raises:
        InvalidResponse: it is no number, or none that Redis would give.
    """
    size = _number(line)
    if not -1 <= size <= MAX_ARRAY:
        raise _protocol_error(f"an array of {size}")
    return size


def _number(line: bytes) -> int:
    """Return a number, as Redis writes it and in no other spelling that Python has."""
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
