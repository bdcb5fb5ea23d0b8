"""The renewal schedule: pure functions from a token's life to the next request."""

from ..conf.policy import Policy

#: Share of the time to a renewal that jitter may take off.
JITTER = 0.1
#: Seconds between two tries at most, in a long outage.
LONGEST_PAUSE = 120.0


def renewal_delay(life: float, policy: Policy, jitter: float) -> float:
    """Return the seconds from a token's arrival to its renewal.

    Parameters:
        life: seconds that the token is good for.
        jitter: 0 to 1; only ever makes it earlier.
    """
    return _due(life, life, policy) * (1 - JITTER * jitter)


def retry_cap(life: float | None, left: float = 0.0, age: float = 0.0) -> float:
    """Return the longest pause in seconds between two tries.

    Without a valid token it follows the token's life alone: somebody waits. While a
    token lives on nobody does, and after an outage of minutes a fleet whose members
    all try again within seconds would be the next outage: the pauses grow with the
    outage, and shrink again as the token comes to its end.

    Parameters:
        life: seconds of life of the last token, ``None`` when there was none.
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
    """Return the seconds from a failed request to the next one: full jitter.

    Parameters:
        failures: failed requests in a row, 1 or more.
        cap: the longest pause in seconds, of :func:`retry_cap`.
        retry_after: seconds that the endpoint asked for; they are kept, and the
            jitter comes on top, so that a fleet told one time does not come at once.
        jitter: 0 to 1.
    """
    return (retry_after or 0.0) + jitter * min(cap, 0.5 * 2.0 ** min(failures - 1, 10))


def forced_interval(life: float) -> float:
    """Return the seconds between two renewals forced by a refused token."""
    return min(max(life / 60, 1.0), 60.0)


def repeat_delay(left: float, life: float, policy: Policy, jitter: float) -> float:
    """Return the seconds to the next request when the same token came once more.

    IMDS and azure-identity hand out one token until it is nearly over. Never sooner
    than a retry, so that asking does not become a spin; never after it has expired.

    Parameters:
        left: seconds until that token expires.
        life: seconds that it was good for when it came first.
        jitter: 0 to 1.
    """
    delay = _due(left, life, policy) * (1 - JITTER * jitter)
    return max(delay, min(retry_cap(life), left))


def _due(left: float, life: float, policy: Policy) -> float:
    """Return after how much of what is left of a token's life it is renewed."""
    delay = policy.ratio * left
    # A shorter life leaves no time for the margin.
    return min(delay, left - policy.margin) if life >= 2 * policy.margin else delay
