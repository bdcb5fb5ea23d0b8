"""Snapshots of an identity's status, and of a process's client-side cache."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of an identity: what can be told of it, which is never its token.

    Parameters:
        identity: its name in ``ENTRA_REDIS``.
        kind: the kind that is in use, such as ``"managed_identity"``.
        oid: the object ID of the principal; ``None`` before the first token.
        expires_at: when the token expires, as an aware datetime.
        renewed_at: when the token arrived.
        next_renewal_at: when the next one is asked for.
        renewals: tokens that have replaced another.
        failures: requests for a token that have failed.
        last_error: the text of the last failure, if there was one.
    """

    identity: str
    kind: str
    oid: str | None
    expires_at: datetime | None
    renewed_at: datetime | None
    next_renewal_at: datetime | None
    renewals: int
    failures: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ClientSideCacheInfo:
    """The copies that this process keeps of values (``OPTIONS["client_side_cache"]``).

    Parameters:
        hits: values that were read from copies.
        misses: values that were read from Redis, since there was no copy.
        invalidations: keys that Redis has invalidated.
        flushes: how often all copies of a server were dropped.
        entries: the number of copies.
        bytes: the bytes that they take.
        connected: whether there is a tracking connection to each server in use.
        last_confirmed: when all of these last showed a sign of life; ``None``: there is
            none.
        unsupported: why Redis does not invalidate copies, if it has refused to.
    """

    hits: int
    misses: int
    invalidations: int
    flushes: int
    entries: int
    bytes: int
    connected: bool
    last_confirmed: datetime | None
    unsupported: str | None = None
