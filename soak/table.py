"""The table, as Markdown that is a table on a terminal too."""

from collections.abc import Sequence
from dataclasses import dataclass

from soak.outcome import Outcome

HEADINGS = (
    "fault",
    "cache",
    "errors",
    "connections",
    "AUTHs",
    "token requests",
    "closed in use",
    "bar",
    "and",
)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    subject: str
    outcome: Outcome
    ours: bool

    @property
    def failed(self) -> bool:
        """Whether it is ours and misses its bar."""
        return self.ours and bool(self.outcome.problems)

    def cells(self) -> tuple[str, ...]:
        """Return its text, column by column."""
        outcome = self.outcome
        if outcome.skipped:
            verdict = "skipped"
        elif not self.ours:
            verdict = "–"  # noqa: RUF001 - a dash
        else:
            verdict = "MISSED" if outcome.problems else "met"
        figures = (
            outcome.errors,
            outcome.connections,
            outcome.auths,
            outcome.token_requests,
            outcome.closed_in_use,
        )
        return (
            self.fault,
            self.subject,
            *("" if figure is None else str(figure) for figure in figures),
            verdict,
            outcome.skipped or "; ".join((outcome.note, *outcome.problems)).strip("; "),
        )


def render(rows: Sequence[Row]) -> str:
    """Return the table, a line for each fault and cache."""
    return _table([HEADINGS, *(row.cells() for row in rows)])


def summarize(rows: Sequence[Row]) -> str:
    """Return the documentation's table: our figures, and the errors of the others."""
    others = list(dict.fromkeys(row.subject for row in rows if not row.ours))
    found = {(row.fault, row.subject): row.cells() for row in rows if not row.ours}
    lines = [("fault", *HEADINGS[2:7], "bar", *(f"errors: {name}" for name in others))]
    for row in rows:
        if row.ours:
            fault, _, *figures = row.cells()[:8]
            beside = (found.get((fault, name), [""] * 3)[2] for name in others)
            lines.append((fault, *figures, *beside))
    return _table(lines)


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [
        max(len(line[column]) for line in lines) for column in range(len(lines[0]))
    ]
    text = ["| " + " | ".join(_padded(lines[0], widths)) + " |"]
    text.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    text += ["| " + " | ".join(_padded(line, widths)) + " |" for line in lines[1:]]
    return "\n".join(text)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
