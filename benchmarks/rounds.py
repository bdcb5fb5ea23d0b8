"""Measuring two things against each other, in turns."""

import resource
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: Seconds that one sample takes at least: long against the clock's resolution, short
#: against what else happens on the machine.
SAMPLE = 0.02

#: Does an operation so many times; returns the seconds that they took.
Sample = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Spread:
    """What several samples of one thing say: seconds for each time, or ratios."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Return what some samples say."""
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True, slots=True)
class Duel:
    """Two things, measured in turns; ``ratio`` is theirs to ours, round by round."""

    ours: Spread
    theirs: Spread
    ratio: Spread


def cpu() -> float:
    """Return the seconds of CPU, user and system, that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_of(operation: Callable[[], object]) -> Sample:
    """Return how to sample the CPU time of an operation."""

    def sample(count: int) -> float:
        begin = cpu()
        for _ in range(count):
            operation()
        return cpu() - begin

    return sample


def calibrate(sample: Sample) -> int:
    """Return how many times make one sample; what is slow is done at least once."""
    count = 1
    sample(count)  # what is made at first use is made now
    while True:
        taken = sample(count)
        if taken >= SAMPLE:
            return count
        count = max(count + 1, int(count * min(10.0, 1.2 * SAMPLE / max(taken, 1e-6))))


def duel(ours: Sample, theirs: Sample, rounds: int) -> Iterator[Duel | None]:
    """Sample both in turns; yield ``None`` after each round, in the end the result.

    Each round begins with the other one. Its two samples follow each other at once,
    so that whatever slows the machine down slows down both.
    """
    ours_count, theirs_count = calibrate(ours), calibrate(theirs)
    ours_taken, theirs_taken = [], []
    for number in range(rounds):
        if number % 2:
            theirs_taken.append(theirs(theirs_count) / theirs_count)
        ours_taken.append(ours(ours_count) / ours_count)
        if not number % 2:
            theirs_taken.append(theirs(theirs_count) / theirs_count)
        yield None
    ratios = [b / a for a, b in zip(ours_taken, theirs_taken, strict=True)]
    yield Duel(Spread.of(ours_taken), Spread.of(theirs_taken), Spread.of(ratios))
