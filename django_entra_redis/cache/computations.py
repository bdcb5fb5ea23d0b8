"""The values that a process is computing, and what it knows of those that it has."""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

from asgiref.sync import SyncToAsync

from .._fork import Order, in_child
from ..commands.stampede import Facts

#: Seconds after which a process asks anew what is known of a value, and of how many
#: values it remembers that.
KNOWN = 60.0
MOST_KNOWN = 10_000


class Computation:
    """A value that is being computed.

    Parameters:
        loop: the event loop in which, if that is not a thread's whole business.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self.waiters = 0
        #: The computation of another key that this one waits for.
        self.behind: Computation | None = None
        #: Gives a copy of the value for each who asks.
        self.future: Future[Any] = Future()
        # Then no task that is cancelled as it waits cancels it for the others.
        self.future.set_running_or_notify_cancel()


class Computations:
    """The values that a process is computing."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a child process must: nothing is computed there yet."""
        # Guards the dictionary and all attributes of what is in it. Reentrant for the
        # sake of signal handlers that use the cache.
        self._lock = threading.RLock()
        # Weakly, so that nobody waits for one any more that an exception from a signal
        # handler has had somebody lose.
        self._under_way: WeakValueDictionary[Hashable, Computation] = (
            WeakValueDictionary()
        )

    def under_way(self) -> dict[Hashable, Computation]:
        """Return them, by what they compute."""
        with self._lock:
            return dict(self._under_way)

    def lead(
        self, key: Hashable, loop: asyncio.AbstractEventLoop | None
    ) -> Computation | None:
        """Begin a computation; ``None``: somebody else has."""
        with self._lock:
            if key in self._under_way:
                return None
            made = self._under_way[key] = Computation(loop)
            return made

    def join(
        self,
        key: Hashable,
        own: tuple[Computation, ...],
        blocked: asyncio.AbstractEventLoop | None,
    ) -> Computation | None:
        """Return the computation to wait for; ``None``: there is none that would end.

        Parameters:
            own: the computations that whoever asks is in the middle of.
            blocked: the event loop that would do nothing else meanwhile.
        """
        with self._lock:
            found = self._under_way.get(key)
            behind = found
            while behind is not None:
                # It would wait for itself, or for what its thread is to go on with.
                if behind in own or (blocked is not None and behind.loop is blocked):
                    return None
                behind = behind.behind
            if found is not None:
                found.waiters += 1
                if own:
                    own[-1].behind = found
            return found

    def leave(self, own: tuple[Computation, ...]) -> None:
        """Wait no longer."""
        with self._lock:
            if own:
                own[-1].behind = None

    def end(self, key: Hashable, computation: Computation) -> bool:
        """Have nobody join any more; return whether somebody has."""
        with self._lock:
            if self._under_way.get(key) is computation:
                del self._under_way[key]
            return computation.waiters > 0


computations = Computations()
in_child(computations.reset, Order.LOCKS)

#: Those that this thread or task is in the middle of, the outermost first.
own: ContextVar[tuple[Computation, ...]] = ContextVar("own", default=())


class Ledger:
    """What a process knows of the values that it has computed or read.

    Parameters:
        monotonic: clock to tell the time by.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        # By key: the facts, when they were so, and until when to believe them. Each
        # use is atomic.
        self._known: dict[Hashable, tuple[Facts, float, float]] = {}

    def forget(self) -> None:
        """Know nothing any more."""
        self._known.clear()

    def put(self, key: Hashable, facts: Facts) -> None:
        """Remember what is known of a value."""
        now = self._monotonic()
        self._known.pop(key, None)
        self._known[key] = (facts, now, now + min(facts.left, KNOWN))
        while len(self._known) > MOST_KNOWN:
            self._known.pop(next(iter(self._known)), None)

    def get(self, key: Hashable) -> Facts | None:
        """Return what is known of a value as of now; ``None`` if nothing is."""
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
    """Return the event loop that waits for this thread: it runs in it, or has handed it
    work that was not to be done anywhere else, and may have more of it."""
    handed = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
    return running_loop() or handed
