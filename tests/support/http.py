"""HTTP servers that answer as a test says."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

#: Makes of a request's headers a status, headers and a body.
Answer = Callable[[Message], tuple[int, dict[str, str], bytes]]


class _Endpoint(BaseHTTPRequestHandler):
    """Answers what a test says, and notes the headers that it was sent."""

    answer: ClassVar[Answer]
    headers_seen: ClassVar[list[dict[str, str]]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        type(self).headers_seen.append(dict(self.headers.items()))
        status, headers, body = type(self).answer(self.headers)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep silent."""


class _Server(ThreadingHTTPServer):
    """A server that says nothing of clients who have heard enough."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep silent."""


@contextmanager
def serve_with(
    answer: Answer, context: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Give the address of an endpoint that answers so, and the headers it was sent.

    Parameters:
        answer: makes its answers.
        context: for HTTPS.
    """
    seen: list[dict[str, str]] = []
    members = {"answer": staticmethod(answer), "headers_seen": seen}
    handler = type("Handler", (_Endpoint,), members)
    scheme = "http" if context is None else "https"
    with _Server(("127.0.0.1", 0), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{scheme}://127.0.0.1:{server.server_address[1]}/", seen
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serve(
    status: int = 200, body: bytes = b"{}", **headers: str
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Do so with one that answers the same to everybody."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with serve_with(lambda _: (status, named, body)) as served:
        yield served
