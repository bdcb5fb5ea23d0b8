"""The rows that only a Redis Cluster has."""

import time

from soak.outcome import Bars, Outcome
from soak.stage import LIFETIME, Stage

#: What clients may take to notice that the cluster is whole again.
NOTICED = 1.0
#: Seconds that a slot stays with half of its keys moved.
HALFWAY = 0.002


def play_death(stage: Stage) -> Outcome:
    """A primary dies, and its replica takes over."""
    bars = Bars()
    with stage.load() as (emulator, load):
        control = emulator.control
        deaths = 1 if stage.short else 3
        down = []
        for number in range(1, deaths + 1):
            stage.spend(load, 2.0, f"before death {number} of {deaths}, ")
            began = time.monotonic()
            control.kill_node(number)
            stage.say(f"death {number} of {deaths}, the cluster is down")
            control.settle()
            down.append((began, time.monotonic()))
            stage.spend(load, LIFETIME / 2, f"after death {number} of {deaths}, ")
            # As a replica, or the cluster would not outlive the next death.
            control.restart_node(number)
        stage.spend(load, 2.0, "all are back, ")
        tally = load.stop()
        outside = [
            failure
            for failure in tally.failures
            if not any(start <= failure.at <= end + NOTICED for start, end in down)
        ]
        # Replication is asynchronous ("Redis cluster specification", write safety).
        bars.sound(tally, may_lose=True)
        bars.equal("errors while the cluster was up", len(outside), 0)
        bars.at_least("renewals", tally.facts.get("renewals", 0), 1)
        seconds = sum(end - start for start, end in down)
        times = f"{deaths} deaths" if deaths > 1 else "1 death"
        return stage.outcome(
            emulator,
            tally,
            bars,
            f"{times}, {seconds:.1f} s down; {len(outside)} errors while it was up",
            f"longest wait {tally.longest:.1f} s",
        )


def play_resharding(stage: Stage) -> Outcome:
    """A node joins, and takes over some slots of each primary."""
    bars = Bars()
    with stage.load() as (emulator, load):
        control = emulator.control
        stage.spend(load, 2.0)
        stage.say("a node joins")
        joined = control.add_node().number
        slots = 100 if stage.short else 500
        began = time.monotonic()
        for giver in range(1, stage.cluster + 1):
            stage.say(f"{slots} slots leave primary {giver} of {stage.cluster}")
            control.migrate_slots(giver, joined, slots, HALFWAY)
        took = time.monotonic() - began
        control.settle()
        stage.spend(load, LIFETIME, "settled, ")
        tally = load.stop()
        again = [
            record
            for record in control.authentications
            if record.node == joined and record.again
        ]
        bars.sound(tally)
        bars.equal("errors", tally.errors + tally.uncertain, 0)
        closed = control.stats.closed_by_expiry_in_use
        bars.equal("closed in use", closed, 0)
        bars.at_least("renewals at the node that joined", len(again), 1)
        return stage.outcome(
            emulator,
            tally,
            bars,
            f"{stage.cluster * slots} slots in {took:.0f} s",
        )
