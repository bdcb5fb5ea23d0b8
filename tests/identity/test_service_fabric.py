"""Service Fabric's managed identity, over HTTPS with a certificate of its own."""

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from django_entra_redis.conf.identities import parse_identity
from django_entra_redis.exceptions import TokenRequestError
from django_entra_redis.identity.kinds import make_fetch
from django_entra_redis.identity.token import Fetch
from emulator import Emulator
from emulator.certificates import CertificateAuthority
from tests.support.http import serve_with

SECRET = "open sesame"


@dataclass
class Fabric:
    """A node of Service Fabric."""

    pem: bytes
    patch: pytest.MonkeyPatch
    status: int = 200
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    asked: bool = False

    def __call__(self, headers: Message) -> tuple[int, dict[str, str], bytes]:
        """Answer whoever knows the secret."""
        assert headers["Secret"] == SECRET
        self.asked = True
        body = json.dumps(self.content).encode() if self.raw is None else self.raw
        return self.status, self.headers, body

    @property
    def thumbprint(self) -> str:
        """That of its certificate."""
        certificate = x509.load_pem_x509_certificate(self.pem)
        return certificate.fingerprint(hashes.SHA1()).hex().upper()

    def environ(self, url: str, thumbprint: str | None = None) -> None:
        """Set the variables as Service Fabric does."""
        self.patch.setenv("IDENTITY_ENDPOINT", url)
        self.patch.setenv("IDENTITY_HEADER", SECRET)
        self.patch.setenv("IDENTITY_SERVER_THUMBPRINT", thumbprint or self.thumbprint)


@pytest.fixture
def fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fabric]:
    """Run a node's endpoint, and be one of its processes."""
    made = Fabric(CertificateAuthority().server_pem("fabric"), monkeypatch)
    path = tmp_path / "server.pem"
    path.write_bytes(made.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with serve_with(made, context) as (url, _):
        made.environ(url)
        yield made


def managed(**entry: Any) -> Fetch:
    """Return what requests a managed identity's tokens."""
    entry = {"REQUEST_TIMEOUT": 20.0, "KIND": "managed_identity", **entry}
    return make_fetch(parse_identity("default", entry))


def failure(fetch: Fetch) -> TokenRequestError:
    """Return what a request fails with."""
    with pytest.raises(TokenRequestError) as caught:
        fetch()
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("form", [int, str])
@pytest.mark.filterwarnings("error")
def test_token(fabric: Fabric, emulator: Emulator, form: type) -> None:
    """A token, whose expiry is a number or text."""
    value = emulator.issue_token()
    until = time.time() + 600
    fabric.content = {"access_token": value, "expires_on": form(int(until))}
    fetch = managed()
    for _ in range(2):
        token = fetch()
        assert token.value == value
        assert 590.0 < token.life < 600.1
    fabric.patch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    fetch()


@pytest.mark.parametrize("fault", [None, "429", "500"])
def test_emulated(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    """The emulator's endpoint is one, too, and its certificate is its own."""
    for name, value in emulator.environ("service_fabric").items():
        monkeypatch.setenv(name, value)
    if fault is None:
        assert managed()().username == emulator.system_assigned.object_id
        monkeypatch.setenv("IDENTITY_HEADER", "wrong")
        assert failure(managed()).code == "managed_identity_refused"
        monkeypatch.setenv("IDENTITY_SERVER_THUMBPRINT", "00" * 20)
        assert failure(managed()).code == "token_endpoint_untrusted"
    else:
        emulator.faults.fail(fault, endpoint="service_fabric")
        assert failure(managed()).code == "token_endpoint_failing"


@pytest.mark.parametrize(
    "spelling",
    [str.lower, lambda text: f"{text[:2]}:{text[2:]}\n", lambda text: f"\u200e{text}"],
)
def test_spelling_of_the_thumbprint(
    fabric: Fabric, emulator: Emulator, spelling: Any
) -> None:
    """Lower case, colons, line breaks and invisible marks don't matter."""
    fabric.patch.setenv("IDENTITY_SERVER_THUMBPRINT", spelling(fabric.thumbprint))
    value = emulator.issue_token()
    fabric.content = {"access_token": value, "expires_on": int(time.time()) + 60}
    assert managed()().value == value


@pytest.mark.parametrize("thumbprint", ["00" * 20, "0a" * 32])
def test_another_server(fabric: Fabric, thumbprint: str) -> None:
    """Whoever has another certificate is not told the secret."""
    fabric.patch.setenv("IDENTITY_SERVER_THUMBPRINT", thumbprint)
    assert failure(managed()).code == "token_endpoint_untrusted"
    assert not fabric.asked


@pytest.mark.parametrize("thumbprint", ["", " ", "\n", ":", "no thumbprint", "00" * 16])
def test_thumbprint_that_is_none(fabric: Fabric, thumbprint: str) -> None:
    """Nobody is told the secret: no certificate would be the right one."""
    fabric.patch.setenv("IDENTITY_SERVER_THUMBPRINT", thumbprint)
    error = failure(managed())
    assert error.code == "managed_identity_variables"
    assert "$IDENTITY_SERVER_THUMBPRINT should be" in str(error)
    assert not fabric.asked


def test_plain_text(fabric: Fabric) -> None:
    """Nor is anybody without TLS."""
    fabric.environ("http://127.0.0.1:1/")
    error = failure(managed())
    assert error.code == "managed_identity_variables"
    assert "https://" in str(error)


@pytest.mark.parametrize("key", ["CLIENT_ID", "OBJECT_ID", "RESOURCE_ID"])
def test_named_identity(fabric: Fabric, key: str) -> None:
    """It is not this side's to choose (Azure/azure-sdk-for-net#46736)."""
    error = failure(managed(**{key: "which"}))
    assert error.code == "managed_identity_unknown"
    assert key in str(error)


@pytest.mark.parametrize(
    ("status", "code", "meaning"),
    [
        (400, "InvalidApiVersion", "managed_identity_refused"),
        (401, "SecretHeaderNotFound", "managed_identity_refused"),
        (404, "ManagedIdentityNotFound", "managed_identity_unknown"),
        (429, "TooManyRequests", "token_endpoint_failing"),
        (500, "InternalServerError", "token_endpoint_failing"),
    ],
)
def test_refusals(fabric: Fabric, status: int, code: str, meaning: str) -> None:
    """Its own form of errors; the status decides (microsoft/service-fabric#416)."""
    fabric.status, fabric.headers = status, {"Retry-After": "7"}
    fabric.content = {"error": {"correlationId": "1", "code": code, "message": "No."}}
    error = failure(managed())
    assert error.code == meaning
    assert f"HTTP {status}: " in str(error)
    assert str(error).endswith(": No.")
    assert error.retry_after == 7.0


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"<html>", "token_not_json"),
        (b"[]", "token_bad_answer"),
        (b'{"access_token": ""}', "token_bad_answer"),
        (b'{"access_token": "x", "expires_on": "soon"}', "token_expiry_unreadable"),
        (b'{"access_token": "x"}', "token_without_oid"),
    ],
)
def test_bad_answers(
    fabric: Fabric, raw: bytes, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no answer is told, and logged nowhere."""
    fabric.raw = raw
    assert failure(managed()).code == code
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@contextmanager
def silence() -> Iterator[int]:
    """Give a port where nobody says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()
        yield server.getsockname()[1]
        over.set()


def test_silence(fabric: Fabric) -> None:
    """REQUEST_TIMEOUT bounds it, too."""
    with silence() as port:
        fabric.environ(f"https://127.0.0.1:{port}/")
        error = failure(managed(REQUEST_TIMEOUT=0.3))
        assert error.code in ("token_timeout", "managed_identity_not_up")
        assert "0.3 s" in str(error)


def test_bounds(fabric: Fabric) -> None:
    """What a server sends is bounded here as everywhere."""
    fabric.raw = b" " * (2**20 + 1)
    error = failure(managed())
    assert error.code == "token_bad_answer"
    assert "more than" in str(error)


def test_redirect(fabric: Fabric) -> None:
    """A redirect is not followed, with the secret."""
    fabric.status, fabric.headers = 307, {"Location": "https://other.example/"}
    assert failure(managed()).code == "token_redirected"


def test_not_up_yet(fabric: Fabric) -> None:
    """A port that is closed is one that is not up yet."""
    with silence() as port:
        pass
    fabric.environ(f"https://127.0.0.1:{port}/")
    assert failure(managed()).code == "managed_identity_not_up"
