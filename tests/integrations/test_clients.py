"""Clients that users make themselves, and several identities, through expiries."""

import asyncio
import gc
import multiprocessing
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from weakref import ref

import pytest
import redis
import redis.asyncio
from django.core.cache import caches
from django.test import override_settings
from redis.utils import str_if_bytes

from django_entra_redis.credentials import (
    EntraCredentialProvider,
    get_credential_provider,
)
from django_entra_redis.credentials import provider as credentials
from emulator import Emulator
from tests.integrations.workers import (
    DURATION,
    EXPIRIES,
    LIFE,
    PATIENCE,
    RATIO,
    identity,
)
from tests.support.caches import Database, let_in, wait_until

#: Older asyncio connections in use can't be told to reconnect.
RECONNECTS = hasattr(redis.asyncio.Connection, "mark_for_reconnect")
#: Seconds between two operations of a client.
REST = 0.05


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Run Entra and its Redis with tokens that last for seconds; let us in."""
    with (
        Emulator(token_lifetime=LIFE) as running,
        let_in(running, monkeypatch, default=identity(running)),
    ):
        yield running
    collect()


def collect() -> None:
    """Collect pools, which are in cycles: they would be told of other tests' tokens.

    redis-py opens the connections of a pool that is closed again, to authenticate them
    anew. Nobody closes them but their finalizers, and the socket's may come first.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def options(emulator: Emulator, **more: Any) -> dict[str, Any]:
    """Return what a client of redis-py takes."""
    return {
        "host": "localhost",
        "port": urlsplit(emulator.plaintext_url).port,
        "credential_provider": get_credential_provider(),
        # redis-py 8 waits for five seconds; a busy machine may need more.
        "socket_timeout": PATIENCE,
        **more,
    }


def expiries(emulator: Emulator) -> int:
    """Return how many tokens the default identity has had after its first."""
    return get_credential_provider().status().renewals


def work(emulator: Emulator, client: Any, name: str) -> None:
    """Write and read through all expiries."""
    turns = 0
    while expiries(emulator) <= EXPIRIES + 1:
        turns += 1
        client.set(name, turns)
        assert client.get(name) == str(turns).encode()
        # Threads that never rest keep a small machine from all else.
        time.sleep(REST)


async def awork(emulator: Emulator, client: Any, name: str) -> None:
    """Do the same on an event loop."""
    turns = 0
    while expiries(emulator) <= EXPIRIES + 1:
        turns += 1
        await client.set(name, turns)
        assert await client.get(name) == str(turns).encode()
        await asyncio.sleep(REST)


def listen(emulator: Emulator, protocol: int) -> None:
    """Subscribe in a thread; at each expiry a few messages may be missed."""
    admin = redis.Redis.from_url(emulator.backend_url)
    numbers: list[int] = []
    sent = 0
    with admin, redis.Redis(**options(emulator, protocol=protocol)) as client:
        subscriber = client.pubsub(ignore_subscribe_messages=True)
        subscriber.subscribe(f"thread-{protocol}")
        while expiries(emulator) <= EXPIRIES + 1:
            sent += admin.publish(f"thread-{protocol}", sent) or 1
            message = subscriber.get_message(timeout=0.05)
            if message is not None:
                assert message["type"] == "message"
                numbers.append(int(message["data"]))
        subscriber.close()
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= sent * 0.8


async def alisten(emulator: Emulator, *, decode: bool) -> None:
    """Subscribe on an event loop, in RESP 3: nothing is missed, unless it decodes."""
    client = redis.asyncio.Redis(
        **options(emulator, protocol=3, decode_responses=decode)
    )
    admin = redis.asyncio.Redis.from_url(emulator.backend_url)
    numbers: list[int] = []
    sent = 0
    subscriber = client.pubsub()
    await subscriber.subscribe(f"loop-{decode}")
    # Until it is confirmed, what another connection publishes may come before it.
    confirmation = await subscriber.get_message(timeout=PATIENCE)
    assert confirmation is not None
    assert confirmation["type"] == "subscribe"
    connection: Any = subscriber.connection
    opened = {connection._writer}
    deadline = None
    while deadline is None or (len(numbers) < sent and time.monotonic() < deadline):
        if expiries(emulator) <= EXPIRIES + 1:
            await admin.publish(f"loop-{decode}", sent)
            sent += 1
        elif deadline is None:
            deadline = time.monotonic() + (1.0 if decode else PATIENCE)
        message = await subscriber.get_message(timeout=0.05)
        opened.add(connection._writer)
        if message is not None and message["type"] == "message":
            numbers.append(int(message["data"]))
    # Given back, it is anybody's, and no longer spoken to behind their backs.
    await subscriber.aclose()
    await client.ping()
    await client.aclose()
    await admin.aclose()
    assert numbers == sorted(set(numbers))
    assert decode or (numbers == list(range(sent)) and len(opened) == 1)


async def amain(emulator: Emulator) -> None:
    """Run asyncio clients of each kind."""
    pool = redis.asyncio.ConnectionPool(**options(emulator))
    blocking = redis.asyncio.BlockingConnectionPool(**options(emulator))
    clients: list[Any] = [
        redis.asyncio.Redis(**options(emulator)),
        redis.asyncio.Redis(connection_pool=pool),
        redis.asyncio.Redis(
            connection_pool=blocking, credential_provider=get_credential_provider()
        ),
    ]
    await asyncio.gather(
        *(alisten(emulator, decode=decode) for decode in (False, True)),
        *(
            awork(emulator, client, f"asyncio-{number}-{task}")
            for number, client in enumerate(clients)
            for task in range(5 if RECONNECTS else 0)
        ),
    )
    for made in (*clients, pool, blocking):
        await made.aclose()


@pytest.mark.skipif(
    int(redis.__version__.split(".")[0]) < 6,
    reason="redis-py 5 repeats nothing: its subscribers raise when they are cut off",
)
@pytest.mark.usefixtures("redis_server")
def test_clients_share_a_provider(emulator: Emulator) -> None:
    """Every kind of client works on through expiries, with one token for all."""
    given = redis.ConnectionPool(**options(emulator))
    with ExitStack() as stack:
        clients: list[Any] = [
            redis.Redis(**options(emulator)),
            redis.Redis(**options(emulator)),
            # redis-py tells nobody of a provider that is given to a pool.
            redis.Redis(connection_pool=given),
        ]
        for client in clients:
            stack.enter_context(client)
        stack.callback(given.disconnect)
        executor = stack.enter_context(ThreadPoolExecutor(9))
        futures = [
            executor.submit(work, emulator, client, f"{number}-{thread}")
            for number, client in enumerate(clients)
            for thread in range(2)
        ]
        futures += [executor.submit(listen, emulator, number) for number in (2, 3)]
        futures.append(executor.submit(lambda: asyncio.run(amain(emulator))))
        for future in futures:
            future.result(DURATION + PATIENCE)
    stats = emulator.stats
    assert stats.closed_by_expiry_in_use == 0
    assert not [done for done in emulator.authentications if not done.accepted]
    assert stats.token_requests <= get_credential_provider().status().renewals + 2


def test_cluster_clients(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py's clients of a cluster, which forget a node's pools, work on, too."""
    cluster.token_lifetime = LIFE
    options: dict[str, Any] = {
        "host": "localhost",
        "port": urlsplit(cluster.redis_url).port,
        "ssl": True,
        "ssl_ca_certs": str(cluster.ca_file),
        # redis-py knows no other way where nodes announce their addresses.
        "ssl_check_hostname": False,
    }

    async def amain(number: int) -> None:
        client: Any = redis.asyncio.RedisCluster(
            **options, credential_provider=get_credential_provider()
        )
        tasks = range(3 if RECONNECTS else 0)
        await asyncio.gather(
            *(awork(cluster, client, f"{number}-{task}") for task in tasks)
        )
        await client.aclose()

    with (
        let_in(cluster, monkeypatch, default=identity(cluster)),
        ThreadPoolExecutor(4) as executor,
    ):
        clients: list[Any] = [
            redis.RedisCluster(**options, credential_provider=get_credential_provider())
            for _ in range(2)
        ]
        futures = [
            executor.submit(work, cluster, client, f"thread-{number}")
            for number, client in enumerate(clients)
        ]
        futures += [executor.submit(asyncio.run, amain(number)) for number in range(2)]
        # A look at the topology makes new pools, which redis-py tells of no token.
        for _ in range(EXPIRIES):
            time.sleep(LIFE * RATIO)
            # Older ones close connections there that other threads read from.
            for client in clients if RECONNECTS else ():
                client.nodes_manager.initialize()
        for future in futures:
            future.result(DURATION + PATIENCE)
        for client in clients:
            client.close()
    assert not [done for done in cluster.authentications if not done.accepted]
    collect()


@pytest.mark.usefixtures("redis_server")
def test_clients_for_a_moment(emulator: Emulator) -> None:
    """A pool is told once, however many clients have been made on it."""
    pool = redis.ConnectionPool(**options(emulator))
    provider = get_credential_provider()
    for _ in range(100):
        client = redis.Redis(connection_pool=pool, credential_provider=provider)
        client.ping()
    renewed, _ = credentials._subscriptions["default"]
    told = [s.callback() for s in renewed._subscriptions]
    assert told.count(pool.re_auth_callback) == 1
    known = ref(pool)
    pool.disconnect()
    del told, client, pool
    # It may just be told of a new token.
    wait_until(lambda: gc.collect() >= 0 and known() is None)


def test_fork_while_a_pool_is_told(emulator: Emulator) -> None:
    """A child does not wait for the thread that held the pool's lock at the fork."""
    with redis.Redis(**options(emulator)) as client:
        client.ping()
        holding, done = threading.Event(), threading.Event()

        def hold() -> None:
            with client.connection_pool._lock:
                holding.set()
                done.wait(PATIENCE)

        thread = threading.Thread(target=hold)
        thread.start()
        holding.wait(PATIENCE)
        child = multiprocessing.get_context("fork").Process(target=client.ping)
        child.start()
        child.join(PATIENCE)
        code = child.exitcode
        child.kill()
        done.set()
        thread.join()
    assert code == 0


def test_somebody_else_asks(emulator: Emulator) -> None:
    """What asks for credentials need not be a connection."""

    def ask(self: object) -> tuple[str, str]:
        return EntraCredentialProvider().get_credentials()

    assert ask(None)[0] == emulator.application.object_id
    assert asyncio.run(EntraCredentialProvider().get_credentials_async())


@pytest.mark.usefixtures("redis_server")
def test_identities_and_caches(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches of two identities, in many threads, are never taken for each other."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", emulator.imds_url)
    identities = {
        "default": emulator.application.object_id,
        "other": emulator.system_assigned.object_id,
    }
    settings = {
        alias: {
            "BACKEND": "django_entra_redis.cache.EntraRedisCache",
            "LOCATION": emulator.plaintext_url,
            "KEY_PREFIX": alias,
            "OPTIONS": {"identity": alias},
        }
        for alias in identities
    }
    other = {"KIND": "managed_identity", "REFRESH_RATIO": RATIO}

    def work(alias: str) -> None:
        while expiries(emulator) <= EXPIRIES + 1:
            cache: Any = caches[alias]
            user = cache.get_client().execute_command("ACL WHOAMI")
            assert str_if_bytes(user) == identities[alias]
            cache.set("key", alias)
            assert cache.get("key") == alias
            time.sleep(REST)

    with (
        let_in(emulator, monkeypatch, default=identity(emulator), other=other),
        override_settings(CACHES=settings),
        ThreadPoolExecutor(4) as executor,
    ):
        for future in [executor.submit(work, alias) for alias in [*identities] * 2]:
            future.result(DURATION + PATIENCE)
    assert emulator.stats.auths_refused == 0
    assert emulator.stats.closed_by_expiry_in_use == 0


class FixedCredential:
    """An identity for tests: its token is the password of a Redis on this machine."""

    def get_token(self, *scopes: str) -> SimpleNamespace:
        """Return what azure-identity's credentials return."""
        return SimpleNamespace(token="secret", expires_on=time.time() + 3600)


def test_fake_identity(tmp_path: Path, redis_server: str) -> None:
    """The documentation's fake identity needs neither Azure nor a network."""
    database = Database(tmp_path, redis_server)
    database.url_of("tester", "+@all ~* &*")
    settings = {
        "default": {
            "BACKEND": "django_entra_redis.cache.EntraRedisCache",
            "LOCATION": f"redis://localhost:{database.address[1]}",
        }
    }
    fake = {"CREDENTIAL": FixedCredential(), "USERNAME": "tester"}
    with override_settings(CACHES=settings, ENTRA_REDIS={"default": fake}):
        cache: Any = caches["default"]
        cache.set("key", "value")
        assert cache.get("key") == "value"
        client = cache.get_client()
        assert str_if_bytes(client.execute_command("ACL WHOAMI")) == "tester"
    database.stop()


def test_no_redis_at_all() -> None:
    """The documentation's cache on fakeredis needs not even a server of its own."""
    fakeredis = pytest.importorskip("fakeredis")
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    settings = {
        "default": {
            "BACKEND": "django_entra_redis.cache.EntraRedisCache",
            "LOCATION": f"redis://127.0.0.1:{server.server_address[1]}",
            "OPTIONS": {"identity": None},
        }
    }
    with override_settings(CACHES=settings):
        caches["default"].set("key", "value")
        assert caches["default"].get("key") == "value"
    server.shutdown()
    server.server_close()
    thread.join()
