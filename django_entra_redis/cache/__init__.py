"""The cache backends; their settings name them by this path."""

from .backend import EntraRedisCache, EntraRedisClusterCache

__all__ = ["EntraRedisCache", "EntraRedisClusterCache"]
