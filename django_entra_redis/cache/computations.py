"""The computations of ``get_or_set()`` in this process, and the facts of values."""

import asyncio
import threading
import time
from collections.abc import Callable, Container, Hashable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from asgiref.sync import SyncToAsync

from .._fork import Order, in_child
from ..commands.stampede import Facts
from .ended import ended

#: Seconds after which a process fetches the facts of a value again, and the number of
#: values whose facts it remembers.
KNOWN = 60.0
MOST_KNOWN = 10_000

#: The server's facts, and the key in Redis.
Key = tuple[Hashable, str]


@dataclass
class Validity:
    """Whether the key has been removed since a computation of its value began.

    It is an object of its own, since frames in a failed computation's traceback have
    it: they would keep alive the error that the computation holds.
    """

    removed: bool = False


class Computation:
    """The computation of a value, which is under way.

    Parameters:
        loop: the event loop that it runs in; ``None``: it runs in a thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self.waiters = 0
        self.validity = Validity()
        #: The computations of other keys that this one waits for: several at once, if
        #: its tasks do.
        self.behind: list[Computation] = []
        #: Its result is a function that returns a new copy of the value, or raises one
        #: of the error.
        self.future: Future[Any] = Future()
        # A running future can't be cancelled, not even by a waiter that is cancelled.
        self.future.set_running_or_notify_cancel()

    def awaited(self) -> "Iterator[Computation]":
        """Yield this computation and all that have to end before it does."""
        left: list[Computation] = [self]
        seen = {*left}
        while left:
            one = left.pop()
            yield one
            new = set(one.behind) - seen
            seen |= new
            left += new


class Computations:
    """The computations that are under way in this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all computations, as a child process must."""
        # Guards the dictionary and the attributes of its values. Reentrant, since a
        # signal handler may use the cache.
        self._lock = threading.RLock()
        # Weak references: a computation that its thread has lost, by an exception from
        # a signal handler, must not keep others waiting.
        self._under_way: WeakValueDictionary[Key, Computation] = WeakValueDictionary()
        #: The locks between processes that this one holds. Each access is atomic.
        self.locks: dict[Key, Any] = {}

    def under_way(self) -> dict[Key, Computation]:
        """Return the computations by their keys."""
        with self._lock:
            return dict(self._under_way)

    def detach(self, server: Hashable, keys: Container[str]) -> None:
        """Let no caller join the computations of keys that are about to be removed.

        Whoever asks for such a key after its removal wants a value that is not older.
        Those who have joined already still get the result, which is not cached. A
        removal that is part of a computation leaves that one as it is.
        """
        if not self._under_way:  # as nearly always
            return
        if isinstance(keys, list):
            keys = frozenset(keys)
        with self._lock:
            for key, computation in [*self._under_way.items()]:
                if key[0] is server and key[1] in keys and computation not in own.get():
                    computation.validity.removed = True
                    self.end(key, computation)

    def lead(
        self, key: Key, loop: asyncio.AbstractEventLoop | None
    ) -> Computation | None:
        """Begin a computation; ``None``: one is under way already."""
        with self._lock:
            if key in self._under_way:
                return None
            made = self._under_way[key] = Computation(loop)
            return made

    def join(
        self,
        key: Key,
        own: tuple[Computation, ...],
        blocked: asyncio.AbstractEventLoop | None,
    ) -> Computation | None:
        """Return the computation to wait for; ``None``: compute the value yourself.

        There may be none under way, or to wait for it may be a deadlock.

        Parameters:
            key: the key.
            own: the computations that the caller is in the middle of.
            blocked: the event loop that the wait would block.
        """
        with self._lock:
            found = self._under_way.get(key)
            if found is None:
                return None
            for awaited in found.awaited():
                # A deadlock: the caller would wait for itself, or block the event loop
                # that has to end the computation.
                if awaited in own or (blocked is not None and awaited.loop is blocked):
                    return None
            found.waiters += 1
            # The outer ones can't end before the innermost, either.
            for one in own:
                one.behind.append(found)
            return found

    def leave(self, own: tuple[Computation, ...], computation: Computation) -> None:
        """Note that the caller has stopped waiting for a computation."""
        with self._lock:
            for one in own:
                one.behind.remove(computation)

    def end(self, key: Key, computation: Computation) -> bool:
        """Let no caller join a computation any more; return whether one has joined."""
        with self._lock:
            if self._under_way.get(key) is computation:
                del self._under_way[key]
                ended[0] += 1
            return computation.waiters > 0


computations = Computations()
in_child(computations.reset, Order.LOCKS)

#: The computations that this thread or task is in the middle of, the outermost first.
own: ContextVar[tuple[Computation, ...]] = ContextVar("own", default=())


class Ledger:
    """The facts of values that this process has computed or read.

    Parameters:
        monotonic: the clock, in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        # By key: the facts, the time to which they refer, and the time until which they
        # are used. Each access is atomic.
        self._known: dict[Hashable, tuple[Facts, float, float]] = {}

    def forget(self) -> None:
        """Forget all facts."""
        self._known.clear()

    def put(self, key: Hashable, facts: Facts) -> None:
        """Remember the facts of a value."""
        now = self._monotonic()
        self._known.pop(key, None)
        self._known[key] = (facts, now, now + min(facts.left, KNOWN))
        while len(self._known) > MOST_KNOWN:
            self._known.pop(next(iter(self._known)), None)

    def get(self, key: Hashable) -> Facts | None:
        """Return the facts of a value as of now; ``None``: they are not known."""
        now = self._monotonic()
        facts, since, until = self._known.get(key, (None, 0.0, 0.0))
        if facts is None or now >= until:
            return None
        return Facts(facts.cost, facts.left - (now - since))


ledger = Ledger()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def waiting_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that this thread must not block, if there is one.

    It runs in this thread, or has handed work to this thread (asgiref's
    ``thread_sensitive``) and may hand it more.
    """
    handed = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
    return running_loop() or handed
