"""The topology of a cluster: which node has which key, for all caches of a process.

redis-py's ``NodesManager`` does the discovery (``RedisCluster`` itself would first send
COMMAND). A background thread has it look anew after a redirection or a lost node, at
most once per ``PAUSE``, so that nobody waits for it whose node is where it was.
"""

from collections.abc import Callable, Iterable
from typing import Any

from redis.cluster import (
    PRIMARY,
    REPLICA,
    NodesManager,
    RedisCluster,
)
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import MovedError, RedisClusterException

from .._fork import Order, register
from ..conf.options import CacheOptions
from ..connections.endpoint import Endpoint
from ..connections.registry import share
from ..exceptions import ClusterUnavailableError
from .complaints import explain
from .node_pools import NodePools
from .single_flight import Flight

#: Seconds between two looks at the topology at least, however many redirections or
#: failures ask for one.
PAUSE = 0.1
#: Seconds that a command which has failed waits for a look before it is tried again.
PATIENCE = 1.0


class Topology:
    """The nodes of a cluster.

    Parameters:
        options: what the cache's settings ask for.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.nodes = NodePools(options)
        self._manager: Any = None
        self._client: Any = None
        # By slot; None before the first look. Replaced as a whole, but for the slots
        # that redirections tell of: readers need no lock.
        self._slots: list[Endpoint | None] | None = None
        self.replicas = 0
        #: The endpoints of all primaries, by address.
        self.primaries: dict[str, Endpoint] = {}
        # And of all nodes.
        self._all: dict[str, Endpoint] = {}
        self._flight: Flight[None] = Flight(self._look, pause=PAUSE)
        register(self, Order.CONNECTIONS)

    # -- which node ------------------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether there has been a look at it."""
        return self._slots is not None

    def endpoint_of(self, key: str | bytes) -> Endpoint:
        """Return the endpoint of the primary that has a key.

        Raises:
            ClusterUnavailableError: none has it, or there has not been a look.
        """
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        endpoint = self._slots[slot] if self._slots is not None else None
        if endpoint is None:
            self.refresh()
            raise ClusterUnavailableError(f"No node of the cluster serves slot {slot}.")
        return endpoint

    def endpoint_at(self, address: str) -> Endpoint:
        """Return the endpoint of a node: a SCAN goes on where a primary is none any
        more.

        Raises:
            ClusterUnavailableError: there is none of that address any more.
        """
        try:
            return self._all[address]
        except KeyError:
            raise ClusterUnavailableError(
                f"The cluster has no node {address} any more."
            ) from None

    def parts(self, keys: Iterable[str | bytes]) -> dict[Endpoint, list[int]]:
        """Return the endpoints that have some keys, each with the places of its keys.

        In one order for all: threads that check connections out of several pools do
        not wait for each other.

        Raises:
            ClusterUnavailableError: none has one of them.
        """
        found: dict[Endpoint, list[int]] = {}
        for place, key in enumerate(keys):
            found.setdefault(self.endpoint_of(key), []).append(place)
        return dict(sorted(found.items(), key=lambda item: id(item[0])))

    def follow(self, redirect: Any, asked: Endpoint) -> Endpoint:
        """Return the endpoint of the node that a node redirects to.

        Parameters:
            redirect: the error reply.
            asked: the endpoint of the node that gave it.

        Raises:
            ConfigurationError: a token would go there in plain text.
        """
        # Without a host it is the same one, on another port.
        host = redirect.host or asked.host
        endpoint = self.nodes.at(*self.nodes.remap(host, redirect.port))
        if isinstance(redirect, MovedError):
            assert self._slots is not None
            self._slots[redirect.slot_id] = endpoint
            # It is seldom the only one that has moved.
            self.refresh()
        return endpoint

    # -- looking at it ---------------------------------------------------------------

    @property
    def client(self) -> Any:
        """redis-py's client for the cluster, on the same pools.

        Raises:
            What :meth:`ensure` does.
        """
        self.ensure()
        # redis-py's own, before its version 6, forgets one node after the other in an
        # outage, and then does not find any again.
        if self._client is None or not self._client.nodes_manager.startup_nodes:
            # Two threads may make one each, and that is all right.
            self._client = self._attempt(self._make_client)
        return self._client

    def refresh(self) -> None:
        """Have somebody look at it, soon; wait for nothing."""
        self._flight.hint()

    def catch_up(self) -> None:
        """Wait until somebody has looked at it, but not for long."""
        self._flight.catch_up(PATIENCE)

    async def acatch_up(self) -> None:
        """Do as :meth:`catch_up` does, without blocking the event loop."""
        await self._flight.acatch_up(PATIENCE)

    def ensure(self) -> None:
        """Return when there has been a look at it.

        Raises:
            TokenError, TokenRefusedError: nobody is let in.
            ClusterUnavailableError, ConnectionError: no node can be asked.
            WrongBackendError: it is no cluster.
            ConfigurationError: a token would go to a node in plain text.
        """
        if self._slots is None:
            self.look()

    def look(self) -> None:
        """Have somebody look at it; wait for that.

        Raises:
            What :meth:`ensure` does.
        """
        self._flight.join()

    async def alook(self) -> None:
        """Do as :meth:`look` does, without blocking the event loop."""
        await self._flight.ajoin()

    def disconnect(self) -> None:
        """Close all connections."""
        self.nodes.disconnect()

    def after_fork_in_child(self) -> None:
        """Go on in a child process, in which no look is under way."""
        self._flight.reset()
        # They may have been locked at the fork, and take their locks to be collected.
        _inherited.append((self._manager, self._client))
        self._manager = self._client = None

    def _make_client(self) -> Any:
        make: Any = _Client
        return make(
            url=self.nodes.url,
            startup_nodes=self.nodes.startup_nodes()[1:],
            connection_pool_class=self.nodes,
            **self.nodes.cluster_options,
        )

    def _look(self) -> None:
        self._manager = self._attempt(self._managed)

    def _attempt(self, make: Callable[[], Any]) -> Any:
        """Make something of redis-py's that looks at the cluster."""
        try:
            return make()
        except Exception as error:
            failure = explain(error)
        raise failure.with_traceback(None)

    def _managed(self) -> Any:
        """Return redis-py's manager after it has looked at the topology."""
        manager = self._manager
        if manager is not None:
            try:
                manager.initialize()
            # Also an IndexError, where they tell of no node.
            except Exception:
                manager = None  # All nodes that it knew are gone.
        if manager is None:
            make: Any = NodesManager
            manager = make(
                startup_nodes=self.nodes.startup_nodes(),
                from_url=True,
                connection_pool_class=self.nodes,
                **self.nodes.cluster_options,
            )
        self._take(manager)
        return manager

    def _take(self, manager: Any) -> None:
        slots: list[Endpoint | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._all = {
            node.name: self.nodes.at(node.host, node.port)
            for node in manager.nodes_cache.values()
        }
        for slot, nodes in manager.slots_cache.items():
            slots[slot] = self._all[nodes[0].name]
        self.primaries = {
            node.name: self._all[node.name]
            for node in manager.get_nodes_by_server_type(PRIMARY)
        }
        self.replicas = len(manager.get_nodes_by_server_type(REPLICA))
        self._slots = slots
        self.nodes.keep(manager.nodes_cache.values())


class _Client(RedisCluster):
    """redis-py's client, whose errors are ``RedisError`` also in an outage."""

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Carry out a command."""
        try:
            return super().execute_command(*args, **kwargs)  # type: ignore[no-untyped-call]
        except RedisClusterException as error:
            outage = error.__cause__ or not self.nodes_manager.startup_nodes
            # Else it is a mistake of the caller's.
            failure = explain(error) if outage else error
        raise failure.with_traceback(None)


_inherited: list[object] = []


def get_topology(options: CacheOptions) -> Topology:
    """Return the process's topology for a cache's options."""
    found: Topology = share(
        "cluster", options.servers, options, lambda: Topology(options)
    )
    return found
