"""The pools to the nodes of a cluster.

They are like those to a single server: connections authenticate at checkout, whenever
their node has joined.
"""

import threading
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from redis import cluster
from redis.cluster import ClusterNode

from .._errors import ConfigurationError, Problem, hidden
from .._fork import ForkSafeLock
from ..commands.slots import Address
from ..conf.location import read_url, transport
from ..conf.options import CacheOptions
from ..connections.arguments import CLUSTER_OPTIONS
from ..connections.defaults import with_defaults
from ..connections.endpoint import Endpoint
from ..connections.pool import ConnectionPool, pool_settings
from ..connections.tls import SharedTls
from .lending import LentRetry, lending
from .retry import make_policy

# Before redis-py 6, its parser knows redirections in its cluster client alone.
_parser = getattr(cluster, "ClusterParser", None)
_PARSER: dict[str, Any] = {"parser_class": _parser} if _parser else {}


class NodePool(ConnectionPool):
    """A pool to one node of a cluster.

    At each look at the topology redis-py closes the connections of the node that it
    has asked, lest they stay in the READONLY mode, in which none of ours ever is.
    They would cost a TLS handshake each, and be closed from another thread.
    """

    def reset(self) -> None:
        """Forget all connections, as a child process must."""
        super().reset()
        # redis-py 8 takes this one as it looks, maybe at the moment of a fork.
        self._lock = threading.RLock()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Do nothing."""

    def disconnect_free_connections(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def update_active_connections_for_reconnect(
        self, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing."""


class NodePools:
    """A pool for each node, made when it is first asked for.

    Parameters:
        options: what the cache's settings ask for.
    """

    def __init__(self, options: CacheOptions) -> None:
        locations = [read_url(server) for server in options.servers]
        read = [location for location in locations if location is not None]
        self._location = read[0]
        self.url = self._location.url
        connection = dict(with_defaults(self.url, options).connection)
        self.cluster_options: dict[str, Any] = {
            # A part of the cluster that is down leaves the rest as it is.
            "require_full_coverage": False,
            # Else redis-py 8 would have the pools' connections speak RESP 3.
            "protocol": connection["protocol"],
        }
        self.cluster_options |= {
            key: connection.pop(key) for key in CLUSTER_OPTIONS if key in connection
        }
        self._options = replace(options, connection=connection)
        self._retry = LentRetry(make_policy(options.connection))
        self._startup = [(location.host, location.port) for location in read]
        names = [host for host, _ in self._startup]
        self._tls = SharedTls(names, options.node_domain)
        self._endpoints: dict[Address, Endpoint] = {}
        # Guards the dictionary.
        self._lock = ForkSafeLock()

    def __call__(self, *, host: str, port: int, **ignored: Any) -> Any:
        """Return a node's pool, as redis-py makes one: it drops options of ours."""
        return self.at(host, port).pool

    def lend(self, **kwargs: Any) -> Any:
        """Do the same for redis-py's client."""
        return lending(self(**kwargs), self._retry)

    def at(self, host: str, port: int) -> Endpoint:
        """Return the endpoint of the node with that address.

        Raises:
            ConfigurationError: a token would go there in plain text.
        """
        with self._lock.current:
            endpoint = self._endpoints.get((host, port))
            if endpoint is None:
                endpoint = Endpoint(hidden(lambda: self._make_pool(host, port)))
                self._endpoints[host, port] = endpoint
            return endpoint

    @property
    def routes(self) -> Mapping[str, str]:
        """By the hosts that nodes announce, those that they have been reached at."""
        return self._tls.routes

    @property
    def first(self) -> Endpoint:
        """The endpoint of the server that ``LOCATION`` names first."""
        return self.at(*self._startup[0])

    @property
    def startup(self) -> list[Endpoint]:
        """The endpoints of the servers in ``LOCATION``."""
        return [self.at(*address) for address in self._startup]

    def startup_nodes(self) -> list[Any]:
        """Return the servers in ``LOCATION`` as redis-py has them."""
        return [ClusterNode(*address) for address in self._startup]

    def remap(self, host: str, port: int) -> Address:
        """Return where an address that a node announces is to be reached."""
        remap = self.cluster_options.get("address_remap")
        found: Address = remap((host, port)) if remap else (host, port)
        return found

    def keep(self, nodes: Set[Address]) -> None:
        """Retire the endpoints of all but these nodes and the startup nodes."""
        with self._lock.current:
            gone = self._endpoints.keys() - nodes - set(self._startup)
            endpoints = [self._endpoints.pop(address) for address in gone]
        for endpoint in endpoints:
            endpoint.retire()

    def disconnect(self) -> None:
        """Close all connections."""
        for endpoint in list(self._endpoints.values()):
            endpoint.disconnect()

    def _make_pool(self, host: str, port: int) -> Any:
        pool_class, kwargs = pool_settings(self.url, self._options, NodePool)
        scheme = transport(self._location.scheme, kwargs)
        if self._options.exposes_token(scheme, host):
            raise ConfigurationError([_in_plain_text(host, port)])
        if "tls" in kwargs:
            kwargs["tls"] = self._tls
        url = self._location.at(host, port)
        return pool_class.from_url(url, **{**_PARSER, **kwargs})


def _in_plain_text(host: str, port: int) -> Problem:
    """Return what is wrong where LOCATION leads to a node further away than itself."""
    return Problem(
        "E022",
        "CACHES[...]['LOCATION']",
        f"a token would cross the network in plain text to {host}:{port}, which the "
        "cluster announces as a node's address.",
        "It should start with rediss://; or OPTIONS['address_remap'] should lead to "
        "where the node is reached from here; or, where the network protects the "
        "token, set OPTIONS['allow_plaintext_token'] to True.",
    )
