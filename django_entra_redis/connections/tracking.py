"""Tracking connections: values are fetched on them, and invalidated on them.

Redis remembers which keys have been read on such a connection, and pushes a message
when one changes ("Client-side caching in Redis"). Values and messages come in one
stream, in the order of events. Azure Managed Redis supports no other mode (no REDIRECT,
no RESP 2).
"""

import asyncio
import builtins
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from .._errors import hidden
from .._fork import Order, register
from ..commands.packing import pack_all
from ..commands.resp import INCOMPLETE
from ..commands.resp3 import make_push_reader
from ..identity.token import Token
from .authentication import pack_auth
from .copies import Copies
from .multiplexed import Target, secrets_of
from .refusals import forbids_command, greeting_error, read_error, redacted
from .tracked_calls import Ask, Fetch, is_replica
from .tracked_connection import BROKEN, PIECE, TrackedConnection

logger = logging.getLogger(__name__)

#: Seconds between two attempts to connect, and after a refusal of CLIENT TRACKING.
RETRY_AFTER = 1.0
RETRY_REFUSED_AFTER = 300.0
_NO_CONNECTION: tuple[type[Exception], ...] = (RedisError, *BROKEN)
_SILENCE = (TimeoutError, builtins.TimeoutError)
_SILENT = "Redis has not answered in time on a tracking connection."
#: Seconds to wait for a reply where ``socket_timeout`` sets no bound.
_TIMEOUT = 5.0


class TrackingRefusedError(Exception):
    """The server refuses CLIENT TRACKING: it is too old, or the user may not."""


#: Values as they have come; ``None`` where they must be asked for in another way.
Values = list[bytes | None] | None


@dataclass(slots=True)
class Begun:
    """A fetch of values that has begun.

    Parameters:
        connection: the connection.
        call: what has been sent.
    """

    connection: TrackedConnection
    call: Fetch


class Tracker:
    """A tracking connection to one server, which is made anew when it is lost.

    Parameters:
        target: returns the address and the options of the connection.
        copies: the copies that are invalidated on it.
        max_staleness: seconds after the connection's last sign of life in which copies
            may be used.
        down: whether the server is known to be down: then no connection is made.
    """

    def __init__(
        self,
        target: Callable[[], Target],
        copies: Copies,
        max_staleness: float,
        down: Callable[[], bool] = lambda: False,
    ) -> None:
        self._target = target
        self.copies = copies
        self._max_staleness = max_staleness
        self._down = down
        self.connection: TrackedConnection | None = None
        #: The server's reason, if it has refused CLIENT TRACKING.
        self.refusal: str | None = None
        self._begin()
        register(self, Order.CONNECTIONS)

    def after_fork_in_child(self) -> None:
        """Forget the connection and the copies, which are the parent's."""
        self.copies.reset()
        self._begin()

    def _begin(self) -> None:
        # Held by the thread that connects; no other thread waits for it.
        self._connecting = threading.Lock()
        self._retry_at = 0.0
        if self.connection is not None:
            _inherited.append(self.connection)
        self.connection = None

    @property
    def confirmed_at(self) -> float | None:
        """When the last proof of the connection's health was asked for, on the
        monotonic clock; ``None`` without a connection."""
        connection = self.connection
        return (
            None if connection is None or connection.closed else connection.confirmed_at
        )

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.connection is not None and not self.connection.closed

    def close(self, reason: object = "the settings have changed") -> None:
        """Close the connection; the next one is made when it is needed."""
        self._retry_at = 0.0
        if self.connection is not None:
            self.connection.lose(reason)

    def fetch(self, keys: Sequence[str]) -> Values:
        """Return values, and keep copies of them.

        Parameters:
            keys: the keys, no more than can be fetched at once: see ``fitting()``.

        Returns:
            ``None`` where the values must be asked for in another way.

        Raises:
            TimeoutError: the server has not answered in time.
        """
        begun = self.begin(keys)
        return None if begun is None else self.end(begun)

    def begin(self, keys: Sequence[str]) -> Begun | None:
        """Begin to :meth:`fetch` values.

        Raises:
            TimeoutError: the server has not answered in time.
        """
        self.copies.miss(len(keys))
        connection = self._current() or self._connect()
        if connection is None:
            return None
        call = connection.fetch(keys)
        return None if call is None else Begun(connection, call)

    def end(self, begun: Begun) -> Values:
        """Return the values of a fetch that has begun.

        Raises:
            TimeoutError: the server has not answered in time.
        """
        connection, call = begun.connection, begun.call
        connection.wait(call)
        if call.values is None:
            check_silence(connection)
        return call.values

    def ask(self, key: str) -> Ask | None:
        """Do as :meth:`fetch` does, for one key, where that takes no more than a
        connection that is there and that nobody else waits on.

        Returns:
            What has been asked for, done; ``None`` where that takes more.

        Raises:
            TimeoutError: the server has not answered in time.
        """
        connection = self._current()
        if connection is None:
            return None
        call = connection.ask(key)
        if call is not None and call.values is None:
            check_silence(connection)
        return call

    async def afetch(self, keys: Sequence[str]) -> Values:
        """Do as :meth:`fetch` does, without blocking the event loop."""
        self.copies.miss(len(keys))
        loop = asyncio.get_running_loop()
        connection = self._current()
        if connection is None and self._may_connect:
            connection = await loop.run_in_executor(None, self._connect)
        if connection is None or not connection.watch(loop):
            return None
        future = loop.create_future()
        call = connection.fetch(keys, future)
        if call is None:
            return None
        timer = loop.call_later(connection.timeout, connection.give_up)
        try:
            await future
        finally:
            timer.cancel()
        if call.values is None:
            check_silence(connection)
        return call.values

    @property
    def _may_connect(self) -> bool:
        return not (
            time.monotonic() < self._retry_at
            or self._connecting.locked()
            or self._down()
        )

    def _current(self) -> TrackedConnection | None:
        """Return the connection that is there, with AUTH sent if it is time to."""
        connection = self.connection
        if connection is None or connection.closed:
            return None
        if connection.held is not None:
            connection.keep_up()
            if not self.connected:
                return None
        return connection

    def _connect(self) -> TrackedConnection | None:
        """Return a new connection; ``None`` if there is none to be had now.

        Raises:
            TimeoutError: the server has not answered in time.
        """
        if not self._may_connect or not self._connecting.acquire(blocking=False):
            return None
        try:
            if self.connected:
                return self.connection
            self._retry_at = time.monotonic() + RETRY_AFTER
            self.connection = self._attempt()
            if self.connection is not None:
                self.refusal = None
            return self.connection
        finally:
            self._connecting.release()

    def _attempt(self) -> TrackedConnection | None:
        silent = False
        try:
            connection = _open(self._target(), self.copies, self._max_staleness)
        except TrackingRefusedError as error:
            self._retry_at = time.monotonic() + RETRY_REFUSED_AFTER
            if self.refusal is None:
                logger.warning(
                    "Redis refuses to track keys (%s): OPTIONS['client_side_cache'] "
                    "has no effect.",
                    error,
                )
            self.refusal = str(error)
        except _NO_CONNECTION as error:
            # At DEBUG: the read falls back to a usual connection, which reports it.
            logger.debug("No tracking connection: %s", error)
            silent = isinstance(error, _SILENCE)
        except BaseException as error:
            # Such as a signal handler's; without the frames that hold the token.
            raise error.with_traceback(None) from None
        else:
            return connection
        if silent:
            raise TimeoutError(_SILENT)
        return None


def check_silence(connection: TrackedConnection) -> None:
    """Raise ``TimeoutError`` if a connection was lost since no reply came in time."""
    if connection.silent:
        raise TimeoutError(_SILENT)


# The parent's connections, kept for ever: their finalizers would act on its sockets.
_inherited: list[object] = []


# -- connecting ----------------------------------------------------------------------


def refusal_of(target: Target) -> str | None:
    """Return why a server refuses CLIENT TRACKING; ``None``: it does not.

    Raises:
        RedisError, OSError: the server can't be reached.
    """
    try:
        connection = _open(target, Copies(1, 1), max_staleness=1.0)
    except TrackingRefusedError as error:
        return str(error)
    connection.lose("it was a question")
    return None


def _open(target: Target, copies: Copies, max_staleness: float) -> TrackedConnection:
    """Connect, authenticate and switch tracking on.

    Raises:
        TrackingRefusedError: the server refuses CLIENT TRACKING.
        OSError, ResponseError, AuthenticationError, TokenError: there is no connection.
    """
    token = None if target.provide is None else target.provide().current()
    sock = _dial(target)
    try:
        now = time.monotonic()
        _greet(sock, target, token)
        sock.setblocking(False)
        return TrackedConnection(
            sock,
            copies,
            timeout=target.timeout or _TIMEOUT,
            max_staleness=max_staleness,
            now=now,
            held=token,
            provide=target.provide,
        )
    except BaseException:
        sock.close()
        raise


def _dial(target: Target) -> Any:
    where = target.where
    if "path" in where:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(target.connect_timeout)
            sock.connect(where["path"])
        except BaseException:
            sock.close()
            raise
        return sock
    address = where["host"], where["port"]
    sock = socket.create_connection(address, target.connect_timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in target.socket_options:
            sock.setsockopt(*option)
        if target.make_ssl is not None:
            context = target.make_ssl()
            return context.wrap_socket(sock, server_hostname=target.server_hostname)
    except BaseException:
        sock.close()
        raise
    return sock


def _greet(sock: Any, target: Target, token: Token | None) -> None:
    """Authenticate, and switch RESP 3 and tracking on."""
    commands: list[Sequence[Any]] = [
        ("HELLO", "3"),
        *target.greeting,
        # Without the time that a key has left no copy is kept. Of no key in use, and
        # before tracking is on.
        ("PTTL", ""),
        ("CLIENT", "TRACKING", "ON"),
    ]
    names: list[tuple[Any, ...]] = [tuple(command[:2]) for command in commands]
    if token is not None or target.credentials:
        names.insert(0, ("AUTH",))
    # As short as either asks for: a reply may take less time than a connection.
    bounds = (target.connect_timeout, target.timeout)
    bound = min((one for one in bounds if one is not None), default=None)
    deadline = None if bound is None else time.monotonic() + bound
    sock.settimeout(bound)
    hidden(lambda: sock.sendall(_pack_greeting(target, token, commands)))
    reader = make_push_reader(read_error)
    for name in names:
        while (reply := reader.gets()) is INCOMPLETE:
            data = sock.recv(PIECE)
            if not data:
                raise ConnectionError("The server has closed the connection.")
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError("The server takes too long to answer.")
            reader.feed(data)
        if isinstance(reply, Exception) and (
            error := _objection(name, reply, secrets_of(target, token))
        ):
            try:
                raise error
            finally:
                del error, reply  # Otherwise this frame would keep them alive.
        if name[0] == "HELLO" and is_replica(reply):
            raise ReadOnlyError("The server is a replica.")


def _objection(
    name: Sequence[Any], reply: Exception, secrets: Sequence[str]
) -> Exception | None:
    """Translate an error reply to one of the first commands; ``None``: ignore it."""
    if not isinstance(reply, ResponseError):
        # Of a server that is not ready yet, whatever it is asked.
        return redacted(reply, secrets)
    if "SETINFO" in name:
        return None  # Servers older than 7.2 do not know it.
    if name[0] == "PTTL":
        # The key itself may be forbidden, or lie on another node.
        refused = forbids_command(reply)
        text = redacted(reply, secrets)
        return TrackingRefusedError(f"PTTL: {text}") if refused else None
    meaning = greeting_error(name[0], reply, name[-1], secrets)
    # This HELLO does not authenticate: it is the protocol that is refused.
    about_protocol = name[0] == "HELLO" and isinstance(
        meaning, AuthenticationError | ResponseError
    )
    if about_protocol or "TRACKING" in name:
        said = redacted(reply, secrets)
        return TrackingRefusedError(f"{' '.join(name)}: {said}")
    return meaning


# A function of its own: a debug page shows the local variables of each frame.
def _pack_greeting(
    target: Target, token: Token | None, commands: Sequence[Sequence[Any]]
) -> bytes:
    packed = pack_all(commands)
    if token is not None:
        return pack_auth(token) + packed
    if target.credentials:
        return pack_all([("AUTH", *target.credentials)]) + packed
    return packed
