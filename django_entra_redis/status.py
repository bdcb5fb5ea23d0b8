"""The status of an identity, for users to read."""

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
