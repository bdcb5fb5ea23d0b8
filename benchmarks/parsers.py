"""What hiredis brings: the same operations in two processes, with it and without."""

import subprocess
import sys
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from .report import Report, show, show_ratio
from .rounds import Sample, duel
from .servers import RedisServer

OPERATIONS = ("get", "set", "incr", "get_many(100)", "set_many(100)")


class Worker:
    """A process that samples operations on request.

    Parameters:
        url: the server.
        hiredis: whether it may use hiredis.
    """

    def __init__(self, url: str, *, hiredis: bool) -> None:
        how = "with" if hiredis else "without"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", url, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            process_group=0,
        )

    def __enter__(self) -> Self:
        """Wait until it is ready."""
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it: it does when there is nothing more to read."""
        with self._process:
            pass

    def sampler(self, operation: str) -> Sample:
        """Return how to sample an operation in there."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None

        def sample(count: int) -> float:
            stdin.write(f"1 KB dict:{operation}:{count}\n")
            return float(stdout.readline())

        return sample


def measure_parsers(server: RedisServer, report: Report) -> None:
    """Measure with hiredis and without it."""
    if find_spec("hiredis") is None:
        report.line("hiredis is not installed.")
        report.line()
        return
    report.line(
        "Client CPU time for each operation with the 1 KB dict, in µs, with hiredis "
        "installed and without."
    )
    report.line()
    report.table("operation", "with hiredis", "without", "ratio")
    with (
        Worker(server.url, hiredis=True) as fast,
        Worker(server.url, hiredis=False) as slow,
    ):
        for operation in OPERATIONS:
            result = report.settle(
                f"{operation}, with and without hiredis",
                duel(fast.sampler(operation), slow.sampler(operation), report.rounds),
            )
            report.row(
                operation,
                show(result.ours),
                show(result.theirs),
                show_ratio(result.ratio),
            )
    report.line()
