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

#: Operations that a loop carries out through the synchronous client before it connects:
#: a TLS handshake costs about as much CPU time as this many calls in a thread.
FIRST_OPERATIONS = 8


class SupportsTarget(Protocol):
    """The part of an endpoint that this module uses."""

    @property
    def target(self) -> Target:
        """The address and the options for an event loop's connection."""
        ...


class LoopConnections:
    """The connections of one event loop.

    ``open`` is True once the loop has carried out enough operations to use connections
    of its own.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open = False
        self._loop = loop
        self._operations = 0
        self._connections: dict[SupportsTarget, MultiplexedConnection] = {}
        # Connections to servers that are gone, on which replies may still arrive.
        self._retired: list[MultiplexedConnection] = []
        self._closer = self._until_closed()

    async def count(self) -> bool:
        """Count an operation; return whether the loop uses its own connections now."""
        self._operations += 1
        if self._operations > FIRST_OPERATIONS:
            self.open = True
            # The generator closes the connections: asyncio.run() and others close a
            # loop's asynchronous generators before the loop itself.
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
        """Close the connection to an endpoint now; calls under way get an error."""
        connection = self._connections.pop(endpoint, None)
        if connection is not None:
            connection.close()

    def retire(self, endpoint: SupportsTarget) -> None:
        """Close the connection to an endpoint once all calls have their replies."""
        connection = self._connections.pop(endpoint, None)
        if connection is not None:
            connection.finish()
            self._retired = [
                retired
                for retired in (*self._retired, connection)
                if retired.awaits_replies
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
    """Have each loop close its connection to an endpoint, whose settings changed."""
    _in_each_loop(LoopConnections.close, endpoint)


def retire_everywhere(endpoint: SupportsTarget) -> None:
    """Have each loop retire its connection to an endpoint, whose server is gone."""
    _in_each_loop(LoopConnections.retire, endpoint)


def _in_each_loop(
    do: Callable[[LoopConnections, SupportsTarget], None], endpoint: SupportsTarget
) -> None:
    with _lock.current:
        for loop, connections in list(_loops.items()):
            with contextlib.suppress(RuntimeError):  # a loop that is closed
                loop.call_soon_threadsafe(do, connections, endpoint)


# Objects of the parent process. They are kept for ever, since their finalizers would
# act on the parent's loops and threads.
_inherited: list[object] = []


def _after_fork_in_child() -> None:
    _inherited.append(dict(_loops))
    _loops.clear()
    _replace_asgiref_threads()


def _replace_asgiref_threads() -> None:
    """Give asgiref new executors in a forked child process.

    The threads of the parent's executors do not exist in the child, and asgiref does
    not notice: calls that it hands to them, Django's among them, would wait for ever. A
    test fails when one of these names disappears.
    """
    dead = SyncToAsync.context_to_thread_executor
    _inherited.extend((SyncToAsync.single_thread_executor, dict(dead)))
    dead.clear()
    SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)
    # The fork may have happened in that one thread, where asgiref refuses another call.
    SyncToAsync.deadlock_context.set(False)


in_child(_after_fork_in_child, Order.CONNECTIONS)
