"""What an asynchronous operation costs: one task alone, and a hundred at once."""

import asyncio
import itertools
import pickle
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import redis.asyncio
from django.core.cache import caches
from django.test import override_settings

from .contenders import (
    CACHES,
    CACHEX,
    DJANGO,
    DJANGO_REDIS,
    OURS,
    POOLED,
    VCACHE,
    cache_settings,
    one_kilobyte,
)
from .report import Report, Target
from .rounds import Sample, cpu
from .servers import RedisServer

Operation = Callable[[], Awaitable[object]]

POOL = "redis.asyncio"
TASKS = 100
MANY_TASKS = 1000
#: More than a loop does in a thread before it connects.
WARM = 20
Targets = dict[str, Target | None]
_EVERYBODY: Targets = dict.fromkeys((DJANGO, DJANGO_REDIS, VCACHE, CACHEX, POOL))
#: By the number of tasks, the operation and who else does it.
TARGETS: dict[int, dict[str, Targets]] = {
    TASKS: {
        "aget": _EVERYBODY
        | {
            DJANGO: Target(30.0),
            DJANGO_REDIS: Target(17.0),
            VCACHE: Target(1.6),
            POOL: Target(4.0),
        },
        "aset": _EVERYBODY
        | {DJANGO: Target(15.0), DJANGO_REDIS: Target(10.0), POOL: Target(4.0)},
        "aincr": _EVERYBODY,
        "aget_many(100)": dict.fromkeys((DJANGO, DJANGO_REDIS, VCACHE)),
    },
    MANY_TASKS: {
        "aget": {DJANGO: Target(20.0), DJANGO_REDIS: None, VCACHE: Target(1.1)},
        "aset": {VCACHE: None},
    },
    1: {
        "aget": _EVERYBODY | {DJANGO: Target(3.0)},
        "aset": _EVERYBODY | {DJANGO: Target(3.0)},
    },
}


def operations(name: str) -> dict[str, Operation]:
    """Return what is measured of a cache."""
    cache = caches[name]
    value = one_kilobyte()
    many = {f"many:{number}": one_kilobyte(number) for number in range(1, 101)}
    keys = list(many)
    cache.set("key", value, None)
    cache.set("count", 1, None)
    cache.set_many(many, None)
    return {
        "aget": lambda: cache.aget("key"),
        "aset": lambda: cache.aset("key", value),
        "aincr": lambda: cache.aincr("count"),
        "aget_many(100)": lambda: cache.aget_many(keys),
    }


def bare_operations(client: redis.asyncio.Redis) -> dict[str, Operation]:
    """Return the bare commands: no key is made, nothing is pickled."""
    data = pickle.dumps(one_kilobyte())
    commands: dict[str, Any] = {
        "aget": lambda: client.get("key"),
        "aset": lambda: client.set("key", data, ex=300),
        "aincr": lambda: client.incr("count"),
    }
    return commands


@contextmanager
def connected(server: RedisServer) -> Iterator[tuple[asyncio.Runner, Any]]:
    """Give a loop, and a client with its connections to it."""
    with ExitStack() as stack:
        stack.enter_context(override_settings(CACHES=cache_settings(server.url)))
        runner = stack.enter_context(asyncio.Runner())
        client: Any = redis.asyncio.Redis.from_url(
            server.url, max_connections=MANY_TASKS
        )
        runner.run(client.set("key", pickle.dumps(one_kilobyte())))
        try:
            yield runner, client
        finally:
            runner.run(client.aclose())


def cpu_of(runner: asyncio.Runner, operation: Operation, tasks: int) -> Sample:
    """Return how to sample an operation that so many tasks do again and again."""

    async def repeat(count: int) -> None:
        for _ in itertools.repeat(None, count):
            await operation()

    async def measure(count: int) -> float:
        begin = cpu()
        await asyncio.gather(*(repeat(count) for _ in range(tasks)))
        return (cpu() - begin) / tasks

    runner.run(repeat(WARM))
    return lambda count: runner.run(measure(count))


def measure_tasks(server: RedisServer, report: Report) -> None:
    """Measure asynchronous operations against the alternatives, and connections."""
    report.line(
        "Client CPU time for each operation with the 1 KB dict, in µs: median "
        "(minimum-maximum)."
    )
    report.line()
    report.table("operation", OURS, "against", "takes", "ratio", "target")
    with connected(server) as (runner, client):
        everybody = {name: operations(name) for name in CACHES}
        everybody[POOL] = bare_operations(client)
        for tasks, rows in TARGETS.items():
            for name, targets in rows.items():
                for other in (other for other in targets if other in everybody):
                    what = f"{name}, {tasks} task{'s' if tasks > 1 else ''}"
                    report.versus(
                        what,
                        other,
                        cpu_of(runner, everybody[OURS][name], tasks),
                        cpu_of(runner, everybody[other][name], tasks),
                        targets[other],
                    )
    report.line()
    _measure_connections(server, report)


def _measure_connections(server: RedisServer, report: Report) -> None:
    """Count the connections that the tasks of a new loop open."""
    report.line(f"Connections opened by {TASKS} tasks of one loop, 20 reads each.")
    report.line()
    report.table("by", "connections")
    for name in (*POOLED, POOL):
        with connected(server) as (runner, client):
            operation = (bare_operations(client) if name == POOL else operations(name))[
                "aget"
            ]
            runner.run(_repeat(operation, WARM))
            before = server.connections_opened()
            runner.run(_crowd(operation))
            opened = server.connections_opened() - before
        # The first reads have opened one already.
        report.row(name, opened + 1)
    report.line()


async def _repeat(operation: Operation, count: int) -> None:
    for _ in range(count):
        await operation()


async def _crowd(operation: Operation) -> None:
    await asyncio.gather(*(_repeat(operation, WARM) for _ in range(TASKS)))
