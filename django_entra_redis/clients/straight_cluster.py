"""The straight path of a cluster: operations on one key, at the node that has it.

See :mod:`.straight`. A redirection, like any other error, is the general path's to
follow.
"""

from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from typing import Any

from redis.crc import key_slot

from ..commands.replies import NOTHING, Parse, Types
from ..commands.resp import SLOTS
from ..connections.idle_exchange import MISSED, Exchange
from .straight import ResumingDriver, StraightPath
from .topology import Topology


class ClusterPath(StraightPath):
    """Operations on one key of a cluster; those on several take the general path.

    Parameters:
        client: the client that carries out the operations which fall back.
        topology: the nodes of the cluster.
    """

    def __init__(self, client: ResumingDriver, topology: Topology) -> None:
        exchange = make_cluster_exchange(topology)
        super().__init__(client, exchange, exchange)

    def get_many(self, keys: Sequence[str], names: Sequence[Any]) -> dict[Any, Any]:
        """Return the values of the keys that are there, by the keys' names."""
        return self._client.run(self._operations.get_many, keys, names)

    def set_many(
        self, keys: Sequence[str], data: Mapping[Any, Any], timeout: int | None
    ) -> list[Any]:
        """Set several keys; return the names of those that Redis refused."""
        return self._client.run(self._operations.set_many, keys, data, timeout)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete several keys."""
        self._client.run(self._operations.delete_many, keys)


def make_cluster_exchange(topology: Topology) -> Exchange:
    """Return a function that exchanges commands at the node which has their key."""
    outages = topology.outages
    last = SLOTS - 1

    def exchange(key: str, packed: bytes, parse: Parse, plain: Types = NOTHING) -> Any:
        """See :func:`~..connections.idle_exchange.make_exchange`."""
        slots = topology.slots
        # The general path discovers the nodes, and decides who does so in an outage.
        if slots is None or outages.any:
            return MISSED
        name = key.encode()
        # key_slot() is called for a key that may have a hash tag alone: of any other it
        # computes the same, more slowly.
        endpoint = slots[key_slot(name) if b"{" in name else crc_hqx(name, 0) & last]
        if endpoint is None or endpoint.exchange is None:
            return MISSED
        return endpoint.exchange(key, packed, parse, plain)

    return exchange
