"""Runs the fuzzers for as long as one likes: ``python -m tests.fuzz --minutes 30``.

Round after round, each in a process of its own with another seed, until the time is
over or a round fails. A process that is killed by what it has read, or that reads for
ever, is a failure, too; the seed repeats it.
"""

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
#: Seconds that a round may take; on two cores all fuzzers together take two minutes.
LONGEST_ROUND = 1800.0

#: Runs one round with a seed and further arguments of pytest; returns its status.
Round = Callable[[int, Sequence[str]], int]


def run_round(
    seed: int, arguments: Sequence[str], longest: float = LONGEST_ROUND
) -> int:
    """Run all fuzzers once; return the exit status, 1 where they did not end."""
    command = [
        *(sys.executable, "-W", "error", "-m", "pytest", "-q", str(HERE)),
        *("--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}", *arguments),
    ]
    try:
        return subprocess.run(command, check=False, timeout=longest).returncode
    except subprocess.TimeoutExpired:
        print(f"The round did not end within {longest:g} s.")
        return 1


def main(
    arguments: Sequence[str] | None = None,
    *,
    run: Round = run_round,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run rounds until the time is over; return the exit status of the first to fail.

    Parameters:
        arguments: those of the command line; what is not known here is pytest's.
        run: runs one round.
        clock: seconds, to measure the time with.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="default: 1")
    parser.add_argument("--seed", type=int, help="of the first round; default: any")
    options, rest = parser.parse_known_args(arguments)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    rounds, end = 0, clock() + 60 * options.minutes
    while not rounds or clock() < end:
        print(f"Round {rounds + 1}, seed {seed}.", flush=True)
        status = run(seed, rest)
        if status:
            print(f"Failed ({status}). Again: --seed {seed} --minutes 0")
            return status
        rounds, seed = rounds + 1, seed + 1
    print(f"{rounds} rounds have found nothing.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
