"""What a process says of itself."""

import os
import threading
from typing import Any

import redis
from django.core.cache import cache, caches

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.credentials import get_credential_provider


def renewal_threads() -> int:
    """Return how many threads renew a token here."""
    names = [thread.name for thread in threading.enumerate()]
    return sum(name.startswith("entra-redis-renewal") for name in names)


def give_account() -> dict[str, Any]:
    """Use the cache, and return what can be seen of it.

    ``client`` is Redis's number of the connection: nobody else's, ever.
    """
    key = f"process-{os.getpid()}"
    cache.set(key, os.getpid())
    backend = caches["default"]
    assert isinstance(backend, EntraRedisCache)
    client = redis.Redis(connection_pool=backend.get_pool())
    return {
        "pid": os.getpid(),
        "answer": cache.get(key),
        "client": client.client_id(),
        "threads": renewal_threads(),
        "renewals": get_credential_provider().status().renewals,
    }
