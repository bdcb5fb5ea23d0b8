"""The two halves of an exchange: commands out now, their replies in later."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from django_entra_redis.connections.exchanger import (
    CHUNK,
    Exchanger,
    make_exchanger,
)
from django_entra_redis.exceptions import InvalidReplyError

Ends = tuple[Exchanger, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Give an exchanger, and the other end of its socket."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    with ours, theirs:
        made = make_exchanger(ours, 5)
        assert made is not None
        yield made, theirs


def test_replies(ends: Ends) -> None:
    """They come one by one or in pieces, errors among them."""
    exchanger, server = ends
    exchanger.send(b"commands")
    assert server.recv(100) == b"commands"
    server.sendall(b"+OK\r\n$-1\r\n-ERR no\r\n:5\r\n")
    ok, nothing, error, number = exchanger.receive(4)
    assert (ok, nothing, number) == (b"OK", None, 5)
    assert type(error) is ResponseError
    large = b"$%d\r\n%b\r\n" % (3 * CHUNK, b"x" * 3 * CHUNK)
    whole = large + b"$1\r\ny\r\n"
    sender = threading.Thread(target=server.sendall, args=(whole,))
    sender.start()
    assert exchanger.receive(2) == [b"x" * 3 * CHUNK, b"y"]
    sender.join()


def test_no_wait(ends: Ends) -> None:
    """What has not come is not waited for."""
    exchanger, server = ends
    with pytest.raises(TimeoutError, match="Timeout reading"):
        exchanger.receive(1, wait=False)
    server.sendall(b":1\r\n")
    assert exchanger.receive(1, wait=False) == [1]


def test_nothing_after_all(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that the system calls readable may have nothing, as after a packet with
    a wrong checksum: it is asked again."""
    exchanger, server = ends
    read, tries = exchanger._read_some, iter((BlockingIOError, None))

    def read_some() -> bytes:
        if (error := next(tries)) is not None:
            raise error
        return read()

    monkeypatch.setattr(exchanger, "_read_some", read_some)
    server.sendall(b":1\r\n")
    assert exchanger.receive(1) == [1]


@pytest.mark.parametrize("pieces", [1, 2])
def test_refused(ends: Ends, pieces: int) -> None:
    """A server that reads no further has refused what follows, too."""
    exchanger, server = ends
    said = [b"+OK\r\n-ERR Protocol error: invalid bulk length\r\n"]
    if pieces == 2:
        said = [said[0][:9], said[0][9:]]
    server.sendall(said[0])
    replies: list[list[object]] = []
    reader = threading.Thread(target=lambda: replies.append(exchanger.receive(3)))
    reader.start()
    for piece in said[1:]:
        server.sendall(piece)
    server.shutdown(socket.SHUT_WR)
    reader.join()
    ok, *refused = replies[0]
    assert ok == b"OK"
    assert [str(error) for error in refused] == [
        "Protocol error: invalid bulk length"
    ] * 2


def test_refused_and_reset(ends: Ends) -> None:
    """So it is if the connection is reset: the server closes it with commands that it
    has not read."""
    exchanger, server = ends
    exchanger.send(b"commands")
    server.sendall(b"+OK\r\n-ERR Protocol error: invalid bulk length\r\n")
    server.close()
    assert [str(reply) for reply in exchanger.receive(3)[1:]] == [
        "Protocol error: invalid bulk length"
    ] * 2


def test_broken(ends: Ends) -> None:
    """Redis-py's errors are raised, and its own for what is no reply."""
    exchanger, server = ends
    begun = b"+OK\r\n" * 3 + b"$%d\r\n" % (3 * CHUNK) + b"x" * 2 * CHUNK

    def say() -> None:
        server.sendall(begun)
        server.close()

    sender = threading.Thread(target=say)
    sender.start()
    with pytest.raises(ConnectionError, match="closed by server"):
        exchanger.receive(5)
    sender.join()


def test_broken_writing(ends: Ends) -> None:
    """Redis-py's error is raised, as where nothing can be read."""
    exchanger, server = ends
    server.close()
    with pytest.raises(ConnectionError, match="while writing to socket"):
        exchanger.send(b"more")


@pytest.mark.parametrize(
    "said", [b"?\r\n", b"+OK\r\n,1.5\r\n", b"*1\r\n%1\r\n+a\r\n:1\r\n"]
)
def test_no_replies(ends: Ends, said: bytes) -> None:
    """What is no reply of RESP 2 is an error."""
    exchanger, server = ends
    server.sendall(said + b"+OK\r\n")
    with pytest.raises(InvalidReplyError, match="not a Redis reply"):
        exchanger.receive(2)


@pytest.mark.parametrize("cut", range(1, 12))
def test_large_value_in_two_pieces(ends: Ends, cut: int) -> None:
    """Its header may be cut anywhere: a part of its size is not its size."""
    exchanger, server = ends
    value = b"1\r\n" * 400_000
    whole = b"$%d\r\n%b\r\n" % (len(value), value)

    def answer() -> None:
        server.recv(100)
        server.sendall(whole[:cut])
        # Until the first piece has been read.
        time.sleep(0.02)
        with contextlib.suppress(OSError):
            server.sendall(whole[cut:])

    sender = threading.Thread(target=answer, daemon=True)
    sender.start()
    assert exchanger.exchange(b"GET") == value
    sender.join()


def test_reply_to_nothing(ends: Ends) -> None:
    """It is not taken for the replies to the commands that are sent next."""
    exchanger, server = ends

    def answer() -> None:
        server.recv(100)
        server.sendall(b"+OK\r\n$2\r\n\1\2\r\n")

    sender = threading.Thread(target=answer)
    sender.start()
    assert exchanger.exchange(b"SET") == b"OK"
    sender.join()
    with pytest.raises(ConnectionError, match="without a command"):
        exchanger.send(b"DEL DEL")
