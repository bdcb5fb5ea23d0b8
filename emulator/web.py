"""A small HTTP/1.1 server on asyncio that can also misbehave on purpose."""

import asyncio
import functools
import json
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from emulator.sockets import close_soon, reset

logger = logging.getLogger(__name__)

_MAX_HEAD = 64 * 1024
_MAX_BODY = 1024 * 1024


@dataclass(frozen=True)
class Request:
    """A request that has been read in full."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        """The body as a form."""
        return dict(parse_qsl(self.body.decode("utf-8", "replace")))


@dataclass(frozen=True)
class Response:
    """An answer; `delivery` is "whole", "dribble", "hang" or "reset"."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    delivery: str = "whole"

    @classmethod
    def json(cls, status: int, content: object, delivery: str = "whole") -> "Response":
        """Return `content` as JSON."""
        return cls(status, json.dumps(content).encode(), delivery=delivery)

    def encoded(self, *, close: bool) -> bytes:
        """Return the bytes that go over the wire."""
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store, no-cache",
            *(f"{name}: {value}" for name, value in self.headers),
            *(["Connection: close"] if close else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


# What takes its time answers later, for others to be served meanwhile.
Answer = Response | asyncio.Future[Response]
Route = Callable[[Request], Answer]


class HttpConnection(asyncio.Protocol):
    """One client's connection, kept alive between requests."""

    def __init__(
        self,
        sock: socket.socket,
        route: Route,
        connections: "set[HttpConnection]",
    ) -> None:
        self.socket = sock
        self._route = route
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything."""
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Serve what is complete."""
        self._buffer += data
        try:
            self._serve()
        except ValueError as error:
            self._deliver(Response.json(400, {"error": str(error)}), close=True)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _serve(self) -> None:
        while not self._busy:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_HEAD:
                    raise ValueError("the request's head is too long")
                return
            head = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            method, target, version = head[0].split(" ")
            headers: dict[str, str] = {}
            for line in head[1:]:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            if "transfer-encoding" in headers:
                raise ValueError("send a Content-Length")
            length = int(headers.get("content-length", "0"))
            if not 0 <= length <= _MAX_BODY:
                raise ValueError("the request's body is too long")
            if len(self._buffer) < end + 4 + length:
                return
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            close = (
                headers.get("connection", "").lower() == "close"
                or version == "HTTP/1.0"
            )
            url = urlsplit(target)
            query = dict(parse_qsl(url.query, keep_blank_values=True))
            request = Request(method, url.path, query, headers, body)
            try:
                answer = self._route(request)
            except Exception:
                answer = _failure(url.path)
            if isinstance(answer, Response):
                self._deliver(answer, close=close)
            else:
                self._busy = True
                answer.add_done_callback(
                    functools.partial(self._answered, url.path, close)
                )

    def _answered(
        self, path: str, close: bool, answer: asyncio.Future[Response]
    ) -> None:
        """Deliver what took its time, and serve what has come in meanwhile."""
        self._busy = False
        try:
            response = answer.result()
        except Exception:
            response = _failure(path)
        self._deliver(response, close=close)
        self.data_received(b"")

    def _deliver(self, response: Response, *, close: bool) -> None:
        transport = self._transport
        assert transport is not None
        if response.delivery == "reset":
            self._busy = True
            reset(self.socket)
            transport.abort()
        elif response.delivery == "hang":
            self._busy = True
        elif response.delivery == "dribble":
            self._busy = True
            self._dribble(response.encoded(close=True), 0)
        else:
            transport.write(response.encoded(close=close))
            if close:
                self._busy = True
                close_soon(transport)

    def _dribble(self, content: bytes, position: int) -> None:
        assert self._transport is not None
        self._transport.write(content[position : position + 1])
        if position + 1 < len(content):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(1, self._dribble, content, position + 1)
        else:
            close_soon(self._transport)


def _failure(path: str) -> Response:
    logger.exception("the emulator failed at %s", path)
    return Response.json(500, {"error": "the emulator itself failed"})


def decode_json(request: Request) -> dict[str, Any]:
    """Return a request's JSON object."""
    content = json.loads(request.body or b"{}")
    if not isinstance(content, dict):
        raise ValueError("send a JSON object")
    return content
