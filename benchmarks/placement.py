"""Which CPUs the client and the servers run on.

Where the two are on different CPUs, waking the other one up is part of what a send
costs, and on a virtual machine may be most of it; left to itself, the system changes
its mind within a run. On one CPU the figures are steady.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PLACEMENTS = ("one", "two", "any")


@contextmanager
def placed(how: str) -> Iterator[Sequence[int]]:
    """Keep this process to its CPU for a while; yield those for the servers.

    Parameters:
        how: "one" for both, "two" for one each, "any" for what the system thinks best.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    free = os.sched_getaffinity(0)
    first, last = min(free), max(free)
    ours, servers = {
        "one": ({first}, {first}),
        "two": ({first}, {last}),
        "any": (free, free),
    }[how]
    os.sched_setaffinity(0, ours)
    try:
        yield sorted(servers)
    finally:
        os.sched_setaffinity(0, free)
