"""What an operation may cost at most, in figures that do not jitter.

``python -m benchmarks.budgets`` counts the instructions of an operation in user space
(valgrind's callgrind) and its system calls (strace), and fails where one is more than
5 % above its budget. Unlike times, both are the same on a busy machine. The budgets are
for CPython 3.13 with hiredis; another build of it takes a few per cent more or less.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .servers import RedisServer, TlsServer

SLACK = 1.05
#: Done before anything is counted: what is made at first use is made then.
WARM = 50
#: Two counts, so that what each request of the worker costs itself goes out of the sum.
FEW, MANY = 50, 250
TOOLS = ("valgrind", "callgrind_control", "strace")


@dataclass(frozen=True, slots=True)
class Budget:
    """What one operation may cost.

    Parameters:
        kind: of the value.
        operation: its name.
        most: instructions, or system calls.
    """

    kind: str
    operation: str
    most: float

    def __str__(self) -> str:
        return f"{self.operation}, {self.kind}"

    def kept(self, found: float) -> bool:
        """Whether a figure is within the budget, or nearly so."""
        return found <= self.most * SLACK


INSTRUCTIONS = (
    Budget("small int", "get", 22_000),
    Budget("1 KB dict", "get", 62_000),
    Budget("1 KB dict", "set", 54_500),
    Budget("small int", "incr", 23_000),
    Budget("small int", "get_many(100)", 654_000),
    Budget("small int", "set_many(100)", 862_000),
    Budget("small int", "first get", 166_000),
    Budget("small int", "hot get", 12_500),
    Budget("small int", "missed get", 59_500),
)
SYSTEM_CALLS = (
    Budget("small int", "get", 4),
    Budget("small int", "incr", 4),
    Budget("small int", "hot get", 1),
    Budget("small int", "missed get", 3),
)
TLS_SYSTEM_CALLS = (
    Budget("small int", "get", 6),
    Budget("small int", "hot get", 1),
)

#: Does an operation so many times; returns what that cost.
Count = Callable[[Budget, int], int]


def cost(budget: Budget, count: Count) -> float:
    """Return what one operation costs."""
    count(budget, WARM)
    few, many = count(budget, FEW), count(budget, MANY)
    return (many - few) / (MANY - FEW)


class Worker:
    """A worker that another program watches.

    Parameters:
        watcher: the command that runs it.
        server: the server that it works on.
    """

    def __init__(self, watcher: list[str], server: RedisServer) -> None:
        tls = [] if server.ca_file is None else [str(server.ca_file)]
        environment = {
            name: value
            for name, value in os.environ.items()
            # Where tests run this: to trace each line would be most of what it costs.
            if not name.startswith("COVERAGE")
        }
        self.process = subprocess.Popen(
            [
                *(*watcher, sys.executable, "-m", "benchmarks.worker"),
                *(server.url, "with" if find_spec("hiredis") else "without", *tls),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment | {"PYTHONHASHSEED": "0"},
        )
        self.answer()

    def answer(self) -> None:
        """Wait until it has done what it was told to."""
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise SystemExit("The worker has ended; it has said why.")

    def do(self, budget: Budget, count: int) -> None:
        """Have it do an operation so many times."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{budget.kind}:{budget.operation}:{count}\n")
        self.answer()

    def end(self) -> None:
        """End it: it does when there is nothing more to read."""
        with self.process:
            pass


@contextmanager
def callgrind(server: RedisServer) -> Iterator[Count]:
    """Give what counts instructions."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        directory = Path(name)
        worker = Worker(
            [
                *("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"),
                f"--callgrind-out-file={directory / 'out'}",
            ],
            server,
        )

        def control(word: str, *words: str) -> None:
            command = ["callgrind_control", word, *words, str(worker.process.pid)]
            quiet = subprocess.DEVNULL
            subprocess.run(command, check=True, stdout=quiet, stderr=quiet)

        def count(budget: Budget, times: int) -> int:
            control("-z")
            worker.do(budget, times)
            before = set(directory.iterdir())
            control("-d")
            (dumped,) = set(directory.iterdir()) - before
            return instructions_in(dumped.read_text())

        try:
            control("-i", "on")
            yield count
        finally:
            worker.end()


@contextmanager
def strace(server: RedisServer) -> Iterator[Count]:
    """Give what counts system calls."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        log = Path(name, "log")
        worker = Worker(["strace", "-f", "-qq", "-o", str(log)], server)

        def count(budget: Budget, times: int) -> int:
            before = len(calls_in(log.read_text()))
            worker.do(budget, times)
            return len(calls_in(log.read_text())) - before

        try:
            yield count
        finally:
            worker.end()


@dataclass(frozen=True, slots=True)
class Share:
    """Budgets that are counted one after the other, by one worker.

    Parameters:
        what: what is counted.
        budgets: the budgets.
        counting: gives what counts it.
        make_server: makes the server, of the path of a redis-server.
    """

    what: str
    budgets: Sequence[Budget]
    counting: Callable[[RedisServer], AbstractContextManager[Count]]
    make_server: Callable[[str], RedisServer]

    def count(self, redis_server: str) -> list[str]:
        """Count, print what was found, and return the lines that are over budget."""
        if not self.budgets:
            return []
        over = []
        with self.make_server(redis_server) as server, self.counting(server) as count:
            for budget in self.budgets:
                found = cost(budget, count)
                line = f"{budget}: {found:,.1f} {self.what}, budget {budget.most:,}"
                print(line, flush=True)
                if not budget.kept(found):
                    over.append(line)
        return over


def instructions_in(dump: str) -> int:
    """Return the instructions that callgrind has counted, of one of its files."""
    (found,) = re.findall(r"^(?:totals|summary): (\d+)", dump, re.MULTILINE)[-1:]
    return int(found)


def calls_in(log: str) -> list[str]:
    """Return the names of the system calls in strace's log."""
    return re.findall(r"^(?:\d+ +)?(\w+)\(", log, re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    """Count; return 0 if all budgets are kept."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budgets",
        description="Count what operations cost, and compare that with their budgets.",
    )
    parser.add_argument(
        "--redis-server",
        default=os.environ.get("REDIS_SERVER") or shutil.which("redis-server"),
        metavar="PATH",
        help="the redis-server to run (default: $REDIS_SERVER, or the one on PATH)",
    )
    options = parser.parse_args(arguments)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if options.redis_server is None:
        missing.append("redis-server")
    if missing:
        print(f"Not counted: there is no {', no '.join(missing)} (Debian has them).")
        return 1 if os.environ.get("CI") == "true" else 0
    # At the same time, each with a server of its own: none sees what another writes.
    shares = (
        Share("instructions", INSTRUCTIONS[::2], callgrind, RedisServer),
        Share("instructions", INSTRUCTIONS[1::2], callgrind, RedisServer),
        Share("system calls", SYSTEM_CALLS, strace, RedisServer),
        Share("system calls, TLS", TLS_SYSTEM_CALLS, strace, TlsServer),
    )
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        counted = executor.map(lambda share: share.count(options.redis_server), shares)
        over = [line for lines in counted for line in lines]
    for line in over:
        print(f"Over its budget: {line}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
