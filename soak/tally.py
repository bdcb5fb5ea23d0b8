"""What a load process has counted."""

import threading
from dataclasses import asdict, dataclass, field
from typing import Any

#: Failures kept one by one; beyond that they are only counted.
KEPT = 20_000


@dataclass(frozen=True)
class Failure:
    """An operation that raised; ``at`` is its end, by the machine's monotonic clock."""

    at: float
    operation: str
    kind: str
    text: str


@dataclass(frozen=True)
class Tally:
    """A load process's figures.

    Parameters:
        operations: how many were carried out, failed ones included.
        errors: those that raised where they should not have.
        uncertain: ``incr`` and ``add`` that ended in an error of their own, which says
            that it is unknown whether they were applied.
        wrong: answers that were another key's, or for another user.
        lost: answers that were older than what had been stored.
        twice: ``incr`` and ``add`` that were applied twice.
        longest: seconds of the longest operation, since the load was told ``mark``.
        failures: the first of what raised, one by one.
        facts: whatever else a load has to say.
    """

    operations: int = 0
    errors: int = 0
    uncertain: int = 0
    wrong: int = 0
    lost: int = 0
    twice: int = 0
    longest: float = 0.0
    failures: tuple[Failure, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tally":
        """Return what :meth:`to_json` made."""
        failures = tuple(Failure(**failure) for failure in content["failures"])
        return cls(**{**content, "failures": failures})


class Counter:
    """Counts, for the threads of a load process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = dict.fromkeys(
            ("operations", "errors", "uncertain", "wrong", "lost", "twice"), 0
        )
        self._longest = 0.0
        self._failures: list[Failure] = []
        self.facts: dict[str, Any] = {}

    def count(self, name: str) -> None:
        """Add one."""
        with self._lock:
            self._sums[name] += 1

    def took(self, seconds: float) -> None:
        """Note an operation, and how long it took."""
        with self._lock:
            self._sums["operations"] += 1
            self._longest = max(self._longest, seconds)

    def mark(self) -> None:
        """Have the longest operation be the longest from now on."""
        with self._lock:
            self._longest = 0.0

    def failed(self, failure: Failure, name: str) -> None:
        """Note what raised: ``errors`` or ``uncertain``."""
        with self._lock:
            self._sums[name] += 1
            if len(self._failures) < KEPT:
                self._failures.append(failure)

    def tally(self, *, whole: bool) -> Tally:
        """Return the figures; without ``whole``, without the failures one by one."""
        with self._lock:
            failures = tuple(self._failures) if whole else ()
            return Tally(
                **self._sums,
                longest=self._longest,
                failures=failures,
                facts=dict(self.facts),
            )
