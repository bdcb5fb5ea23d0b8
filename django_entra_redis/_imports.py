"""Importing in a background thread while another thread may fork.

A child process that inherits a half-done import, and the import system's lock on it,
can never finish it; so a fork waits for an import that is under way in here.
"""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from types import ModuleType

from ._fork import at_fork

#: Seconds that a fork waits, and an import for another one. Bounded, since what it
#: waits for may itself be waiting for a module that the waiting thread is importing.
PATIENCE = 5.0

# Guards imports against a fork. Reentrant, since what is imported may fork: then the
# child goes on with the import.
_lock = threading.RLock()


@contextlib.contextmanager
def no_fork() -> Iterator[None]:
    """Keep other threads from forking in here: imports may be under way."""
    lock = _lock  # after a fork in here it is another one
    held = lock.acquire(timeout=PATIENCE)
    try:
        # Also without it: imports in several threads are safe as long as none forks.
        yield
    finally:
        if held:
            lock.release()


def import_module(name: str, package: str | None) -> ModuleType:
    """Import a module; no fork happens meanwhile."""
    with no_fork():
        return importlib.import_module(name, package)


class _Fork(threading.local):
    """The hooks around a fork. Threads may fork in the same moment: each its own."""

    held = False

    def before(self) -> None:
        self.held = _lock.acquire(timeout=PATIENCE)

    def after_in_parent(self) -> None:
        if self.held:
            # Not for the next fork: a signal handler may interrupt its hook.
            self.held = False
            _lock.release()

    def after_in_child(self) -> None:
        # Whoever held it where the patience ended does not run in here.
        global _lock
        _lock = threading.RLock()
        self.held = False


_fork = _Fork()
at_fork(
    before=_fork.before,
    after_in_parent=_fork.after_in_parent,
    after_in_child=_fork.after_in_child,
)
