"""The clients that a cache lends: ``get_client()``, through expiries and restarts."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from django.conf import settings
from django.test import override_settings
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from django_entra_redis.cache import EntraRedisCache, EntraRedisClusterCache
from django_entra_redis.clients import lending, loop_clients
from django_entra_redis.clients.retry import RetryPolicy
from django_entra_redis.credentials import get_credential_provider
from django_entra_redis.exceptions import TokenError
from emulator import Emulator
from tests.support.caches import PATIENCE, Database, let_in, make_cache, wait_until

#: Seconds of life of the tokens.
LIFETIME = 2.0
#: Share of it after which there is a new one: on a busy machine, too, connections have
#: time for that before the old one expires.
RATIO = 0.3


@pytest.fixture
def brief() -> Iterator[Emulator]:
    """Run a Redis whose tokens expire soon."""
    with Emulator(token_lifetime=LIFETIME) as running:
        yield running


@pytest.fixture
def database(tmp_path: Path, redis_server: str) -> Iterator[Database]:
    """Run a redis-server, with nothing before it."""
    made = Database(tmp_path, redis_server)
    yield made
    made.stop()


@contextmanager
def cached(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Iterator[EntraRedisCache]:
    """Give a cache whose tokens are renewed early."""
    with let_in(emulator, monkeypatch):
        identity = {**settings.ENTRA_REDIS["default"], "REFRESH_RATIO": RATIO}
        with override_settings(ENTRA_REDIS={"default": identity}):
            cache = make_cache(
                emulator.redis_url, ssl_ca_certs=str(emulator.ca_file), **options
            )
            yield cache
            cache.get_pool().disconnect()


@contextmanager
def lent(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Iterator[Any]:
    """Give the client of such a cache."""
    with cached(emulator, monkeypatch, **options) as cache:
        yield cache.get_client()


class Subscriber:
    """Somebody who listens in a thread, in one of redis-py's ways.

    Parameters:
        subscriber: of redis-py's client, subscribed to nothing yet.
        poll: "thread", "timeout" or "listen".
    """

    def __init__(self, subscriber: Any, poll: str) -> None:
        self.heard: list[Any] = []
        self.failures: list[Exception] = []
        self._subscriber = subscriber
        self._ended = threading.Event()
        self._polling: Any = None
        if poll == "thread":
            subscriber.subscribe(news=self.heard.append)
            self._polling = subscriber.run_in_thread(
                sleep_time=0.1,
                exception_handler=lambda error, *_: self.failures.append(error),
            )
            return
        subscriber.subscribe("news")
        self._executor = ThreadPoolExecutor(1)
        self._listening = self._executor.submit(self._listen, poll)

    def end(self, publish: Callable[[], Any]) -> None:
        """End it; publish something that ends it at once. Raises what it has met."""
        self._ended.set()
        if self._polling is not None:
            self._polling.stop()
            self._polling.join(PATIENCE)
            return
        publish()
        self._listening.result(PATIENCE)
        self._executor.shutdown()
        self._subscriber.close()

    def _listen(self, poll: str) -> None:
        messages = self._messages(poll)
        while not self._ended.is_set():
            message = next(messages)
            if message and message["type"] == "message":
                self.heard.append(message)

    def _messages(self, poll: str) -> Iterator[Any]:
        if poll == "listen":
            yield from self._subscriber.listen()
        while True:
            yield self._subscriber.get_message(timeout=1)


def renewed(times: int) -> None:
    """Wait until there has been a new token so many times."""
    provider = get_credential_provider()
    wait_until(lambda: provider.status().renewals >= times)


def hears(subscriber: Subscriber, publish: Callable[[], Any]) -> None:
    """Publish until it has been heard."""
    before = len(subscriber.heard)
    deadline = time.monotonic() + PATIENCE
    while len(subscriber.heard) == before:
        assert subscriber.failures == []
        assert time.monotonic() < deadline, "nothing has been heard"
        publish()
        time.sleep(0.02)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("poll", ["thread", "timeout", "listen"])
def test_subscriber(
    brief: Emulator, monkeypatch: pytest.MonkeyPatch, poll: str, protocol: int
) -> None:
    """However it polls, it goes on through expiries, and hears what comes after."""
    # Connections authenticate as soon as there is a new token.
    monkeypatch.setattr("random.random", lambda: 0.0)
    with lent(brief, monkeypatch, protocol=protocol) as client:
        subscriber = Subscriber(client.pubsub(), poll)
        first = brief.authentications[0].connection

        def publish() -> Any:
            return client.publish("news", "text")

        # The token that it began with has expired then.
        for times in range(1, 2 + int(1 / RATIO)):
            hears(subscriber, publish)
            renewed(times)
        hears(subscriber, publish)
        subscriber.end(publish)
        assert subscriber.failures == []
        again = [one for one in brief.authentications if one.again]
        in_place = first in [one.connection for one in again]
        assert in_place == (protocol == 3)


def test_blocking_command(brief: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that waits while its connection is cut is sent again."""
    with lent(brief, monkeypatch) as client:
        popped: list[Any] = []
        thread = threading.Thread(
            target=lambda: popped.append(client.blpop("list", timeout=4))
        )
        thread.start()
        wait_until(lambda: brief.stats.closed_by_expiry_in_use)
        client.rpush("list", "value")
        thread.join(PATIENCE)
        assert popped == [(b"list", b"value")]


def test_command_that_waits_through_many_expiries(
    brief: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More expiries than there are retries, in a thread and in a loop."""
    monkeypatch.setattr(loop_clients, "_RETRIES", 1)
    once = Retry(NoBackoff(), 1)
    with cached(brief, monkeypatch, socket_timeout=None, retry=once) as cache:
        client: Any = cache.get_client()

        async def pop() -> Any:
            return await cache.get_async_client().blpop(["of a loop"], timeout=0)

        with ThreadPoolExecutor(2) as executor:
            popped = executor.submit(client.blpop, "list", timeout=0)
            looped = executor.submit(lambda: asyncio.run(pop()))
            cut_three_times = 2 * 3
            wait_until(lambda: brief.stats.closed_by_expiry_in_use >= cut_three_times)
            client.rpush("list", "value")
            client.rpush("of a loop", "value")
            assert popped.result(PATIENCE) == (b"list", b"value")
            assert looped.result(PATIENCE) == (b"of a loop", b"value")


def test_cut_connection(database: Database) -> None:
    """The server cuts connections, and restarts: commands and subscribers go on."""
    client: Any = database.cache().get_client()
    subscriber = client.pubsub(ignore_subscribe_messages=True)
    subscriber.subscribe("news")
    assert subscriber.get_message(timeout=1) is None
    client.set("key", "value")
    for _ in range(3):
        database.admin.client_kill_filter(_type="normal", skipme=True)
        database.admin.client_kill_filter(_type="pubsub")
        assert client.get("key") == b"value"
        # Subscribed again, and told so.
        subscriber.get_message(timeout=1)
        database.admin.publish("news", "text")
        message = subscriber.get_message(timeout=5)
        assert message["data"] == b"text"
    subscriber.close()
    client.connection_pool.disconnect()


def test_nobody_there() -> None:
    """A server that is not there is tried as often as the cache tries it."""
    tried = []

    class Counting(redis.Connection):
        def _connect(self) -> Any:
            tried.append(1)
            raise ConnectionRefusedError

    cache = make_cache("redis://127.0.0.1:1", identity=None, connection_class=Counting)
    with pytest.raises(RedisConnectionError):
        cache.get("key")
    once = len(tried)
    with pytest.raises(RedisConnectionError):
        cache.get_client().get("key")
    assert len(tried) == 2 * once == 8


def test_no_token(brief: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token nothing is tried again."""
    with lent(brief, monkeypatch) as client:
        client.ping()
        brief.faults.fail("AADSTS90002")
        time.sleep(LIFETIME + 0.1)
        waited: list[float] = []
        clock = SimpleNamespace(sleep=waited.append)
        monkeypatch.setattr(lending, "time", clock)
        with pytest.raises(TokenError):
            client.ping()
        assert waited == []


def test_own_policy(database: Database) -> None:
    """The policy in OPTIONS is theirs, too, and a client may have another one."""
    client: Any = database.cache(retry=Retry(NoBackoff(), 0)).get_client()
    other = database.cache(retry=Retry(NoBackoff(), 0)).get_client()
    other.set_retry(Retry(NoBackoff(), 1))
    for one, goes_on in ((client, False), (other, True)):
        borrowed = one.connection_pool.get_connection()
        database.admin.client_kill_filter(_type="normal", skipme=True)
        one.connection = borrowed  # as a client has one that is its own
        if goes_on:
            assert one.ping()
        else:
            with pytest.raises(RedisConnectionError):
                one.ping()
        one.connection = None
        one.connection_pool.release(borrowed)
    client.connection_pool.disconnect()


def test_foreign_pool(database: Database) -> None:
    """A pool of somebody else's lends its connections as well."""
    cache = database.cache(pool_class=redis.BlockingConnectionPool)
    client: Any = cache.get_client()
    assert client.connection_pool.connection_kwargs
    client.set_retry(Retry(NoBackoff(), 2))
    subscriber = client.pubsub(ignore_subscribe_messages=True)
    subscriber.subscribe("news")
    subscriber.get_message(timeout=1)
    database.admin.client_kill_filter(_type="pubsub")
    subscriber.get_message(timeout=1)
    database.admin.publish("news", "text")
    assert subscriber.get_message(timeout=5)["data"] == b"text"
    subscriber.close()
    with cache.lock("lock"):
        assert client.get(cache.make_key("lock"))
    cache.get_pool().disconnect()


@pytest.mark.parametrize("native", [False, True])
def test_what_no_expiry_has_cut(native: bool) -> None:
    """It is sent again only while there is another token than when it began."""
    sent = []

    def send() -> None:
        sent.append(1)
        raise RedisConnectionError("cut")

    async def asend() -> None:
        send()

    tokens = iter(["first", "second", "second", "second"])
    renewal = SimpleNamespace(fresh=lambda: next(tokens))
    provider: Any = SimpleNamespace(renewal=renewal)
    call: Callable[[], Any] = (
        (lambda: asyncio.run(lending.athrough_expiries(provider, asend)))
        if native
        else (lambda: lending.through_expiries(provider, send))
    )
    with pytest.raises(RedisConnectionError, match="cut"):
        call()
    assert len(sent) == 2


def test_given_back_to_the_pool_itself(database: Database) -> None:
    """The cache's policy is not forgotten over that, nor taken for the client's."""
    cache = database.cache(pool_class=redis.ConnectionPool)
    view: Any = cache.get_client().connection_pool
    pool: Any = cache.get_pool()
    connection = pool.get_connection()
    own = connection.retry
    pool.release(connection)
    for giving_back in (pool, view):
        assert view.get_connection() is connection
        assert connection.retry is not own
        giving_back.release(connection)
    assert connection.retry is own
    pool.disconnect()


def test_not_retryable() -> None:
    """Who hands a call over may have a say in what is repeated."""
    policy = RetryPolicy((RedisConnectionError,), 3, NoBackoff())
    failures: list[Exception] = []

    def fail() -> None:
        raise RedisConnectionError

    with pytest.raises(RedisConnectionError):
        lending.LentRetry(policy).call_with_retry(
            fail, failures.append, is_retryable=lambda error: False
        )
    assert failures == []


def test_cluster(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber of a cluster's client, too."""
    cluster.token_lifetime = LIFETIME
    with let_in(cluster, monkeypatch):
        cache = EntraRedisClusterCache(
            cluster.redis_url, {"OPTIONS": {"ssl_ca_certs": str(cluster.ca_file)}}
        )
        client: Any = cache.get_client()
        subscriber = Subscriber(client.pubsub(), "timeout")
        for _ in range(2):
            hears(subscriber, lambda: client.publish("news", "text"))
            time.sleep(LIFETIME * 0.7)
        hears(subscriber, lambda: client.publish("news", "text"))
        subscriber.end(lambda: client.publish("news", "text"))
        assert subscriber.failures == []
        cache.get_topology().disconnect()
