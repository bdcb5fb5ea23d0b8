"""Options of TLS: each is seen to do what it says, in threads and in event loops."""

import hashlib
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509

from django_entra_redis.connections import registry
from emulator.certificates import CertificateAuthority, cached_client_certificate
from tests.connections.test_refusals import Steps, do
from tests.support.caches import make_cache
from tests.support.sites import ScriptedServer

__all__ = ["do"]
SUITE = "ECDHE-ECDSA-AES256-GCM-SHA384"


class TlsServer(ScriptedServer):
    """A Redis of sorts that speaks TLS.

    Parameters:
        context: what it speaks it with.

    ``suites`` and ``clients`` are the suites and the clients' certificates so far.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.suites: list[str] = []
        self.clients: list[dict[str, Any] | None] = []
        super().__init__({})

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer a client that TLS can be spoken with."""
        try:
            wrapped = self.context.wrap_socket(request, server_side=True)
        except OSError:
            return
        with wrapped:
            cipher = wrapped.cipher()
            assert cipher
            self.suites.append(cipher[0])
            self.clients.append(wrapped.getpeercert())
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are gone."""


@dataclass
class Place:
    """A server with TLS, and the files that clients need."""

    folder: Path
    authority: CertificateAuthority
    server: TlsServer
    use: Steps

    def works(self, host: str = "localhost", **options: Any) -> bool:
        """Return whether a cache with these options reaches the server."""
        url = f"rediss://{host}:{self.server.server_address[1]}"
        cache = make_cache(url, identity=None, retry=None, **options)
        try:
            found = self.use(cache, ("set", "key", 1), ("get", "key"))
        except redis.ConnectionError:
            return False
        finally:
            registry.reset()
        return bool(found[1] == 1)

    @property
    def ca_file(self) -> str:
        """The file of the authority's certificate."""
        path = self.folder / "ca.pem"
        path.write_bytes(self.authority.pem)
        return str(path)


@pytest.fixture
def place(tmp_path: Path, do: Steps) -> Iterator[Place]:
    """Run such a server."""
    authority = CertificateAuthority()
    path = tmp_path / "server.pem"
    path.write_bytes(authority.server_pem("localhost"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server = TlsServer(context)
    yield Place(tmp_path, authority, server, do)
    registry.reset()
    server.stop()


def test_ca_certs(place: Place) -> None:
    """Whom to trust, in a file, as text, and in a folder."""
    assert not place.works()
    assert place.works(ssl_ca_certs=place.ca_file)
    assert place.works(ssl_ca_data=place.authority.pem.decode())
    folder = place.folder / "trusted"
    folder.mkdir()
    assert not place.works(ssl_ca_path=str(folder))
    (folder / hashed_name(place.authority.pem)).write_bytes(place.authority.pem)
    assert place.works(ssl_ca_path=str(folder))


@pytest.mark.parametrize(
    ("option", "content", "why"),
    [
        *(
            (option, None, "No such file or directory")
            for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
        ),
        ("ssl_ca_certs", "x", "it holds no certificate in PEM form"),
        ("ssl_certfile", "x", "it holds no certificate in PEM form"),
        ("ssl_keyfile", "x", "it holds no private key in PEM form"),
        # Nobody writes into it.
        ("ssl_ca_certs", os.mkfifo, "it is not a regular file"),
        ("ssl_certfile", os.mkfifo, "it is not a regular file"),
        ("ssl_keyfile", os.mkfifo, "it is not a regular file"),
    ],
)
def test_file_that_can_not_be_used(
    place: Place, option: str, content: Any, why: str
) -> None:
    """The option is named, since OpenSSL names neither it nor the file."""
    path = place.folder / "unusable"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        content(path)
    files = {"ssl_ca_certs": place.ca_file}
    if option == "ssl_keyfile":
        (place.folder / "own.pem").write_bytes(cached_client_certificate().pem)
        files["ssl_certfile"] = str(place.folder / "own.pem")
    url = f"rediss://localhost:{place.server.server_address[1]}"
    options = {**files, option: str(path)}
    cache = make_cache(url, identity=None, retry=None, **options)
    try:
        with pytest.raises(redis.ConnectionError) as caught:
            place.use(cache, ("get", "key"))
    finally:
        registry.reset()
    told = f"OPTIONS['{option}'] names '{path}', which can't be used: {why}."
    assert told in str(caught.value)


def hashed_name(pem: bytes) -> str:
    """Return the file name by which OpenSSL finds a certificate in a folder."""
    subject = x509.load_pem_x509_certificate(pem).subject
    lowered = [
        x509.NameAttribute(each.oid, str(each.value).lower()) for each in subject
    ]
    # In the canonical form there is no header around the parts.
    digest = hashlib.sha1(x509.Name(lowered).public_bytes()[2:]).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}.0"


@pytest.mark.parametrize("none", ["none", ssl.CERT_NONE])
def test_cert_reqs(place: Place, none: Any) -> None:
    """Whether to look at the certificate at all."""
    assert place.works(ssl_cert_reqs=none)
    assert not place.works(ssl_cert_reqs="required")


def test_check_hostname(place: Place) -> None:
    """Whether it has to be for the host."""
    options = {"ssl_ca_certs": place.ca_file}
    assert not place.works("127.0.0.1", **options)
    assert place.works("127.0.0.1", ssl_check_hostname=False, **options)


def test_certificate_of_the_client(place: Place) -> None:
    """With its key in the same file, or in another one, encrypted."""
    client, options = cached_client_certificate(), {"ssl_ca_certs": place.ca_file}
    both, key = place.folder / "both.pem", place.folder / "key.pem"
    both.write_bytes(client.pem)
    key.write_bytes(client.pem_encrypted)
    place.server.context.load_verify_locations(both)
    place.server.context.verify_mode = ssl.CERT_REQUIRED
    assert not place.works(**options)
    assert place.works(ssl_certfile=str(both), ssl_keyfile=str(both), **options)
    options |= {"ssl_certfile": str(both), "ssl_keyfile": str(key)}
    assert place.works(ssl_password=client.password, **options)
    served = [told for told in place.server.clients if told]
    assert served
    assert all("emulated application" in str(told) for told in served)


VERSIONS: Mapping[str, Callable[[ssl.SSLContext], None]] = {
    "TLSv1_2": lambda context: setattr(
        context, "maximum_version", ssl.TLSVersion.TLSv1_2
    ),
    "TLSv1_3": lambda context: setattr(
        context, "minimum_version", ssl.TLSVersion.TLSv1_3
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_and_suites(place: Place, version: str) -> None:
    """Which version of TLS at least, and which suites of TLS 1.2."""
    VERSIONS[version](place.server.context)
    options = {"ssl_ca_certs": place.ca_file}
    newest = ssl.TLSVersion.TLSv1_3
    assert place.works(ssl_min_version=newest, **options) == (version == "TLSv1_3")
    assert place.works(ssl_ciphers=SUITE, **options)
    assert (place.server.suites[-1] == SUITE) == (version == "TLSv1_2")
