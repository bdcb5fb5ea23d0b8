"""The straight path of a cluster beside its general one."""

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.crc import key_slot
from redis.retry import Retry

from django_entra_redis.cache import EntraRedisClusterCache
from django_entra_redis.clients.straight import GeneralPath
from django_entra_redis.clients.straight_cluster import ClusterPath
from django_entra_redis.connections import registry
from django_entra_redis.connections.exchanger import Exchanger
from django_entra_redis.exceptions import ClusterUnavailableError, UncertainResultError
from emulator import Emulator
from tests.clients.test_cluster import NAMES, use
from tests.clients.test_straight import MISSING, OPERATIONS, VALUES, general, outcome
from tests.support.peers import Peer, PeerHost

OK = b"+OK\r\n"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Leave no connection."""
    yield
    registry.reset()


@pytest.fixture
def cache(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a cache on the module's cluster, connected to each node."""
    with use(cluster, monkeypatch) as made:
        made.set_many(dict.fromkeys(NAMES, 1))
        for name in NAMES:
            made.incr(name)  # Each node knows the script.
        yield made


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the commands that go along the straight path from now on."""
    sent: list[bytes] = []
    exchange = Exchanger.exchange

    def note(self: Exchanger, packed: bytes, count: int = 0) -> Any:
        sent.append(packed)
        return exchange(self, packed, count)

    monkeypatch.setattr(Exchanger, "exchange", note)
    return sent


def counted_in_general(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the commands that go along the general path from now on."""
    sent: list[bytes] = []
    send = Exchanger.send
    send_packed: Any = AbstractConnection.send_packed_command

    def note(self: Exchanger, packed: bytes) -> None:
        sent.append(packed)
        send(self, packed)

    def note_packed(self: Any, packed: Any, *args: Any, **kwargs: Any) -> None:
        sent.append(b"".join(packed))
        send_packed(self, packed, *args, **kwargs)

    monkeypatch.setattr(Exchanger, "send", note)
    monkeypatch.setattr(AbstractConnection, "send_packed_command", note_packed)
    return sent


@pytest.mark.parametrize("name", OPERATIONS)
def test_both_paths(cache: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In each state of the key: the same bytes, the same answer, the same key after."""
    other = general(EntraRedisClusterCache(cache._servers, cache._params))
    straight, wide = counted(monkeypatch), counted_in_general(monkeypatch)
    for state in (MISSING, *VALUES.values()):
        found = []
        for way in (cache, other):
            cache.delete_many([*NAMES, "key"])
            if state is not MISSING:
                cache.set("key", state, 100)
            straight.clear()
            wide.clear()
            said = outcome(OPERATIONS[name], way)
            sent = sorted([*straight, *wide])
            found.append((said, sent, cache.get("key"), cache.has_key("key")))
        assert found[0] == found[1]


def test_it_is_taken(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of these go along it, whatever node has the key."""
    sent = counted(monkeypatch)
    for key in (*NAMES[:10], "{tag}a", "{tag}b", "schlüssel"):
        cache.set(key, 1)
        sent.clear()
        assert cache.get(key) == 1
        assert cache.incr(key) == 2
        assert not cache.add(key, 1)
        assert cache.touch(key, 5)
        assert cache.has_key(key)
        assert cache.ttl(key) in (4, 5)
        assert cache.delete(key)
        assert len(sent) == 7


def test_who_takes_it(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command and a reply are not enough for takes the general path."""
    sent = counted(monkeypatch)
    own: list[dict[str, Any]] = [
        {"ignore_exceptions": True},
        {"protocol": 3},
        {"health_check_interval": 5},
    ]
    for options in own:
        with use(cluster, monkeypatch, **options) as cache:
            for _ in range(2):
                cache.set("key", "value")
                assert cache.get("key") == "value"
    assert sent == []
    with use(cluster, monkeypatch) as cache:
        assert type(cache._cache.single_key) is ClusterPath
        client = type("Own", (type(cache._cache),), {})(cache._cache.options)
        assert type(client.single_key) is GeneralPath


def test_redirected(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has the key no more says where it is; that is followed, once."""
    topology = cache.get_topology()
    right = list(topology.slots)
    first = next(iter(topology.primaries.values()))
    topology.slots[:] = [first] * len(right)
    monkeypatch.setattr(topology, "refresh", lambda: None)
    for key in NAMES[:20]:
        cache.set(key, key)
    assert [cache.get(key) for key in NAMES[:20]] == NAMES[:20]
    assert topology.slots != [first] * len(right)
    sent = counted_in_general(monkeypatch)
    assert [cache.get(key) for key in NAMES[:20]] == NAMES[:20]
    assert sent == []


def test_a_slot_without_a_node(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for the general path to say so."""
    topology = cache.get_topology()
    monkeypatch.setattr(topology, "slots", [None] * len(topology.slots))
    monkeypatch.setattr(topology, "refresh", lambda: None)
    monkeypatch.setattr(topology, "catch_up", lambda: None)
    with pytest.raises(ClusterUnavailableError, match="No node"):
        cache.get(NAMES[0])
    with pytest.raises(ClusterUnavailableError, match="No node"):
        cache.get_many(NAMES)


def test_a_connection_that_breaks() -> None:
    """What must not be carried out twice is not; all else is asked again."""
    seen: list[bytes] = []
    breaking: set[bytes] = set()

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] == b"CLUSTER":
            node = b"*3\r\n$0\r\n\r\n:%d\r\n$2\r\nid\r\n" % host.port
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n" + node
        seen.append(command[0])
        if command[0] in breaking:
            breaking.remove(command[0])
            peer.transport.close()
            return None
        return {b"GET": b"$1\r\n5\r\n", b"EVALSHA": b":6\r\n"}.get(command[0], OK)

    host = PeerHost(answer)

    def work() -> None:
        location = f"redis://127.0.0.1:{host.port}"
        cache = EntraRedisClusterCache(location, {"OPTIONS": {"identity": None}})
        assert (cache.get("key"), cache.incr("key")) == (5, 6)
        seen.clear()
        breaking.add(b"GET")
        assert cache.get("key") == 5
        assert seen.count(b"GET") == 2
        breaking.add(b"EVALSHA")
        with pytest.raises(UncertainResultError, match="EVALSHA"):
            cache.incr("key")
        assert seen.count(b"EVALSHA") == 1

    async def main() -> None:
        async with host:
            await asyncio.to_thread(work)

    asyncio.run(main())
    registry.reset()


def test_a_node_that_does_not_answer() -> None:
    """The outage is its own, also if the key's slot has gone to another node by the
    time that the request's failure is noted."""
    silent, well = (PeerHost(lambda peer, command: answer(command)) for _ in range(2))
    quiet: set[bytes] = set()

    def answer(command: list[bytes]) -> bytes | None:
        if command[0] == b"CLUSTER":
            node = b"*3\r\n:%d\r\n:%d\r\n*3\r\n$0\r\n\r\n:%d\r\n$%d\r\n%b\r\n"
            return b"*2\r\n" + b"".join(
                node % (*slots, host.port, len(name), name)
                for slots, host, name in (
                    ((0, 8191), well, b"well"),
                    ((8192, 16383), silent, b"silent"),
                )
            )
        return None if command[0] in quiet else b"$1\r\n5\r\n"

    def work() -> None:
        location = f"redis://127.0.0.1:{silent.port}"
        options = {"identity": None, "socket_timeout": 2.0}
        cache = EntraRedisClusterCache(location, {"OPTIONS": options})
        client, topology = cache._cache, cache.get_topology()
        assert cache.get("discovered") == 5
        slots: Any = topology.slots
        other, asked = slots[0], slots[-1]
        keys = (cache.make_key(name) for name in NAMES)
        key = next(key for key in keys if topology.endpoint_of(key) is asked)
        assert client.single_key.get(key, None) == 5
        quiet.update((b"GET", b"PING"))
        resume = client.resume

        def resume_later(*args: Any) -> Any:
            slots[key_slot(key.encode())] = other
            return resume(*args)

        with (
            mock.patch.object(client, "resume", resume_later),
            pytest.raises(redis.TimeoutError),
        ):
            client.single_key.get(key, None)
        assert (asked.outages.any, other.outages.any) == (True, False)

    async def main() -> None:
        async with silent, well:
            await asyncio.to_thread(work)

    asyncio.run(main())
    registry.reset()


@pytest.mark.parametrize("refusal", [b"NOAUTH Not now.", b"READONLY I am a replica."])
def test_a_connection_that_a_batch_leaves(refusal: bytes) -> None:
    """A batch leaves it, as any other request does: its keys are asked for on another,
    without a retry."""
    outdated: set[Peer] = set()
    seen: set[Peer] = set()

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] == b"CLUSTER":
            node = b"*3\r\n$0\r\n\r\n:%d\r\n$2\r\nid\r\n" % host.port
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n" + node
        seen.add(peer)
        if command[0] == b"SET" and peer in outdated:
            return b"-%b\r\n" % refusal
        return OK

    host = PeerHost(answer)

    def work() -> None:
        location = f"redis://127.0.0.1:{host.port}"
        options = {"identity": None, "retry": Retry(NoBackoff(), 0)}
        cache = EntraRedisClusterCache(location, {"OPTIONS": options})
        assert cache.set_many({"a": 5, "b": 5}) == []
        outdated.update(seen)
        assert cache.set_many({"a": 5, "b": 5}) == []

    async def main() -> None:
        async with host:
            await asyncio.to_thread(work)

    asyncio.run(main())
    registry.reset()
