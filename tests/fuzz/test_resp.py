"""Streams of a server that has been hijacked: cut, garbled, or no RESP at all."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.connection import DefaultParser
from redis.exceptions import ConnectionError, InvalidResponse, ResponseError

from django_entra_redis.commands import resp
from django_entra_redis.commands.resp import (
    INCOMPLETE,
    PLAIN,
    UNREADABLE,
    ReplyReader,
    make_reader,
    verify,
)
from django_entra_redis.connections.protocol import RedisProtocol

quick = settings(deadline=None, database=None)

# Not what hiredis makes room for at once: an array of two billion takes 16 GB.
numbers = st.integers(-3, 5) | st.integers(2**32, 2**64) | st.integers(-(2**64), -3)
sizes = numbers.map(b"%d".__mod__) | st.sampled_from(
    [b"", b"1_0", b"+1", b" 1", b"01", b"-0", b"-1", b"-2", b"?", b"x", b"\xd9\xa1"]
)
words = st.sampled_from(
    [
        b"OK",
        b"MOVED 1 h:1",
        b"MOVED x",
        b"ASK 99999 h:1",
        b"ERR no",
        b"a\nb",
        b"\r",
        b"",
    ]
)
#: Lines of all kinds that RESP has, of 2 and of 3, and some that it has not.
lines = st.builds(
    lambda kind, rest: kind + rest + b"\r\n",
    st.sampled_from([bytes([code]) for code in b"+-:$*>%~#,_(=!|\x00H"]),
    sizes | words,
)
bulks = st.binary(max_size=12).map(lambda data: b"$%d\r\n%b\r\n" % (len(data), data))
streams = st.lists(lines | bulks | st.binary(max_size=6), max_size=12).map(b"".join)


def pieces_of(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Return a stream in pieces."""
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(places)]


def make_python_reader(make_error: Any) -> ReplyReader:
    """Return a reader as where there is no hiredis."""
    with patch.object(resp, "hiredis", None):
        return make_reader(make_error)


def outcome(reader: ReplyReader, pieces: Sequence[bytes]) -> tuple[list[Any], bool]:
    """Return the replies that a reader finds, and whether it finds an error then."""
    found: list[Any] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (reply := reader.gets()) is not INCOMPLETE:
                if type(reply) not in PLAIN:
                    verify(reply)
                found.append(comparable(reply))
    except UNREADABLE:
        return found, True
    return found, False


def comparable(reply: Any) -> Any:
    """Return a reply as something that is equal to the same reply."""
    if isinstance(reply, Exception):
        return type(reply), str(reply)
    return [comparable(item) for item in reply] if type(reply) is list else reply


@quick
@given(stream=streams, cuts=st.lists(st.integers(0, 999), max_size=5))
@example(stream=b"+a\r\n", cuts=[2, 3])
def test_pieces_make_no_difference(stream: bytes, cuts: list[int]) -> None:
    """However a stream is cut, the same comes out: replies, then maybe the error."""
    for make in (make_python_reader, make_reader):
        whole = outcome(make(ResponseError), [stream])
        assert outcome(make(ResponseError), pieces_of(stream, cuts)) == whole


@quick
@given(stream=st.lists(lines | bulks, max_size=8).map(b"".join))
def test_both_readers_agree(stream: bytes) -> None:
    """With hiredis and without, the same is a reply, and the same is none.

    But for types of RESP 3, some of which look like one of RESP 2 once hiredis has read
    them, and for the end of a value, which it does not look at.
    """
    ours, refused = outcome(make_python_reader(ResponseError), [stream])
    theirs, _ = outcome(make_reader(ResponseError), [stream])
    assert theirs[: len(ours)] == ours
    assert refused or len(theirs) == len(ours)


class Transport:
    """Takes what is written, and notes that it is closed."""

    aborted = False

    def write(self, data: bytes) -> None:
        """Take bytes."""

    def abort(self) -> None:
        """Close."""
        self.aborted = True


@pytest.fixture(scope="module")
def loop() -> Any:
    """An event loop, which each example uses for a moment."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


@quick
@given(
    stream=streams,
    cuts=st.lists(st.integers(0, 999), max_size=5),
    counts=st.lists(st.integers(0, 3), max_size=4),
)
def test_a_connection_never_raises(
    loop: asyncio.AbstractEventLoop, stream: bytes, cuts: list[int], counts: list[int]
) -> None:
    """Whoever waits gets a reply or a connection error; then nothing more is read."""

    async def main() -> None:
        link, transport = RedisProtocol(loop, "fuzz"), Transport()
        link.connection_made(transport)
        futures = [link.submit(b"x", count) for count in counts]
        await asyncio.sleep(0)
        for piece in pieces_of(stream, cuts):
            link.data_received(piece)
        assert transport.aborted == link.closed
        link.abort()
        for future in futures:
            assert future.done()
            error = future.exception()
            assert error is None or isinstance(error, ConnectionError)

    loop.run_until_complete(main())


@quick
@given(text=st.text(max_size=40) | words.map(bytes.decode))
def test_errors_of_redis_py(text: str) -> None:
    """Whatever an error reply says, it is an error reply, or the stream is none."""
    reader = make_reader(DefaultParser.parse_error)
    reader.feed(b"-" + text.encode() + b"\r\n")
    try:
        reply = reader.gets()
        verify(reply)
    except InvalidResponse:
        return
    assert isinstance(reply, Exception)
