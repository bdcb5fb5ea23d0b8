"""The verdict on a run of Django's tests: it must not pass for the wrong reason."""

from dataclasses import replace

import pytest

from .adapters import repeated
from .report import NOTHING, Report, faults

CONTROL = Report(
    ran=frozenset({"t.A.test_get", "t.A.test_set", "t.A.test_private"}),
    skipped=frozenset({"t.A.test_cull"}),
)
OURS = Report(ran=frozenset({"t.A.test_get", "t.A.test_set"}))
LEFT_OUT = {"test_private"}


def test_as_good_as_the_control() -> None:
    """Only what is left out by name may be missing."""
    assert faults(CONTROL, OURS, LEFT_OUT, 1) == []


def test_a_failure_is_a_fault() -> None:
    """A failed test fails the run, on either side."""
    broken = replace(OURS, failed=frozenset({"t.A.test_get"}))
    assert faults(CONTROL, broken, LEFT_OUT, 1) == ["failed: t.A.test_get"]
    control = replace(CONTROL, failed=frozenset({"t.A.test_set"}))
    assert faults(control, OURS, LEFT_OUT, 1) == ["failed on the control: t.A.test_set"]


def test_a_missing_test_is_a_fault() -> None:
    """A test that ran on the control only fails the run."""
    assert faults(CONTROL, OURS, (), 1) == ["ran on the control only: t.A.test_private"]


def test_nothing_is_a_fault() -> None:
    """Two runs that did nothing agree, and are worth nothing."""
    assert faults(NOTHING, NOTHING, LEFT_OUT, 0) == [
        "the control ran no test",
        "no connection was authenticated by a token",
    ]


@pytest.mark.parametrize("status", [1, -9])
def test_an_exit_status_is_a_fault(status: int) -> None:
    """A process that failed without a failed test fails the run."""
    assert faults(CONTROL, replace(OURS, status=status), LEFT_OUT, 1) == [
        f"exit status of ours: {status}"
    ]


def test_a_report_survives_the_way_to_another_process() -> None:
    """What is dumped is loaded, with the status that only the parent knows."""
    assert Report.load(CONTROL.dump(), 3) == replace(CONTROL, status=3)


@pytest.mark.parametrize("failures", range(4))
def test_a_timed_test_is_tried_again(failures: int) -> None:
    """Twice, with nothing left of the try before."""
    cleared: list[int] = []
    outcomes = iter([False] * failures + [True])

    def test() -> str:
        assert next(outcomes)
        return "passed"

    again = repeated(test, lambda: cleared.append(1))
    if failures < 3:
        assert again() == "passed"
    else:
        with pytest.raises(AssertionError):
            again()
    assert len(cleared) == min(failures, 2)
