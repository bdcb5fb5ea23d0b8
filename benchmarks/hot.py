"""What a hot key costs: with copies in the process, against caches that have none, or
their own; on loopback, and with a network's delay."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.cache import caches
from django.test import override_settings

from .contenders import (
    CACHES,
    CACHEX,
    DJANGO,
    OURS,
    VCACHE,
    cache_settings,
    one_kilobyte,
)
from .delay import delayed
from .report import Report, Target
from .rounds import Sample, cpu_of
from .servers import RedisServer

COPIES = "with copies"
LOCAL = "LocMemCache"
#: By who has copies of their own: what they are called here, and the options that their
#: manuals ask for.
COPYING: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: (COPIES, {"client_side_cache": True}),
    VCACHE: (f"{VCACHE} {COPIES}", {"CLIENT_SIDE_CACHE": {"ENABLED": True}}),
    CACHEX: (f"{CACHEX} {COPIES}", {"tracking": True}),
}
#: Seconds of a round trip through the proxy.
ROUND_TRIP = 0.001
VALUES: dict[str, Any] = {"1 KB dict": one_kilobyte(), "small int": 7}
#: By whether it is over TLS, and the kind of value: against Django's.
TARGETS = {
    (False, "1 KB dict"): 25.0,
    (False, "small int"): 80.0,
    (True, "1 KB dict"): 30.0,
    (True, "small int"): 100.0,
}


def settings_of(url: str, ca_file: Any) -> dict[str, dict[str, Any]]:
    """Return the caches' settings: each with what it has for hot keys, if anything."""
    made = cache_settings(url, ca_file)
    for number, name in enumerate(CACHES):
        if name in COPYING:
            copying, more = COPYING[name]
            options = {**made[name]["OPTIONS"], **more}
            prefix = f"copy_{number}"
            made[copying] = {**made[name], "KEY_PREFIX": prefix, "OPTIONS": options}
    made[LOCAL] = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    return made


def clock_of(operation: Callable[[], object]) -> Sample:
    """Return how to sample the time that an operation takes by the clock."""

    def sample(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            operation()
        return time.perf_counter() - begin

    return sample


@contextmanager
def caches_at(url: str, ca_file: Any) -> Iterator[None]:
    """Have the caches of the settings lead to a server."""
    with override_settings(CACHES=settings_of(url, ca_file)):
        yield


def getter(name: str, value: Any) -> Callable[[], object]:
    """Return get() of a key that a cache has just read."""
    cache = caches[name]
    cache.set("key", value, None)
    assert cache.get("key") == value
    return lambda: cache.get("key")


def hot_operations(value: Any) -> dict[str, Callable[[], object]]:
    """Return what is measured of a cache with copies: reads that find one, reads that
    find none and make one, and reads of keys that always change."""
    cache: Any = caches[COPIES]
    hit = getter(COPIES, value)

    names = [f"key{number}" for number in range(100)]
    cache.set_many(dict.fromkeys(names, value), None)
    left: list[str] = []

    def miss() -> object:
        if not left:
            # Not drop(): a key that is never hit would be read without a copy.
            cache._cache.local.copies.flush()
            left.extend(names)
        return cache.get(left.pop())

    def change() -> object:
        cache.set("changing", value, None)
        return cache.get("changing")

    return {"hot get": hit, "missed get": miss, "set and get": change}


def measure_hot(server: RedisServer, report: Report) -> None:
    """Measure hits, misses, and a site whose keys all change all the time."""
    tls = server.ca_file is not None
    report.line("get() of a hot key, client CPU time in µs: median (minimum-maximum).")
    report.line()
    report.table("operation", COPIES, "against", "takes", "ratio", "target")
    others = [DJANGO, LOCAL]
    for name in (VCACHE, CACHEX):
        others += [name, COPYING[name][0]] * (name in CACHES)
    with caches_at(server.url, server.ca_file):
        for kind, value in VALUES.items():
            ours = cpu_of(getter(COPIES, value))
            for other in others:
                target = Target(TARGETS[tls, kind]) if other == DJANGO else None
                what = f"get, {kind}{', TLS' * tls}"
                report.versus(what, other, ours, cpu_of(getter(other, value)), target)
        _measure_misses(report, tls=tls)
    if not tls:
        with delayed(server.port, ROUND_TRIP) as port:
            url = f"redis://localhost:{port}"
            with caches_at(url, None):
                for kind, value in VALUES.items():
                    report.versus(
                        f"get, {kind}, 1 ms away, by the clock",
                        DJANGO,
                        clock_of(getter(COPIES, value)),
                        clock_of(getter(DJANGO, value)),
                        Target(100.0),
                    )
    report.line()


def _measure_misses(report: Report, *, tls: bool) -> None:
    value = VALUES["1 KB dict"]
    copying, plain = hot_operations(value), caches[OURS]
    plain.set("key", value, None)

    def change() -> object:
        plain.set("key", value, None)
        return plain.get("key")

    where = ", TLS" * tls
    report.versus(
        f"a miss, 1 KB dict{where}",
        OURS,
        cpu_of(copying["missed get"]),
        cpu_of(lambda: plain.get("key")),
        Target(1 / 1.3),
    )
    report.versus(
        f"set and get, 1 KB dict{where}",
        OURS,
        cpu_of(copying["set and get"]),
        cpu_of(change),
        Target(1 / 1.1),
    )
