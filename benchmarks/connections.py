"""How many connections are opened, and what happens when there are no more."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import redis
from django.core.asgi import get_asgi_application
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.test import override_settings

from .contenders import DJANGO_REDIS, OURS, POOLED, cache_settings
from .report import Report
from .servers import RedisServer

LIMIT = 4
THREADS = 32


class InFlight:
    """Counts how many reads of a cache are under way at once."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._now -= 1


@contextmanager
def counted(name: str) -> Iterator[InFlight]:
    """Count a cache's reads while they are under way."""
    kind, calls = type(caches[name]), InFlight()
    get, aget = kind.get, kind.aget

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calls:
            return get(self, *args, **kwargs)

    async def acounting(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calls:
            return await aget(self, *args, **kwargs)

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(kind, "get", counting))
        # Django's own waits for a thread, and calls the other one there.
        if aget is not BaseCache.aget:
            patches.enter_context(mock.patch.object(kind, "aget", acounting))
        yield calls


def at_once(name: str) -> None:
    """Read the cache in 32 threads that run at the same time."""
    _in_threads(lambda: caches[name].get("key"))


def one_by_one(name: str) -> None:
    """Read the cache in 200 threads, one after the other."""
    for _ in range(200):
        thread = threading.Thread(target=lambda: caches[name].get("key"))
        thread.start()
        thread.join()


def requests(name: str) -> None:
    """Make 100 requests at once under ASGI, each of which reads the cache."""
    application: Any = get_asgi_application()
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/{name}",
        "headers": [],
        "query_string": b"",
    }

    async def request() -> None:
        sent: list[dict[str, Any]] = []
        body = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            await asyncio.Event().wait()  # the client stays
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await application(scope, receive, send)
        assert sent[0]["status"] == 200, sent

    async def all_of_them() -> None:
        await asyncio.gather(*(request() for _ in range(100)))

    asyncio.run(all_of_them())


SCENES: dict[str, Callable[[str], None]] = {
    "32 threads": at_once,
    "200 short threads": one_by_one,
    "100 concurrent ASGI requests": requests,
}


def measure_connections(server: RedisServer, report: Report) -> None:
    """Count the connections that are opened, and try what too many do."""
    report.line(
        "Connections opened, opened when the same is done again, and the most reads "
        "that were under way at once."
    )
    report.line()
    report.table("what", *POOLED)
    for what, scene in SCENES.items():
        cells = []
        for name in POOLED:
            report.progress(f"{what}: {name}")
            # Each on a server of its own, to which nobody has connections yet.
            with (
                server.another() as fresh,
                override_settings(CACHES=cache_settings(fresh.url)),
                counted(name) as calls,
            ):
                scene(name)
                first = fresh.connections_opened()
                scene(name)
                more = fresh.connections_opened() - first
            if name == OURS and first + more > calls.most:
                report.missed.append(f"{what}: more connections than reads at once")
            cells.append(f"{first} + {more}, of {calls.most}")
        report.row(what, *cells)
    report.line()
    _measure_limit(server, report)


def _measure_limit(server: RedisServer, report: Report) -> None:
    report.line(
        f"{THREADS} threads, 50 calls each, with max_connections of {LIMIT}: errors, "
        "the longest call, and the connections opened."
    )
    report.line()
    report.table("", "errors", "longest call", "connections")
    for name in POOLED:
        report.progress(f"max_connections: {name}")
        with server.another() as fresh:
            settings = cache_settings(fresh.url)
            options = settings[name].setdefault("OPTIONS", {})
            if name == DJANGO_REDIS:
                options["CONNECTION_POOL_KWARGS"] = {"max_connections": LIMIT}
            else:
                options["max_connections"] = LIMIT
            with override_settings(CACHES=settings):
                errors, longest = _crowd(name)
            opened = fresh.connections_opened()
        if name == OURS and errors:
            report.missed.append(f"max_connections: {errors} errors")
        report.row(name, errors, f"{longest * 1000:.0f} ms", opened)
    report.line()


def _crowd(name: str) -> tuple[int, float]:
    """Return how many calls failed in too many threads, and how long one took."""
    errors: list[Exception] = []
    taken: list[float] = []

    def call() -> None:
        started = time.perf_counter()
        try:
            caches[name].get("key")
        except (redis.RedisError, OSError) as error:
            errors.append(error)
        taken.append(time.perf_counter() - started)

    _in_threads(call)
    return len(errors), max(taken)


def _in_threads(call: Callable[[], object]) -> None:
    """Make 50 calls in each of 32 threads that run at the same time."""
    begin = threading.Barrier(THREADS)

    def work() -> None:
        begin.wait()
        for _ in range(50):
            call()

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
