"""The connections of each event loop: one to each endpoint, for all of its tasks.

A loop's first operations go through the synchronous client in a thread: a loop that
``asyncio.run()`` or ``async_to_sync()`` makes for a call or two is not worth a TLS
handshake of its own.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from asgiref.sync import SyncToAsync

from .._fork import ForkSafeLock, Order, in_child
from .multiplexed import MultiplexedConnection, Target

#: Operations that a loop makes through the synchronous client before it connects: a
#: TLS handshake costs about as much CPU time as this many trips through a thread.
FIRST_OPERATIONS = 8


class SupportsTarget(Protocol):
    """An endpoint, as far as event loops are concerned."""

    @property
    def target(self) -> Target:
        """What to connect to, and how."""
        ...


class LoopConnections:
    """The connections of one event loop.

    ``open`` tells whether the loop is worth connections.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open = False
        self._loop = loop
        self._operations = 0
        self._connections: dict[SupportsTarget, MultiplexedConnection] = {}
        # Those to servers that are gone which may still have something to answer.
        self._retired: list[MultiplexedConnection] = []
        self._closer = self._until_closed()

    async def count(self) -> bool:
        """Count an operation; return whether the loop is worth connections now."""
        self._operations += 1
        if self._operations > FIRST_OPERATIONS:
            self.open = True
            # asyncio.run() and its like close a loop's asynchronous generators at last.
            await anext(self._closer)
        return self.open

    def to(self, endpoint: SupportsTarget) -> MultiplexedConnection:
        """Return the connection to an endpoint."""
        try:
            return self._connections[endpoint]
        except KeyError:
            connection = MultiplexedConnection(endpoint.target, self._loop)
            self._connections[endpoint] = connection
            return connection

    def close(self, endpoint: SupportsTarget) -> None:
        """Close the connection to an endpoint now; whoever waits gets an error."""
        connection = self._connections.pop(endpoint, None)
        if connection is not None:
            connection.close()

    def retire(self, endpoint: SupportsTarget) -> None:
        """Close the connection to an endpoint once all has been answered."""
        connection = self._connections.pop(endpoint, None)
        if connection is not None:
            connection.finish()
            self._retired = [
                retired for retired in (*self._retired, connection) if retired.owed
            ]

    async def _until_closed(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            with _lock.current:
                _loops.pop(self._loop, None)
            for connection in (*self._connections.values(), *self._retired):
                await connection.aclose()


# Guards the dictionary below: loops may run in several threads.
_lock = ForkSafeLock()
_loops: dict[asyncio.AbstractEventLoop, LoopConnections] = {}


def connections_of(loop: asyncio.AbstractEventLoop) -> LoopConnections:
    """Return the connections of an event loop."""
    try:
        return _loops[loop]
    except KeyError:
        with _lock.current:
            for other in [other for other in _loops if other.is_closed()]:
                del _loops[other]
            return _loops.setdefault(loop, LoopConnections(loop))


def close_everywhere(endpoint: SupportsTarget) -> None:
    """Have each loop close its connection to an endpoint: settings have changed."""
    _in_each_loop(LoopConnections.close, endpoint)


def retire_everywhere(endpoint: SupportsTarget) -> None:
    """Have each loop close its connection to an endpoint, whose server is gone."""
    _in_each_loop(LoopConnections.retire, endpoint)


def _in_each_loop(
    do: Callable[[LoopConnections, SupportsTarget], None], endpoint: SupportsTarget
) -> None:
    with _lock.current:
        for loop, connections in list(_loops.items()):
            with contextlib.suppress(RuntimeError):  # a loop that is closed
                loop.call_soon_threadsafe(do, connections, endpoint)


# What is the parent's: to collect it would be to meddle with its loops and threads.
_inherited: list[object] = []


def _after_fork_in_child() -> None:
    _inherited.append(dict(_loops))
    _loops.clear()
    _replace_asgiref_threads()


def _replace_asgiref_threads() -> None:
    """Give a child process asgiref executors whose threads live.

    asgiref has no hook for forks: its threads do not live on in a child, and it does
    not notice, so that what is left to them, by Django too, would wait for ever. A test
    fails when one of these names goes.
    """
    dead = SyncToAsync.context_to_thread_executor
    _inherited.extend((SyncToAsync.single_thread_executor, dict(dead)))
    dead.clear()
    SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)
    # Where the fork was in that one thread: nobody has the new one yet.
    SyncToAsync.deadlock_context.set(False)


in_child(_after_fork_in_child, Order.CONNECTIONS)
