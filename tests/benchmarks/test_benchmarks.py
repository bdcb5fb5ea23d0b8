"""The benchmark: that it runs, and counts right. What it measures is not tested."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.report import Report, Target, show, show_ratio
from benchmarks.rounds import Duel, Spread, calibrate, cpu_of, duel

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("redis_server")
def test_it_runs() -> None:
    """One command measures and prints tables, with its progress elsewhere."""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "benchmarks"),
            *("--rounds", "1", "operations", "threads", "connections"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Python ")
    for line in (
        "### operations",
        "| get, 1 KB dict |",
        "| set_many(100), small int |",
        "| get, 8 threads |",
        "| 200 short threads | 1 + 0, of 1 |",
        "| django-entra-redis | 0 |",
    ):
        assert line in done.stdout
    assert "incr, small int, against Django RedisCache" in done.stderr
    # Whether it is as fast as it should be is not for a test to say.
    assert "more connections than reads" not in done.stdout


@pytest.mark.usefixtures("redis_server")
def test_profile() -> None:
    """Where the time goes is shown on request."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", "--profile", "incr"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "function calls" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["speed"], "no such part: speed"),
        (["--rounds", "0"], "--rounds should be 1 or more"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str) -> None:
    """What it can't do it says."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert said in done.stderr


def test_duel() -> None:
    """Both are measured in turns; the ratio is theirs to ours, in the median."""
    turns: list[str] = []

    def ours(count: int) -> float:
        turns.append("ours")
        return 0.02 * count

    def theirs(count: int) -> float:
        turns.append("theirs")
        return 0.05 * count

    *rounds, result = duel(ours, theirs, 2)
    assert rounds == [None, None]
    assert turns[-4:] == ["ours", "theirs", "theirs", "ours"]
    assert isinstance(result, Duel)
    assert result.ratio.median == pytest.approx(2.5)
    assert result.ours == Spread(0.02, 0.02, 0.02)
    assert result.theirs.median == pytest.approx(0.05)


def test_calibrate() -> None:
    """What is fast is done often enough for a sample; the clock tells."""
    assert calibrate(cpu_of(lambda: None)) > 100


@pytest.mark.parametrize(
    ("target", "ratio", "expected"),
    [
        (Target(1.4), 1.4, True),
        (Target(1.4), 1.399, False),
        (Target(1.02, at_most=True), 1.02, True),
        (Target(1.02, at_most=True), 1.021, False),
    ],
)
def test_target(target: Target, ratio: float, expected: bool) -> None:
    """A target is reached, or not quite."""
    assert target.reached(ratio) is expected


def test_missed_targets(capsys: pytest.CaptureFixture[str]) -> None:
    """A target that was missed is marked, and told again in the end."""
    report = Report(rounds=1)
    assert report.verdict("get", Spread(1.3, 1.5, 1.6), Target(1.4)) == ">= 1.4x"
    assert report.verdict("get", Spread(1, 1, 1), None) == ""
    assert report.missed == []
    ratio = Spread(1.1, 1.2, 1.5)
    assert report.verdict("set", ratio, Target(1.4)) == ">= 1.4x **missed**"
    assert report.missed == ["set: 1.200x, should be >= 1.4x"]
    assert show_ratio(ratio) == "1.20x (1.10-1.50)"
    report.table("what", "takes")
    report.row("get", show(Spread(1e-6, 2e-6, 3e-3)))
    assert capsys.readouterr().out.splitlines() == [
        "| what | takes |",
        "|---|---:|",
        "| get | 2.0 (1.0-3000) |",
    ]


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal the progress stays on one line, which results replace."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    report = Report(rounds=1)
    result = Duel(Spread(1, 1, 1), Spread(2, 2, 2), Spread(2, 2, 2))

    def rounds() -> Iterator[Duel | None]:
        yield None
        yield result

    assert report.settle("get", rounds()) is result
    report.line("done")
    printed = capsys.readouterr()
    assert "\r\x1b[Kget: round 1 of 1" in printed.err
    assert printed.err.endswith("\r\x1b[K")
    assert printed.out == "done\n"
