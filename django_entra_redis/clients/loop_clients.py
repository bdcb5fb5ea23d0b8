"""redis-py's own clients for event loops, on a cache's settings.

Each event loop has one client for each server, or cluster, and closes it with itself.
"""

import asyncio
import contextlib
import copy
import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from .._errors import hidden
from .._fork import Order, in_child
from ..connections.endpoint import Endpoint
from ..connections.lent_connection import (
    BROKEN,
    LentConnection,
    LentUnixConnection,
)
from ..connections.pool import with_safe_repr
from ..credentials.provider import EntraCredentialProvider
from .lending import athrough_expiries, own_provider

S = TypeVar("S", bound=Hashable)
T = TypeVar("T")

#: Options of a cache's pools that these clients do not take: they are for threads.
_SYNC_ONLY = {
    "maint_notifications_config",
    "parser_class",
    "redis_connect_func",
    "retry",
}
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
        self._clients: dict[Hashable, Any] = {}
        self._closer = self._until_closed()
        # asyncio.run() and others close a loop's asynchronous generators before the
        # loop itself, if they have been started: this starts it.
        with contextlib.suppress(StopIteration):
            self._closer.__anext__().send(None)

    def to(self, server: S, make: Callable[[S], Any]) -> Any:
        """Return the client of a server, or of a cluster; make it if there is none."""
        if server not in self._clients:
            # Without the frames that have the options, a password among them: redis-py
            # raises errors for the values of some.
            self._clients[server] = hidden(lambda: make(server))
        return self._clients[server]

    async def _until_closed(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            _loops.pop(self._loop, None)
            for client in self._clients.values():
                await client.aclose()


def client_of_loop(server: S, make: Callable[[S], Any]) -> Any:
    """Return the running event loop's client of a server, or of a cluster.

    Parameters:
        server: an endpoint, or a topology.
        make: makes a client of it, for the running loop.

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
    return found.to(server, make)


def options_of(endpoint: Endpoint, kind: type[Any]) -> dict[str, Any]:
    """Return the options of an endpoint's pool, as far as a class takes them.

    Parameters:
        endpoint: the server.
        kind: redis-py's class.
    """
    made: Any = kind
    known = _parameters(made)
    return {
        name: value
        for name, value in endpoint.pool.connection_kwargs.items()
        if name in known - _SYNC_ONLY
    }


@functools.cache
def _parameters(kind: Any) -> set[str]:
    """Return the names of the parameters of a class and its parents."""
    return {
        name
        for parent in kind.__mro__
        for name in inspect.signature(parent.__init__).parameters
    }


class LoopRetry(Retry):
    """The retry policy of a client; a token's expiry begins the count anew.

    Parameters:
        provider: the provider of the tokens; ``None``: there are none.
    """

    def __init__(self, provider: EntraCredentialProvider | None) -> None:
        super().__init__(_BACKOFF, _RETRIES, BROKEN)
        self._provider = provider

    def __deepcopy__(self, memo: object) -> "LoopRetry":
        # redis-py makes one for each connection, and the provider is not to be copied.
        return copy.copy(self)

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[T]],
        fail: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> T:
        """Call a function until it succeeds or has failed too often; return its result.

        Parameters:
            do: the function.
            fail: awaited after each failure, with the error.
            args, kwargs: further arguments of redis-py's method.
        """
        call = super().call_with_retry
        return await athrough_expiries(
            self._provider, lambda: call(do, fail, *args, **kwargs)
        )


def make_retry(provider: EntraCredentialProvider | None) -> Retry:
    """Return the retry policy of a client."""
    return LoopRetry(provider)


def make_client(endpoint: Endpoint) -> Any:
    """Return a client of redis-py's for the running loop, by an endpoint's options."""
    target = endpoint.target
    kind: Any = LentUnixConnection if "path" in target.where else LentConnection
    provider = own_provider(endpoint.pool)
    # The client has a pool of its own, which is as large as the threads' pool.
    own = {
        "connection_class": kind,
        "max_connections": endpoint.pool.max_connections,
        "target": target,
        "provider": provider,
        "retry": make_retry(provider),
        "retry_on_error": [*BROKEN],
        "retry_subscribed": make_retry(provider),
    }
    pool_class = with_safe_repr(redis.asyncio.ConnectionPool)
    pool = pool_class(**{**options_of(endpoint, kind), **own})
    # It closes the pool as it is closed.
    return redis.asyncio.Redis.from_pool(pool)


_loops: dict[asyncio.AbstractEventLoop, LoopClients] = {}
# The parent's, kept for ever: their finalizers would act on the parent's sockets.
_inherited: list[object] = []


def _after_fork_in_child() -> None:
    _inherited.append(dict(_loops))
    _loops.clear()


in_child(_after_fork_in_child, Order.CONNECTIONS)
