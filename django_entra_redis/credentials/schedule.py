"""The renewal schedule: pure functions from a token's life to the next request."""

from ..conf.policy import Policy

#: Share of the time to a renewal by which jitter may shorten it.
JITTER = 0.1
#: Seconds between two token requests at most, in a long outage.
LONGEST_PAUSE = 120.0


def renewal_delay(life: float, policy: Policy, jitter: float) -> float:
    """Return the seconds from a token's arrival to its renewal.

    Parameters:
        life: seconds for which the token is valid.
        policy: the identity's renewal settings.
        jitter: from 0 to 1; it only makes the renewal earlier.
    """
    return _due(life, life, policy) * (1 - JITTER * jitter)


def retry_cap(life: float | None, left: float = 0.0, age: float = 0.0) -> float:
    """Return the longest pause in seconds between two token requests.

    Without a valid token it depends on the life of the last one alone: ``life / 360``
    is 10 s for a token of an hour, and short tokens recover sooner. While a token is
    valid, no caller waits, and a fleet that retries within seconds would overload an
    endpoint that has just recovered: the pauses grow with the age of the outage, and
    shrink again towards the token's expiry, a sixth of either at most.

    Parameters:
        life: seconds of life of the last token; ``None``: there was none.
        left: seconds until it expires.
        age: seconds since the outage's first failure.
    """
    cap = 10.0 if life is None else min(max(life / 360, 1.0), 10.0)
    return max(cap, min(left / 6, age / 6, LONGEST_PAUSE))


def retry_delay(
    failures: int,
    cap: float,
    retry_after: float | None,
    jitter: float,
) -> float:
    """Return the seconds from a failed request to the next one, with full jitter.

    Parameters:
        failures: failed requests in a row, 1 or more.
        cap: the longest pause in seconds, see :func:`retry_cap`.
        retry_after: seconds that the endpoint asked to wait, if it did. The pause is
            added to them, so that a fleet does not come back all at once.
        jitter: from 0 to 1.
    """
    return (retry_after or 0.0) + jitter * min(cap, 0.5 * 2.0 ** min(failures - 1, 10))


def forced_interval(life: float) -> float:
    """Return the seconds between two renewals forced by a refused token."""
    return min(max(life / 60, 1.0), 60.0)


def repeat_delay(left: float, life: float, policy: Policy, jitter: float) -> float:
    """Return the seconds to the next request when an endpoint repeats the same token.

    IMDS and azure-identity repeat a token until it has nearly expired. The next request
    is never sooner than a retry would be, and never after the token's expiry.

    Parameters:
        left: seconds until that token expires.
        life: seconds for which it was valid when it first came.
        policy: the identity's renewal settings.
        jitter: from 0 to 1.
    """
    delay = _due(left, life, policy) * (1 - JITTER * jitter)
    return max(delay, min(retry_cap(life), left))


def _due(left: float, life: float, policy: Policy) -> float:
    """Return the seconds until a token with so many seconds left is renewed."""
    delay = policy.ratio * left
    # The margin does not apply to a life under twice the margin.
    return min(delay, left - policy.margin) if life >= 2 * policy.margin else delay
