"""Replies out of bytes: with hiredis and without, however the bytes are split."""

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import InvalidResponse

from django_entra_redis.commands import resp
from django_entra_redis.commands.resp import (
    INCOMPLETE,
    MAX_LINE,
    PythonReader,
    ReplyReader,
    make_reader,
    verify,
)


class Failure(Exception):  # noqa: N818 - what an error reply becomes, equal by its text
    """An error reply."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Failure) and self.args == other.args

    __hash__ = None  # type: ignore[assignment]


#: Readers of both kinds; without hiredis both are one.
READERS = [PythonReader, make_reader]

lines = st.binary(max_size=20).map(
    lambda data: data.replace(b"\r", b"").replace(b"\n", b"")
)
texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20
).map(Failure)
numbers = st.integers(-(2**63), 2**63 - 1)
bulks = st.none() | st.binary(max_size=40)
replies = st.recursive(
    st.tuples(st.just("line"), lines)
    | st.tuples(st.just("error"), texts)
    | st.tuples(st.just("number"), numbers)
    | st.tuples(st.just("bulk"), bulks),
    lambda inner: st.tuples(st.just("array"), st.none() | st.lists(inner, max_size=4)),
    max_leaves=12,
)


def written(kind: str, value: Any) -> bytes:
    """Return a reply as a server writes it."""
    if kind == "line":
        return b"+%b\r\n" % value
    if kind == "error":
        return b"-%b\r\n" % value.args[0].encode()
    if kind == "number":
        return b":%d\r\n" % value
    if value is None:
        return b"$-1\r\n" if kind == "bulk" else b"*-1\r\n"
    if kind == "bulk":
        return b"$%d\r\n%b\r\n" % (len(value), value)
    items = b"".join(written(*item) for item in value)
    return b"*%d\r\n%b" % (len(value), items)


def read(kind: str, value: Any) -> Any:
    """Return what a client makes of it."""
    if kind == "array" and value is not None:
        return [read(*item) for item in value]
    return value


def replies_of(reader: ReplyReader, pieces: Sequence[bytes]) -> list[Any]:
    """Return the replies that a reader finds in the pieces of a stream."""
    found = []
    for piece in pieces:
        reader.feed(piece)
        reply = reader.gets()
        while reply is not INCOMPLETE:
            found.append(reply)
            reply = reader.gets()
    return found


@pytest.mark.parametrize("make", READERS)
@settings(deadline=None)
@given(sent=st.lists(replies, max_size=4), data=st.data())
def test_any_replies_in_any_pieces(
    make: Any, sent: list[tuple[str, Any]], data: st.DataObject
) -> None:
    """What a server says is what is read, in the same order."""
    stream = b"".join(written(*reply) for reply in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [
        stream[begin:end]
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    ]
    assert replies_of(make(Failure), pieces) == [read(*reply) for reply in sent]


SAMPLE: list[tuple[str, Any]] = [
    ("line", b"OK"),
    ("error", Failure("ERR no")),
    ("number", -42),
    ("bulk", b"binary\r\n\x00\xff"),
    ("bulk", b""),
    ("bulk", None),
    ("array", [("bulk", b"a"), ("array", [("number", 1), ("array", [])])]),
    ("array", None),
    ("array", [("error", Failure("WRONGTYPE")), ("bulk", b"b")]),
]


@pytest.mark.parametrize("make", READERS)
def test_split_at_every_byte(make: Any) -> None:
    """Wherever one piece ends and the next begins, and byte for byte."""
    stream = b"".join(written(*reply) for reply in SAMPLE)
    expected = [read(*reply) for reply in SAMPLE]
    for at in range(len(stream) + 1):
        assert replies_of(make(Failure), [stream[:at], stream[at:]]) == expected
    single = [stream[at : at + 1] for at in range(len(stream))]
    assert replies_of(make(Failure), single) == expected


@pytest.mark.parametrize("make", READERS)
@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x15\x03\x01\x00\x02\r\n",
        b":many\r\n",
        b"$x\r\nabc\r\n",
        b"*x\r\n",
        # What int() takes.
        b"$1_0\r\n0123456789\r\n",
        b"$+1\r\na\r\n",
        b"$ 1\r\na\r\n",
        b"$01\r\na\r\n",
        b"*1_0\r\n",
        b":1_0\r\n",
        b":-0\r\n",
        b":\r\n",
        b":\xd9\xa1\r\n",
        b":9223372036854775808\r\n",
        b":-9223372036854775809\r\n",
        b":" + b"1" * 5000 + b"\r\n",
        # Sizes of nothing.
        b"$-2\r\n",
        b"*-2\r\n",
        b"*4294967296\r\n",
        b"$9223372036854775808\r\n",
        # Half an end of a line.
        b"+O\nK\r\n",
        b"+O\rK\r\n",
        b"-ERR a\rb\r\n",
        b"*1\r\n" * 1025 + b":1\r\n",
    ],
)
def test_what_is_no_reply(make: Any, stream: bytes) -> None:
    """A server that is no Redis is told, and not waited for."""
    with pytest.raises(InvalidResponse):
        replies_of(make(Failure), [stream])


def test_end_of_a_value() -> None:
    """What stands where a value is to end is looked at; hiredis does not look."""
    for stream in (b"$3\r\nabcXX", b"$3\r\nabc\r\r", b"$1\r\nabc\r\n"):
        with pytest.raises(InvalidResponse, match="does not end"):
            replies_of(PythonReader(Failure), [stream])


def test_arrays_may_be_deep() -> None:
    """As deep as hiredis reads them."""
    for make in READERS:
        (reply,) = replies_of(make(Failure), [b"*1\r\n" * 1024 + b":1\r\n"])
        for _ in range(1024):
            (reply,) = reply
        assert reply == 1


class CountingBuffer(bytearray):
    """Bytes that count how many of them have been searched."""

    searched = 0

    def find(self, sub: Any, start: Any = 0, *args: Any) -> int:
        """Return where something is."""
        self.searched += len(self) - start
        return super().find(sub, start, *args)


def test_an_endless_line() -> None:
    """It is looked through once, and not for ever."""
    reader = PythonReader(Failure)
    reader._buffer = buffer = CountingBuffer()
    for _ in range(MAX_LINE // 1024):
        assert replies_of(reader, [b"+" * 1024]) == []
    assert buffer.searched < 2 * MAX_LINE
    with pytest.raises(InvalidResponse, match="a line of more than"):
        replies_of(reader, [b"+" * 1024])
    with pytest.raises(InvalidResponse, match="a line of more than"):
        replies_of(PythonReader(Failure), [b"+" * (MAX_LINE + 1) + b"\r\n"])


class Push(list[Any]):
    """What hiredis makes of a push message."""


@pytest.mark.parametrize(
    "reply",
    [Push(), [Push()], [1, [b"", [True]]], {}, {1}, 1.5, False, "text", (1,)],
)
def test_replies_of_resp_3(reply: Any) -> None:
    """They answer nothing where RESP 2 is spoken."""
    with pytest.raises(InvalidResponse, match="of RESP 2"):
        verify(reply)


def test_replies_of_resp_2() -> None:
    """All that there are, and errors among them."""
    verify([b"", 1, None, [], Failure("ERR"), [[b"", Failure("WRONGTYPE")]]])


@pytest.mark.parametrize(
    "text",
    [
        "MOVED",
        "MOVED ",
        "ASK 1",
        "MOVED x y:z",
        "MOVED 1 host",
        "MOVED 1 host:",
        "MOVED 1 host:0",
        "MOVED 1 host:65536",
        "MOVED 1 host:-1",
        "MOVED 16384 host:1",
        "MOVED -1 host:1",
        "MOVED 1_0 host:1",
        "MOVED 1 host:1 more",
        "MOVED  1 host:1",
        "ASK \u0661 host:1",
        "MOVED 1 host?port=1#:1",
        "ASK 1 /path:1",
        "MOVED 1 [::1]:1",
        "RAISES",
    ],
)
def test_errors_that_can_not_be_read(text: str) -> None:
    """A redirection that leads nowhere, and what an error's class fails at."""

    def make_error(text: str) -> Exception:
        raise ValueError(text)

    (reply,) = replies_of(make_reader(make_error), [f"-{text}\r\n".encode()])
    with pytest.raises(InvalidResponse, match=re.escape(f"'{text}' is not an")):
        verify([reply])


@pytest.mark.parametrize(
    "text",
    [
        "MOVED 0 host:1",
        "ASK 16383 10.0.0.1:65535",
        "MOVED 3999 ::1:6379",
        "MOVED 3999 :6379",
        "MOVED 3999 ?:6379",
        "MOVEDON",
        "ASKING 1",
        "ERR MOVED",
        "",
    ],
)
def test_errors_that_can_be_read(text: str) -> None:
    """Redirections that lead somewhere, also without a host, and all others."""
    replies = replies_of(make_reader(Failure), [f"-{text}\r\n".encode()])
    assert replies == [Failure(text)]


def test_without_hiredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hiredis is not installed, Python reads."""
    monkeypatch.setattr(resp, "hiredis", None)
    assert isinstance(make_reader(Failure), PythonReader)


def test_with_hiredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is, it is told what the two have in common."""
    monkeypatch.setattr(resp, "hiredis", SimpleNamespace(Reader=dict))
    made: Any = make_reader(Failure)
    assert made.pop("replyError")("ERR") == Failure("ERR")
    assert made == {"protocolError": InvalidResponse, "notEnoughData": INCOMPLETE}


def test_error_that_is_no_text() -> None:
    """Bytes that are no UTF-8 do not keep an error from being told."""
    for make in READERS:
        (error,) = replies_of(make(Failure), [b"-ERR \xff\r\n"])
        assert isinstance(error, Failure)
