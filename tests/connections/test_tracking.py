"""How tracking connections are made, kept authenticated, and given up."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.exceptions import AuthenticationError

from django_entra_redis.connections import tracked_connection, tracking
from django_entra_redis.connections.copies import Copies
from django_entra_redis.connections.multiplexed import Target
from django_entra_redis.connections.tracked_calls import fitting
from django_entra_redis.connections.tracked_connection import TrackedConnection
from django_entra_redis.connections.tracking import Begun, Tracker, refusal_of
from django_entra_redis.identity.token import Clock, Token

ROLE = b"%1\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
#: The replies to HELLO and to PTTL.
HELLO = ROLE + b":-2\r\n"
VALUE = b"$1\r\n1\r\n:-1\r\n"


@contextmanager
def listening(*answers: bytes) -> Iterator[Target]:
    """Answer what connections begin with, each with the next of some answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        for answer in answers:
            client, _ = listener.accept()
            held.append(client)
            client.recv(65536)
            client.sendall(answer)
            if not answer:
                client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    host, port = listener.getsockname()
    try:
        yield Target(where={"host": host, "port": port}, connect_timeout=5.0)
    finally:
        thread.join(30)
        listener.close()
        for client in held:
            client.close()


def make(target: Target) -> Tracker:
    """Return a tracking connection."""
    return Tracker(lambda: target, Copies(100_000, 1000), 5.0)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (b"-ERR unknown command 'HELLO'\r\n", "HELLO 3: unknown command 'HELLO'"),
        (b"-NOPROTO unsupported protocol version\r\n", "HELLO 3: NOPROTO"),
        (b"-NOPERM no permissions to run 'hello'\r\n", "HELLO 3: no permissions"),
        (b"-ERR version 3 is not for you\r\n", "HELLO 3: version 3"),
        (
            ROLE + b"-NOPERM User u has no permissions to run the 'pttl'\r\n",
            "PTTL: User",
        ),
        (ROLE + b"-NOPERM this user has no permissions to run the 'pttl'\r\n", "PTTL"),
        (ROLE + b"-ERR unknown command 'PTTL'\r\n", "PTTL: unknown command"),
        (HELLO + b"-ERR Unknown subcommand\r\n", "CLIENT TRACKING: Unknown"),
        (HELLO + b"-ERR command 'client|tracking' is not allowed\r\n", "not allowed"),
    ],
)
def test_a_server_that_does_not_track(
    answer: bytes, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not asked again for some time."""
    with listening(answer, answer, answer) as target:
        assert refusal in str(refusal_of(target))
        tracker = make(target)
        assert tracker.fetch(["a"]) is None
        assert tracker.fetch(["a"]) is None
        assert refusal in str(tracker.refusal)
        assert asyncio.run(tracker.afetch(["a"])) is None
        tracker.close()
        assert tracker.fetch(["a"]) is None
    assert caplog.text.count("refuses to track") == 1
    assert not tracker.connected
    assert tracker.confirmed_at is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-ERR LOADING Redis is loading the dataset in memory\r\n",
        b"-ERR Redis is loading the dataset in memory\r\n",
        b"-ERR too many connections\r\n",
        b"-NOAUTH HELLO must be called with the client already authenticated\r\n",
        b"-ERR NOAUTH Authentication required.\r\n",
        b"%1\r\n$4\r\nrole\r\n$7\r\nreplica\r\n+OK\r\n",
        b"@no reply\r\n",
    ],
)
def test_a_server_that_is_not_ready(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads without a copy hears why; it is tried again before long."""
    with listening(answer, HELLO + b"+OK\r\n") as target:
        tracker = make(target)
        assert tracker.fetch(["a"]) is None
        assert tracker.refusal is None
        assert tracker.fetch(["a"]) is None
        tracker.close()
        assert tracker._connect() is not None
        tracker._retry_at = 0.0
        # Another thread may have been quicker.
        assert tracker._connect() is tracker.connection
        tracker.close()
    assert caplog.text == ""


def test_a_server_that_drips() -> None:
    """Does not keep anybody waiting for longer than it may take to connect."""
    with listening(b"+O") as target:
        started = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            make(replace(target, connect_timeout=0.1)).fetch(["a"])
        assert time.monotonic() - started < 20
    slow = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        client, _ = slow.accept()
        client.recv(65536)
        with suppress(OSError):
            while True:
                time.sleep(0.05)
                client.sendall(b"+")
        client.close()

    thread = threading.Thread(target=drip)
    thread.start()
    host, port = slow.getsockname()
    target = Target(where={"host": host, "port": port}, connect_timeout=0.2)
    with pytest.raises(redis.TimeoutError):
        make(target).fetch(["a"])
    thread.join(30)
    slow.close()


@pytest.mark.parametrize(
    ("connect", "reply"), [(1e6, 0.1), (0.1, 1e6), (None, 0.1), (0.1, None)]
)
def test_a_server_that_falls_silent(connect: float | None, reply: float | None) -> None:
    """The first replies are waited for no longer than ``socket_timeout``, either."""
    with listening(b"+O") as target:
        silent = replace(target, connect_timeout=connect, timeout=reply)
        with pytest.raises(redis.TimeoutError):
            make(silent).fetch(["a"])


def test_a_server_that_does_not_speak_tls() -> None:
    """Leaves no socket open."""
    with listening(b"-ERR no TLS here\r\n") as target:
        target = replace(target, make_ssl=ssl.create_default_context)
        tracker = make(replace(target, server_hostname="localhost"))
        assert tracker.fetch(["a"]) is None
    assert not tracker.connected


@pytest.mark.parametrize(
    "about_the_key",
    [
        b":-2",
        b"-NOPERM No permissions to access a key",
        b"-NOPERM this user has no permissions to access one of the keys used as "
        b"arguments",
        b"-MOVED 0 127.0.0.1:1",
        b"-CLUSTERDOWN Hash slot not served",
    ],
)
def test_it_tracks(about_the_key: bytes) -> None:
    """A server that can is not in the way, and keeps no connection for the question;
    what it says of a key that is not used is of no interest."""
    with listening(ROLE + about_the_key + b"\r\n+OK\r\n") as target:
        assert refusal_of(target) is None


def test_only_one_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others read without a copy meanwhile."""
    tracker = make(Target(where={"host": "127.0.0.1", "port": 1}))
    asked: list[Any] = []

    def attempt() -> None:
        asked.append(tracker.fetch(["a"]))

    monkeypatch.setattr(tracker, "_attempt", attempt)
    assert tracker.fetch(["a"]) is None
    assert asked == [None]


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal handler; what has been opened is closed, and others may try."""

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with listening(HELLO + b"+OK\r\n", HELLO + b"+OK\r\n") as target:
        tracker = make(target)
        monkeypatch.setattr(tracking, "_objection", None)
        monkeypatch.setattr(tracking, "is_replica", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            tracker.fetch(["a"])
        names = {entry.name for entry in caught.traceback}
        assert "_open" not in names
        monkeypatch.undo()
        tracker.close()
        assert tracker._connect() is not None
        tracker.close()


def test_a_unix_socket(tmp_path: Any) -> None:
    """Is connected to as such."""
    path = str(tmp_path / "redis.sock")
    assert make(Target(where={"path": path})).fetch(["a"]) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        target = Target(where={"path": path}, credentials=("secret",), timeout=None)
        tracker = make(target)
        thread = threading.Thread(target=tracker.fetch, args=(["a"],))
        thread.start()
        client, _ = listener.accept()
        assert client.recv(65536).startswith(b"*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n")
        client.sendall(b"+OK\r\n" + HELLO + b"+OK\r\n")
        assert client.recv(65536).startswith(b"*2\r\n$3\r\nGET")
        client.sendall(VALUE)
        thread.join(30)
        assert tracker.copies.owner("a") is tracker.connection
        tracker.close()
        client.close()


def test_a_value_that_does_not_come() -> None:
    """In an event loop, too, the connection counts as lost then."""
    with listening(HELLO + b"+OK\r\n") as target:
        tracker = make(replace(target, timeout=0.05))

        async def main() -> Any:
            return await tracker.afetch(["a"])

        with pytest.raises(redis.TimeoutError):
            asyncio.run(main())
        assert not tracker.connected


def test_as_many_keys_as_are_sent_at_once() -> None:
    """They can be fetched, also when a check of the connection is due."""
    keys = [f"key-{number}" for number in range(2000)]
    count = fitting(keys, tracked_connection.MOST_FETCHED)
    assert 100 < count < 1000
    assert fitting(keys[:count], tracked_connection.MOST_FETCHED) == count
    with listening(HELLO + b"+OK\r\n") as target:
        tracker = make(target)
        connection = tracker._connect()
        assert connection is not None
        connection.check_at = 0.0
        assert connection.fetch(keys[: count + 2]) is None
        call = connection.fetch(keys[:count])
        assert call is not None
        assert call.lead
        connection.lose("the test says so")
        assert tracker.end(Begun(connection, call)) is None
        tracker.close()


def test_too_many_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """They read without a copy."""
    monkeypatch.setattr(tracked_connection, "MOST_UNANSWERED", 0)
    with listening(HELLO + b"+OK\r\n") as target:
        tracker = make(target)
        assert asyncio.run(tracker.afetch(["a"])) is None
        tracker.close()


# -- tokens


def token(value: str, life: float = 100.0) -> Token:
    """Return a token that has just come."""
    now = time.monotonic()
    return Token(value, "user", {}, now, now + life, time.time() + life)


def held_by(
    held: Token, current: Token | None
) -> tuple[TrackedConnection, socket.socket]:
    """Return a token's connection, and its other end, when there is another token."""
    ours, server = socket.socketpair()
    ours.setblocking(False)
    renewal: Any = SimpleNamespace(fresh=lambda: current, clock=Clock())
    connection = TrackedConnection(
        ours,
        Copies(100_000, 1000),
        timeout=5.0,
        max_staleness=5.0,
        now=time.monotonic(),
        held=held,
        provide=lambda: renewal,
    )
    return connection, server


HELD = token("held")


@pytest.fixture(autouse=True)
def just_come() -> None:
    """Have the token held begin its life with each test: a run takes minutes."""
    global HELD
    HELD = token("held")


STEPS: dict[str, tuple[Callable[[], tuple[Token, Token | None]], bool, bytes]] = {
    "the same": (lambda: (HELD, HELD), False, b""),
    "good for longer": (lambda: (HELD, token("held")), False, b""),
    "newer": (lambda: (HELD, token("newer")), False, b"AUTH"),
    "none at hand": (lambda: (HELD, None), False, b""),
    "none, and expired": (lambda: (token("old", -1.0), None), True, b""),
    "newer, too late": (lambda: (token("old", -1.0), token("newer")), True, b""),
}


@pytest.mark.parametrize("name", STEPS)
def test_keeping_up(name: str) -> None:
    """AUTH goes out in the same stream, once; an expired token ends the connection."""
    tokens, closed, sent = STEPS[name]
    connection, server = held_by(*tokens())
    connection.keep_up()
    connection.keep_up()
    assert connection.closed == closed
    server.settimeout(0.05)
    found = b""
    with suppress(TimeoutError):
        found = server.recv(65536)
    assert found.count(b"AUTH") == bool(sent)
    connection.lose("the test is over")
    server.close()


def test_a_token_that_expires_before_the_next_read() -> None:
    """The connection is no good for it."""
    tracker = make(Target(where={"host": "127.0.0.1", "port": 1}))
    tracker.connection, server = held_by(token("old", -1.0), None)
    assert tracker.ask("a") is None
    assert not tracker.connected
    server.close()


MARKED = b"$13\r\nauthenticated\r\n"


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (b"+OK\r\n" + MARKED, True),
        (b"-WRONGPASS no\r\n" + MARKED, False),
        # Redis 8 leaves the refusal out where another command was before it.
        (MARKED, False),
        (b"", False),
    ],
)
def test_the_answer_to_auth(answer: bytes, accepted: bool) -> None:
    """A token that is refused costs the connection its copies and what it owes."""
    newer = token("newer")
    connection, server = held_by(HELD, newer)
    connection.keep_up()
    call = connection.fetch(["a"])
    assert call is not None
    if answer:
        server.sendall(answer + b"$1\r\n1\r\n:-1\r\n")
    else:
        server.close()
    connection.is_fresh("a")
    assert connection.closed != accepted
    assert call.values == ([b"1"] if accepted else None)
    if accepted:
        assert connection.held is newer
    connection.lose("the test is over")
    server.close()


def test_refused_at_first() -> None:
    """The reason is for whoever reads without a copy; no token is in it."""
    renewal: Any = SimpleNamespace(
        current=lambda: HELD, fresh=lambda: HELD, clock=Clock()
    )
    with listening(b"-WRONGPASS no\r\n", b"-WRONGPASS no\r\n") as target:
        target = replace(target, provide=lambda: renewal)
        tracker = make(target)
        assert tracker.fetch(["a"]) is None
        assert tracker.refusal is None
        with pytest.raises(AuthenticationError):
            refusal_of(target)


@pytest.mark.parametrize(
    "answer",
    [
        b"-WRONGPASS no: sesame\r\n",
        b"-LOADING no: sesame\r\n",
        b"-READONLY no: sesame\r\n",
        b"+OK\r\n-ERR no: sesame\r\n",
        b"+OK\r\n%1\r\n+a\r\n+b\r\n-ERR no: sesame\r\n",
    ],
)
@pytest.mark.parametrize("entra", [False, True])
def test_a_server_that_quotes_the_token(answer: bytes, entra: bool) -> None:
    """Or the password: neither is told."""
    held = replace(HELD, value="sesame")
    renewal: Any = SimpleNamespace(current=lambda: held)
    given = {"provide": lambda: renewal} if entra else {"credentials": ("a", "sesame")}
    with listening(answer) as target:
        try:
            told = str(refusal_of(replace(target, **given)))
        except redis.RedisError as error:
            told = str(error)
    assert "no: ***" in told
