"""The copies of a process, each used only as long as Redis has not invalidated it."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from weakref import WeakSet

from .._fork import ForkSafeLock
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
        names: the names of the servers in ``LOCATION``.
        serving: returns the servers that copies may come from now; ``None``: it is not
            known.
    """

    def __init__(
        self,
        settings: ClientSideCaching,
        unsupported: str | None,
        names: Iterable[str],
        serving: Callable[[], Collection[Endpoint] | None],
    ) -> None:
        self.settings = settings
        self.unsupported = unsupported
        self.names = frozenset(map(str.lower, names))
        self._serving = serving
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
            self._prune()
            made = endpoint.track(self.copies, self.settings.max_staleness)
            found = self._trackers.setdefault(endpoint, made)
        return found

    def _prune(self) -> None:
        """Close the tracking connections to servers that have no key any more."""
        serving = self._serving()
        if serving is None:
            return
        for endpoint in self._trackers.keys() - set(serving):
            # Another thread may do so at the same time.
            with suppress(KeyError):
                self._trackers.pop(endpoint).close("the server has no key any more")

    def forget(self, keys: Sequence[str | bytes] | None) -> None:
        """Drop the copies of keys that may have changed; ``None``: of all keys."""
        if keys is None:
            self.copies.flush_written()
            return
        if not keys:
            return
        self.copies.drop_written(
            [
                key if isinstance(key, str) else key.decode(errors="replace")
                for key in keys
            ]
        )

    def info(self) -> ClientSideCacheInfo:
        """Return a snapshot."""
        self._prune()
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

# Guards the set below.
_lock = ForkSafeLock()
_all: WeakSet[LocalCopies] = WeakSet()


def local_copies(
    shared: Any,
    options: CacheOptions,
    names: Iterable[str],
    serving: Callable[[], Collection[Endpoint] | None],
) -> LocalCopies:
    """Return the copies of a process.

    Parameters:
        shared: what caches with the same servers and options have in common. It keeps
            the copies, so that they are freed with it.
        options: what a cache's settings ask for, copies among it.
        names, serving: see :class:`LocalCopies`.
    """
    settings = options.client_side_cache
    assert settings is not None
    with _lock.current:
        found: LocalCopies | None = shared.local_copies.get(settings)
        if found is None:
            found = LocalCopies(settings, _refusal(options), names, serving)
            shared.local_copies[settings] = found
            _all.add(found)
            _relate()
    return found


def _refusal(options: CacheOptions) -> str | None:
    """Return which options of a cache rule out copies, if any do; log it."""
    given = [name for name in _UNTRACKED if options.connection.get(name)]
    if not given:
        return None
    reason = f"OPTIONS have {' and '.join(given)}"
    logger.warning(
        "%s, which a tracking connection does not support: "
        "OPTIONS['client_side_cache'] has no effect.",
        reason,
    )
    return reason


def _relate() -> None:
    """Have all copies know the others of the same servers, whatever their settings."""
    every = list(_all)
    for one in every:
        one.copies.relate(
            other.copies
            for other in every
            if other is not one and other.names & one.names
        )
