"""Replies out of bytes: with hiredis and without, however the bytes are split."""

import contextlib
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
    PythonReader,
    ReplyReader,
    make_reader,
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
    ],
)
def test_what_is_no_reply(make: Any, stream: bytes) -> None:
    """A server that is no Redis is told, and not waited for."""
    with pytest.raises(InvalidResponse):
        replies_of(make(Failure), [stream])


@settings(deadline=None)
@given(stream=st.binary(max_size=60))
def test_any_bytes(stream: bytes) -> None:
    """Nothing but replies, or the error, comes out of anything."""
    with contextlib.suppress(InvalidResponse):
        replies_of(PythonReader(Failure), [stream])


def test_without_hiredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hiredis is not installed, Python reads."""
    monkeypatch.setattr(resp, "hiredis", None)
    assert isinstance(make_reader(Failure), PythonReader)


def test_with_hiredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is, it is told what the two have in common."""
    monkeypatch.setattr(resp, "hiredis", SimpleNamespace(Reader=dict))
    made: Any = make_reader(Failure)
    assert made == {
        "protocolError": InvalidResponse,
        "replyError": Failure,
        "notEnoughData": INCOMPLETE,
    }


def test_error_that_is_no_text() -> None:
    """Bytes that are no UTF-8 do not keep an error from being told."""
    for make in READERS:
        (error,) = replies_of(make(Failure), [b"-ERR \xff\r\n"])
        assert isinstance(error, Failure)
