"""A server in the event loop of a test, that answers as it is told to."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from django_entra_redis.commands.resp import INCOMPLETE, PythonReader

#: Makes the answer to a command; ``None`` for none.
Answer = Callable[["Peer", list[bytes]], bytes | None]


class Peer(asyncio.Protocol):
    """A connection that has come in."""

    def __init__(self, host: "PeerHost") -> None:
        self._host = host
        self._reader = PythonReader(Exception)
        self.transport: Any = None
        self.commands: list[list[bytes]] = []

    def connection_made(self, transport: Any) -> None:
        """Be counted."""
        self.transport = transport
        self._host.peers.append(self)
        if self._host.ended:
            transport.abort()
            return
        if self._host.welcome is not None:
            transport.write(self._host.welcome)

    def data_received(self, data: bytes) -> None:
        """Answer each command."""
        self._reader.feed(data)
        while (command := self._reader.gets()) is not INCOMPLETE:
            self.commands.append(command)
            answer = self._host.answer(self, command)
            if answer is not None and not self.transport.is_closing():
                self.transport.write(answer)


class PeerHost:
    """Listens.

    Parameters:
        answer: makes the answer to a command.
        welcome: what to say at once.
        tls: the context of a server that speaks TLS.
    """

    def __init__(
        self,
        answer: Answer,
        welcome: bytes | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.welcome = welcome
        self.tls = tls
        self.peers: list[Peer] = []
        self.port = 0
        #: A connection may have been accepted that is made only then.
        self.ended = False

    async def __aenter__(self) -> "PeerHost":
        """Begin."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Peer(self), "127.0.0.1", 0, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def commands(self) -> list[list[bytes]]:
        """All commands that have come."""
        return [command for peer in self.peers for command in peer.commands]

    async def __aexit__(self, *_: object) -> None:
        """End, and drop all connections."""
        self.ended = True
        self._server.close()
        for peer in self.peers:
            peer.transport.abort()
        await self._server.wait_closed()
