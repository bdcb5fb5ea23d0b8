"""A server that sends just the bytes, at just the pace, that a test wants."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

#: Writes an answer to a request, of which it is given the bytes.
Speak = Callable[[bytes, socket.socket], None]


class RawServer:
    """Listens on loopback, and has a function answer each connection's first request.

    Parameters:
        speak: writes the answer; the connection is closed after it.
        certificate: a PEM file of key and certificate, for TLS.
        read: reads a request; by default one of HTTP.

    ``requests`` are those that came in; ``cut_off`` counts the connections that the
    client closed while an answer was being written.
    """

    def __init__(
        self,
        speak: Speak,
        certificate: Path | None = None,
        read: Callable[[socket.socket], bytes] | None = None,
    ) -> None:
        self.speak = speak
        self._read = read or _read_request
        self.requests: list[bytes] = []
        self.cut_off = 0
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen)]

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> "RawServer":
        """Begin."""
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, when all that is being written has been."""
        # Wakes the thread that accepts; closing alone does not.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                request = self._read(connection)
                self.requests.append(request)
                self.speak(request, connection)
        except OSError:
            self.cut_off += 1


def _read_request(connection: socket.socket) -> bytes:
    """Return a request with its body, or what has come of it."""
    head, length = b"", 0
    with connection.makefile("rb") as stream:
        while (line := stream.readline()).strip():
            head += line
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return head + b"\r\n" + stream.read(length)


def read_some(connection: socket.socket) -> bytes:
    """Return what has come; nothing where the client has gone."""
    return connection.recv(65536)


def answer(status: int, body: bytes, **headers: str) -> bytes:
    """Return the bytes of a response."""
    lines = [f"HTTP/1.1 {status} Told", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def says(data: bytes) -> Speak:
    """Return what answers everything with the same bytes."""
    return lambda _, connection: connection.sendall(data)


@contextlib.contextmanager
def raw_server(speak: Speak, certificate: Path | None = None) -> Iterator[RawServer]:
    """Give a server that answers so."""
    with RawServer(speak, certificate) as server:
        yield server
