"""Health of the identities and caches of a process, right now.

For probes and monitors, which strangers may be able to read: neither errors' texts nor
principals are in it. The log and ``entra_redis_check`` have those.
"""

import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from redis.exceptions import RedisError

from .._errors import ConfigurationError
from .._fork import Order, in_child
from ..cache.backend import EntraRedisCache, entra_caches
from ..cache.in_use import identities_in_use
from ..clients.single_flight import SingleFlight
from ..credentials.provider import get_credential_provider

#: Seconds that a probe waits for the caches' answers: probes that nobody has configured
#: give up after 1 s (Kubernetes) to 5 s.
PING_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class IdentityHealth:
    """Whether an identity has a token that Redis takes, and for how long.

    Parameters:
        identity: its name.
        ok: whether it has a valid token.
        expires_at, renewed_at, next_renewal_at, renewals, failures: its status's.
    """

    identity: str
    ok: bool
    expires_at: datetime | None = None
    renewed_at: datetime | None = None
    next_renewal_at: datetime | None = None
    renewals: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class CacheHealth:
    """Whether a cache answers.

    Parameters:
        cache: its alias.
        ok: whether it answered.
        ms: how long that took.
        error: the kind of error if it did not, else ``None``.
    """

    cache: str
    ok: bool
    ms: float
    error: str | None = None


def identities_health() -> list[IdentityHealth]:
    """Return how the identities in use are, without asking anybody."""
    return [_identity_health(identity) for identity in identities_in_use()]


def caches_health(
    timeout: float = PING_TIMEOUT, *, all_caches: bool = False
) -> list[CacheHealth]:
    """Return how the caches are that have an identity, by asking all at once.

    Parameters:
        timeout: seconds after which one that has not answered counts as silent.
        all_caches: whether those without an identity are asked, too.
    """
    begun = time.perf_counter()
    calls = {
        alias: _pings.setdefault(
            alias, SingleFlight(partial(_ask, alias), pause=0.0)
        ).begin()
        for alias, cache in entra_caches().items()
        if all_caches or cache.identity is not None
    }
    wait(calls.values(), timeout)
    ms = round((time.perf_counter() - begun) * 1000, 2)
    return [_outcome(alias, call, ms) for alias, call in calls.items()]


def cache_health(alias: str, cache: EntraRedisCache) -> CacheHealth:
    """Return how a cache is, by asking it."""
    begun = time.perf_counter()
    error = _ping(cache)
    if error == "ConnectionError":
        # One that the server has closed says nothing about the next.
        error = _ping(cache)
    ms = (time.perf_counter() - begun) * 1000
    return CacheHealth(alias, error is None, round(ms, 2), error)


def _ping(cache: EntraRedisCache) -> str | None:
    """Return the kind of error that there was, if any."""
    try:
        cache.get_client(write=True).ping()
    except (RedisError, OSError, ConfigurationError) as failure:
        return type(failure).__name__
    return None


def _identity_health(identity: str) -> IdentityHealth:
    try:
        renewal = get_credential_provider(identity).renewal
    except ConfigurationError:
        return IdentityHealth(identity, ok=False)
    # A probe may be all that a new process hears of for a while.
    renewal.start()
    token, status = renewal.state.token, renewal.status()
    return IdentityHealth(
        identity,
        ok=token is not None and not token.expired(renewal.clock),
        expires_at=status.expires_at,
        renewed_at=status.renewed_at,
        next_renewal_at=status.next_renewal_at,
        renewals=status.renewals,
        failures=status.failures,
    )


def _ask(alias: str) -> CacheHealth:
    # A cache object of this very thread.
    return cache_health(alias, entra_caches()[alias])


def _outcome(alias: str, call: "Future[CacheHealth]", ms: float) -> CacheHealth:
    error = call.exception() if call.done() else TimeoutError()
    if error is None:
        return call.result()
    return CacheHealth(alias, False, ms, type(error).__name__)


# By the cache's alias: however many probes wait, each cache is asked once at a time.
_pings: dict[str, SingleFlight[CacheHealth]] = {}

# There, no call is under way.
in_child(_pings.clear, Order.CONNECTIONS)
