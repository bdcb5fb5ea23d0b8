"""A cluster whose nodes announce addresses that are not reached from here."""

import asyncio
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from django_entra_redis.cache import EntraRedisClusterCache
from django_entra_redis.connections import event_loops
from django_entra_redis.diagnostics.network import ProbedServer
from django_entra_redis.diagnostics.runner import StepError
from emulator import Emulator
from emulator.certificates import CertificateAuthority
from tests.support.caches import let_in
from tests.support.sites import CLUSTER_BACKEND, Site

DATA = {f"name-{number}": number for number in range(20)}
#: Nobody is at the first; nobody answers from the second (RFC 5737).
NOWHERE = ["127.0.0.3", "192.0.2.1"]
#: Somebody else is there: addresses of private networks overlap.
ELSEWHERE = "127.0.0.9"


@pytest.fixture(scope="module")
def alone(cluster_server: str) -> Iterator[Emulator]:
    """Run a Redis Cluster of one node, which is where the cluster's endpoint is."""
    with Emulator(cluster=1, redis_server=cluster_server) as running:
        yield running


def remapped(emulator: Emulator, host: str) -> dict[str, Any]:
    """Return options with which the nodes seem to announce such an address."""
    port = int(emulator.redis_url.rpartition(":")[2])
    return {
        "ssl_ca_certs": str(emulator.ca_file),
        # In an event loop a fifth of it is for the second host's handshake.
        "socket_connect_timeout": 2.0,
        "address_remap": lambda address: (host, port),
    }


@pytest.fixture(params=NOWHERE)
def cache(
    request: pytest.FixtureRequest, alone: Emulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EntraRedisClusterCache]:
    """Give a cache on it."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    with let_in(alone, monkeypatch):
        options = remapped(alone, request.param)
        made = EntraRedisClusterCache(alone.redis_url, {"OPTIONS": options})
        yield made
        made.get_topology().disconnect()


def test_threads(cache: EntraRedisClusterCache) -> None:
    """They find the nodes at the cluster's own host."""
    cache.set_many(DATA)
    assert cache.get_many(DATA) == DATA
    assert cache.get_client().get(cache.make_key("name-7")) == b"7"
    cache.clear()


def test_loop(cache: EntraRedisClusterCache) -> None:
    """So does an event loop, at the first try."""

    async def use() -> None:
        await cache.aset_many(DATA)
        assert await cache.aget_many(DATA) == DATA
        await cache.aclear()

    asyncio.run(use())


@pytest.mark.parametrize("looped", [True, False])
def test_wrong_name(
    cache: EntraRedisClusterCache, alone: Emulator, looped: bool
) -> None:
    """Who answers there has to have the certificate all the same."""
    cache.get_topology().ensure()
    alone.drop_connections()
    alone.break_tls("hostname")
    try:
        with pytest.raises(RedisConnectionError, match="ertificate"):
            asyncio.run(cache.aget("name")) if looped else cache.get("name")
    finally:
        alone.break_tls(None)


@pytest.mark.parametrize("looped", [True, False])
def test_nobody_there(
    alone: Emulator, monkeypatch: pytest.MonkeyPatch, looped: bool
) -> None:
    """Where a node is at neither, it can't be reached."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    options = remapped(alone, NOWHERE[0])
    options["address_remap"] = lambda address: (NOWHERE[0], 1)
    with let_in(alone, monkeypatch):
        cache = EntraRedisClusterCache(alone.redis_url, {"OPTIONS": options})
        with pytest.raises(RedisConnectionError):
            asyncio.run(cache.aget("name")) if looped else cache.get("name")
        cache.get_topology().disconnect()


def test_check(alone: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check finds them there, too, and says so."""
    site = Site(alone, monkeypatch)
    site.cache["BACKEND"] = CLUSTER_BACKEND
    site.options |= remapped(alone, NOWHERE[0])
    outcome = site.check()
    assert outcome.status == 0
    assert "nodes at 127.0.0.3 are reached at localhost" in outcome.details["ping"]


@contextmanager
def stranger(port: int, certificate: Path | None) -> Iterator[None]:
    """Have somebody else's server at the address that the nodes seem to announce.

    Parameters:
        port: the node's port.
        certificate: for TLS; without one it speaks HTTP.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate is not None:
        context.load_cert_chain(certificate)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                if certificate is None:
                    self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                else:
                    context.wrap_socket(self.request, server_side=True).close()

    with socketserver.ThreadingTCPServer((ELSEWHERE, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("encrypted", [True, False])
def test_stranger(
    alone: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool
) -> None:
    """Whoever is there without the certificate is no node, and the nodes are found."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    path = tmp_path / "server.pem"
    path.write_bytes(CertificateAuthority().server_pem("elsewhere"))
    port = int(alone.redis_url.rpartition(":")[2])
    options = remapped(alone, ELSEWHERE)
    with stranger(port, path if encrypted else None):
        site = Site(alone, monkeypatch)
        site.cache["BACKEND"] = CLUSTER_BACKEND
        site.options |= options
        outcome = site.check()
        assert outcome.status == 0
        assert "nodes at 127.0.0.9 are reached at loc" in outcome.details["ping"]
        with let_in(alone, monkeypatch):
            for looped in (False, True):
                # Other options, so that a topology of its own is made.
                options["max_connections"] = 10 + looped
                cache = EntraRedisClusterCache(alone.redis_url, {"OPTIONS": options})
                if looped:
                    asyncio.run(cache.aset("name", 1))
                else:
                    cache.set("name", 1)
                assert cache.get("name") == 1
                cache.get_topology().disconnect()


@pytest.mark.parametrize("looped", [True, False])
def test_error_of_a_stranger(
    alone: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, looped: bool
) -> None:
    """With nobody at the configured host, the stranger's certificate is told."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    path = tmp_path / "server.pem"
    path.write_bytes(CertificateAuthority().server_pem("elsewhere"))
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as s:
        port = s.server_address[1]
    options = remapped(alone, ELSEWHERE)
    options["address_remap"] = lambda address: (ELSEWHERE, port)
    with stranger(port, path), let_in(alone, monkeypatch):
        cache = EntraRedisClusterCache(alone.redis_url, {"OPTIONS": options})
        with pytest.raises(RedisConnectionError, match="ertificate"):
            asyncio.run(cache.aget("name")) if looped else cache.get("name")
        cache.get_topology().disconnect()


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (["tls_untrusted", "tls_failed"], "tls_untrusted"),
        (["tcp_refused", "tls_failed"], "tls_failed"),
        (["tls_untrusted", "tcp_refused"], "tls_untrusted"),
    ],
)
def test_which_error_is_told(
    monkeypatch: pytest.MonkeyPatch, codes: list[str], told: str
) -> None:
    """That of the first host which could be reached."""
    outcomes = iter([StepError(code, code) for code in codes])
    monkeypatch.setattr(ProbedServer, "_hosts", ("one", "other"))
    monkeypatch.setattr(
        ProbedServer, "_try_handshake_with", lambda self, host: next(outcomes)
    )
    found = object.__new__(ProbedServer)._try_handshake()
    assert isinstance(found, StepError)
    assert found.code == told


def test_name_that_is_none(alone: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes may announce what can't even be looked up."""
    site = Site(alone, monkeypatch)
    site.cache["BACKEND"] = CLUSTER_BACKEND
    site.options |= remapped(alone, "node..example")
    outcome = site.check()
    assert outcome.status == 0
    assert "nodes at node..example are reached at localhost" in outcome.details["ping"]
