# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""A provider for a client of one's own, the status, and the cache itself."""

from datetime import datetime
from typing import TYPE_CHECKING, assert_type

from redis import Redis
from redis.credentials import CredentialProvider, StreamingCredentialProvider

from django_entra_redis import get_redis_connection
from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.credentials import (
    EntraCredentialProvider,
    get_credential_provider,
)
from django_entra_redis.status import Status

PROVIDER = get_credential_provider("reports")
assert_type(PROVIDER, EntraCredentialProvider)
STREAMING: StreamingCredentialProvider = PROVIDER
PLAIN: CredentialProvider = EntraCredentialProvider()

STATUS = PROVIDER.status()
assert_type(STATUS, Status)
assert_type(STATUS.oid, str | None)
assert_type(STATUS.expires_at, datetime | None)
assert_type(STATUS.renewals, int)

if TYPE_CHECKING:

    def increment(cache: EntraRedisCache) -> str | None:
        """Use what the backend has beside Django's cache API."""
        cache.set("counter", 1, nx=True)
        assert_type(cache.get_client(write=True), Redis)
        assert_type(cache.ttl("counter"), int | None)
        return cache.identity

    assert_type(PROVIDER.get_credentials(), tuple[str, str])
    assert_type(get_redis_connection("default"), Redis)
    EntraCredentialProvider(identity=1)  # type: ignore[arg-type]
    STATUS.oid = "another"  # type: ignore[misc]
    STATUS.token  # type: ignore[attr-defined]  # noqa: B018
    STATUS.expires_at.timestamp()  # type: ignore[union-attr]
