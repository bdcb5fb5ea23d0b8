"""What the status page shows, as plain data that JSON can carry."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from redis.exceptions import RedisError

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.conf.location import redacted_urls, split_location
from django_entra_redis.diagnostics.overview import (
    IdentityOverview,
    describe,
    identity_overview,
)
from django_entra_redis.status import Status
from testproject.history import Event, recent_events

#: Every failure that a cache or an identity has words for.
FAILURES = (RedisError, ImproperlyConfigured, OSError)


@dataclass(frozen=True, slots=True)
class IdentitySnapshot:
    """What the admin's page knows of an identity, too; moments are texts."""

    identity: str
    state: str
    kind: str | None = None
    oid: str | None = None
    renewed_at: str | None = None
    next_renewal_at: str | None = None
    expires_at: str | None = None
    age: float | None = None
    remaining: float | None = None
    life: float | None = None
    renewal_after: float | None = None
    renewals: int = 0
    failures: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """A cache, how long one look at it took, and the connections of this process.

    Those are idle or in use; not known of another backend's cache.
    """

    alias: str
    backend: str
    location: str
    identity: str | None
    round_trip_ms: float | None = None
    connections_idle: int | None = None
    connections_in_use: int | None = None
    error: str | None = None


def status_snapshot() -> dict[str, Any]:
    """The whole page: identities, caches and what happened lately."""
    now = datetime.now(UTC)
    return {
        "now": now.isoformat(),
        "pid": os.getpid(),
        "identities": [asdict(look_at_identity(name, now)) for name in identities()],
        "caches": [asdict(look_at_cache(alias)) for alias in settings.CACHES],
        "events": [_event(event) for event in recent_events()],
    }


def identities() -> list[str]:
    """Identities that the caches are reached with, each once."""
    names = (_identity(cache) for cache in settings.CACHES.values())
    return sorted({name for name in names if name is not None})


def look_at_identity(identity: str, now: datetime) -> IdentitySnapshot:
    """Ask an identity's provider; nothing here goes over the network."""
    return _shown(identity_overview(identity, now))


def describe_identity(status: Status, now: datetime) -> IdentitySnapshot:
    """Put an identity's status on the time line of its token."""
    return _shown(describe(status, now))


def _shown(seen: IdentityOverview) -> IdentitySnapshot:
    if seen.status is None:
        return IdentitySnapshot(seen.identity, seen.state, last_error=seen.last_error)
    status = seen.status
    return IdentitySnapshot(
        seen.identity,
        seen.state,
        kind=status.kind,
        oid=status.oid,
        renewed_at=_iso(status.renewed_at),
        next_renewal_at=_iso(status.next_renewal_at),
        expires_at=_iso(status.expires_at),
        age=seen.age,
        remaining=seen.remaining,
        life=seen.life,
        renewal_after=seen.renewal_after,
        renewals=status.renewals,
        failures=status.failures,
        last_error=seen.last_error,
    )


def look_at_cache(alias: str) -> CacheSnapshot:
    """Ask a cache for a key, by the clock."""
    config = settings.CACHES[alias]
    begin = perf_counter()
    error, idle, in_use = None, None, None
    try:
        cache = caches[alias]
        cache.get("round-trip")
        if isinstance(cache, EntraRedisCache):
            counts = [pool.counts() for pool in cache.get_pools()]
            idle, in_use = map(sum, zip(*counts, strict=True))
    except FAILURES as failure:
        error = str(failure)
    return CacheSnapshot(
        alias=alias,
        backend=config["BACKEND"].rpartition(".")[2],
        location=_location(config),
        identity=_identity(config),
        round_trip_ms=None if error else round((perf_counter() - begin) * 1000, 2),
        connections_idle=idle,
        connections_in_use=in_use,
        error=error,
    )


def _identity(config: Mapping[str, Any]) -> str | None:
    if not config["BACKEND"].startswith("django_entra_redis."):
        return None
    identity: str | None = config.get("OPTIONS", {}).get("identity", "default")
    return identity


def _location(config: Mapping[str, Any]) -> str:
    """Where a cache is, less the password that a URL without Entra may hold."""
    location = config.get("LOCATION")
    return ", ".join(redacted_urls(split_location(location))) if location else ""


def _event(event: Event) -> dict[str, Any]:
    return {**asdict(event), "at": event.at.isoformat()}


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None
