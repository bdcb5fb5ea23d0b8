"""A stampede: ``python -m tests.processes.stampede URL OPTION``.

Eight processes, two hundred tasks in each, all miss one key. Prints how often it was
computed, and what they got.
"""

import asyncio
import json
import os
import sys
from typing import Any

import django

from tests.processes.forks import fork

PROCESSES = 8
TASKS = 200


def main(url: str, option: str) -> None:
    """Fork the processes, and print what became of it."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from django_entra_redis.cache import EntraRedisCache

    options = {"identity": None, "stampede": option == "1" or None}
    cache = EntraRedisCache(url, {"OPTIONS": options})
    cache.set("computed", 0)
    cache.set("here", 0)

    async def compute() -> str:
        # All have missed the key before anybody has it.
        await cache.aincr("computed")
        while option == "0" and await cache.aget("computed") < PROCESSES:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        return "value"

    async def ask() -> list[Any]:
        await cache.aincr("here")
        while await cache.aget("here") < PROCESSES:
            await asyncio.sleep(0.01)
        asking = (cache.aget_or_set("k", compute, 60) for _ in range(TASKS))
        return sorted(set(await asyncio.gather(*asking)))

    children = [fork(lambda: asyncio.run(ask())) for _ in range(PROCESSES)]
    values = sorted({value for child in children for value in child()})
    print(json.dumps({"computed": cache.get("computed"), "values": values}))


if __name__ == "__main__":  # pragma: no branch - nobody imports it
    main(*sys.argv[1:])
