"""A check for django-health-check 4 and newer."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from django.core.cache import caches

from .cache.backend import EntraRedisCache
from .diagnostics.health import cache_health

# Not an import statement: type checkers may not have the optional package.
_base: Any = import_module("health_check.base")
_exceptions: Any = import_module("health_check.exceptions")


@dataclass
class EntraRedis(_base.HealthCheck):  # type: ignore[misc]  # its parent is Any
    """Checks that a cache replies, and thereby that its identity has a token.

    Parameters:
        cache: its alias in ``CACHES``.
    """

    cache: str = "default"

    def run(self) -> None:
        """Send a PING to the cache.

        Raises:
            ServiceUnavailable: it did not reply. The text has the error's class only.
        """
        cache = caches[self.cache]
        if not isinstance(cache, EntraRedisCache):
            failure = f"'{self.cache}' is not a cache of django_entra_redis"
        else:
            failure = cache_health(self.cache, cache).error or ""
        if failure:
            raise _exceptions.ServiceUnavailable(failure)
