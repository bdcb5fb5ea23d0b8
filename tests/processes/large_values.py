"""A process that gets a large value again and again, and prints its page faults.

``python -m tests.processes.large_values URL get|aget``: how many each takes.
"""

import asyncio
import resource
import sys
from typing import Any

from tests.support.caches import make_cache

WARM, COUNTED = 10, 20


def get(cache: Any, times: int) -> None:
    """Get the value so many times."""
    for _ in range(times):
        cache.get("key")


async def aget(cache: Any, times: int) -> None:
    """Do the same in an event loop."""
    for _ in range(times):
        await cache.aget("key")


def faults() -> int:
    """Return how many page faults this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main(url: str, operation: str) -> None:
    """Count."""
    cache, counts = make_cache(url, identity=None), []
    with asyncio.Runner() as runner:
        for times in (WARM, COUNTED):
            if operation == "aget":
                runner.run(aget(cache, times))
            else:
                get(cache, times)
            counts.append(faults())
    print((counts[1] - counts[0]) // COUNTED)


main(*sys.argv[1:])
