"""The health of this process's identities and caches, for probes and monitors.

Strangers may be able to read it: it has neither the texts of errors nor the object IDs
of principals, which are in the log and in ``entra_redis_check``.
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
from ..commands.drivers import clear_frames
from ..credentials.provider import get_credential_provider

#: Seconds that a probe waits for the caches' replies. By default probes give up after
#: 1 s (Kubernetes) to 5 s.
PING_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class IdentityHealth:
    """Whether an identity has a valid token, and until when.

    Parameters:
        identity: its name.
        ok: whether it has a valid token.
        expires_at, renewed_at, next_renewal_at, renewals, failures: see
            :class:`~..status.Status`.
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
    """Whether a cache replies.

    Parameters:
        cache: its alias.
        ok: whether it replied.
        ms: milliseconds that this took.
        error: the class of the error if it did not, else ``None``.
    """

    cache: str
    ok: bool
    ms: float
    error: str | None = None


def identities_health() -> list[IdentityHealth]:
    """Return the health of the identities in use, without any request."""
    return [_identity_health(identity) for identity in identities_in_use()]


def caches_health(
    timeout: float = PING_TIMEOUT, *, all_caches: bool = False
) -> list[CacheHealth]:
    """Return the health of the caches with an identity, by a PING to all at once.

    Parameters:
        timeout: seconds to wait for the replies.
        all_caches: whether to include caches without an identity.
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
    """Return the health of a cache, by a PING."""
    begun = time.perf_counter()
    error = _ping(cache)
    if error == "ConnectionError":
        # The server may have closed this connection; a new one may work.
        error = _ping(cache)
    ms = (time.perf_counter() - begun) * 1000
    return CacheHealth(alias, error is None, round(ms, 2), error)


def _ping(cache: EntraRedisCache) -> str | None:
    """Send a PING; return the class of the error, if there is one."""
    try:
        cache.get_client(write=True).ping()
    except (RedisError, OSError, ConfigurationError) as failure:
        # A frame of redis-py's may keep it alive.
        clear_frames(failure)
        return type(failure).__name__
    return None


def _identity_health(identity: str) -> IdentityHealth:
    try:
        renewal = get_credential_provider(identity).renewal
    except ConfigurationError:
        return IdentityHealth(identity, ok=False)
    # In a new process a probe may be the first request.
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
    # Django makes a cache object for each thread, which this one is.
    return cache_health(alias, entra_caches()[alias])


def _outcome(alias: str, call: "Future[CacheHealth]", ms: float) -> CacheHealth:
    error = call.exception() if call.done() else TimeoutError()
    if error is None:
        return call.result()
    return CacheHealth(alias, False, ms, type(error).__name__)


# By the cache's alias: however many probes wait, each cache gets one PING at a time.
_pings: dict[str, SingleFlight[CacheHealth]] = {}

# The parent's calls are not under way in a child process.
in_child(_pings.clear, Order.CONNECTIONS)
