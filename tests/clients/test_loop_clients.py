"""redis-py's own clients for event loops, on a cache's settings."""

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from django.test import override_settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_entra_redis import aget_redis_connection
from django_entra_redis.clients import loop_clients
from emulator import Emulator
from tests.support.caches import Database, let_in, make_cache, wait_until
from tests.support.sites import BACKEND


@pytest.fixture
def database(redis_server: str, tmp_path: Path) -> Iterator[Database]:
    """Run a real redis-server."""
    running = Database(tmp_path, redis_server)
    yield running
    running.stop()


def of(location: Any, backend: str = BACKEND, **options: Any) -> override_settings:
    """Return what has Django use one cache."""
    cache = {"BACKEND": backend, "LOCATION": location, "OPTIONS": options}
    return override_settings(CACHES={"default": cache})


def test_through_expiries(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy and idle alike: no command fails, over TLS, with the cache's identity."""
    emulator.token_lifetime = 3.0

    async def work() -> int:
        client = await aget_redis_connection()
        assert client is await aget_redis_connection("default")
        count = 0
        while emulator.stats.token_requests < 4:
            count = await client.incr("count")
            popped = await client.blpop(["nothing"], timeout=0.2)
            assert popped is None
            # Idle, some of the time.
            await asyncio.sleep(0.3 * (count % 3))
        return count

    with (
        let_in(emulator, monkeypatch),
        of(emulator.redis_url, ssl_ca_certs=str(emulator.ca_file)),
    ):
        assert asyncio.run(work()) > 3
    refused = [a.reason for a in emulator.authentications if not a.accepted]
    assert not refused


def test_one_for_each_loop(database: Database) -> None:
    """It closes with its loop, and the next one has its own."""
    seen = []

    async def work() -> None:
        client = await aget_redis_connection()
        seen.append(client)
        await client.set("key", b"value")
        assert await client.get("key") == b"value"
        assert loop_clients._loops

    with of(database.url, identity=None):
        before = database.admin.info("clients")["connected_clients"]
        asyncio.run(work())
        asyncio.run(work())
    assert seen[0] is not seen[1]
    assert not loop_clients._loops
    wait_until(lambda: database.admin.info("clients")["connected_clients"] == before)


def test_a_loop_that_is_closed_without_a_word(database: Database) -> None:
    """What it leaves is forgotten when another one asks."""

    async def ask() -> Any:
        return await aget_redis_connection()

    with of(database.url, identity=None):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask())
        loop.close()
        assert len(loop_clients._loops) == 1
        asyncio.run(ask())
    assert not loop_clients._loops


def run_and_freeze(emulator: Emulator, work: Callable[[], Awaitable[Any]]) -> None:
    """Call a function in a loop of its own, at whose end the server is silent."""

    async def main() -> None:
        await work()
        emulator.freeze()

    try:
        asyncio.run(main())
    finally:
        emulator.freeze(False)
    gc.collect()  # Warns of a socket that is open.


@pytest.mark.parametrize("under_way", [False, True])
def test_a_server_that_is_silent_at_the_end_of_a_loop(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    under_way: bool,
) -> None:
    """The loop does not wait for the end of its TLS, and no socket stays open."""

    async def work() -> None:
        client: Any = await aget_redis_connection()
        await client.set("key", b"value")
        if under_way:
            before = emulator.stats.commands
            popping = asyncio.create_task(client.blpop(["nothing"], timeout=0))
            await asyncio.to_thread(
                wait_until, lambda: emulator.stats.commands > before
            )
            assert not popping.done()

    with (
        let_in(emulator, monkeypatch),
        of(
            emulator.redis_url,
            ssl_ca_certs=str(emulator.ca_file),
            socket_connect_timeout=1,
        ),
    ):
        run_and_freeze(emulator, work)
    assert caplog.records == []


def test_outside_of_a_loop(database: Database) -> None:
    """There is no loop to belong to."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        database.cache().get_async_client()


def test_reading_and_writing(database: Database) -> None:
    """Of several servers the first is written to, and another is read."""
    other = database.url.replace("127.0.0.1", "localhost")
    cache = make_cache([database.url, other], identity=None)

    async def work() -> None:
        writer = cache.client.get_async_client()
        reader = cache.get_async_client()
        assert writer is cache.get_async_client(write=True)
        assert reader is not writer
        await writer.set("key", b"value")
        assert await reader.get("key") == b"value"

    asyncio.run(work())


def test_options_and_sockets_are_the_caches(tmp_path: Path) -> None:
    """Database, time limits and path go on; the retry policy is an asynchronous one."""
    cache = make_cache(
        f"unix://{tmp_path}/redis?db=3",
        identity=None,
        socket_timeout=4,
        max_connections=7,
    )

    async def look() -> tuple[Any, Any]:
        pool = cache.get_async_client(write=True).connection_pool
        return pool.connection_kwargs, pool.max_connections

    options, most = asyncio.run(look())
    assert options["path"] == f"{tmp_path}/redis"
    assert (options["db"], options["socket_timeout"], most) == (3, 4, 7)
    assert isinstance(options["retry"], redis.asyncio.retry.Retry)


def test_what_is_made_for_threads(database: Database) -> None:
    """Options with classes and objects for threads are the threads' alone."""
    cache = database.cache(
        connection_class=redis.Connection,
        parser_class="redis._parsers._RESP2Parser",
        pool_class="redis.BlockingConnectionPool",
        redis_connect_func=lambda connection: connection.on_connect(),
        retry=Retry(NoBackoff(), 1),
    )

    async def work() -> Any:
        return await cache.get_async_client(write=True).set("key", "value")

    assert asyncio.run(work()) is True
    assert cache.get_client(write=True).get("key") == b"value"


def test_what_has_none() -> None:
    """Another backend has none; the error says what to do."""

    async def ask() -> None:
        await aget_redis_connection()

    with pytest.raises(NotImplementedError, match="EntraRedisCache"):
        asyncio.run(ask())


def test_cut_connection(database: Database) -> None:
    """The server cuts connections: commands and subscribers go on, on any redis-py."""

    async def work() -> None:
        client: Any = await aget_redis_connection()
        subscriber = client.pubsub(ignore_subscribe_messages=True)
        await subscriber.subscribe("news")
        await client.set("key", b"value")
        for _ in range(3):
            for kind in ("normal", "pubsub"):
                database.admin.client_kill_filter(_type=kind, skipme=True)
            assert await client.get("key") == b"value"
            heard = None
            while heard is None:
                database.admin.publish("news", "text")
                heard = await subscriber.get_message(timeout=0.05)
            assert heard["data"] == b"text"
        await subscriber.aclose()

    with of(database.url, identity=None):
        asyncio.run(work())


def test_after_a_fork(database: Database) -> None:
    """A child process has clients of its own."""

    async def ask() -> Any:
        client = await aget_redis_connection()
        await client.ping()
        child = os.fork() or os._exit(len(loop_clients._loops))
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        return os.waitstatus_to_exitcode(status)

    with of(database.url, identity=None):
        assert asyncio.run(ask()) == 0
