"""An overview of the identities and caches of this process, for people to read.

Of a cache's error it has the class alone; ``entra_redis_check`` has the details.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from .._errors import ConfigurationError
from ..cache.backend import EntraRedisCache, EntraRedisClusterCache, entra_caches
from ..cache.in_use import identities_in_use
from ..connections.endpoint import Endpoint
from ..connections.outage import CurrentOutage, Outages
from ..connections.pool import ConnectionPool
from ..credentials.provider import get_credential_provider
from ..status import ClientSideCacheInfo, Status
from .health import PING_TIMEOUT, CacheHealth, caches_health


@dataclass(frozen=True, slots=True)
class IdentityOverview:
    """An identity's status, and the state of its token.

    Parameters:
        identity: its name.
        state: ``"waiting"`` (no token yet), ``"fresh"``, ``"due"`` (past the time of
            its renewal), ``"failing"`` (the last renewal failed, the token still
            holds), ``"expired"`` or ``"broken"`` (its settings are wrong).
        status: its status; ``None`` if its settings are wrong.
        last_error: what is wrong, if anything.
        life: seconds from the token's renewal to its expiry; like those below ``None``
            without a token.
        age: seconds since it was renewed.
        remaining: seconds until it expires.
        renewal_after: the age at which it is renewed.
    """

    identity: str
    state: str
    status: Status | None = None
    last_error: str | None = None
    life: float | None = None
    age: float | None = None
    remaining: float | None = None
    renewal_after: float | None = None


@dataclass(frozen=True, slots=True)
class CacheOverview:
    """A cache, how it answers, and what this process holds of it.

    Parameters:
        alias: its name in ``CACHES``.
        backend: the name of its class.
        location: its URL, without what may be secret in it.
        identity: its identity's name, ``None`` without one.
        health: how it answered.
        idle, in_use: connections of threads; ``None`` if its pool does not tell.
        outages: the outages that are known, of its servers and of its cluster.
        copies: its client-side cache, if it has one.
    """

    alias: str
    backend: str
    location: str
    identity: str | None
    health: CacheHealth
    idle: int | None = None
    in_use: int | None = None
    outages: tuple[CurrentOutage, ...] = ()
    copies: ClientSideCacheInfo | None = None


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it, as it was at a moment."""

    at: datetime
    identities: tuple[IdentityOverview, ...]
    caches: tuple[CacheOverview, ...]


def overview(timeout: float = PING_TIMEOUT) -> Overview:
    """Return an overview; each cache is asked once.

    Parameters:
        timeout: seconds that all caches together have to answer.
    """
    found = entra_caches()
    health = {item.cache: item for item in caches_health(timeout, all_caches=True)}
    # After the PINGs, which wait for a token if there is none yet.
    now = datetime.now(UTC)
    return Overview(
        now,
        tuple(identity_overview(name, now) for name in identities_in_use()),
        tuple(_cache_overview(alias, found[alias], health[alias]) for alias in found),
    )


def identity_overview(identity: str, now: datetime) -> IdentityOverview:
    """Return an identity's overview, without any request."""
    try:
        status = get_credential_provider(identity).status()
    except ConfigurationError as error:
        return IdentityOverview(identity, "broken", last_error=str(error))
    return describe(status, now)


def describe(status: Status, now: datetime) -> IdentityOverview:
    """Return an identity's overview at a moment, from its status."""
    begin, due = status.renewed_at, status.next_renewal_at
    if begin is None or status.expires_at is None:
        return IdentityOverview(
            status.identity, "waiting", status, last_error=status.last_error
        )
    life = (status.expires_at - begin).total_seconds()
    age = max(0.0, (now - begin).total_seconds())
    if age >= life:
        state = "expired"
    elif status.last_error is not None:
        state = "failing"
    elif due is not None and due <= now:
        state = "due"
    else:
        state = "fresh"
    return IdentityOverview(
        status.identity,
        state,
        status,
        status.last_error,
        life=life,
        age=age,
        remaining=max(0.0, life - age),
        renewal_after=None if due is None else (due - begin).total_seconds(),
    )


def _cache_overview(
    alias: str, cache: EntraRedisCache, health: CacheHealth
) -> CacheOverview:
    backend, location = type(cache).__name__, cache.location
    try:
        known, outages = _known(cache)
        copies = cache.client_side_cache_info()
    # What a class of the user's own raises where its connections are made is as broken
    # as an option that can't be used; the cache's health has its kind.
    except Exception:
        return CacheOverview(alias, backend, location, cache.identity, health)
    pools = [endpoint.pool for endpoint in known]
    counts = [pool.counts() for pool in pools if isinstance(pool, ConnectionPool)]
    return CacheOverview(
        alias,
        backend,
        location,
        cache.identity,
        health,
        sum(idle for idle, _ in counts) if counts else None,
        sum(in_use for _, in_use in counts) if counts else None,
        tuple(outage for one in outages for outage in one.current()),
        copies,
    )


def _known(cache: EntraRedisCache) -> tuple[list[Endpoint], Iterable[Outages]]:
    """Return a cache's endpoints, as far as they are known, and where outages are."""
    endpoints = list(dict.fromkeys(cache._cache.endpoints))
    if not isinstance(cache, EntraRedisClusterCache):
        return endpoints, [endpoint.outages for endpoint in endpoints]
    topology = cache.get_topology()
    endpoints = list(dict.fromkeys(topology.primaries.values()))
    return endpoints, [topology.outages, *(one.outages for one in endpoints)]
