"""Connections that authenticate with their identity's current token.

A pool calls ``connect()`` at each checkout, also on a connection that is connected.
There the connection compares its token with the current one, and authenticates again
if there is a newer one. No other thread ever uses its socket, whatever pool it is in.
"""

import functools
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, SSLConnection
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from .._errors import hidden, without_frames
from ..commands.packing import refuse_long_integers
from ..credentials.provider import EntraCredentialProvider
from ..credentials.reauthentication import Action, next_action
from ..identity.token import Token
from .deadlines import bounded_parser
from .exchanger import Exchanger, make_exchanger
from .refusals import (
    greeting_error,
    interruption,
    is_refusal,
    redacted,
    refusal,
    sent_password,
)
from .tls import SharedTlsConnection, as_os_error

_ONCE = Retry(NoBackoff(), 0)


class RecordingProvider(CredentialProvider):
    """Gives redis-py the current token, and records which one that was.

    Parameters:
        provider: the identity's provider of tokens.
    """

    def __init__(self, provider: EntraCredentialProvider) -> None:
        self.provider = provider
        self.token: Token | None = None

    def note(self, token: Token) -> None:
        """Record a token that is sent otherwise."""
        self.token = token

    def get_credentials(self) -> tuple[str, str]:
        """Return user name and token."""
        self.token = token = self.provider.renewal.current()
        return token.username, token.value

    async def get_credentials_async(self) -> tuple[str, str]:
        """Do as :meth:`get_credentials` does, without blocking the event loop."""
        self.token = token = await self.provider.renewal.acurrent()
        return token.username, token.value


class PlainConnection(AbstractConnection):
    """A connection without an identity, and the base of those with one.

    Its ``connect()`` costs almost nothing while it is connected: redis-py's own sets up
    retries first.
    """

    # Whether commands are being sent, and the error reply that the server sent before
    # it closed the connection meanwhile.
    _sending = False
    _closing_error: ResponseError | None = None
    #: The replies to commands that the server has refused to read to their end, up to
    #: the error reply that says so.
    early_replies: Sequence[Any] = ()
    # The name of the last command that redis-py sent on its own: while it connects, the
    # one that an error reply answers.
    _asked: object = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Each operation reads these. Python finds what is an object's own in a quarter
        # of the time that it takes where the class has a default.
        self._connected = False
        #: The exchanger of commands on the socket. ``None``: :meth:`connect` has to be
        #: called first, or the socket is not suitable.
        self.exchanger: Exchanger | None = None
        # The retry policy while redis-py's own client has the connection, else None.
        self.lent: Any = None
        #: Since when the connection has been idle, by the pool's clock.
        self.idle_since = 0.0
        super().__init__(*args, **kwargs)

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command.

        Raises:
            ValueError: an integer is too long.
        """
        refuse_long_integers(args)
        self._asked = args[0]
        super().send_command(*args, **kwargs)

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> Any:
        """Return commands of a redis-py client's as bytes.

        Raises:
            ValueError: an integer is too long.
        """
        commands = list(commands)
        for command in commands:
            refuse_long_integers(command)
        return super().pack_commands(commands)

    def lend(self, retry: Any) -> None:
        """Lend the connection to a redis-py client, or take it back.

        Parameters:
            retry: redis-py's policy for retries of commands and connects while the
                client has the connection; ``None``: the cache has it again.
        """
        if retry is not None:
            if self.lent is None:
                self._own = self.retry, self.retry_on_error
            # redis-py 5.3 reads the errors from the connection, not from the policy.
            self.retry, self.retry_on_error = retry, list(retry._supported_errors)
        elif self.lent is not None:
            self.retry, self.retry_on_error = self._own
        self.lent = retry

    def connect(self) -> None:
        """Connect, unless the connection is connected."""
        if not self._connected:
            try:
                # redis-py's frames have the password as a local variable.
                hidden(lambda: self._with_retries(self._open))
                self.exchanger = self._make_exchanger()
            except BaseException:
                # A signal handler may have raised halfway: redis-py would take the
                # connection for connected.
                self.disconnect()
                raise
            self._connected = True

    def set_parser(self, parser_class: Any) -> None:
        """Set the class of the parser, extended by a deadline for each reply."""
        super().set_parser(bounded_parser(parser_class))

    def expecting(self, replies: int) -> AbstractContextManager[None]:
        """Return a context in which this number of replies has one common deadline."""
        found: AbstractContextManager[None] = self._parser.expecting(replies)
        return found

    def _make_exchanger(self) -> Exchanger | None:
        # redis-py has no public attribute for the socket.
        return make_exchanger(self._sock, self.socket_timeout)

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect from the server."""
        if self._sending:
            # redis-py disconnects when sending fails. An error reply that the server
            # sent before it closed the connection would be lost with the socket.
            self._sending = False
            self._closing_error = self._read_closing_error()
        self._connected = False
        self.exchanger = None
        super().disconnect(*args, **kwargs)

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send commands.

        Raises:
            ResponseError: the server refused the commands and closed the connection
                before it had read them all, as it does with a value that is too large.
            ConnectionError, TimeoutError: the connection broke.
        """
        self._sending, self._closing_error = self._connected, None
        try:
            super().send_packed_command(*args, **kwargs)
        except RedisConnectionError:
            if self._closing_error is None:
                raise
        finally:
            self._sending = False
        if self._closing_error is not None:
            raise self._closing_error

    def _read_closing_error(self) -> ResponseError | None:
        """Return the error reply before the server closed the connection, if any."""
        if isinstance(sys.exception(), TimeoutError):
            return None  # The server has not closed the connection: it does not read.
        found = None
        replies: list[Any] = []
        self.early_replies = replies
        try:
            # The server has closed the connection, so that no read waits for long. To
            # redis-py, what is left behind TLS can't be read.
            while True:
                try:
                    replies.append(self.read_response(disconnect_on_error=False))
                except ResponseError as error:
                    found = without_frames(error)
                    replies.append(found)
                else:
                    found = None
        except (RedisError, OSError):
            pass  # There are no more replies.
        return found

    def _with_retries(self, connect: Callable[[], None]) -> None:
        """Connect; retry only while lent, as the cache's own client retries itself."""
        if self.lent is None:
            connect()
        else:
            self.lent.call_with_retry(connect, self.disconnect)

    def _connect(self) -> Any:
        parent: Any = super()
        try:
            return parent._connect()
        except UnicodeError as error:
            raise as_os_error(error) from None

    def _open(self) -> None:
        """Connect by redis-py's own method, without retries."""
        retry, self.retry = self.retry, _ONCE
        try:
            if hasattr(AbstractConnection, "connect_check_health"):
                super().connect_check_health(check_health=True)
            else:
                super().connect()
        except (RedisError, ValueError) as error:
            # redis-py leaves the socket's error in a frame of that error's traceback,
            # which would keep both alive.
            if isinstance(error.__context__, OSError):
                traceback.clear_frames(error.__context__.__traceback__)
            failure = self._meaning(error)
        else:
            return
        finally:
            self.retry = retry
        try:
            raise failure
        finally:
            # Otherwise a frame of its traceback would keep the error alive.
            del failure

    def _meaning(self, error: Exception) -> Exception:
        """Translate an error reply by the command that it answers."""
        return greeting_error(self._asked, error, self.db, self._secrets())

    def _secrets(self) -> list[str]:
        """Return what the connection has sent to authenticate."""
        return sent_password(self.password)


class EntraConnection(PlainConnection):
    """A connection that authenticates with the tokens of an identity.

    Parameters:
        credential_provider: the identity's provider of tokens.
    """

    def __init__(
        self, *, credential_provider: EntraCredentialProvider, **kwargs: Any
    ) -> None:
        self._provider = credential_provider
        self._renewal = credential_provider.renewal
        self._recorder = RecordingProvider(credential_provider)
        self._offset = random.random()
        # The token that the connection last authenticated with; None: disconnected.
        self._held: Token | None = None
        self._subscribed = False
        self._exchanger: Exchanger | None = None
        super().__init__(credential_provider=self._recorder, **kwargs)

    def connect(self) -> None:
        """Connect and authenticate, as far as that has to be done.

        Raises:
            TokenError: there is no valid token.
            TokenRefusedError: Redis refused the token.
            ConnectionError, TimeoutError: raised by redis-py; without the frames below,
                whose local variables hold the token.
        """
        held = self._held
        if held is None:
            # override_settings may have replaced the renewal.
            self._renewal = self._provider.renewal
        # fresh() is the fast path of current().
        current = self._renewal.fresh() or self._renewal.current()
        if held is current:
            return
        if held is not None:
            action = next_action(held, current, self._offset, self._renewal.clock)
            if action is Action.KEEP:
                return
            if action is Action.ADOPT:
                self._held = current
                return
            if action is Action.AUTHENTICATE:
                send = functools.partial(self._authenticate, current)
                if self._attempt(send) is None:
                    return
            self.disconnect()
        self._with_retries(functools.partial(self._establish, self._open))

    @property
    def exchanger(self) -> Exchanger | None:
        """As in the parent class; also ``None`` once there is a newer token."""
        held = self._held
        if held is None or self._renewal.fresh() is not held:
            return None
        made = self._exchanger = self._exchanger or self._make_exchanger()
        return made

    # An attribute of the parent class: it is read faster than a property.
    @exchanger.setter
    def exchanger(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, made: Exchanger | None
    ) -> None:
        """Set what is given while the token is the current one."""
        self._exchanger = made

    def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Connect: redis-py 6.2 and newer calls this method in some places directly."""
        if self._held is None:
            parent = super().connect_check_health
            self._establish(functools.partial(parent, *args, **kwargs))

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect from the server."""
        self._held = None
        super().disconnect(*args, **kwargs)

    def register_connect_callback(self, callback: Any) -> None:
        """Register a callback for each connect; redis-py's PubSub registers one."""
        self._subscribed = True
        # On the instance, so that checkouts of other connections do not pay for it.
        vars(self)["can_read"] = self._poll
        vars(self)["read_response"] = self._hear
        super().register_connect_callback(callback)

    def deregister_connect_callback(self, callback: Any) -> None:
        """Remove the callback of a subscriber."""
        self._subscribed = False
        for name in ("can_read", "read_response"):
            vars(self).pop(name, None)
        super().deregister_connect_callback(callback)

    def _poll(self, *args: Any, **kwargs: Any) -> Any:
        """Return whether a subscriber can read; authenticate again if it is time to."""
        if not super().can_read():
            self.connect()
        return super().can_read(*args, **kwargs)

    def _hear(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply for a subscriber, who gets those to AUTH, too."""
        try:
            return super().read_response(*args, **kwargs)
        except (RedisError, ValueError) as error:
            failure = redacted(error, self._secrets())
            if failure is error:
                raise
        try:
            raise failure
        finally:
            del failure

    def _authenticate(self, token: Token) -> None:
        """Authenticate again on the open connection.

        Raises:
            ConnectionError: the connection has to reconnect for that.
        """
        if not self._subscribed:
            self._send_token(token)
            self.read_response()
        elif str(self.protocol) == "3" and not self.encoder.decode_responses:
            # PubSub reads the reply: it takes an OK for a PONG, and raises an error. A
            # subscriber that decodes its messages can't take the OK for a PONG.
            self._send_token(token)
        else:
            # In RESP 2 the server refuses AUTH on a connection with a subscription.
            # redis-py subscribes again after a reconnect.
            raise RedisConnectionError(
                "A subscriber reconnects to authenticate with a newer token."
            )
        self._held = token

    def _send_token(self, token: Token) -> None:
        self._recorder.note(token)
        self.send_command("AUTH", token.username, token.value, check_health=False)

    def _secrets(self) -> list[str]:
        token = self._recorder.token
        return [] if token is None else [token.value]

    def _establish(self, open_: Callable[[], None]) -> None:
        error = self._attempt(open_)
        refused = self._recorder.token
        if is_refusal(error) and refused is not None:
            if self._renewal.replace(refused) is not None:
                error = self._attempt(open_)
            if is_refusal(error):
                error = refusal(refused, error)
        if error is not None:
            try:
                raise error
            finally:
                # Otherwise a frame of its traceback would keep the error alive.
                del error
        self._held = self._recorder.token

    def _attempt(self, action: Callable[[], None]) -> Exception | None:
        """Call a function; return its error without the frames that hold the token.

        Django's debug page shows the local variables of each frame of a traceback, and
        of those of the error's cause and context.
        """
        try:
            action()
        except (RedisError, OSError) as error:
            failure = self._meaning(error) if isinstance(error, RedisError) else error
            return without_frames(failure)
        except BaseException as error:
            # A signal handler may have raised: a reply may still arrive, or the
            # database not be selected, and redis-py would take that for connected.
            self.disconnect()
            stop = interruption(error, self._secrets())
        else:
            return None
        try:
            raise stop
        finally:
            del stop


@functools.cache
def connection_class(kind: type[Any], *, entra: bool) -> type[Any]:
    """Return a connection class of redis-py, or a user's, extended by this package.

    Parameters:
        kind: the class.
        entra: whether the connections authenticate with an identity's tokens.
    """
    bases = [kind]
    if issubclass(kind, SSLConnection):
        bases.insert(0, SharedTlsConnection)
    bases.insert(0, EntraConnection if entra else PlainConnection)
    return type(kind.__name__, tuple(bases), {"kind": kind})
