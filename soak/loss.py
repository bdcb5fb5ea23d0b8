"""The row in which the network drops packets, in a network namespace of its own.

``python -m soak.loss`` is what runs in the namespace: emulator, load and
their loopback interface.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

from emulator.journal import Stats
from soak.children import (
    ROOT,
    EmulatorProcess,
    LoadProcess,
    SoakError,
    child_environment,
)
from soak.outcome import Bars, Outcome, make_outcome
from soak.stage import LIFETIME, Stage
from soak.subjects import OURS, SOCKET_TIMEOUT
from soak.tally import Tally

SILENT = 5.0
WATCHED = 6.0
TIMEOUT = 120.0
# A queue without room drops all that is sent.
DROP = ("tc", "qdisc", "add", "dev", "lo", "root", "pfifo", "limit", "0")
PASS = ("tc", "qdisc", "del", "dev", "lo", "root")


def play_loss(stage: Stage) -> Outcome:
    """The network drops every packet, for a while."""
    missing = [name for name in ("unshare", "ip", "tc") if not shutil.which(name)]
    if missing:
        return Outcome(skipped=f"needs {', '.join(missing)} (util-linux, iproute2)")
    enter = ["unshare", "--net"]
    if os.geteuid() != 0:
        enter.insert(1, "--map-root-user")
    probe = [*enter, "ip", "link", "set", "lo", "up"]
    allowed = subprocess.run(probe, capture_output=True, text=True, check=False)
    if allowed.returncode != 0:
        return Outcome(skipped=f"no network namespace here: {allowed.stderr.strip()}")
    stage.say("in a network namespace")
    done = subprocess.run(
        [*enter, sys.executable, "-m", "soak.loss"],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise SoakError(f"the namespace's part failed: {done.stderr[-1500:]}")
    return judge(json.loads(done.stdout))


def judge(found: dict[str, Any]) -> Outcome:
    """Return the row for what was found in the namespace."""
    tally, bars = Tally.from_json(found["tally"]), Bars()
    recovery = max(0.0, found["last"] - found["back"])
    bars.sound(tally)
    bars.at_least("errors", tally.errors + tally.uncertain, 1)
    bars.at_most("s longest wait", tally.longest, 2 * SOCKET_TIMEOUT + 0.5)
    bars.at_most("s to recovery", recovery, 2 * SOCKET_TIMEOUT + 2.0)
    notes = (
        f"longest wait {tally.longest:.1f} s",
        f"back {recovery:.1f} s after its end",
    )
    return make_outcome(tally, Stats(**found["stats"]), notes, bars)


def main() -> int:
    """Run the emulator and the load, with a network that fails."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with EmulatorProcess(LIFETIME) as emulator:
        with LoadProcess(emulator, OURS.name) as load:
            load.tell("mark")
            time.sleep(1.0)
            subprocess.run(DROP, check=True)
            time.sleep(SILENT)
            subprocess.run(PASS, check=True)
            back = time.monotonic()
            time.sleep(WATCHED)
            tally = load.stop()
        stats = emulator.control.stats
    found = {
        "tally": tally.to_json(),
        "stats": dataclasses.asdict(stats),
        "back": back,
        "last": max((failure.at for failure in tally.failures), default=back),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
