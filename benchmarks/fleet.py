"""What a fleet asks of Entra and of Redis: ``python -m benchmarks.fleet``.

Forty thousand processes start in one deploy and run for three days, with an outage of
the identity endpoint in between. Every decision is the package's own: when a token is
renewed, when a failed request is tried again, when a connection sends AUTH. Only the
clock is simulated. Processes know nothing of each other, so that they are simulated
one after the other, and no queue of events is needed.
"""

import argparse
import math
import random
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from django_entra_redis.conf.policy import Policy
from django_entra_redis.credentials.reauthentication import reauthentication_time
from django_entra_redis.credentials.schedule import (
    renewal_delay,
    retry_cap,
    retry_delay,
)
from django_entra_redis.identity.token import Token

HOUR = 3600.0
#: Seconds that a token request takes.
LATENCY = 0.2
PROGRESS_EVERY = 2000
Jitter = Callable[[], float]


@dataclass(frozen=True)
class Fleet:
    """What is simulated.

    Parameters:
        processes, connections: how many, and how many of the latter each process has.
        nodes: Redis nodes that the connections spread over.
        hours: how long it runs.
        rollout: seconds within which all processes start.
        outage_at, outage: when the endpoint fails, and for how long, in seconds.
        life: seconds that a token is good for.
        jittered: whether there is chance; without, all do everything at the same time.
    """

    processes: int = 40_000
    connections: int = 2
    nodes: int = 20
    hours: float = 72.0
    rollout: float = 60.0
    outage_at: float = 36.3 * HOUR
    outage: float = 600.0
    life: float = 3600.0
    jittered: bool = True

    @property
    def seconds(self) -> int:
        """How long it runs."""
        return int(self.hours * HOUR)

    @property
    def back(self) -> float:
        """When the endpoint works again."""
        return self.outage_at + self.outage


@dataclass(frozen=True)
class Load:
    """What came of it, second by second.

    Parameters:
        fleet: whose load it is.
        requests: token requests of the whole fleet.
        auths: AUTHs at the node that got the most, of all nodes.
        auths_sum: AUTHs at all nodes together.
        expired: tokens that ran out before there was another one.
    """

    fleet: Fleet
    requests: "array[int]"
    auths: "array[int]"
    auths_sum: int
    expired: int

    def peak(self, series: str, start: float, end: float) -> int:
        """Return the highest figure between two times."""
        values: array[int] = getattr(self, series)
        return max(values[int(start) : int(end)], default=0)

    def mean(self, start: float, end: float) -> float:
        """Return the mean of the token requests between two times."""
        part = self.requests[int(start) : int(end)]
        return sum(part) / max(1, len(part))


def simulate(fleet: Fleet, tell: Callable[[int], None] = lambda done: None) -> Load:
    """Run the fleet's processes, one after the other."""
    chance = random.Random(1)
    size = fleet.seconds + int(2 * fleet.life)
    requests = array("I", bytes(4 * size))
    nodes = [array("I", bytes(4 * size)) for _ in range(fleet.nodes)]
    expired = 0
    for number in range(fleet.processes):
        if number % PROGRESS_EVERY == 0:
            tell(number)
        expired += _run_process(fleet, number, chance, requests, nodes)
    end = fleet.seconds
    return Load(
        fleet,
        requests[:end],
        array("I", map(max, zip(*(node[:end] for node in nodes), strict=True))),
        sum(sum(node[:end]) for node in nodes),
        expired,
    )


def _run_process(
    fleet: Fleet,
    number: int,
    chance: random.Random,
    requests: "array[int]",
    nodes: Sequence["array[int]"],
) -> int:
    """Run one process; count what it does, return how often its token ran out."""
    policy, life = Policy(), fleet.life
    begin, back, end = fleet.outage_at, fleet.back, float(fleet.seconds)
    # Without chance: as late as can be, at the same time, with pauses of full length.
    renewal_jitter: Jitter = chance.random if fleet.jittered else lambda: 0.0
    retry_jitter: Jitter = chance.random if fleet.jittered else lambda: 1.0
    connections = [
        (
            chance.random() if fleet.jittered else 0.0,
            nodes[(number + connection) % fleet.nodes],
        )
        for connection in range(fleet.connections)
    ]
    held: Token | None = None
    failures = expired = 0
    failing_since = 0.0
    now = fleet.rollout * chance.random()
    while now < end:
        requests[int(now)] += 1
        if begin <= now < back:
            failures += 1
            failing_since = failing_since if failures > 1 else now
            cap = retry_cap(None)
            if held is not None:
                cap = retry_cap(life, held.expires_at - now, now - failing_since)
            now += LATENCY + retry_delay(failures, cap, None, retry_jitter())
            continue
        failures = 0
        at = now + LATENCY
        token = Token("", "", {}, at, at + life, at + life)
        if held is not None and held.expires_at <= at:
            expired += 1
            held = None
        for share, node in connections:
            # The first AUTH is part of connecting.
            auth = at if held is None else reauthentication_time(held, token, share)
            node[int(auth)] += 1
        held = token
        now = at + renewal_delay(life, policy, renewal_jitter())
    return expired


def worst_moment(after: float, outage: float, life: float) -> float:
    """Return when an outage meets all those who renew at the same time."""
    period = LATENCY + renewal_delay(life, Policy(), 0.0)
    return math.ceil(after / period) * period - outage / 2


def report(loads: Sequence[Load]) -> str:
    """Return the table."""
    fleet = loads[0].fleet
    deploy = 2 * fleet.rollout + 60
    wave = fleet.life
    last_day = fleet.seconds - 24 * HOUR
    moments = [
        ("deploy, the first minutes", 0.0, deploy),
        ("first renewals", deploy, wave),
        ("hours 2 to 12", wave, 12 * HOUR),
        ("hours 12 to the outage", 12 * HOUR, fleet.outage_at),
        ("during the outage", fleet.outage_at, fleet.back),
        ("first minute after it", fleet.back, fleet.back + 60),
        ("the hour after that", fleet.back + 60, fleet.back + HOUR),
        ("last day", last_day, float(fleet.seconds)),
        ("in all", 0.0, float(fleet.seconds)),
    ]
    lines = [
        f"{fleet.processes:,} processes with {fleet.connections} connections each to "
        f"{fleet.nodes} nodes, all started within {fleet.rollout:.0f} s; tokens of "
        f"{fleet.life / 60:.0f} min; {fleet.hours:.0f} h, the identity endpoint down "
        f"for {fleet.outage / 60:.0f} min after {fleet.outage_at / HOUR:.1f} h.",
        "",
        "| | token requests/s, peak (mean) | | AUTHs/s at one node, peak | |",
        "|---|---|---|---|---|",
        "| | with jitter | without | with jitter | without |",
    ]
    for title, start, end in moments:
        requests = [
            f"{load.peak('requests', start, end):,} ({load.mean(start, end):.1f})"
            for load in loads
        ]
        auths = [f"{load.peak('auths', start, end):,}" for load in loads]
        lines.append(f"| {title} | {' | '.join(requests + auths)} |")
    for load in loads:
        kind = "with jitter" if load.fleet.jittered else "without"
        mean = load.auths_sum / fleet.seconds / fleet.nodes
        lines.append("")
        lines.append(
            f"{kind}: {sum(load.requests):,} token requests, {load.auths_sum:,} AUTHs "
            f"({mean:.1f} a second and node on average), {load.expired:,} tokens ran "
            "out before there was a new one."
        )
    return "\n".join(lines)


# -- the plot

WIDTH, PANEL, LEFT, TOP, GAP = 860, 200, 64, 48, 56
BUCKET = 600
COLOURS = {True: "#0b6e4f", False: "#c8553d"}


def draw(loads: Sequence[Load]) -> str:
    """Return the plot as SVG: the peak of each ten minutes, on a logarithmic scale."""
    fleet = loads[0].fleet
    height = TOP + 2 * PANEL + GAP + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        "<title>Load of a fleet on Entra and on Redis, with and without jitter</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, (series, title) in enumerate(
        (
            ("requests", "token requests per second, whole fleet (peak in 10 min)"),
            ("auths", "AUTHs per second at the busiest node (peak in 10 min)"),
        )
    ):
        parts += _panel(loads, series, title, TOP + number * (PANEL + GAP))
    for number, load in enumerate(loads):
        x = LEFT + number * 150
        jittered = load.fleet.jittered
        parts.append(
            f'<rect x="{x}" y="12" width="18" height="4" fill="{COLOURS[jittered]}"/>'
            f'<text x="{x + 24}" y="18">{"with" if jittered else "without"} jitter'
            "</text>"
        )
    label = f"hours since the deploy of {fleet.processes:,} processes"
    parts.append(f'<text x="{LEFT}" y="{height - 6}">{label}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(loads: Sequence[Load], series: str, title: str, top: float) -> list[str]:
    fleet = loads[0].fleet
    span = WIDTH - LEFT - 16
    curves = [
        [
            load.peak(series, start, start + BUCKET)
            for start in range(0, fleet.seconds, BUCKET)
        ]
        for load in loads
    ]
    decades = max(1, math.ceil(math.log10(max(1, *map(max, curves)))))

    def x(seconds: float) -> float:
        return LEFT + span * seconds / fleet.seconds

    def y(value: float) -> float:
        return top + PANEL * (1 - math.log10(max(1.0, value)) / decades)

    parts = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{title}</text>']
    outage = (x(fleet.outage_at), max(2.0, x(fleet.back) - x(fleet.outage_at)))
    parts.append(
        f'<rect x="{outage[0]:.1f}" y="{top}" width="{outage[1]:.1f}" '
        f'height="{PANEL}" fill="#f3d9a4"/><text x="{outage[0] + 6:.1f}" '
        f'y="{top + 14}" fill="#8a6d1d">identity outage</text>'
    )
    for decade in range(decades + 1):
        parts.append(
            f'<path d="M{LEFT} {y(10**decade):.1f}H{LEFT + span}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y(10**decade) + 4:.1f}" text-anchor="end">'
            f"{10**decade:,}</text>"
        )
    for hour in range(0, int(fleet.hours) + 1, 12):
        parts.append(
            f'<text x="{x(hour * HOUR):.1f}" y="{top + PANEL + 16}" '
            f'text-anchor="middle">{hour}</text>'
        )
    # What is drawn last lies on top.
    for load, curve in reversed(list(zip(loads, curves, strict=True))):
        points = " ".join(
            f"{x(number * BUCKET):.1f},{y(value):.1f}"
            for number, value in enumerate(curve)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke-width="1.3" '
            f'stroke="{COLOURS[load.fleet.jittered]}"/>'
        )
    return parts


# -- the command


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    fleet = Fleet()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("processes", "connections", "nodes"):
        parser.add_argument(f"--{name}", type=int, default=getattr(fleet, name))
    for name, what in {
        "hours": "how long",
        "rollout": "seconds that the deploy takes",
        "outage": "seconds that the identity endpoint is down, half-way",
        "life": "seconds that a token is good for",
    }.items():
        parser.add_argument(
            f"--{name}",
            type=float,
            default=getattr(fleet, name),
            help=f"{what} (default: %(default)g)",
        )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw it there, as SVG"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print, draw."""
    options = vars(parse(arguments))
    plot = options.pop("plot")
    options["outage_at"] = worst_moment(
        options["hours"] * HOUR / 2, options["outage"], options["life"]
    )
    fleets = [Fleet(**options, jittered=jittered) for jittered in (True, False)]
    began = time.monotonic()
    with ProcessPoolExecutor(2) as executor:
        without = executor.submit(simulate, fleets[1])
        loads = [simulate(fleets[0], _teller(fleets[0].processes)), without.result()]
    print(f"\r{time.monotonic() - began:.0f} s{' ' * 40}", file=sys.stderr)
    print(report(loads))
    if plot is not None:
        plot.write_text(draw(loads))
    return 0


def _teller(total: int) -> Callable[[int], None]:
    def tell(done: int) -> None:
        if sys.stderr.isatty():
            text = f"\r{done:,} of {total:,} processes simulated"
            print(text, end="", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
