"""Clients of caches with ``OPTIONS["client_side_cache"]`` on a Redis Cluster."""

from collections.abc import Sequence

from ..conf.options import CacheOptions
from ..connections.copies import Copy
from ..connections.endpoint import Endpoint
from ..connections.event_loops import LoopConnections
from ..connections.tracking import Values
from ..exceptions import ClusterUnavailableError
from .client_side_cache import (
    CopyingAsyncClient,
    CopyingClient,
    Keeps,
)
from .cluster import AsyncClusterClient, ClusterClient
from .local_copies import local_copies


class CopyingClusterClient(CopyingClient, ClusterClient):
    """The synchronous client of ``EntraRedisClusterCache`` with copies.

    Each primary has a tracking connection of its own. A copy is used only as long as
    its key lies on the primary that it came from.

    Parameters:
        options: the cache's settings.
        keeps: returns whether copies are kept of a key.
    """

    def __init__(self, options: CacheOptions, keeps: Keeps) -> None:
        super().__init__(options)
        self.keeps = keeps
        topology = self.topology
        names = [node.name for node in topology.nodes.startup]
        self.local = local_copies(topology, options, names, topology.serving)

    def find(self, key: str) -> Copy | None:
        """Return the copy of a value, if there is one that may be used."""
        if self.local.copies.owner(key) is None:
            return None
        try:
            endpoint = self.topology.endpoint_of(key)
        except ClusterUnavailableError:
            return None
        return self.local.find_at(key, endpoint)

    def fetch_directly(self, keys: Sequence[str]) -> Values:
        """See :meth:`CopyingClient.fetch_directly`."""
        if not self.topology.known:
            return None  # Without copies, the client discovers the topology.
        try:
            return super().fetch_directly(keys)
        except ClusterUnavailableError:
            return None

    def parts_of(self, keys: Sequence[str]) -> dict[Endpoint, list[int]]:
        """Return the primaries that have keys, each with the keys' indexes."""
        return self.topology.parts(keys)


class CopyingAsyncClusterClient(CopyingAsyncClient, AsyncClusterClient):
    """The asynchronous client of ``EntraRedisClusterCache`` with copies.

    Parameters:
        client: the synchronous client of the same cache.
    """

    client: CopyingClusterClient  # pyright: ignore[reportIncompatibleVariableOverride] - it is set once, by __init__

    async def fetch_natively(
        self, connections: LoopConnections, keys: Sequence[str]
    ) -> Values:
        """See :meth:`CopyingAsyncClient.fetch_natively`."""
        if not self.client.topology.known:
            return None
        try:
            return await super().fetch_natively(connections, keys)
        except ClusterUnavailableError:
            return None
