"""Clients of caches with ``OPTIONS["client_side_cache"]`` on a Redis Cluster."""

from collections.abc import Sequence

from ..conf.options import CacheOptions
from ..connections.copies import Copy
from ..connections.tracking import Tracker
from ..exceptions import ClusterUnavailableError
from .client_side_cache import (
    CopyingAsyncClient,
    CopyingClient,
    Fetched,
    Keeps,
    local_copies,
)
from .cluster import AsyncClusterClient, ClusterClient


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
        self.local = local_copies(self.topology, options)

    def find(self, key: str) -> Copy | None:
        """Return the copy of a value, if there is one that may be used."""
        if self.local.copies.owner(key) is None:
            return None
        try:
            endpoint = self.topology.endpoint_of(key)
        except ClusterUnavailableError:
            return None
        return self.local.find_at(key, endpoint)

    def fetch_directly(self, keys: Sequence[str]) -> Fetched:
        """See :meth:`CopyingClient.fetch_directly`."""
        if not self.topology.known:
            return None  # Without copies, the client discovers the topology.
        try:
            return super().fetch_directly(keys)
        except ClusterUnavailableError:
            return None

    def trackers_of(self, keys: Sequence[str]) -> dict[Tracker, list[int]]:
        """Return the tracking connections to the primaries that have the keys."""
        parts = self.topology.parts(keys)
        return {
            self.local.tracker(endpoint): places for endpoint, places in parts.items()
        }


class CopyingAsyncClusterClient(CopyingAsyncClient, AsyncClusterClient):
    """The asynchronous client of ``EntraRedisClusterCache`` with copies.

    Parameters:
        client: the synchronous client of the same cache.
    """

    client: CopyingClusterClient  # pyright: ignore[reportIncompatibleVariableOverride] - it is set once, by __init__

    async def fetch_natively(self, keys: Sequence[str]) -> Fetched:
        """See :meth:`CopyingAsyncClient.fetch_natively`."""
        if not self.client.topology.known:
            return None
        try:
            return await super().fetch_natively(keys)
        except ClusterUnavailableError:
            return None
