"""What a cache operation costs: in CPU time, and with threads in time by the clock."""

import itertools
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
from django.core.cache import caches
from django.test import override_settings

from .contenders import (
    BARE,
    CACHES,
    DJANGO,
    DJANGO_REDIS,
    OURS,
    cache_settings,
    one_kilobyte,
)
from .report import Report, Target
from .rounds import Sample, cpu_of
from .servers import RedisServer

Operation = Callable[[], object]

_GET_SET = {DJANGO: Target(3.0), DJANGO_REDIS: Target(1.4), BARE: Target(1.1)}
TARGETS = {
    "get": _GET_SET,
    "set": _GET_SET,
    "incr": {DJANGO: Target(4.5), DJANGO_REDIS: Target(1.1), BARE: Target(1.0)},
    "get_many(100)": {DJANGO: Target(2.0), DJANGO_REDIS: Target(1.6)},
    "set_many(100)": {DJANGO: Target(2.5), DJANGO_REDIS: Target(2.5)},
}
THREADED = {DJANGO: Target(2.5), DJANGO_REDIS: Target(1.4), BARE: Target(1.2)}
THREADS = 8
VALUES: dict[str, Any] = {"1 KB dict": one_kilobyte(), "small int": 7}


def operations(name: str, value: Any) -> dict[str, Operation]:
    """Return what is measured of a cache, with a value."""
    cache = caches[name]
    many = {f"many:{number}": value for number in range(100)}
    if isinstance(value, dict):
        # As different as values of a cache are.
        many = {key: one_kilobyte(number) for number, key in enumerate(many, 1)}
    keys = list(many)
    cache.set("key", value)
    cache.set("count", 1)
    cache.set_many(many)
    assert cache.get("key") == value
    assert cache.get_many(keys) == many
    return {
        "get": lambda: cache.get("key"),
        "set": lambda: cache.set("key", value),
        "incr": lambda: cache.incr("count"),
        "get_many(100)": lambda: cache.get_many(keys),
        "set_many(100)": lambda: cache.set_many(many),
    }


def bare_operations(client: redis.Redis, value: Any) -> dict[str, Operation]:
    """Return the bare commands: no key is made, nothing is pickled."""
    data = value if isinstance(value, int) else pickle.dumps(value)
    client.set("key", data)
    client.set("count", 1)
    return {
        "get": lambda: client.get("key"),
        "set": lambda: client.set("key", data, ex=300),
        "incr": lambda: client.incr("count"),
    }


def measure_operations(server: RedisServer, report: Report) -> None:
    """Measure each operation against the three alternatives."""
    report.line("Client CPU time for each operation, in µs: median (minimum-maximum).")
    report.line()
    report.table("operation", OURS, "against", "takes", "ratio", "target")
    client = redis.Redis.from_url(server.url)
    with override_settings(CACHES=cache_settings(server.url)), client:
        for kind, value in VALUES.items():
            everybody = {name: operations(name, value) for name in CACHES}
            everybody[BARE] = bare_operations(client, value)
            for name, target in TARGETS.items():
                if name == "incr" and not isinstance(value, int):
                    continue
                for other in (name for name in target if name in everybody):
                    report.versus(
                        f"{name}, {kind}",
                        other,
                        cpu_of(everybody[OURS][name]),
                        cpu_of(everybody[other][name]),
                        target[other],
                    )
    report.line()


def measure_threads(server: RedisServer, report: Report) -> None:
    """Measure get() in several threads of one process."""
    report.line(
        f"get() of the 1 KB dict in {THREADS} threads, in µs by the clock for each "
        "operation."
    )
    report.line()
    report.table("operation", OURS, "against", "takes", "ratio", "target")
    value = VALUES["1 KB dict"]
    client = redis.Redis.from_url(server.url)
    with (
        override_settings(CACHES=cache_settings(server.url)),
        client,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        client.set("key", pickle.dumps(value))

        def sampler(name: str) -> Sample:
            if name == BARE:
                return _threaded(threads, lambda: lambda: client.get("key"))
            caches[name].set("key", value)
            # Each thread has a cache object of its own, as Django has it.
            return _threaded(threads, lambda: _getter(name))

        for other, target in THREADED.items():
            if other not in (*CACHES, BARE):
                continue
            report.versus(
                f"get, {THREADS} threads", other, sampler(OURS), sampler(other), target
            )
    report.line()


def _getter(name: str) -> Operation:
    cache = caches[name]
    return lambda: cache.get("key")


def _threaded(threads: ThreadPoolExecutor, make: Callable[[], Operation]) -> Sample:
    """Return how to sample an operation that all the threads do at once."""

    def sample(count: int) -> float:
        together = threading.Barrier(THREADS)

        def work() -> tuple[float, float]:
            operation = make()
            operation()  # connects, where it has not yet
            together.wait()
            begin = time.perf_counter()
            for _ in itertools.repeat(None, count):
                operation()
            return begin, time.perf_counter()

        working = [threads.submit(work) for _ in range(THREADS)]
        times = [one.result() for one in working]
        return (max(end for _, end in times) - min(at for at, _ in times)) / THREADS

    return sample
