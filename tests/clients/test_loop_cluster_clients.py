"""redis-py's own asynchronous client of a cluster, on a cache's settings."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis.asyncio
from django.core.cache import caches
from django.test import override_settings
from redis.asyncio.cluster import RedisCluster
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.retry import Retry

from django_entra_redis import aget_redis_connection, get_redis_connection
from django_entra_redis.cache import EntraRedisClusterCache
from django_entra_redis.clients import loop_clients
from django_entra_redis.connections import registry
from django_entra_redis.credentials import get_credential_provider
from django_entra_redis.exceptions import (
    ClusterUnavailableError,
    ConfigurationError,
    InvalidReplyError,
    TokenRefusedError,
    WrongBackendError,
)
from emulator import Emulator
from tests.clients.test_cluster import Script
from tests.clients.test_loop_clients import run_and_freeze
from tests.support.caches import PATIENCE, let_in, wait_until
from tests.support.peers import PeerHost
from tests.support.sites import CLUSTER_BACKEND, Credential

#: What a server answers to COMMAND, from which redis-py reads which arguments are keys.
COMMANDS = b"*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n"
#: Whether redis-py's asynchronous client of a cluster has transactions.
TRANSACTIONS = hasattr(RedisCluster, "transaction")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Leave no connection."""
    yield
    registry.reset()


@contextmanager
def use(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    *,
    refresh_ratio: float = 0.7,
    **options: Any,
) -> Iterator[None]:
    """Have a cache on the emulator's cluster, let in with Entra."""
    options = {"ssl_ca_certs": str(emulator.ca_file), **options}
    location = options.pop("LOCATION", emulator.redis_url)
    cache = {"BACKEND": CLUSTER_BACKEND, "LOCATION": location, "OPTIONS": options}
    with (
        let_in(emulator, monkeypatch, refresh_ratio=refresh_ratio),
        override_settings(CACHES={"default": cache}),
    ):
        yield


async def ask() -> Any:
    """Return the client, which has used each primary."""
    client: Any = await aget_redis_connection()
    for number in range(20):
        await client.set(f"key-{number}", number)
        assert await client.get(f"key-{number}") == b"%d" % number
    return client


def test_through_expiries(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command fails, and connections authenticate in place."""
    cluster.token_lifetime = 3.0

    async def work() -> None:
        client = await ask()
        cache: Any = caches["default"]
        assert client is cache.client.get_async_client()
        began, opened = cluster.stats.token_requests, cluster.stats.connections_opened
        while cluster.stats.token_requests < began + 3:
            await ask()
            pipeline = client.pipeline()
            for number in range(20):
                pipeline.incr(f"count-{number}")
            assert len(set(await pipeline.execute())) == 1
            if TRANSACTIONS:
                transaction = client.pipeline(transaction=True)
                transaction.set("{a}1", 1)
                transaction.get("{a}1")
                assert await transaction.execute() == [True, b"1"]
            await asyncio.sleep(0.2)
        assert cluster.stats.connections_opened == opened

    # Early enough that no connection has to reconnect.
    with use(cluster, monkeypatch, refresh_ratio=0.3):
        before = len(cluster.authentications)
        asyncio.run(work())
    seen = cluster.authentications[before:]
    assert [a.reason for a in seen if not a.accepted] == []
    assert any(a.again for a in seen)
    assert not loop_clients._loops


def test_nodes_that_are_silent_at_the_end_of_a_loop(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop does not wait for the end of their TLS, and no socket stays open."""

    with use(cluster, monkeypatch, socket_connect_timeout=1):
        run_and_freeze(cluster, ask)
    assert caplog.records == []


def test_command_that_waits_through_many_expiries(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More expiries than there are retries, in a thread and in a loop."""
    cluster.token_lifetime = 3.0
    once = Retry(NoBackoff(), 1)

    async def pop() -> Any:
        client: Any = await aget_redis_connection()
        client.retry = redis.asyncio.retry.Retry(NoBackoff(), 1)
        client.cluster_error_retry_attempts = 1
        return await client.blpop(["of a loop"], timeout=0)

    with use(cluster, monkeypatch, socket_timeout=None, retry=once):
        client: Any = get_redis_connection()
        client.retry = once
        client.cluster_error_retry_attempts = 1  # that of redis-py 5
        before = cluster.stats.closed_by_expiry_in_use
        with ThreadPoolExecutor(2) as executor:
            popped = executor.submit(client.blpop, ["list"], timeout=0)
            looped = executor.submit(lambda: asyncio.run(pop()))
            cut_three_times = before + 2 * 3
            wait_until(
                lambda: (
                    cluster.stats.closed_by_expiry_in_use >= cut_three_times
                    or popped.done()
                    or looped.done()
                )
            )
            client.rpush("list", "value")
            client.rpush("of a loop", "value")
            assert popped.result(PATIENCE) == (b"list", b"value")
            assert looped.result(PATIENCE) == (b"of a loop", b"value")


def test_certificates_are_verified(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes announce an address that no certificate names; the name counts, and no
    token goes to a node with a certificate for another."""
    with use(cluster, monkeypatch):
        get_credential_provider().get_credentials()
        client = asyncio.run(ask())
        assert {node.host for node in client.get_primaries()} == {"127.0.0.2"}
        before = cluster.stats.auths
        for fault in ("hostname", "untrusted"):
            cluster.break_tls(fault)
            with pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
                asyncio.run(ask())
        assert cluster.stats.auths == before


def test_subscriber(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py's own subscriber of a cluster takes such connections, too."""
    if not hasattr(RedisCluster, "pubsub"):
        pytest.skip("redis-py 5 has no asynchronous subscriber of a cluster")

    async def work() -> None:
        client = await ask()
        async with client.pubsub() as subscriber:
            await subscriber.subscribe("news")
            cluster.drop_connections()
            heard: Any = None
            while heard is None or heard["type"] != "message":
                await client.publish("news", "text")
                heard = await subscriber.get_message(timeout=0.05)
            assert heard["data"] == b"text"

    with use(cluster, monkeypatch):
        asyncio.run(work())


def test_refused(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own error tells what is wrong, not that nobody is there."""
    oid = cluster.application.object_id
    cluster.set_access(oid, None)
    with use(cluster, monkeypatch), pytest.raises(TokenRefusedError, match="policy"):
        asyncio.run(ask())
    cluster.set_access(oid, "+@all ~* &*")


def test_no_cluster(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend for one endpoint is named."""
    with (
        use(emulator, monkeypatch),
        pytest.raises(WrongBackendError, match=r"cache\.EntraRedisCache'"),
    ):
        asyncio.run(ask())


def test_nobody_there(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of redis-py's for a broken connection, with the address."""
    with (
        use(cluster, monkeypatch, LOCATION="rediss://127.0.0.1:1"),
        pytest.raises(redis.ConnectionError, match=r"127\.0\.0\.1:1"),
    ):
        asyncio.run(ask())


def test_outside_of_a_loop() -> None:
    """There is no loop to belong to."""
    options = {"OPTIONS": {"identity": None}}
    with pytest.raises(RuntimeError, match="no running event loop"):
        EntraRedisClusterCache("redis://127.0.0.1:1", options).get_async_client()


def scripted(script: Script, **options: Any) -> Any:
    """Ask a scripted node for a key; return what it has."""

    async def main() -> Any:
        async with PeerHost(script) as host:
            script.port = host.port
            cache = {
                "BACKEND": CLUSTER_BACKEND,
                "LOCATION": f"redis://127.0.0.1:{host.port}",
                "OPTIONS": options,
            }
            with override_settings(CACHES={"default": cache}):
                client: Any = await aget_redis_connection()
                try:
                    return await client.get("key")
                finally:
                    await client.aclose()

    return asyncio.run(main())


def test_no_token_in_plain_text() -> None:
    """A token that may go to LOCATION may not for that go to a node far away."""
    script = Script(COMMAND=[COMMANDS])
    script.host = b"192.0.2.2"
    identity = {"CREDENTIAL": Credential("opaque"), "USERNAME": "me"}
    with (
        override_settings(ENTRA_REDIS={"default": identity}),
        pytest.raises(ConfigurationError, match=r"192\.0\.2\.2"),
    ):
        scripted(script)
    assert b"AUTH" in script.seen


def test_providers_of_others() -> None:
    """Somebody's own credential provider is used as redis-py uses it."""
    script = Script(COMMAND=[COMMANDS])
    provider = UsernamePasswordCredentialProvider("me", "secret")
    assert scripted(script, identity=None, credential_provider=provider) == b"5"
    assert b"AUTH" in script.seen


def test_without_an_identity() -> None:
    """For development: nobody authenticates."""
    script = Script(COMMAND=[COMMANDS])
    assert scripted(script, identity=None) == b"5"
    assert b"AUTH" not in script.seen


#: A node's own entry in CLUSTER SLOTS.
ENTRY = b"*3\r\n$9\r\n127.0.0.1\r\n:1\r\n$2\r\nid\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        b"*1\r\n*3\r\n:0\r\n:1000000000000\r\n" + ENTRY,
        b"*1\r\n*3\r\n:-5\r\n:16383\r\n" + ENTRY,
        b"*1\r\n*3\r\n:100\r\n:5\r\n" + ENTRY,
        b"*1\r\n*2\r\n:0\r\n:16383\r\n",
        b"*1\r\n*1\r\n:0\r\n",
        b"*1\r\n$1\r\na\r\n",
        b":5\r\n",
        b"*-1\r\n",
    ],
    ids=["endless", "negative", "reversed", "no node", "short", "text", "int", "nil"],
)
def test_malformed_slots(reply: bytes) -> None:
    """redis-py would loop over any range that a node replies."""
    script = Script(CLUSTER=[reply], COMMAND=[COMMANDS])
    with pytest.raises(InvalidReplyError, match="CLUSTER SLOTS is malformed"):
        scripted(script, identity=None)


def test_no_slots() -> None:
    """The error is that of the cache's own discovery."""
    script = Script(CLUSTER=[b"*0\r\n"], COMMAND=[COMMANDS])
    with pytest.raises(ClusterUnavailableError, match="none of them has any slot"):
        scripted(script, identity=None)


def test_slots_as_they_are() -> None:
    """Whoever asks for them gets what redis-py makes of them."""

    async def main() -> Any:
        async with PeerHost(script) as host:
            script.port = host.port
            location = f"redis://127.0.0.1:{host.port}"
            cache = EntraRedisClusterCache(location, {"OPTIONS": {"identity": None}})
            client: Any = cache.get_async_client()
            return await client.cluster_slots(), ("127.0.0.1", host.port)

    script = Script(COMMAND=[COMMANDS])
    found, node = asyncio.run(main())
    assert found == {(0, 16383): {"primary": node, "replicas": []}}
