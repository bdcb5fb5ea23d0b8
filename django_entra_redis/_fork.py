"""Forks: one registry of objects that take part in each fork of the process.

A child process inherits the memory of its parent, but only the thread that forked: the
locks that other threads held stay locked, imports that they had begun stay half-done,
sockets are shared.
"""

import atexit
import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from types import FrameType, ModuleType
from typing import Any
from weakref import ref

#: Seconds that a fork waits for an import, and an import for another one. Bounded,
#: since the other thread may wait for a module that this thread is importing. Generous,
#: since a child that inherits half an import gets no token: on a busy machine, to
#: import msal was seen to take more than 5 s.
IMPORT_TIMEOUT = 30.0
#: Seconds that an import waits for those of other threads. Short, since a caller may be
#: waiting for the token that the module is imported for.
OTHER_IMPORTS_TIMEOUT = 0.5
#: Seconds from one look at what other threads do to the next.
LOOK = 0.02


class Order(IntEnum):
    """The order of participants after a fork; before it, the order is reversed.

    Each group may rely on those before it: connections need tokens, threads need all.
    """

    LOCKS = 0
    TOKENS = 1
    CONNECTIONS = 2
    THREADS = 3


# By order, then by age: the same for all threads, so that two that fork at once do not
# wait for each other. Its single operations are atomic, copy() is one of them.
_participants: dict[tuple[Order, int], ref[Any]] = {}
_numbers = itertools.count()


def register(participant: Any, order: Order) -> None:
    """Have an object take part in each fork for as long as it lives.

    Parameters:
        participant: has some of these methods: ``before_fork()`` acquires its locks and
            returns whether it did; ``after_fork_in_parent()`` releases them, if it did;
            ``after_fork_in_child()`` forgets what belongs to the parent.
        order: its group.
    """
    key = order, next(_numbers)
    _participants[key] = ref(participant, lambda _: _participants.pop(key, None))


class _InChild:
    """A function as a participant."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.after_fork_in_child = function


_functions: list[_InChild] = []


def in_child(function: Callable[[], None], order: Order) -> None:
    """Have a function called in each child process.

    Parameters:
        function: the function.
        order: its group.
    """
    _functions.append(_InChild(function))
    register(_functions[-1], order)


class ForkSafeLock:
    """A reentrant lock that is free in a child process, whoever held it at the fork.

    It is reentrant, since a signal handler may use the cache. It is acquired by
    ``with lock.current:``, which releases the same lock even if the body forks.
    """

    def __init__(self) -> None:
        self.after_fork_in_child()
        register(self, Order.LOCKS)

    def after_fork_in_child(self) -> None:
        """Begin anew."""
        self.current = threading.RLock()


def _taking_part(method: str) -> list[Any]:
    """Return the participants that have a method, in their order."""
    # A copy, since to sort the dictionary itself makes a tuple for each item. In Python
    # 3.11 the garbage collector may run at each of these, and end participants.
    alive = (participant() for _, participant in sorted(_participants.copy().items()))
    return [found for found in alive if hasattr(found, method)]


class _Fork(threading.local):
    """The hooks around a fork. Threads may fork in the same moment: each its own."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    def before(self) -> None:
        for participant in reversed(_taking_part("before_fork")):
            if participant.before_fork():
                self.held.append(participant)

    def after_in_parent(self) -> None:
        while self.held:
            # Not for the next fork: a signal handler may interrupt this one's hook.
            self.held.pop().after_fork_in_parent()

    def after_in_child(self) -> None:
        self.held.clear()
        for participant in _taking_part("after_fork_in_child"):
            participant.after_fork_in_child()


_fork = _Fork()
if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(
        before=_fork.before,
        after_in_parent=_fork.after_in_parent,
        after_in_child=_fork.after_in_child,
    )


# -- imports -------------------------------------------------------------------------


class _Imports:
    """Keeps forks from happening while a module is imported, or a host looked up.

    A child process that inherits a half-done import, and the import system's lock on
    it, can never finish it. At exit an import is waited for, too: up to Python 3.13 the
    interpreter then ends other threads by unwinding their stacks, and aborts where a
    frame of Rust is among them, as when ``cryptography`` is being imported.
    """

    def __init__(self) -> None:
        # Guards imports against a fork. Reentrant, since what is imported may fork:
        # then the child goes on with the import.
        self.lock = threading.RLock()
        register(self, Order.LOCKS)

    def before_fork(self) -> bool:
        """Wait for an import under way."""
        return self.lock.acquire(timeout=IMPORT_TIMEOUT)

    def after_fork_in_parent(self) -> None:
        """Let imports go on."""
        self.lock.release()

    def after_fork_in_child(self) -> None:
        """Make a new lock: a thread that held the old one does not run here."""
        self.lock = threading.RLock()

    def before_exit(self) -> None:
        """Wait for an import under way."""
        if self.lock.acquire(timeout=IMPORT_TIMEOUT):
            self.lock.release()


_imports = _Imports()
atexit.register(_imports.before_exit)


@contextlib.contextmanager
def no_fork() -> Iterator[None]:
    """Keep other threads from forking in this context, for an import or a lookup."""
    lock = _imports.lock  # in a child forked in this context it is another one
    held = lock.acquire(timeout=IMPORT_TIMEOUT)
    try:
        # Even without the lock: imports are safe as long as no thread forks.
        yield
    finally:
        if held:
            lock.release()


def import_module(name: str, package: str | None) -> ModuleType:
    """Import a module; no fork happens meanwhile, nor another import if possible."""
    if importlib.util.resolve_name(name, package) not in sys.modules:
        wait_for_imports(OTHER_IMPORTS_TIMEOUT)
    with no_fork():
        return importlib.import_module(name, package)


def wait_for_imports(timeout: float, calm: float = 0.0) -> None:
    """Wait until no other thread is importing a module.

    Where one thread imports a package, and another one a module of it, each may come to
    hold the lock that the other waits for. Python breaks the deadlock by handing out an
    incomplete module, and both imports fail: with ``KeyError: 'redis'`` in the thread
    that wanted ``redis.cluster``.

    Parameters:
        timeout: the seconds to wait at most.
        calm: the seconds for which no other thread must have been importing.
    """
    now = last = time.monotonic()
    end = now + timeout
    while now < end:
        if _others_import():
            last = now
        elif now - last >= calm:
            return
        time.sleep(LOOK)
        now = time.monotonic()


def _others_import() -> bool:
    """Return whether another thread is importing a module."""
    frames = sys._current_frames().copy()
    frames.pop(threading.get_ident(), None)
    return any(map(_imports_now, frames.values()))


def _imports_now(frame: FrameType | None) -> bool:
    """Return whether a stack is in an import.

    One that has come from an import into this package waits for a token, and imports
    nothing meanwhile.
    """
    while frame is not None:
        name = frame.f_code.co_filename
        if name == _IMPORTLIB:
            return True
        if name.startswith(_PACKAGE):
            return False
        frame = frame.f_back
    return False


#: The file name of the import system's own frames, and that of this package's.
_IMPORTLIB = importlib.__import__.__code__.co_filename
_PACKAGE = os.path.join(os.path.dirname(__file__), "")
