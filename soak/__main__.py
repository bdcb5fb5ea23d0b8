"""Run the soak: ``python -m soak``."""

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from emulator import PROFILES
from soak.children import stopping
from soak.outcome import Outcome
from soak.processes import ProcessRows
from soak.progress import Progress
from soak.scenarios import Scenario, make_scenarios
from soak.stage import Stage
from soak.subjects import OURS, Subject
from soak.table import Row, render, summarize

DESCRIPTION = """\
Puts a cache through faults under steady load from 8 threads, against the emulator with
tokens that live for 6 s: a minute stands for ten hours. Every row has processes of its
own. The exit status is 1 when a row of ours misses its bar.
"""
DISTRIBUTIONS = ("django", "redis", "msal", "redis-entraid", "django-redis")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    scenarios = make_scenarios()
    names = [scenario.name for scenario in scenarios]
    left_out = ", ".join(s.name for s in scenarios if not s.short_subjects)
    parser = argparse.ArgumentParser(
        prog="python -m soak",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="under 3 minutes in place of 15: fewer renewals, the alternatives in the "
        "first rows only, and none of these rows, unless they are named: "
        f"{left_out}, processes",
    )
    parser.add_argument(
        "--ours", action="store_true", help="leave the alternatives out"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[*names, "processes"],
        metavar="ROW",
        help=f"this row, may be given again: {', '.join(names)}, processes",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=max(2, 2 * (os.cpu_count() or 1)),
        metavar="N",
        help="rows at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="play a row that misses its bar once more, alone: the machine may have "
        "been busy with something else",
    )
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        help="the service of Azure that the emulator is like, with the rows for it",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the table there too"
    )
    return parser.parse_args(arguments)


def choose(options: argparse.Namespace) -> list[tuple[Scenario, Subject]]:
    """Return the rows that are asked for."""
    chosen = []
    profile = PROFILES[options.profile] if options.profile else None
    for scenario in make_scenarios():
        if options.only and scenario.name not in options.only:
            continue
        # A cluster is one service's alone, and that is nothing else.
        if profile and bool(profile.primaries) != bool(scenario.cluster):
            continue
        if profile and profile.blocked & scenario.commands:
            continue
        subjects = scenario.subjects
        if options.short:
            subjects = scenario.short_subjects or ((OURS,) if options.only else ())
        chosen += [
            (scenario, subject)
            for subject in subjects
            if subject is OURS or not options.ours
        ]
    return chosen


def play(
    scenario: Scenario,
    subject: Subject,
    progress: Progress,
    *,
    short: bool,
    profile: str | None = None,
) -> Outcome:
    """Run one row."""
    name = f"{scenario.name}/{subject.name}"
    if hindrance := scenario.hindrance(subject):
        outcome = Outcome(skipped=hindrance)
    else:
        stage = Stage(
            subject,
            short,
            lambda text: progress.say(name, text),
            scenario.cluster,
            profile,
        )
        try:
            outcome = scenario.play(stage)
        except Exception as error:
            # A row that cannot be run is told of with the others.
            outcome = Outcome(problems=(f"{type(error).__name__}: {error}",))
    text = outcome.skipped or (
        f"{outcome.errors} errors" if outcome.errors is not None else "not run"
    )
    if outcome.problems:
        text += f"; {'; '.join(outcome.problems)}"
    progress.finished(name, text)
    return outcome


def play_again(
    outcomes: Mapping[tuple[Scenario, Subject], Outcome],
    progress: Progress,
    *,
    short: bool,
    profile: str | None = None,
) -> dict[tuple[Scenario, Subject], Outcome]:
    """Run the rows that missed their bar once more, one by one; return them."""
    seconds = {}
    for (scenario, subject), outcome in outcomes.items():
        if subject is OURS and outcome.problems:
            second = play(scenario, subject, progress, short=short, profile=profile)
            note = f"at the second try; {second.note}".removesuffix("; ")
            seconds[scenario, subject] = replace(second, note=note)
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; return the exit status."""
    options = parse(arguments)
    # As Ctrl-C: the processes of the rows that run are to be ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Play the rows that are asked for; print the table."""
    began = time.monotonic()
    chosen = choose(options)
    processes = ProcessRows(options)
    how = {"short": options.short, "profile": options.profile}
    longest_first = sorted(chosen, key=lambda pair: -pair[0].weight)
    with (
        Progress(len(chosen) + processes.count) as progress,
        ThreadPoolExecutor(options.jobs) as executor,
    ):
        futures = {
            pair: executor.submit(play, *pair, progress, **how)
            for pair in longest_first
        }
        try:
            process_rows = processes.play(progress)
            outcomes = {pair: futures[pair].result() for pair in chosen}
            if options.again:
                outcomes |= play_again(outcomes, progress, **how)
                if any(row.failed for row in process_rows):
                    process_rows = processes.play(progress)
        except KeyboardInterrupt:
            stopping.set()
            executor.shutdown(cancel_futures=True)
            raise
    rows = [
        Row(scenario.fault, subject.title, outcome, ours=subject is OURS)
        for (scenario, subject), outcome in outcomes.items()
    ]
    rows += process_rows
    tables = f"{render(rows)}\n\n{summarize(rows)}"
    text = f"{tables}\n\n{_colophon(time.monotonic() - began)}\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text)
    return 1 if any(row.failed for row in rows) else 0


def _colophon(seconds: float) -> str:
    versions = []
    for name in DISTRIBUTIONS:
        try:
            versions.append(f"{name} {version(name)}")
        except ImportError:
            versions.append(f"no {name}")
    return (
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{', '.join(versions)}; {os.cpu_count()} cores; {seconds:.0f} s in all."
    )


if __name__ == "__main__":
    sys.exit(main())
