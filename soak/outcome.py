"""What a row of the table says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emulator.journal import Stats
from soak.tally import Tally


@dataclass(frozen=True)
class Outcome:
    """The figures of one fault and one subject.

    Parameters:
        errors: raised to the caller.
        connections: opened.
        auths: sent, the first of each connection included.
        token_requests: that reached the identity endpoint.
        closed_in_use: connections that were in use when their token expired.
        note: what else there is to say.
        problems: where it misses its bar; of ours only.
        skipped: why it could not be run.
    """

    errors: int | None = None
    connections: int | None = None
    auths: int | None = None
    token_requests: int | None = None
    closed_in_use: int | None = None
    note: str = ""
    problems: tuple[str, ...] = ()
    skipped: str = ""


@dataclass
class Bars:
    """Collects what an outcome must show."""

    problems: list[str] = field(default_factory=list)

    def equal(self, name: str, value: Any, wanted: Any) -> None:
        """Have a figure be one certain number."""
        if value != wanted:
            self.problems.append(f"{name}: {value}, not {wanted}")

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Have a figure stay below a limit."""
        if value > limit:
            self.problems.append(f"{name}: {value:.6g}, over {limit:.6g}")

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Have a figure reach a limit."""
        if value < limit:
            self.problems.append(f"{name}: {value:.6g}, under {limit:.6g}")

    def sound(self, tally: Tally, *, may_lose: bool = False) -> None:
        """Have every answer be right, nothing applied twice, and nobody stuck.

        Parameters:
            may_lose: whether the server may lose what it has acknowledged.
        """
        self.equal("wrong answers", tally.wrong, 0)
        if not may_lose:
            self.equal("lost writes", tally.lost, 0)
        self.equal("applied twice", tally.twice, 0)
        self.equal("threads stuck", tally.facts.get("stuck"), 0)


def make_outcome(
    tally: Tally, stats: Stats, note: Sequence[str], bars: Bars | None
) -> Outcome:
    """Put a row together; ``bars`` are ours alone."""
    parts = list(note)
    for name, count in (
        ("uncertain", tally.uncertain),
        ("wrong answers", tally.wrong),
        ("lost writes", tally.lost),
        ("applied twice", tally.twice),
        ("threads stuck for ever", tally.facts.get("stuck", 0)),
    ):
        if count:
            parts.append(f"{count} {name}")
    problems: list[str] = []
    if bars is not None and bars.problems:
        kinds = Counter(f"{f.operation}: {f.kind}: {f.text}" for f in tally.failures)
        problems = bars.problems + [
            f"{count} × {text[:120]}"  # noqa: RUF001 - a multiplication sign
            for text, count in kinds.most_common(2)
        ]
    return Outcome(
        errors=tally.errors,
        connections=stats.connections_opened,
        auths=stats.auths,
        token_requests=stats.token_requests,
        closed_in_use=stats.closed_by_expiry_in_use,
        note="; ".join(parts),
        problems=tuple(problems),
    )
