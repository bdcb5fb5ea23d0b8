"""The provider: one renewal per identity, and everybody's clients re-authenticated."""

import asyncio
import copy
import gc
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from django.test import override_settings

from django_entra_redis.credentials import provider as provider_module
from django_entra_redis.credentials.client_callbacks import Subscriptions
from django_entra_redis.credentials.provider import (
    EntraCredentialProvider,
    RedisToken,
    get_credential_provider,
    reset,
    start_renewal,
    started_identities,
)
from django_entra_redis.exceptions import ConfigurationError, TokenError
from django_entra_redis.signals import token_renewal_failed, token_renewed
from django_entra_redis.status import Status
from emulator import Emulator
from tests.support.caches import let_in, wait_until
from tests.support.sites import ScriptedServer

PATIENCE = 30.0


@pytest.fixture
def entra(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Make the emulator's application the default identity."""
    with let_in(emulator, monkeypatch):
        yield emulator
    # An emulator that goes away during a TLS handshake makes Python leak the socket.
    settle()
    # A client that outlives its server delays what others are told.
    gc.collect()


def client(emulator: Emulator, **options: Any) -> redis.Redis:
    """Return a client as users make it."""
    warm()
    port = urlsplit(emulator.plaintext_url).port or 0
    options.setdefault("credential_provider", EntraCredentialProvider())
    return redis.Redis(host="localhost", port=port, **options)


def aclient(emulator: Emulator, **options: Any) -> redis.asyncio.Redis:
    """Return an asyncio client as users make it."""
    warm()
    port = urlsplit(emulator.plaintext_url).port or 0
    provider = EntraCredentialProvider()
    return redis.asyncio.Redis(
        host="localhost", port=port, credential_provider=provider, **options
    )


def thread_names() -> list[str]:
    """Return the names of all threads."""
    return [thread.name for thread in threading.enumerate()]


def warm() -> None:
    """Get the first token, and wait until everybody has been told of it."""
    EntraCredentialProvider().get_credentials()
    settle()


def settle() -> None:
    """Wait until no request is under way, and everybody has been told."""
    wait_until(lambda: "entra-redis-token-request:default" not in thread_names())


def renew() -> None:
    """Have the default identity get another token, as if Redis refused this one."""
    renewal = get_credential_provider().renewal
    refused = renewal.current()
    assert renewal.replace(refused) not in (None, refused)


def holders(emulator: Emulator) -> set[int]:
    """Return the connections that have authenticated with the current token."""
    current = get_credential_provider().renewal.current().claims["jti"]
    return {
        done.connection
        for done in emulator.authentications
        if done.accepted and done.token_id == current
    }


# -- one of each


def test_one_renewal_for_all_providers(entra: Emulator) -> None:
    """However many providers and threads there are, there is one request."""
    providers = [EntraCredentialProvider() for _ in range(16)]
    with ThreadPoolExecutor(16) as executor:
        given = list(executor.map(lambda p: p.get_credentials(), providers))
    assert len(set(given)) == 1
    username, token = given[0]
    assert username == entra.application.object_id
    assert token.count(".") == 2
    assert entra.stats.token_requests == 1
    assert len({provider.renewal for provider in providers}) == 1
    assert thread_names().count("entra-redis-renewal:default") == 1


def test_identities_are_apart(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each identity has a token of its own."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", emulator.imds_url)
    other = {"KIND": "managed_identity"}
    with let_in(emulator, monkeypatch, other=other):
        assert EntraCredentialProvider("other").get_credentials()[0] == (
            emulator.system_assigned.object_id
        )
        assert EntraCredentialProvider().get_credentials()[0] == (
            emulator.application.object_id
        )
        assert get_credential_provider("other").status().kind == "managed_identity"


def test_made_before_the_settings() -> None:
    """A provider can be made anywhere; it looks for its identity when it is used."""
    provider = EntraCredentialProvider("nobody")
    assert repr(provider) == "EntraCredentialProvider('nobody')"
    assert copy.deepcopy(provider).identity == "nobody"
    assert provider.is_streaming() is True
    for use in (provider.get_credentials, provider.status):
        with pytest.raises(ConfigurationError, match="'nobody'"):
            use()
    with pytest.raises(ConfigurationError, match="'nobody'"):
        get_credential_provider("nobody")
    with pytest.raises(ConfigurationError, match="'nobody'"):
        start_renewal("nobody")


def test_override_settings(entra: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings count at once, and leave no thread behind."""
    provider = EntraCredentialProvider()
    before = provider.renewal
    provider.get_credentials()
    for number in range(20):
        with let_in(entra, monkeypatch, other={}):
            assert provider.renewal is not before
            assert provider.status().renewals == 0
            if number % 5 == 0:
                provider.get_credentials()
    wait_until(
        lambda: not [name for name in thread_names() if name.endswith(":default")]
    )
    with override_settings(CACHES={}):
        assert provider.renewal is provider.renewal
    assert entra.stats.token_requests == 5


def test_reset(entra: Emulator) -> None:
    """After reset() the settings are read anew."""
    provider = EntraCredentialProvider()
    before = provider.renewal
    reset()
    assert provider.renewal is not before


def test_start_renewal(entra: Emulator) -> None:
    """The renewal can be started without asking for a token."""
    start_renewal("default")
    wait_until(lambda: get_credential_provider().status().renewed_at)
    assert entra.stats.token_requests == 1


def test_started_identities(entra: Emulator) -> None:
    """Looking at one's status starts nothing; asking for its token does."""
    provider = get_credential_provider()
    provider.status()
    assert started_identities() == set()
    provider.get_credentials()
    assert started_identities() == {"default"}
    reset()
    assert started_identities() == set()


def test_status(entra: Emulator) -> None:
    """The provider tells its identity's status."""
    provider = get_credential_provider()
    provider.get_credentials()
    status = provider.status()
    assert isinstance(status, Status)
    assert (status.identity, status.kind) == ("default", "service_principal")
    assert status.oid == entra.application.object_id


def test_asynchronously() -> None:
    """Coroutines get credentials while their loop goes on with other things."""
    asked, answer = threading.Event(), threading.Event()

    class Credential:
        def get_token(self, *scopes: str) -> Any:
            asked.set()
            answer.wait(PATIENCE)
            return Answer()

    class Answer:
        token, expires_on = "opaque", time.time() + 3600

    async def main() -> tuple[str, str]:
        provider = EntraCredentialProvider()
        waiting = asyncio.create_task(provider.get_credentials_async())
        while not asked.is_set():
            await asyncio.sleep(0)
        assert not waiting.done()
        answer.set()
        first = await waiting
        assert await provider.get_credentials_async() == first
        return first

    entry = {"CREDENTIAL": Credential, "USERNAME": "somebody"}
    with override_settings(ENTRA_REDIS={"default": entry}):
        assert asyncio.run(main()) == ("somebody", "opaque")


# -- signals


@pytest.fixture
def signals() -> Iterator[list[dict[str, Any]]]:
    """Collect what the signals say."""
    sent: list[dict[str, Any]] = []

    def listen(**kwargs: Any) -> None:
        sent.append(kwargs)

    def disturb(**kwargs: Any) -> None:
        raise ValueError

    for signal in (token_renewed, token_renewal_failed):
        signal.connect(disturb)
        signal.connect(listen)
    yield sent
    for signal in (token_renewed, token_renewal_failed):
        signal.disconnect(disturb)
        signal.disconnect(listen)


# Django logs what a receiver raises.
def test_signals(entra: Emulator, signals: list[dict[str, Any]]) -> None:
    """A new token and a failure are told; a receiver that raises disturbs nobody."""
    provider = EntraCredentialProvider()
    errors: list[Exception] = []
    provider.on_error(errors.append)
    entra.faults.fail("invalid_client", endpoint="token")
    with pytest.raises(TokenError):
        provider.get_credentials()
    wait_until(lambda: errors)
    assert len(signals) == 1
    assert signals[0]["signal"] is token_renewal_failed
    assert signals[0]["sender"] == signals[0]["identity"] == "default"
    assert "AADSTS7000215" in signals[0]["error"] == str(errors[0])
    assert signals[0]["status"].failures == 1
    entra.faults.recover()
    wait_until(lambda: provider.status().last_error is None)
    wait_until(lambda: signals[-1]["signal"] is token_renewed)
    assert signals[-1]["identity"] == "default"
    assert signals[-1]["status"] == provider.status() or provider.status().renewed_at


# -- users' own clients


def test_password_is_masked(entra: Emulator) -> None:
    """It is a string like any other, but does not show in what holds it."""
    provider = EntraCredentialProvider()
    ours = provider.get_credentials(), asyncio.run(provider.get_credentials_async())
    token = RedisToken(provider.renewal, provider.renewal.current())
    for password in (ours[0][1], ours[1][1], token.get_value()):
        assert isinstance(password, str)
        assert password.count(".") == 2
        assert repr([password]) == "['********']"
        assert f"{password}" == str(password) == "".join(password)


def test_token_for_redis_py(entra: Emulator) -> None:
    """redis-py's callbacks get the user name where they look for it."""
    heard: list[RedisToken] = []
    provider = EntraCredentialProvider()
    provider.on_next(heard.append)
    username, value = provider.get_credentials()
    wait_until(lambda: heard)
    token = heard[0]
    now = time.time()
    assert token.try_get("oid") == username
    assert token.get_value() == value
    assert token.try_get("aud") == "https://redis.azure.com"
    assert token.try_get("nothing") is None
    assert not token.is_expired()
    assert 3500.0 < token.ttl() / 1000 <= 3600.0
    assert token.get_expires_at_ms() / 1000 == pytest.approx(now + 3600, abs=60)
    assert token.get_received_at_ms() / 1000 == pytest.approx(now, abs=60)
    assert value not in repr(token)


def test_user_name_of_the_settings(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With USERNAME, redis-py's callbacks get that one for the claim."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", emulator.imds_url)
    entry = {"KIND": "managed_identity", "USERNAME": "somebody"}
    heard: list[RedisToken] = []
    with override_settings(ENTRA_REDIS={"default": entry}):
        provider = EntraCredentialProvider()
        provider.on_next(heard.append)
        assert provider.get_credentials()[0] == "somebody"
        wait_until(lambda: heard)
    assert heard[0].try_get("oid") == "somebody"


def test_idle_connections(entra: Emulator) -> None:
    """A client's idle connections are re-authenticated from the renewal's thread."""
    with client(entra) as made:
        made.ping()
        renew()
        wait_until(lambda: holders(entra) == {1})
        made.ping()
    assert entra.stats.connections_opened == 1


def test_connection_in_use(entra: Emulator) -> None:
    """A connection in use is re-authenticated when it comes back."""
    told = threading.Event()
    with client(entra) as made, made.pipeline() as pipeline:
        pipeline.watch("key")
        EntraCredentialProvider().on_next(lambda _: told.set())
        renew()
        assert told.wait(PATIENCE)
        assert holders(entra) == set()
        pipeline.reset()
        made.ping()
        wait_until(lambda: holders(entra) == {1})
    assert entra.stats.connections_opened == 1


def test_single_connection(entra: Emulator) -> None:
    """So is a client's only connection."""
    with client(entra, single_connection_client=True) as made:
        made.ping()
        renew()
        wait_until(lambda: holders(entra) == {1})
        made.ping()
    assert entra.stats.connections_opened == 1


# redis-py 5.3 calls an asynchronous function of its own here and forgets it.
@pytest.mark.filterwarnings("ignore:coroutine 'ConnectionPool._mock' was never")
def test_dead_idle_connections(entra: Emulator) -> None:
    """Idle connections that the server has closed keep no other from its AUTH."""
    with client(entra) as made:
        pool = made.connection_pool
        connections = [pool.get_connection() for _ in range(3)]
        for connection in connections:
            pool.release(connection)
        for connection in connections[:2]:
            connection._sock.shutdown(socket.SHUT_RDWR)
        renew()
        wait_until(lambda: 3 in holders(entra))


def test_asyncio_client(entra: Emulator) -> None:
    """An asyncio client is re-authenticated on the loop that it was made in."""

    async def main() -> None:
        made = aclient(entra)
        await made.ping()
        await asyncio.to_thread(renew)
        await asyncio.to_thread(wait_until, lambda: holders(entra) == {1})
        await made.ping()
        await made.aclose()

    asyncio.run(main())
    assert entra.stats.connections_opened == 1


def test_asyncio_client_made_outside(entra: Emulator) -> None:
    """An asyncio client that was made outside a loop works, too."""
    made = aclient(entra)
    told = threading.Event()

    async def main() -> None:
        await made.ping()
        EntraCredentialProvider().on_next(lambda _: told.set())
        await asyncio.to_thread(renew)
        await asyncio.to_thread(told.wait, PATIENCE)
        await made.ping()
        await made.aclose()

    asyncio.run(main())
    assert holders(entra) == set()


def test_forgotten_clients(entra: Emulator) -> None:
    """Clients that are collected are forgotten."""
    provider = EntraCredentialProvider()
    heard: list[object] = []

    class Listener:
        def __init__(self) -> None:
            provider.on_next(self.listen)
            provider.on_error(self.listen)

        def listen(self, value: object) -> None:
            """Hear."""
            heard.append(value)

    kept = Listener()
    for _ in range(10):
        client(entra).close()
        Listener()
    gc.collect()
    provider.get_credentials()
    wait_until(lambda: heard)
    renew()
    wait_until(lambda: len(heard) == 2)
    assert kept is not None
    assert not entra.authentications


EXIT = """
import sys, time
import redis
from django.conf import settings

class AccessToken:
    def __init__(self):
        self.token, self.expires_on = "t", time.time() + 3.0

class Credential:
    def get_token(self, *scopes):
        return AccessToken()

identity = {"CREDENTIAL": Credential(), "USERNAME": "user", "REFRESH_RATIO": 0.1}
settings.configure(ENTRA_REDIS={"default": identity})
from django_entra_redis.credentials import EntraCredentialProvider

provider = EntraCredentialProvider()
port = int(sys.argv[1])
client = redis.Redis(port=port, protocol=2, credential_provider=provider)
client.ping()
print("connected", flush=True)
lock = client.connection_pool._lock
while lock.acquire(blocking=False):
    lock.release()
    time.sleep(0.01)
# The garbage collector finds it when the interpreter ends, after the other threads.
client.itself = client
del client
"""


def test_interpreter_exit() -> None:
    """A process ends, even while a callback holds the lock of a client's pool.

    The callback's thread waits for an answer, and ends with the interpreter; what ends
    then closes the client.
    """
    server = ScriptedServer({})
    port = str(server.server_address[1])
    command = [sys.executable, "-W", "error", "-c", EXIT, port]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        server.answers = {"AUTH": b""}
        try:
            rest = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            server.stop()
    assert (told, *rest) == (b"connected\n", b"", b"")


def test_before_exit() -> None:
    """A callback under way is waited for, and no other begins."""
    subscriptions, pool = Subscriptions(), SlowPool()
    subscriptions.add(pool.re_auth_callback)
    lock = pool._lock
    pool.released.set()
    subscriptions.before_exit(time.monotonic() + PATIENCE)
    subscriptions.notify("new")
    assert not pool.asked.is_set()
    assert pool._lock is lock


@pytest.mark.parametrize("ends", [True, False])
def test_before_exit_while_a_callback_is_under_way(ends: bool) -> None:
    """A pool that a callback holds for too long begins anew.

    It has another lock; and nobody gets a connection on which the callback waits.
    """
    subscriptions, pool = Subscriptions(), SlowPool()
    subscriptions.add(pool.re_auth_callback)
    lock, idle = pool._lock, pool._available_connections
    with ThreadPoolExecutor(2) as threads:
        told = threads.submit(subscriptions.notify, "new")
        assert pool.asked.wait(PATIENCE)
        patience = PATIENCE if ends else 0.1
        deadline = time.monotonic() + patience
        over = threads.submit(subscriptions.before_exit, deadline)
        if not ends:
            over.result(PATIENCE)
        pool.released.set()
        over.result(PATIENCE)
        told.result(PATIENCE)
    assert (pool._lock is lock) is ends
    assert (pool._available_connections is idle) is ends


def test_interruption_of_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl+C ends the wait; no pool stays locked."""
    kinds = [Subscriptions() for _ in range(4)]
    pools = [SlowPool() for _ in kinds]
    locks = [pool._lock for pool in pools]
    pairs = {"a": tuple(kinds[:2]), "b": tuple(kinds[2:])}
    monkeypatch.setattr(provider_module, "_subscriptions", pairs)
    with ThreadPoolExecutor(len(kinds)) as threads:
        for kind, pool in zip(kinds, pools, strict=True):
            kind.add(pool.re_auth_callback)
            threads.submit(kind.notify, "new")
            assert pool.asked.wait(PATIENCE)
            monkeypatch.setattr(kind._calls, "wait_for", interrupt)
        with pytest.raises(KeyboardInterrupt):
            provider_module._before_exit()
        for pool in pools:
            pool.released.set()
    assert all(pool._lock is not lock for pool, lock in zip(pools, locks, strict=True))


def interrupt(*arguments: object) -> None:
    """Do as Ctrl+C does."""
    raise KeyboardInterrupt


def test_a_fork_in_a_callback() -> None:
    """The child has no callback under way when this one ends, and none is refused."""
    subscriptions, pool = Subscriptions(), SlowPool()
    told: list[object] = []

    def fork(token: object) -> None:
        told.append(token)
        subscriptions.after_fork()

    subscriptions.add(fork)
    subscriptions.add(pool.re_auth_callback)
    pool.released.set()
    subscriptions.before_exit(time.monotonic())
    subscriptions.after_fork()
    subscriptions.notify("new")
    assert told == ["new"]
    assert pool.asked.is_set()
    lock = pool._lock
    subscriptions.before_exit(time.monotonic())
    assert pool._lock is lock


class SlowPool(redis.ConnectionPool):
    """A pool whose callback holds the lock until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.released = threading.Event(), threading.Event()

    def re_auth_callback(self, token: object) -> None:
        """Hold the lock."""
        with self._lock:
            self.asked.set()
            assert self.released.wait(PATIENCE)


def in_child(check: Callable[[], None]) -> None:
    """Run a check in a forked child; fail if it does."""
    child = multiprocessing.get_context("fork").Process(target=check)
    child.start()
    child.join(PATIENCE)
    code = child.exitcode
    child.kill()
    child.join()
    child.close()
    assert code == 0


def test_client_in_a_child(entra: Emulator) -> None:
    """A child's renewal leaves the parent's connections alone, and tends its own."""
    with client(entra) as made:
        made.ping()

        def check() -> None:
            told = threading.Semaphore(0)
            provider = EntraCredentialProvider()
            provider.on_next(lambda _: told.release())
            for _ in range(2):
                reset()
                provider.get_credentials()
                assert told.acquire(timeout=PATIENCE)
                made.ping()

        in_child(check)
        made.ping()
    tokens = [
        {d.token_id for d in entra.authentications if d.connection == n} for n in (1, 2)
    ]
    assert len(tokens[0]) == 1
    assert len(tokens[1]) == 2
    assert entra.stats.connections_opened == 2


def test_fork_while_a_signal_is_sent(receivers_kept: None) -> None:
    """A child's renewals send theirs though another thread was sending one."""

    heard: list[Any] = []
    signals = (token_renewed, token_renewal_failed)
    for signal in signals:
        signal.connect(lambda **kwargs: heard.append(kwargs), weak=False)

    def check() -> None:
        for signal in signals:
            signal.send_robust(sender="child")
        assert len(heard) == 2

    with token_renewed.lock, token_renewal_failed.lock:
        in_child(check)


def test_fork_while_the_registry_is_locked(entra: Emulator) -> None:
    """A child finds its identities though another thread was looking for one."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            begun.set()
            go_on.wait(PATIENCE)
            return super().__contains__(key)

    with override_settings(ENTRA_REDIS=Slow({"slow": {"CREDENTIAL": Slow}})):
        looking = threading.Thread(target=get_credential_provider, args=("slow",))
        looking.start()
        assert begun.wait(PATIENCE)

        def check() -> None:
            go_on.set()
            assert get_credential_provider("slow").status().kind == "credential"

        in_child(check)
        go_on.set()
        looking.join()
