# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Settings that an editor completes, and where a type checker finds the mistakes."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from django_entra_redis.types import (
    CacheSettings,
    EntraRedisOptions,
    IdentitySettings,
)


@dataclass(frozen=True)
class FixedToken:
    """What a credential of one's own returns."""

    token: str
    expires_on: float


class FixedCredential:
    """A credential of one's own."""

    def get_token(self, *scopes: str) -> FixedToken:
        """Return a token that is good for an hour."""
        return FixedToken("secret", time.time() + 3600)


ENTRA_REDIS: dict[str, IdentitySettings] = {
    "default": {},
    "user_assigned": {"KIND": "managed_identity", "CLIENT_ID": "0000"},
    "reports": {
        "KIND": "service_principal",
        "TENANT_ID": "contoso.onmicrosoft.com",
        "CLIENT_ID": "00000000-0000-0000-0000-000000000000",
        "CLIENT_CERTIFICATE": Path("/mnt/secrets/redis.pem"),
        "CLIENT_CERTIFICATE_PASSWORD": os.environ.get("REPORTS_PASSWORD"),
        "REFRESH_MARGIN": 180,
    },
    "object": {"CREDENTIAL": FixedCredential(), "USERNAME": "tester"},
    "class": {"CREDENTIAL": FixedCredential, "USERNAME": "tester"},
    "path": {"CREDENTIAL": "azure.identity.DefaultAzureCredential"},
}

OPTIONS: EntraRedisOptions = {"identity": "reports", "pool_timeout": 1, "db": 1}

CACHES: dict[str, CacheSettings] = {
    "default": {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": "rediss://contoso.westeurope.redis.azure.net:10000",
    },
    "reports": {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": ["rediss://contoso.westeurope.redis.azure.net:10000"],
        "KEY_PREFIX": "reports",
        "TIMEOUT": None,
        "OPTIONS": OPTIONS,
    },
}

if TYPE_CHECKING:
    # What each of these must not say is found by both; else the comment is in vain,
    # which both tell.
    UNKNOWN_KEY: IdentitySettings = {"TENANT": "contoso"}  # type: ignore[typeddict-unknown-key]
    UNKNOWN_KIND: IdentitySettings = {"KIND": "managed"}  # type: ignore[typeddict-item]
    NO_CREDENTIAL: IdentitySettings = {"CREDENTIAL": 1}  # type: ignore[typeddict-item]
    NO_FLAG: EntraRedisOptions = {"ignore_exceptions": "yes"}  # type: ignore[typeddict-item]
    NO_BACKEND: CacheSettings = {"LOCATION": "rediss://contoso"}  # type: ignore[typeddict-item]
