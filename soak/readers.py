"""A process that reads and writes keys through copies, and keeps the history.

``python -m soak.readers CONFIG``, a JSON object: ``cache`` (an entry of ``CACHES``),
``identities`` (``ENTRA_REDIS``), ``number`` (which of ``processes``), ``seconds``,
``broken`` (what to break on purpose). Prints the history as JSON.
"""

import asyncio
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import django
from django.conf import settings

KEYS = 4
READERS = 3
TASKS = 10
#: Seconds between two reads of one reader, and two writes of one writer, on average.
READ_EVERY = 0.001
WRITE_EVERY = 0.01
FLUSH_EVERY = 1.3


class History:
    """What a process has written and read."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.writes: list[tuple[str, int, float]] = []
        self.reads: list[tuple[str, int, float]] = []
        self.errors: list[str] = []
        self.most_bytes = 0
        self._flushes: list[Callable[[], None]] = []

    def reader(self) -> Callable[[str, int, float], None]:
        """Return what takes note of one reader's reads."""
        last: dict[str, tuple[int, float]] = {}

        def note(key: str, version: int, started: float) -> None:
            before = last.get(key)
            if before is not None and before[0] != version:
                self.reads.append((key, *before))
            last[key] = version, started

        def flush() -> None:
            self.reads += [(key, *read) for key, read in last.items()]

        self._flushes.append(flush)
        return note

    def wrote(self, keys: Sequence[str], version: int, refused: Sequence[str]) -> None:
        """Take note of what ``set_many()`` has written, and of what it says it has not.

        Parameters:
            keys, version: what it was to write.
            refused: what it returned.
        """
        ended = time.monotonic()
        self.writes += [(key, version, ended) for key in keys if key not in refused]
        if refused:
            self.errors.append(f"aset_many: {len(refused)} keys refused")

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        for flush in self._flushes:
            flush()
        return {
            "process": self.process,
            "writes": self.writes,
            "reads": self.reads,
            "errors": self.errors,
            "most_bytes": self.most_bytes,
        }


def break_on_purpose(how: str | None) -> None:
    """Have the copies be unsound."""
    from django_entra_redis.connections.copies import Copies
    from django_entra_redis.connections.tracked_connection import TrackedConnection

    if how == "own":
        # Own writes drop nothing; Redis' messages still do.
        Copies.drop = lambda self, keys: None  # type: ignore[method-assign]
    elif how == "deaf":
        # Redis' messages drop nothing, nor does a lost connection.
        Copies.invalidate = lambda self, keys: None  # type: ignore[method-assign]
        Copies.flush = lambda self, owner=None: None  # type: ignore[method-assign]
        TrackedConnection.is_confirmed = lambda self, key, now: True  # type: ignore[method-assign]


class Load:
    """The readers and writers of a process.

    Parameters:
        config: see above.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.number: int = config["number"]
        self.history = History(self.number)
        self._ends_at: float = time.monotonic() + config["seconds"]
        processes: int = config["processes"]
        self._all = [
            f"{kind}-{process}-{key}"
            for kind in ("thread", "task")
            for process in range(processes)
            for key in range(KEYS)
        ]

    def _own(self, kind: str) -> list[str]:
        return [f"{kind}-{self.number}-{key}" for key in range(KEYS)]

    @property
    def going_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self._ends_at

    def read(self) -> None:
        """Read keys, until the end."""
        from django.core.cache import cache

        note = self.history.reader()
        while self.going_on:
            key = random.choice(self._all)
            started = time.monotonic()
            try:
                version = cache.get(key)
            except Exception as error:
                self.history.errors.append(f"get: {error!r}")
                version = None
            if version is not None:
                note(key, version, started)
            time.sleep(random.expovariate(1 / READ_EVERY))

    def write(self) -> None:
        """Write this process's keys, and read each at once, until the end."""
        from django.core.cache import cache

        note = self.history.reader()
        version = 0
        while self.going_on:
            key, version = random.choice(self._own("thread")), version + 1
            try:
                cache.set(key, version, 100)
                self.history.writes.append((key, version, time.monotonic()))
                started = time.monotonic()
                found = cache.get(key)
            except Exception as error:
                self.history.errors.append(f"set: {error!r}")
                found = None
            if found is not None:
                note(key, found, started)
            info: Any = cache
            copies = info.client_side_cache_info().bytes
            self.history.most_bytes = max(self.history.most_bytes, copies)
            time.sleep(random.expovariate(1 / WRITE_EVERY))

    async def tasks(self) -> None:
        """Do the same in an event loop."""
        await asyncio.gather(self._awrite(), *(self._aread() for _ in range(TASKS)))

    async def _aread(self) -> None:
        from django.core.cache import cache

        note = self.history.reader()
        while self.going_on:
            key = random.choice(self._all)
            started = time.monotonic()
            try:
                version = await cache.aget(key)
            except Exception as error:
                self.history.errors.append(f"aget: {error!r}")
                version = None
            if version is not None:
                note(key, version, started)
            await asyncio.sleep(random.expovariate(1 / READ_EVERY / TASKS * READERS))

    async def _awrite(self) -> None:
        from django.core.cache import cache

        note = self.history.reader()
        version = 0
        while self.going_on:
            version += 1
            keys = self._own("task")
            try:
                values = dict.fromkeys(keys, version)
                self.history.wrote(keys, version, await cache.aset_many(values, 100))
                started = time.monotonic()
                found = await cache.aget_many(keys)
            except Exception as error:
                self.history.errors.append(f"aset_many: {error!r}")
                found = {}
            for key, read in found.items():
                note(key, read, started)
            await asyncio.sleep(random.expovariate(1 / WRITE_EVERY))

    def flush(self) -> None:
        """Empty the database now and then, by another way than the cache's."""
        from django.core.cache import cache

        other: Any = cache
        while self.going_on:
            time.sleep(FLUSH_EVERY)
            try:
                other.get_client(write=True).flushdb()
            except Exception:
                continue  # redis-py's own clients are not what is under test.

    def run(self) -> dict[str, Any]:
        """Run them all; return the history."""
        jobs: list[Callable[[], Any]] = [self.read] * READERS
        jobs += [self.flush] * (self.number == 0)
        jobs += [self.write, lambda: asyncio.run(self.tasks())]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.history.told()


def fork_readers(config: dict[str, Any]) -> int:
    """Fork a child that reads alone, for half of the time; return what to read its
    history from."""
    source, sink = os.pipe()
    if os.fork():
        os.close(sink)
        return source
    child = Load({**config, "seconds": config["seconds"] / 2, "number": -1})
    child.read()
    with os.fdopen(sink, "w") as pipe:
        json.dump(child.history.told(), pipe)
    os._exit(0)


def main(text: str) -> None:
    """Run a process's load, and print its history, and that of its child."""
    config = json.loads(text)
    settings.configure(
        CACHES={"default": config["cache"]},
        ENTRA_REDIS=config["identities"],
        INSTALLED_APPS=["django_entra_redis"],
    )
    django.setup()
    break_on_purpose(config.get("broken"))
    from django.core.cache import cache

    # The child must not use these connections.
    cache.get("first")
    source = fork_readers(config)
    load = Load(config)
    histories = [load.run()]
    with os.fdopen(source) as pipe:
        histories.append(json.load(pipe))
    print(json.dumps(histories))


if __name__ == "__main__":  # pragma: no branch - nobody imports it to run
    main(sys.argv[1])
