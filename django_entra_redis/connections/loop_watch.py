"""Lets an event loop process the bytes that a tracking connection receives."""

import asyncio
import contextlib
import os
from typing import Any
from weakref import finalize


class LoopWatch:
    """Lets an event loop process the bytes that a connection receives.

    It has a file descriptor of its own: the connection's could be closed, and its
    number be reused, while the loop still watches it.

    Parameters:
        loop: the event loop, which runs in this thread.
        connection: the connection.
        fileno: the connection's file descriptor.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: Any, fileno: int
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._fileno = os.dup(fileno)
        # Closed even if the loop is never run again, but garbage-collected.
        self._close = finalize(self, os.close, self._fileno)
        self._close.atexit = False
        try:
            loop.add_reader(self._fileno, self._take_in)
        except BaseException:
            self._close()
            raise

    def end(self) -> None:
        """Stop watching."""
        with contextlib.suppress(RuntimeError):  # a loop that is closed
            self._loop.call_soon_threadsafe(self._end)

    def _take_in(self) -> None:
        self._connection.take_in()
        if self._connection.closed:
            self._end()

    def _end(self) -> None:
        if self._close.alive:
            self._loop.remove_reader(self._fileno)
            self._close()
