"""The budgets: that what is counted is read right, and that one can be missed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import budgets
from benchmarks.budgets import Budget, calls_in, cost, instructions_in

ROOT = Path(__file__).resolve().parents[2]
GET = Budget("small int", "get", 100)


def test_cost() -> None:
    """What the worker's own work costs each time is in no figure."""
    assert cost(GET, lambda _, times: 1000 + 7 * times) == 7


@pytest.mark.parametrize(("found", "kept"), [(99, True), (105, True), (106, False)])
def test_slack(found: float, kept: bool) -> None:
    """Five per cent above a budget is another compiler's."""
    assert GET.kept(found) is kept


def test_instructions() -> None:
    """The last sum of a file is that of all."""
    assert instructions_in("events: Ir\nsummary: 5\n\ntotals: 12\n") == 12
    assert instructions_in("events: Ir\nsummary: 7\n") == 7


def test_calls() -> None:
    """Each line has one, with and without a process' id; what is no call is none."""
    log = """\
12 sendto(5, "x", 1, 0, NULL, 0) = 1
12 recvfrom(5, "x", 1, 0, NULL, NULL) = 1
poll([{fd=5}], 1, 0) = 0 (Timeout)
12 --- SIGTERM {si_signo=SIGTERM} ---
12 +++ exited with 0 +++
"""
    assert calls_in(log) == ["sendto", "recvfrom", "poll"]


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_without_the_tools(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ci: str,
    status: int,
) -> None:
    """Nothing is counted without them; where nothing may be left out that fails."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert budgets.main([]) == status
    assert "no strace" in capsys.readouterr().out


@pytest.mark.usefixtures("redis_server")
@pytest.mark.parametrize(("most", "status"), [(10, 0), (1, 1)])
def test_it_counts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    most: float,
    status: int,
) -> None:
    """System calls of a real operation; one that costs more than it may is told."""
    if shutil.which("strace") is None:  # pragma: no cover - a machine has it or not
        pytest.skip("no strace (Debian: apt-get install strace)")
    monkeypatch.setattr(budgets, "TOOLS", ("strace",))
    monkeypatch.setattr(budgets, "INSTRUCTIONS", ())
    monkeypatch.setattr(budgets, "TLS_SYSTEM_CALLS", ())
    monkeypatch.setattr(budgets, "SYSTEM_CALLS", (Budget("small int", "get", most),))
    assert budgets.main([]) == status
    printed = capsys.readouterr()
    assert "get, small int: " in printed.out
    assert ("Over its budget" in printed.err) is (status == 1)


def test_help() -> None:
    """It is a command of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.budgets", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "--redis-server" in done.stdout
