"""A test runner that leaves out what it is told to and reports what it ran."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import TestCase, TestSuite, TextTestResult, mock

from django.core.cache import caches
from django.test.runner import DiscoverRunner

# The stubs lack it.
from django.test.utils import iter_test_cases  # type: ignore[attr-defined]

from .adapters import repeated, run_in_loop
from .report import Report
from .selection import TIMED
from .target import Target


def _clear() -> None:  # pragma: no cover - where a busy machine makes a test fail
    for cache in caches.all():
        cache.clear()


class Result(TextTestResult):
    """A result that also knows the names of the tests that were begun."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begun: list[str] = []

    def startTest(self, test: TestCase) -> None:  # noqa: N802 - unittest's name
        """Note the test's name."""
        super().startTest(test)
        self.begun.append(test.id())


class Runner(DiscoverRunner):
    """Django's runner for one target."""

    target = Target.from_environment()

    def build_suite(
        self, test_labels: Sequence[str] | None = None, **kwargs: Any
    ) -> TestSuite:
        """Build the suite without the tests that this target leaves out."""
        suite = super().build_suite(test_labels, **kwargs)
        chosen = TestSuite()
        for test in iter_test_cases(suite):
            name = test.id().rpartition(".")[2]
            if name in TIMED:
                setattr(test, name, repeated(getattr(test, name), _clear))
            if name not in self.target.left_out:
                chosen.addTest(test)
        return chosen

    def run_suite(self, suite: TestSuite, **kwargs: Any) -> Any:
        """Run the tests; each in a loop, if the target wants one for each test."""
        if self.target.backend.endswith("LoopPerTestCache"):
            with mock.patch.object(TestCase, "run", run_in_loop(TestCase.run)):
                return super().run_suite(suite, **kwargs)
        return super().run_suite(suite, **kwargs)

    def get_resultclass(self) -> type[Result]:
        """Return the result class that is reported from."""
        return Result

    def suite_result(self, suite: TestSuite, result: Any, **kwargs: Any) -> int:
        """Write the report; the number of failures, as Django counts them."""
        skipped = frozenset(test.id() for test, _ in result.skipped)
        report = Report(
            ran=frozenset(result.begun) - skipped,
            skipped=skipped,
            failed=frozenset(test.id() for test, _ in result.failures + result.errors),
        )
        Path(self.target.report).write_text(report.dump())
        return super().suite_result(suite, result, **kwargs)
