"""Connections: when they authenticate anew, and what they share."""

import gc
import ssl
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.connection import Connection, SSLConnection

from django_entra_redis.conf.policy import Policy
from django_entra_redis.connections.connection import connection_class
from django_entra_redis.connections.tls import SharedTls
from django_entra_redis.credentials import get_credential_provider, reauthentication
from django_entra_redis.credentials.reauthentication import (
    SPREAD,
    Action,
    next_action,
    reauthentication_time,
)
from django_entra_redis.credentials.renewal import Renewal
from django_entra_redis.exceptions import (
    TokenError,
    TokenRefusedError,
    TokenRequestError,
)
from django_entra_redis.identity.token import SYSTEM_CLOCK, Clock, Token
from emulator import Emulator
from tests.support.caches import let_in, make_cache, wait_until
from tests.support.sites import ScriptedServer

LIFE = 3600.0


def token(received_at: float, life: float = LIFE) -> Token:
    """Return a token that arrived at a time of the monotonic clock."""
    expires_at = received_at + life
    return Token("value", "user", {}, received_at, expires_at, expires_at)


@pytest.mark.parametrize(
    ("share", "received_at", "expected"),
    [
        pytest.param(0.0, 2400.0, 2400.0, id="the first at once"),
        pytest.param(1.0, 2400.0, 2400.0 + SPREAD * 1200.0, id="the last in time"),
        pytest.param(0.5, 2400.0, 2400.0 + SPREAD * 600.0, id="the others between"),
        pytest.param(1.0, 3600.0, 3600.0, id="no time left"),
        pytest.param(1.0, 5000.0, 5000.0, id="run out before"),
    ],
)
def test_reauthentication_time(
    share: float, received_at: float, expected: float
) -> None:
    """AUTHs are spread over the first part of what the old token has left."""
    assert reauthentication_time(token(0.0), token(received_at), share) == expected


@pytest.mark.parametrize(
    ("value", "now", "action"),
    [
        ("value", 3000.0, Action.ADOPT),
        ("value", LIFE, Action.ADOPT),
        ("newer", 2400.0, Action.KEEP),
        ("newer", 3000.0, Action.AUTHENTICATE),
        ("newer", LIFE, Action.RECONNECT),
    ],
)
def test_next_step(value: str, now: float, action: Action) -> None:
    """With a newer token it is AUTH at the connection's moment, and then too late."""
    current = replace(token(2400.0), value=value)
    clock = Clock(lambda: now, lambda: now)
    assert next_action(token(0.0), current, 1.0, clock) is action


class Identity:
    """An identity of the emulator's whose clock is turned by hand."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.oid = emulator.application.object_id
        self.monotonic = 1000.0
        self.wall = 1e9
        self.failure: str | None = None
        self.fetched: list[str] = []
        clock = Clock(lambda: self.monotonic, lambda: self.wall)
        policy = Policy(ratio=0.5, margin=0.0)
        self.renewal = Renewal(
            "test", "test", lambda: self.fetch, policy=policy, clock=clock
        )
        self.made: list[Any] = []

    def fetch(self) -> Token:
        """Get a token that the emulator takes for an hour, whatever the clock says."""
        if self.failure is not None:
            raise TokenRequestError(self.failure)
        value = self.emulator.issue_token(self.oid)
        self.fetched.append(value)
        return Token(
            value,
            self.oid,
            {},
            self.monotonic,
            self.monotonic + LIFE,
            self.wall + LIFE,
        )

    def pass_time(self, seconds: float) -> None:
        """Turn both clocks."""
        self.monotonic += seconds
        self.wall += seconds

    def renew(self) -> None:
        """Have the token renewed half through its life."""
        self.pass_time(LIFE / 2)
        renewals = self.renewal.status().renewals
        self.renewal.current()
        wait_until(lambda: self.renewal.status().renewals == renewals + 1)

    def connect(self, **options: Any) -> Any:
        """Return a connection, connected."""
        kind = connection_class(Connection, entra=True)
        port = int(self.emulator.plaintext_url.rpartition(":")[2])
        options = {"protocol": 2, **options}
        connection = kind(credential_provider=self, port=port, **options)
        self.made.append(connection)
        connection.connect()
        return connection

    def auths(self) -> int:
        """Return how often anything has authenticated."""
        return self.emulator.stats.auths

    def opened(self) -> int:
        """Return how many connections have been opened."""
        return self.emulator.stats.connections_opened

    def close(self) -> None:
        """Stop everything."""
        self.renewal.stop()
        for connection in self.made:
            connection.disconnect()


def ping(connection: Any) -> bool:
    """Return whether a connection answers, without connecting anew."""
    connection.send_packed_command(connection.pack_command("PING"))
    return bool(connection.read_response() == b"PONG")


@pytest.fixture
def identity(emulator: Emulator) -> Iterator[Identity]:
    """Give an identity."""
    made = Identity(emulator)
    yield made
    made.close()


def test_connected_is_enough(identity: Identity) -> None:
    """While its token is the current one, a checkout sends nothing."""
    connection = identity.connect()
    connection.connect()
    connection.connect_check_health()
    assert (identity.auths(), identity.opened()) == (1, 1)
    assert ping(connection)


def test_authenticates_anew_when_it_is_its_turn(identity: Identity) -> None:
    """A connection sends AUTH on its open socket, and not before it is its turn."""
    connection = identity.connect()
    identity.renew()
    connection.connect()
    assert identity.auths() == 1
    identity.pass_time(SPREAD * LIFE / 2)
    connection.connect()
    connection.connect()
    assert (identity.auths(), identity.opened()) == (2, 1)
    assert ping(connection)


def test_spreads(identity: Identity) -> None:
    """The connections of a process do not all send AUTH in the same moment."""
    made = [identity.connect() for _ in range(40)]
    identity.renew()
    identity.pass_time(SPREAD * LIFE / 4)
    for connection in made:
        connection.connect()
    assert 40 < identity.auths() < 80


@pytest.mark.parametrize("clock", ["monotonic", "wall"])
def test_reconnects_when_its_own_token_has_run_out(
    identity: Identity, clock: str
) -> None:
    """Too late for AUTH, by either clock: the server has closed it, or will."""
    connection = identity.connect()
    setattr(identity, clock, getattr(identity, clock) + LIFE)
    connection.connect()
    assert (identity.auths(), identity.opened()) == (2, 2)
    assert ping(connection)


def test_the_same_token_that_is_good_for_longer(identity: Identity) -> None:
    """The server has it already: neither AUTH nor, at its old expiry, a reconnect."""
    connection = identity.connect()
    (value,) = identity.fetched
    longer = token(identity.monotonic + LIFE / 2)
    longer = replace(longer, value=value, expires_on=identity.wall + 1.5 * LIFE)
    identity.renewal.state = identity.renewal.state.succeeded(longer, identity.wall)
    identity.renewal.state = identity.renewal.state.due(longer.expires_at)
    identity.pass_time(LIFE)
    connection.connect()
    connection.connect()
    assert (identity.auths(), identity.opened()) == (1, 1)
    assert ping(connection)


def test_reconnects_when_auth_fails(identity: Identity) -> None:
    """A connection that broke while it was idle is not missed."""
    connection = identity.connect()
    identity.renew()
    identity.pass_time(SPREAD * LIFE / 2)
    identity.emulator.drop_connections()
    connection.connect()
    assert identity.opened() == 2
    assert ping(connection)


def test_disconnected_connects_with_the_current_token(identity: Identity) -> None:
    """redis-py reconnects in the middle of its own retries; that is seen to as well."""
    connection = identity.connect()
    connection.disconnect()
    assert ping(connection)
    connection.connect()
    assert (identity.auths(), identity.opened()) == (2, 2)


def test_refused_token_is_replaced_once(identity: Identity) -> None:
    """A revoked token costs one renewal, and no error."""
    identity.connect()
    identity.emulator.revoke(identity.oid)
    connection = identity.connect()
    assert len(identity.fetched) == 2
    assert ping(connection)


def test_refused_principal(identity: Identity) -> None:
    """Without an access policy: one forced renewal, then an error that says why."""
    identity.emulator.set_access(identity.oid, None)
    for _ in range(3):
        with pytest.raises(TokenRefusedError, match="access policy") as caught:
            identity.connect()
        assert identity.oid in str(caught.value)
        assert "WRONGPASS" in str(caught.value) or "invalid" in str(caught.value)
    assert len(identity.fetched) == 2


def test_refused_at_its_turn(identity: Identity) -> None:
    """An AUTH refused on an open connection ends likewise."""
    connection = identity.connect()
    identity.renew()
    identity.pass_time(SPREAD * LIFE / 2)
    identity.emulator.set_access(identity.oid, None)
    with pytest.raises(TokenRefusedError):
        connection.connect()
    identity.emulator.set_access(identity.oid, "+@all ~* &*")
    connection.connect()
    assert ping(connection)


def test_no_token(identity: Identity) -> None:
    """Without a token nothing is sent, and the error names the cause."""
    identity.failure = "the endpoint is away"
    with pytest.raises(TokenError, match="the endpoint is away"):
        identity.connect()
    assert identity.opened() == 0


def frames(error: BaseException | None) -> Iterator[str]:
    """Give all that Django's debug page would show of an error."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            yield repr(trace.tb_frame.f_locals)
            trace = trace.tb_next
        yield str(error)
        error = error.__cause__ or error.__context__


def test_errors_hold_no_token(identity: Identity) -> None:
    """No frame of an error that leaves connect() has the token in its variables."""
    identity.emulator.set_access(identity.oid, None)
    with pytest.raises(TokenRefusedError) as caught:
        identity.connect()
    shown = "".join(frames(caught.value))
    assert identity.oid in shown
    assert not any(value in shown for value in identity.fetched)


class Interrupted(BaseException):
    """What a signal handler raises."""


class InterruptedConnection(Connection):
    """Is interrupted when it has sent AUTH, before it reads the reply."""

    interrupts = 0

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command."""
        super().send_command(*args, **kwargs)  # type: ignore[no-untyped-call]
        if args[0] == "AUTH" and InterruptedConnection.interrupts:
            InterruptedConnection.interrupts -= 1
            raise Interrupted


@pytest.mark.parametrize("again", [False, True], ids=["connecting", "connected"])
@pytest.mark.usefixtures("redis_server")
def test_interrupted_between_auth_and_its_reply(
    identity: Identity, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """A reply that nobody read is not the next command's; no frame has the token."""
    monkeypatch.setattr(InterruptedConnection, "interrupts", 0)
    kind = connection_class(InterruptedConnection, entra=True)
    port = int(identity.emulator.plaintext_url.rpartition(":")[2])
    connection = kind(credential_provider=identity, port=port, protocol=2, db=1)
    identity.made.append(connection)
    if again:
        connection.connect()
        identity.renew()
        identity.pass_time(SPREAD * LIFE / 2)
    monkeypatch.setattr(InterruptedConnection, "interrupts", 1)
    with pytest.raises(Interrupted) as caught:
        connection.connect()
    shown = "".join(frames(caught.value))
    assert not any(value in shown for value in identity.fetched)
    connection.connect()
    assert ping(connection)
    connection.send_command("CLIENT", "INFO")
    assert b" db=1 " in connection.read_response()


@pytest.mark.usefixtures("redis_server")
def test_interrupted_without_an_identity(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was interrupted before it had selected its database does."""
    kind = connection_class(InterruptedConnection, entra=False)
    connection = kind(
        port=int(identity.emulator.plaintext_url.rpartition(":")[2]),
        username=identity.oid,
        password=identity.emulator.issue_token(identity.oid),
        protocol=2,
        db=1,
    )
    identity.made.append(connection)
    monkeypatch.setattr(InterruptedConnection, "interrupts", 1)
    with pytest.raises(Interrupted):
        connection.connect()
    connection.connect()
    connection.connect()
    assert ping(connection)
    connection.send_command("CLIENT", "INFO")
    assert b" db=1 " in connection.read_response()


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
    renewal = SimpleNamespace(
        current=lambda: current, fresh=lambda: current, clock=SYSTEM_CLOCK
    )
    connection = connection_class(Connection, entra=True)(
        credential_provider=SimpleNamespace(renewal=renewal),
        port=server.server_address[1],
        protocol=2,
    )
    try:
        connection.connect()
        connection.register_connect_callback(connection.on_connect)
        for name, words in answered.items():
            connection.send_command(name)
            with pytest.raises((redis.RedisError, ValueError)) as raised:
                connection.read_response()
            assert words in str(raised.value)
            assert value not in str([*frames(raised.value)][1:])
        connection.deregister_connect_callback(connection.on_connect)
        assert "read_response" not in vars(connection)
    finally:
        connection.disconnect()
        server.stop()


def test_an_error_of_python_that_quotes_the_token(identity: Identity) -> None:
    """Where redis-py reads a number, int() quotes what is none."""
    connection = identity.connect()
    with pytest.raises(ValueError, match=r"\*\*\*") as raised:
        connection._attempt(lambda: int(identity.fetched[-1]))
    assert raised.value.__context__ is None
    assert identity.fetched[-1] not in str([*frames(raised.value)][1:])


def test_subscribed_connection_reconnects(identity: Identity) -> None:
    """A RESP 2 subscription takes no AUTH: it is made anew, and misses no error."""
    pool = redis.ConnectionPool(
        connection_class=connection_class(Connection, entra=True),
        credential_provider=identity,
        port=int(identity.emulator.plaintext_url.rpartition(":")[2]),
        protocol=2,
    )
    with (
        redis.Redis(connection_pool=pool) as client,
        client.pubsub() as subscription,
    ):
        subscription.subscribe("news")
        assert subscription.parse_response() == [b"subscribe", b"news", 1]
        identity.renew()
        identity.pass_time(SPREAD * LIFE / 2)
        # Which must not be taken for the reply to an AUTH.
        client.publish("news", "lost")
        opened = identity.opened()
        assert subscription.parse_response() == [b"subscribe", b"news", 1]
        assert identity.opened() == opened + 1
        client.publish("news", "hello")
        assert subscription.parse_response() == [b"message", b"news", b"hello"]
        subscription.reset()
        # The connection is an ordinary one again.
        identity.renew()
        identity.pass_time(SPREAD * LIFE / 2)
        opened, auths = identity.opened(), identity.auths()
        client.ping()
        assert identity.auths() > auths
        client.ping()
        assert identity.opened() <= opened + 1
    pool.disconnect()


# -- every kind of pool, through the cache


class CustomPool(redis.ConnectionPool):
    """Somebody's own pool."""


class CustomConnection(SSLConnection):
    """Somebody's own connection."""

    made = 0

    def __init__(self, **kwargs: Any) -> None:
        CustomConnection.made += 1
        super().__init__(**kwargs)


@pytest.fixture
def tls_options(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """Let the cache in, and give what TLS to the emulator needs."""
    with let_in(emulator, monkeypatch):
        yield {"ssl_ca_certs": str(emulator.ca_file)}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="own"),
        pytest.param({"pool_class": "redis.ConnectionPool"}, id="redis-py"),
        pytest.param({"pool_class": redis.BlockingConnectionPool}, id="blocking"),
        pytest.param({"pool_class": CustomPool}, id="custom"),
        pytest.param({"connection_class": CustomConnection}, id="connection"),
    ],
)
def test_every_pool(
    emulator: Emulator,
    tls_options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    """Whatever the pool, the open connection gets the new token, a revoked one too."""
    monkeypatch.setattr(reauthentication, "SPREAD", 0.0)
    monkeypatch.setattr(CustomConnection, "made", 0)
    cache = make_cache(emulator.redis_url, **tls_options, **options)
    cache.set("key", 1)
    renewal = get_credential_provider().renewal
    assert renewal.replace(renewal.current()) is not None
    assert cache.get("key") == 1
    stats = emulator.stats
    assert (stats.connections_opened, stats.auths) == (1, 2)
    assert CustomConnection.made == ("connection_class" in options)
    emulator.revoke(emulator.application.object_id)
    with let_in(emulator, monkeypatch):
        # Another token, of another renewal.
        assert cache.get("key") == 1
    assert emulator.stats.connections_opened > 1


# -- what the TLS connections of a pool share


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """Give the list of the SSL contexts that redis-py builds."""
    built: list[ssl.SSLContext] = []
    build = ssl.create_default_context

    def count(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        built.append(build(*args, **kwargs))
        return built[-1]

    monkeypatch.setattr("redis.connection.ssl.create_default_context", count)
    return built


def test_one_context_per_pool(
    emulator: Emulator, tls_options: dict[str, Any], contexts: list[ssl.SSLContext]
) -> None:
    """However many connections a pool opens, it builds one SSL context."""
    pool = make_cache(emulator.redis_url, **tls_options).get_pool()
    lent = [pool.get_connection() for _ in range(3)]
    for connection in lent:
        assert ping(connection)
        pool.release(connection)
    assert emulator.stats.connections_opened == 3
    assert len(contexts) == 1
    assert contexts[0].verify_mode is ssl.CERT_REQUIRED
    assert contexts[0].check_hostname


def test_shared_context_verifies(
    emulator: Emulator, tls_options: dict[str, Any], contexts: list[ssl.SSLContext]
) -> None:
    """A connection that shares a context checks certificate and host name itself."""
    pool = make_cache(emulator.redis_url, **tls_options).get_pool()
    connection = pool.get_connection()
    connection.disconnect()
    connection.host = "127.0.0.1"
    with pytest.raises(redis.ConnectionError, match="IP address mismatch"):
        connection.connect()
    with Emulator() as stranger:
        connection.host = "localhost"
        port, connection.port = (
            connection.port,
            int(stranger.redis_url.rpartition(":")[2]),
        )
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            connection.connect()
    connection.port = port
    connection.connect()
    assert ping(connection)
    pool.release(connection)
    assert len(contexts) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed(
    emulator: Emulator,
    tls_options: dict[str, Any],
    version: ssl.TLSVersion,
    contexts: list[ssl.SSLContext],
) -> None:
    """A server that knows us shortens the handshake; another one does all of it."""
    pool = make_cache(emulator.redis_url, **tls_options).get_pool()
    connection = pool.get_connection()
    contexts[0].minimum_version = contexts[0].maximum_version = version

    def reconnect() -> Any:
        connection.disconnect()
        connection.connect()
        assert ping(connection)
        return connection._sock.session_reused

    assert [reconnect() for _ in range(3)] == [False, True, True]
    # Another context knows no session: it is that of another name.
    emulator.break_tls("hostname")
    connection.disconnect()
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        connection.connect()
    emulator.break_tls(None)
    assert [reconnect() for _ in range(3)] == [True, True, True]
    # One of another version is not resumed; the next is the new one's.
    (other,) = {ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3} - {version}
    contexts[0].minimum_version = ssl.TLSVersion.TLSv1_2
    contexts[0].maximum_version = ssl.TLSVersion.TLSv1_3
    contexts[0].minimum_version = contexts[0].maximum_version = other
    assert [reconnect() for _ in range(2)] == [False, True]
    pool.release(connection)


def test_sessions_are_asked_for_once(
    emulator: Emulator, tls_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython leaks each: a connection asks only where the pool has none."""
    asked: list[object] = []
    plain: Any = ssl.SSLSocket.session

    def ask(wrapped: ssl.SSLSocket) -> object:
        asked.append(wrapped)
        return plain.fget(wrapped)

    monkeypatch.setattr(ssl.SSLSocket, "session", property(ask))
    pool = make_cache(emulator.redis_url, **tls_options).get_pool()
    connection = pool.get_connection()
    for _ in range(4):
        assert ping(connection)
        connection.disconnect()
        connection.connect()
    assert connection._sock.session_reused
    # The first one had no context of the pool's yet.
    assert len(asked) == 1
    pool.release(connection)


def test_the_first_context_stays(
    emulator: Emulator, tls_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that builds a context longer than another does not replace that one."""
    pool = make_cache(emulator.redis_url, **tls_options).get_pool()
    build = ssl.create_default_context

    def overtaken(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        monkeypatch.setattr("redis.connection.ssl.create_default_context", build)
        # What the other does meanwhile, a session included.
        quicker = pool.get_connection()
        for _ in range(2):
            assert ping(quicker)
            quicker.disconnect()
            quicker.connect()
        assert quicker._sock.session_reused
        pool.release(quicker)
        return build(*args, **kwargs)

    monkeypatch.setattr("redis.connection.ssl.create_default_context", overtaken)
    slower, quicker = pool.get_connection(), pool.get_connection()
    assert slower._sock.context is not quicker._sock.context
    for connection in (slower, quicker):
        connection.disconnect()
        connection.connect()
        assert ping(connection)
    assert slower._sock.context is quicker._sock.context
    assert slower._sock.session_reused
    for connection in (slower, quicker):
        pool.release(connection)


def test_certificates_are_verified_by_default(
    emulator: Emulator, tls_options: dict[str, Any]
) -> None:
    """Without the authority's certificate nothing gets as far as a token."""
    del tls_options["ssl_ca_certs"]
    cache = make_cache(emulator.redis_url, **tls_options)
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        cache.get("key")
    assert emulator.stats.auths == 0


@pytest.mark.filterwarnings(
    # redis-py forgets to close the socket there.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::ResourceWarning",
)
def test_ocsp_is_checked_on_each_connection(
    emulator: Emulator, contexts: list[ssl.SSLContext]
) -> None:
    """A shared context leaves out none of the checks that redis-py makes itself."""
    tls = SharedTls()
    tls.context = ssl.create_default_context(cafile=str(emulator.ca_file))
    kind = connection_class(SSLConnection, entra=False)
    connection = kind(
        host="localhost",
        port=int(emulator.redis_url.rpartition(":")[2]),
        ssl_ca_certs=str(emulator.ca_file),
        ssl_validate_ocsp=True,
        tls=tls,
    )
    with pytest.raises(redis.ConnectionError):
        connection.connect()
    gc.collect()
    assert len(contexts) == 2
