"""A history of versions per key, and what in it no sound cache could have answered.

Each key has one writer, which counts up. All clocks are one: the machine's monotonic
one. Of a reader's reads of one version in a row only the last is kept, the one that is
furthest from when the version was the newest.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Write:
    """A version that was written.

    Parameters:
        process: who wrote it.
        key, version: what.
        ended: when it was known to be written.
    """

    process: int
    key: str
    version: int
    ended: float


@dataclass(frozen=True, slots=True)
class Read:
    """A version that was read.

    Parameters:
        process: who read it.
        key, version: what.
        started: when it was asked for.
    """

    process: int
    key: str
    version: int
    started: float


@dataclass(frozen=True, slots=True)
class Violation:
    """A read of what was too old.

    Parameters:
        read: which.
        newer: the version that should have been read, or a newer one.
        age: seconds since that had been written.
        own: whether the same process had written it.
    """

    read: Read
    newer: int
    age: float
    own: bool


class _Versions:
    """When the versions of a key had been written, at the latest."""

    def __init__(self, writes: Iterable[Write]) -> None:
        ordered = sorted(writes, key=lambda write: write.version)
        self._versions = [write.version for write in ordered]
        # When this version, or any newer one, had been written.
        self._ended = [write.ended for write in ordered]
        for place in range(len(ordered) - 2, -1, -1):
            self._ended[place] = min(self._ended[place : place + 2])

    def after(self, version: int) -> tuple[int, float] | None:
        """Return the next version, and when it or a newer one had been written."""
        place = bisect_right(self._versions, version)
        if place == len(self._versions):
            return None
        return self._versions[place], self._ended[place]


def find_violations(
    writes: Iterable[Write], reads: Iterable[Read], allowance: float
) -> Iterator[Violation]:
    """Yield the reads of what was older than it may be.

    Parameters:
        writes: that succeeded; of others nobody knows whether they were carried out.
        reads: that found something.
        allowance: seconds that a value may be out of date, if another process has
            written the newer one. Own writes are to be read at once.
    """
    # By key, and of all processes (None) or one.
    found: dict[tuple[str, int | None], list[Write]] = defaultdict(list)
    for write in writes:
        found[write.key, None].append(write)
        found[write.key, write.process].append(write)
    versions = {key: _Versions(all_) for key, all_ in found.items()}
    nothing = _Versions(())
    for read in reads:
        for own in (True, False):
            key = read.key, read.process if own else None
            newer = versions.get(key, nothing).after(read.version)
            if newer is None:
                continue
            age = read.started - newer[1]
            if age > (0.0 if own else allowance):
                yield Violation(read, newer[0], age, own)
                break
