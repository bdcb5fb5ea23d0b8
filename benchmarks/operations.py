"""What a cache operation costs: in CPU time, and with threads in time by the clock."""

import itertools
import pickle
import random
import string
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import redis
from django.core.cache import caches
from django.test import override_settings

from .contenders import (
    BARE,
    CACHES,
    CACHEX,
    DJANGO,
    DJANGO_REDIS,
    GLIDE,
    OURS,
    VCACHE,
    cache_settings,
    glide_client,
    one_kilobyte,
)
from .report import Report, Target
from .rounds import Sample, cpu_of
from .servers import RedisServer

Operation = Callable[[], object]
Targets = dict[str, Target | None]

_LETTERS = string.ascii_letters + string.digits


def text(length: int) -> str:
    """Return random letters, always the same."""
    return "".join(random.Random(length).choices(_LETTERS, k=length))


VALUES: dict[str, Any] = {
    "1 KB dict": one_kilobyte(),
    "small int": 7,
    "100 KB": text(100_000),
    "1 MB": text(1_000_000),
}


def _targets(django: float, django_redis: float, vcache: float) -> Targets:
    """Return what a row is to reach; who else is in it is reported."""
    return {
        DJANGO: Target(django),
        DJANGO_REDIS: Target(django_redis),
        VCACHE: Target(vcache),
        CACHEX: None,
    }


_BARE: Targets = {BARE: Target(1.1), GLIDE: None}
_LARGE: Targets = {DJANGO: Target(7.0), DJANGO_REDIS: None, VCACHE: Target(2.0)}
#: By whether it is over TLS: by the kind of value and the operation, the targets.
ROWS: dict[bool, dict[tuple[str, str], Targets]] = {
    False: {
        ("1 KB dict", "get"): _targets(10.0, 4.0, 1.6) | _BARE,
        ("small int", "get"): _targets(14.0, 4.0, 1.6) | _BARE,
        ("1 KB dict", "set"): _targets(10.0, 4.0, 1.6) | _BARE,
        ("small int", "set"): dict.fromkeys((DJANGO, DJANGO_REDIS, VCACHE, CACHEX)),
        ("small int", "incr"): _targets(18.0, 4.0, 1.5) | _BARE,
        ("1 KB dict", "get_many(100)"): _targets(2.4, 1.9, 1.2),
        ("small int", "get_many(100)"): _targets(6.0, 1.9, 1.2),
        ("1 KB dict", "set_many(100)"): _targets(3.7, 4.0, 0.8),
        ("small int", "set_many(100)"): _targets(12.0, 4.0, 0.8),
        ("100 KB", "get"): _LARGE,
        ("1 MB", "get"): _LARGE | {DJANGO: Target(2.5)},
    },
    True: {
        ("1 KB dict", "get"): _targets(7.0, 3.0, 1.1) | {GLIDE: None},
        ("small int", "get"): _targets(8.0, 3.0, 1.1) | {GLIDE: None},
        ("1 KB dict", "set"): dict.fromkeys((DJANGO, DJANGO_REDIS, VCACHE, CACHEX)),
        ("small int", "incr"): dict.fromkeys((DJANGO, DJANGO_REDIS, VCACHE, CACHEX)),
        ("100 KB", "get"): dict.fromkeys((DJANGO, VCACHE)),
        ("1 MB", "get"): dict.fromkeys((DJANGO, VCACHE)),
    },
}
#: By whether it is over TLS: by the number of threads.
THREADS: dict[bool, dict[int, Targets]] = {
    False: {
        8: {
            DJANGO: Target(2.5),
            DJANGO_REDIS: Target(1.4),
            VCACHE: None,
            BARE: Target(1.2),
        }
    },
    True: {
        8: {DJANGO: Target(7.0), DJANGO_REDIS: None, VCACHE: None},
        32: {VCACHE: None},
    },
}


def operations(name: str, value: Any) -> dict[str, Operation]:
    """Return what is measured of a cache, with a value."""
    cache = caches[name]
    # Not of what is large.
    many: dict[str, Any] = {f"many:{number}": 7 for number in range(100)}
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
        "first get": lambda: caches.create_connection(name).get("key"),
        "set": lambda: cache.set("key", value),
        "incr": lambda: cache.incr("count"),
        "get_many(100)": lambda: cache.get_many(keys),
        "set_many(100)": lambda: cache.set_many(many),
    }


def bare_operations(client: Any, value: Any, **expiry: Any) -> dict[str, Operation]:
    """Return the bare commands: no key is made, nothing is pickled."""
    data: Any = value if isinstance(value, int) else pickle.dumps(value)
    if client is None:
        return {}
    if not isinstance(client, redis.Redis) and isinstance(data, int):
        data = str(data)  # The other one takes text and bytes alone.
    client.set("key", data)
    client.set("count", "1")
    return {
        "get": lambda: client.get("key"),
        "set": lambda: client.set("key", data, **expiry),
        "incr": lambda: client.incr("count"),
    }


@contextmanager
def everybody(server: RedisServer) -> Iterator[dict[str, Any]]:
    """Give a redis-py and a valkey-glide client; the settings are in force."""
    settings = cache_settings(server.url, server.ca_file)
    with (
        override_settings(CACHES=settings),
        server.client() as bare,
        glide_client(server.port, server.ca_file) as glide,
    ):
        yield {BARE: bare, GLIDE: glide}


def measure_operations(server: RedisServer, report: Report) -> None:
    """Measure each operation against the alternatives."""
    tls = server.ca_file is not None
    report.line("Client CPU time for each operation, in µs: median (minimum-maximum).")
    report.line()
    report.table("operation", OURS, "against", "takes", "ratio", "target")
    with everybody(server) as clients:
        for (kind, name), targets in ROWS[tls].items():
            value = VALUES[kind]
            ours = operations(OURS, value)[name]
            for other, target in targets.items():
                if other in CACHES:
                    theirs = operations(other, value).get(name)
                elif other == GLIDE:
                    theirs = bare_operations(clients[GLIDE], value).get(name)
                else:
                    theirs = bare_operations(clients.get(other), value, ex=300).get(
                        name
                    )
                if theirs is None:
                    continue  # It is not installed.
                report.versus(
                    f"{name}, {kind}{', TLS' * tls}",
                    other,
                    cpu_of(ours),
                    cpu_of(theirs),
                    target,
                )
    report.line()


def measure_threads(server: RedisServer, report: Report) -> None:
    """Measure get() in several threads of one process."""
    tls = server.ca_file is not None
    report.line(
        "get() of the 1 KB dict in several threads, in µs by the clock for each "
        "operation."
    )
    report.line()
    report.table("operation", OURS, "against", "takes", "ratio", "target")
    value = VALUES["1 KB dict"]
    with everybody(server) as clients:
        client = clients[BARE]
        client.set("key", pickle.dumps(value))
        for number, targets in THREADS[tls].items():
            with ThreadPoolExecutor(number) as threads:

                def sampler(
                    name: str,
                    threads: ThreadPoolExecutor = threads,
                    number: int = number,
                ) -> Sample:
                    if name == BARE:
                        bare: Operation = lambda: client.get("key")  # noqa: E731
                        return _threaded(threads, number, lambda: bare)
                    caches[name].set("key", value)
                    # Each thread has a cache object of its own, as Django has it.
                    return _threaded(threads, number, lambda: _getter(name))

                for other, target in targets.items():
                    if other not in (*CACHES, BARE):
                        continue
                    what = f"get, {number} threads{', TLS' * tls}"
                    report.versus(what, other, sampler(OURS), sampler(other), target)
    report.line()


def _getter(name: str) -> Operation:
    cache = caches[name]
    return lambda: cache.get("key")


def _threaded(
    threads: ThreadPoolExecutor, number: int, make: Callable[[], Operation]
) -> Sample:
    """Return how to sample an operation that all the threads do at once."""

    def sample(count: int) -> float:
        together = threading.Barrier(number)

        def work() -> tuple[float, float]:
            operation = make()
            operation()  # connects, where it has not yet
            together.wait()
            begin = time.perf_counter()
            for _ in itertools.repeat(None, count):
                operation()
            return begin, time.perf_counter()

        working = [threads.submit(work) for _ in range(number)]
        times = [one.result() for one in working]
        return (max(end for _, end in times) - min(at for at, _ in times)) / number

    return sample
