"""Nodes of a cluster that have been hijacked, and what they can't do."""

import asyncio
import functools
import gc
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.cache import caches
from django.test import override_settings

from django_entra_redis import aget_redis_connection, get_redis_connection
from django_entra_redis.connections import event_loops, registry
from emulator.certificates import CertificateAuthority
from tests.support.peers import Answer, Peer, PeerHost
from tests.support.sites import CLUSTER_BACKEND, Credential

#: The name in LOCATION, and the other names that there are; all lead here.
LOCATION = "contoso.redis.example"
NODE = "node-1.nodes.example"
ATTACKER = "attacker.example"
TOKEN = "the-token"
#: The answer to COMMAND, from which redis-py reads which arguments are keys.
COMMANDS = b"*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n"


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have all names lead to this machine, and loops connect at once."""
    resolve = socket.getaddrinfo

    def found(host: Any, *args: Any, **kwargs: Any) -> Any:
        known = str(host).lower().rstrip(".") in (LOCATION, NODE, ATTACKER)
        return resolve("127.0.0.1" if known else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    yield
    registry.reset()


class Site:
    """Certificates, and a cache whose LOCATION leads to a node.

    Parameters:
        directory: for the certificates.
    """

    def __init__(self, directory: Path) -> None:
        self._authority = CertificateAuthority()
        self._directory = directory
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(self._authority.pem)

    def tls(self, name: str) -> ssl.SSLContext:
        """Return the context of a server that has a certificate for a name."""
        file = self._directory / f"{name}.pem"
        file.write_bytes(self._authority.server_pem(name))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def settings(self, host: PeerHost, **options: Any) -> override_settings:
        """Return settings with a cache on such a cluster."""
        cache = {
            "BACKEND": CLUSTER_BACKEND,
            "LOCATION": f"rediss://{LOCATION}:{host.port}",
            "OPTIONS": {"ssl_ca_certs": str(self.ca_file), **options},
        }
        identity = {"CREDENTIAL": Credential(TOKEN), "USERNAME": "me"}
        return override_settings(
            CACHES={"default": cache}, ENTRA_REDIS={"default": identity}
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return the certificates of a test."""
    return Site(tmp_path)


def bulk(data: bytes) -> bytes:
    """Return a value as a server sends it."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def slots(host: bytes, port: int) -> bytes:
    """Return the answer to CLUSTER SLOTS of a node that says where all slots are."""
    node = b"*3\r\n" + bulk(host) + b":%d\r\n" % port + bulk(b"id")
    return b"*1\r\n*3\r\n:0\r\n:16383\r\n" + node


Reply = bytes | Callable[[], bytes]


def answering(**replies: Reply) -> Answer:
    """Return what answers some commands so, by their names, and others with OK."""

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        reply = replies.get(command[0].decode(), b"+OK\r\n")
        return reply() if callable(reply) else reply

    return answer


def get(how: str) -> Awaitable[Any]:
    """Return what gets a key in a thread, or in this loop."""
    if how == "sync":
        return asyncio.to_thread(lambda: caches["default"].get("key"))
    return caches["default"].aget("key")


ways = pytest.mark.parametrize("how", ["sync", "async"])


@ways
@pytest.mark.parametrize("by", ["MOVED", "ASK", "CLUSTER"])
def test_a_name_of_its_own(site: Site, how: str, by: str) -> None:
    """A node that names another one has no token sent there, certificate or not."""

    async def main() -> None:
        async with (
            PeerHost(
                answering(GET=bulk(b"\x80\x05K\x01.")), tls=site.tls(ATTACKER)
            ) as evil,
            PeerHost(answering(), tls=site.tls(LOCATION)) as node,
        ):
            moved = b"-%b 12539 %b:%d\r\n" % (by.encode(), ATTACKER.encode(), evil.port)
            names = (
                (b"", node.port) if by != "CLUSTER" else (ATTACKER.encode(), evil.port)
            )
            node.answer = answering(GET=moved, CLUSTER=slots(*names))
            with (
                site.settings(node),
                pytest.raises(redis.ConnectionError, match=r"(?i)hostname mismatch"),
            ):
                await get(how)
            assert evil.commands == []

    asyncio.run(main())


@ways
@pytest.mark.parametrize(
    ("domain", "name", "good"),
    [
        ("nodes.example", NODE, True),
        ("Example", NODE, True),
        (NODE, NODE, True),
        ("odes.example", NODE, False),
        ("nodes.example", ATTACKER, False),
        (None, LOCATION, True),
        (None, LOCATION.upper() + ".", True),
    ],
)
def test_names_below_a_domain(
    site: Site, how: str, domain: str | None, name: str, good: bool
) -> None:
    """A cluster may announce names, where the settings say below which domain."""

    async def main() -> None:
        value = bulk(b"\x80\x05K\x01.")
        certified = name.lower().rstrip(".") if good else ATTACKER
        async with (
            PeerHost(answering(GET=value), tls=site.tls(certified)) as other,
            PeerHost(answering(), tls=site.tls(LOCATION)) as node,
        ):
            node.answer = answering(CLUSTER=slots(name.encode(), other.port))
            with site.settings(node, node_domain=domain):
                if good:
                    assert await get(how) == 1
                    return
                with pytest.raises(
                    redis.ConnectionError, match=r"(?i)hostname mismatch"
                ):
                    await get(how)
            assert other.commands == []

    asyncio.run(main())


#: Announced hosts; tests/commands/test_addresses.py has more.
NO_HOSTS = [
    # In a URL, it would have nobody verify the server.
    f"{ATTACKER}?port=PORT&ssl_cert_reqs=none&ssl_check_hostname=False"
    "&ssl_validate_ocsp=true#",
    # redis-py would import this, and call it.
    f"{ATTACKER}?credential_provider={__name__}.call#",
    "\x1b[2J" + "%00" * 1000,
    # Redis takes it for a host name; Python can't look it up.
    "a..b",
]
#: The calls of the function below, which nobody is to call.
calls: list[object] = []
call = functools.partial(calls.append, "called")


async def get_lent(how: str) -> Any:
    """Return a key that one of redis-py's own clients has got."""
    if how == "sync":
        return await asyncio.to_thread(lambda: get_redis_connection().get("key"))
    client: Any = await aget_redis_connection()
    try:
        return await client.get("key")
    finally:
        await client.aclose()


# redis-py does not close what it has opened before its discovery failed.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:[Uu]nclosed:ResourceWarning",
)
@ways
@pytest.mark.parametrize(
    ("by", "lent"),
    [
        ("MOVED", False),
        ("ASK", False),
        ("CLUSTER", False),
        # To follow an ASK, redis-py's asynchronous client must know the node.
        ("MOVED", True),
        ("CLUSTER", True),
    ],
)
def test_what_is_no_host(site: Site, how: str, by: str, lent: bool) -> None:
    """It leads nowhere, changes no option, and fails with an error of redis-py's."""

    async def attack(host: str, node: PeerHost, evil: PeerHost) -> None:
        name = host.replace("PORT", str(evil.port)).encode()
        replies = {
            "COMMAND": COMMANDS,
            "CLUSTER": slots(b"", node.port),
            "GET": bulk(b"5"),
        }
        node.answer = answering(**replies)
        moved = b"-%b 12539 %b:%d\r\n" % (by.encode(), name, evil.port)
        wrong = (
            {"CLUSTER": slots(name, evil.port)} if by == "CLUSTER" else {"GET": moved}
        )
        hostile = answering(**{**replies, **wrong})
        with site.settings(node):
            if lent:
                # The cache has found the nodes; redis-py's client does so itself.
                cache: Any = caches["default"]
                await asyncio.to_thread(cache.get_topology().ensure)
            node.answer = hostile
            with pytest.raises(redis.RedisError) as caught:
                await (get_lent(how) if lent else get(how))
        assert len(str(caught.value)) < 500
        assert "\x1b" not in str(caught.value)
        if not lent and host == NO_HOSTS[-1]:
            with site.settings(node, ignore_exceptions=True):
                assert await get(how) is None
        registry.reset()

    async def main() -> None:
        async with (
            PeerHost(answering(GET=bulk(b"5")), tls=site.tls(ATTACKER)) as evil,
            PeerHost(answering(), tls=site.tls(LOCATION)) as node,
        ):
            for host in NO_HOSTS:
                await attack(host, node, evil)
            assert evil.commands == calls == []

    asyncio.run(main())
    gc.collect()  # It warns here, not later.
