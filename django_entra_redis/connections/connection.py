"""Connections that keep to their identity's token.

A pool calls a connection's ``connect()`` at each checkout, also when it is connected.
That is where a connection looks whether its token has moved on, and authenticates
anew: no other thread ever touches its socket, whatever the kind of pool.
"""

import functools
import random
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, SSLConnection
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from .._errors import hidden
from ..credentials.provider import EntraCredentialProvider
from ..credentials.reauthentication import Action, next_action
from ..exceptions import EntraRedisError
from ..identity.token import Token
from .deadlines import bounded_parser
from .exchanger import Exchanger, make_exchanger
from .refusals import greeting_error, refusal
from .tls import SharedTlsConnection

_ONCE = Retry(NoBackoff(), 0)


class _RecordingProvider(CredentialProvider):
    """Gives redis-py the current token, and remembers which one that was."""

    def __init__(self, provider: EntraCredentialProvider) -> None:
        self.provider = provider
        self.token: Token | None = None

    def get_credentials(self) -> tuple[str, str]:
        self.token = token = self.provider.renewal.current()
        return token.username, token.value


class PlainConnection(AbstractConnection):
    """A connection that looks in next to no time whether it is connected.

    redis-py's own ``connect()`` prepares for retries first.
    """

    _connected = False
    # What is repeated while redis-py's own client has it; None for nothing.
    lent: Any = None
    # Whether commands are being sent, and what the server said as it hung up meanwhile.
    _sending = False
    _last_words: ResponseError | None = None
    _exchanger: Exchanger | None = None
    # The last command that redis-py sent word by word, as it does when it connects.
    _asked: object = None

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command."""
        self._asked = args[0]
        super().send_command(*args, **kwargs)

    def lend(self, retry: Any) -> None:
        """Be redis-py's client's, or with ``None`` the cache's again.

        Parameters:
            retry: redis-py's retry policy, by which commands and connects are repeated.
        """
        if retry is not None:
            if self.lent is None:
                self._own = self.retry, self.retry_on_error
            # redis-py 5.3 wants the errors here, too.
            self.retry, self.retry_on_error = retry, list(retry._supported_errors)
        elif self.lent is not None:
            self.retry, self.retry_on_error = self._own
        self.lent = retry

    def connect(self) -> None:
        """Be connected."""
        if not self._connected:
            try:
                # redis-py's frames have the password as a local variable.
                hidden(lambda: self._repeat(self._open))
            except BaseException:
                # Also a signal handler's, halfway, which redis-py would take for
                # connected.
                self.disconnect()
                raise
            self._connected = True

    def set_parser(self, parser_class: Any) -> None:
        """Take a parser, which is to have a deadline for each reply."""
        super().set_parser(bounded_parser(parser_class))

    def expecting(self, replies: int) -> AbstractContextManager[None]:
        """Return a context in which so many replies come within one deadline."""
        found: AbstractContextManager[None] = self._parser.expecting(replies)
        return found

    @property
    def exchanger(self) -> Exchanger | None:
        """The socket for single commands while all is as :meth:`connect` leaves it;
        ``None`` if that is to be called first, or if the socket does not do."""
        return self._ready_exchanger() if self._connected else None

    def _ready_exchanger(self) -> Exchanger | None:
        exchanger = self._exchanger
        if exchanger is None:
            # redis-py has no public way to the socket.
            exchanger = self._exchanger = make_exchanger(
                self._sock, self.socket_timeout
            )
        return exchanger

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect from the server."""
        if self._sending:
            # redis-py disconnects where sending fails. What the server has said before
            # it hung up is lost with the socket.
            self._sending = False
            self._last_words = self._read_last_words()
        self._connected = False
        self._exchanger = None
        super().disconnect(*args, **kwargs)

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send commands.

        Raises:
            ResponseError: the server has refused them, and hung up before it had them
                all, as it does with a value that is too large.
            ConnectionError, TimeoutError: the connection broke.
        """
        self._sending, self._last_words = self._connected, None
        try:
            super().send_packed_command(*args, **kwargs)
        except RedisConnectionError:
            if self._last_words is None:
                raise
        finally:
            self._sending = False
        if self._last_words is not None:
            raise self._last_words

    def _read_last_words(self) -> ResponseError | None:
        """Return the error that the server replied before it hung up, if it did."""
        if isinstance(sys.exception(), TimeoutError):
            return None  # It has not hung up: it does not read.
        words = None
        try:
            while self.can_read(timeout=0):
                words = None
                try:
                    self.read_response(disconnect_on_error=False)
                except ResponseError as error:
                    words = error
        except (RedisError, OSError):
            pass  # The end of what it has said.
        return words

    def _repeat(self, connect: Callable[[], None]) -> None:
        """Connect, repeatedly while lent: otherwise that is done above."""
        if self.lent is None:
            connect()
        else:
            self.lent.call_with_retry(connect, self.disconnect)

    def _open(self) -> None:
        """Have redis-py connect once."""
        retry, self.retry = self.retry, _ONCE
        try:
            if hasattr(AbstractConnection, "connect_check_health"):
                super().connect_check_health(check_health=True)
            else:
                super().connect()
        except ResponseError as error:
            failure = self._meaning(error)
        except RedisError as error:
            # redis-py keeps the error of a socket in a frame of its own traceback.
            if isinstance(error.__context__, OSError):
                traceback.clear_frames(error.__context__.__traceback__)
            raise
        else:
            return
        finally:
            self.retry = retry
        try:
            raise failure
        finally:
            # Otherwise a frame of its traceback would keep the error alive.
            del failure

    def _meaning(self, error: ResponseError) -> Exception:
        """Return what an error reply stands for, by the command that it answers."""
        return greeting_error(self._asked, error, self.db)


class EntraConnection(PlainConnection):
    """A connection with an identity.

    Parameters:
        credential_provider: hands out the identity's tokens.
    """

    def __init__(
        self, *, credential_provider: EntraCredentialProvider, **kwargs: Any
    ) -> None:
        self._provider = credential_provider
        self._renewal = credential_provider.renewal
        self._recorder = _RecordingProvider(credential_provider)
        self._offset = random.random()
        # The token that the server knows this connection by; None when disconnected.
        self._held: Token | None = None
        self._subscribed = False
        super().__init__(credential_provider=self._recorder, **kwargs)

    def connect(self) -> None:
        """Be connected, and authenticated with a valid token.

        Raises:
            TokenError: there is no valid token.
            TokenRefusedError: Redis refused the token.
            ConnectionError, TimeoutError: redis-py's, without the frames below,
                whose local variables hold the token.
        """
        held = self._held
        if held is None:
            # After override_settings it is another renewal's.
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
        self._repeat(functools.partial(self._establish, self._open))

    @property
    def exchanger(self) -> Exchanger | None:
        """See the parent's; as long as the token has not moved on, too."""
        held = self._held
        if held is None or self._renewal.fresh() is not held:
            return None
        return self._ready_exchanger()

    def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Connect where redis-py 6.2 and newer skips :meth:`connect`."""
        if self._held is None:
            parent = super().connect_check_health
            self._establish(functools.partial(parent, *args, **kwargs))

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect from the server."""
        self._held = None
        super().disconnect(*args, **kwargs)

    def register_connect_callback(self, callback: Any) -> None:
        """Call back at each connect, as redis-py's PubSub wants it."""
        self._subscribed = True
        # In place of the method, which each checkout calls.
        vars(self)["can_read"] = self._poll
        super().register_connect_callback(callback)

    def deregister_connect_callback(self, callback: Any) -> None:
        """Call back no longer."""
        self._subscribed = False
        vars(self).pop("can_read", None)
        super().deregister_connect_callback(callback)

    def _poll(self, *args: Any, **kwargs: Any) -> Any:
        """Return whether there is something to read for a subscriber."""
        if not super().can_read():
            self.connect()
        return super().can_read(*args, **kwargs)

    def _authenticate(self, token: Token) -> None:
        """Authenticate anew in place.

        Raises:
            ConnectionError: it has to reconnect for that.
        """
        if not self._subscribed:
            self._send_token(token)
            self.read_response()
        elif str(self.protocol) == "3" and not self.encoder.decode_responses:
            # The reply is the subscriber's to read, who takes it for a PONG, and an
            # error for one; one who decodes its messages would not.
            self._send_token(token)
        else:
            # In RESP 2 a subscribed connection takes no AUTH. redis-py subscribes anew
            # where it reconnects.
            raise RedisConnectionError("A subscriber reconnects.")
        self._held = token

    def _send_token(self, token: Token) -> None:
        self.send_command("AUTH", token.username, token.value, check_health=False)

    def _establish(self, open_: Callable[[], None]) -> None:
        error = self._attempt(open_)
        refused = self._recorder.token
        if _is_refusal(error) and refused is not None:
            # Revoked, or a policy that has changed: one other token, then the truth.
            if self._renewal.replace(refused) is not None:
                error = self._attempt(open_)
            if _is_refusal(error):
                error = refusal(refused, error)
        if error is not None:
            try:
                raise error
            finally:
                # Otherwise a frame of its traceback would keep the error alive.
                del error
        self._held = self._recorder.token

    def _attempt(self, action: Callable[[], None]) -> Exception | None:
        """Return what an action raises, without the frames that hold the token.

        Django's debug page shows the local variables of each frame of a traceback, of
        its cause's and of its context's.
        """
        try:
            action()
        except (RedisError, OSError) as error:
            failure = (
                self._meaning(error) if isinstance(error, ResponseError) else error
            )
            failure.__cause__ = failure.__context__ = None
            return failure.with_traceback(None)
        except BaseException as error:
            # A signal handler's: a reply may be on its way, or the database not yet
            # selected, which redis-py would take for connected.
            self.disconnect()
            raise error.with_traceback(None) from None
        return None


@functools.cache
def connection_class(kind: type[Any], *, entra: bool) -> type[Any]:
    """Return redis-py's connection class, or a user's, with what it lacks here."""
    bases = [kind]
    if issubclass(kind, SSLConnection):
        bases.insert(0, SharedTlsConnection)
    bases.insert(0, EntraConnection if entra else PlainConnection)
    return type(kind.__name__, tuple(bases), {"kind": kind})


def _is_refusal(error: Exception | None) -> bool:
    own = isinstance(error, EntraRedisError)
    return isinstance(error, AuthenticationError) and not own
