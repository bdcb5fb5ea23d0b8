"""What one run did, and how two runs compare."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Report:
    """The names of the tests that a run ran, skipped, and saw fail."""

    ran: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    #: Exit status of the process, which fails for more than a test: a warning, say.
    status: int = 0

    def dump(self) -> str:
        """Return what :meth:`load` reads."""
        names = {"ran": self.ran, "skipped": self.skipped, "failed": self.failed}
        return json.dumps({key: sorted(value) for key, value in names.items()})

    @classmethod
    def load(cls, text: str, status: int) -> Self:
        """Return the report that another process dumped before it ended."""
        names = {key: frozenset(value) for key, value in json.loads(text).items()}
        return cls(**names, status=status)

    def __str__(self) -> str:
        """Say the counts."""
        return (
            f"{len(self.ran)} run, {len(self.failed)} failed, "
            f"{len(self.skipped)} skipped, exit status {self.status}"
        )


#: What a run reports that ended before it had anything to report.
NOTHING = Report()


def faults(
    control: Report, ours: Report, left_out: Collection[str], authenticated: int
) -> list[str]:
    """Return what keeps our run from being as good as the control.

    Parameters:
        control: the run on Django's backend.
        ours: the run on this package's.
        left_out: names of test methods that ours need not have run.
        authenticated: times that a token was sent to Redis and accepted.
    """
    found = [] if control.ran else ["the control ran no test"]
    if not authenticated:
        found.append("no connection was authenticated by a token")
    for name, report in (("control", control), ("ours", ours)):
        if report.status != 0:
            found.append(f"exit status of {name}: {report.status}")
    found += [f"failed on the control: {name}" for name in sorted(control.failed)]
    found += [f"failed: {name}" for name in sorted(ours.failed)]
    found += [
        f"ran on the control only: {name}"
        for name in sorted(control.ran - ours.ran)
        if name.rpartition(".")[2] not in left_out
    ]
    return found
