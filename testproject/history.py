"""What happened to the tokens of this process lately, for the status page."""

import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django_entra_redis.status import Status


@dataclass(frozen=True, slots=True)
class Event:
    """A renewal, or a failure of one; ``times`` counts the same one in a row."""

    at: datetime
    identity: str
    ok: bool
    text: str
    times: int = 1


_lock = threading.Lock()
_events: deque[Event] = deque(maxlen=30)


def recent_events() -> list[Event]:
    """Return the last events, newest first."""
    with _lock:
        return list(_events)


def on_token_renewed(*, identity: str, status: Status, **kwargs: Any) -> None:
    """Note a renewal: receiver of ``token_renewed``."""
    until = f"{status.expires_at:%H:%M:%S}" if status.expires_at else "an unknown time"
    _note(identity, True, f"Token renewed, good until {until}")


def on_token_renewal_failed(*, identity: str, error: str, **kwargs: Any) -> None:
    """Note a failure: receiver of ``token_renewal_failed``."""
    _note(identity, False, f"Renewal failed: {error}")


def _note(identity: str, ok: bool, text: str) -> None:
    now = datetime.now(UTC)
    with _lock:
        times = 1
        if _events:
            last = _events[0]
            # A long outage must not push everything else out.
            if (last.identity, last.ok, last.text) == (identity, ok, text):
                times += _events.popleft().times
        _events.appendleft(Event(now, identity, ok, text, times))
