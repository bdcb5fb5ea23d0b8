"""The gateway: a Redis that takes Entra tokens for passwords.

A client's bytes go to a connection of its own to the server behind, and the replies
come back as they are. Only AUTH and HELLO are looked into: a right token is replaced
by the backend's password of that user, a wrong one by a wrong password, so that even
the refusal is Redis's own, and in its place among pipelined replies.

With a profile, what that service of Azure refuses goes to the server behind as a
command that it does not know, and its reply is put into the service's words.
"""

import asyncio
import contextlib
import secrets
import socket
import ssl
from typing import Protocol, cast

from emulator.clock import Clock
from emulator.commands import (
    AUTHENTICATING,
    SUBSCRIBING,
    Command,
    CommandStream,
)
from emulator.directory import Directory, IssuedToken, TokenRefusedError
from emulator.journal import Authentication, Journal
from emulator.profiles import Profile, Transaction
from emulator.refusals import Refusals
from emulator.settings import Settings
from emulator.sockets import close_soon, reset

# How Redis refuses an AUTH.
_REFUSAL = b"WRONGPASS invalid username-password pair or user is disabled."
# A connection counts as in use this long after its last command.
_IN_USE = 0.5
# How long a connection may take to close: a client that reads nothing must not keep
# one open whose token has expired, but must get its last replies otherwise.
_AT_ONCE = 0.1
_AFTER_REPLIES = 10.0


class Backend(Protocol):
    """What the gateway asks of a server behind."""

    address: tuple[str, int]
    enforces_authentication: bool
    node: int | None

    def credentials(self, object_id: str) -> tuple[str, str] | None:
        """Return who to log in as for a principal; None without an assignment."""


class Connection:
    """One client's connection and its counterpart to the server behind."""

    def __init__(
        self, gateway: "Gateway", number: int, sock: socket.socket, server: Backend
    ) -> None:
        self.number = number
        self.server = server
        self.client_socket = sock
        self.backend_socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.backend_socket.setblocking(False)
        self.token: IssuedToken | None = None
        self.last_command_at = self.last_reply_at = gateway.clock.monotonic()
        self._gateway = gateway
        profile = gateway.profile
        self._stream = CommandStream(profile.looked_at if profile else frozenset())
        self._refusals = Refusals()
        self._transaction = Transaction()
        self._client: asyncio.Transport | None = None
        self._backend: asyncio.Transport | None = None
        self._held_requests: list[bytes] = []
        self._held_replies: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._client_full = False
        self._backend_full = False
        self._backend_lost = False
        self._subscribed = False
        self._resp3 = False
        self._overdue = False
        self._closed = False

    @property
    def outstanding(self) -> bool:
        """Whether a reply is awaited.

        Replies are not parsed: a command later than the last bytes from the server
        stands for one that has no answer yet.
        """
        return self.last_command_at > self.last_reply_at

    def idle(self, seconds: float) -> bool:
        """Tell whether nothing is awaited and nothing came in for `seconds`."""
        since = self._gateway.clock.monotonic() - self.last_command_at
        return not self.outstanding and since >= seconds

    # -- the two ends

    def client_made(self, transport: asyncio.Transport) -> None:
        """Begin: the server behind is connected already."""
        self._client = transport
        self._gateway.opened(self)
        if self._held_replies and not self._gateway.frozen:
            replies, self._held_replies = self._held_replies, []
            transport.write(b"".join(replies))
        self._flow()
        if self._backend_lost:
            self.close(within=_AFTER_REPLIES)

    def backend_made(self, transport: asyncio.Transport) -> None:
        """Remember the transport."""
        self._backend = transport

    def backend_lost(self) -> None:
        """Close the client's end too, unless it is still in its handshake."""
        self._backend_lost = True
        if self._client is not None:
            self.close(within=_AFTER_REPLIES)

    def requested(self, data: bytes) -> None:
        """Pass a client's bytes on."""
        if self._closed:
            return
        if self._gateway.frozen:
            self._held_requests.append(data)
            return
        assert self._backend is not None
        stream = self._stream
        before = stream.commands
        self.last_command_at = self._gateway.clock.monotonic()
        for piece in stream.feed(data):
            if isinstance(piece, Command) and piece.name in AUTHENTICATING:
                piece = self._authenticate(piece)
            elif self.token is None and not self.server.enforces_authentication:
                self._refuse()
                continue
            elif isinstance(piece, Command):
                piece = self._judge(piece)
            if piece:
                self._backend.write(piece)
        if stream.noted is not None:
            self._subscribed = stream.noted in SUBSCRIBING
            stream.noted = None
        if stream.commands != before:
            self._gateway.journal.commands(stream.commands - before)

    def replied(self, data: bytes) -> None:
        """Pass the server's bytes on."""
        if self._closed:
            return
        self.last_reply_at = self._gateway.clock.monotonic()
        data = self._refusals.put_into(data)
        if self._gateway.frozen or self._client is None:
            self._held_replies.append(data)
        else:
            self._client.write(data)

    def full(self, *, client: bool | None = None, backend: bool | None = None) -> None:
        """Note that an end's buffer is full, or no longer."""
        if client is not None:
            self._client_full = client
        if backend is not None:
            self._backend_full = backend
        self._flow()

    def thawed(self) -> None:
        """Catch up with what was held while the gateway was frozen."""
        if self._overdue:
            self._expired()
            return
        replies, self._held_replies = self._held_replies, []
        if replies and self._client is not None:
            self._client.write(b"".join(replies))
        requests, self._held_requests = self._held_requests, []
        if requests:
            self.requested(b"".join(requests))
        self._flow()

    def _flow(self) -> None:
        if self._closed:
            return
        frozen = self._gateway.frozen
        for transport, stopped in (
            (self._client, frozen or self._backend_full),
            (self._backend, frozen or self._client_full),
        ):
            if transport is not None and not transport.is_closing():
                if stopped:
                    transport.pause_reading()
                else:
                    transport.resume_reading()

    def frozen(self) -> None:
        """Stop reading."""
        self._flow()

    def _judge(self, command: Command) -> bytes:
        """Return the command to send in place of one that the profile looks at."""
        profile = self._gateway.profile
        assert profile is not None
        # Whoever is not authenticated is told so by the server.
        refusal = None
        if self.token is not None:
            refusal = profile.refuses(command) or self._transaction.refuses(command)
        return command.encoded() if refusal is None else self._refusals.ask(refusal)

    # -- authentication

    def _authenticate(self, command: Command) -> bytes:
        """Return the command to send in place of `command`."""
        arguments = list(command.arguments)
        if command.name == b"HELLO":
            words = [word.upper() for word in arguments]
            if len(words) > 1 and words[1] in (b"2", b"3"):
                self._resp3 = words[1] == b"3"
            if b"AUTH" not in words or len(words) < words.index(b"AUTH") + 3:
                if self.token is None and not self.server.enforces_authentication:
                    self._refuse()
                    return b""
                return command.encoded()
            place = words.index(b"AUTH") + 1
            arguments[place - 1] = b"AUTH"  # fakeredis knows it in upper case only
        elif len(arguments) == 3:
            place = 1
        elif len(arguments) == 2:
            # Entra cannot do without a user name: the default user is off.
            self._note("default", None, "no user name given")
            return self._refused([b"AUTH", b"default", secrets.token_hex().encode()])
        else:
            return command.encoded()
        username = arguments[place].decode("utf-8", "replace")
        value = arguments[place + 1].decode("utf-8", "replace")
        gateway = self._gateway
        if self._subscribed and not self._resp3:
            # Redis refuses AUTH there by itself, whatever the token.
            return command.encoded()
        try:
            token = gateway.directory.verify(value, username)
        except TokenRefusedError as error:
            self._note(username, None, str(error))
            arguments[place + 1] = secrets.token_hex().encode()
            return self._refused(arguments)
        credentials = self.server.credentials(username)
        if credentials is None:
            self._note(username, token, "no access policy assignment")
            return self._refused(arguments)
        again = self.token is not None
        self.token = token
        self._schedule(token)
        self._note(username, token, None, again=again)
        arguments[place : place + 2] = [word.encode() for word in credentials]
        return Command(tuple(arguments)).encoded()

    def _refused(self, arguments: list[bytes]) -> bytes:
        words = self._gateway.refusal
        if not self.server.enforces_authentication:
            assert self._client is not None
            self._client.write(b"-%s\r\n" % (words or _REFUSAL))
            self.last_reply_at = self._gateway.clock.monotonic()
            return b""
        # Redis 7.2 and newer leave out their own refusal of an AUTH if the client has
        # yet to get a reply to a command before it (redis/redis#15640).
        if words is not None or self.token is not None:
            return self._refusals.ask(words or _REFUSAL)
        # Valkey tells nobody who is not authenticated which commands it does not know.
        return Command(tuple(arguments)).encoded()

    def _refuse(self) -> None:
        assert self._client is not None
        self._client.write(b"-NOAUTH Authentication required.\r\n")
        self.last_reply_at = self._gateway.clock.monotonic()

    def _note(
        self,
        username: str,
        token: IssuedToken | None,
        reason: str | None,
        *,
        again: bool = False,
    ) -> None:
        self._gateway.journal.authentication(
            Authentication(
                at=self._gateway.clock.monotonic(),
                connection=self.number,
                object_id=username,
                accepted=reason is None,
                again=again,
                reason=reason,
                token_id=None if token is None else token.token_id,
                node=self.server.node,
            )
        )

    def _schedule(self, token: IssuedToken) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = token.expires_at - self._gateway.clock.wall()
        self._timer = self._gateway.loop.call_later(delay, self._expired)

    def _expired(self) -> None:
        if self._gateway.frozen:
            self._overdue = True
            return
        assert self.token is not None
        self._gateway.journal.expired(
            self.number, self.token.object_id, in_use=not self.idle(_IN_USE)
        )
        self.close()

    # -- the end

    def close(self, *, abruptly: bool = False, within: float = _AT_ONCE) -> None:
        """Close both ends: with FIN, or `abruptly` with RST."""
        if self._closed:
            return
        self._closed = True
        gateway = self._gateway
        gateway.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._backend is not None:
            self._backend.abort()
        client = self._client
        assert client is not None
        gateway.closing.add(self)
        if abruptly:
            reset(self.client_socket)
            client.abort()
        else:
            close_soon(client)
            self._timer = gateway.loop.call_later(within, client.abort)

    def client_lost(self) -> None:
        """Close the other end."""
        self.close()
        self._gateway.closing.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """End a closing that takes too long."""
        assert self._client is not None
        self._client.abort()


class _ClientEnd(asyncio.Protocol):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.data_received = connection.requested  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.client_made(cast(asyncio.Transport, transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.client_lost()

    def pause_writing(self) -> None:
        self._connection.full(client=True)

    def resume_writing(self) -> None:
        self._connection.full(client=False)


class _BackendEnd(asyncio.Protocol):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.data_received = connection.replied  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.backend_made(cast(asyncio.Transport, transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.backend_lost()

    def pause_writing(self) -> None:
        self._connection.full(backend=True)

    def resume_writing(self) -> None:
        self._connection.full(backend=False)


class Gateway:
    """All connections, to whichever server; all runs in the emulator's loop."""

    def __init__(
        self,
        clock: Clock,
        directory: Directory,
        journal: Journal,
        settings: Settings,
        profile: Profile | None = None,
    ) -> None:
        self.clock = clock
        self.directory = directory
        self.journal = journal
        self.profile = profile
        self._settings = settings
        self.frozen = False
        self.connections: set[Connection] = set()
        self.handshaking: set[Connection] = set()
        self.closing: set[Connection] = set()
        self.loop: asyncio.AbstractEventLoop
        self._waiting: list[asyncio.Future[None]] = []
        self._number = 0

    @property
    def refusal(self) -> bytes | None:
        """What to refuse an AUTH with, without its sign; None for Redis's own words."""
        words = self._settings.refusal
        return None if words is None else words.encode()

    async def serve(
        self, sock: socket.socket, context: ssl.SSLContext | None, server: Backend
    ) -> None:
        """Serve an accepted socket, with TLS where there is a context."""
        loop = self.loop
        while self.frozen:
            thawed = loop.create_future()
            self._waiting.append(thawed)
            await thawed
        self._number += 1
        connection = Connection(self, self._number, sock, server)
        self.handshaking.add(connection)
        backend: asyncio.Transport | None = None
        try:
            await loop.sock_connect(connection.backend_socket, server.address)
            backend, _ = await loop.create_connection(
                lambda: _BackendEnd(connection), sock=connection.backend_socket
            )
            await loop.connect_accepted_socket(
                lambda: _ClientEnd(connection),
                sock,
                ssl=context,
                ssl_handshake_timeout=None if context is None else 30,
                ssl_shutdown_timeout=None if context is None else _AFTER_REPLIES,
            )
        except (OSError, asyncio.CancelledError) as error:
            if backend is not None:
                backend.abort()
            connection.backend_socket.close()
            sock.close()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self.handshaking.discard(connection)

    def opened(self, connection: Connection) -> None:
        """Count a connection."""
        self.connections.add(connection)
        self.journal.opened()

    def forget(self, connection: Connection) -> None:
        """Count a connection no longer."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.journal.closed()

    def freeze(self, frozen: bool) -> None:
        """Fall silent, or wake up."""
        if frozen == self.frozen:
            return
        self.frozen = frozen
        for connection in list(self.connections):
            if frozen:
                connection.frozen()
            else:
                connection.thawed()
        if not frozen:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def drop(self, idle_for: float | None) -> int:
        """Close connections with RST: all, or those idle for so many seconds."""
        dropped = [
            connection
            for connection in self.connections
            if idle_for is None or connection.idle(idle_for)
        ]
        for connection in dropped:
            connection.close(abruptly=True)
        return len(dropped)

    def close_idle(self, seconds: float) -> None:
        """Close the connections that have been idle for so many seconds."""
        for connection in list(self.connections):
            if connection.idle(seconds):
                connection.close()

    def drop_server(self, server: Backend) -> None:
        """Close the connections to one of the servers behind with RST."""
        for connection in list(self.connections):
            if connection.server is server:
                connection.close(abruptly=True)

    def stop(self) -> None:
        """Close everything at once."""
        self.drop(None)
        for connection in list(self.closing):
            connection.abort()

    def drop_principal(self, object_id: str) -> None:
        """Close the connections that authenticated as `object_id`."""
        for connection in list(self.connections):
            if connection.token is not None and connection.token.object_id == object_id:
                connection.close()

    def close_sockets(self) -> None:
        """Let go of the sockets in a forked child, without a word on the wire."""
        for connection in (*self.connections, *self.handshaking, *self.closing):
            with contextlib.suppress(OSError):
                connection.client_socket.close()
                connection.backend_socket.close()
