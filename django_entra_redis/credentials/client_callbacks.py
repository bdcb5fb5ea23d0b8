"""Callbacks of the redis-py clients that users make: each new token is handed to them.

redis-py registers a callback for each client that it hands a provider to. They are
bound methods, and are held weakly, so that a client that goes away is forgotten.

Two kinds of them read or leave replies that belong to others, and are replaced: those
for subscribed connections (RESP 3, the default of redis-py 8), which read AUTH's reply
while the subscriber reads its messages; and those for asyncio pools, which give
connections back before AUTH has been answered. A test shows each.

Many clients register nothing: redis-py does not where the provider is given to a pool
(Celery's results, Channels), or where clients are made for a moment each (kombu).
Hence the connections themselves are remembered, weakly, when they authenticate.
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
#: seconds. redis-py's goes through a pool's idle connections and gives up at the first
#: that the server has closed, with the others still to do; the next call reconnects it.
TRIES = 100
RETRY_FOR = 5.0


@dataclass(frozen=True, slots=True)
class _Weak:
    """Calls ``function(target, value)`` for as long as the target lives."""

    function: Callable[[Any, Any], Any]
    target: ref[Any]

    def __call__(self) -> Callback | None:
        target = self.target()
        return None if target is None else functools.partial(self.function, target)


@dataclass(frozen=True, slots=True)
class _Subscription:
    """A callback, and the event loop it belongs to if it is a coroutine function."""

    callback: Callable[[], Callback | None]
    loop: asyncio.AbstractEventLoop | None

    @property
    def alive(self) -> bool:
        closed = self.loop is not None and self.loop.is_closed()
        return not closed and self.callback() is not None


class Subscriptions:
    """Callbacks for one kind of event of one identity."""

    def __init__(self) -> None:
        # Guards each replacement of the tuple, which readers need no lock for, and the
        # dictionary. Reentrant for the sake of signal handlers that use Redis.
        self._lock = threading.RLock()
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._connections: WeakKeyDictionary[Any, Token] = WeakKeyDictionary()

    def __len__(self) -> int:
        return sum(subscription.alive for subscription in self._subscriptions)

    def add(self, callback: Callback) -> None:
        """Call ``callback`` from now on: a bound method only as long as it lives.

        A coroutine function runs on the event loop that it was added in; added
        outside of one it never runs.
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
        """Remember the connection whose method asks for credentials, if one does.

        redis-py does not say for which connection it asks.

        Parameters:
            caller: the frame of what asks.
            token: what it gets.
        """
        connection = caller.f_locals.get("self")
        if hasattr(connection, "set_re_auth_token"):
            mask_authentication(connection)
            with self._lock:
                self._connections[connection] = token

    def after_fork(self) -> None:
        """Go on in a child process, to which no event loop of the parent belongs."""
        self._lock = threading.RLock()
        self._subscriptions = tuple(s for s in self._subscriptions if s.loop is None)
        self._connections = WeakKeyDictionary()
        for subscription in self._subscriptions:
            pool = getattr(subscription.callback(), "__self__", None)
            if isinstance(pool, ConnectionPool):
                # The thread that called it at the moment of the fork holds its lock
                # for ever, and redis-py 8 takes it to begin anew.
                pool._lock = threading.RLock()

    def notify(self, value: Any) -> None:
        """Call every callback; what one raises keeps nobody else from hearing."""
        with self._lock:
            connections = list(self._connections.items())
        for connection, token in connections:
            if token is not getattr(value, "token", None):
                _prepare(connection, value)
        # Event loops first: for them this thread does not have to wait.
        for subscription in sorted(self._subscriptions, key=lambda s: s.loop is None):
            callback = subscription.callback()
            if callback is None or _is_inherited(callback):
                continue
            if subscription.loop is None:
                for failures in _tries():
                    try:
                        callback(value)
                    except Exception as error:
                        failures.append(error)
            else:
                # The coroutine is made in there: one that a loop never comes to would
                # be warned of. A loop that has been closed meanwhile needs none.
                with contextlib.suppress(RuntimeError):
                    subscription.loop.call_soon_threadsafe(_begin, callback, value)


#: The callbacks under way in event loops, which themselves hold their tasks weakly.
_tasks: set[asyncio.Task[None]] = set()


def _begin(callback: Callback, value: Any) -> None:
    task = asyncio.get_running_loop().create_task(_quietly(callback, value))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _quietly(callback: Callback, value: Any) -> None:
    for failures in _tries():
        try:
            await callback(value)
        except Exception as error:
            failures.append(error)


def _replacements(
    callback: Callback, loop: asyncio.AbstractEventLoop | None
) -> list[Callable[[], Callback | None]] | None:
    """Return what to call in place of a callback; ``None`` if it is right as it is."""
    listener, event = _owner(callback)
    subscribed = isinstance(listener, RegisterReAuthForPubSub)
    if not (subscribed or isinstance(listener, RegisterReAuthForPooledConnections)):
        return None
    if callback.__name__.startswith("_raise"):
        return []
    pools = [event.connection_pool] if subscribed else event.connection_pools
    if loop is None:
        # The pools in place of clients that come and go. A subscribed connection's
        # socket is its reader's: it reconnects at expiry, as it does in RESP 2.
        return [WeakMethod(pool.re_auth_callback) for pool in pools]
    weak = [_Weak(_refresh, ref(pool)) for pool in pools]
    if subscribed:
        weak.append(_Weak(_authenticate, ref(event.pubsub_connection)))
    return [*weak]


def _prepare(connection: Any, token: Any) -> None:
    """Have a connection authenticate anew when its user gives it back to the pool."""
    if connection._connect_callbacks:
        # Subscribed. It would connect in vain when it is given back closed.
        return
    if not inspect.iscoroutinefunction(connection.re_auth):
        connection.set_re_auth_token(token)
    elif hasattr(connection, "mark_for_reconnect"):  # redis-py 7
        # No AUTH, for the same reason as below.
        connection.mark_for_reconnect()


async def _refresh(pool: Any, token: Any) -> None:
    """Authenticate an asyncio pool's idle connections; the others reconnect."""
    try:
        # Its lock does not keep others from checking connections out.
        if not isinstance(pool, BlockingConnectionPool):
            await pool.re_auth_callback(token)
            for connection in pool._available_connections:
                if hasattr(connection, "reset_should_reconnect"):
                    connection.reset_should_reconnect()
    finally:
        for connection in pool._in_use_connections:
            # redis-py would send AUTH once they are back in the pool, where the next
            # task takes its reply for its own.
            connection.set_re_auth_token(None)  # pyright: ignore[reportArgumentType]


async def _authenticate(connection: Any, token: Any) -> None:
    """Send AUTH, and leave the reply to the subscriber, who takes it for a PONG.

    One that decodes its messages would not. It reconnects at expiry.
    """
    # Without callbacks it is subscribed no longer, and may be anybody's by now.
    subscribed = connection.is_connected and connection._connect_callbacks
    if subscribed and not connection.encoder.decode_responses:
        await connection.send_command(
            "AUTH", token.try_get("oid"), token.get_value(), check_health=False
        )


def _tries() -> Iterator[list[Exception]]:
    """Yield a list for what a try raises, as often as it is worth another try."""
    deadline = time.monotonic() + RETRY_FOR
    for _ in range(TRIES):
        failures: list[Exception] = []
        yield failures
        if not failures:
            return
        error = failures[0]
        # A dead connection in somebody's pool is normal.
        logger.debug("A callback for a new token failed: %s", type(error).__name__)
        dead = isinstance(error, ConnectionError | TimeoutError)
        refused = isinstance(error, AuthenticationError)
        if not dead or refused or time.monotonic() >= deadline:
            return


def _owner(callback: Callback) -> tuple[Any, Any]:
    """Return the object that a method is bound to, and the event it was made for."""
    owner = getattr(callback, "__self__", None)
    return owner, getattr(owner, "_event", None)


def _is_inherited(callback: Callback) -> bool:
    """Whether a client's connections are those of the process that forked this one.

    redis-py forgets such connections when a pool is used; its callback would send
    AUTH on them, into the parent's conversation.
    """
    owner, event = _owner(callback)
    parts = [
        owner,
        *getattr(event, "connection_pools", ()),
        getattr(event, "connection", None),
    ]
    return any(getattr(part, "pid", os.getpid()) != os.getpid() for part in parts)
