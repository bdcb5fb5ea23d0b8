"""The long run of the fuzzers: as many rounds as there is time for."""

import runpy
import sys
from collections.abc import Sequence

import pytest

from .__main__ import main, run_round


def test_rounds_until_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a seed of its own, and the arguments that are pytest's."""
    rounds: list[tuple[int, Sequence[str]]] = []

    def run(seed: int, arguments: Sequence[str]) -> int:
        rounds.append((seed, arguments))
        return 0

    times = iter([0.0, 60.0, 119.0, 120.0])
    arguments = ["--minutes", "2", "--seed", "7", "-k", "pickle"]
    assert main(arguments, run=run, clock=lambda: next(times)) == 0
    assert rounds == [(seed, ["-k", "pickle"]) for seed in (7, 8, 9)]
    assert capsys.readouterr().out.endswith("3 rounds have found nothing.\n")


def test_a_round_that_fails_is_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    """One round there is at least; its seed is told, and its status is the answer."""
    assert main(["--minutes", "0"], run=lambda seed, arguments: -11) == -11
    told = capsys.readouterr().out
    seed = told.split()[3].rstrip(".")
    assert told.endswith(f"Failed (-11). Again: --seed {seed} --minutes 0\n")


def test_rounds_are_run(capfd: pytest.CaptureFixture[str]) -> None:
    """With the profile and the seed, in a process of its own, which is bounded."""
    assert run_round(1, ["--co", "-k", "test_rounds_are_run"]) == 0
    assert "test_main.py" in capfd.readouterr().out
    assert run_round(1, ["--co"], longest=0.001) == 1
    assert "did not end within 0.001 s" in capfd.readouterr().out


def test_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be asked what it takes."""
    monkeypatch.setattr(sys, "argv", ["fuzz", "--help"])
    monkeypatch.delitem(sys.modules, "tests.fuzz.__main__")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("tests.fuzz", run_name="__main__")
    assert "--minutes" in capsys.readouterr().out
