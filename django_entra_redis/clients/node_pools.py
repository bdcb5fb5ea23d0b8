"""The pools to the nodes of a cluster.

They work as the pool to a single server does: a connection authenticates at checkout.
"""

import threading
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from redis import cluster
from redis.cluster import ClusterNode
from redis.connection import parse_url

from .._errors import ConfigurationError, Problem, hidden
from .._fork import ForkSafeLock
from ..commands.addresses import Address, is_host, is_port
from ..conf.location import read_url, transport
from ..conf.options import CacheOptions
from ..connections.arguments import CLUSTER_OPTIONS
from ..connections.defaults import with_defaults
from ..connections.endpoint import Endpoint
from ..connections.idle_exchange import exchanges, make_exchange
from ..connections.pool import ConnectionPool, pool_settings
from ..connections.tls import SharedTls
from ..exceptions import InvalidReplyError
from .cluster_observation import CLUSTER_INSTRUMENTATION
from .lending import LentRetry, lending
from .retry import make_policy

# In redis-py 5, redirections are parsed by the parser of its cluster client alone.
_parser = getattr(cluster, "ClusterParser", None)
_PARSER: dict[str, Any] = {"parser_class": _parser} if _parser else {}


class NodePool(ConnectionPool):
    """A pool to one node of a cluster, whose connections redis-py can't close.

    At each discovery redis-py's client closes the connections of the node that it
    asked, since they may be in READONLY mode. The connections of this package never
    are; to close them would cost a TLS handshake each, and happen in another thread.
    """

    def reset(self) -> None:
        """Forget all connections, as a child process must."""
        super().reset()
        # redis-py 8 holds this lock in a discovery, maybe at the moment of a fork.
        self._lock = threading.RLock()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Do nothing."""

    def disconnect_free_connections(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def update_active_connections_for_reconnect(
        self, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing."""


class Node(Endpoint):
    """A node of a cluster.

    Parameters:
        pool: the pool of connections to it.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__(pool)
        if exchanges(pool, NodePool, _parser):
            self.exchange = make_exchange(self, CLUSTER_INSTRUMENTATION)


class NodePools:
    """A pool for each node, made when it is first asked for.

    Parameters:
        options: the cache's settings.
    """

    def __init__(self, options: CacheOptions) -> None:
        locations = [read_url(server) for server in options.servers]
        read = [location for location in locations if location is not None]
        self._location = read[0]
        self.url = self._location.url
        connection = dict(with_defaults(self.url, options).connection)
        self.cluster_options: dict[str, Any] = {
            # While some slots have no node, the other slots can be used.
            "require_full_coverage": False,
            # Otherwise redis-py 8 would make the pools' connections speak RESP 3.
            "protocol": connection["protocol"],
        }
        self.cluster_options |= {
            key: connection.pop(key) for key in CLUSTER_OPTIONS if key in connection
        }
        self._options = replace(options, connection=connection)
        self._retry = LentRetry(make_policy(options.connection))
        self._startup = [(location.host, location.port) for location in read]
        self._names = [host for host, _ in self._startup]
        self._tls = SharedTls(self._names, options.node_domain)
        self._endpoints: dict[Address, Endpoint] = {}
        # Guards the dictionary of endpoints.
        self._lock = ForkSafeLock()

    def __call__(self, *, host: str, port: int, **ignored: Any) -> Any:
        """Return the pool to a node.

        Parameters:
            host, port: the node's address.
            ignored: redis-py's options, from which it drops some of this package's.
        """
        return self.at(host, port).pool

    def lend(self, **kwargs: Any) -> Any:
        """Return the pool to a node as redis-py's client uses it, with retries."""
        return lending(self(**kwargs), self._retry)

    def at(self, host: str, port: int) -> Endpoint:
        """Return the endpoint of the node with that address.

        Raises:
            InvalidReplyError: no node can have that address.
            ConfigurationError: a token would be sent to the node in plain text.
        """
        # Also for redis-py's own clients, which do not check what nodes announce. The
        # name in LOCATION may have letters that no node's name has.
        if not (is_port(port) and (is_host(host) or host in self._names)):
            raise InvalidReplyError(
                f"No node of a cluster has the address {host!a:.100}, {port!a:.100}."
            )
        with self._lock.current:
            endpoint = self._endpoints.get((host, port))
            if endpoint is None:
                endpoint = Node(hidden(lambda: self._make_pool(host, port)))
                self._endpoints[host, port] = endpoint
            return endpoint

    @property
    def routes(self) -> Mapping[str, str]:
        """The hosts at which nodes were reached, by the hosts that nodes announce."""
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
        """Return the servers in ``LOCATION`` as objects of redis-py."""
        return [ClusterNode(*address) for address in self._startup]

    def remap(self, host: str, port: int) -> Address:
        """Return the address to connect to for one that a node announces."""
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
        # As redis-py's from_url() does; but the address does not become text of a URL,
        # in which it might set any other argument.
        where = {
            "connection_class": kwargs["connection_class"],
            "host": host,
            "port": port,
        }
        return pool_class(**{**_PARSER, **kwargs, **parse_url(self.url), **where})


def _in_plain_text(host: str, port: int) -> Problem:
    """Return the problem of a node to which a token would go without TLS."""
    return Problem(
        "E022",
        "CACHES[...]['LOCATION']",
        f"a token would cross the network in plain text to {host}:{port}, which the "
        "cluster announces as a node's address.",
        "It should start with rediss://; or OPTIONS['address_remap'] should lead to "
        "where the node is reached from here; or, where the network protects the "
        "token, set OPTIONS['allow_plaintext_token'] to True.",
    )
