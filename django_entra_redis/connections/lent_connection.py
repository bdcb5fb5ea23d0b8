"""asyncio connections, for redis-py's clients that a cache lends.

They follow the rules of the threads' connections (:mod:`.connection`). redis-py's
asynchronous cluster client checks out a connection without a call in which it could
authenticate, so that it does before it sends a command.
"""

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, TimeoutError

from .._errors import without_frames
from ..commands.packing import pack_all
from ..credentials.provider import EntraCredentialProvider
from ..credentials.reauthentication import Action, next_action
from ..credentials.renewal import Renewal
from ..identity.token import Token
from .connection import RecordingProvider
from .multiplexed import Target
from .refusals import (
    greeting_error,
    interruption,
    is_refusal,
    redacted,
    refusal,
    sent_password,
)
from .tls import reach

#: redis-py 7 and newer connects in a method of that name, older versions in connect().
_CONNECTS = hasattr(Connection, "connect_check_health")
#: Errors of a connection that is broken, after which clients try again.
BROKEN = (RedisConnectionError, TimeoutError)
#: The end of a transaction, packed.
_EXEC = pack_all([("EXEC",)])


class _Lent(AbstractConnection):
    """The part of both classes below that authenticates.

    Parameters:
        target: how to connect.
        provider: the identity's provider of tokens; ``None``: there is no identity.
        retry_subscribed: the retry policy while there is a subscription.
        options: redis-py's.
    """

    def __init__(
        self,
        *,
        target: Target,
        provider: EntraCredentialProvider | None,
        retry_subscribed: Retry,
        **options: Any,
    ) -> None:
        self._target = target
        self._provider = provider
        self._renewal: Renewal | None = None
        self._offset = random.random()
        # The token that the connection last authenticated with; None: disconnected.
        self._held: Token | None = None
        self._subscribed = False
        self._watching = False
        self._asked: object = None
        self._retry_subscribed = retry_subscribed
        self._recorder = None
        if provider is not None:
            self._recorder = RecordingProvider(provider)
            options["credential_provider"] = self._recorder
        super().__init__(**options)

    # -- connecting ------------------------------------------------------------------

    async def connect(self) -> None:
        """Connect and authenticate, as far as that has to be done.

        Raises:
            TokenError: there is no valid token.
            TokenRefusedError: Redis refused the token.
            ConnectionError, TimeoutError: raised by redis-py; without the frames below,
                whose local variables hold the token.
        """
        await self._keep_up()
        if _CONNECTS:
            await super().connect()
        elif not self.is_connected:
            await self._establish(super().connect)

    async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Connect, unless the connection is connected."""
        if not self.is_connected:
            parent = super().connect_check_health
            await self._establish(functools.partial(parent, *args, **kwargs))

    async def _establish(self, open_: Callable[[], Awaitable[Any]]) -> None:
        provider, recorder = self._provider, self._recorder
        # override_settings may have replaced the renewal.
        renewal = self._renewal = None if provider is None else provider.renewal
        error = await self._attempt(open_)
        refused = None if recorder is None else recorder.token
        if is_refusal(error) and renewal is not None and refused is not None:
            if await renewal.areplace(refused) is not None:
                error = await self._attempt(open_)
            if is_refusal(error):
                error = refusal(refused, error)
        if error is not None:
            try:
                raise error
            finally:
                # Otherwise a frame of its traceback would keep the error alive.
                del error
        self._held = None if recorder is None else recorder.token

    async def _attempt(self, action: Callable[[], Awaitable[Any]]) -> Exception | None:
        """Call a function; return its error without the frames that hold the token."""
        try:
            await self._translated(action)
        except (RedisError, OSError) as error:
            return without_frames(error)
        except BaseException as error:
            # The task was cancelled: a reply may still arrive.
            await self.disconnect(nowait=True)
            stop = interruption(error, self._secrets())
        else:
            return None
        try:
            raise stop
        finally:
            del stop

    async def _translated(self, action: Callable[[], Awaitable[Any]]) -> None:
        """Call a function; translate its error by the command that Redis replied to.

        The caller removes the frames, also those of an error in the translation.
        """
        try:
            await action()
        except RedisError as error:
            failure = greeting_error(self._asked, error, self.db, self._secrets())
        else:
            return
        try:
            raise failure
        finally:
            del failure

    def _secrets(self) -> list[str]:
        """Return what the connection has sent to authenticate."""
        token = None if self._recorder is None else self._recorder.token
        return sent_password(self.password) if token is None else [token.value]

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect from the server, as the threads' connections do: at once.

        asyncio would wait for the end of the server's TLS, which one that is silent
        never sends: a task for seconds, and a loop that ends meanwhile would leave the
        socket open.
        """
        self._held = None
        self._watching = False
        # redis-py has no public name for it, nor a way to disconnect in this way.
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*args, **kwargs)

    # -- tokens ----------------------------------------------------------------------

    async def _keep_up(self) -> None:
        """Send AUTH if it is time to; disconnect where that takes a new connection."""
        held, renewal = self._held, self._renewal
        if held is None or renewal is None or not self.is_connected:
            return
        current = renewal.fresh() or await renewal.acurrent()
        if current is held:
            return
        action = next_action(held, current, self._offset, renewal.clock)
        if action is Action.KEEP:
            return
        if action is Action.ADOPT:
            self._held = current
            return
        if action is Action.AUTHENTICATE:
            send = functools.partial(self._authenticate, current)
            if await self._attempt(send) is None:
                return
        await self.disconnect(nowait=True)

    async def _authenticate(self, token: Token) -> None:
        """Authenticate again on the open connection.

        Raises:
            ConnectionError: the connection has to reconnect for that.
        """
        self._held = None  # The AUTH itself needs none before it.
        if not self._subscribed:
            await self._send_token(token)
            await self.read_response()
        elif self._in_place:
            # PubSub reads the reply: it takes an OK for a PONG, and raises an error.
            await self._send_token(token)
        else:
            # In RESP 2 the server refuses AUTH on a connection with a subscription.
            raise RedisConnectionError(
                "A subscriber reconnects to authenticate with a newer token."
            )
        self._held = token

    async def _send_token(self, token: Token) -> None:
        assert self._recorder is not None  # There is a token.
        self._recorder.note(token)
        await self.send_command("AUTH", token.username, token.value, check_health=False)

    # -- commands --------------------------------------------------------------------

    async def send_packed_command(
        self, command: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Send commands; authenticate before them if it is time to."""
        # Between WATCH and EXEC, a new connection would lose what is watched.
        if self._watching:
            await super().send_packed_command(command, *args, **kwargs)
            self._watching = not b"".join(command).endswith(_EXEC)
            return
        if not self._subscribed:
            await self._keep_up()
        await super().send_packed_command(command, *args, **kwargs)

    async def send_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command."""
        self._asked = args[0]
        await super().send_command(*args, **kwargs)
        if args[0] in ("DISCARD", "UNWATCH", "WATCH"):
            self._watching = args[0] == "WATCH"

    # -- subscribers -----------------------------------------------------------------

    def register_connect_callback(self, callback: Any) -> None:
        """Register a callback for each connect; redis-py's PubSub registers one."""
        if not self._subscribed:
            self._own = self.retry, self.retry_on_error
            # redis-py 5.3 reads the errors from the connection, not from the policy.
            self.retry, self.retry_on_error = self._retry_subscribed, [*BROKEN]
            self._subscribed = True
            if self._provider is not None:
                self._provider.on_next(self._renewed)
        super().register_connect_callback(callback)

    def deregister_connect_callback(self, callback: Any) -> None:
        """Remove the callback of a subscriber."""
        if self._subscribed:
            self.retry, self.retry_on_error = self._own
            self._subscribed = False
        super().deregister_connect_callback(callback)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply; a subscriber authenticates before, if it is time to.

        A subscriber gets the replies to AUTH, too.
        """
        # `_held` is None while it connects.
        if self._subscribed and self._held is not None and await self._may_keep_up():
            await self._keep_up()
            if not self.is_connected:
                await self.connect()
        try:
            return await super().read_response(*args, **kwargs)
        except (RedisError, ValueError) as error:
            failure: Exception = error
            if self._subscribed:
                failure = redacted(error, self._secrets())
            if failure is error:
                raise
        try:
            raise failure
        finally:
            del failure

    @property
    def _in_place(self) -> bool:
        """Whether a subscriber takes the reply to AUTH for a PONG."""
        return str(self.protocol) == "3" and not self.encoder.decode_responses

    async def _may_keep_up(self) -> bool:
        """Whether a subscriber loses nothing by a new connection, or needs none."""
        # redis-py 5 can't tell whether there is something to read without reading it.
        return self._in_place or (_CONNECTS and not await self.can_read())

    async def _renewed(self, token: object) -> None:
        """Authenticate a subscriber in place while it waits for messages."""
        if self._subscribed and self._in_place:
            await self._keep_up()


class LentConnection(_Lent, Connection):
    """A connection over TCP, with TLS or without."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = {"host": self.host, "port": self.port}
        if self._target.make_ssl is None:
            return arguments
        name = self._target.server_hostname
        return {**arguments, "ssl": self._context, "server_hostname": name}

    async def _connect(self) -> None:
        target, announced = self._target, self.host
        if target.make_ssl is not None:
            loop = asyncio.get_running_loop()
            self._context = await loop.run_in_executor(None, target.make_ssl)
        connect = super()._connect

        async def connect_to(host: str) -> None:
            self.host = host
            await connect()

        try:
            await reach(target.tls, announced, target.connect_timeout, connect_to)
        finally:
            self.host = announced


class LentUnixConnection(_Lent, UnixDomainSocketConnection):
    """A connection over a Unix socket."""
