"""Redis for Django on Azure, with Microsoft Entra ID tokens in place of access keys."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis

__version__ = "0.1.0"


def get_redis_connection(alias: str = "default", write: bool = True) -> "Redis":
    """Return redis-py's client on a cache's own connections, as django-redis does.

    Parameters:
        alias: entry of ``CACHES``.
        write: whether it must be the server that is written to.

    Raises:
        NotImplementedError: the cache is another backend's.
    """
    # A package's __init__ is imported with each of its modules: nothing may come
    # with it.
    from django.core.cache import caches

    get_client = getattr(caches[alias], "get_client", None)
    if get_client is None:
        raise NotImplementedError(
            f"CACHES[{alias!r}] has no Redis behind it: its BACKEND should be "
            "'django_entra_redis.cache.EntraRedisCache'."
        )
    client: Redis = get_client(write=write)
    return client
