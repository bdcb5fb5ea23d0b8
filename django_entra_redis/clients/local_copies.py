"""The copies of a process, each used only as long as Redis has not invalidated it."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from ..conf.options import CacheOptions, ClientSideCaching
from ..connections.copies import Copies, Copy
from ..connections.endpoint import Endpoint
from ..connections.tracking import Tracker
from ..status import ClientSideCacheInfo

logger = logging.getLogger(__name__)


class LocalCopies:
    """The copies of all caches of this process with the same servers and settings.

    Parameters:
        settings: what ``OPTIONS`` ask for.
        unsupported: why there are to be none.
    """

    def __init__(self, settings: ClientSideCaching, unsupported: str | None) -> None:
        self.settings = settings
        self.unsupported = unsupported
        self.copies = Copies(settings.max_bytes, settings.max_value_bytes)
        # Its uses are atomic.
        self._trackers: dict[Endpoint, Tracker] = {}

    def find(self, key: str) -> Copy | None:
        """Return the copy of a value, if there is one that may be used."""
        copies = self.copies
        copy = copies.peek(key)
        if copy is None:
            return None
        # As TrackedConnection.is_fresh does, in a call less.
        owner: Any = copy.owner
        if owner.has_come() or owner.taking_in:
            owner.take_in()
            # It may have changed, or have come anew.
            copy = copies.peek(key)
            if copy is None or copy.owner is not owner:
                return None
        now = monotonic()
        if now >= owner.ask_at and not owner.is_confirmed(key, now):
            return None
        return copy if copies.use(key, copy, now) else None

    def find_at(self, key: str, endpoint: Endpoint) -> Copy | None:
        """Do as :meth:`find` does, if the copy comes from the server that has the key
        now."""
        tracker = self._trackers.get(endpoint)
        owner = self.copies.owner(key)
        if owner is None or tracker is None or owner is not tracker.connection:
            self.copies.drop([key])
            return None
        return self.find(key)

    def tracker(self, endpoint: Endpoint) -> Tracker:
        """Return the tracking connection to a server."""
        found = self._trackers.get(endpoint)
        if found is None:
            made = endpoint.track(self.copies, self.settings.max_staleness)
            found = self._trackers.setdefault(endpoint, made)
        return found

    def forget(self, keys: Sequence[str | bytes] | None) -> None:
        """Drop the copies of keys that may have changed; ``None``: of all keys."""
        if keys is None:
            self.copies.flush()
            return
        if not keys:
            return
        self.copies.drop(
            [
                key if isinstance(key, str) else key.decode(errors="replace")
                for key in keys
            ]
        )

    def info(self) -> ClientSideCacheInfo:
        """Return a snapshot."""
        copies, trackers = self.copies, list(self._trackers.values())
        proofs = [tracker.confirmed_at for tracker in trackers]
        refusals = [self.unsupported, *(tracker.refusal for tracker in trackers)]
        confirmed = [proof for proof in proofs if proof is not None]
        ago = timedelta(seconds=monotonic() - min(confirmed, default=0.0))
        return ClientSideCacheInfo(
            hits=copies.hits,
            misses=copies.misses,
            invalidations=copies.invalidations,
            flushes=copies.flushes,
            entries=len(copies),
            bytes=copies.bytes,
            connected=bool(proofs) and len(confirmed) == len(proofs),
            last_confirmed=datetime.now(UTC) - ago if confirmed else None,
            unsupported=next(filter(None, refusals), None),
        )


#: Options of redis-py's that a tracking connection does not support.
_UNTRACKED = (
    "connection_class",
    "credential_provider",
    "redis_connect_func",
    "socket_type",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
)

_shared: WeakKeyDictionary[Any, dict[ClientSideCaching, LocalCopies]] = (
    WeakKeyDictionary()
)


def local_copies(shared: Any, options: CacheOptions) -> LocalCopies:
    """Return the copies of a process.

    Parameters:
        shared: what caches with the same servers have in common.
        options: what a cache's settings ask for, copies among it.
    """
    settings = options.client_side_cache
    assert settings is not None
    by_settings = _shared.setdefault(shared, {})
    found = by_settings.get(settings)
    if found is None:
        given = [name for name in _UNTRACKED if options.connection.get(name)]
        reason = f"OPTIONS have {' and '.join(given)}" if given else None
        if reason:
            logger.warning(
                "%s, which a tracking connection does not support: "
                "OPTIONS['client_side_cache'] has no effect.",
                reason,
            )
        found = by_settings.setdefault(settings, LocalCopies(settings, reason))
    return found
