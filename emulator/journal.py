"""What has happened: counters, records of token requests and of authentications."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

_KEPT = 100_000
RESET_AT_ACCEPT = "reset at accept"


@dataclass(frozen=True)
class Stats:
    """Counters at one moment."""

    token_requests: int = 0
    token_failures: int = 0
    connections_opened: int = 0
    connections_open: int = 0
    max_connections_open: int = 0
    auths: int = 0
    auths_refused: int = 0
    commands: int = 0
    closed_by_expiry: int = 0
    closed_by_expiry_in_use: int = 0


@dataclass(frozen=True)
class TokenRequest:
    """One request for a token, and what came of it.

    `outcome` is "ok", an error code ("AADSTS7000215", "identity_not_found") or the
    mode of the fault that answered ("500", "hang"). `asked` is the scope or resource.
    """

    at: float
    endpoint: str
    client_id: str | None
    outcome: str
    asked: str | None = None
    assertion: str | None = None
    x5c: bool = False
    correlation_id: str | None = None


@dataclass(frozen=True)
class Authentication:
    """One AUTH (or HELLO ... AUTH) on a connection to Redis.

    `node` is the number of the cluster's node that it leads to.
    """

    at: float
    connection: int
    object_id: str
    accepted: bool
    again: bool
    reason: str | None = None
    token_id: str | None = None
    node: int | None = None


class Journal:
    """Collects, from the emulator's thread, what any thread may read."""

    def __init__(self, on_event: Callable[[str], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._on_event = on_event
        self._stats = Stats()
        # Counted apart from the frozen snapshot: it is the one figure that a busy
        # gateway adds to for each packet.
        self._commands = 0
        # Bounded, since the emulator may run for days.
        self._requests: deque[TokenRequest] = deque(maxlen=_KEPT)
        self._authentications: deque[Authentication] = deque(maxlen=_KEPT)

    @property
    def stats(self) -> Stats:
        """A snapshot of the counters."""
        with self._lock:
            return replace(self._stats, commands=self._commands)

    @property
    def requests(self) -> list[TokenRequest]:
        """The token requests so far."""
        with self._lock:
            return list(self._requests)

    @property
    def authentications(self) -> list[Authentication]:
        """The authentications so far, refused ones included."""
        with self._lock:
            return list(self._authentications)

    def event(self, text: str) -> None:
        """Tell whoever watches."""
        if self._on_event is not None:
            # Whoever watched through a pipe may have gone.
            with contextlib.suppress(OSError):
                self._on_event(text)

    def token_request(self, record: TokenRequest) -> None:
        """Note a token request; one reset before it was read is no request."""
        with self._lock:
            self._requests.append(record)
            if record.outcome != RESET_AT_ACCEPT:
                failed = record.outcome != "ok"
                self._stats = replace(
                    self._stats,
                    token_requests=self._stats.token_requests + 1,
                    token_failures=self._stats.token_failures + failed,
                )
        if record.outcome != "ok":
            self.event(f"token request at {record.endpoint} failed: {record.outcome}")

    def authentication(self, record: Authentication) -> None:
        """Note an AUTH."""
        with self._lock:
            self._authentications.append(record)
            self._stats = replace(
                self._stats,
                auths=self._stats.auths + record.accepted,
                auths_refused=self._stats.auths_refused + (not record.accepted),
            )
        who = f"connection {record.connection}"
        if not record.accepted:
            self.event(f"{who} refused as {record.object_id}: {record.reason}")
        elif record.again:
            self.event(f"{who} re-authenticated as {record.object_id}")
        else:
            self.event(f"{who} authenticated as {record.object_id}")

    def commands(self, number: int) -> None:
        """Note commands that came in."""
        self._commands += number

    def opened(self) -> None:
        """Note a client's connection."""
        with self._lock:
            stats = self._stats
            now_open = stats.connections_open + 1
            self._stats = replace(
                stats,
                connections_opened=stats.connections_opened + 1,
                connections_open=now_open,
                max_connections_open=max(stats.max_connections_open, now_open),
            )

    def closed(self) -> None:
        """Note a connection's end."""
        with self._lock:
            self._stats = replace(
                self._stats, connections_open=self._stats.connections_open - 1
            )

    def expired(self, connection: int, object_id: str, *, in_use: bool) -> None:
        """Note that a connection is closed since its token has expired."""
        with self._lock:
            self._stats = replace(
                self._stats,
                closed_by_expiry=self._stats.closed_by_expiry + 1,
                closed_by_expiry_in_use=self._stats.closed_by_expiry_in_use + in_use,
            )
        busy = " while in use" if in_use else ""
        self.event(f"connection {connection} of {object_id} closed by expiry{busy}")
