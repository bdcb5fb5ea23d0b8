"""redis-py's own asynchronous client of a cluster, on a cache's settings."""

import inspect
from typing import Any, Self

from redis.asyncio.cluster import ClusterNode, RedisCluster

from ..commands.slots import read_slots
from ..connections.lent_connection import LentConnection
from .lending import athrough_expiries, own_provider
from .loop_clients import make_retry, options_of
from .topology import Topology, discovery_error, no_slots

#: Whether a node's connections come back to it after an error, too. In redis-py 5 they
#: do not, and would use up a maximum.
_COUNTS = hasattr(ClusterNode, "release")


class _Client(RedisCluster):
    """redis-py's client, whose discovery raises the package's own errors.

    A token's expiry begins the count of its retries anew.
    """

    #: The provider of the tokens that its connections authenticate with, if any.
    provider: Any = None

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Carry out a command."""
        execute = super().execute_command
        return await athrough_expiries(self.provider, lambda: execute(*args, **kwargs))

    async def initialize(self, *args: Any, **kwargs: Any) -> Self:
        """Discover the nodes, unless they are known."""
        try:
            await super().initialize(*args, **kwargs)
        except Exception as error:
            failure = discovery_error(error)
        else:
            return self
        try:
            raise failure.with_traceback(None)
        finally:
            del failure


def checked_slots(reply: Any, **ignored: Any) -> Any:
    """Return the reply to CLUSTER SLOTS as it is, for a client of redis-py's.

    Such a client believes the reply: it would loop over a range that has no end.

    Parameters:
        reply: the reply.
        ignored: further arguments of redis-py's callbacks.

    Raises:
        InvalidReplyError: it does not have the form of such a reply.
        ClusterUnavailableError: no node has any slot.
    """
    # Only whether there is a host counts here, not which.
    if not read_slots(reply, asked=""):
        raise no_slots()
    return reply


def make_cluster_client(topology: Topology) -> Any:
    """Return a client of redis-py's for the running loop, by a cluster's options.

    Nodes are connected to as the cache's own connections do: their certificates must
    be for the host in ``LOCATION``, and no token goes to a far node in plain text.

    Parameters:
        topology: the cluster's topology.
    """
    nodes, first = topology.nodes, topology.nodes.first
    # The servers in LOCATION are always asked first, as the cache does.
    options: dict[str, Any] = {"dynamic_startup_nodes": False, **nodes.cluster_options}
    options |= options_of(first, RedisCluster)
    if _COUNTS:
        options["max_connections"] = first.pool.max_connections
    known = inspect.signature(RedisCluster.__init__).parameters.keys()
    options = {name: value for name, value in options.items() if name in known}
    provider = own_provider(first.pool)
    unwanted = {"host", "port"} | ({"credential_provider"} if provider else set())
    for name in unwanted & options.keys():
        del options[name]

    def connect_to(*, host: str, port: int, **options: Any) -> LentConnection:
        target = nodes.at(host, port).target
        return LentConnection(
            host=host,
            port=port,
            target=target,
            provider=provider,
            retry_subscribed=make_retry(provider),
            **options,
        )

    startup = [ClusterNode(one.host, one.port) for one in nodes.startup_nodes()]
    client = _Client(startup_nodes=startup, retry=make_retry(provider), **options)
    # redis-py loops over whatever range a node replies; all nodes share this callback.
    check: Any = checked_slots
    client.set_response_callback("CLUSTER SLOTS", check)
    client.provider = provider
    kind: Any = connect_to
    # redis-py has no argument for the class of the connections.
    client.connection_kwargs["connection_class"] = kind
    for node in client.nodes_manager.startup_nodes.values():
        node.connection_class = kind
    return client
