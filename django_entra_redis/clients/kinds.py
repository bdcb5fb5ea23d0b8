"""The clients that a cache's settings ask for."""

from typing import Any

from ..conf.options import CacheOptions


def client_kinds(options: CacheOptions, *, clustered: bool) -> tuple[Any, Any]:
    """Return the class of a cache's client, and that of its asynchronous client.

    Only what is asked for is imported: that of others takes its time.

    Parameters:
        options: what the cache's settings ask for.
        clustered: whether its keys lie on several nodes.
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
