"""The cache on a real Redis Cluster, with Entra and TLS; and on a scripted one."""

import asyncio
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
from django.contrib.sessions.backends.cache import SessionStore
from django.core.cache import caches
from django.test import override_settings
from redis.crc import key_slot
from redis.exceptions import NoPermissionError, ResponseError
from redis.utils import str_if_bytes

from django_entra_redis.cache import EntraRedisCache, EntraRedisClusterCache
from django_entra_redis.clients import node_batch
from django_entra_redis.clients import node_pools as nodes
from django_entra_redis.clients import topology as topologies
from django_entra_redis.clients.cluster import AsyncClusterClient
from django_entra_redis.clients.sync import read_many
from django_entra_redis.commands.request import Request, Visit
from django_entra_redis.conf.options import parse_options
from django_entra_redis.connections import event_loops, registry
from django_entra_redis.connections.exchanger import Exchanger
from django_entra_redis.connections.multiplexed import MultiplexedConnection
from django_entra_redis.exceptions import (
    ClusterUnavailableError,
    ConfigurationError,
    InvalidReplyError,
    TokenError,
    TokenRefusedError,
    UncertainResultError,
    WrongBackendError,
)
from emulator import Emulator
from tests.support.caches import let_in, make_cache, recovered, wait_until
from tests.support.clusters import admin, primaries, replica_of
from tests.support.peers import Peer, PeerHost
from tests.support.sites import Credential

BACKEND = "django_entra_redis.cache.EntraRedisClusterCache"
#: So many keys that each of three primaries has some.
NAMES = [f"name-{number}" for number in range(100)]
VALUES = {name: {"name": name} for name in NAMES}
#: Seconds of life of a token where renewals are to be seen.
SHORT = 6.0
WORKERS = 6


def settings(emulator: Emulator, **options: Any) -> dict[str, dict[str, Any]]:
    """Return CACHES for a cache on the emulator's cluster."""
    return {
        "default": {
            "BACKEND": BACKEND,
            "LOCATION": emulator.redis_url,
            "KEY_PREFIX": options.pop("KEY_PREFIX", ""),
            "OPTIONS": {"ssl_ca_certs": str(emulator.ca_file), **options},
        }
    }


@contextmanager
def use(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Iterator[Any]:
    """Give a cache on the emulator's cluster, let in with Entra."""
    with (
        let_in(emulator, monkeypatch),
        override_settings(CACHES=settings(emulator, **options)),
    ):
        yield caches["default"]


@pytest.fixture
def cache(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a cache on the module's cluster."""
    with use(cluster, monkeypatch) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have loops connect at once; leave no connection."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    yield
    registry.reset()


def run(*steps: Callable[[], Any]) -> list[Any]:
    """Run steps on one event loop."""

    async def main() -> list[Any]:
        return [await step() for step in steps]

    return asyncio.run(main())


# -- the cache's API -----------------------------------------------------------------


def test_one_key(cache: Any) -> None:
    """What has one key goes to the node that has it, and stays atomic."""
    for name in NAMES[:20]:
        assert cache.add(name, 1)
        assert not cache.add(name, 2)
        assert cache.incr(name, 2) == 3
        assert cache.decr(name) == 2
        assert cache.touch(name, None)
        assert cache.ttl(name) is None
        assert cache.touch(name, 60)
        assert cache.has_key(name)
        assert cache.get_or_set(name, 5) == 2
        assert cache.incr_version(name) == 2
        assert cache.get(name) is None
        assert cache.get(name, version=2) == 2
        assert cache.delete(name, version=2)
        with pytest.raises(ValueError, match=name):
            cache.incr(name)


def test_many_keys(cluster: Emulator, cache: Any) -> None:
    """What has many keys is split, and each node gets what is its own at once."""
    assert cache.set_many(VALUES, timeout=60) == []
    before = cluster.stats.commands
    assert cache.get_many([*NAMES, "missing"]) == VALUES
    assert cluster.stats.commands - before == len(NAMES) + 1
    sizes = []
    for node in primaries(cluster):
        with admin(cluster, node.number) as connection:
            sizes.append(connection.dbsize())
    assert sum(sizes) == len(NAMES)
    assert all(sizes)
    cache.delete_many(NAMES[:50])
    assert list(cache.get_many(NAMES)) == NAMES[50:]
    assert cache.get_many([]) == {}
    assert cache.set_many({}) == []
    cache.delete_many([])


def test_async(cache: Any) -> None:
    """The same holds in an event loop."""
    key, keys = NAMES[0], NAMES
    found = run(
        lambda: cache.aset_many(VALUES),
        lambda: cache.aget_many(keys),
        lambda: cache.adelete_many(keys[50:]),
        lambda: cache.akeys("*"),
        lambda: cache.aset(key, 1),
        lambda: cache.aincr(key),
        lambda: cache.aadd(key, 1),
        lambda: cache.atouch(key, None),
        lambda: cache.aget(key),
        lambda: cache.adelete_pattern("name-4*"),
        lambda: cache.adelete(key),
        cache.aclear,
        lambda: cache.akeys("*"),
    )
    assert found[:3] == [[], VALUES, None]
    assert sorted(found[3]) == sorted(keys[:50])
    assert found[4:] == [None, 2, False, True, 2, 11, True, True, []]


def test_connections_of_a_loop(cluster: Emulator, cache: Any) -> None:
    """A hundred tasks take one connection to each primary."""

    async def main() -> None:
        await cache.aset("key", "value")
        before = cluster.stats.connections_opened
        await asyncio.gather(*(cache.aset(name, name) for name in NAMES))
        got = await asyncio.gather(*(cache.aget(name) for name in NAMES))
        assert got == NAMES
        assert cluster.stats.connections_opened - before <= 3

    asyncio.run(main())


def test_keys(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are listed and deleted on every primary, a prefix's own alone."""
    with use(cluster, monkeypatch, clear_by_scan=True, KEY_PREFIX="mine") as cache:
        cache.set_many(VALUES)
        with use(cluster, monkeypatch, KEY_PREFIX="other") as other:
            other.set_many(VALUES)
        assert sorted(cache.iter_keys("name-1*", itersize=2)) == sorted(
            name for name in NAMES if name.startswith("name-1")
        )
        assert sorted(cache.keys()) == sorted(NAMES)
        assert cache.delete_pattern("name-?", itersize=3) == 10
        assert cache.delete_pattern("none") == 0
        assert cache.clear()
        assert cache.keys() == []
        with use(cluster, monkeypatch, KEY_PREFIX="other") as other:
            assert len(other.keys()) == len(NAMES)
            assert other.clear()
            assert other.keys() == []


def test_hash_tags(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash tag keeps keys on one node; so does one in KEY_PREFIX, for all keys."""
    with use(cluster, monkeypatch) as cache:
        cache.set_many({f"{{tag}}{name}": name for name in NAMES})
        assert len(cache.get_topology().parts(map(cache.make_key, NAMES))) == 3
        tagged = [cache.make_key(f"{{tag}}{name}", version=1) for name in NAMES]
        assert len(cache.get_topology().parts(tagged)) == 1
    with use(cluster, monkeypatch, KEY_PREFIX="{site}") as cache:
        cache.set_many(VALUES)
        assert cache.get_many(NAMES) == VALUES
        keys = [cache.make_key(name) for name in NAMES]
        assert len(cache.get_topology().parts(keys)) == 1


def test_client_and_lock(cache: Any) -> None:
    """redis-py's own client stands on the same connections; locks are its own."""
    # It must not mind connections that there are already.
    cache.set_many(VALUES)
    client = cache.get_client()
    assert client is cache.get_client(write=True)
    client.set("a", 1)
    assert client.get("a") == b"1"
    with cache.lock("lock", timeout=10), pytest.raises(redis.exceptions.LockError):
        cache.lock("lock", blocking=False).__enter__()
    pool = cache.get_topology().endpoint_of("a").pool
    assert pool.counts()[0] > 0


def test_where_a_request_goes(cache: Any) -> None:
    """The client has a pool for each request, as that to a single server has."""
    topology = cache.get_topology()
    topology.ensure()
    for address, pool in topology.primaries.items():
        assert cache._cache.endpoint_for(Visit(("PING",), address)) is pool
    for name in NAMES:
        request = Request(("GET", name), key=name, write=False)
        assert cache._cache.endpoint_for(request) is topology.endpoint_of(name)


def test_sessions(cache: Any) -> None:
    """Django's sessions need nothing more."""
    session = SessionStore()
    session["user"] = "ann"
    session.save()
    assert SessionStore(session.session_key)["user"] == "ann"


# -- TLS -----------------------------------------------------------------------------


def test_certificates_are_verified(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes announce an address that no certificate names; the name counts."""
    with use(cluster, monkeypatch) as cache:
        cache.set_many(VALUES)
        for pool in cache.get_pools():
            where = pool.connection_kwargs
            assert where["host"] == "127.0.0.2"
            assert where["ssl_check_hostname"] is True
            assert where["tls"].context.check_hostname
    for fault in ("hostname", "untrusted"):
        cluster.break_tls(fault)
        with (
            use(cluster, monkeypatch) as cache,
            pytest.raises(redis.ConnectionError, match=r"(?i)certificate"),
        ):
            cache.get("key")
        cluster.break_tls(None)


def test_wrong_name_at_a_node(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with a certificate for another name is refused, also by a loop; so is what
    else answers at the configured host, without TLS."""
    quick = {"socket_timeout": 1, "socket_connect_timeout": 1}
    with use(cluster, monkeypatch, **quick) as cache:
        cache.get_topology().ensure()
        cluster.break_tls("hostname")
        with pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
            cache.set_many(VALUES)

        async def main() -> None:
            with pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
                await cache.aget("key")

        asyncio.run(main())
        cluster.break_tls(None)
        assert recovered(lambda: cache.set_many(VALUES)) == []


def test_address_remap(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's function may say where an announced address is to be reached."""
    seen = set()

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        seen.add(address[0])
        return "127.0.0.2", address[1]

    with use(cluster, monkeypatch, address_remap=remap) as cache:
        assert cache.set_many(VALUES) == []
        assert cache.get_client().get("nothing") is None
    assert seen == {"127.0.0.2"}


# -- faults --------------------------------------------------------------------------


class Load:
    """Threads that write and read, and event loop tasks that do."""

    def __init__(self, cache: Any, workers: int = WORKERS) -> None:
        self.cache = cache
        self.errors: list[tuple[float, str]] = []
        self.rounds = 0
        self._stop = threading.Event()
        self._executor = ThreadPoolExecutor(workers + 1)
        self._futures = [
            self._executor.submit(self._work, str(number)) for number in range(workers)
        ]
        self._futures.append(self._executor.submit(asyncio.run, self._awork()))

    def __enter__(self) -> "Load":
        """Wait until it is under way."""
        wait_until(lambda: self.rounds > 2 * WORKERS)
        return self

    def __exit__(self, *_: object) -> None:
        """End it; raise what no fault excuses."""
        self._stop.set()
        self._executor.shutdown()
        for future in self._futures:
            future.result()

    def settled(self) -> None:
        """Return after some more rounds of each worker."""
        goal = self.rounds + 20 * WORKERS
        wait_until(lambda: self.rounds >= goal)

    def _note(self, begun: float, error: object) -> None:
        self.errors.append((begun, f"{type(error).__name__}: {error}"))

    def _work(self, name: str) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            key = f"{name}-{number % 50}"
            many = {f"{name}-many-{place}": number for place in range(20)}
            begun = time.monotonic()
            try:
                self.cache.set(key, number)
                assert self.cache.get(key) == number
                failed = self.cache.set_many(many)
                self.errors += [(begun, f"{name} is not set") for name in failed]
                assert failed or self.cache.get_many(many) == many
            except redis.RedisError as error:
                self._note(begun, error)
            self.rounds += 1
            time.sleep(0.02)

    async def _awork(self) -> None:
        async def work(name: str) -> None:
            number = 0
            while not self._stop.is_set():
                number += 1
                many = {f"{name}-many-{place}": number for place in range(20)}
                begun = time.monotonic()
                try:
                    await self.cache.aset(name, number)
                    assert await self.cache.aget(name) == number
                    failed = await self.cache.aset_many(many)
                    self.errors += [(begun, f"{name} is not set") for name in failed]
                    assert failed or await self.cache.aget_many(many) == many
                except redis.RedisError as error:
                    self._note(begun, error)
                self.rounds += 1
                await asyncio.sleep(0.05)

        await asyncio.gather(*(work(f"task-{number}") for number in range(5)))


def test_renewals_and_drops(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request notices that tokens expire, or that connections are dropped."""
    cluster.token_lifetime = SHORT
    with use(cluster, monkeypatch) as cache, Load(cache) as load:
        provider = cache.get_topology().nodes.first.pool.connection_kwargs[
            "credential_provider"
        ]
        before = cluster.stats.closed_by_expiry_in_use
        wait_until(lambda: provider.status().renewals >= 3)
        cluster.drop_connections()
        load.settled()
        wait_until(lambda: provider.status().renewals >= 4)
        load.settled()
        assert load.errors == []
        assert cluster.stats.closed_by_expiry_in_use == before


def test_a_primary_dies(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors come only while the cluster itself is down, as far as a look at it tells
    that is as old as looks may be."""
    with use(cluster, monkeypatch) as cache, Load(cache) as load:
        assert load.errors == []
        cluster.kill_node(primaries(cluster)[0].number)
        cluster.settle()
        end = time.monotonic() + topologies.PAUSE
        load.settled()
        late = [error for begun, error in load.errors if begun > end]
        assert late == []


def test_failover(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica and its primary change places, and nobody notices."""
    with use(cluster, monkeypatch) as cache, Load(cache) as load:
        for node in primaries(cluster):
            cluster.failover(replica_of(cluster, node.number).number)
            load.settled()
        assert load.errors == []


def test_all_keys_after_a_failover(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What concerns all keys goes to those that are primaries now."""
    with use(cluster, monkeypatch) as cache:

        def fail_over(place: int) -> None:
            cache.set_many(VALUES)
            number = primaries(cluster)[place].number
            cluster.failover(replica_of(cluster, number).number)
            cluster.settle()

        fail_over(0)
        assert cache.clear()
        assert cache.keys() == []
        fail_over(1)
        assert run(cache.aclear) == [True]
        assert cache.keys() == []
        cache.set_many(VALUES)
        keys = cache.iter_keys("*", itersize=2)
        found = {next(keys)}
        fail_over(2)
        cache.get_topology().discover()
        assert found.union(keys) == set(NAMES)
        cluster.kill_node(primaries(cluster)[0].number)
        cluster.settle()
        assert cache.clear()
        assert cache.keys() == []


def test_all_keys_with_an_error(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error is told when no primary is at it any more."""
    begun: list[Any] = []
    ended: list[Any] = []
    call = AsyncClusterClient.call

    async def fail_at_first(
        client: AsyncClusterClient, channels: Any, pool: Any, request: Any
    ) -> Any:
        begun.append(pool)
        if len(begun) < 3:
            raise NoPermissionError(f"primary {len(begun)}")
        reply = await call(client, channels, pool, request)
        ended.append(pool)
        return reply

    cache.get_topology().ensure()
    monkeypatch.setattr(AsyncClusterClient, "call", fail_at_first)

    async def main() -> None:
        with pytest.raises(NoPermissionError, match="primary 1"):
            await cache.aclear()
        assert (len(begun), ended) == (3, begun[2:])

    asyncio.run(main())


def test_all_keys_while_nothing_has_changed() -> None:
    """Where the primaries are those that they were, the error is told as it came."""
    busy = b"-LOADING Redis is loading the dataset in memory\r\n"
    refused = b"-NOPERM this user has no permissions\r\n"
    for clear in (
        lambda cache: cache.clear(),
        lambda cache: asyncio.run(cache.aclear()),
    ):

        def work(cache: Any, clear: Callable[[Any], Any] = clear) -> None:
            with pytest.raises(redis.ConnectionError, match="loading"):
                clear(cache)

        scripted(work, FLUSHDB=[busy] * 100)

        def work_refused(cache: Any, clear: Callable[[Any], Any] = clear) -> None:
            with pytest.raises(NoPermissionError, match="clear_by_scan"):
                clear(cache)

        scripted(work_refused, FLUSHDB=[refused])


def test_resharding(cluster_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node joins and is given slots under load: no error, and it authenticates."""
    with (
        Emulator(token_lifetime=SHORT, cluster=3, redis_server=cluster_server) as own,
        use(own, monkeypatch) as cache,
        Load(cache) as load,
    ):
        joined = own.add_node()
        own.migrate_slots(1, joined.number, 300, pause=0.002)
        own.settle()
        load.settled()
        assert joined.address in cache.get_topology().primaries
        provider = cache.get_topology().nodes.first.pool.connection_kwargs[
            "credential_provider"
        ]
        goal = provider.status().renewals + 3
        wait_until(lambda: provider.status().renewals >= goal)
        load.settled()
        assert load.errors == []


def test_uncertain(cluster: Emulator, cache: Any) -> None:
    """What must not be applied twice is not repeated where nobody can know."""
    cache.set("counter", 1)
    cluster.freeze()

    def drop() -> None:
        time.sleep(0.3)
        cluster.drop_connections()
        cluster.freeze(False)

    thread = threading.Thread(target=drop)
    thread.start()
    with pytest.raises(UncertainResultError):
        cache.incr("counter")
    thread.join()
    assert cache.get("counter") in (1, 2)


def counted_waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of replies that are waited for, node by node, from now on."""
    waits: list[int] = []
    receive = Exchanger.receive

    def note(self: Exchanger, count: int, *, wait: bool = True) -> list[Any]:
        if wait:
            waits.append(count)
        return receive(self, count, wait=wait)

    def note_many(connection: Any, request: Request) -> list[Any]:
        waits.append(request.count)
        return read_many(connection, request)

    monkeypatch.setattr(Exchanger, "receive", note)
    monkeypatch.setattr(node_batch, "read_many", note_many)
    return waits


@pytest.mark.parametrize("protocol", [2, 3])
def test_silent_nodes(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    """Nodes that are silent are waited for together, not one after the other."""
    waits = counted_waits(monkeypatch)
    with use(cluster, monkeypatch, socket_timeout=0.5, protocol=protocol) as cache:
        assert cache.set_many(VALUES) == []
        assert len(waits) == len(primaries(cluster))
        waits.clear()
        cluster.freeze()
        with pytest.raises(redis.TimeoutError):
            cache.get_many(NAMES)
        assert len(waits) == 1
        cluster.freeze(False)
        assert recovered(lambda: cache.get_many(NAMES)) == VALUES


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_part_that_is_not_waited_for(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    """Once one node has had its time, another's replies are there, or they are not."""
    with use(cluster, monkeypatch, protocol=protocol) as cache:
        assert cache.set_many(VALUES) == []  # Each node has a connection.
        node = next(iter(cache.get_topology().primaries.values()))
        cluster.freeze()
        with node_batch.NodeBatch(node) as part:
            part.send(Request(b"*1\r\n$4\r\nPING\r\n", 1))
            found = part.receive(wait=False)
        cluster.freeze(False)
        assert isinstance(found, redis.TimeoutError)


def test_refused(
    cluster: Emulator, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has no access policy is told, also by many keys at once."""
    cache.get_topology().ensure()
    rules = "+@all ~* &*"
    cluster.set_access(cluster.application.object_id, None)
    with pytest.raises(TokenRefusedError):
        cache.set_many(VALUES)
    with pytest.raises(TokenRefusedError):
        run(lambda: cache.aset_many(VALUES))
    cluster.set_access(cluster.application.object_id, f"{rules} -cluster")
    with use(cluster, monkeypatch) as other, pytest.raises(NoPermissionError) as caught:
        other.get("key")
    assert "+cluster|slots" in str(caught.value)
    cluster.set_access(cluster.application.object_id, rules)
    assert cache.set_many(VALUES) == []


def test_no_cluster_at_all(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no node can be asked the error says so, or the cache is an empty one."""
    nowhere = "rediss://127.0.0.1:1"
    with let_in(cluster, monkeypatch):
        cache = EntraRedisClusterCache(nowhere, {})
        with pytest.raises(redis.ConnectionError, match=r"127\.0\.0\.1:1"):
            cache.get("key")
        with pytest.raises(redis.ConnectionError, match=r"127\.0\.0\.1:1"):
            cache.get_client()
        forgiving = EntraRedisClusterCache(
            nowhere, {"OPTIONS": {"ignore_exceptions": True}}
        )
        assert forgiving.get("key") is None
        assert forgiving.set_many({"a": 1}) == ["a"]
        assert forgiving.get_many(["a"]) == {}
        assert forgiving.keys() == []


# -- which backend -------------------------------------------------------------------


def test_single_node_backend(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other backend, on a cluster, names this one."""
    with let_in(cluster, monkeypatch):
        cache = make_cache(cluster.redis_url, ssl_ca_certs=str(cluster.ca_file))

        def count(name: str) -> None:
            # Those that this node has are not there.
            with suppress(ValueError):
                cache.incr(f"counter-{name}")

        calls: Sequence[Callable[[], Any]] = (
            lambda: [cache.get(name) for name in NAMES],
            lambda: cache.get_many(NAMES),
            lambda: cache.set_many(VALUES),
            lambda: cache.delete_many(NAMES),
            lambda: list(map(count, NAMES)),
        )
        for call in calls:
            with pytest.raises(WrongBackendError, match="EntraRedisClusterCache"):
                call()

        async def main() -> None:
            with pytest.raises(WrongBackendError, match="EntraRedisClusterCache"):
                await cache.aset_many(VALUES)
            with pytest.raises(WrongBackendError, match="EntraRedisClusterCache"):
                await cache.aget_many(NAMES)

        asyncio.run(main())


def test_cluster_backend_without_a_cluster(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This backend, on one endpoint for all keys, names the other one."""
    with use(emulator, monkeypatch) as cache:
        with pytest.raises(WrongBackendError, match=r"cache\.EntraRedisCache'"):
            cache.get("key")
        with pytest.raises(WrongBackendError, match=r"cache\.EntraRedisCache'"):
            run(lambda: cache.aget("key"))


# -- processes and settings ----------------------------------------------------------


def test_fork(cluster: Emulator, cache: Any) -> None:
    """A child asks for no topology, and opens connections of its own."""
    cache.set_many(VALUES)
    client = cache.get_client()

    def child() -> None:
        assert cache.get_many(NAMES) == VALUES
        assert cache.get_client() is not client

    opened = cluster.stats.connections_opened
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert cluster.stats.connections_opened > opened
    assert cache.get_many(NAMES) == VALUES


def test_identity_changes(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other settings the connections are let in anew."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", cluster.imds_url)
    with use(cluster, monkeypatch) as cache:
        cache.set_many(VALUES)
        with override_settings(ENTRA_REDIS={"default": {"KIND": "managed_identity"}}):
            assert cache.get_many(NAMES) == VALUES
            pool = cache.get_topology().endpoint_of("key").pool
            client = redis.Redis(connection_pool=pool)
            user = str_if_bytes(client.execute_command("ACL WHOAMI"))
            assert user == cluster.system_assigned.object_id


def test_pool_class(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py's own pools do, too, and are closed when settings change."""
    before = cluster.stats.connections_open
    with use(cluster, monkeypatch, pool_class="redis.ConnectionPool") as cache:
        assert cache.set_many(VALUES) == []
        assert cache.get_many(NAMES) == VALUES
        pools = cache.get_pools()
        # Of a class that shows no password, and else is the one that was asked for.
        assert {type(pool).__base__ for pool in pools} == {redis.ConnectionPool}
    wait_until(lambda: cluster.stats.connections_open <= before)


# -- what a real cluster seldom answers ----------------------------------------------

OK = b"+OK\r\n"


class Script:
    """A cluster of one node that answers as it is told to.

    Parameters:
        answers: by command, what it answers first; afterwards it does as it should.
    """

    def __init__(self, **answers: list[bytes]) -> None:
        self.answers = answers
        self.seen: list[bytes] = []
        self.host = b"127.0.0.1"
        self.port = self.node_port = 0
        self.last = 16383

    def __call__(self, peer: Peer, command: list[bytes]) -> bytes:
        """Answer."""
        name = command[0].upper()
        self.seen.append(name)
        queue = self.answers.get(name.decode())
        if queue:
            return queue.pop(0)
        if name == b"CLUSTER":
            node = b"*3\r\n$%d\r\n%b\r\n:%d\r\n$2\r\nid\r\n"
            node %= (len(self.host), self.host, self.node_port or self.port)
            return b"*1\r\n*3\r\n:0\r\n:%d\r\n%b" % (self.last, node)
        return b"$1\r\n5\r\n" if name == b"GET" else OK

    async def use(
        self, work: Callable[[EntraRedisClusterCache], Any], **options: Any
    ) -> Any:
        """Run ``work`` in a thread with a cache on it, without an identity unless
        these options name one."""
        async with PeerHost(self) as host:
            self.port = host.port
            cache = EntraRedisClusterCache(
                f"redis://127.0.0.1:{host.port}",
                {"OPTIONS": {"identity": None, **options}},
            )
            try:
                return await asyncio.to_thread(work, cache)
            finally:
                registry.reset()


def scripted(work: Callable[[EntraRedisClusterCache], Any], **answers: Any) -> Any:
    """Run ``work`` with a cache on a scripted node; return what it does, and the
    commands that the node saw."""
    script = Script(**answers)
    result = asyncio.run(script.use(work))
    return result, script.seen


@pytest.mark.parametrize(
    "answer",
    [
        b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-MOVED 1 :%d\r\n",
    ],
)
def test_changing(answer: bytes) -> None:
    """What a node answers while the cluster changes is tried again, alone or not."""

    async def main() -> None:
        script = Script()

        def work(cache: EntraRedisClusterCache) -> None:
            told = answer % script.port if b"%d" in answer else answer
            script.answers["GET"] = [told]
            assert cache.get("key") == 5
            script.answers["GET"] = [told]
            assert cache.get_many(["a", "b"]) == {"a": 5, "b": 5}

        await script.use(work)

    asyncio.run(main())


TOUCHES: Sequence[Callable[[Any], bool]] = (
    lambda cache: cache.touch("key", None),
    lambda cache: asyncio.run(cache.atouch("key", None)),
)


def test_touch_while_the_cluster_changes() -> None:
    """Each of the commands that it takes is tried again, and explained, as any is."""
    down = b"-CLUSTERDOWN The cluster is down\r\n"

    async def main() -> None:
        script = Script()

        def work(cache: EntraRedisClusterCache) -> None:
            for touch in TOUCHES:
                script.answers["PERSIST"] = [down, b":0\r\n"]
                script.answers["EXISTS"] = [down, b":0\r\n"]
                assert not touch(cache)
                for name in ("EXISTS", "PERSIST"):
                    script.answers |= {"PERSIST": [b":0\r\n"], name: [down] * 100}
                    with pytest.raises(ClusterUnavailableError, match="is down"):
                        touch(cache)
                    script.answers.clear()

        await script.use(work)

    asyncio.run(main())


def test_changing_for_too_long() -> None:
    """In the end the error says that the cluster is changing."""
    down = b"-CLUSTERDOWN The cluster is down\r\n"

    def work(cache: EntraRedisClusterCache) -> None:
        with pytest.raises(ClusterUnavailableError, match="cluster is down"):
            cache.get("key")
        with pytest.raises(ClusterUnavailableError, match="cluster is down"):
            cache.get_many(["a", "b"])

    scripted(work, GET=[down] * 100)


def test_ask() -> None:
    """A key that is on its way is asked for where it goes, with ASKING."""

    async def main() -> None:
        script = Script()

        def work(cache: Any) -> None:
            ask = b"-ASK 1 127.0.0.1:%d\r\n" % script.port
            script.answers["GET"] = [ask]
            assert cache.get("key") == 5
            for touch in TOUCHES:
                script.answers["PERSIST"] = [ask, b":0\r\n"]
                script.answers["EXISTS"] = [ask, b":1\r\n"]
                assert touch(cache)
            script.answers["INCRBY"] = [b":8\r\n"]
            script.answers["EVALSHA"] = [ask, b":8\r\n"]
            assert cache.incr("key") == 8
            script.answers["GET"] = [ask, b"-ERR wrong\r\n"]
            with pytest.raises(ResponseError, match="wrong"):
                cache.get("key")

        await script.use(work)
        # It is true of one command alone.
        at = [place for place, name in enumerate(script.seen) if name == b"ASKING"]
        assert [script.seen[place + 1] for place in at] == [
            b"GET",
            *(b"PERSIST", b"EXISTS") * 2,
            b"EVALSHA",
            b"GET",
        ]

    asyncio.run(main())


def test_ask_in_vain() -> None:
    """A node that does not want what another one has given up sends it on."""

    async def main() -> None:
        script = Script()

        def work(cache: Any) -> None:
            cache.get_topology().ensure()
            here = b"127.0.0.1:%d\r\n" % script.port
            script.answers["GET"] = [b"-ASK 1 " + here, b"-MOVED 1 " + here]
            assert cache.get("key") == 5
            script.answers["EVALSHA"] = [
                b"-ASK 1 " + here,
                b"-MOVED 1 " + here,
                b":8\r\n",
            ]
            assert cache.incr("key") == 8

        await script.use(work)
        assert script.seen.count(b"ASKING") == 2

    asyncio.run(main())


def test_first_look_is_repeated() -> None:
    """A server that is not ready at the first look is asked again."""
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    for work in (
        lambda cache: cache.get("key"),
        lambda cache: asyncio.run(cache.aget("key")),
    ):
        found, seen = scripted(work, CLUSTER=[loading, loading])
        assert found == 5
        assert seen.count(b"CLUSTER") == 3


def test_busy_at_the_first_look() -> None:
    """A node that is busy with a script is asked again, not taken for none of a
    cluster."""
    busy = b"-BUSY Redis is busy running a script.\r\n"

    def work(cache: EntraRedisClusterCache) -> None:
        assert cache.get("key") == 5

    scripted(work, CLUSTER=[busy])


def test_circle() -> None:
    """Nodes that redirect to each other do not keep a command going round."""

    async def main() -> None:
        script = Script()

        def work(cache: EntraRedisClusterCache) -> None:
            moved = b"-MOVED 1 127.0.0.1:%d\r\n" % script.port
            script.answers["GET"] = [moved] * 1000
            with pytest.raises(ClusterUnavailableError, match="circle"):
                cache.get("key")

        await script.use(work)

    asyncio.run(main())


def test_slot_that_nobody_serves() -> None:
    """A part of the keys is out of reach while its node is, or all of them."""
    script = Script(CLUSTER=[b"*0\r\n"])
    script.last = 100

    def work(cache: Any) -> None:
        with pytest.raises(ClusterUnavailableError, match="list its nodes"):
            cache.get("key")
        with pytest.raises(ClusterUnavailableError, match="slot 15240"):
            cache.get("key")
        with pytest.raises(ClusterUnavailableError, match="no node 127"):
            cache.get_topology().endpoint_at("127.0.0.1:1")

    asyncio.run(script.use(work))


def test_full_coverage_is_asked_for() -> None:
    """Then a cluster of which a part is down counts as down."""
    script = Script()
    script.last = 100

    def work(cache: Any) -> None:
        with pytest.raises(ClusterUnavailableError, match="require_full_coverage"):
            cache.get("key")

    asyncio.run(script.use(work, require_full_coverage=True))
    assert b"GET" not in script.seen


def test_nodes_that_contradict_each_other() -> None:
    """The first one's answer counts; the others' only for the slots that it lacks."""

    async def main() -> None:
        location, node = Script(), Script()
        location.last = node.last = 100

        def work(cache: EntraRedisClusterCache) -> None:
            topology = cache.get_topology()
            topology.ensure()
            assert b"CLUSTER" not in node.seen
            topology.discover()
            assert b"CLUSTER" in node.seen
            assert [*topology.primaries] == [f"127.0.0.1:{host.port}"]

        async with PeerHost(node) as host:
            location.node_port = host.port
            node.port = 1
            await location.use(work)

    asyncio.run(main())


def test_silence_while_nodes_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is told in time, in a thread and in a loop."""
    monkeypatch.setattr(topologies, "LONGEST", 0.05)
    script = Script()

    def hold(peer: Peer, command: list[bytes]) -> bytes | None:
        return None if command[0] == b"CLUSTER" else script(peer, command)

    async def main() -> None:
        async with PeerHost(hold) as host:
            cache = EntraRedisClusterCache(
                f"redis://127.0.0.1:{host.port}",
                {"OPTIONS": {"identity": None, "socket_timeout": None}},
            )
            topology = cache.get_topology()
            with pytest.raises(ClusterUnavailableError, match=r"within 0\.05 s"):
                await asyncio.to_thread(topology.discover)
            with pytest.raises(ClusterUnavailableError, match=r"within 0\.05 s"):
                await topology.adiscover()

    asyncio.run(main())


@pytest.mark.parametrize("native", [False, True])
def test_a_silent_identity_endpoint_is_no_silent_node(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    """The time of the token's request is not the nodes'."""
    monkeypatch.setattr(topologies, "LONGEST", 0.5)
    cluster.faults.fail("hang", endpoint="token")
    options = {"ssl_ca_certs": str(cluster.ca_file)}
    try:
        with let_in(cluster, monkeypatch, request_timeout=2):
            cache = EntraRedisClusterCache(cluster.redis_url, {"OPTIONS": options})
            topology = cache.get_topology()

            def discover() -> None:
                if native:
                    asyncio.run(topology.adiscover())
                else:
                    topology.discover()

            with pytest.raises(TokenError, match="REQUEST_TIMEOUT"):
                discover()
    finally:
        cluster.faults.recover()


def test_slow_nodes_that_are_not_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they have not answered in time, all at once, is asked for one by one."""
    waits = counted_waits(monkeypatch)
    ordered = sorted(NAMES, key=lambda name: key_slot(f":1:{name}".encode()))
    ends = [ordered[0], ordered[-1]]
    script = Script()
    held: set[bytes] = set()

    def hold(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] == b"GET" and command[1] not in held:
            held.add(command[1])
            return None
        return script(peer, command)

    async def main() -> None:
        async with PeerHost(hold) as first, PeerHost(hold) as second:
            slots = b"*3\r\n:%d\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\n%b\r\n"
            script.answers["CLUSTER"] = [
                b"*2\r\n"
                + slots % (0, 8191, first.port, b"id")
                + slots % (8192, 16383, second.port, b"no")
            ] * 9
            cache = EntraRedisClusterCache(
                f"redis://127.0.0.1:{first.port}",
                {"OPTIONS": {"identity": None, "socket_timeout": 1.0}},
            )
            found = await asyncio.to_thread(cache.get_many, ends)
            assert found == dict.fromkeys(ends, 5)
            registry.reset()

    asyncio.run(main())
    assert len(held) == 2
    assert len(waits) == 1


def test_replies_without_a_bound() -> None:
    """Those to many commands are waited for, where there is no timeout."""
    script = Script()

    def work(cache: EntraRedisClusterCache) -> list[str]:
        return cache.set_many({"a": 1, "b": 2})

    assert asyncio.run(script.use(work, socket_timeout=None)) == []


def test_a_fault_of_our_own(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no error of Redis' is not taken for one."""

    async def fail(*args: Any) -> None:
        raise KeyError("own")

    monkeypatch.setattr(MultiplexedConnection, "call", fail)
    with pytest.raises(KeyError, match="own"):
        run(lambda: cache.aget_many(NAMES))


def test_errors_of_one_key() -> None:
    """An error reply to one of many commands is told as Django's API tells it."""
    full = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"

    def work(cache: EntraRedisClusterCache) -> None:
        assert cache.set_many({"a": 1, "b": 2}) == ["a"]
        with pytest.raises(ResponseError, match="wrong type"):
            cache.get_many(["a", "b"])

    scripted(work, SET=[full], GET=[b"-ERR wrong type\r\n"])


def test_lost_in_between() -> None:
    """A node that breaks off in the middle of many replies is asked again."""

    async def main() -> None:
        script, cuts = Script(), [True]

        def answer(peer: Peer, command: list[bytes]) -> bytes:
            if command == [b"GET", b":1:b"] and cuts:
                cuts.clear()
                peer.transport.close()
            return script(peer, command)

        async with PeerHost(answer) as host:
            script.port = host.port
            cache = EntraRedisClusterCache(
                f"redis://127.0.0.1:{host.port}", {"OPTIONS": {"identity": None}}
            )
            found = await asyncio.to_thread(cache.get_many, ["a", "b", "c"])
            assert found == {"a": 5, "b": 5, "c": 5}
            registry.reset()

    asyncio.run(main())


def test_whom_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server in LOCATION is, whatever nodes say; after them while it fails."""
    asked: list[Script] = []

    class Noted(Script):
        def __call__(self, peer: Peer, command: list[bytes]) -> bytes:
            if command[0] == b"CLUSTER":
                asked.append(self)
            return super().__call__(peer, command)

    async def main() -> None:
        location, node = Noted(), Noted()

        def work(cache: EntraRedisClusterCache) -> None:
            topology = cache.get_topology()
            topology.ensure()
            assert cache.get("key") == 5
            topology.discover()
            assert asked == [location] * 2
            # One that is not of the cluster any more knows nothing of it.
            for answer in (b"*0\r\n", b"-ERR gone\r\n"):
                asked.clear()
                location.answers["CLUSTER"] = [answer]
                topology.discover()
                assert asked == [location, node]
            asked.clear()
            topology.discover()
            assert asked == [node]
            monkeypatch.setattr(topologies, "monotonic", lambda: time.monotonic() + 31)
            topology.discover()
            assert asked == [node, location]

        async with PeerHost(node) as host:
            location.node_port = node.port = host.port
            await location.use(work)
        assert b"GET" not in location.seen

    asyncio.run(main())


def test_only_the_servers_in_location() -> None:
    """They alone are asked where the setting says so, also while they fail."""

    async def main() -> None:
        location, node = Script(), Script()

        def work(cache: EntraRedisClusterCache) -> None:
            topology = cache.get_topology()
            topology.ensure()
            assert cache.get("key") == 5
            location.answers["CLUSTER"] = [b"-ERR gone\r\n"]
            with pytest.raises(ResponseError, match="gone"):
                topology.discover()

        async with PeerHost(node) as host:
            location.node_port = node.port = host.port
            await location.use(work, dynamic_startup_nodes=False)
        assert b"GET" in node.seen
        assert b"CLUSTER" not in node.seen

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"*1\r\n*3\r\n:0\r\n:1000000000000\r\n%b", InvalidReplyError),
        (b"*1\r\n*3\r\n:0\r\n:16383\r\n:1\r\n", InvalidReplyError),
        (b"*1\r\n*2\r\n:0\r\n:16383\r\n", InvalidReplyError),
        (b"$4\r\nnone\r\n", InvalidReplyError),
        (b"*0\r\n", ClusterUnavailableError),
    ],
)
def test_no_topology(answer: bytes, error: type[Exception]) -> None:
    """What is none is told as such, and takes no memory."""
    node = b"*3\r\n$0\r\n\r\n:6379\r\n$2\r\nid\r\n"
    answer = answer.replace(b"%b", node)

    def work(cache: EntraRedisClusterCache) -> None:
        with pytest.raises(error):
            cache.get("key")

    scripted(work, CLUSTER=[answer] * 9)


@pytest.mark.parametrize("end", ["answered", "never answered", "never asked"])
def test_node_that_leaves(end: str) -> None:
    """A loop closes its connection to it, once what is under way has been answered."""
    ordered = sorted(NAMES, key=lambda name: key_slot(f":1:{name}".encode()))
    near, far = ordered[0], ordered[-1]
    held: list[Peer] = []
    script = Script()

    def hold(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] == b"GET":
            held.append(peer)
            return None
        return script(peer, command)

    async def leave(cache: EntraRedisClusterCache) -> None:
        assert await cache.aget(near) == 5
        if end == "never asked":
            await cache.get_topology().adiscover()
            assert await cache.aget(far) == 5
            return
        asking = asyncio.create_task(cache.aget(far))
        while not held:
            await asyncio.sleep(0.005)
        await cache.get_topology().adiscover()
        assert not asking.done()
        if end == "answered":
            held[0].transport.write(b"$1\r\n7\r\n")
            assert await asking == 7
        else:
            # What is left of it ends with the loop.
            asking.cancel()
            await asyncio.get_running_loop().shutdown_asyncgens()
        while not held[0].transport.is_closing():
            await asyncio.sleep(0.005)

    async def main() -> None:
        async with PeerHost(script) as first, PeerHost(hold) as second:
            script.port = first.port
            slots = b"*3\r\n:%d\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\n%b\r\n"
            script.answers["CLUSTER"] = [
                b"*2\r\n"
                + slots % (0, 8191, first.port, b"id")
                + slots % (8192, 16383, second.port, b"no")
            ]
            cache = EntraRedisClusterCache(
                f"redis://127.0.0.1:{first.port}", {"OPTIONS": {"identity": None}}
            )
            await asyncio.wait_for(leave(cache), 30)

    asyncio.run(main())


def test_node_that_leaves_a_pool_of_redis_pys() -> None:
    """Its idle connections are closed, too."""
    script, other = Script(), Script()

    async def main() -> None:
        async with PeerHost(other) as host:
            other.port = script.node_port = host.port

            def work(cache: EntraRedisClusterCache) -> None:
                assert cache.get("key") == 5
                (peer,) = host.peers
                assert not peer.transport.is_closing()
                script.node_port = 0
                cache.get_topology().discover()
                wait_until(peer.transport.is_closing)

            await script.use(work, pool_class=redis.ConnectionPool)

    asyncio.run(main())
    assert b"GET" in other.seen


def test_errors_of_the_client() -> None:
    """redis-py's client says with a RedisError, too, that no node can be asked."""

    async def main() -> None:
        script = Script(COMMAND=[b"*0\r\n"] * 9)

        def work(cache: Any) -> None:
            cache.get("key")
            script.answers["CLUSTER"] = [b"-LOADING Redis is loading\r\n"] * 100
            with pytest.raises(redis.ConnectionError, match="loading"):
                cache.get_client()
            script.answers["CLUSTER"] = []
            client = cache.get_client()
            script.answers["CLUSTER"] = [b"-LOADING Redis is loading\r\n"] * 100
            script.answers["PING"] = [b"-LOADING Redis is loading\r\n"] * 100
            with pytest.raises(redis.ConnectionError):
                client.ping(target_nodes="random")
            script.answers |= {"CLUSTER": [], "PING": [b"+PONG\r\n"]}
            assert cache.get_client().ping(target_nodes="random")
            with pytest.raises(redis.exceptions.RedisClusterException):
                cache.get_client().execute_command("NONSENSE")

        await script.use(work)

    asyncio.run(main())

    asyncio.run(main())


# -- what a token would cross the network to in plain text ---------------------------

#: An address that no machine has, announced by a cluster behind a forwarded port.
FAR = "192.0.2.2"


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """Give such a cluster, and an identity; whoever would connect there fails."""

    def connect(sock: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1"
        real(sock, address)

    real = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", connect)
    script = Script()
    script.host = FAR.encode()
    identity = {"CREDENTIAL": Credential("opaque"), "USERNAME": "me"}
    with override_settings(ENTRA_REDIS={"default": identity}):
        yield script


def test_no_token_in_plain_text(far: Script) -> None:
    """A token that may go to LOCATION may not for that go to what it leads to."""

    def work(cache: EntraRedisClusterCache) -> None:
        calls: Sequence[Callable[[], Any]] = (
            lambda: cache.get("key"),
            lambda: cache.get_many(NAMES),
            lambda: run(lambda: cache.aget("key")),
            cache.get_client,
            cache.get_pools,
        )
        for call in calls:
            with pytest.raises(ConfigurationError, match="LOCATION") as caught:
                call()
            (problem,) = caught.value.problems
            assert problem.id == "E022"
            assert f"{FAR}:{far.port}" in problem.message

    asyncio.run(far.use(work, identity="default", ignore_exceptions=True))
    assert b"AUTH" in far.seen


def test_no_token_in_plain_text_after_a_change(far: Script) -> None:
    """Nodes that are too far away come late, and leave what is known as it is."""

    def work(cache: EntraRedisClusterCache) -> None:
        topology = cache.get_topology()
        far.host = b"127.0.0.1"
        assert cache.get("key") == 5
        far.host = FAR.encode()
        topology.catch_up()
        with pytest.raises(ConfigurationError, match=FAR):
            topology.discover()
        for kind in (b"ASK", b"MOVED"):
            for call in (
                lambda: cache.get("key"),
                lambda: cache.get_many(["a", "b"]),
                lambda: run(lambda: cache.aget("key")),
            ):
                far.answers["GET"] = [b"-%b 1 %b:6379\r\n" % (kind, far.host)] * 9
                with pytest.raises(ConfigurationError, match=f"{FAR}:6379"):
                    call()
                far.answers.clear()
                assert cache.get("key") == 5

    asyncio.run(far.use(work, identity="default"))


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("redis://127.0.0.1", {"allow_plaintext_token": True}),
        ("redis://127.0.0.1", {"identity": None}),
        ("rediss://127.0.0.1", {}),
        ("redis://127.0.0.1", {"connection_class": redis.SSLConnection}),
    ],
)
def test_nodes_far_away(location: str, options: dict[str, Any]) -> None:
    """Where nobody else can read the token, or it is allowed, or there is none."""
    made = nodes.NodePools(parse_options([location], options, clustered=True))
    assert made.at(FAR, 6379).pool.connection_kwargs["host"] == FAR


def test_nodes_that_are_remapped(far: Script) -> None:
    """What counts is where an announced address leads."""

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        assert address[0] == FAR
        return "127.0.0.1", address[1]

    def work(cache: EntraRedisClusterCache) -> None:
        far.answers["GET"] = [b"-ASK 1 %b:%d\r\n" % (far.host, far.port)]
        assert cache.get("key") == 5
        assert cache.get_many(["a", "b"]) == {"a": 5, "b": 5}

    asyncio.run(far.use(work, identity="default", address_remap=remap))


# -- and the rest --------------------------------------------------------------------


def test_parser_of_older_releases() -> None:
    """redis-py 5 tells redirections from other errors with a parser of its own."""
    older = int(redis.__version__.split(".")[0]) < 6
    assert bool(nodes._PARSER) is older


def test_single_node_is_no_cluster(redis_server: str) -> None:
    """Without an identity the two backends say the same of each other."""
    with Emulator(token_lifetime=3600.0) as one:
        cache = EntraRedisClusterCache(one.backend_url, {"OPTIONS": {"identity": None}})
        with pytest.raises(WrongBackendError):
            cache.get("key")
    assert isinstance(cache, EntraRedisCache)


@pytest.mark.parametrize("refused", [b"AUTH", b"CLUSTER"])
@pytest.mark.parametrize(
    "reply",
    [
        b"DENIED Redis is running in protected mode",
        b"READONLY You can't write against a read only replica.",
        b"CLUSTERDOWN The cluster is down",
        b"TRYAGAIN Multiple keys request during rehashing of slot",
        b"MISCONF Errors writing to the AOF file",
    ],
)
def test_a_server_that_can_not_answer_now(refused: bytes, reply: bytes) -> None:
    """What it says of itself is no sign that it is the other kind of server."""

    def answer(peer: Peer, command: list[bytes]) -> bytes:
        return b"-" + reply + b"\r\n" if command[0] == refused else b"+OK\r\n"

    host = PeerHost(answer)

    async def main() -> None:
        async with host:
            location = f"redis://:password@127.0.0.1:{host.port}"
            cache = EntraRedisClusterCache(location, {"OPTIONS": {"identity": None}})
            for call in (lambda: cache.get("key"), cache.get_client):
                with pytest.raises(redis.RedisError) as caught:
                    await asyncio.to_thread(call)
                assert not isinstance(caught.value, WrongBackendError)
                assert "BACKEND" not in str(caught.value)

    asyncio.run(main())
    registry.reset()


@pytest.mark.parametrize("way", ["set_many", "aset_many"])
def test_a_value_over_a_nodes_limit(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """The node refuses it and the rest of what it was sent, which is sent once."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    seen: list[bytes] = []

    def answer(peer: Peer, command: list[bytes]) -> bytes:
        if command[0] == b"CLUSTER":
            node = b"*3\r\n$0\r\n\r\n:%d\r\n$2\r\nid\r\n" % host.port
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n" + node
        if command[0] == b"SET":
            seen.append(command[1])
        if command[1].endswith(b"large"):
            peer.transport.write(b"-ERR Protocol error: invalid bulk length\r\n")
            peer.transport.close()
        return OK

    host = PeerHost(answer)

    async def main() -> Any:
        async with host:
            options = {"identity": None, "ignore_exceptions": True}
            location = f"redis://127.0.0.1:{host.port}"
            cache = EntraRedisClusterCache(location, {"OPTIONS": options})
            data = {"before": 1, "large": "x", "after": 2}
            if way == "aset_many":
                return await cache.aset_many(data)
            return await asyncio.to_thread(cache.set_many, data)

    assert asyncio.run(main()) == ["large", "after"]
    registry.reset()
    assert seen[:2] == [b":1:before", b":1:large"]
    assert seen.count(b":1:large") == 1
