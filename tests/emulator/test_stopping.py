"""Connections that are made at the very moment at which the emulator stops.

Those that are being accepted are closed by asyncio then, and with TLS it waits for
their clients. That the emulator closes all of its connections must end this, too.
"""

import asyncio
import gc
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emulator.certificates import CertificateAuthority
from emulator.clock import Clock
from emulator.directory import Directory
from emulator.gateway import Connection, Gateway
from emulator.journal import Journal
from emulator.sockets import Listener
from emulator.web import HttpConnection, Response
from tests.support.peers import PeerHost


class Listening:
    """Accepts one connection, and stops when told to.

    Parameters:
        folder: where to keep the certificate.
        tls: whether to speak TLS.
    """

    def __init__(self, folder: Path, tls: bool) -> None:
        self.context: ssl.SSLContext | None = None
        self._trusting: ssl.SSLContext | None = None
        if tls:
            authority = CertificateAuthority()
            (folder / "server.pem").write_bytes(authority.server_pem("localhost"))
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(folder / "server.pem")
            trusting = ssl.create_default_context(cadata=authority.pem.decode())
            self._trusting = trusting
        self._serving: asyncio.Task[Any]
        #: It takes no part in the end of its connection.
        self.client: socket.socket

    def stop(self) -> None:
        """Do as a listener of the emulator's does."""
        self._serving.cancel()

    async def serve(
        self,
        serve: Callable[[socket.socket], Coroutine[Any, Any, Any]],
        close_all: Callable[[], None],
    ) -> None:
        """Accept a connection, be stopped, and close all connections."""
        self.client, sock = socket.socketpair()
        sock.setblocking(False)
        self._serving = asyncio.create_task(serve(sock))
        if self._trusting is not None:
            self.client = await asyncio.to_thread(
                self._trusting.wrap_socket, self.client, server_hostname="localhost"
            )
        await asyncio.wait([self._serving])
        assert self._serving.cancelled()
        await rounds()
        close_all()
        await rounds()


async def rounds() -> None:
    """Let the loop do what it has to."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(params=[True, False], ids=["TLS", "plain"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    """Give what accepts a connection."""
    made = Listening(tmp_path, request.param)
    yield made
    made.client.close()


def test_gateway(listening: Listening) -> None:
    """The connection and its counterpart to the server behind are closed."""

    class Stopped(Gateway):
        def opened(self, connection: Connection) -> None:
            super().opened(connection)
            listening.stop()

    clock = Clock()
    settings: Any = SimpleNamespace()
    gateway = Stopped(clock, Directory(clock, "", ""), Journal(), settings)

    async def main() -> None:
        gateway.loop = asyncio.get_running_loop()
        async with PeerHost(lambda peer, command: None) as host:
            server: Any = SimpleNamespace(address=("127.0.0.1", host.port))
            await listening.serve(
                lambda sock: gateway.serve(sock, listening.context, server),
                gateway.stop,
            )
        assert gateway.connections == gateway.closing == set()

    asyncio.run(main())
    gc.collect()  # Warns of a transport that is open.


def test_request_that_comes_with_the_end_of_the_handshake(listening: Listening) -> None:
    """Also where the answer to it ends the connection."""
    connections: set[HttpConnection] = set()

    class Stopped(HttpConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.data_received(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            listening.stop()

    def close_all() -> None:
        for connection in list(connections):
            connection.abort()

    async def serve(sock: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Stopped(sock, lambda _: Response.json(200, {}), connections),
            sock,
            ssl=listening.context,
        )

    asyncio.run(listening.serve(serve, close_all))
    assert connections == set()
    gc.collect()


@pytest.mark.parametrize("refusing", [True, False])
def test_connection_that_is_not_accepted_yet(refusing: bool) -> None:
    """It ends; a reset would have the client leak a socket, if it begins with TLS."""

    async def main() -> None:
        serve: Any = None  # It is not called.
        listener = Listener(0, serve)
        listener.start()
        with socket.create_connection(("127.0.0.1", listener.port), 30) as client:
            if refusing:
                listener.refuse(True)
            else:
                listener.stop()
            assert client.recv(1) == b""
        listener.close()

    asyncio.run(main())
