"""The report of a live run."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """Lines of what was tried, and what came of it."""

    lines: list[str] = field(default_factory=list)

    def add(self, what: str, outcome: object) -> None:
        """Add a line.

        Parameters:
            what: the thing that was tried.
            outcome: what came of it; never a host, a principal or a secret.
        """
        self.lines.append(f"{what}: {outcome}")
