"""Who is measured: the package, and what a project would use in its place."""

import random
import string
from importlib.util import find_spec
from typing import Any

OURS = "django-entra-redis"
DJANGO = "Django RedisCache"
DJANGO_REDIS = "django-redis"
BARE = "redis.Redis"
CLUSTER = "on a cluster"

_BACKENDS = {
    OURS: "django_entra_redis.cache.EntraRedisCache",
    DJANGO: "django.core.cache.backends.redis.RedisCache",
}
# It may be left out.
if find_spec("django_redis") is not None:
    _BACKENDS[DJANGO_REDIS] = "django_redis.cache.RedisCache"
#: Those that are caches.
CACHES = tuple(_BACKENDS)
#: Seconds to wait for a reply. The kernel of a busy virtual machine may deliver nothing
#: on loopback for longer than the package's own 5 s; that there is a bound at all is
#: what costs (benchmarks/README.md).
PATIENCE = 60.0
_LETTERS = string.ascii_letters + string.digits


def cache_settings(url: str) -> dict[str, dict[str, Any]]:
    """Return the caches' settings as their manuals have them.

    Each has its own prefix, of the same length.
    """
    settings: dict[str, dict[str, Any]] = {
        name: {"BACKEND": backend, "LOCATION": url, "KEY_PREFIX": f"cache{number}"}
        for number, (name, backend) in enumerate(_BACKENDS.items())
    }
    settings[OURS]["OPTIONS"] = {"identity": None, "socket_timeout": PATIENCE}
    return settings


def cluster_settings(url: str) -> dict[str, dict[str, Any]]:
    """Return the settings of the package's cache on a cluster."""
    backend = "django_entra_redis.cache.EntraRedisClusterCache"
    options = {"identity": None, "socket_timeout": PATIENCE}
    return {CLUSTER: {"BACKEND": backend, "LOCATION": url, "OPTIONS": options}}


def one_kilobyte(seed: int = 0) -> dict[str, str]:
    """Return a dictionary whose pickle is 1 KB: of strings that all differ.

    Equal ones would be pickled once, and be referred to from then on.
    """
    letters = random.Random(seed)
    return {
        f"field{number}": "".join(letters.choices(_LETTERS, k=32))
        for number in range(21)
    }
