"""A process that keeps a cache busy: ``python -m soak.load CONFIG``.

CONFIG is JSON. It reads commands from standard input, one a line (``pause``,
``resume``, ``step SECONDS``, ``mark``, ``stop``), and writes its figures to standard
output, a line of JSON each.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

REPORT_EVERY = 0.2
#: Errors that say "unknown whether it was applied".
UNCERTAIN = "UncertainResultError"
KEYS = 20
TIMEOUT = 300
TRIES = 50


class WallClock:
    """``time.time``, which can be stepped as somebody sets a machine's clock."""

    def __init__(self) -> None:
        self._time = time.time
        self.offset = 0.0

    def __call__(self) -> float:
        """Return what the clock shows."""
        return self._time() + self.offset


class FailedKeysError(Exception):
    """``set_many()`` has not raised, but told of keys that it could not set."""


class Blocking:
    """A cache whose asynchronous methods are its synchronous ones: none suspends."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        """Return ``get()`` for ``aget()``."""
        method = getattr(self._cache, name.removeprefix("a"))

        async def call(*arguments: Any) -> Any:
            return method(*arguments)

        return call


class Worker:
    """One thread's or task's operations, on its own keys, with every answer checked.

    Parameters:
        name: what its keys begin with; nobody else's do.
        cache: what it uses.
        counter: what counts.
        changes: whether it uses ``incr`` and ``add``, too.
        user: who the cache has to be, by ``ACL WHOAMI``; in threads only.
        blocking: whether it is a thread's; else a task's.
    """

    def __init__(
        self,
        name: str,
        cache: Any,
        counter: Any,
        *,
        changes: bool = True,
        user: str | None = None,
        blocking: bool = True,
    ) -> None:
        self._pool_of = cache
        self._cache = Blocking(cache) if blocking else cache
        self._counter = counter
        self._name = name
        self._user = user
        self._values: dict[str, Any] = {}
        self._serial = itertools.count()
        self.counts = f"{self._name}-count"
        self.incremented = self.unknown = self.broken_off = 0
        #: Breaks operations off, while there is one.
        self.injector: Callable[[], AbstractContextManager[None]] = nullcontext
        self._prepared = not changes
        operations: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self._set,
            self._get,
            self._touch,
            self._has_key,
            self._set_many,
            self._get_many,
            self._delete,
            self._delete_many,
            self._get,
        ]
        if changes:
            operations += [self._incr, self._add]
        if user is not None:
            operations.append(self._whoami)
        self._operations = operations

    def step(self, number: int) -> None:
        """Carry out one operation, in a thread."""
        try:
            self.astep(number).send(None)
        except StopIteration:
            return
        raise AssertionError("a synchronous operation has suspended")

    async def astep(self, number: int) -> None:
        """Carry out one operation."""
        operation = self._operations[number % len(self._operations)]
        if not self._prepared:
            operation = self._prepare
        name = operation.__name__.lstrip("_")
        began = time.monotonic()
        try:
            with self.injector():
                await operation()
        except asyncio.CancelledError:
            self.broken_off += 1
            self.unknown += name == "incr"
            raise
        except Exception as error:
            from soak.tally import Failure

            kind = type(error).__name__
            changing = name in ("incr", "add")
            if changing:
                self.unknown += name == "incr"
            failure = Failure(time.monotonic(), name, kind, str(error)[:300])
            self.broken_off += kind == "Injected"
            uncertain = kind == "Injected" or (changing and kind == UNCERTAIN)
            self._counter.failed(failure, "uncertain" if uncertain else "errors")
        self._counter.took(time.monotonic() - began)

    def _check_value(self, key: str, value: Any) -> None:
        if key not in self._values or value == self._values[key]:
            return
        # The key is in the value: another key's is worse than none, or an older one.
        own = value is None or str(value).startswith(f"{key}:")
        self._counter.count("lost" if own else "wrong")

    def _check_there(self, key: str, there: bool) -> None:
        if key in self._values and there is not (self._values[key] is not None):
            self._counter.count("lost")

    def _key(self, offset: int = 0) -> str:
        return f"{self._name}-{(next(self._serial) + offset) % KEYS}"

    def _expected(self, key: str) -> Any:
        return self._values.get(key)

    async def _prepare(self) -> None:
        await self._cache.aset(self.counts, 0, None)
        self._prepared = True

    async def _set(self) -> None:
        key = self._key()
        value = f"{key}:{time.monotonic()}"
        # Unknown while it may or may not have arrived.
        self._values.pop(key, None)
        await self._cache.aset(key, value, TIMEOUT)
        self._values[key] = value

    async def _get(self) -> None:
        key = self._key(-1)
        self._check_value(key, await self._cache.aget(key))

    async def _touch(self) -> None:
        key = self._key(-1)
        self._check_there(key, await self._cache.atouch(key, TIMEOUT))

    async def _has_key(self) -> None:
        key = self._key(-1)
        self._check_there(key, await self._cache.ahas_key(key))

    async def _set_many(self) -> None:
        keys = [self._key() for _ in range(5)]
        data = {key: f"{key}:{time.monotonic()}" for key in keys}
        for key in data:
            self._values.pop(key, None)
        failed = await self._cache.aset_many(data, TIMEOUT)
        if failed:
            raise FailedKeysError(f"set_many() tells of {len(failed)} keys.")
        self._values |= data

    async def _get_many(self) -> None:
        keys = [self._key(-5) for _ in range(5)]
        found = await self._cache.aget_many(keys)
        for key in keys:
            self._check_value(key, found.get(key))

    async def _delete(self) -> None:
        key = self._key(-3)
        self._values.pop(key, None)
        await self._cache.adelete(key)
        self._values[key] = None

    async def _delete_many(self) -> None:
        keys = [self._key(-4) for _ in range(2)]
        for key in keys:
            self._values.pop(key, None)
        await self._cache.adelete_many(keys)
        self._values |= dict.fromkeys(keys)

    async def _incr(self) -> None:
        await self._cache.aincr(self.counts)
        self.incremented += 1

    async def _add(self) -> None:
        key = f"{self._name}-once-{next(self._serial)}"
        if not await self._cache.aadd(key, 1, TIMEOUT):
            # Nobody else has such a key: an add that was repeated found itself.
            self._counter.count("twice")

    async def _whoami(self) -> None:
        import redis

        client = redis.Redis(connection_pool=self._pool_of.get_pool())
        user: Any = client.acl_whoami()
        name = user.decode() if isinstance(user, bytes) else user
        if name != self._user:
            self._counter.count("wrong")


def main(arguments: list[str]) -> int:
    """Keep the cache busy until told to stop."""
    config = json.loads(arguments[0])
    clock = WallClock()
    # Before anything else takes a reference to it.
    time.time = clock
    from soak.chaos import Injector
    from soak.subjects import OURS, make_settings
    from soak.tally import Counter

    emulator = json.loads(Path(config["emulator"]).read_text())
    if config.get("through"):
        emulator["redis_url"] = f"rediss://localhost:{config['through']}"
    # The errors are counted; what libraries log of them would fill the screen.
    logging.disable(logging.CRITICAL)

    import django
    import redis
    from django.conf import settings
    from django.core.cache import caches

    settings.configure(
        **make_settings(config["subject"], emulator, config.get("variant", ""))
    )
    django.setup()
    counter, beside = Counter(), Counter()
    # In place of the threads, tasks on one event loop.
    tasks: int = config.get("tasks", 0)
    aliases = list(settings.CACHES)
    workers = [
        Worker(
            f"w{number}",
            caches[aliases[number % len(aliases)]],
            beside if number % len(aliases) else counter,
            changes=config.get("changes", True),
            user=config.get("users", {}).get(aliases[number % len(aliases)]),
            blocking=not tasks,
        )
        for number in range(tasks or config["threads"])
    ]
    running, stopping = threading.Event(), threading.Event()
    running.set()
    # Whether operations are broken off: tasks are cancelled, and threads interrupted.
    breaking = threading.Event()
    if config.get("through"):
        breaking.set()
        for worker in workers if not tasks else []:
            worker.injector = Injector()

    def work(worker: Worker) -> None:
        for number in itertools.count():
            running.wait()
            if stopping.wait(config["pause"]):
                return
            worker.step(number)

    async def awork(worker: Worker) -> None:
        for number in itertools.count():
            # To one beat, so that all are under way at once.
            beat: float = config["pause"]
            await asyncio.sleep(beat - time.monotonic() % beat)
            if stopping.is_set():
                return
            if running.is_set():
                step = asyncio.ensure_future(worker.astep(number))
                if breaking.is_set() and number % 5 == 0:
                    await asyncio.wait({step}, timeout=random.random() * 0.01)
                    step.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await step

    async def awork_all() -> None:
        await asyncio.gather(*map(awork, workers))

    if tasks:
        started = [threading.Thread(target=asyncio.run, args=(awork_all(),))]
    else:
        started = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    # What a busy machine makes of the start is no row's affair.
    for alias in aliases:
        warm_up(caches[alias])
    for thread in started:
        thread.daemon = True
        thread.start()

    def report(*, whole: bool) -> None:
        content = counter.tally(whole=whole).to_json()
        if len(aliases) > 1:
            other = beside.tally(whole=False)
            content["facts"]["beside"] = {
                "operations": other.operations,
                "errors": other.errors + other.wrong + other.lost,
                "longest": other.longest,
            }
        print(json.dumps({"done": whole, "tally": content}), flush=True)

    def tell() -> None:
        while not stopping.wait(REPORT_EVERY):
            report(whole=False)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "pause":
            running.clear()
        elif command == "resume":
            running.set()
        elif command == "calm":
            breaking.clear()
            for worker in workers:
                worker.injector = nullcontext
        elif command == "step":
            clock.offset += float(rest[0])
        elif command == "mark":
            counter.mark()
            beside.mark()
        elif command == "stop":
            break
    stopping.set()
    running.set()
    teller.join()
    for thread in started:
        thread.join(30.0)
    if config.get("variant") == "cluster":
        # An administrator would have to find each key's node.
        count_twice(caches["default"].get, workers, counter)
    else:
        with redis.Redis.from_url(emulator["backend_url"]) as backend:
            count_twice(lambda key: backend.get(f":1:{key}"), workers, counter)
    if config["subject"] == OURS.name:
        from django_entra_redis.credentials import get_credential_provider

        status = get_credential_provider().status()
        counter.facts["renewals"] = status.renewals
        counter.facts["failures"] = status.failures
    counter.facts["broken off"] = sum(worker.broken_off for worker in workers)
    counter.facts["stuck"] = sum(thread.is_alive() for thread in started)
    report(whole=True)
    return 0


def warm_up(cache: Any) -> None:
    """Use a cache until it can be used."""
    for _ in range(TRIES):
        try:
            cache.set("warm", 1)
        except Exception:
            time.sleep(0.1)
        else:
            return


def count_twice(
    get: Callable[[str], Any], workers: Iterable[Worker], counter: Any
) -> None:
    """Compare what was counted with what was answered."""
    for worker in workers:
        value = int(get(worker.counts) or 0)
        for _ in range(value - worker.incremented - worker.unknown):
            counter.count("twice")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
