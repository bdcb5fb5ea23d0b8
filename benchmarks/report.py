"""What is shown: the progress on standard error, the tables on standard output."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from .rounds import Duel, Sample, Spread, duel


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio is to be: at least, or at most, a number."""

    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}x"

    def reached(self, ratio: float) -> bool:
        """Whether a ratio is what it should be."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


class Report:
    """Shows how far the measuring is, and then what has come out of it."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.missed: list[str] = []
        self._live = sys.stderr.isatty()

    def progress(self, text: str) -> None:
        """Say what is being done; on a terminal each line replaces the last."""
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text}")
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def settle(self, what: str, duel: Iterator[Duel | None]) -> Duel:
        """Go through the rounds of a duel; return its result."""
        if not self._live:
            self.progress(what)
        for number, result in enumerate(duel, 1):
            if result is not None:
                return result
            if self._live:
                self.progress(f"{what}: round {number} of {self.rounds}")
        raise AssertionError("a duel ends with its result")

    def line(self, text: str = "") -> None:
        """Print a line of the result."""
        if self._live:
            self.progress("")
        print(text, flush=True)

    def table(self, *heads: str) -> None:
        """Print the head of a table; all columns but the first are numbers."""
        self.line(f"| {' | '.join(heads)} |")
        self.line(f"|---|{'---:|' * (len(heads) - 1)}")

    def row(self, *cells: object) -> None:
        """Print a row."""
        self.line(f"| {' | '.join(map(str, cells))} |")

    def verdict(self, what: str, ratio: Spread, target: Target | None) -> str:
        """Return what to say of a ratio, and remember a target that was missed."""
        if target is None:
            return ""
        if target.reached(ratio.median):
            return f"{target}"
        self.missed.append(f"{what}: {ratio.median:.3f}x, should be {target}")
        return f"{target} **missed**"

    def versus(
        self, what: str, other: str, ours: Sample, theirs: Sample, target: Target | None
    ) -> None:
        """Measure ours against another's; print the row."""
        title = f"{what}, against {other}"
        result = self.settle(title, duel(ours, theirs, self.rounds))
        self.row(
            what,
            show(result.ours),
            other,
            show(result.theirs),
            show_ratio(result.ratio),
            self.verdict(title, result.ratio, target),
        )


def show(spread: Spread, unit: float = 1e-6) -> str:
    """Return a spread as "median (minimum-maximum)"."""
    median, low, high = (
        f"{value / unit:.{2 if value < unit else 1 if value < 100 * unit else 0}f}"
        for value in (spread.median, spread.minimum, spread.maximum)
    )
    return f"{median} ({low}-{high})"


def show_ratio(ratio: Spread, digits: int = 2) -> str:
    """Return a ratio as "median (minimum-maximum)"."""
    low, high = f"{ratio.minimum:.{digits}f}", f"{ratio.maximum:.{digits}f}"
    return f"{ratio.median:.{digits}f}x ({low}-{high})"
