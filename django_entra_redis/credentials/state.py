"""The state of one identity's token, and the state that each request leads to."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ..exceptions import TokenRequestError
from ..identity.token import Clock, Token
from ..status import Status
from .schedule import retry_cap

#: Seconds by which a renewal may be late before callers begin the request themselves:
#: in uWSGI without threads no background thread ever runs.
LATENESS = 1.0


@dataclass(frozen=True, slots=True)
class State:
    """The state of a renewal. It is replaced as a whole, so that readers need no lock.

    ``due_at``, ``trusted_until`` and ``failing_since`` are times of the monotonic
    clock, ``renewed_on`` is a time of the wall clock. Before ``trusted_until`` callers
    take the token without further checks. ``outage`` counts failures since the last
    success, ``failures`` all of them.
    """

    token: Token | None = None
    renewed_on: float | None = None
    due_at: float | None = None
    trusted_until: float = 0.0
    renewals: int = 0
    failures: int = 0
    outage: int = 0
    failing_since: float = 0.0
    last_error: TokenRequestError | None = None

    def due(self, at: float) -> "State":
        """Return the same with the next request due at ``at``."""
        until = min(self.token.expires_at, at + LATENESS) if self.token else 0.0
        return replace(self, due_at=at, trusted_until=until)

    def succeeded(self, token: Token, on: float) -> "State":
        """Return the state after a request that got a token.

        Parameters:
            token: the token.
            on: when it came, on the wall clock.
        """
        old = self.token
        same = token.repeats(old)
        return replace(
            self,
            token=token,
            renewed_on=self.renewed_on if same else on,
            renewals=self.renewals + (old is not None and not same),
            outage=0,
            last_error=None,
        )

    def failed(self, error: TokenRequestError, at: float) -> "State":
        """Return the state after a request that failed.

        Parameters:
            error: the failure.
            at: when it happened, on the monotonic clock.
        """
        return replace(
            self,
            failures=self.failures + 1,
            outage=self.outage + 1,
            failing_since=self.failing_since if self.outage else at,
            last_error=error,
        )

    def retry_cap(self, clock: Clock) -> float:
        """Return the longest pause before the next request, in seconds."""
        token, now = self.token, clock.monotonic()
        if token is None:
            return retry_cap(None)
        left = min(token.expires_at - now, token.expires_on - clock.wall())
        return retry_cap(token.life, left, now - self.failing_since)

    def status(self, identity: str, kind: str, clock: Clock) -> Status:
        """Return the public status, without the token."""
        token = self.token
        oid = None
        if token is not None:
            # With USERNAME in the settings nothing has checked the claim.
            claim = token.claims.get("oid")
            shown = isinstance(claim, str) and claim.isprintable()
            oid = claim if shown else token.username
        due_on = None
        if self.due_at is not None:
            due_on = clock.wall() + self.due_at - clock.monotonic()
        return Status(
            identity=identity,
            kind=kind,
            oid=oid,
            expires_at=_datetime(token.expires_on if token else None),
            renewed_at=_datetime(self.renewed_on),
            next_renewal_at=_datetime(due_on),
            renewals=self.renewals,
            failures=self.failures,
            last_error=None if self.last_error is None else str(self.last_error),
        )


def _datetime(seconds: float | None) -> datetime | None:
    """Return a time as a datetime; ``None`` for one that datetime can't represent."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
