"""The rows of forks, servers and exits: those are tests, run here as such."""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from soak.children import ROOT, child_environment
from soak.outcome import Outcome
from soak.progress import Progress
from soak.subjects import OURS
from soak.table import Row

TESTS = "tests/processes/test_processes.py"
TIMEOUT = 900.0


class ProcessRows:
    """The tests of processes as rows: each has its name and its figures.

    Parameters:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        # They have emulators of their own, which are like no service in particular.
        # The short form runs in tox beside the tests themselves.
        wanted = not options.profile and (
            "processes" in options.only if options.only else not options.short
        )
        self.count = 1 if wanted else 0
        self._forks = "200" if options.short else "1000"

    def play(self, progress: Progress) -> list[Row]:
        """Run them; return the rows."""
        if not self.count:
            return []
        name = f"processes/{OURS.name}"
        if importlib.util.find_spec("pytest") is None:
            progress.finished(name, "pytest is not installed")
            return [_row("processes", Outcome(skipped="not installed: pytest"))]
        progress.say(name, TESTS)
        with tempfile.TemporaryDirectory(prefix="soak-") as directory:
            report = Path(directory, "junit.xml")
            command = [
                *(
                    sys.executable,
                    "-m",
                    "pytest",
                    TESTS,
                    "-q",
                    "-p",
                    "no:cacheprovider",
                ),
                f"--junit-xml={report}",
                # The family that has properties.
                *("-o", "junit_family=xunit1"),
            ]
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**child_environment(), "SOAK_FORKS": self._forks},
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                rows = [_row("processes", _missed(f"took over {TIMEOUT:.0f} s"))]
            else:
                rows = read_report(report, done.stdout + done.stderr)
        failed = sum(row.failed for row in rows)
        progress.finished(name, f"{len(rows)} tests, {failed} failed")
        return rows


def read_report(report: Path, output: str) -> list[Row]:
    """Return the rows in a JUnit report; ``output`` is what to show without one."""
    if not report.exists():
        return [_row("processes", _missed(output[-500:]))]
    rows = []
    for case in ET.parse(report).iter("testcase"):
        said = {
            entry.get("name", ""): entry.get("value", "")
            for entry in case.iter("property")
        }
        title = said.pop("fault", case.get("name", "?"))
        bad = next(
            (
                case.find(tag)
                for tag in ("failure", "error")
                if case.find(tag) is not None
            ),
            None,
        )
        skipped = case.find("skipped")
        if skipped is not None:
            outcome = Outcome(skipped=skipped.get("message", "skipped"))
        elif bad is not None:
            outcome = _missed((bad.get("message") or "failed").splitlines()[0])
        else:
            outcome = Outcome(
                errors=int(said.pop("errors", "0")),
                connections=_figure(said, "connections"),
                auths=_figure(said, "auths"),
                token_requests=_figure(said, "token_requests"),
                closed_in_use=_figure(said, "closed_in_use"),
                note=said.pop("note", ""),
            )
        rows.append(_row(title, outcome))
    return rows


def _figure(said: dict[str, str], name: str) -> int | None:
    return int(said.pop(name)) if name in said else None


def _row(fault: str, outcome: Outcome) -> Row:
    return Row(fault, OURS.title, outcome, ours=True)


def _missed(text: str) -> Outcome:
    return Outcome(problems=(text,))
