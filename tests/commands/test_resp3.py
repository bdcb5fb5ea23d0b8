"""RESP 3 as a tracking connection gets it, with hiredis and without."""

from typing import Any

import pytest
from redis.exceptions import InvalidResponse

from django_entra_redis.commands import resp3
from django_entra_redis.commands.resp import INCOMPLETE, ReplyReader
from django_entra_redis.commands.resp3 import PushReader, make_push_reader

GREETING = (
    b"%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n$7\r\nmodules\r\n*0\r\n"
)


@pytest.fixture(params=["fallback", "best"])
def reader(request: pytest.FixtureRequest) -> ReplyReader:
    """Give the reader in Python, and the best that there is."""
    make: Any = PushReader if request.param == "fallback" else make_push_reader
    made: ReplyReader = make(ValueError)
    return made


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_pushes_among_replies(reader: ReplyReader, step: int) -> None:
    """Are told apart, wherever the bytes are cut."""
    data = (
        b"+PONG\r\n>2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"
        b"$5\r\nvalue\r\n>2\r\n$10\r\ninvalidate\r\n_\r\n:5\r\n_\r\n"
        b"~1\r\n:1\r\n-ERR why\r\n"
    )
    found = []
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
        while (reply := reader.gets()) is not INCOMPLETE:
            found.append(reply)
    pushes = [isinstance(reply, (resp3.PUSH, resp3.Push)) for reply in found]
    assert pushes == [False, True, False, True, False, False, False, False]
    assert list(found[1]) == [b"invalidate", [b"a", b"b"]]
    assert list(found[3]) == [b"invalidate", None]
    assert [*found[:1], found[2], *found[4:6]] == [b"PONG", b"value", 5, None]
    assert list(found[6]) == [1]
    assert isinstance(found[7], ValueError)


def test_the_greeting(reader: ReplyReader) -> None:
    """A map, whatever it becomes."""
    reader.feed(GREETING)
    found = reader.gets()
    pairs = (
        found.items()
        if isinstance(found, dict)
        else zip(found[::2], found[1::2], strict=True)
    )
    assert (b"server", b"redis") in list(pairs)


def test_what_nobody_expects() -> None:
    """Is no reply: neither the one before it nor the one after is to be believed."""
    reader = PushReader(ValueError)
    reader.feed(b"@what\r\n")
    with pytest.raises(InvalidResponse):
        reader.gets()


def test_without_hiredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its version 3, hiredis takes push messages for replies."""
    monkeypatch.setattr(resp3, "PUSH", resp3.Push)
    assert isinstance(make_push_reader(ValueError), PushReader)
