"""asyncio connections of lent clients: when they authenticate anew."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.utils import str_if_bytes

from django_entra_redis.connections.lent_connection import LentConnection
from django_entra_redis.connections.multiplexed import Target
from django_entra_redis.credentials.reauthentication import SPREAD
from django_entra_redis.exceptions import TokenError, TokenRefusedError
from django_entra_redis.identity.token import SYSTEM_CLOCK
from emulator import Emulator
from tests.support.sites import ScriptedServer

from .test_connection import LIFE, Identity, frames, token

#: Whether redis-py can tell that there is something to read without reading it.
CAN_TELL = hasattr(Connection, "can_read")


class Streaming(Identity):
    """An identity that calls back with each new token."""

    callback: Any = None

    def on_next(self, callback: Any) -> None:
        """Keep the callback."""
        self.callback = callback


@pytest.fixture
def identity(emulator: Emulator) -> Iterator[Streaming]:
    """Give an identity."""
    made = Streaming(emulator)
    yield made
    made.close()


def make(identity: Streaming | None, port: int, **options: Any) -> LentConnection:
    """Return a connection that has not connected yet."""
    provider: Any = identity
    return LentConnection(
        host="127.0.0.1",
        port=port,
        target=Target(where={"host": "127.0.0.1", "port": port}),
        provider=provider,
        retry_subscribed=Retry(NoBackoff(), 3, (RedisConnectionError,)),
        **{"protocol": 2, **options},
    )


@asynccontextmanager
async def connected(
    identity: Streaming, **options: Any
) -> AsyncIterator[LentConnection]:
    """Give a connection, and close it."""
    port = int(identity.emulator.plaintext_url.rpartition(":")[2])
    connection = make(identity, port, **options)
    try:
        await connection.connect()
        yield connection
    finally:
        await connection.disconnect()


async def command(connection: Any, *args: Any) -> Any:
    """Carry out a command as redis-py's cluster client does."""
    await connection.send_packed_command(connection.pack_command(*args))
    return str_if_bytes(await connection.read_response())


def run(identity: Streaming, work: Callable[[Any], Awaitable[None]]) -> None:
    """Have a connection work in a loop of its own."""

    async def main() -> None:
        async with connected(identity) as connection:
            await work(connection)

    asyncio.run(main())


def counts(identity: Streaming) -> tuple[int, int]:
    """Return how often anything has authenticated, and connected."""
    return identity.auths(), identity.opened()


def test_an_error_of_the_socket(identity: Streaming) -> None:
    """It is returned as it is, without the frames that hold the token."""
    error = ConnectionResetError("reset")

    async def fail() -> None:
        raise error

    async def main() -> None:
        found = await make(identity, 1)._attempt(fail)
        assert found is error
        assert found.__traceback__ is None

    asyncio.run(main())


def test_authenticates_anew_when_it_is_its_turn(identity: Streaming) -> None:
    """Before a command, on its open socket, and not before it is its turn."""

    async def work(connection: LentConnection) -> None:
        assert await command(connection, "PING") == "PONG"
        identity.renew()
        assert await command(connection, "PING") == "PONG"
        assert counts(identity) == (1, 1)
        identity.pass_time(SPREAD * LIFE / 2)
        assert await command(connection, "PING") == "PONG"
        assert await command(connection, "PING") == "PONG"
        await connection.connect()
        assert counts(identity) == (2, 1)

    run(identity, work)


def test_reconnects_when_its_own_token_has_run_out(identity: Streaming) -> None:
    """Too late for AUTH: the server has closed it, or will."""

    async def work(connection: LentConnection) -> None:
        identity.pass_time(LIFE)
        assert await command(connection, "PING") == "PONG"
        assert counts(identity) == (2, 2)

    run(identity, work)


def test_the_same_token_that_is_good_for_longer(identity: Streaming) -> None:
    """The server has it already: neither AUTH nor, at its old expiry, a reconnect."""

    async def work(connection: LentConnection) -> None:
        (value,) = identity.fetched
        longer = token(identity.monotonic + LIFE / 2)
        longer = replace(longer, value=value, expires_on=identity.wall + 1.5 * LIFE)
        identity.renewal.state = identity.renewal.state.succeeded(longer, identity.wall)
        identity.renewal.state = identity.renewal.state.due(longer.expires_at)
        identity.pass_time(LIFE)
        assert await command(connection, "PING") == "PONG"
        assert counts(identity) == (1, 1)

    run(identity, work)


def test_reconnects_when_auth_fails(identity: Streaming) -> None:
    """A connection that broke while it was idle is not missed."""

    async def work(connection: LentConnection) -> None:
        identity.renew()
        identity.pass_time(SPREAD * LIFE / 2)
        identity.emulator.drop_connections()
        assert await command(connection, "PING") == "PONG"
        assert identity.opened() == 2

    run(identity, work)


@pytest.mark.usefixtures("redis_server")
def test_nothing_is_lost_that_is_watched(identity: Streaming) -> None:
    """Between WATCH and EXEC it does not reconnect; afterwards it does."""

    async def work(connection: LentConnection) -> None:
        await connection.send_command("WATCH", "key")
        await connection.read_response()
        identity.pass_time(LIFE)
        assert await command(connection, "PING") == "PONG"
        commands = [("MULTI",), ("PING",), ("EXEC",)]
        await connection.send_packed_command(connection.pack_commands(commands))
        replies = [await connection.read_response() for _ in commands]
        assert replies[-1] == [b"PONG"]
        assert counts(identity) == (1, 1)
        assert await command(connection, "PING") == "PONG"
        assert counts(identity) == (2, 2)
        await connection.send_command("WATCH", "key")
        await connection.read_response()
        await connection.send_command("UNWATCH")
        await connection.read_response()
        identity.pass_time(LIFE)
        assert await command(connection, "PING") == "PONG"
        assert counts(identity) == (3, 3)

    run(identity, work)


def test_refused_token_is_replaced_once(identity: Streaming) -> None:
    """A revoked token costs one renewal, and no error."""
    identity.renewal.current()
    identity.emulator.revoke(identity.oid)

    async def work(connection: LentConnection) -> None:
        assert await command(connection, "PING") == "PONG"
        assert len(identity.fetched) == 2

    run(identity, work)


def test_refused_principal(identity: Streaming) -> None:
    """Without an access policy: an error that says why, and holds no token."""
    identity.emulator.set_access(identity.oid, None)
    # As Azure has been seen to word it.
    identity.emulator.refusal = "ERR WRONGPASS invalid username-password pair"
    shown = ""
    for _ in range(2):
        with pytest.raises(TokenRefusedError, match="access policy") as caught:
            run(identity, command)
        shown += "".join(frames(caught.value))
    assert len(identity.fetched) == 2
    assert not any(value in shown for value in identity.fetched)


def test_no_token(identity: Streaming) -> None:
    """Without a token nothing is sent, and the error names the cause."""
    identity.failure = "the endpoint is away"

    with pytest.raises(TokenError, match="the endpoint is away"):
        run(identity, command)
    assert identity.auths() == 0


def test_cancelled_between_auth_and_its_reply(identity: Streaming) -> None:
    """A reply that nobody read is not the next command's."""

    class Slow(LentConnection):
        async def send_command(self, *args: Any, **kwargs: Any) -> None:
            """Be slow once the AUTH has been sent."""
            await super().send_command(*args, **kwargs)
            if args[0] == "AUTH" and sent is not None:
                sent.set()
                await asyncio.Event().wait()

    sent: asyncio.Event | None = None

    async def work(connection: LentConnection) -> None:
        nonlocal sent
        connection.__class__ = Slow
        identity.renew()
        identity.pass_time(SPREAD * LIFE / 2)
        sent = asyncio.Event()
        task = asyncio.create_task(command(connection, "PING"))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert not any(
            value in shown
            for shown in frames(caught.value)
            for value in identity.fetched
        )
        assert not connection.is_connected
        sent = None
        assert await command(connection, "PING") == "PONG"

    run(identity, work)


def test_without_an_identity() -> None:
    """The connection is redis-py's then, and its errors hold no password either."""

    async def main() -> None:
        await make(None, 1, password="the-secret").connect()

    with pytest.raises(RedisConnectionError) as caught:
        asyncio.run(main())
    shown = "".join(frames(caught.value))
    assert "the-secret" not in shown


class Pool:
    """What redis-py's subscriber takes its one connection from."""

    def __init__(self, connection: LentConnection) -> None:
        self.connection = connection
        self.connection_kwargs: dict[str, Any] = {}

    def get_encoder(self) -> Any:
        """Return what encodes the names of channels."""
        return self.connection.encoder

    async def get_connection(self) -> LentConnection:
        """Return it."""
        return self.connection

    async def release(self, connection: LentConnection) -> None:
        """Take it back."""


def test_an_error_of_python_that_quotes_the_token(identity: Streaming) -> None:
    """Where redis-py reads a number, int() quotes what is none."""

    async def convert() -> None:
        int(identity.fetched[-1])

    async def work(connection: Any) -> None:
        with pytest.raises(ValueError, match=r"\*\*\*") as raised:
            await connection._attempt(convert)
        assert raised.value.__context__ is None
        assert identity.fetched[-1] not in str([*frames(raised.value)][1:])

    run(identity, work)


def test_subscriber_of_a_server_that_quotes_the_token() -> None:
    """It gets the reply to an AUTH, in which the token is not told."""
    value = "0paque.Secret-Tok3n_Value9xyz"
    answers = {
        "PING": f"-ERR bad {value}\r\n".encode(),
        "ECHO": b"-ERR nothing\r\n",
        "TIME": f"-MOVED {value} host:1\r\n".encode(),
    }
    answered = {"PING": "bad ***", "ECHO": "nothing", "TIME": "***"}
    server = ScriptedServer(answers)
    current = replace(token(0.0), value=value)

    async def acurrent() -> Any:
        return current

    renewal = SimpleNamespace(
        acurrent=acurrent, fresh=lambda: current, clock=SYSTEM_CLOCK
    )
    provider: Any = SimpleNamespace(renewal=renewal, on_next=lambda callback: None)

    async def main() -> None:
        connection = make(provider, server.server_address[1])
        try:
            await connection.connect()
            connection.register_connect_callback(connection.on_connect)
            for name, words in answered.items():
                await connection.send_command(name)
                with pytest.raises((redis.RedisError, ValueError)) as raised:
                    await connection.read_response()
                assert words in str(raised.value)
                assert value not in str([*frames(raised.value)][1:])
        finally:
            await connection.disconnect()

    try:
        asyncio.run(main())
    finally:
        server.stop()


@pytest.mark.usefixtures("redis_server")
@pytest.mark.parametrize("protocol", [2, 3])
def test_subscriber(identity: Streaming, protocol: int) -> None:
    """In RESP 3 it authenticates in place, also while it waits for a message; otherwise
    it subscribes anew, once what has come already is read, as far as redis-py can tell.
    """
    reconnects = protocol == 2 and CAN_TELL
    afterwards = {2: "subscribe" if reconnects else "message", 3: "pong"}[protocol]

    async def main() -> None:
        async with connected(identity, protocol=protocol) as connection:
            pool: Any = Pool(connection)
            subscriber: Any = PubSub(pool)
            own = connection.retry
            await subscriber.subscribe("news")

            async def heard(kind: str) -> Any:
                while True:
                    message = await subscriber.get_message(timeout=20)
                    if message and message["type"] == kind:
                        return message["data"]

            async def publish(text: str) -> None:
                async with connected(identity) as other:
                    assert await command(other, "PUBLISH", "news", text) == 1

            def its_turn(share: float) -> None:
                identity.renew()
                identity.pass_time(share * LIFE)

            assert await heard("subscribe") == 1
            its_turn(SPREAD / 2)
            await publish("before")
            await publish("before")
            while CAN_TELL and not await connection.can_read():
                await asyncio.sleep(0.001)
            opened = identity.opened()
            assert await heard("message") == b"before"
            assert await heard(afterwards) in (1, b"OK", b"before")
            assert identity.opened() == opened + reconnects
            waiting = asyncio.create_task(heard("pong" if protocol == 3 else "message"))
            await asyncio.sleep(0)
            its_turn(SPREAD / 3)
            await identity.callback(None)
            await publish("after")
            assert await waiting in (b"OK", b"after", b"before")
            identity.emulator.drop_connections()
            assert await heard("subscribe") == 1
            await subscriber.aclose()
            assert connection.retry is own
            for _ in range(2):
                connection.register_connect_callback(subscriber.on_connect)
            connection.deregister_connect_callback(subscriber.on_connect)
            assert connection.retry is own
            connection.deregister_connect_callback(subscriber.on_connect)

    asyncio.run(main())
