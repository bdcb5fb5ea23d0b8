"""The connection of an event loop to one server, shared by all of its tasks.

Tasks append their commands; all that gather in one iteration of the loop are sent at
once, and the replies are handed out in order. Compared with a pool of redis-py's
asyncio connections, with 100 tasks at once, that takes a fraction of the CPU time, and
one connection in place of a hundred (benchmarks/tasks.md has the figures). A newer
token is sent as an AUTH in the same stream: no task waits for it.

The disadvantage: a huge reply delays the replies after it.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

from redis.exceptions import AuthenticationError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .._errors import hidden
from ..commands.packing import pack_all
from ..credentials.reauthentication import Action, next_action
from ..credentials.renewal import Renewal
from ..identity.redaction import redact
from ..identity.token import Token
from .authentication import MARK, REPLIES, is_accepted, pack_auth, pack_marked_auth
from .protocol import (
    ConnectionClosedError,
    ConnectionLostError,
    RedisProtocol,
    ReplyTimeoutError,
)
from .refusals import greeting_error, refusal, sent_password
from .tls import SharedTls, reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The address and the options of a connection.

    Parameters:
        where: arguments of ``loop.create_connection``, or ``path`` of a Unix socket.
        credentials: arguments of AUTH, if there is no identity.
        greeting: the first commands after AUTH.
        provide: returns the identity's renewal; ``None``: there is no identity.
        connect_timeout, timeout: seconds; ``None``: without bound.
        wait_timeout: seconds that a command waits while too many are under way.
        socket_options: (level, option, value) each.
        make_ssl: returns the SSL context, which may take a while; ``None``: no TLS.
        server_hostname: the name that the server's certificate must be for.
        tls: what the TLS connections to a server share.
    """

    where: Mapping[str, Any] = field(repr=False)
    credentials: Sequence[str] = field(default=(), repr=False)
    greeting: Sequence[Sequence[Any]] = ()
    provide: Callable[[], Renewal] | None = None
    connect_timeout: float | None = 5.0
    timeout: float | None = 5.0
    wait_timeout: float = 5.0
    socket_options: Sequence[tuple[int, int, int]] = ()
    make_ssl: Callable[[], SSLContext] | None = field(default=None, repr=False)
    server_hostname: str | None = None
    tls: SharedTls | None = field(default=None, repr=False)

    def __str__(self) -> str:
        where = self.where
        return str(where.get("path") or f"{where.get('host')}:{where.get('port')}")


def secrets_of(target: Target, token: Token | None) -> Sequence[str]:
    """Return what a connection sends to authenticate.

    Parameters:
        target: what it connects to.
        token: the identity's token; ``None``: there is no identity.
    """
    if token is not None:
        return [token.value]
    return [one for sent in target.credentials[-1:] for one in sent_password(sent)]


class MultiplexedConnection:
    """A connection to a server, which is made anew when it is lost.

    Parameters:
        target: what to connect to.
        loop: the event loop that all calls come from.
    """

    def __init__(self, target: Target, loop: asyncio.AbstractEventLoop) -> None:
        self.target = target
        self._loop = loop
        self._protocol: RedisProtocol | None = None
        # Replaced connections, on which replies may still arrive.
        self._replaced: list[RedisProtocol] = []
        self._connecting: asyncio.Task[RedisProtocol] | None = None
        self._closed = False
        self._offset = random.random()
        self._renewal = target.provide() if target.provide else None
        # The token that the connection last authenticated with.
        self._token: Token | None = None
        self._authenticating = False

    @property
    def ready(self) -> RedisProtocol | None:
        """The open connection, if it is authenticated with the newest token."""
        protocol = self._protocol
        if protocol is None or protocol.closed:
            return None
        if self._renewal is not None and self._renewal.fresh() is not self._token:
            return None
        return protocol

    async def call(self, packed: bytes, count: int = 0) -> Any:
        """Send commands; return the reply.

        Parameters:
            packed: the commands.
            count: 0 for one command, else how many there are: a list is returned then,
                in which an error reply stands in its place as an exception.

        Raises:
            ConnectionLostError, ReplyTimeoutError: the connection broke; they tell
                whether the commands may have reached the server.
            ConnectionError, TimeoutError: there is no connection to be had.
            ConnectionPoolTimeout: too many other commands are under way.
            TokenError, TokenRefusedError: it can't be authenticated.
            RedisError: an error reply, if there is one command, or if it tells that
                none of them was carried out.
        """
        protocol = self._protocol
        if protocol is None or protocol.closed:
            protocol = await self._connected()
        elif self._renewal is not None and self._renewal.fresh() is not self._token:
            protocol = await self._reauthenticated(protocol, self._renewal)
        return self.take(protocol, await protocol.submit(packed, count), count)

    def take(self, protocol: RedisProtocol, reply: Any, count: int) -> Any:
        """Return a reply that has arrived, or raise the error that it is.

        Raises:
            RedisError: see :meth:`call`.
        """
        failure = _failure_in(reply, count)
        if failure is None:
            return reply
        if isinstance(failure, ReadOnlyError | AuthenticationError):
            # After READONLY, DNS may name another server: there has been a failover. A
            # connection that is not authenticated any more is replaced, too.
            self._replace(protocol)
        try:
            raise failure
        finally:
            # Else it would be kept by a frame of its own traceback.
            del failure, reply

    async def aclose(self) -> None:
        """Close the connection, and wait until one that is being made is given up."""
        self.close()
        if self._connecting is not None:
            await asyncio.wait([self._connecting])

    def close(self) -> None:
        """Close the connection for good; calls under way get an error."""
        self.finish()
        for protocol in self._replaced:
            protocol.abort("it has been closed")

    def finish(self) -> None:
        """Close the connection for good once all calls have their replies."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._protocol is not None:
            self._replace(self._protocol)

    @property
    def awaits_replies(self) -> bool:
        """Whether replies may still arrive on replaced connections."""
        return not all(protocol.closed for protocol in self._replaced)

    def _replace(self, protocol: RedisProtocol) -> None:
        """Replace a connection; close it once all calls on it have their replies."""
        if protocol is self._protocol:
            self._protocol = None
            self._replaced = [old for old in self._replaced if not old.closed]
            self._replaced.append(protocol)
            protocol.finish()

    # -- tokens ----------------------------------------------------------------------

    async def _reauthenticated(
        self, protocol: RedisProtocol, renewal: Renewal
    ) -> RedisProtocol:
        """Send AUTH if there is a newer token; return the connection to use."""
        current = await renewal.acurrent()
        token_in_use = self._token
        action = (
            next_action(token_in_use, current, self._offset, renewal.clock)
            if token_in_use is not None
            else Action.RECONNECT
        )
        if action is Action.RECONNECT:
            self._replace(protocol)
            return await self._connected()
        if action is Action.ADOPT:
            self._token = current
        elif action is Action.AUTHENTICATE and not self._authenticating:
            self._authenticating = True
            sent = hidden(
                lambda: protocol.submit(pack_marked_auth(current), REPLIES, mark=MARK)
            )
            sent.add_done_callback(
                lambda reply: self._authenticated(protocol, current, reply)
            )
        return protocol

    def _authenticated(
        self, protocol: RedisProtocol, token: Token, reply: "asyncio.Future[Any]"
    ) -> None:
        """Note the reply to an AUTH."""
        self._authenticating = False
        if reply.exception() is not None or protocol is not self._protocol:
            return
        if is_accepted(reply.result()):
            self._token = token
        else:
            self._replace(protocol)  # The next connection finds out why.

    # -- connecting ------------------------------------------------------------------

    async def _connected(self) -> RedisProtocol:
        """Return an open connection; tasks that come meanwhile get the same one."""
        if self._protocol is not None and not self._protocol.closed:
            return self._protocol
        if self._closed:
            raise self._settings_changed()
        connecting = self._connecting
        if connecting is None or connecting.done():
            connecting = self._connecting = self._loop.create_task(self._connect())
            connecting.add_done_callback(_retrieve)
        # asyncio.wait() does not cancel the connect if this task is cancelled.
        await asyncio.wait([connecting])
        if connecting.cancelled():
            raise self._settings_changed()
        return connecting.result()

    def _settings_changed(self) -> ConnectionClosedError:
        return ConnectionClosedError(
            f"Connection to {self.target} closed: the settings have changed.",
            sent=False,
        )

    async def _connect(self) -> RedisProtocol:
        if self.target.provide is None:
            return await self._open(None)
        # override_settings may have replaced the renewal.
        renewal = self._renewal = self.target.provide()
        token = await renewal.acurrent()
        failure: Exception
        try:
            return await self._open(token)
        except AuthenticationError as error:
            failure = error.with_traceback(None)
        # As is_refusal() says.
        other = await renewal.areplace(token)
        if other is not None:
            try:
                return await self._open(other)
            except AuthenticationError as error:
                token, failure = other, error.with_traceback(None)
        raise refusal(token, failure)

    async def _open(self, token: Token | None) -> RedisProtocol:
        target, name = self.target, str(self.target)
        protocol = RedisProtocol(
            self._loop, name, timeout=target.timeout, wait_timeout=target.wait_timeout
        )
        failure: Exception | None
        try:
            async with asyncio.timeout(target.connect_timeout):
                await self._open_transport(protocol)
                failure = await self._greet(protocol, token)
        except (TimeoutError, ReplyTimeoutError):
            failure = RedisTimeoutError(f"Timeout connecting to {name}.")
        except (OSError, ConnectionLostError) as error:
            # Another class: no caller's command has been sent yet.
            said = redact(str(error), secrets_of(target, token))
            failure = RedisConnectionError(f"Error connecting to {name}: {said}")
        except BaseException:
            protocol.abort()
            raise
        if failure is not None:
            protocol.abort()
            try:
                raise failure
            finally:
                del failure
        self._protocol, self._token = protocol, token
        return protocol

    async def _open_transport(self, protocol: RedisProtocol) -> None:
        where, make_ssl = self.target.where, self.target.make_ssl
        if "path" in where:
            await self._loop.create_unix_connection(lambda: protocol, where["path"])
            return
        context = None
        if make_ssl is not None:
            context = await self._loop.run_in_executor(None, make_ssl)
        transport = await self._reach(protocol, context)
        sock = transport.get_extra_info("socket")
        for option in self.target.socket_options:
            sock.setsockopt(*option)

    async def _reach(self, protocol: RedisProtocol, context: SSLContext | None) -> Any:
        """Connect to the first host of the server that answers; return a transport."""
        target, where = self.target, self.target.where

        async def connect(host: str) -> Any:
            transport, _ = await self._loop.create_connection(
                lambda: protocol,
                host,
                where["port"],
                ssl=context,
                server_hostname=target.server_hostname,
            )
            return transport

        timeout = target.connect_timeout
        return await reach(target.tls, where["host"], timeout, connect)

    async def _greet(
        self, protocol: RedisProtocol, token: Token | None
    ) -> Exception | None:
        """Authenticate and send the first commands; return the error, if any."""
        # AUTH without its arguments: a debug page would show this local variable.
        greeting = list(self.target.greeting)
        if token is not None or self.target.credentials:
            greeting.insert(0, ("AUTH",))
        if not greeting:
            return None
        # Without the frames that have the arguments of AUTH.
        replies = await hidden(
            lambda: protocol.submit(self._pack_greeting(token), len(greeting))
        )
        for command, reply in zip(greeting, replies, strict=True):
            # CLIENT SETINFO is optional, and unknown to servers older than 7.2.
            if not isinstance(reply, Exception) or "SETINFO" in command:
                continue
            return greeting_error(
                command[0], reply, greeting[-1][-1], secrets_of(self.target, token)
            )
        return None

    # A function of its own: a debug page shows the local variables of each frame.
    def _pack_greeting(self, token: Token | None) -> bytes:
        packed = pack_all(self.target.greeting)
        if token is not None:
            return pack_auth(token) + packed
        if self.target.credentials:
            return pack_all([("AUTH", *self.target.credentials)]) + packed
        return packed


def _retrieve(task: "asyncio.Task[RedisProtocol]") -> None:
    """Retrieve a task's error, about which asyncio would log a warning otherwise."""
    if not task.cancelled():
        task.exception()


def _failure_in(reply: Any, count: int) -> Exception | None:
    """Return the error reply that speaks for all commands, if there is one."""
    if not count:
        return reply if isinstance(reply, Exception) else None
    for item in reply:
        if isinstance(item, RedisConnectionError | ReadOnlyError):
            return item
    return None
