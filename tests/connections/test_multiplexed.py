"""A loop's way to a server: connects, authenticates, keeps up with the token."""

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from django_entra_redis.commands.packing import pack_all
from django_entra_redis.connections.multiplexed import (
    MultiplexedConnection as Connection,
)
from django_entra_redis.connections.multiplexed import Target
from django_entra_redis.connections.protocol import ConnectionLostError
from django_entra_redis.exceptions import (
    GreetingNotPermittedError,
    GreetingRefusedError,
    TokenError,
    TokenRefusedError,
)
from django_entra_redis.identity.token import Clock, Token
from tests.support.peers import Answer, Peer, PeerHost

PING = pack_all([("PING",)])


def pong(peer: Peer, command: list[bytes]) -> bytes:
    """Say yes to everything, with the command's last word."""
    return b"$%d\r\n%b\r\n" % (len(command[-1]), command[-1])


def in_loop(
    test: Callable[[PeerHost], Awaitable[None]],
    answer: Answer = pong,
    welcome: bytes | None = None,
) -> None:
    """Run a test with a server; nothing may be left to be complained about."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        async with PeerHost(answer, welcome) as host:
            await test(host)
        gc.collect()

    asyncio.run(main())
    assert complaints == []


@contextlib.contextmanager
def connection_to(
    where: PeerHost | dict[str, Any], **target: Any
) -> Iterator[Connection]:
    """Give a connection; close it in the end."""
    if isinstance(where, PeerHost):
        where = {"host": "127.0.0.1", "port": where.port}
    connection = Connection(Target(where=where, **target), asyncio.get_running_loop())
    try:
        yield connection
    finally:
        connection.close()


# -- connecting


def test_tasks_share_one_connection() -> None:
    """However many come at once, and also later."""

    async def test(host: PeerHost) -> None:
        with connection_to(host) as connection:
            for _ in range(3):
                replies = await asyncio.gather(
                    *(connection.call(pack_all([("GET", f"k{n}")])) for n in range(50))
                )
                assert replies == [b"k%d" % n for n in range(50)]
            assert await connection.call(PING + PING, 2) == [b"PING"] * 2
            assert await connection._connected() is connection._protocol
            assert len(host.peers) == 1

    in_loop(test)


def test_greeting() -> None:
    """Credentials first; a server that knows no CLIENT SETINFO is no worse for it."""

    def answer(peer: Peer, command: list[bytes]) -> bytes:
        return b"-ERR unknown\r\n" if command[0] == b"CLIENT" else b"+OK\r\n"

    async def test(host: PeerHost) -> None:
        target = {
            "credentials": ("user", "sesame"),
            "greeting": [("CLIENT", "SETINFO", "LIB-NAME", "x"), ("SELECT", 3)],
            "socket_options": [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
        }
        with connection_to(host, **target) as connection:
            await connection.call(PING)
            assert "sesame" not in repr(connection.target)
        assert [command[0] for command in host.peers[0].commands] == [
            b"AUTH",
            b"CLIENT",
            b"SELECT",
            b"PING",
        ]

    in_loop(test, answer)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("NOPERM this user has no permissions", GreetingNotPermittedError),
        ("ERR Client names cannot contain spaces", GreetingRefusedError),
        ("LOADING Redis is loading", redis.BusyLoadingError),
    ],
)
def test_name_that_is_refused(words: str, kind: type[Exception]) -> None:
    """The name that OPTIONS ask for is no more a matter of luck than with threads."""

    def answer(peer: Peer, command: list[bytes]) -> bytes:
        refused = command[:2] == [b"CLIENT", b"SETNAME"]
        return f"-{words}\r\n".encode() if refused else b"+OK\r\n"

    async def test(host: PeerHost) -> None:
        greeting = [("CLIENT", "SETNAME", "web"), ("SELECT", 1)]
        with connection_to(host, greeting=greeting) as connection, pytest.raises(kind):
            await connection.call(PING)

    in_loop(test, answer)


def test_unix_socket(tmp_path: Path) -> None:
    """A path will do."""

    async def test(host: PeerHost) -> None:
        path = str(tmp_path / "redis.sock")
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: Peer(host), path)
        with connection_to({"path": path}) as connection:
            assert await connection.call(PING) == b"PING"
            assert str(connection.target) == path
        server.close()

    in_loop(test)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (lambda peer, command: b"-ERR DB index is out of range\r\n", "", "DB index"),
        (lambda peer, command: b"-LOADING reading\r\n", "BusyLoading", "reading"),
        (lambda peer, command: peer.transport.abort(), "Connection", "closed"),
        (lambda peer, command: b"HTTP/1.1 400\r\n", "Connection", "Protocol error"),
        (lambda peer, command: None, "Timeout", "Timeout connecting to 127"),
    ],
    ids=["error", "loading", "dropped", "no Redis", "silent"],
)
@pytest.mark.parametrize("bounds", [(0.1, None), (None, 0.1)])
def test_no_connection(
    answer: Answer, kind: str, said: str, bounds: tuple[float | None, float | None]
) -> None:
    """Why there is none is told; the command itself was never sent."""
    kinds: dict[str, type[Exception]] = {
        "": redis.ResponseError,
        "BusyLoading": redis.BusyLoadingError,
        "Connection": redis.ConnectionError,
        "Timeout": redis.TimeoutError,
    }

    async def test(host: PeerHost) -> None:
        connect_timeout, timeout = bounds
        # A silent server is told from a slow machine only where it is silent.
        if kind != "Timeout":
            connect_timeout = timeout = 30.0
        with connection_to(
            host,
            greeting=[("SELECT", 99)],
            connect_timeout=connect_timeout,
            timeout=timeout,
        ) as connection:
            with pytest.raises(kinds[kind], match=said) as raised:
                await connection.call(PING)
            assert not hasattr(raised.value, "sent")
            assert len(host.peers) == 1

    in_loop(test, answer)


def test_too_many_clients() -> None:
    """What a server says before it is asked is the reason."""

    async def test(host: PeerHost) -> None:
        with (
            connection_to(host, greeting=[("SELECT", 1)]) as connection,
            pytest.raises(redis.ConnectionError, match="max number of clients"),
        ):
            await connection.call(PING)

    in_loop(test, lambda *_: None, welcome=b"-ERR max number of clients reached\r\n")


def test_refused() -> None:
    """A port that is closed is told, to each task."""

    async def test(host: PeerHost) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            where = {"host": "127.0.0.1", "port": sock.getsockname()[1]}
        with connection_to(where) as connection:
            errors = await asyncio.gather(
                *(connection.call(PING) for _ in range(5)), return_exceptions=True
            )
            assert {type(error) for error in errors} == {redis.ConnectionError}
            assert "Error connecting to 127.0.0.1" in str(errors[0])

    in_loop(test)


def test_cancelled_while_connecting(caplog: pytest.LogCaptureFixture) -> None:
    """The others get their connection; with no others, nobody misses the outcome."""

    async def test(host: PeerHost) -> None:
        with connection_to(host) as connection:
            first, second = (
                asyncio.create_task(connection.call(PING)) for _ in range(2)
            )
            await asyncio.sleep(0)
            first.cancel()
            assert await second == b"PING"
            assert first.cancelled()
            assert len(host.peers) == 1
        with connection_to({"host": "127.0.0.1", "port": 1}) as connection:
            task = asyncio.create_task(connection.call(PING))
            await asyncio.sleep(0)
            task.cancel()
            connecting: Any = connection._connecting
            await asyncio.wait([task, connecting])
            del connecting

    with caplog.at_level(logging.ERROR, "asyncio"):
        in_loop(test)
    assert caplog.records == []


def test_closed_while_connecting() -> None:
    """Whoever waits is told, not cancelled; and whoever comes later."""

    async def test(host: PeerHost) -> None:
        with connection_to(host) as connection:
            task = asyncio.create_task(connection.call(PING))
            await asyncio.sleep(0)
            await connection.aclose()
            with pytest.raises(ConnectionLostError, match="settings have") as raised:
                await task
            assert not raised.value.sent
            with pytest.raises(ConnectionLostError, match="settings have"):
                await connection.call(PING)
        with connection_to(host) as connection:
            await connection.aclose()

    in_loop(test, lambda *_: None)


def test_lost_connections_are_replaced() -> None:
    """Those that the server has closed, and those whose answer says to ask anew."""

    def answer(peer: Peer, command: list[bytes]) -> bytes:
        if command[-1] == b"replica":
            return b"-READONLY replica\r\n"
        if command[-1] == b"out":
            return b"-NOAUTH Authentication required.\r\n"
        return pong(peer, command)

    async def test(host: PeerHost) -> None:
        with connection_to(host) as connection:
            await connection.call(PING)
            host.peers[-1].transport.close()
            while not connection._protocol or not connection._protocol.closed:
                await asyncio.sleep(0)
            for number, (word, kind) in enumerate(
                [("replica", redis.ReadOnlyError), ("out", redis.AuthenticationError)]
            ):
                packed = pack_all([("SET", word)])
                assert await connection.call(PING) == b"PING"
                assert len(host.peers) == 2 * number + 2
                with pytest.raises(kind):
                    await connection.call(packed)
                with pytest.raises(kind):
                    await connection.call(PING + packed, 2)
            # What is no reason to leave is none.
            assert await connection.call(PING) == b"PING"
            assert await connection.call(PING) == b"PING"
            assert len(host.peers) == 6

    in_loop(test, answer)


def test_left_connections_are_closed_too() -> None:
    """One that was left and still owes a reply is closed with the connection."""

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        return {b"never": None, b"replica": b"-READONLY replica\r\n"}.get(
            command[-1], b"+OK\r\n"
        )

    async def test(host: PeerHost) -> None:
        with connection_to(host) as connection:
            packed = pack_all([("SET", "replica")])
            errors = await asyncio.gather(
                *(connection.call(packed) for _ in range(2)), return_exceptions=True
            )
            assert [*map(type, errors)] == [redis.ReadOnlyError] * 2
            both = [
                asyncio.create_task(connection.call(pack_all([("SET", word)])))
                for word in ("replica", "never")
            ]
            with pytest.raises(redis.ReadOnlyError):
                await both[0]
            assert await connection.call(PING) == b"OK"
            assert not both[1].done()
        with pytest.raises(ConnectionLostError, match="it has been closed"):
            await both[1]

    in_loop(test, answer)


# -- tokens


class Tokens:
    """An identity's renewal, whose clock and tokens are the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(lambda: self.now, lambda: self.now)
        self.token: Any = None
        self.other: Any = None
        self.asked = 0
        self.renew()

    def renew(self) -> None:
        """Have a new token."""
        self.asked += 1
        self.token = Token(
            value=f"sesame-{self.asked}",
            username="oid",
            claims={},
            received_at=self.now,
            expires_at=self.now + 100,
            expires_on=self.now + 100,
        )

    def fresh(self) -> Token | None:
        """Return the token."""
        return self.token  # type: ignore[no-any-return]

    async def acurrent(self) -> Token:
        """Return the token, or why there is none."""
        if self.token is None:
            raise TokenError("no token")
        return self.token  # type: ignore[no-any-return]

    async def areplace(self, refused: Token) -> Token | None:
        """Return another one, if there is."""
        return self.other  # type: ignore[no-any-return]


class Entra:
    """Knows which tokens are let in."""

    def __init__(self, *refused: str, words: str = "WRONGPASS invalid") -> None:
        self.words = words
        self.refused = {word.encode() for word in refused}
        self.seen: list[bytes] = []

    def __call__(self, peer: Peer, command: list[bytes]) -> bytes:
        """Answer."""
        if command[0] == b"AUTH":
            self.seen.append(command[2])
            if command[2] in self.refused:
                return f"-{self.words}\r\n".encode()
        return b"+OK\r\n"


def with_tokens(
    test: Callable[[PeerHost, Connection, Tokens], Awaitable[None]],
    entra: Entra,
) -> None:
    """Run a test with a connection that has an identity."""

    async def run(host: PeerHost) -> None:
        tokens = Tokens()
        with connection_to(host, provide=lambda: tokens) as connection:
            connection._offset = 0.5
            await test(host, connection, tokens)

    in_loop(run, entra)


def test_token_moves_on() -> None:
    """AUTH goes out on the same connection, in its time, and once."""
    entra = Entra()

    async def test(host: PeerHost, connection: Connection, tokens: Tokens) -> None:
        await connection.call(PING)
        tokens.now = 60
        tokens.renew()
        await connection.call(PING)
        assert entra.seen == [b"sesame-1"]
        tokens.now = 70  # a quarter of what is left of the old one's life
        await asyncio.gather(*(connection.call(PING) for _ in range(10)))
        await connection.call(PING)
        assert entra.seen == [b"sesame-1", b"sesame-2"]
        assert len(host.peers) == 1
        assert [command[0] for command in host.peers[0].commands[:5]] == [
            *(b"AUTH", b"PING", b"PING"),
            *(b"AUTH", b"PING"),
        ]

    with_tokens(test, entra)


def test_a_refusal_that_is_left_out() -> None:
    """Redis 8 does not tell of one behind other commands: replies are not mixed up."""

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] == b"AUTH":
            # Refused in the midst of commands; a new connection is let in.
            return b"+OK\r\n" if len(peer.commands) == 1 else None
        return pong(peer, command)

    async def ask(connection: Connection, key: str) -> str:
        try:
            reply = await connection.call(pack_all([("GET", key)]))
        except ConnectionLostError:
            return "lost"
        return "right" if reply == key.encode() else "wrong"

    async def test(host: PeerHost) -> None:
        tokens = Tokens()
        with connection_to(host, provide=lambda: tokens) as connection:
            connection._offset = 0.0
            assert await ask(connection, "first") == "right"
            tokens.renew()
            asked = (ask(connection, f"key-{number}") for number in range(20))
            found = set(await asyncio.gather(*asked))
            assert "wrong" not in found
            assert "lost" in found
            assert await ask(connection, "last") == "right"
            assert len(host.peers) == 2

    in_loop(test, answer)


def test_token_that_has_expired() -> None:
    """Its connection is left for a new one."""
    entra = Entra()

    async def test(host: PeerHost, connection: Connection, tokens: Tokens) -> None:
        await connection.call(PING)
        tokens.now = 101
        tokens.renew()
        await asyncio.gather(*(connection.call(PING) for _ in range(10)))
        assert entra.seen == [b"sesame-1", b"sesame-2"]
        assert len(host.peers) == 2

    with_tokens(test, entra)


def test_the_same_token_that_is_good_for_longer() -> None:
    """The server has it already: its connection stays, and no AUTH goes out."""
    entra = Entra()

    async def test(host: PeerHost, connection: Connection, tokens: Tokens) -> None:
        await connection.call(PING)
        tokens.now = 101
        tokens.token = replace(tokens.token, received_at=70, expires_at=170)
        await asyncio.gather(*(connection.call(PING) for _ in range(10)))
        assert entra.seen == [b"sesame-1"]
        assert len(host.peers) == 1

    with_tokens(test, entra)


@pytest.mark.parametrize("words", ["WRONGPASS invalid", "ERR WRONGPASS no", "ERR no"])
def test_new_token_that_is_refused(words: str) -> None:
    """The connection is left; the next one tries a third token."""
    entra = Entra("sesame-2", words=words)

    async def test(host: PeerHost, connection: Connection, tokens: Tokens) -> None:
        await connection.call(PING)
        tokens.now = 80
        tokens.renew()
        tokens.now = 90
        refused = tokens.token
        await connection.call(PING)
        tokens.renew()
        tokens.other, tokens.token = tokens.token, refused
        assert await connection.call(PING) == b"OK"
        assert entra.seen == [b"sesame-1", b"sesame-2", b"sesame-2", b"sesame-3"]
        assert len(host.peers) == 3

    with_tokens(test, entra)


def test_connection_lost_with_an_auth_under_way() -> None:
    """The next connection begins with the new token, and goes on to the one after."""
    entra = Entra()

    async def test(host: PeerHost, connection: Connection, tokens: Tokens) -> None:
        await connection.call(PING)
        tokens.now = 80
        tokens.renew()
        tokens.now = 90
        task = asyncio.create_task(connection.call(PING))
        await asyncio.sleep(0)
        host.peers[0].transport.abort()
        protocol: Any = connection._protocol
        protocol.abort()
        with pytest.raises(ConnectionLostError):
            await task
        await connection.call(PING)
        tokens.now = 160
        tokens.renew()
        tokens.now = 175
        await connection.call(PING)
        assert entra.seen[-2:] == [b"sesame-2", b"sesame-3"]
        assert len(host.peers) == 2

    with_tokens(test, entra)


@pytest.mark.parametrize("other", [False, True])
def test_refused_for_good(other: bool) -> None:
    """One other token is tried, then the truth is told, without a token in it."""
    entra = Entra("sesame-1", "sesame-2")

    async def test(host: PeerHost, connection: Connection, tokens: Tokens) -> None:
        if other:
            first = tokens.token
            tokens.renew()
            tokens.other, tokens.token = tokens.token, first
        with pytest.raises(TokenRefusedError, match="user 'oid'") as raised:
            await connection.call(PING)
        assert len(host.peers) == 1 + other
        assert "sesame" not in shown(raised.value)

    with_tokens(test, entra)


def shown(error: BaseException | None) -> str:
    """Return what a debug page shows of an error: all local variables."""
    text = ""
    while error is not None:
        traceback = error.__traceback__
        # From the package's frames on: the test's own know the tokens.
        while traceback is not None:
            if "django_entra_redis" in traceback.tb_frame.f_code.co_filename:
                text += repr(traceback.tb_frame.f_locals)
            traceback = traceback.tb_next
        text += repr(error)
        error = error.__cause__ or error.__context__
    return text


@pytest.mark.parametrize("how", ["drop", "error", "silence"])
def test_no_secret_is_shown(how: str) -> None:
    """Whatever goes wrong with a connection, no local variable holds the token."""
    answers: dict[str, Answer] = {
        "drop": lambda peer, command: peer.transport.abort(),
        "error": lambda peer, command: b"-ERR max number of clients reached\r\n",
        "silence": lambda peer, command: None,
    }

    async def test(host: PeerHost) -> None:
        tokens = Tokens()
        for credentials in (
            {"provide": lambda: tokens},
            {"credentials": ("user", "sesame")},
        ):
            with connection_to(host, connect_timeout=0.2, **credentials) as connection:
                with pytest.raises(redis.RedisError) as raised:
                    await connection.call(PING)
                text = shown(raised.value)
                assert "Connection" in text
                assert "sesame" not in text

    in_loop(test, answers[how])


def test_no_token() -> None:
    """Why there is none is told to each task."""

    async def test(host: PeerHost, connection: Connection, tokens: Tokens) -> None:
        tokens.token = None
        with pytest.raises(TokenError, match="no token"):
            await connection.call(PING)
        tokens.renew()
        await connection.call(PING)
        tokens.token = None
        with pytest.raises(TokenError, match="no token"):
            await connection.call(PING)

    with_tokens(test, Entra())
