"""What the tests of connections, pools, clients and caches have in common."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
from django.test import override_settings

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.exceptions import ServerDownError
from emulator import Emulator
from emulator.server import Server

PATIENCE = 30.0


def wait_until(condition: Callable[[], object]) -> None:
    """Return once a condition holds; fail when it does not come to hold."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def recovered(call: Callable[[], Any]) -> Any:
    """Return what a call returns once its server is no longer held to be down."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except ServerDownError:
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.005)


def make_cache(location: str | list[str], **options: Any) -> EntraRedisCache:
    """Return a cache; its prefix and the like are in ``params``."""
    params = options.pop("params", {})
    return EntraRedisCache(location, {**params, "OPTIONS": options})


@contextmanager
def let_in(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    *,
    refresh_ratio: float = 0.7,
    request_timeout: float = 10.0,
    **identities: Any,
) -> Iterator[None]:
    """Make the emulator's application the default identity; add others.

    Parameters:
        refresh_ratio: share of a token's life after which there is a new one. Where
            nothing may notice a renewal, a small one leaves a busy machine its time.
        request_timeout: seconds that a token request may take.
        identities: more identities, by their names.
    """
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(emulator.ca_file))
    default = {
        "KIND": "service_principal",
        "TENANT_ID": emulator.tenant_id,
        "CLIENT_ID": emulator.application.client_id,
        "CLIENT_SECRET": emulator.application.secret,
        "AUTHORITY_HOST": emulator.authority_host,
        "INSTANCE_DISCOVERY": False,
        "REFRESH_RATIO": refresh_ratio,
        "REQUEST_TIMEOUT": request_timeout,
    }
    with override_settings(ENTRA_REDIS={"default": default, **identities}):
        yield


class Database:
    """A real redis-server, with nothing before it.

    Parameters:
        directory: where its files go.
        executable: its path.
        configuration: lines of its own.
    """

    def __init__(
        self, directory: Path, executable: str, configuration: Iterable[str] = ()
    ) -> None:
        self._server = Server(directory, executable, configuration=configuration)
        self._server.launch({})
        self._server.wait()
        self.url = self._server.url
        self.address = self._server.address
        self.admin: Any = redis.Redis.from_url(self.url)

    def stop(self) -> None:
        """Stop it."""
        self.admin.close()
        self._server.stop()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have it take connections, and say nothing."""
        pid = self.admin.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def cache(self, **options: Any) -> EntraRedisCache:
        """Return a cache without an identity."""
        return make_cache(self.url, identity=None, **options)

    def url_of(self, user: str, rules: str) -> str:
        """Return the URL of a user of its own, with these access rules."""
        self.admin.execute_command(
            "ACL", "SETUSER", user, "reset", "on", ">secret", *rules.split()
        )
        return f"redis://{user}:secret@{self.address[0]}:{self.address[1]}"

    def calls(self, command: str) -> int:
        """Return how often a command has been carried out."""
        stats = self.admin.info("commandstats").get(f"cmdstat_{command}", {})
        return int(stats.get("calls", 0))

    def spin(self) -> None:
        """Run a script until another connection kills it."""
        with (
            suppress(redis.ResponseError),
            redis.Redis.from_url(self.url) as connection,
        ):
            connection.eval("while true do end", 0)

    def received(self, what: str = "total_connections_received") -> int:
        """Return one of the server's statistics."""
        return int(self.admin.info("stats")[what])


class Proxy:
    """Stands before a Redis and cuts, or stalls, after so many bytes of replies."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._left: int | None = None
        self._stall = False
        self._sockets: list[socket.socket] = []
        self.connections = 0
        self.replied = 0
        self.requested = b""
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def url(self, url: str) -> str:
        """Return a URL that leads through here."""
        parts = urlsplit(url)
        host = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self.port}"
        return urlunsplit(parts._replace(netloc=host))

    def arm(self, after: int, *, stall: bool = False) -> None:
        """Cut the connection after so many bytes from now on, or fall silent."""
        self._stall = stall
        self.replied = 0
        self._left = after

    def disarm(self) -> None:
        """Let everything through."""
        self._left = None

    def close(self) -> None:
        """Close all."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._sockets):
            _close(sock)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._address)
            self._sockets += [client, server]
            for target in (self._requests, self._replies):
                thread = threading.Thread(target=target, args=(client, server))
                self._threads.append(thread)
                thread.start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                self.requested += data
                server.sendall(data)
        _close(server)

    def _replies(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self.replied += len(data)
                left = self._left
                if left is None or len(data) < left:
                    self._left = None if left is None else left - len(data)
                    client.sendall(data)
                    continue
                self._left = None
                client.sendall(data[:left])
                if self._stall:
                    server.recv(65536)  # until the client has lost patience
                break
        _close(client)


def _close(sock: socket.socket) -> None:
    """Close a socket that another thread may be reading from."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
