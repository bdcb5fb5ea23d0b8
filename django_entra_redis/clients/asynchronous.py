"""The asynchronous client: carries the cache's operations out on channels.

Each event loop has one channel to each server. A loop's first operations go through
the synchronous client in a thread, though: a loop that ``asyncio.run()`` or
``async_to_sync()`` makes for a call or two is not worth a TLS handshake of its own.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from asgiref.sync import SyncToAsync, sync_to_async
from django.core.signals import setting_changed
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .._fork import at_fork
from ..commands.drivers import adrive
from ..commands.operations import Operation, Request
from ..connections.multiplexed import Channel, Target
from ..connections.tls import SharedTls
from ..credentials.provider import EntraCredentialProvider
from ..exceptions import EntraRedisError
from .redirects import concerns_all
from .sync import BACKOFF, RETRIES, Client, uncertain

T = TypeVar("T")

#: Operations that a loop makes through the synchronous client before it connects.
FIRST = 8

#: Options of redis-py's that a channel has no equal of: then a thread does it all.
_SYNC_ONLY = (
    "connection_class",
    "health_check_interval",
    "redis_connect_func",
    "retry",
    "socket_type",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
)


class AsyncCacheClient:
    """Carries out the operations of a cache in an event loop.

    Parameters:
        client: the synchronous client of the same cache.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        options = client.options
        self._native = (
            not (options.pool_class or options.parser_class)
            and options.connection.get("connection_class") is None
            and all(_has_equal(pool.connection_kwargs) for pool in client.pools)
        )
        repeatable = [RedisConnectionError, ReadOnlyError]
        repeatable += options.connection.get("retry_on_error", ())
        if options.connection.get("retry_on_timeout"):
            repeatable.append(RedisTimeoutError)
        self.repeatable: tuple[type[Exception], ...] = tuple(repeatable)

    async def run(self, operation: Operation[T]) -> T:
        """Carry out an operation; return its result.

        Raises:
            What :meth:`Client.run` raises.
        """
        channels = _channels_of(asyncio.get_running_loop()) if self._native else None
        if channels is None or not (channels.open or await channels.count()):
            return await sync_to_async(self.client.run)(operation)
        return await adrive(
            operation,
            lambda request: self.execute(channels, request),
            self.client.explain,
        )

    async def execute(self, channels: "LoopChannels", request: Request) -> Any:
        """Carry out a request, repeatedly if need be and if that is safe."""
        pool = self.client.pool_for(request)
        return await self.repeat(request, lambda: self.call(channels, pool, request))

    async def call(self, channels: "LoopChannels", pool: Any, request: Request) -> Any:
        """Carry out a request once, on the channel that stands in for a pool."""
        reply = await channels.to(pool).call(request.packed, request.count)
        if request.count and (failure := concerns_all(reply)):
            raise failure
        return reply

    async def repeat(
        self, request: Request, attempt: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Attempt to carry out a request, repeatedly if that is safe."""
        failures = 0
        while True:
            try:
                return await attempt()
            except EntraRedisError:
                raise  # no token, or no room: trying again would not help
            except RedisError as error:
                failure: Exception = error
            if request.once and getattr(failure, "sent", False):
                raise uncertain(request, failure)
            failures += 1
            if failures > RETRIES or not isinstance(failure, self.repeatable):
                raise failure
            await asyncio.sleep(BACKOFF.compute(failures))


def _has_equal(kwargs: Mapping[str, Any]) -> bool:
    """Whether a channel can do what a pool's connections are to do."""
    provider = kwargs.get("credential_provider")
    return (
        isinstance(provider, EntraCredentialProvider | None)
        and str(kwargs.get("protocol", 2)) == "2"
        and not any(kwargs.get(option) for option in _SYNC_ONLY)
    )


class LoopChannels:
    """The channels of one event loop, by the pool that they stand in for.

    ``open`` tells whether the loop is worth a connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open = False
        self._loop = loop
        self._operations = 0
        self._channels: dict[Any, Channel] = {}
        # Those to servers that are gone which may still have something to answer.
        self._left: list[Channel] = []
        self._closer = self._until_closed()

    async def count(self) -> bool:
        """Count an operation; return whether the loop is worth a connection now."""
        self._operations += 1
        if self._operations > FIRST:
            self.open = True
            # asyncio.run() and its like close a loop's asynchronous generators at last.
            await anext(self._closer)
        return self.open

    def to(self, pool: Any) -> Channel:
        """Return the channel to a pool's server."""
        try:
            return self._channels[pool]
        except KeyError:
            channel = self._channels[pool] = Channel(make_target(pool), self._loop)
            return channel

    def leave(self, pool: Any) -> None:
        """Close the channel to a pool's server once it owes nothing any more."""
        channel = self._channels.pop(pool, None)
        if channel is not None:
            channel.finish()
            self._left = [left for left in (*self._left, channel) if left.owed]

    def renew(self) -> None:
        """Close the channels: settings have changed."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            channel.close()

    async def _until_closed(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            with _lock:
                _loops.pop(self._loop, None)
            for channel in (*self._channels.values(), *self._left):
                await channel.aclose()


# Guards the dictionary below: loops may run in several threads.
_lock = threading.RLock()
_loops: dict[asyncio.AbstractEventLoop, LoopChannels] = {}


def _channels_of(loop: asyncio.AbstractEventLoop) -> LoopChannels:
    try:
        return _loops[loop]
    except KeyError:
        with _lock:
            for other in [other for other in _loops if other.is_closed()]:
                del _loops[other]
            return _loops.setdefault(loop, LoopChannels(loop))


def _in_each_loop(do: Callable[[LoopChannels], None]) -> None:
    with _lock:
        for loop, channels in list(_loops.items()):
            with contextlib.suppress(RuntimeError):  # a loop that is closed
                loop.call_soon_threadsafe(do, channels)


def leave_server(pool: Any) -> None:
    """Have each loop close its channel to a pool's server, which is gone."""
    _in_each_loop(lambda channels: channels.leave(pool))


def _on_setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting in ("CACHES", "ENTRA_REDIS"):
        _in_each_loop(LoopChannels.renew)


setting_changed.connect(_on_setting_changed)


# What is the parent's: to collect it would be to meddle with its loops and threads.
_inherited: list[object] = []


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    # asgiref's threads do not live on in a child, and it does not notice: what is left
    # to them, by Django too, would wait for ever.
    dead = SyncToAsync.context_to_thread_executor
    _inherited.extend((dict(_loops), SyncToAsync.single_thread_executor, dict(dead)))
    _loops.clear()
    dead.clear()
    SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)
    # Where the fork was in that one thread: nobody has the new one yet.
    SyncToAsync.deadlock_context.set(False)


at_fork(after_in_child=_after_fork_in_child)


def make_target(pool: Any) -> Target:
    """Return what a pool's connections connect to, and how."""
    kwargs = pool.connection_kwargs
    # Not connected: it tells what redis-py makes of the options.
    sample = pool.connection_class(**kwargs)
    info = getattr(sample, "driver_info", None)
    names = {
        "LIB-NAME": info.formatted_name if info else getattr(sample, "lib_name", None),
        "LIB-VER": info.lib_version if info else getattr(sample, "lib_version", None),
    }
    greeting: list[tuple[Any, ...]] = [
        ("CLIENT", "SETINFO", key, name) for key, name in names.items() if name
    ]
    if sample.client_name:
        greeting.append(("CLIENT", "SETNAME", sample.client_name))
    if sample.db:
        greeting.append(("SELECT", sample.db))
    options = []
    where = {"path": kwargs["path"]} if "path" in kwargs else {}
    if not where:
        where = {"host": sample.host, "port": sample.port}
        if sample.socket_keepalive:
            options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
            options += [
                (socket.IPPROTO_TCP, option, value)
                for option, value in sample.socket_keepalive_options.items()
            ]
    provider = kwargs.get("credential_provider")
    user, password = sample.username, sample.password
    credentials = (user, password or "") if user else (password,) if password else ()
    tls = kwargs.get("tls")
    return Target(
        where=where,
        credentials=credentials,
        greeting=greeting,
        provide=None if provider is None else lambda: provider.renewal,
        connect_timeout=sample.socket_connect_timeout,
        timeout=sample.socket_timeout,
        wait_timeout=pool.pool_timeout,
        socket_options=options,
        make_ssl=None if tls is None else lambda: _ssl_context(tls, sample),
        server_hostname=tls.name_of(where["host"]) if tls else None,
    )


def _ssl_context(tls: SharedTls, connection: Any) -> ssl.SSLContext:
    """Return the SSL context that a pool's connections share."""
    context = tls.context
    if context is None:
        # redis-py makes it, from all its options; no connection is needed for that.
        with socket.socket() as sock, connection._wrap_socket_with_ssl(sock) as wrapped:
            context = wrapped.context
    return context
