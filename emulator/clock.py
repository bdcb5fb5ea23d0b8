"""The emulator's own clock."""

from time import monotonic as _monotonic
from time import time as _time


class Clock:
    """Wall time that steps of the machine's clock do not move.

    Tests replace or step `time.time` in the process that the emulator may run in;
    an authority's clock is another machine's, so it must not follow.

    `ahead` is by how many seconds it is ahead of the machine's; settable.
    """

    def __init__(self) -> None:
        self._offset = _time() - _monotonic()
        self.ahead = 0.0

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start."""
        return _monotonic()

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return self._offset + self.ahead + _monotonic()
