"""Listening sockets and what is done to accepted ones."""

import asyncio
import contextlib
import functools
import logging
import secrets
import socket
import struct
from collections.abc import Callable, Coroutine

logger = logging.getLogger(__name__)

_BACKLOG = 1024
# Below those that Linux gives to whoever asks for any, which somebody else may be given
# between the look for a free one and its use.
_PORTS = range(15_000, 32_768)
_ABORTIVE = struct.pack("ii", 1, 0)


def reset(sock: socket.socket) -> None:
    """Have the coming close of `sock` send RST in place of FIN."""
    with contextlib.suppress(OSError):  # the peer was faster
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTIVE)


def close_soon(transport: asyncio.Transport) -> None:
    """Close a transport in the loop's next turn, unless somebody else has closed it.

    asyncio closes one that is made as the task which accepts it is cancelled. With TLS
    it then waits for the peer, which only an abort() ends, and a second close() has it
    forget how to do that.
    """

    def close() -> None:
        if not transport.is_closing():
            transport.close()

    asyncio.get_running_loop().call_later(0, close)


Serve = Callable[[socket.socket], Coroutine[None, None, None]]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has, nor is likely to take soon."""
    return next(filter(_is_free, iter(lambda: secrets.choice(_PORTS), None)))


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def hold(host: str, port: int) -> socket.socket:
    """Keep a port from others: bound and not listening, so it refuses connections.

    On Linux whoever binds it by its number, as Redis does, gets it nonetheless.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


class Listener:
    """A port on loopback; each connection is handed over before any byte of it.

    asyncio's own servers show a TLS connection only after its handshake, too late
    for a server that resets at accept or stays silent.
    """

    def __init__(
        self,
        port: int,
        serve: Serve,
        host: str = "127.0.0.1",
    ) -> None:
        self.socket = socket.create_server((host, port), backlog=_BACKLOG)
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        self.refusing = False
        self._host = host
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accept from now on, in the running loop."""
        asyncio.get_running_loop().add_reader(self.socket, self._accept)

    def stop(self) -> None:
        """Accept no more, and begin to end what is being begun."""
        self._shut()
        for task in self._tasks:
            task.cancel()

    async def stopped(self) -> None:
        """Wait for the end of what was being begun."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def refuse(self, refusing: bool) -> None:
        """Have connections refused, the port reserved all the same; or end that."""
        if refusing == self.refusing:
            return
        self.refusing = refusing
        if refusing:
            self._shut()
            self.socket = hold(self._host, self.port)
            self.socket.setblocking(False)
        else:
            self.socket.listen(_BACKLOG)
            self.start()

    def close(self) -> None:
        """Free the port."""
        self.socket.close()

    def _shut(self) -> None:
        """Close the port; connections that are yet to be accepted end with FIN.

        The kernel would reset them, and a reset that comes before the client has set
        its TLS up makes Python's ssl leak the socket.
        """
        asyncio.get_running_loop().remove_reader(self.socket)
        with contextlib.suppress(OSError):  # there are no more, or there is no port
            while True:
                self.socket.accept()[0].close()
        self.socket.close()

    def _accept(self) -> None:
        # Not `loop.sock_accept()`: when that is cancelled, it may have accepted.
        try:
            sock, _ = self.socket.accept()
        except OSError:  # the peer has gone, or there are no descriptors left
            return
        sock.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._served, sock))

    def _served(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            sock.close()
        elif (error := task.exception()) is not None:
            sock.close()
            logger.error("the emulator failed at a connection", exc_info=error)
