"""The backend of soak.ecosystem's row of django-prometheus."""

from django_prometheus.cache.backends.redis import NativeRedisCache

from django_entra_redis.cache import EntraRedisCache


class CountedCache(NativeRedisCache, EntraRedisCache):
    """This package's backend, whose hits and misses are counted."""
