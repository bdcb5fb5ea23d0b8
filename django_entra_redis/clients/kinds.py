"""The choice of client classes by a cache's settings."""

from typing import Any

from ..conf.options import CacheOptions


def client_kinds(options: CacheOptions, *, clustered: bool) -> tuple[Any, Any]:
    """Return the class of a cache's client, and that of its asynchronous client.

    Only these two are imported, which keeps the start of a process short.

    Parameters:
        options: the cache's settings.
        clustered: whether the cache is on a Redis Cluster.
    """
    copies = options.client_side_cache is not None
    if copies and clustered:
        from .client_side_cluster import CopyingAsyncClusterClient, CopyingClusterClient

        return CopyingClusterClient, CopyingAsyncClusterClient
    if copies:
        from .client_side_cache import CopyingAsyncClient, CopyingCacheClient

        return CopyingCacheClient, CopyingAsyncClient
    if clustered:
        from .cluster import AsyncClusterClient, ClusterClient

        return ClusterClient, AsyncClusterClient
    from .asynchronous import AsyncCacheClient
    from .sync import CacheClient

    return CacheClient, AsyncCacheClient
