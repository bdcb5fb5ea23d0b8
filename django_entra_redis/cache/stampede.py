"""``get_or_set()`` and ``aget_or_set()`` without stampedes.

When a key that many read expires, all of them would compute its value. Here one thread
or task of a process does, and those that come meanwhile get what it got. With
``OPTIONS["stampede"]`` processes take turns, too, and a value is computed anew before
it expires, by one of them.

The way is a generator that yields what is to be done; threads and event loops are two
drivers of the same.
"""

import asyncio
import inspect
import logging
import random
import time
from collections.abc import Callable, Generator, Hashable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any, TypeVar

from ..commands.packing import encode
from ..commands.stampede import Facts, Names, Stampedes, is_due
from ..conf.options import Stampede
from .computations import (
    Computation,
    computations,
    ledger,
    running_loop,
    waiting_loop,
)
from .computations import own as own_computations

if TYPE_CHECKING:
    from ..clients.asynchronous import AsyncCacheClient
    from ..clients.sync import Client
    from ..commands.operations import Operations

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a caller waits for another one's computation in the same process; twice
#: at most, should that one be given up. Longer than ``LOCK``: whoever waits for the one
#: that waits for another process is not to give up first.
WAIT = 30.0
ROUNDS = 2
#: Seconds that the lock between processes is held at most, and waited for.
LOCK = 10.0
#: Seconds between two looks whether another process is done.
POLL = (0.02, 0.1)
#: Stands for a value that is not there.
MISSING: Any = object()
#: What a computation ends with that was given up: whoever waits is to begin anew.
GIVEN_UP: Any = object()


#: What is to be done next, with what does it; and what came of it.
Steps = Generator[Callable[[Any], Any], Any, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of ``get_or_set()``.

    Parameters:
        operations: those of the cache.
        options: ``OPTIONS["stampede"]``.
        names: the key, and those beside it.
        default: the value, or what computes it.
        seconds: how long it lives then; ``None`` for ever.
        native: whether it runs in an event loop, which goes on while this waits.
    """

    operations: "Operations"
    options: Stampede | None
    names: Names
    default: Any = field(repr=False)
    seconds: int | None
    native: bool

    @property
    def key(self) -> Hashable:
        """What tells the value from all others of the process."""
        return self.operations.server, self.names.value

    @property
    def beside(self) -> Stampedes:
        """The operations on the keys beside the value's."""
        return Stampedes(self.operations)

    # -- the ways --------------------------------------------------------------------

    def missed(self) -> Steps[Any]:
        """Return a value that is not in the cache."""
        if not callable(self.default):
            return (yield from self._set(self.default, None))
        blocked = None if self.native else waiting_loop()
        for _ in range(ROUNDS):
            computation = self._begin()
            if computation is not None:
                return (yield from self._lead(computation, self._in_turn()))
            own = own_computations.get()
            computation = computations.join(self.key, own, blocked)
            if computation is None:
                break
            try:
                yield methodcaller("wait", computation.future)
            finally:
                computations.leave(own)
            if not computation.future.done():
                computations.end(self.key, computation)
            elif (share := computation.future.result()) is not GIVEN_UP:
                return share()
        return (yield from self._compute())

    def found(self, value: Any) -> Steps[Any]:
        """Return a value that is in the cache, or a new one if it is time for that."""
        if self.options is None or not callable(self.default):
            return value
        draw = 1.0 - random.random()
        beta = self.options.beta

        def due() -> Steps[bool]:
            return is_due((yield from self._learn()), beta, draw)

        known = ledger.get(self.key)
        # What this process knows may be old news: another one has computed it.
        if not ((known is None or is_due(known, beta, draw)) and (yield from due())):
            return value
        computation = self._begin()
        if computation is None:
            return value
        return (yield from self._lead(computation, self._early(value, due)))

    def _early(self, found: Any, due: Callable[[], Steps[bool]]) -> Steps[Any]:
        """Return a new value, computed before the one that is there expires."""
        since = yield from self._locked()
        if since is None:
            return found
        try:
            # Another process may have been at it until just now.
            if not (yield from due()):
                return found
            try:
                value, cost = yield from self._measured()
            except Exception:
                logger.warning(
                    "A value could not be computed before it expires; the one that is "
                    "there is used as long as it lives.",
                    exc_info=True,
                )
                return found
            # What somebody has deleted meanwhile does not come back.
            if (yield methodcaller("replace", value)):
                yield from self._note(cost)
            return (yield methodcaller("get", value))
        finally:
            yield from self._unlock(since)

    def _in_turn(self) -> Steps[Any]:
        """Return a value computed here, or by another process that was first."""
        if self.options is None or self.seconds == 0:
            return (yield from self._compute())
        deadline = time.monotonic() + LOCK
        while (since := (yield from self._locked())) is None:
            yield methodcaller("sleep", random.uniform(*POLL))
            found = yield methodcaller("get", MISSING)
            if found is not MISSING:
                return found
            if time.monotonic() >= deadline:
                return (yield from self._compute())
        try:
            # Another process may have been at it until just now.
            found = yield methodcaller("get", MISSING)
            if found is not MISSING:
                return found
            return (yield from self._compute())
        finally:
            yield from self._unlock(since)

    def _compute(self) -> Steps[Any]:
        """Do what Django does."""
        value, cost = yield from self._measured()
        return (yield from self._set(value, cost))

    def _set(self, value: Any, cost: float | None) -> Steps[Any]:
        added = yield methodcaller("add", value)
        if added and cost is not None and self.options is not None:
            yield from self._note(cost)
        # Again: another one may have added it between the two.
        return (yield methodcaller("get", value))

    def _lead(self, computation: Computation, way: Steps[Any]) -> Steps[Any]:
        """Go a way whose end others may wait for."""
        future = computation.future
        before = own_computations.set((*own_computations.get(), computation))
        share: Any = GIVEN_UP
        try:
            value = yield from way
            if computations.end(self.key, computation):
                share = self._copies(value)
            return value
        except Exception as error:
            computations.end(self.key, computation)
            future.set_exception(error)
            raise
        finally:
            own_computations.reset(before)
            computations.end(self.key, computation)
            if not future.done():
                future.set_result(share)

    def _begin(self) -> Computation | None:
        """Begin a computation; ``None``: somebody else has."""
        loop = running_loop() if self.native else None
        return computations.lead(self.key, loop)

    def _copies(self, value: Any) -> Any:
        """Return what gives a copy of a value to each who waits for it: all may change
        what they get."""
        try:
            data = encode(self.operations.dumps(value))
        except Exception:
            # Such as one that needs the database to be pickled, in an event loop, and
            # has not been stored.
            return GIVEN_UP
        return partial(self.operations.loads, data)

    # -- its parts -------------------------------------------------------------------

    def _measured(self) -> Steps[tuple[Any, float]]:
        began = time.perf_counter()
        value = yield methodcaller("compute", self.default)
        return value, time.perf_counter() - began

    def _note(self, cost: float) -> Steps[None]:
        """Remember, for all processes, what a value has cost."""
        if self.seconds:
            ledger.put(self.key, Facts(cost, self.seconds))
            note = self.beside.note
            yield methodcaller("run", note, self.names, cost, self.seconds)

    def _learn(self) -> Steps[Facts]:
        facts: Facts = yield methodcaller("run", self.beside.facts, self.names)
        ledger.put(self.key, facts)
        return facts

    def _locked(self) -> Steps[float | None]:
        """Take the lock between processes; return since when it may be held, ``None``
        if another one has it."""
        since = time.monotonic()
        taken = yield methodcaller("run", self.beside.lock, self.names, LOCK)
        return since if taken else None

    def _unlock(self, since: float) -> Steps[None]:
        # After that it may be another process's.
        if time.monotonic() - since < LOCK:
            yield methodcaller("run", self.beside.unlock, self.names)


# -- the drivers ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Threads:
    """What a call in a thread does its steps with.

    Parameters:
        cache: the cache, whose own methods are used, for the sake of subclasses.
        client: carries out what it has no methods for.
        key, timeout, version: what the caller gave.
    """

    cache: Any
    client: "Client"
    key: str
    timeout: Any
    version: int | None

    def drive(self, steps: Steps[T]) -> T:
        """Do all that is to be done; return what comes of it."""
        try:
            step = next(steps)
            while True:
                try:
                    got = step(self)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(got)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def get(self, default: Any) -> Any:
        """Return the value in the cache."""
        return self.cache.get(self.key, default, version=self.version)

    def add(self, value: Any) -> bool:
        """Set a value where there is none."""
        added: bool = self.cache.add(
            self.key, value, self.timeout, version=self.version
        )
        return added

    def replace(self, value: Any) -> bool | None:
        """Set a value where there is one."""
        done: bool | None = self.cache.set(
            self.key, value, self.timeout, version=self.version, xx=True
        )
        return done

    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Carry out an operation."""
        return self.client.run(operation, *args)

    def compute(self, default: Callable[[], Any]) -> Any:
        """Compute a value."""
        return default()

    def wait(self, future: "Future[Any]") -> None:
        """Wait for another one's computation."""
        wait([future], WAIT)

    def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Tasks:
    """What a call in an event loop does its steps with.

    Parameters:
        cache, client, key, timeout, version: as :class:`Threads` has them.
    """

    cache: Any
    client: "AsyncCacheClient"
    key: str
    timeout: Any
    version: int | None

    async def drive(self, steps: Steps[T]) -> T:
        """Do all that is to be done; return what comes of it."""
        try:
            step = next(steps)
            while True:
                try:
                    got = await step(self)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(got)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def get(self, default: Any) -> Any:
        """Return the value in the cache."""
        return await self.cache.aget(self.key, default, version=self.version)

    async def add(self, value: Any) -> bool:
        """Set a value where there is none."""
        added: bool = await self.cache.aadd(
            self.key, value, self.timeout, version=self.version
        )
        return added

    async def replace(self, value: Any) -> bool | None:
        """Set a value where there is one."""
        done: bool | None = await self.cache.aset(
            self.key, value, self.timeout, version=self.version, xx=True
        )
        return done

    async def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Carry out an operation."""
        return await self.client.run(operation, *args)

    async def compute(self, default: Callable[[], Any]) -> Any:
        """Compute a value; a coroutine function may, too."""
        value = default()
        return await value if inspect.isawaitable(value) else value

    async def wait(self, future: "Future[Any]") -> None:
        """Wait for another one's computation."""
        waiting = asyncio.wrap_future(future)
        # Else it is complained of that nobody has asked this one for the error.
        waiting.add_done_callback(asyncio.Future.exception)
        await asyncio.wait([waiting], timeout=WAIT)

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        await asyncio.sleep(seconds)


def make_names(cache: Any, key: str, version: int | None) -> Names:
    """Return a key as Redis gets it, and those beside it.

    They begin with the KEY_PREFIX, which may be all that an access policy allows, yet
    are none that ``keys()`` finds, since they are of a version that nobody has.
    """
    made = cache.make_and_validate_key(key, version=version)
    shown = cache.version if version is None else version
    beside = []
    for purpose in ("cost", "lock"):
        try:
            other: Any = f"stampede-{purpose}:{shown}"
            beside.append(str(cache.make_key(key, version=other)))
        except Exception:
            break  # A KEY_FUNCTION that takes a number alone.
    if len({made, *beside}) < 3:
        # Or one that has no use for a version.
        beside = [f"{made}:stampede-cost", f"{made}:stampede-lock"]
    return Names(made, *beside)
