"""Which node of a cluster has which key, for all caches of a process.

redis-py's ``NodesManager`` finds that out, on which its ``RedisCluster`` stands (which
itself asks for all commands that the server knows first). It looks anew in a thread of
its own, so that nobody waits for it whose node is where it was: at the first sign that
nodes have moved, but not all the time.

Nodes are reached through pools like those to a single server: their connections
authenticate at checkout, whenever the node has joined.
"""

import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from redis import cluster
from redis.cluster import (
    PRIMARY,
    REPLICA,
    ClusterNode,
    NodesManager,
    RedisCluster,
)
from redis.connection import parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    MovedError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from .connections import SharedTls
from .defaults import with_defaults
from .exceptions import ClusterUnavailableError, WrongBackendError
from .flights import Flight
from .options import CacheOptions
from .pools import NodePool, make_node_pool
from .registry import share

#: Seconds between two looks at the topology at least, however many redirections or
#: failures ask for one.
PAUSE = 0.1

#: Options of ``RedisCluster``, which no connection knows.
CLUSTER_OPTIONS = ("address_remap", "dynamic_startup_nodes", "require_full_coverage")
# Before redis-py 6, its parser knows redirections in its cluster client alone.
_PARSER: dict[str, Any] = (
    {"parser_class": cluster.ClusterParser} if hasattr(cluster, "ClusterParser") else {}
)

Address = tuple[str, int]


class Topology:
    """The nodes of a cluster.

    Parameters:
        options: what the cache's settings ask for.
    """

    def __init__(self, options: CacheOptions) -> None:
        connection = with_defaults(options.servers[0], options).connection
        self._options = replace(
            options,
            connection={
                key: value
                for key, value in connection.items()
                if key not in CLUSTER_OPTIONS
            },
        )
        self._cluster_options = {
            key: connection[key] for key in CLUSTER_OPTIONS if key in connection
        }
        self._startup = [_address(server) for server in options.servers]
        self._tls = SharedTls(self._startup[0][0])
        self._manager: Any = None
        self._client: Any = None
        # By slot; None before the first look. Replaced as a whole, but for the slots
        # that redirections tell of: readers need no lock.
        self._slots: list[Any] | None = None
        self.replicas = 0
        #: The pools of all primaries, by address.
        self.primaries: dict[str, Any] = {}
        self._pools: dict[Address, Any] = {}
        # Guards the pools. Reentrant for the sake of signal handlers that use the
        # cache.
        self._lock = threading.RLock()
        self._flight = Flight(self._look, pause=PAUSE)
        _topologies.add(self)

    # -- which node ------------------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether there has been a look at it."""
        return self._slots is not None

    def pool_of(self, key: str | bytes) -> Any:
        """Return the pool of the primary that has a key.

        Raises:
            ClusterUnavailableError: none has it, or there has not been a look.
        """
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        pool = self._slots[slot] if self._slots is not None else None
        if pool is None:
            self.refresh()
            raise ClusterUnavailableError(f"No node of the cluster serves slot {slot}.")
        return pool

    def pool_at(self, address: str) -> Any:
        """Return the pool of a primary.

        Raises:
            ClusterUnavailableError: there is none of that address any more.
        """
        try:
            return self.primaries[address]
        except KeyError:
            raise ClusterUnavailableError(
                f"The cluster's node {address} is none of its primaries any more."
            ) from None

    def parts(self, keys: Iterable[str | bytes]) -> dict[Any, list[int]]:
        """Return the pools that have some keys, each with the places of its keys.

        In one order for all: threads that check connections out of several pools do
        not wait for each other.

        Raises:
            ClusterUnavailableError: none has one of them.
        """
        found: dict[Any, list[int]] = {}
        for place, key in enumerate(keys):
            found.setdefault(self.pool_of(key), []).append(place)
        return dict(sorted(found.items(), key=lambda item: id(item[0])))

    def follow(self, redirect: Any, asked: Any) -> Any:
        """Return the pool of the node that a node redirects to.

        Parameters:
            redirect: the error reply.
            asked: the pool of the node that gave it.
        """
        # Without a host it is the same one, on another port.
        host = redirect.host or asked.connection_kwargs["host"]
        remap = self._cluster_options.get("address_remap")
        address = (host, redirect.port)
        pool = self._pool(*(remap(address) if remap else address))
        if isinstance(redirect, MovedError):
            if self._slots is not None:
                self._slots[redirect.slot_id] = pool
            # It is seldom the only one that has moved.
            self.refresh()
        return pool

    # -- looking at it ---------------------------------------------------------------

    @property
    def client(self) -> Any:
        """redis-py's client for the cluster, on the same pools.

        Raises:
            What :meth:`ensure` does.
        """
        self.ensure()
        if self._client is None:
            # Two threads may make one each, and that is all right.
            self._client = RedisCluster(
                url=self._options.servers[0],
                startup_nodes=self._startup_nodes()[1:],
                connection_pool_class=self._node_pool,
                **self._cluster_options,
            )
        return self._client

    def refresh(self) -> None:
        """Have somebody look at it, soon; wait for nothing."""
        self._flight.hint()

    def ensure(self) -> None:
        """Return when there has been a look at it.

        Raises:
            TokenError, TokenRefusedError: nobody is let in.
            ClusterUnavailableError, ConnectionError: no node can be asked.
            WrongBackendError: it is no cluster.
        """
        if self._slots is None:
            self._flight.join()

    async def aensure(self) -> None:
        """Do as :meth:`ensure` does, without blocking the event loop."""
        if self._slots is None:
            await self._flight.ajoin()

    def disconnect(self) -> None:
        """Close all connections."""
        for pool in list(self._pools.values()):
            _hang_up(pool)

    def after_fork(self) -> None:
        """Go on in a child process, in which no look is under way."""
        self._lock = threading.RLock()
        self._flight.reset()
        # They may have been locked at the fork, and take their locks to be collected.
        _inherited.append((self._manager, self._client))
        self._manager = self._client = None

    def _look(self) -> None:
        try:
            self._manager = self._managed()
        except Exception as error:
            failure = _explain(error)
        else:
            return
        raise failure

    def _managed(self) -> Any:
        """Return redis-py's manager after it has looked at the topology."""
        manager = self._manager
        if manager is not None:
            try:
                manager.initialize()
            except (RedisError, OSError):
                manager = None  # All nodes that it knew are gone.
        if manager is None:
            manager = NodesManager(
                startup_nodes=self._startup_nodes(),
                from_url=True,
                connection_pool_class=self._node_pool,
                **self._cluster_options,
            )
        self._take(manager)
        return manager

    def _startup_nodes(self) -> list[Any]:
        return [ClusterNode(*address) for address in self._startup]

    def _take(self, manager: Any) -> None:
        slots: list[Any] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for slot, nodes in manager.slots_cache.items():
            slots[slot] = nodes[0].redis_connection.connection_pool
        self.primaries = {
            node.name: node.redis_connection.connection_pool
            for node in manager.get_nodes_by_server_type(PRIMARY)
        }
        self.replicas = len(manager.get_nodes_by_server_type(REPLICA))
        self._slots = slots
        nodes = [*manager.nodes_cache.values(), *self._startup_nodes()]
        live = {(node.host, node.port) for node in nodes}.union(self._startup)
        with self._lock:
            gone = self._pools.keys() - live
            pools = [self._pools.pop(address) for address in gone]
        for pool in pools:
            _hang_up(pool)

    def _node_pool(self, *, host: str, port: int, **ignored: Any) -> Any:
        """Stand in for the class of redis-py's pools.

        It drops the options that it does not know of, and adds its own.
        """
        return self._pool(host, port)

    def _pool(self, host: str, port: int) -> Any:
        with self._lock:
            pool = self._pools.get((host, port))
            if pool is None:
                options = self._options
                pool = make_node_pool(
                    options.servers[0],
                    options,
                    self._tls,
                    host=host,
                    port=port,
                    **_PARSER,
                )
                self._pools[host, port] = pool
            return pool

    @property
    def entrance(self) -> Any:
        """The pool to the server that ``LOCATION`` names."""
        return self._pool(*self._startup[0])


_topologies: WeakSet[Topology] = WeakSet()
_inherited: list[object] = []


def get_topology(options: CacheOptions) -> Topology:
    """Return the process's topology for a cache's options."""
    found: Topology = share(
        "cluster", options.servers, options, lambda: Topology(options)
    )
    return found


def _address(server: str) -> Address:
    url = parse_url(server)
    return url.get("host", "localhost"), int(url.get("port", 6379))


def _hang_up(pool: Any) -> None:
    if isinstance(pool, NodePool):
        pool.hang_up()
    else:
        # redis-py's would close those in use, too, from this thread.
        pool.disconnect(inuse_connections=False)


def _explain(error: Exception) -> Exception:
    """Return what to raise for what redis-py has raised as it looked."""
    cause = error.__cause__ if isinstance(error, RedisClusterException) else None
    error = cause if isinstance(cause, Exception) else error
    if not isinstance(error, RedisClusterException):
        error.__cause__ = error.__context__ = None
        return error
    refusal = error.__context__
    if isinstance(refusal, NoPermissionError):
        return NoPermissionError(
            f"{refusal}. The access policy should allow +cluster|slots, by which "
            "the cluster tells which node has which keys."
        )
    if isinstance(refusal, ResponseError):
        return WrongBackendError(
            f"The server is no node of a cluster that clients see ({refusal}): its "
            "BACKEND should be 'django_entra_redis.cache.EntraRedisCache' "
            "(Enterprise cluster policy, or no cluster)."
        )
    return ClusterUnavailableError(str(error))


def _after_fork_in_child() -> None:
    for topology in list(_topologies):
        topology.after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
