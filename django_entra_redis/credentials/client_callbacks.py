"""Callbacks of users' own redis-py clients, which are called with each new token.

redis-py registers a callback for each client that is made with a provider. These are
bound methods, held by weak references: a client that goes away is forgotten.

Two kinds of these callbacks take replies that belong to others, and are replaced: those
for subscribed connections (RESP 3, the default of redis-py 8), which read the reply to
AUTH while the subscriber reads its messages; and those for asyncio pools, which return
a connection to the pool before the reply to AUTH has come. A test shows each.

Many clients register no callback: those whose provider was given to a pool (Celery's
results, Channels), and short-lived ones (kombu). Therefore the connections themselves
are remembered, by weak references, when they authenticate.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod, ref

from redis import ConnectionPool
from redis.asyncio import BlockingConnectionPool
from redis.event import RegisterReAuthForPooledConnections, RegisterReAuthForPubSub
from redis.exceptions import AuthenticationError, ConnectionError, TimeoutError

from ..identity.token import Token
from .masking import mask_authentication

logger = logging.getLogger(__name__)

Callback = Callable[[Any], Any]

#: How often a callback is called that fails on a dead connection, and for how many
#: seconds callbacks are called again. redis-py's callback authenticates a pool's idle
#: connections one by one, and stops at the first that the server has closed; the next
#: call reconnects that one.
TRIES = 100
RETRY_FOR = 5.0


@dataclass(frozen=True, slots=True)
class _Weak:
    """A callback ``function(target, value)`` for as long as the target lives."""

    function: Callable[[Any, Any], Any]
    target: ref[Any]

    def __call__(self) -> Callback | None:
        target = self.target()
        return None if target is None else functools.partial(self.function, target)


@dataclass(frozen=True, slots=True)
class _Subscription:
    """A callback, and its event loop if it is a coroutine function."""

    callback: Callable[[], Callback | None]
    loop: asyncio.AbstractEventLoop | None

    @property
    def alive(self) -> bool:
        closed = self.loop is not None and self.loop.is_closed()
        return not closed and self.callback() is not None


class Subscriptions:
    """Callbacks for one kind of event of one identity."""

    def __init__(self) -> None:
        # Guards the dictionary, and each replacement of the tuple, which is read
        # without it. Reentrant, since a signal handler may use Redis.
        self._lock = threading.RLock()
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._connections: WeakKeyDictionary[Any, Token] = WeakKeyDictionary()
        # Guards the two below: the callbacks under way, and whether none may begin any
        # more. Reentrant, for the same reason.
        self._calls = threading.Condition()
        self._under_way: set[object] = set()
        self._exiting = False

    def __len__(self) -> int:
        return sum(subscription.alive for subscription in self._subscriptions)

    def add(self, callback: Callback) -> None:
        """Add a callback; a bound method is called only as long as its object lives.

        A coroutine function runs in the event loop in which it was added. One that was
        added outside a loop never runs.
        """
        loop = None
        if inspect.iscoroutinefunction(callback):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
        replacements = _replacements(callback, loop)
        if replacements is None:
            bound = inspect.ismethod(callback)
            replacements = [WeakMethod(callback) if bound else lambda: callback]
        with self._lock:
            alive = [s for s in self._subscriptions if s.alive]
            for replacement in replacements:
                subscription = _Subscription(replacement, loop)
                if subscription not in alive:
                    alive.append(subscription)
            self._subscriptions = tuple(alive)

    def remember(self, caller: FrameType, token: Token) -> None:
        """Remember the connection that a token is for, if the caller is a connection.

        redis-py does not pass the connection along, so that it is found in the frame.

        Parameters:
            caller: the frame that asks for credentials.
            token: the token that it gets.
        """
        connection = caller.f_locals.get("self")
        if hasattr(connection, "set_re_auth_token"):
            mask_authentication(connection)
            with self._lock:
                self._connections[connection] = token

    def after_fork(self) -> None:
        """Forget the parent's event loops and connections in a child process."""
        self._lock = threading.RLock()
        self._calls, self._under_way = threading.Condition(), set()
        self._exiting = False
        self._subscriptions = tuple(s for s in self._subscriptions if s.loop is None)
        self._connections = WeakKeyDictionary()
        for pool in self._pools():
            # A thread of the parent may have held the pool's lock at the fork, and
            # redis-py 8 acquires it before it resets the pool.
            pool._lock = threading.RLock()

    def before_exit(self, deadline: float) -> None:
        """Begin no callback any more, and leave no pool locked by one.

        redis-py's callback holds the pool's lock while it waits for replies. Its thread
        ends with the interpreter, and the clients' ``__del__()``, which closes the
        pool, would wait for the lock for ever.

        Parameters:
            deadline: the time of the monotonic clock until which to wait for callbacks
                under way.
        """
        try:
            with self._calls:
                self._exiting = True
                left = max(0.0, deadline - time.monotonic())
                self._calls.wait_for(lambda: not self._under_way, left)
        finally:  # Also where a second Ctrl+C ends the wait.
            if self._under_way:
                for pool in self._pools():
                    pool._lock = threading.RLock()
                    # A function that is called at exit must not use the connections
                    # on which the callback waits for replies.
                    pool.reset()

    def _pools(self) -> Iterator[Any]:
        """Yield the pools whose idle connections a callback authenticates."""
        for subscription in self._subscriptions:
            pool = getattr(subscription.callback(), "__self__", None)
            if isinstance(pool, ConnectionPool):
                yield pool

    def notify(self, value: Any) -> None:
        """Call every callback; the error of one does not keep the others from it."""
        with self._lock:
            connections = list(self._connections.items())
        for connection, token in connections:
            if token is not getattr(value, "token", None):
                _prepare(connection, value)
        subscriptions = self._subscriptions
        # Event loops first: this thread does not wait for them.
        for subscription in subscriptions:
            if subscription.loop is not None:
                # The coroutine is made in the loop: Python would warn of one that a
                # stopped loop never awaits. A loop may have been closed meanwhile.
                with contextlib.suppress(RuntimeError):
                    subscription.loop.call_soon_threadsafe(_begin, subscription, value)
        # In rounds: nobody waits for the attempts of another, whose server is down.
        waiting = [s for s in subscriptions if s.loop is None]
        deadline = time.monotonic() + RETRY_FOR
        for _ in range(TRIES):
            waiting = [s for s in waiting if self._fails(s, value)]
            if not waiting or time.monotonic() >= deadline:
                return

    def _fails(self, subscription: _Subscription, value: Any) -> bool:
        """Call a callback; return whether it failed and another call may help."""
        call = object()  # not a number, which a child that is forked meanwhile forgets
        try:
            with self._calls:
                if self._exiting:
                    return False
                self._under_way.add(call)
            return _fails(subscription, value)
        finally:
            with (calls := self._calls):
                self._under_way.discard(call)
                calls.notify_all()


#: The callbacks that run in event loops: asyncio itself holds tasks by weak references.
_tasks: set[asyncio.Task[None]] = set()


def _begin(subscription: _Subscription, value: Any) -> None:
    callback = _find(subscription)
    if callback is not None:
        task = asyncio.get_running_loop().create_task(_quietly(callback, value))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


def _fails(subscription: _Subscription, value: Any) -> bool:
    """Call a callback; return whether it failed and another call may help."""
    callback = _find(subscription)
    if callback is not None:
        try:
            callback(value)
        except Exception as error:
            return _may_be_called_again(error)
    return False


def _find(subscription: _Subscription) -> Callback | None:
    """Return a callback unless its object is gone, or is a parent process's."""
    callback = subscription.callback()
    return None if callback is None or _is_inherited(callback) else callback


async def _quietly(callback: Callback, value: Any) -> None:
    deadline = time.monotonic() + RETRY_FOR
    for _ in range(TRIES):
        try:
            await callback(value)
        except Exception as error:
            if _may_be_called_again(error) and time.monotonic() < deadline:
                continue
        return


def _may_be_called_again(error: Exception) -> bool:
    """Log the error of a callback; return whether another call may help."""
    # At DEBUG: dead connections in a user's pool are normal.
    logger.debug("A callback for a new token failed: %s", type(error).__name__)
    dead = isinstance(error, ConnectionError | TimeoutError)
    return dead and not isinstance(error, AuthenticationError)


def _replacements(
    callback: Callback, loop: asyncio.AbstractEventLoop | None
) -> list[Callable[[], Callback | None]] | None:
    """Return the callbacks in place of one; ``None`` if it needs no replacement."""
    listener, event = _owner(callback)
    subscribed = isinstance(listener, RegisterReAuthForPubSub)
    if not (subscribed or isinstance(listener, RegisterReAuthForPooledConnections)):
        return None
    if callback.__name__.startswith("_raise"):
        return []
    pools = [event.connection_pool] if subscribed else event.connection_pools
    if loop is None:
        for pool in pools:
            _make_reentrant(pool)
        # The pools outlive the clients. A subscribed connection is used by its reader
        # alone: it reconnects at expiry, as in RESP 2.
        return [WeakMethod(pool.re_auth_callback) for pool in pools]
    weak = [_Weak(_refresh, ref(pool)) for pool in pools]
    if subscribed:
        weak.append(_Weak(_authenticate, ref(event.pubsub_connection)))
    return [*weak]


def _make_reentrant(pool: Any) -> None:
    """Give a pool a reentrant lock, as those of newer versions of redis-py have.

    Its callback sends AUTH while it holds the lock. If a client of the pool is garbage
    collected in that moment, its ``__del__()`` closes the pool in the same thread, and
    would wait for the lock for ever; no token would be renewed any more.
    """
    lock = getattr(pool, "_lock", None)
    if isinstance(lock, type(threading.Lock())):
        with lock:  # Another client may be using the pool.
            pool._lock = threading.RLock()


def _prepare(connection: Any, token: Any) -> None:
    """Have a connection authenticate again when it is returned to its pool."""
    if connection._connect_callbacks:
        # It is subscribed: redis-py would connect it just to return it closed.
        return
    if not inspect.iscoroutinefunction(connection.re_auth):
        connection.set_re_auth_token(token)
    elif hasattr(connection, "mark_for_reconnect"):  # redis-py 7
        # Not set_re_auth_token(), for the reason in _refresh().
        connection.mark_for_reconnect()


async def _refresh(pool: Any, token: Any) -> None:
    """Authenticate an asyncio pool's idle connections; the others reconnect."""
    try:
        # A blocking pool's lock does not keep others from checking out connections.
        if not isinstance(pool, BlockingConnectionPool):
            await pool.re_auth_callback(token)
            for connection in pool._available_connections:
                if hasattr(connection, "reset_should_reconnect"):
                    connection.reset_should_reconnect()
    finally:
        for connection in pool._in_use_connections:
            # redis-py would send AUTH after they are back in the pool, where the next
            # task would take its reply for the reply to its own command.
            connection.set_re_auth_token(None)  # pyright: ignore[reportArgumentType] # its type lacks None


async def _authenticate(connection: Any, token: Any) -> None:
    """Send AUTH; leave the reply to the subscriber, which takes it for a PONG.

    A subscriber that decodes its messages would not: it reconnects at expiry.
    """
    # Without callbacks it is not subscribed any more, and another task may have it.
    subscribed = connection.is_connected and connection._connect_callbacks
    if subscribed and not connection.encoder.decode_responses:
        await connection.send_command(
            "AUTH", token.try_get("oid"), token.get_value(), check_health=False
        )


def _owner(callback: Callback) -> tuple[Any, Any]:
    """Return the object that a method is bound to, and that object's ``_event``."""
    owner = getattr(callback, "__self__", None)
    return owner, getattr(owner, "_event", None)


def _is_inherited(callback: Callback) -> bool:
    """Whether a client's connections were made by a parent process.

    redis-py forgets such connections when a pool is used. Before that, its callback
    would send AUTH on the parent's sockets.
    """
    owner, event = _owner(callback)
    parts = [
        owner,
        *getattr(event, "connection_pools", ()),
        getattr(event, "connection", None),
    ]
    return any(getattr(part, "pid", os.getpid()) != os.getpid() for part in parts)
