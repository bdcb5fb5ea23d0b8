"""Snapshots of an identity, and of the copies that a process keeps of values."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Status:
    """What can be told of an identity: never its token."""

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
        misses: values that were read from Redis for want of a copy.
        invalidations: keys that Redis has told to have changed.
        flushes: times that all copies of a server were dropped.
        entries: copies that there are.
        bytes: what they take.
        connected: whether Redis would tell of changes, on each server that was asked.
        last_confirmed: when that was last certain; ``None`` without a connection.
        unsupported: why Redis does not tell of changes, if it has said so.
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
