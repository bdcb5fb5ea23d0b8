"""A tracking connection, byte by byte: its server is the test."""

import asyncio
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from django_entra_redis.commands.packing import pack_all
from django_entra_redis.connections import tracked_calls, tracked_connection
from django_entra_redis.connections.copies import Copies
from django_entra_redis.connections.tracked_calls import Authentication, Call, Fetch
from django_entra_redis.connections.tracked_connection import TrackedConnection
from emulator.certificates import CertificateAuthority
from tests.support.caches import wait_until

GET = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$4\r\nPTTL\r\n$1\r\na\r\n"


def push(*keys: str) -> bytes:
    """Return the message that keys have changed."""
    names = b"".join(b"$%d\r\n%b\r\n" % (len(key), key.encode()) for key in keys)
    return b">2\r\n$10\r\ninvalidate\r\n*%d\r\n%b" % (len(keys), names)


class Server:
    """The other end of a connection."""

    def __init__(self, **options: Any) -> None:
        ours, self.sock = socket.socketpair()
        ours.setblocking(False)
        self.sock.settimeout(30)
        self.copies = Copies(100_000, 1000)
        given = {"timeout": 5.0, "max_staleness": 60.0, "now": time.monotonic()}
        self.connection = TrackedConnection(ours, self.copies, **{**given, **options})

    def send(self, data: bytes) -> None:
        """Send something."""
        self.sock.sendall(data)

    def expect(self, data: bytes) -> None:
        """Wait for something."""
        found = b""
        while len(found) < len(data):
            found += self.sock.recv(len(data) - len(found))
        assert found == data

    def fill(self, key: str = "a", data: bytes = b"1") -> None:
        """Have there be a copy."""
        call = self.connection.fetch([key])
        assert call is not None
        self.send(b"$%d\r\n%b\r\n:-1\r\n" % (len(data), data))
        self.connection.wait(call)
        assert call.values == [data]

    def kept(self, key: str = "a") -> bool:
        """Return whether there is a copy."""
        return self.copies.owner(key) is not None

    def close(self) -> None:
        """Close both ends."""
        self.connection.lose("the test is over")
        self.sock.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """Give a connection and its other end."""
    made = Server()
    yield made
    made.close()


@pytest.fixture(params=["epoll", "poll", "select"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a system without epoll, or without poll too: gevent and eventlet make them."""
    if request.param != "epoll":
        monkeypatch.delattr(select, "epoll", raising=False)
    if request.param == "select":
        monkeypatch.delattr(select, "poll", raising=False)


@pytest.mark.parametrize("key", ["a", "naïve", "x" * 300])
def test_the_bytes_of_a_fetch(key: str) -> None:
    """Are those of its two commands."""
    packed = pack_all([("GET", key), ("PTTL", key)])
    assert tracked_calls.pack_fetch(key) == packed


@pytest.mark.usefixtures("system")
def test_on_any_system() -> None:
    """Values come, and so do messages."""
    server = Server()
    server.fill()
    server.expect(GET)
    assert server.connection.is_fresh("a")
    assert server.kept()
    server.send(push("b", "a"))
    assert server.connection.is_fresh("a")
    assert not server.kept()
    assert server.copies.invalidations == 2
    server.close()
    assert not server.connection.is_fresh("a")


@pytest.mark.parametrize(
    ("stream", "kept"),
    [
        (b"$1\r\n1\r\n:-1\r\n", True),
        (b"$1\r\n1\r\n:5000\r\n", True),
        (b"$1\r\n1\r\n:0\r\n", False),
        (b"$1\r\n1\r\n:-2\r\n", False),
        (b"_\r\n:-2\r\n", False),
        (push("a") + b"$1\r\n1\r\n:-1\r\n", False),
        (b"$1\r\n1\r\n" + push("a") + b":-1\r\n", False),
        (b"$1\r\n1\r\n:-1\r\n" + push("a"), False),
        (b"$1\r\n1\r\n" + push("b") + b":-1\r\n", True),
        (b">2\r\n$10\r\ninvalidate\r\n_\r\n$1\r\n1\r\n:-1\r\n", False),
        (b">2\r\n$5\r\nother\r\n_\r\n$1\r\n1\r\n:-1\r\n", True),
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_messages_between_replies(
    server: Server, stream: bytes, kept: bool, step: int
) -> None:
    """A key that changes while its value is on its way gets no copy."""
    call = server.connection.fetch(["a"])
    assert call is not None
    for at in range(0, len(stream), step):
        server.send(stream[at : at + step])
        server.connection.take_in()
    assert call.done
    assert call.values == ([None] if stream.startswith(b"_") else [b"1"])
    assert server.kept() == kept


@pytest.mark.parametrize(
    "stream",
    [
        b"+what nobody asked for\r\n",
        b"@no reply\r\n",
        b"",
    ],
)
def test_a_stream_that_ends_or_makes_no_sense(server: Server, stream: bytes) -> None:
    """All copies of the connection go; the next value is asked for elsewhere."""
    server.fill()
    if stream:
        server.send(stream)
    else:
        server.sock.close()
    assert not server.connection.is_fresh("a")
    assert not server.kept()
    assert server.copies.flushes == 1
    assert server.connection.fetch(["a"]) is None
    server.connection.lose("again")
    assert server.copies.flushes == 1


@pytest.mark.parametrize(
    ("replies", "lost"),
    [
        (b"-WRONGTYPE Operation\r\n:-1\r\n", False),
        (b"-MOVED 1 127.0.0.1:1\r\n-MOVED 1 127.0.0.1:1\r\n", False),
        (b"-ASK 1 127.0.0.1:1\r\n-ASK 1 127.0.0.1:1\r\n", False),
        (b"-TRYAGAIN The slot is on its way\r\n:-1\r\n", False),
        (b"-CLUSTERDOWN The cluster is down\r\n:1\r\n", False),
        (b"-NOPERM no\r\n:-1\r\n", True),
        (b"-NOAUTH Authentication required.\r\n-NOAUTH x\r\n", True),
        (b"-ERR NOAUTH Authentication required.\r\n-ERR NOAUTH x\r\n", True),
        (b"*0\r\n:-1\r\n", True),
        (b"$1\r\n1\r\n+x\r\n", True),
    ],
)
def test_error_replies(server: Server, replies: bytes, lost: bool) -> None:
    """Those about the key cost it its copy, the others cost the connection."""
    server.fill("b")
    call = server.connection.fetch(["a"])
    assert call is not None
    server.send(replies)
    server.connection.wait(call)
    assert call.values is None
    assert not server.kept()
    assert server.connection.closed == lost
    assert server.kept("b") != lost


def test_nothing_comes() -> None:
    """After so long the connection counts as lost."""
    server = Server(timeout=0.05)
    server.fill()
    call = server.connection.fetch(["b"])
    assert call is not None
    server.connection.wait(call)
    assert call.done
    assert call.values is None
    assert server.connection.closed
    assert not server.kept()
    server.close()


def test_a_value_that_takes_too_long() -> None:
    """What was on its way is fetched no more; what no part has come of still is."""
    server = Server(timeout=0.05)
    call, behind = server.connection.fetch(["a", "b"]), server.connection.fetch(["c"])
    assert call is not None
    assert behind is not None
    server.send(b"$1\r\n1\r\n:-1\r\n$900\r\nbeg")
    server.connection.wait(call)
    assert server.connection.silent
    assert [name for name in "abc" if server.copies.is_cold(name)] == ["a", "b"]
    server.close()


def test_a_value_asked_for_that_takes_too_long() -> None:
    """The same holds for one value."""
    server = Server(timeout=0.05)
    server.send(b"$900\r\nbeg")
    call = server.connection.ask("a")
    assert call is not None
    assert call.values is None
    assert server.copies.is_cold("a")
    server.close()


def test_a_half_reply_to_auth() -> None:
    """No value is on its way then."""
    server = Server(timeout=0.05)
    token: Any = None
    server.connection._send(b"", Authentication(token))
    call = server.connection.fetch(["a"])
    assert call is not None
    server.send(b"+O")
    server.connection.wait(call)
    assert server.connection.silent
    assert not server.copies.is_cold("a")
    server.close()


def test_a_value_that_drips() -> None:
    """A byte now and then keeps nobody waiting for longer than that."""
    server = Server(timeout=0.1)
    call = server.connection.fetch(["a"])
    assert call is not None
    server.send(b"$9\r\n")
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(OSError):
                server.send(b"\r")

    thread = threading.Thread(target=drip)
    thread.start()
    server.connection.wait(call)
    over.set()
    thread.join(30)
    assert call.values is None
    assert server.connection.closed
    server.close()


def test_a_server_that_takes_nothing_in(server: Server) -> None:
    """What does not fit counts as lost: all that came before is unanswered, too."""
    server.connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    call = server.connection.fetch(["x" * 1000] * 15)
    assert call is not None
    assert call.values is None
    assert server.connection.closed


def test_too_many_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others read without a copy then, until the server has answered."""
    monkeypatch.setattr(tracked_connection, "MOST_UNANSWERED", len(GET) + 1)
    assert server.connection.fetch(["a"]) is not None
    assert server.connection.fetch(["b"]) is None
    server.send(b"$1\r\n1\r\n:-1\r\n")
    server.connection.take_in()
    server.send(b"$1\r\n1\r\n:-1\r\n")
    assert server.connection.ask("b") is not None
    assert server.connection.ask("bcd") is None


def test_hits_wait_for_messages_that_another_thread_processes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken them off the socket, where nobody else finds them any more."""
    server.fill()
    taken, go_on = threading.Event(), threading.Event()
    dispatch = server.connection._dispatch

    def slowly() -> None:
        taken.set()
        assert go_on.wait(30)
        dispatch()

    monkeypatch.setattr(server.connection, "_dispatch", slowly)
    server.send(push("a"))
    with ThreadPoolExecutor(2) as pool:
        pool.submit(server.connection.take_in)
        assert taken.wait(30)
        hit = pool.submit(lambda: server.connection.is_fresh("a") and server.kept())
        assert not server.connection.has_come()
        go_on.set()
        assert not hit.result()


def test_all_records_of_tls(tmp_path: Path) -> None:
    """It gives one at a time, and a key's message may be in the last."""
    authority = CertificateAuthority()
    (tmp_path / "server.pem").write_bytes(authority.server_pem("localhost"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    server = Server()
    with ThreadPoolExecutor(1) as pool:
        server.connection._sock.setblocking(True)
        other = pool.submit(context.wrap_socket, server.sock, server_side=True)
        ours = trusting.wrap_socket(
            server.connection._sock, server_hostname="localhost"
        )
    ours.setblocking(False)
    server.sock = other.result()
    server.connection = TrackedConnection(
        ours, server.copies, timeout=5.0, max_staleness=60.0, now=time.monotonic()
    )
    server.fill()
    for key in ("b", "c", "a"):
        server.send(push(key))
    assert server.connection.is_fresh("a")
    assert not server.kept()
    assert server.copies.invalidations == 3
    server.close()


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("last", [push("b"), push("b")[:9]])
def test_closed_after_a_message(last: bytes) -> None:
    """No copy is used then: of later changes, this connection hears nothing."""
    server = Server()
    server.fill()
    server.expect(GET)
    server.send(last)
    server.sock.close()
    assert not server.connection.is_fresh("a")
    assert not server.kept()
    server.close()


@pytest.mark.parametrize("pieces", [1, 64])
def test_a_lot_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """Is taken in piece by piece, so many at a time."""
    monkeypatch.setattr(tracked_connection, "_MOST_PIECES", pieces)
    server.fill()
    names = [f"key-{number}" for number in range(1000)]
    sender = threading.Thread(target=server.send, args=(push(*names) * 20,))
    sender.start()
    while server.copies.invalidations < 20_000:
        assert server.connection.is_fresh("a")
    sender.join()
    assert server.kept()


def test_threads_hand_over(server: Server) -> None:
    """One waits for bytes on behalf of all, until its own value is there."""
    with ThreadPoolExecutor(3) as pool:

        def read(key: str) -> Any:
            call = server.connection.fetch([key])
            assert call is not None
            server.connection.wait(call)
            return call.values

        found = []
        for key in "abc":
            found.append(pool.submit(read, key))
            server.expect(GET.replace(b"\na\r", b"\n%b\r" % key.encode()))
        for number in b"123":
            server.send(b"$1\r\n%c\r\n:-1\r\n" % number)
        assert [future.result() for future in found] == [[b"1"], [b"2"], [b"3"]]
    assert server.connection._poller is None


def test_one_lock_for_all_turns() -> None:
    """Whoever waits on it would not be woken by another one; nor once it is done."""
    call = Call(1, 0)
    call.want_turn()
    lock = call.turn
    assert lock is not None
    call.want_turn()
    assert call.turn is lock
    call.renounce_turn()
    call.done = True
    call.want_turn()
    assert call.turn is None


def test_done_just_before_it_waits_for_its_turn(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds that another thread has finished its call waits for no turn."""
    call = server.connection.fetch(["a"])
    assert call is not None

    def finish(call: Fetch) -> None:
        call.done = True

    with monkeypatch.context() as patch:
        patch.setattr(server.connection, "_poller", -1)
        patch.setattr(Fetch, "want_turn", finish)
        server.connection.wait(call)
    assert call.turn is None


class Interrupted:
    """A lock on which a thread is interrupted, as by a signal handler."""

    def acquire(self, *, timeout: float) -> bool:
        """Raise what the handler raises."""
        raise KeyboardInterrupt

    def release(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("how", ["later", "interrupted"])
def test_turns_are_for_who_waits(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A thread may ask other servers before it waits, or never wait: that holds up
    nobody else."""
    server = Server(timeout=30.0)
    with ThreadPoolExecutor(2) as pool:
        polls = pool.submit(fetch_with(server.connection), "b")
        wait_until(lambda: server.connection._sleeping)
        call = server.connection.fetch(["a"])
        assert call is not None
        if how == "interrupted":
            monkeypatch.setattr(tracked_calls, "_taken_lock", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.connection.wait(call)
            monkeypatch.undo()
        waits = pool.submit(fetch_with(server.connection), "c")
        wait_until(lambda: len(server.connection._under_way) == 3)
        wait_until(lambda: server.connection._under_way[-1].turn is not None)
        server.send(b"$1\r\n2\r\n:-1\r\n")
        assert polls.result().values == [b"2"]
        server.send(b"$1\r\n1\r\n:-1\r\n$1\r\n3\r\n:-1\r\n")
        assert waits.result().values == [b"3"]
    server.connection.wait(call)
    assert call.values == [b"1"]
    assert server.connection._poller is None
    server.close()


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("sleeps", [False, True])
@pytest.mark.parametrize("how", ["wait", "ask"])
def test_another_takes_in_what_one_waits_for(
    monkeypatch: pytest.MonkeyPatch, how: str, sleeps: bool
) -> None:
    """A hit of another thread may do so, before this one sleeps or while it does."""
    server = Server(timeout=1000.0)
    server.fill()
    server.expect(GET)
    waiting = server.connection._wait_for_bytes
    other = ThreadPoolExecutor(1)

    def take_in() -> None:
        server.send(b"$1\r\n2\r\n:-1\r\n")
        # As when the kernel has not yet run the thread that it has woken.
        with server.connection._gate:
            server.connection.take_in()

    def overtaken(seconds: float) -> None:
        monkeypatch.setattr(server.connection, "_wait_for_bytes", waiting)
        done = other.submit(take_in)
        if not sleeps:
            done.result()
        waiting(seconds)

    monkeypatch.setattr(server.connection, "_wait_for_bytes", overtaken)
    call = (server.connection.ask if how == "ask" else fetch_with(server.connection))(
        "b"
    )
    other.shutdown()
    assert call is not None
    assert call.values == [b"2"]
    assert not server.connection.closed
    server.close()


def test_asking_for_one(server: Server) -> None:
    """Is what fetching is: what is sent, what is told, and what is kept."""
    for stream in (
        b"$1\r\n1\r\n:-1\r\n",
        b"_\r\n:-2\r\n",
        b"$1\r\n1\r\n:0\r\n",
        push("a") + b"$1\r\n1\r\n:5000\r\n",
        b"-WRONGTYPE no string\r\n:-1\r\n",
    ):
        found = []
        for way in (server.connection.ask, fetch_with(server.connection)):
            server.copies.flush()
            server.send(stream)
            call = way("a")
            server.expect(GET)
            assert call is not None
            found.append((call.values, server.kept(), server.connection.closed))
        assert found[0] == found[1]
    server.connection.check_at = 0.0
    assert server.connection.ask("a") is None
    assert server.copies.misses == 5


def fetch_with(connection: TrackedConnection) -> Any:
    """Return what fetches a key's value, and waits for it."""

    def fetch(key: str) -> Any:
        call = connection.fetch([key])
        assert call is not None
        connection.wait(call)
        return call

    return fetch


@pytest.mark.parametrize("stream", [b"", b"$1\r\n"])
def test_asking_for_one_that_does_not_come(stream: bytes) -> None:
    """The connection counts as lost after so long, and nobody waits any more."""
    server = Server(timeout=0.05)
    server.send(stream)
    call = server.connection.ask("a")
    assert call is not None
    assert call.values is None
    assert server.connection.closed
    assert server.connection._poller is None
    assert server.connection._sock.fileno() == -1
    server.close()


def test_what_nobody_waits_for(server: Server) -> None:
    """It comes with what others wait for; a task that was cancelled is left alone."""

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        first = server.connection.fetch(["a"])
        assert first is not None
        second = server.connection.fetch(["b"], future)
        assert second is not None
        server.send(b"$1\r\n1\r\n:-1\r\n")
        server.connection.wait(first)
        future.cancel()
        server.send(b"$1\r\n2\r\n:-1\r\n")
        server.connection.take_in()
        assert (first.values, second.values) == ([b"1"], [b"2"])

    asyncio.run(main())


def test_lost_while_threads_wait(server: Server) -> None:
    """All of them go on at once."""
    with ThreadPoolExecutor(3) as pool:

        def read(key: str) -> Any:
            call = server.connection.fetch([key])
            assert call is not None
            server.connection.wait(call)
            return call.values

        found = [pool.submit(read, key) for key in "abc"]
        wait_until(
            lambda: len(server.connection._under_way) == 3 and server.connection._poller
        )
        server.connection.lose("the test says so")
        assert [future.result(30) for future in found] == [None] * 3
    assert server.connection._sock.fileno() == -1


def test_a_signal_handler(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads while its thread waits for bytes, or is at the socket: no harm done."""
    server.fill()
    nested: list[Any] = []
    waiting = server.connection._wait_for_bytes

    def interrupted(seconds: float) -> None:
        monkeypatch.setattr(server.connection, "_wait_for_bytes", waiting)
        call = server.connection.fetch(["c"])
        assert call is not None
        server.send(b"$1\r\nb\r\n:-1\r\n$1\r\nc\r\n:-1\r\n")
        server.connection.wait(call)
        nested.append(call.values)
        waiting(0)

    monkeypatch.setattr(server.connection, "_wait_for_bytes", interrupted)
    call = server.connection.fetch(["b"])
    assert call is not None
    server.connection.wait(call)
    assert call.values == [b"b"]
    assert nested == [[b"c"]]

    def busy(key: str) -> Any:
        nested.append(server.connection.fetch(["d"]))
        server.connection.take_in()
        raise KeyboardInterrupt

    monkeypatch.setattr(server.copies, "invalidate", busy)
    server.send(push("a"))
    with pytest.raises(KeyboardInterrupt):
        server.connection.is_fresh("a")
    assert nested[1] is None
    assert server.connection.closed


def test_interrupted_while_it_waits_for_bytes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next thread waits for them, and takes in what nobody waits for any more."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.connection, "_wait_for_bytes", interrupt)
    call = server.connection.fetch(["a"])
    assert call is not None
    with pytest.raises(KeyboardInterrupt):
        server.connection.wait(call)
    monkeypatch.undo()
    server.send(b"$1\r\n1\r\n:-1\r\n$1\r\n2\r\n:-1\r\n")
    assert fetch_with(server.connection)("b").values == [b"2"]
    assert call.values == [b"1"]


def test_interrupted_while_sending(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what has been sent."""

    class Socket:
        def send(self, data: bytes) -> int:
            raise KeyboardInterrupt

        def shutdown(self, how: int) -> None:
            raise OSError

        def close(self) -> None:
            server.connection._sock = sock

    sock = server.connection._sock
    server.connection._sock = Socket()
    with pytest.raises(KeyboardInterrupt):
        server.connection.fetch(["a"])
    assert server.connection.closed
    sock.close()


def test_proof_is_asked_for() -> None:
    """Early and without waiting; later, no copy is used before it is there."""
    server = Server(max_staleness=1000.0)
    server.fill()
    server.expect(GET)
    connection = server.connection
    connection.confirmed_at -= 600.0
    connection.ask_at -= 600.0
    connection.check_at -= 600.0
    check = b"*1\r\n$4\r\nPING\r\n*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n"
    assert connection.is_fresh("a")
    assert connection.is_fresh("a")
    server.expect(check + GET)
    server.send(b"+PONG\r\n%1\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$1\r\n2\r\n:-1\r\n")
    wait_until(
        lambda: (
            connection.is_fresh("a") and connection.confirmed_at > time.monotonic() - 60
        )
    )
    copy = server.copies.peek("a")
    assert copy is not None
    assert copy.data == b"2"
    connection.confirmed_at -= 1001.0
    connection.ask_at -= 1001.0
    connection.check_at -= 1001.0
    assert not connection.is_fresh("a")
    assert server.kept()
    call = connection.fetch(["a"])
    server.expect(check + GET)
    assert call is not None
    server.send(b"+PONG\r\n%1\r\n$4\r\nrole\r\n$7\r\nreplica\r\n$1\r\n2\r\n:-1\r\n")
    connection.wait(call)
    assert call.values is None
    assert connection.closed
    server.close()


@pytest.mark.parametrize(
    ("reply", "confirmed"),
    [
        (b"-NOPERM User u has no permissions to run the 'ping' command\r\n", True),
        (b"-NOAUTH Authentication required.\r\n", False),
    ],
)
def test_a_user_who_may_not_ping(server: Server, reply: bytes, confirmed: bool) -> None:
    """A server that says so lives."""
    server.fill()
    server.connection.ask_at = server.connection.check_at = 0.0
    call = server.connection.fetch(["a"])
    assert call is not None
    server.send(reply + b"%1\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$1\r\n2\r\n:-1\r\n")
    server.connection.wait(call)
    assert server.kept() == confirmed
    assert server.connection.closed != confirmed


def test_a_loop_that_can_t_watch(server: Server) -> None:
    """Such as Windows' default one: it reads without copies."""

    def refuse(*args: Any) -> None:
        raise NotImplementedError

    loop: Any = asyncio.new_event_loop()
    loop.add_reader = refuse
    assert not server.connection.watch(loop)
    loop.close()


def test_a_loop_that_is_gone(server: Server) -> None:
    """Has nobody wait for it, and leaves nothing open."""

    async def begin() -> Any:
        loop = asyncio.get_running_loop()
        assert server.connection.watch(loop)
        assert server.connection.watch(loop)
        return server.connection.fetch(["a"], loop.create_future())

    call = asyncio.run(begin())
    assert len(server.connection._watches) == 1
    server.send(b"$1\r\n1\r\n:-1\r\n")
    wait_until(lambda: server.connection.is_fresh("a") and server.kept())
    assert call.values == [b"1"]
    loop = asyncio.new_event_loop()
    assert server.connection.watch(loop)
    assert list(server.connection._watches) == [loop]
    watch = server.connection._watches[loop]
    server.connection.lose("the test says so")
    watch._take_in()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
