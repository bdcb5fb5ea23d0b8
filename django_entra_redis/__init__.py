"""Redis for Django on Azure, with Microsoft Entra ID tokens in place of access keys."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

__version__ = "0.1.0"


def get_redis_connection(alias: str = "default", write: bool = True) -> "Redis":
    """Return redis-py's client on a cache's own connections, as django-redis does.

    Parameters:
        alias: entry of ``CACHES``.
        write: whether it must be the server that takes the writes.

    Raises:
        NotImplementedError: the cache is another backend's.
    """
    client: Redis = _method(alias, "get_client")(write=write)
    return client


async def aget_redis_connection(
    alias: str = "default", write: bool = True
) -> "AsyncRedis":
    """Return redis-py's asynchronous client on a cache's settings.

    The event loop has one for each server, and closes it in the end. On a cluster it is
    a ``redis.asyncio.RedisCluster``, which knows the nodes.

    Parameters:
        alias: entry of ``CACHES``.
        write: whether it must be the server that takes the writes.

    Raises:
        NotImplementedError: the cache is another backend's.
    """
    client: AsyncRedis = _method(alias, "get_async_client")(write=write)
    # A client of a cluster discovers the nodes; that of one server has nothing to do.
    await client.initialize()
    return client


def _method(alias: str, name: str) -> "Callable[..., Any]":
    # Imported here: the package's __init__ is imported with each of its modules, and
    # should import nothing itself.
    from django.core.cache import caches

    method: Callable[..., Any] | None = getattr(caches[alias], name, None)
    if method is None:
        raise NotImplementedError(
            f"CACHES[{alias!r}] has no Redis behind it: its BACKEND should be "
            "'django_entra_redis.cache.EntraRedisCache'."
        )
    return method
