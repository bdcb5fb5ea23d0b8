"""redis-py's own clients for event loops, on a cache's settings.

Each event loop has one client for each server, and closes it with itself.
"""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.connection import SSLConnection
from redis.exceptions import ConnectionError, TimeoutError

from .._fork import Order, in_child
from ..connections.endpoint import Endpoint

#: Options of a cache's pools that these clients do not take: they are for threads.
_SYNC_ONLY = {"maint_notifications_config", "redis_connect_func", "retry"}
#: Retries after the first try, and seconds between them, as in redis-py 8; redis-py 5
#: has none. The server may have closed an idle connection at its token's expiry.
_RETRIES = 3
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=1.0)


class LoopClients:
    """The clients of one event loop.

    Parameters:
        loop: the loop, which is running in this thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._clients: dict[Endpoint, Any] = {}
        self._closer = self._until_closed()
        # asyncio.run() and others close a loop's asynchronous generators before the
        # loop itself, if they have been started: this starts it.
        with contextlib.suppress(StopIteration):
            self._closer.__anext__().send(None)

    def to(self, endpoint: Endpoint) -> Any:
        """Return the client of a server."""
        if endpoint not in self._clients:
            self._clients[endpoint] = make_client(endpoint)
        return self._clients[endpoint]

    async def _until_closed(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            _loops.pop(self._loop, None)
            for client in self._clients.values():
                await client.aclose()


def client_of_loop(endpoint: Endpoint) -> Any:
    """Return the running event loop's client of a server.

    Raises:
        RuntimeError: no event loop is running.
    """
    loop = asyncio.get_running_loop()
    # Several threads may be here, but no two with the same loop.
    found = _loops.get(loop)
    if found is None:
        for other in [other for other in list(_loops) if other.is_closed()]:
            _loops.pop(other, None)
        found = _loops[loop] = LoopClients(loop)
    return found.to(endpoint)


def make_client(endpoint: Endpoint) -> Any:
    """Return a client of redis-py's for the running loop, by an endpoint's options."""
    pool = endpoint.pool
    known = inspect.signature(redis.asyncio.Redis.__init__).parameters.keys()
    options = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name in known - _SYNC_ONLY
    }
    if "path" in pool.connection_kwargs:
        options["unix_socket_path"] = pool.connection_kwargs["path"]
    options["ssl"] = issubclass(pool.connection_class, SSLConnection)
    options["retry"] = Retry(_BACKOFF, _RETRIES, (ConnectionError, TimeoutError))
    # The client has a pool of its own, which is as large as the threads' pool.
    options["max_connections"] = pool.max_connections
    return redis.asyncio.Redis(**options)


_loops: dict[asyncio.AbstractEventLoop, LoopClients] = {}
# The parent's, kept for ever: their finalizers would act on the parent's sockets.
_inherited: list[object] = []


def _after_fork_in_child() -> None:
    _inherited.append(dict(_loops))
    _loops.clear()


in_child(_after_fork_in_child, Order.CONNECTIONS)
