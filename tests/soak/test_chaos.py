"""The chaos of the soak: a proxy that spoils connections, and what breaks calls off."""

import socket
import threading
from collections.abc import Iterator

import pytest

from django_entra_redis.commands.patterns import glob_escape
from soak.chaos import Chaos, Injected, Injector

HELLO = b"hello" * 40


@pytest.fixture
def echo() -> Iterator[int]:
    """Run a server that says what it hears; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(peer.recv(1024))

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def ask(port: int, timeout: float = 0.02) -> bytes:
    """Return what comes back, with so many seconds at most between two pieces."""
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout) as peer:
        peer.sendall(HELLO)
        try:
            while data := peer.recv(1024):
                heard += data
        except OSError:
            return heard
    return heard


def test_fates(echo: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back is the beginning of what was said; in peace it is all of it."""
    monkeypatch.setattr("soak.chaos.FURTHEST", 100)
    with Chaos(echo, seed=1) as chaos:
        assert all(HELLO.startswith(ask(chaos.port)) for _ in range(30))
        assert all(chaos.fates.values())
        chaos.raging = False
        with socket.create_connection(("127.0.0.1", chaos.port), 30.0) as peer:
            peer.sendall(HELLO)
            assert peer.recv(1024, socket.MSG_WAITALL) == HELLO


def test_no_server() -> None:
    """The proxy closes what it can lead nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Chaos(port) as chaos:
        assert ask(chaos.port, 30.0) == b""


def test_injector() -> None:
    """It breaks off what the package does, somewhere, and nothing after it."""
    injector = Injector(seed=1)

    def work() -> None:
        for _ in range(1000):
            glob_escape("a*")

    with pytest.raises(Injected, match="glob_escape"), injector():
        work()
    with injector():
        glob_escape("a*")
    work()
