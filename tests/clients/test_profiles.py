"""The cache on each service of Azure: what a service refuses must not be needed."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ClusterCrossSlotError, ResponseError

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.clients.redirects import cluster_error
from django_entra_redis.connections import event_loops
from django_entra_redis.exceptions import WrongBackendError, WrongDatabaseError
from emulator import Emulator
from tests.support.caches import let_in, make_cache
from tests.support.sites import ScriptedServer, Site

NAMES = [f"name-{number}" for number in range(20)]
DATA = dict.fromkeys(NAMES, "value")


@pytest.fixture(scope="module")
def replicated(redis_server: str) -> Iterator[Emulator]:
    """Run a Redis with the Enterprise policy, under active geo-replication."""
    with Emulator(
        redis_server=redis_server, profile="amr-enterprise", geo_replication=True
    ) as running:
        yield running


@pytest.fixture
def cache(
    replicated: Emulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EntraRedisCache]:
    """Give a cache on it, that clears by scanning."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    with let_in(replicated, monkeypatch):
        made = make_cache(
            replicated.redis_url,
            ssl_ca_certs=str(replicated.ca_file),
            clear_by_scan=True,
        )
        yield made
        made.clear()
        made.get_pool().disconnect()


def test_the_service_refuses_what_it_should(cache: EntraRedisCache) -> None:
    """DEL of several slots is refused there; MGET is not."""
    client = cache.get_client()
    assert client.mget(NAMES) == [None] * len(NAMES)
    with pytest.raises(ResponseError) as caught:
        client.delete(*NAMES)
    assert isinstance(cluster_error(caught.value), ClusterCrossSlotError)


def test_geo_replication(cache: EntraRedisCache) -> None:
    """Deleting many keys needs no command with keys in several slots."""
    cache.set_many(DATA)
    assert cache.get_many(NAMES) == DATA
    cache.delete_many(NAMES[:5])
    assert set(cache.get_many(NAMES)) == set(NAMES[5:])
    assert cache.delete_pattern("name-?") == 5
    assert set(cache.get_many(NAMES)) == set(NAMES[10:])
    cache.clear()
    assert cache.get_many(NAMES) == {}


def test_geo_replication_in_a_loop(cache: EntraRedisCache) -> None:
    """The same on an event loop's connection."""

    async def use() -> None:
        await cache.aset_many(DATA)
        await cache.adelete_many(NAMES[:5])
        assert set(await cache.aget_many(NAMES)) == set(NAMES[5:])
        assert await cache.adelete_pattern("name-?") == 5
        await cache.aclear()
        assert await cache.aget_many(NAMES) == {}

    asyncio.run(use())


def test_refused_flushdb(replicated: Emulator, cache: EntraRedisCache) -> None:
    """Without ``clear_by_scan`` the error says what to set."""
    other = make_cache(replicated.redis_url, ssl_ca_certs=str(replicated.ca_file))
    with pytest.raises(ResponseError, match="clear_by_scan"):
        other.clear()
    other.get_pool().disconnect()


# -- CROSSSLOT alone tells of no policy ------------------------------------------------


def _get_many(reply: bytes, monkeypatch: pytest.MonkeyPatch, *, looped: bool) -> Any:
    """Have a cache get two keys from a server that refuses MGET of several slots."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    server = ScriptedServer({"MGET": b"-CROSSSLOT in any words\r\n", "GET": reply})
    cache = make_cache(server.url, identity=None)
    try:
        if looped:
            return asyncio.run(_aget_many(cache))
        return cache.get_many(["a", "b"])
    finally:
        cache.get_pool().disconnect()
        server.stop()


async def _aget_many(cache: EntraRedisCache) -> Any:
    return await cache.aget_many(["a", "b"])


@pytest.mark.parametrize("looped", [True, False])
def test_mget_refused(looped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes MGET for one slot alone is asked for key after key."""
    found = _get_many(b"$1\r\n1\r\n", monkeypatch, looped=looped)
    assert found == {"a": 1, "b": 1}


@pytest.mark.parametrize("looped", [True, False])
def test_mget_refused_by_a_node(looped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a key is on another node, it is a cluster's."""
    with pytest.raises(WrongBackendError):
        _get_many(b"-MOVED 1 127.0.0.1:1\r\n", monkeypatch, looped=looped)


# -- database 0 alone ------------------------------------------------------------------


@pytest.mark.parametrize("looped", [True, False])
@pytest.mark.parametrize("identity", ["default", None])
@pytest.mark.parametrize(
    "words", [b"ERR DB index is out of range", b"ERR command is not allowed", b"NO"]
)
def test_refused_database(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    words: bytes,
    identity: str | None,
    looped: bool,
) -> None:
    """However it is worded, the answer to SELECT is about the database."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    server = ScriptedServer({"SELECT": b"-%b\r\n" % words})
    with let_in(emulator, monkeypatch):
        cache = make_cache(f"{server.url}/3", identity=identity, ignore_exceptions=True)
        with pytest.raises(WrongDatabaseError, match="refuses database 3") as caught:
            asyncio.run(_aget_many(cache)) if looped else cache.get("key")
        assert "KEY_PREFIX" in str(caught.value)
    cache.get_pool().disconnect()
    server.stop()


def test_database_of_a_managed_redis(
    monkeypatch: pytest.MonkeyPatch, redis_server: str
) -> None:
    """A managed Redis refuses it, whatever its host name."""
    with (
        Emulator(redis_server=redis_server, profile="amr-nocluster") as emulator,
        let_in(emulator, monkeypatch),
    ):
        cache = make_cache(
            f"{emulator.redis_url}/1", ssl_ca_certs=str(emulator.ca_file)
        )
        with pytest.raises(WrongDatabaseError):
            cache.get("key")
        site = Site(emulator, monkeypatch)
        site.options["db"] = 1
        failed = site.check().steps[-1]
        assert (failed["name"], failed["code"]) == ("auth", "database_refused")
        cache.get_pool().disconnect()
