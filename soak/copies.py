"""The rows of copies in processes: no read is of what is older than it may be."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from soak.children import ROOT, SoakError, pause
from soak.history import Read, Violation, Write, find_violations
from soak.outcome import Bars, Outcome
from soak.stage import Stage
from soak.subjects import make_settings

#: What the caches' settings ask for: seconds, and bytes.
STALENESS = 1.0
MAX_BYTES = 20_000
PROCESSES = 8
FAULT_EVERY = 2.0
#: Seconds that processes may take to start, and to print what they have done.
PATIENCE = 120.0


@dataclass(frozen=True)
class Found:
    """What processes have read.

    Parameters:
        violations: what no sound cache could have answered.
        errors: raised to a caller.
        reads: how many there were that differ.
        most_bytes: that the copies of a process took.
    """

    violations: list[Violation]
    errors: list[str]
    reads: int
    most_bytes: int


def settings_of(emulator: Mapping[str, Any], cluster: int) -> dict[str, Any]:
    """Return what a process of readers is told of its cache.

    Parameters:
        emulator: its ``emulator.json``.
        cluster: how many primaries there are; 0 is a single node.
    """
    made = make_settings("ours", emulator, "cluster" if cluster else "")
    cache = dict(made["CACHES"]["default"])
    copies = {"max_staleness": STALENESS, "max_bytes": MAX_BYTES}
    cache["OPTIONS"] = {
        "ssl_ca_certs": emulator["ca_file"],
        "client_side_cache": copies,
    }
    # Eight processes at once take their time for everything.
    identities = {
        name: {**identity, "REQUEST_TIMEOUT": PATIENCE}
        for name, identity in made["ENTRA_REDIS"].items()
    }
    return {"cache": cache, "identities": identities}


@contextmanager
def running(
    config: Mapping[str, Any], environment: Mapping[str, str], processes: int
) -> Iterator[Callable[[], Found]]:
    """Run processes of readers; yield what waits for their end.

    Parameters:
        config: what each is told.
        environment: in which they run.
        processes: how many.
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "soak.readers"]
    told = [
        {**config, "processes": processes, "number": number}
        for number in range(processes)
    ]
    started = [
        subprocess.Popen(
            [*command, json.dumps(each)],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for each in told
    ]
    try:
        yield lambda: _found(started)
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _found(processes: list["subprocess.Popen[str]"]) -> Found:
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SoakError("a process of readers has failed")
    histories = [history for output in outputs for history in json.loads(output)]
    writes = [
        Write(each["process"], *write) for each in histories for write in each["writes"]
    ]
    reads = [
        Read(each["process"], *read) for each in histories for read in each["reads"]
    ]
    return Found(
        violations=list(find_violations(writes, reads, STALENESS)),
        errors=[error for each in histories for error in each["errors"]],
        reads=len(reads),
        most_bytes=max(each["most_bytes"] for each in histories),
    )


def play_copies(stage: Stage) -> Outcome:
    """Processes of threads and loops, with dropped connections, FLUSHDB and forks; on a
    cluster with failovers in place of the drops."""
    bars = Bars()
    seconds = 20.0 if stage.short else 600.0
    with stage.emulator() as emulator:
        control = emulator.control
        config = {
            **settings_of(emulator.description, stage.cluster),
            "seconds": seconds,
        }
        with running(config, emulator.environ, PROCESSES) as found:
            began = time.monotonic()
            faults = 0
            while (gone := time.monotonic() - began) < seconds:
                stage.say(f"{gone:.0f} of {seconds:.0f} s, {faults} faults")
                pause(FAULT_EVERY)
                faults += 1
                if not stage.cluster:
                    control.drop_connections()
                    continue
                replica = next(
                    node
                    for node in control.nodes()
                    if node.replica_of == 1 + faults % stage.cluster
                    or node.role == "replica"
                )
                control.failover(replica.number)
            result = found()
        bars.equal("reads of what was too old", len(result.violations), 0)
        bars.equal("errors", len(result.errors), 0)
        bars.at_most("bytes", result.most_bytes, 1.1 * MAX_BYTES)
        bars.at_least("reads", result.reads, 1000)
        stats = control.stats
        oldest = max((each.age for each in result.violations), default=0.0)
        return Outcome(
            errors=len(result.errors),
            connections=stats.connections_opened,
            auths=stats.auths,
            token_requests=stats.token_requests,
            note=f"{result.reads} reads that differ, {faults} faults, "
            f"{len(result.violations)} too old (by {oldest:.1f} s at most)",
            problems=(*bars.problems, *sorted(set(result.errors))[:2]),
        )
