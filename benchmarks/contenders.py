"""Who is measured: the package, and what a project would use in its place."""

import random
import string
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OURS = "django-entra-redis"
DJANGO = "Django RedisCache"
DJANGO_REDIS = "django-redis"
VCACHE = "django-vcache"
CACHEX = "django-cachex"
BARE = "redis.Redis"
GLIDE = "valkey-glide"
CLUSTER = "on a cluster"

#: By the package that brings it, which may be left out: its name here, and its backend.
_BACKENDS = {
    "django_entra_redis": (OURS, "django_entra_redis.cache.EntraRedisCache"),
    "django": (DJANGO, "django.core.cache.backends.redis.RedisCache"),
    "django_redis": (DJANGO_REDIS, "django_redis.cache.RedisCache"),
    "django_vcache": (VCACHE, "django_vcache.backend.ValkeyCache"),
    "django_cachex": (CACHEX, "django_cachex.cache.RedisCache"),
}
#: Those that are caches, and installed.
CACHES = tuple(
    name for package, (name, _) in _BACKENDS.items() if find_spec(package) is not None
)
#: Those of them that have redis-py's pools.
POOLED = tuple(name for name in CACHES if name in (OURS, DJANGO, DJANGO_REDIS))
#: Seconds to wait for a reply. The kernel of a busy virtual machine may deliver nothing
#: on loopback for longer than the package's own 5 s; that there is a bound at all is
#: what costs (benchmarks/README.md).
PATIENCE = 60.0
_LETTERS = string.ascii_letters + string.digits


def cache_settings(url: str, ca_file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the caches' settings as their manuals have them.

    Each has its own prefix, of the same length.

    Parameters:
        url: of the server.
        ca_file: the authority of its TLS certificate, if it has one.
    """
    tls = {} if ca_file is None else {"ssl_ca_certs": str(ca_file)}
    options: dict[str, dict[str, Any]] = {
        OURS: {"identity": None, "socket_timeout": PATIENCE, **tls},
        DJANGO: tls,
        DJANGO_REDIS: {"CONNECTION_POOL_KWARGS": tls} if tls else {},
        # As the others: it would write MessagePack, and compress what is large.
        VCACHE: {"SERIALIZER": "pickle", "COMPRESS_MIN_LEN": 2**40, **tls},
        CACHEX: tls,
    }
    return {
        name: {
            "BACKEND": backend,
            "LOCATION": url,
            "KEY_PREFIX": f"cache{number}",
            "OPTIONS": options[name],
        }
        for number, (name, backend) in enumerate(_BACKENDS.values())
        if name in CACHES
    }


@contextmanager
def glide_client(port: int, ca_file: Path | None = None) -> Iterator[Any]:
    """Give Valkey's own client, whose core is in Rust; ``None`` if it is not there."""
    if find_spec("glide_sync") is None:
        yield None
        return
    # It may be left out, and has no stubs of its own.
    glide_sync = import_module("glide_sync")

    advanced = None
    if ca_file is not None:
        advanced = glide_sync.AdvancedGlideClientConfiguration(
            tls_config=glide_sync.TlsAdvancedConfiguration(
                root_pem_cacerts=ca_file.read_bytes()
            )
        )
    client = glide_sync.GlideClient.create(
        glide_sync.GlideClientConfiguration(
            [glide_sync.NodeAddress("localhost", port)],
            use_tls=ca_file is not None,
            request_timeout=int(PATIENCE * 1000),
            advanced_config=advanced,
        )
    )
    try:
        yield client
    finally:
        client.close()


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
