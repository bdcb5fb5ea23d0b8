"""The connection pool of threads, which authenticates connections at checkout."""

import contextlib
import functools
import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakSet, finalize, ref

import redis

from .._errors import ConfigurationError, hidden
from .._fork import Order, register
from ..conf.options import CacheOptions
from ..credentials.provider import EntraCredentialProvider
from ..exceptions import ConnectionPoolTimeout
from .arguments import class_of, connection_kind, unknown_options
from .connection import connection_class
from .tls import SharedTls, SharedTlsConnection

#: Connections that one pool opens at most, unless OPTIONS say otherwise.
MAX_CONNECTIONS = 100


class _Waiter:
    """A thread that waits in the queue for a connection."""

    def __init__(self) -> None:
        self.connection: Any = None
        # Locked until the thread is woken. A lock, not a Condition or an Event: these
        # are not safe in a signal handler, which may release a connection.
        self._empty = threading.Lock()
        self._empty.acquire()

    def give(self, connection: Any) -> None:
        """Hand over a connection, and wake the thread."""
        self.connection = connection
        self.wake()

    def wake(self) -> None:
        """Wake the thread, so that it tries again."""
        with contextlib.suppress(RuntimeError):  # the thread has been woken already
            self._empty.release()

    def wait(self, timeout: float) -> None:
        """Wait to be woken, ``timeout`` seconds at most."""
        self._empty.acquire(timeout=timeout)


class ConnectionPool(redis.ConnectionPool):
    """A pool with a cheap checkout, which waits for a free connection when it is full.

    Like redis-py's pool, it hands out the connection that was used last, and replaces
    one that the server has closed. A connection is used by no other thread than the one
    that has checked it out.

    Parameters:
        pool_timeout: seconds to wait for a free connection at ``max_connections``.
        idle_timeout: seconds after which an idle connection is closed, by whoever uses
            the pool next; ``None`` for never.
    """

    #: The time in seconds.
    clock: Callable[[], float] = staticmethod(time.monotonic)
    # The retry policy of connections while redis-py's own clients have them.
    _lent_retry: Any = None

    def __init__(
        self,
        *args: Any,
        pool_timeout: float = 5.0,
        idle_timeout: float | None = 60.0,
        **kwargs: Any,
    ) -> None:
        self.pool_timeout = pool_timeout
        self.idle_timeout = math.inf if idle_timeout is None else idle_timeout
        kwargs["max_connections"] = kwargs.get("max_connections") or MAX_CONNECTIONS
        super().__init__(*args, **kwargs)
        # A user's own credential provider has no renewal.
        provider = self.connection_kwargs.get("credential_provider")
        own = isinstance(provider, EntraCredentialProvider)
        self._provider = provider if own else None
        register(self, Order.CONNECTIONS)
        _remember(self)

    def __repr__(self) -> str:
        return _safe_repr(self)

    def reset(self) -> None:
        """Forget all connections, as a child process must."""
        # Guards ``queue`` and ``_made``; reentrant, since a signal handler may use the
        # cache. The list needs no lock: its append and pop are atomic, with the GIL or
        # without it.
        self._gate = threading.RLock()
        #: Connections that nobody uses; the one that was used last is at the end.
        self.idle: list[Any] = []
        #: First come, first served: otherwise a busy thread, which checks out again
        #: right after a release, would keep all others waiting.
        self.queue: deque[_Waiter] = deque()
        # Weak references: a connection that its thread has lost, by an exception from a
        # signal handler, must not count towards the maximum for ever.
        self._made: WeakSet[Any] = WeakSet()
        #: Connections that are in use at a disconnect() are closed when they come back.
        self.generation = 0
        #: When the first of the idle ones may have been idle for too long.
        self.close_idle_at = self.clock() + self.idle_timeout
        self.pid = os.getpid()

    def after_fork_in_child(self) -> None:
        """Forget the parent's connections, as redis-py's pools do."""
        self.reset()

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Check out a connection for one of redis-py's own clients, and lend it."""
        return lend(self.check_out, self._lent_retry)

    def check_out(self) -> Any:
        """Check out a connection: connected, authenticated, with nothing to read.

        Raises:
            ConnectionPoolTimeout: none became free within ``pool_timeout``.
            ConnectionError, TimeoutError: the server can't be reached.
            TokenError, TokenRefusedError: the connection can't be authenticated.
        """
        now = self.clock()
        if now >= self.close_idle_at:
            self.close_idle(now)
        try:
            connection = self.idle.pop()
        except IndexError:
            connection = None
        if connection is None:
            connection = self._make_or_wait()
        connection.pool_lent = True
        try:
            connection.connect()
            try:
                stale = connection.can_read()
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                stale = True
            if stale:
                connection.disconnect()
                connection.connect()
        except BaseException:
            connection.disconnect()
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        """Take back a connection; do nothing if it has come back already."""
        if not connection.pool_lent:
            return
        connection.pool_lent = False
        if connection.lent is not None:
            connection.lend(None)
        self.take_back(connection, self.clock())

    def take_back(self, connection: Any, now: float) -> None:
        """Put a connection among the idle ones, or give it to a thread that waits.

        Parameters:
            connection: the connection, which is among them no more.
            now: the time.
        """
        if connection.pid != self.pid:
            connection.disconnect()
            return
        if connection.pool_generation != self.generation:
            connection.pool_generation = self.generation
            connection.disconnect()
        connection.idle_since = now
        self.idle.append(connection)
        if self.queue:
            self.serve_queue()

    def close_idle(self, now: float) -> None:
        """Close the connections that have been idle for too long.

        The one that was used last is handed out first, so that those which a burst has
        opened gather at the other end.
        """
        oldest = now - self.idle_timeout
        while True:
            try:
                since = self.idle[0].idle_since
                if since > oldest:
                    break
                connection = self.idle.pop(0)
            except IndexError:
                since = now
                break
            # Another thread may have changed what is there in between.
            if connection.idle_since > oldest:
                self.take_back(connection, connection.idle_since)
                continue
            connection.disconnect()
            with self._gate:
                self._made.discard(connection)
            _wake_all(self.queue)
        self.close_idle_at = since + self.idle_timeout

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close idle connections now, and those in use when they come back."""
        self.close_connections(inuse_connections)

    def close_connections(self, inuse_connections: bool = True) -> None:
        """Do as :meth:`disconnect` does, which a subclass may make a no-op."""
        if inuse_connections:
            self.generation += 1
        for _ in range(len(self.idle)):
            try:
                connection = self.idle.pop(0)
            except IndexError:
                return
            connection.disconnect()
            connection.pool_lent = True
            self.release(connection)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of idle connections and of those in use."""
        idle = len(self.idle)
        return idle, max(0, len(self._made) - idle)

    def set_retry(self, retry: Any) -> None:
        """Set the retry policy of connections from now on."""
        self.lend_with(retry)
        self.connection_kwargs["retry"] = retry
        for connection in list(self.idle):
            connection.retry = retry

    def lend_with(self, retry: Any) -> None:
        """Set the retry policy of connections that redis-py's own clients borrow."""
        self._lent_retry = retry

    def re_auth_callback(self, token: Any) -> None:
        """Do nothing: connections authenticate again at their next checkout."""

    # redis-py 8 counts connections by these two methods, for its metrics.
    def _get_free_connections(self) -> list[Any]:
        return list(self.idle)

    def _get_in_use_connections(self) -> set[Any]:
        with self._gate:
            return set(self._made).difference(self.idle)

    def _make_or_wait(self) -> Any:
        if self._provider is not None:
            # Raises without a valid token, so that a thread does not queue behind
            # threads that hold a connection and wait for a token themselves.
            self._provider.renewal.current()
        deadline = time.monotonic() + self.pool_timeout
        while True:
            with self._gate:
                with contextlib.suppress(IndexError):
                    return self.idle.pop()
                if len(self._made) < self.max_connections:
                    return self._make()
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                waiter = _Waiter()
                self.queue.append(waiter)
            # A connection may have been released just before the waiter was queued.
            self.serve_queue()
            try:
                waiter.wait(left)
            finally:
                connection = self._leave_queue(waiter)
            if connection is not None:
                return connection
        raise ConnectionPoolTimeout(
            f"No connection became free within {self.pool_timeout:g} s "
            f"(OPTIONS['pool_timeout']): all {self.max_connections} "
            "(OPTIONS['max_connections']) are in use."
        )

    def _make(self) -> Any:
        connection: Any = hidden(
            lambda: self.connection_class(**self.connection_kwargs)
        )
        connection.pool_generation = self.generation
        # Registered before the set's own callback, and therefore called after it: the
        # threads that are woken find that the connection does not count any more.
        finalize(connection, _wake_all, self.queue)
        self._made.add(connection)
        return connection

    def serve_queue(self) -> None:
        """Give idle connections to threads that wait, first come, first served."""
        with self._gate:
            while self.queue:
                try:
                    connection = self.idle.pop()
                except IndexError:
                    return
                self.queue.popleft().give(connection)

    def _leave_queue(self, waiter: _Waiter) -> Any:
        """Remove a waiter; return the connection that it was given, or None."""
        with self._gate:
            if waiter in self.queue:
                self.queue.remove(waiter)
            return waiter.connection


def check_out(pool: Any) -> Any:
    """Check out a connection of any pool, for the cache itself."""
    own = isinstance(pool, ConnectionPool)
    return pool.check_out() if own else hidden(pool.get_connection)


def lend(take: Callable[[], Any], retry: Any) -> Any:
    """Check out a connection for one of redis-py's clients, until it is released.

    Parameters:
        take: checks out the connection.
        retry: redis-py's retry policy for the checkout and for the client's commands;
            ``None``: no retries.
    """
    if retry is None:
        return take()
    connection = retry.call_with_retry(take, _ignore)
    connection.lend(retry)
    return connection


def _ignore(error: Exception) -> None:
    """Do nothing after a failed checkout: there is no connection to reset."""


def _wake_all(queue: deque[_Waiter]) -> None:
    """Wake all waiting threads: one may make a connection in place of a lost one."""
    # Without the lock: a finalizer may run between any two lines of any thread.
    for waiter in list(queue):
        waiter.wake()


# The pools of this process, by age. Without a lock: its single operations are atomic,
# copy() is one of them.
_pools: dict[int, "ref[ConnectionPool]"] = {}
_numbers = itertools.count()


def _remember(pool: ConnectionPool) -> None:
    number = next(_numbers)
    _pools[number] = ref(pool, lambda _: _pools.pop(number, None))


def known_pools() -> list[ConnectionPool]:
    """Return the pools of this process, for metrics."""
    alive = (pool() for pool in _pools.copy().values())
    return [pool for pool in alive if pool is not None]


def pool_settings(
    server: str, options: CacheOptions, default: type[Any]
) -> tuple[type[Any], dict[str, Any]]:
    """Return the class of a cache's pools, and the arguments to make one with.

    Parameters:
        server: the server's URL.
        options: the cache's settings.
        default: the class, unless the settings name another.

    Raises:
        ConfigurationError: an option is unknown or has a wrong value.
    """
    if problems := unknown_options(replace(options, servers=(server,))):
        raise ConfigurationError(problems)
    kwargs = dict(options.connection)
    kind: Any = kwargs.get("connection_class") or connection_kind(server)
    own = connection_class(kind, entra=options.identity is not None)
    kwargs["connection_class"] = own
    if "retry_on_error" in kwargs:
        # A copy: redis-py 5.3 appends to the list, which is part of the registry's key.
        kwargs["retry_on_error"] = list(kwargs["retry_on_error"])
    if options.identity is not None:
        kwargs["credential_provider"] = EntraCredentialProvider(options.identity)
    if issubclass(own, SharedTlsConnection):
        kwargs["tls"] = SharedTls()
    if options.parser_class is not None:
        kwargs["parser_class"] = class_of("parser_class", options.parser_class)
    pool_class = class_of("pool_class", options.pool_class or default)
    if issubclass(pool_class, ConnectionPool):
        kwargs["pool_timeout"] = options.pool_timeout
        kwargs["idle_timeout"] = options.idle_timeout
        return pool_class, kwargs
    if issubclass(pool_class, redis.BlockingConnectionPool):
        kwargs.setdefault("timeout", options.pool_timeout)
    return with_safe_repr(pool_class), kwargs


@functools.cache
def with_safe_repr(kind: type[Any]) -> type[Any]:
    """Return a pool class whose ``repr`` shows no password, as redis-py's would."""
    return type(kind.__name__, (kind,), {"__repr__": _safe_repr})


def _safe_repr(pool: Any) -> str:
    """Return a pool's ``repr``: its class and its server."""
    kwargs = pool.connection_kwargs
    where = kwargs.get("path") or f"{kwargs.get('host')}:{kwargs.get('port')}"
    return f"<{type(pool).__name__} to {where}>"
