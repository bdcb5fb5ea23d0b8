"""Every kind of identity, over real HTTP and HTTPS against the emulator."""

import asyncio
import gc
import io
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import formatdate
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from django_entra_redis.conf.identities import Identity, parse_identity
from django_entra_redis.credentials.renewal import Renewal
from django_entra_redis.exceptions import TokenError, TokenRequestError
from django_entra_redis.identity.kinds import make_fetch
from django_entra_redis.identity.token import Fetch, Token
from emulator import Emulator, TokenRequest
from emulator.certificates import CertificateAuthority
from tests.support.hostile import answer, raw_server, says
from tests.support.http import serve, serve_with

PATIENCE = 30.0
#: A limit that only hangs reach.
TIMEOUT = 20.0


@dataclass
class Host:
    """A machine on which the emulator is Azure."""

    emulator: Emulator
    monkeypatch: pytest.MonkeyPatch

    def environ(self, kind: str, **variables: str) -> None:
        """Set the environment as that kind of identity has it."""
        for name, value in {**self.emulator.environ(kind), **variables}.items():
            self.monkeypatch.setenv(name, value)

    def fetch(self, **entry: Any) -> Fetch:
        """Return the function that requests a token, for an entry of ENTRA_REDIS."""
        entry.setdefault("INSTANCE_DISCOVERY", False)
        entry.setdefault("REQUEST_TIMEOUT", TIMEOUT)
        return make_fetch(parse_identity("default", entry))

    def application(self, **entry: Any) -> Fetch:
        """Do so for a service principal."""
        self.monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(self.emulator.ca_file))
        entry.setdefault("KIND", "service_principal")
        entry.setdefault("TENANT_ID", self.emulator.tenant_id)
        entry.setdefault("CLIENT_ID", self.emulator.application.client_id)
        entry.setdefault("AUTHORITY_HOST", self.emulator.authority_host)
        return self.fetch(**entry)

    def secret(self, **entry: Any) -> Fetch:
        """Do so for one with a secret."""
        return self.application(
            **{"CLIENT_SECRET": self.emulator.application.secret, **entry}
        )

    @property
    def last(self) -> TokenRequest:
        """The last token request that came in."""
        return self.emulator.requests[-1]


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    """Run one emulator for the whole module."""
    with Emulator() as running:
        yield running


@pytest.fixture
def host(shared: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Give a machine without an identity, yet."""
    yield Host(shared, monkeypatch)
    shared.faults.recover()
    shared.system_assigned_enabled = True
    shared.repeat_tokens = False


def failure(fetch: Fetch) -> TokenRequestError:
    """Return the error of a request, which no foreign frames hang on."""
    with pytest.raises(TokenRequestError) as info:
        fetch()
    assert (info.value.__cause__, info.value.__context__) == (None, None)
    return info.value


def assert_token(token: Token, object_id: str, lifetime: float = 3600.0) -> None:
    """Check whose token it is, and for how long."""
    assert token.username == object_id
    assert token.claims["oid"] == object_id
    assert token.claims["aud"] == "https://redis.azure.com"
    assert lifetime - 2.0 <= token.life < lifetime + 0.001


# -- managed identity

ENDPOINTS = [("managed_identity", "imds"), ("app_service", "app_service")]


@pytest.mark.parametrize(("kind", "endpoint"), ENDPOINTS)
@pytest.mark.parametrize("key", [None, "CLIENT_ID", "OBJECT_ID", "RESOURCE_ID"])
def test_managed_identity(
    host: Host, kind: str, endpoint: str, key: str | None
) -> None:
    """The system's identity and a user's, by each of its names."""
    host.environ(kind)
    identity = host.emulator.system_assigned
    named = {}
    if key is not None:
        identity = host.emulator.user_assigned
        named[key] = getattr(identity, key.lower())
    fetch = host.fetch(KIND="managed_identity", **named)
    assert_token(fetch(), identity.object_id)
    assert host.last.endpoint == endpoint
    assert host.last.asked == "https://redis.azure.com"


@pytest.mark.parametrize(("kind", "endpoint"), ENDPOINTS)
def test_managed_identity_never_through_a_proxy(
    host: Host, kind: str, endpoint: str
) -> None:
    """The endpoints of managed identities are reached directly, whatever is set."""
    host.environ(kind)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        host.monkeypatch.setenv(name, "http://127.0.0.1:1")
        host.monkeypatch.setenv(name.lower(), "http://127.0.0.1:1")
    fetch = host.fetch(KIND="managed_identity")
    assert_token(fetch(), host.emulator.system_assigned.object_id)


def test_application_through_a_proxy(host: Host) -> None:
    """The authority is reached through the proxy, and the error says so."""
    host.monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    error = failure(host.secret())
    assert error.code == "token_proxy"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("managed_identity", "managed_identity_unknown"),
        ("app_service", "managed_identity_unknown"),
    ],
)
def test_unknown_managed_identity(host: Host, kind: str, code: str) -> None:
    """An identity that the machine does not have."""
    host.environ(kind)
    named = {"CLIENT_ID": "00000000-0000-0000-0000-000000000000"}
    error = failure(host.fetch(KIND="managed_identity", **named))
    assert "Identity not found" in str(error)
    assert error.code == code


@pytest.mark.parametrize(("kind", "endpoint"), ENDPOINTS)
def test_several_user_assigned(host: Host, kind: str, endpoint: str) -> None:
    """A machine with several identities wants to be told which one."""
    host.environ(kind)
    host.emulator.system_assigned_enabled = False
    error = failure(host.fetch(KIND="managed_identity"))
    assert "Multiple user assigned identities exist" in str(error)
    assert error.code == "managed_identity_ambiguous"


def test_wrong_app_service_header(host: Host) -> None:
    """App Service refuses a process that is not its own."""
    host.environ("app_service", IDENTITY_HEADER="another instance's")
    error = failure(host.fetch(KIND="managed_identity"))
    assert "401" in str(error)
    assert "another" not in str(error)


def test_no_endpoint_there(host: Host) -> None:
    """A machine without a managed identity."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    host.environ("managed_identity", AZURE_POD_IDENTITY_AUTHORITY_HOST=url)
    error = failure(host.fetch(KIND="managed_identity"))
    assert "could not be reached" in str(error)
    assert error.code == "managed_identity_unavailable"


# -- service principal


def test_secret(host: Host) -> None:
    """A secret is proof enough."""
    assert_token(host.secret()(), host.emulator.application.object_id)
    assert (host.last.assertion, host.last.x5c) == ("secret", False)
    assert host.last.asked == "https://redis.azure.com/.default"


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("form", ["pem", "pem_encrypted", "pfx"])
def test_certificate(host: Host, form: str, chain: bool) -> None:
    """A certificate in each form, with and without its chain."""
    application = host.emulator.application
    entry: dict[str, Any] = {
        "CLIENT_CERTIFICATE": getattr(application, f"certificate_{form}"),
        "SEND_CERTIFICATE_CHAIN": chain,
    }
    if form != "pem":
        entry["CLIENT_CERTIFICATE_PASSWORD"] = application.certificate_password
    fetch = host.application(**entry)
    for _ in range(2):
        assert_token(fetch(), application.object_id)
        assert (host.last.assertion, host.last.x5c) == ("certificate", chain)


def test_certificate_before_its_key(host: Host, tmp_path: Path) -> None:
    """The order within a PEM file does not matter."""
    content = host.emulator.application.certificate_pem.read_text()
    start = content.index("-----BEGIN CERTIFICATE")
    path = tmp_path / "turned.pem"
    path.write_text(content[start:] + content[:start])
    fetch = host.application(CLIENT_CERTIFICATE=str(path))
    assert_token(fetch(), host.emulator.application.object_id)


@pytest.mark.parametrize("form", ["pem", "pem_encrypted", "pfx"])
def test_rotated_certificate(host: Host, form: str) -> None:
    """A certificate that has been replaced is read again."""
    application = host.emulator.application
    entry = {}
    if form != "pem":
        entry["CLIENT_CERTIFICATE_PASSWORD"] = application.certificate_password
    path = getattr(application, f"certificate_{form}")
    fetch = host.application(CLIENT_CERTIFICATE=path, **entry)
    fetch()
    host.emulator.rotate_certificate()
    assert_token(fetch(), application.object_id)


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("form", ["pem", "pem_encrypted", "pfx"])
def test_certificate_as_key_vault_writes_it(
    host: Host, form: str, chain: bool, request: pytest.FixtureRequest
) -> None:
    """Root first: the key's own certificate is the one that counts."""
    # Azure/secrets-store-csi-driver-provider-azure#156
    request.addfinalizer(host.emulator.rotate_certificate)
    host.emulator.rotate_certificate(issued=True)
    application = host.emulator.application
    entry: dict[str, Any] = {"SEND_CERTIFICATE_CHAIN": chain}
    if form != "pem":
        entry["CLIENT_CERTIFICATE_PASSWORD"] = application.certificate_password
    path = getattr(application, f"certificate_{form}")
    fetch = host.application(CLIENT_CERTIFICATE=path, **entry)
    assert_token(fetch(), application.object_id)
    assert (host.last.assertion, host.last.x5c) == ("certificate", chain)


def test_elliptic_key(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Entra takes RSA keys alone: nobody is asked, and nothing is logged."""
    path = tmp_path / "elliptic.pem"
    path.write_bytes(CertificateAuthority().server_pem("localhost"))
    before = len(host.emulator.requests)
    fetch = host.application(CLIENT_CERTIFICATE=path)
    for _ in range(2):
        error = failure(fetch)
        assert error.code == "certificate_unusable"
        assert "it should be an RSA key" in str(error)
    assert len(host.emulator.requests) == before
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_certificate_that_is_not_registered(host: Host, tmp_path: Path) -> None:
    """A certificate that was never uploaded, or was removed."""
    old = tmp_path / "old.pem"
    old.write_bytes(host.emulator.application.certificate_pem.read_bytes())
    host.emulator.rotate_certificate()
    error = failure(host.application(CLIENT_CERTIFICATE=old))
    assert "AADSTS700027" in str(error)
    assert error.code == "token_certificate_not_registered"


def pem_of_certificate(pem: bytes, **_: Any) -> bytes:
    """Return a PEM file without a key."""
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.PEM)


def pem_of_key(pem: bytes, **_: Any) -> bytes:
    """Return a PEM file without a certificate."""
    key = serialization.load_pem_private_key(pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def pfx_of_certificate(pem: bytes, **_: Any) -> bytes:
    """Return a PFX file without a key."""
    certificate = x509.load_pem_x509_certificate(pem)
    return pkcs12.serialize_key_and_certificates(
        b"", None, None, [certificate], serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("make", "password"),
    [
        (pem_of_certificate, None),
        (pem_of_key, None),
        (pfx_of_certificate, None),
        (lambda pem: pem, "a needless password"),
        (lambda pem: b"nonsense", None),
        (lambda pem: b"", None),
        (lambda pem: b"-----BEGIN nonsense\xff", None),
        (lambda pem: b"0\x82nonsense", "a password"),
    ],
)
def test_unusable_certificate(
    host: Host, tmp_path: Path, make: Callable[[bytes], bytes], password: str | None
) -> None:
    """A file that is no certificate with its key."""
    path = tmp_path / "certificate"
    path.write_bytes(make(host.emulator.application.certificate_pem.read_bytes()))
    entry = {"CLIENT_CERTIFICATE_PASSWORD": password} if password else {}
    error = failure(host.application(CLIENT_CERTIFICATE=path, **entry))
    assert str(error).startswith(f"CLIENT_CERTIFICATE '{path}' can't be used: ")
    assert "CLIENT_CERTIFICATE_PASSWORD its password if it has one." in str(error)
    assert error.code == "certificate_unusable"


@pytest.mark.parametrize("form", ["pem_encrypted", "pfx"])
@pytest.mark.parametrize("password", [None, "the-wrong-one"])
def test_wrong_certificate_password(
    host: Host, form: str, password: str | None
) -> None:
    """A password that does not fit."""
    path = getattr(host.emulator.application, f"certificate_{form}")
    entry = {"CLIENT_CERTIFICATE_PASSWORD": password} if password else {}
    error = failure(host.application(CLIENT_CERTIFICATE=path, **entry))
    assert "CLIENT_CERTIFICATE_PASSWORD" in str(error)
    assert "the-wrong-one" not in str(error)
    assert error.code == "certificate_unusable"


def test_missing_certificate(host: Host, tmp_path: Path) -> None:
    """A certificate that is not there, or not to be read, and comes later."""
    path = tmp_path / "certificate.pem"
    fetch = host.application(CLIENT_CERTIFICATE=path)
    error = failure(fetch)
    text = f"CLIENT_CERTIFICATE '{path}' can't be read: No such file or directory."
    assert (str(error), error.code) == (text, "certificate_unreadable")
    path.write_bytes(host.emulator.application.certificate_pem.read_bytes())
    assert_token(fetch(), host.emulator.application.object_id)


def test_certificate_that_is_a_folder(host: Host, tmp_path: Path) -> None:
    """A certificate that can't be read as a file."""
    error = failure(host.application(CLIENT_CERTIFICATE=tmp_path))
    assert f"CLIENT_CERTIFICATE '{tmp_path}' can't be read: Is a dir" in str(error)


@pytest.mark.parametrize(
    ("entry", "text", "code"),
    [
        ({"CLIENT_SECRET": "wrong"}, "AADSTS7000215", "token_wrong_secret"),
        ({"CLIENT_ID": "no-such"}, "AADSTS700016", "token_unknown_client"),
        ({"TENANT_ID": "no-such"}, "no-such", "token_unknown_tenant"),
        ({"SCOPE": "https://else/.default"}, "AADSTS500011", "token_wrong_scope"),
    ],
)
def test_refused(host: Host, entry: dict[str, str], text: str, code: str) -> None:
    """What Entra refuses is told in its own words, with a code of ours."""
    error = failure(host.secret(**entry))
    assert text in str(error)
    assert error.code == code
    assert "\n" not in str(error)
    assert host.emulator.application.secret not in str(error)


def test_request_loop(host: Host) -> None:
    """Whoever is told of a loop asks more seldom, unless Entra says how seldom."""
    fetch = host.secret()
    host.emulator.faults.fail("AADSTS50196")
    assert failure(fetch).retry_after == 60.0
    host.emulator.faults.fail("AADSTS50196", retry_after=7)
    assert failure(fetch).retry_after == 7.0


def test_expired_secret(host: Host) -> None:
    """A secret that has run out."""
    secret = host.emulator.application_expired_secret
    error = failure(host.secret(CLIENT_SECRET=secret))
    assert error.code == "token_expired_secret"


def test_untrusted_authority(host: Host) -> None:
    """An authority whose certificate this machine does not trust."""
    fetch = host.secret()
    host.monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    error = failure(fetch)
    assert "certificate is not trusted" in str(error)
    assert error.code == "token_endpoint_untrusted"


def test_instance_discovery(host: Host) -> None:
    """Unless it is told not to, msal asks the public cloud whether the host is known.

    It is caught on the way, by a proxy.
    """
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        asked: list[bytes] = []

        def catch() -> None:
            connection, _ = proxy.accept()
            with connection:
                asked.append(connection.recv(1000))

        thread = threading.Thread(target=catch)
        thread.start()
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        host.monkeypatch.setenv("HTTPS_PROXY", url)
        failure(host.secret(INSTANCE_DISCOVERY=True))
        thread.join()
    assert asked[0].startswith(b"CONNECT login.microsoftonline.com:443")


# -- workload identity


def workload(host: Host, path: Path) -> Fetch:
    """Return what requests a token for a pod."""
    return host.application(KIND="workload_identity", TOKEN_FILE=path)


def test_workload_identity(host: Host, tmp_path: Path) -> None:
    """The token file is read at each request, since it is rotated."""
    path = tmp_path / "token"
    path.write_text(host.emulator.federated_token() + "\n")
    fetch = workload(host, path)
    assert_token(fetch(), host.emulator.application.object_id)
    assert host.last.assertion == "federated"
    path.write_text(host.emulator.federated_token(-1000.0))
    error = failure(fetch)
    assert error.code == "token_assertion_expired"
    path.write_text(host.emulator.federated_token())
    assert_token(fetch(), host.emulator.application.object_id)
    path.unlink()
    error = failure(fetch)
    text = f"TOKEN_FILE '{path}' can't be read: No such file or directory."
    assert (str(error), error.code) == (text, "token_file_unreadable")


# -- environment


@pytest.mark.parametrize(
    ("kind", "assertion"),
    [
        ("service_principal", "secret"),
        ("certificate", "certificate"),
        ("workload_identity", "federated"),
        ("managed_identity", None),
        ("user_assigned", None),
        ("app_service", None),
    ],
)
def test_environment(host: Host, kind: str, assertion: str | None) -> None:
    """Without an entry the environment decides, in each of its forms."""
    host.environ(kind)
    owner: Any = host.emulator.application
    if assertion is None:
        user = kind == "user_assigned"
        owner = host.emulator.user_assigned if user else host.emulator.system_assigned
    token = host.fetch()()
    assert_token(token, owner.object_id)
    assert host.last.assertion == assertion


def test_environment_with_a_password(host: Host) -> None:
    """The certificate of the environment may be encrypted, and its chain sent."""
    application = host.emulator.application
    host.environ(
        "certificate",
        AZURE_CLIENT_CERTIFICATE_PATH=str(application.certificate_pfx),
        AZURE_CLIENT_CERTIFICATE_PASSWORD=application.certificate_password,
    )
    assert_token(host.fetch(SEND_CERTIFICATE_CHAIN=True)(), application.object_id)
    assert host.last.x5c


# -- anybody's credential


@dataclass(frozen=True)
class AccessToken:
    """What azure-core's credentials return."""

    token: str
    expires_on: int


class Credential:
    """Somebody's credential."""

    made: ClassVar[int] = 0
    value: ClassVar[str] = ""

    def __init__(self) -> None:
        type(self).made += 1

    def get_token(self, *scopes: str) -> AccessToken:
        """Return a token for Redis."""
        assert scopes == ("https://redis.azure.com/.default",)
        return AccessToken(self.value, int(time.time()) + 600)


def make_credential() -> Credential:
    """Return one."""
    return Credential()


a_credential = Credential()


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (a_credential, 0),
        (Credential, 1),
        (make_credential, 1),
        (f"{__name__}.a_credential", 0),
        (f"{__name__}.Credential", 1),
        (f"{__name__}.make_credential", 1),
    ],
)
def test_credential(host: Host, given: Any, made: int) -> None:
    """An object, a class, a callable, or a dotted path; made once."""
    host.monkeypatch.setattr(Credential, "made", 0)
    value = host.emulator.issue_token()
    host.monkeypatch.setattr(Credential, "value", value)
    fetch = host.fetch(CREDENTIAL=given)
    for _ in range(2):
        token = fetch()
        assert token.value == value
        assert token.username == host.emulator.application.object_id
        assert 595.0 <= token.life < 600.001
    assert Credential.made == made


def test_opaque_token(host: Host) -> None:
    """With USERNAME the token need not be a JWT; without it, that is the error."""
    host.monkeypatch.setattr(Credential, "value", "opaque")
    token = host.fetch(CREDENTIAL=a_credential, USERNAME="me")()
    assert (token.username, token.value) == ("me", "opaque")
    assert "USERNAME" in str(failure(host.fetch(CREDENTIAL=a_credential)))


class Broken:
    """A credential that raises, or returns nonsense."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def get_token(self, *scopes: str) -> Any:
        """Raise it, or return it."""
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def replace_answers(host: Host, content: Callable[[Any], Any]) -> None:
    """Have Entra answer other JSON to whoever sends a proof, of which it is made."""
    real = requests.Session.request

    def request(session: Any, method: str, url: str, **options: Any) -> Any:
        answer = real(session, method, url, **options)
        data = options.get("data") or {}
        proof = data.get("client_assertion") or data.get("client_secret")
        if proof:
            answer.raw.close()
            answer.raw = urllib3.HTTPResponse(
                io.BytesIO(json.dumps(content(proof)).encode()), preload_content=False
            )
        return answer

    host.monkeypatch.setattr(requests.Session, "request", request)


@pytest.mark.parametrize(
    "word",
    [{"code": "ServiceUnavailable"}, None, 5, ["a"], "a\r\nb", "\u2603", "\ud800"],
)
def test_word_that_no_header_can_hold(host: Host, word: Any) -> None:
    """msal sends it with later requests, none of which would be made any more."""
    value = host.emulator.issue_token()
    answers = [
        {"error": word, "error_description": "AADSTS90033: A transient error."},
        {"access_token": value, "expires_in": 60},
    ]
    replace_answers(host, lambda _: answers.pop(0))
    fetch = host.secret()
    assert failure(fetch).code == "token_endpoint_failing"
    assert fetch().value == value


@pytest.mark.parametrize("number", [700027, 50012])
@pytest.mark.parametrize("words", ["Refused.", "La preuve est refusée."])
def test_number_of_all_proofs(
    host: Host, tmp_path: Path, number: int, words: str
) -> None:
    """Which one it was is known here, in whatever language Entra speaks."""
    description = f"AADSTS{number}: {words}"
    refused = {"error": "invalid_client", "error_description": description}
    replace_answers(host, lambda _: refused)
    (tmp_path / "token").write_text("sesame")
    certificate = host.emulator.application.certificate_pem
    for fetch, code in (
        (host.secret(), "token_wrong_secret"),
        (workload(host, tmp_path / "token"), "token_assertion_rejected"),
        (
            host.application(CLIENT_CERTIFICATE=certificate),
            "token_certificate_not_registered",
        ),
    ):
        error = failure(fetch)
        assert error.code == code
        assert words in str(error)


def test_proof_that_the_endpoint_quotes(host: Host) -> None:
    """No assertion is told of, whoever signed it, nor a secret."""
    sent = []

    def quote(proof: Any) -> dict[str, str]:
        sent.append(proof if isinstance(proof, str) else proof.decode())
        return {"error": "invalid_request", "error_description": f"not {proof}"}

    replace_answers(host, quote)
    emulator = host.emulator
    path = emulator.directory / "quoted"
    path.write_text(emulator.federated_token())
    for fetch in (
        host.secret(),
        host.application(CLIENT_CERTIFICATE=str(emulator.application.certificate_pem)),
        host.application(KIND="workload_identity", TOKEN_FILE=str(path)),
    ):
        with pytest.raises(TokenRequestError, match=r"not .*\*\*\*") as info:
            fetch()
        assert sent.pop() not in str(info.value)


def test_token_that_a_credential_quotes(host: Host) -> None:
    """It is not told of either."""

    class Quoting:
        def get_token(self, *scopes: str) -> None:
            raise ValueError(f"not {host.emulator.issue_token()}, really")

    with pytest.raises(TokenRequestError, match=r"ValueError: not \*\*\*, really$"):
        host.fetch(CREDENTIAL=Quoting())()


@pytest.mark.parametrize(
    ("given", "text", "code"),
    [
        (Broken(ValueError("no luck")), "raised ValueError: no luck", "raised"),
        (Broken(None), "raised AttributeError", "raised"),
        (lambda: None, "raised AttributeError", "raised"),
        ("no_such_module.Credential", "can't be imported", "import"),
        (f"{__name__}.no_such_name", "can't be imported", "import"),
    ],
)
def test_broken_credential(host: Host, given: Any, text: str, code: str) -> None:
    """What goes wrong in a credential is told, with its text."""
    error = failure(host.fetch(CREDENTIAL=given))
    assert text in str(error)
    assert error.code == f"credential_{code}"


class Wordless(Exception):  # noqa: N818 - the name is told
    """An exception whose text can't be had."""

    def __str__(self) -> str:
        raise RuntimeError("hush")


class WordlessImportError(Wordless, ImportError):
    """Another one."""


class WordlessTokenError(Wordless, TokenRequestError):
    """A third one."""


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (Wordless(), "raised Wordless: (", "credential_raised"),
        (WordlessImportError(), "can't be imported: (", "credential_import"),
        (WordlessTokenError("x"), "(its text", "token_failed"),
    ],
)
def test_error_of_a_credential_without_a_text(
    host: Host, error: Exception, said: str, code: str
) -> None:
    """The class that is told is its own, not that of what its text raises."""
    told = failure(host.fetch(CREDENTIAL=Broken(error)))
    assert str(told).startswith(f"CREDENTIAL {said}")
    assert "its text can't be had: RuntimeError)" in str(told)
    assert told.code == code


@pytest.mark.parametrize("value", [None, b"bytes", "", "sésame", "a b", "a\r\nb"])
def test_token_of_a_credential_that_is_none(host: Host, value: Any) -> None:
    """The setting is named, and no identity endpoint; nor is the value shown."""
    fetch = host.fetch(CREDENTIAL=Broken(AccessToken(value, 2**31)), USERNAME="me")
    error = failure(fetch)
    assert error.code == "token_bad_answer"
    assert str(error).startswith("CREDENTIAL gave something that is no access token")
    assert "sés" not in str(error)


class Aio:
    """A credential such as azure.identity.aio's."""

    async def get_token(self, *scopes: str) -> None:
        """Be awaited, which nobody does."""


class Disguised:
    """One whose method does not look it."""

    def __init__(self, awaitable: Callable[[], Any]) -> None:
        self.get_token = lambda *scopes: awaitable()


async def make_aio() -> None:
    """Make a credential once it is awaited, which nobody does."""


@pytest.mark.parametrize(
    "given",
    [
        Aio,
        lambda: Aio(),
        f"{__name__}.Aio",
        make_aio,
        lambda: make_aio(),
        f"{__name__}.make_aio",
    ],
)
@pytest.mark.filterwarnings("error")
def test_asynchronous_credential(host: Host, given: Any) -> None:
    """It is told what to take in its place, and nothing waits to be awaited."""
    fetch = make_fetch(Identity(alias="a", kind="credential", credential=given))
    for _ in range(2):
        error = failure(fetch)
        assert error.code == "credential_asynchronous"
        assert "from azure.identity, not azure.identity.aio." in str(error)
    gc.collect()


@pytest.mark.filterwarnings("error")
def test_asynchronous_credential_in_disguise(host: Host) -> None:
    """What it returns tells."""
    error = failure(host.fetch(CREDENTIAL=Disguised(Aio().get_token)))
    assert error.code == "credential_asynchronous"
    loop = asyncio.new_event_loop()
    future: Any = loop.create_future()
    error = failure(host.fetch(CREDENTIAL=Disguised(lambda: future)))
    assert error.code == "credential_asynchronous"
    loop.close()
    gc.collect()


class Failing(Credential):
    """A credential that some day goes wrong for good."""

    broken: ClassVar[bool] = False

    def get_token(self, *scopes: str) -> AccessToken:
        """Return a token, unless this one was made before it all broke."""
        if self.broken:
            raise ValueError("stuck")
        return super().get_token(*scopes)


@pytest.mark.parametrize("given", [Failing, lambda: Failing(), f"{__name__}.Failing"])
def test_credential_that_fails_again_and_again(host: Host, given: Any) -> None:
    """After some failures it is made anew: the old one may be stuck."""
    host.monkeypatch.setattr(Credential, "value", host.emulator.issue_token())
    host.monkeypatch.setattr(Failing, "made", 0)
    fetch = host.fetch(CREDENTIAL=given)
    fetch()
    host.monkeypatch.setattr(Failing, "broken", True)
    for _ in range(3):
        assert failure(fetch).code == "credential_raised"
    assert Failing.made == 1
    failure(fetch)
    assert Failing.made == 2
    host.monkeypatch.setattr(Failing, "broken", False)
    for _ in range(5):
        fetch()
    assert Failing.made == 2


def test_credential_that_says_too_much(host: Host) -> None:
    """What a JWT says of its expiry counts, where it is less."""
    host.monkeypatch.setattr(
        Credential, "value", host.emulator.issue_token(lifetime=60)
    )
    token = host.fetch(CREDENTIAL=a_credential)()
    assert 50.0 < token.life < 70.0


def test_azure_identity_missing(host: Host) -> None:
    """Where azure-identity is not installed, the extra is named."""
    error = failure(host.fetch(CREDENTIAL="azure.no_such_module.Credential"))
    assert "django-entra-redis[azure-identity]" in str(error)
    assert error.code == "azure_identity_missing"


def test_azure_identity(host: Host) -> None:
    """azure-identity's own credential."""
    azure = pytest.importorskip("azure.identity")
    application = host.emulator.application
    host.monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(host.emulator.ca_file))
    with azure.ClientSecretCredential(
        host.emulator.tenant_id,
        application.client_id,
        application.secret,
        authority=host.emulator.authority_host,
        disable_instance_discovery=True,
    ) as credential:
        assert_token(host.fetch(CREDENTIAL=credential)(), application.object_id)


# -- faults


WAYS = ["token", "imds", "app_service"]


def way(host: Host, endpoint: str) -> Fetch:
    """Return a fetch that asks at an endpoint."""
    if endpoint == "token":
        return host.secret()
    host.environ({"imds": "managed_identity"}.get(endpoint, endpoint))
    return host.fetch(KIND="managed_identity")


UNREACHABLE = {
    "token": "token_unreachable",
    "imds": "managed_identity_unavailable",
    "app_service": "managed_identity_not_up",
}


@pytest.mark.parametrize("endpoint", WAYS)
@pytest.mark.parametrize(
    ("mode", "text", "code"),
    [
        ("html", "HTTP 200 with something that is not JSON (text/html", "not_json"),
        ("reset", "could not be reached", None),
    ],
)
def test_fault(host: Host, endpoint: str, mode: str, text: str, code: str) -> None:
    """Each fault of an endpoint is told; afterwards all is well."""
    fetch = way(host, endpoint)
    fetch()
    host.emulator.faults.fail(mode, endpoint=endpoint)
    error = failure(fetch)
    assert text in str(error)
    assert error.code == (f"token_{code}" if code else UNREACHABLE[endpoint])
    host.emulator.faults.recover()
    fetch()


@pytest.mark.parametrize("endpoint", WAYS)
@pytest.mark.parametrize("mode", ["500", "429"])
def test_failing_endpoint(host: Host, endpoint: str, mode: str) -> None:
    """An endpoint that is down or busy; its Retry-After is handed on."""
    fetch = way(host, endpoint)
    fetch()
    host.emulator.faults.fail(mode, retry_after=7, endpoint=endpoint)
    assert failure(fetch).retry_after == 7.0
    host.emulator.faults.fail(mode, endpoint=endpoint)
    assert failure(fetch).retry_after is None
    host.emulator.faults.recover()
    fetch()


@pytest.mark.parametrize("endpoint", WAYS)
def test_garbage(host: Host, endpoint: str) -> None:
    """An answer without a token."""
    fetch = way(host, endpoint)
    host.emulator.faults.fail("garbage", endpoint=endpoint)
    failure(fetch)


@pytest.mark.parametrize("mode", ["500", "429", "html", "garbage", "reset"])
def test_faults_of_discovery(host: Host, mode: str) -> None:
    """What keeps msal from finding the authority is an error like any other."""
    fetch = host.secret()
    host.emulator.faults.fail(mode)
    failure(fetch)
    host.emulator.faults.recover()
    fetch()


@pytest.mark.parametrize("endpoint", WAYS)
def test_hanging_endpoint(host: Host, endpoint: str) -> None:
    """An endpoint that is silent is given up after REQUEST_TIMEOUT."""
    host.environ(
        {"imds": "managed_identity", "token": "service_principal"}.get(
            endpoint, endpoint
        )
    )
    fetch = host.fetch(REQUEST_TIMEOUT=0.2)
    host.emulator.faults.fail("hang")
    error = failure(fetch)
    assert "did not answer within 0.2 s (REQUEST_TIMEOUT)" in str(error)
    assert error.code == "token_timeout"


@pytest.mark.parametrize("endpoint", [*WAYS, "credential"])
def test_request_timeout(host: Host, endpoint: str) -> None:
    """REQUEST_TIMEOUT bounds whatever a caller waits for, on every kind.

    A byte now and then keeps an HTTP timeout from striking.
    """
    over = threading.Event()

    class Slow:
        def get_token(self, *scopes: str) -> None:
            over.wait(PATIENCE)

    entry: dict[str, Any] = {"CREDENTIAL": Slow()}
    if endpoint != "credential":
        host.environ(
            {"imds": "managed_identity", "token": "service_principal"}.get(
                endpoint, endpoint
            )
        )
        entry = {"INSTANCE_DISCOVERY": False}
    host.emulator.faults.fail("dribble")
    identity = parse_identity("default", {"REQUEST_TIMEOUT": 1.1, **entry})
    renewal = Renewal(
        "slow", identity.kind, lambda: make_fetch(identity), policy=identity.policy
    )
    before = time.monotonic()
    with pytest.raises(TokenError, match="REQUEST_TIMEOUT"):
        renewal.current()
    assert time.monotonic() - before < PATIENCE / 3
    renewal.stop()
    over.set()


@pytest.mark.parametrize("endpoint", WAYS)
def test_no_cache_answers(host: Host, endpoint: str) -> None:
    """Each request reaches the endpoint: neither tokens nor errors are remembered."""
    fetch = way(host, endpoint)
    tokens = {fetch().value for _ in range(3)}
    assert len(tokens) == 3
    before = len(host.emulator.requests)
    for mode in ("500", "429", "invalid_client"):
        host.emulator.faults.fail(mode, retry_after=3600, endpoint=endpoint)
        for _ in range(2):
            failure(fetch)
    host.emulator.faults.recover()
    fetch()
    assert len(host.emulator.requests) - before == 7


def test_errors_of_400_are_not_remembered(host: Host, tmp_path: Path) -> None:
    """msal remembers an answer of status 400 for a minute; here nobody does."""
    fetch = host.secret(CLIENT_ID="no-such")
    before = len(host.emulator.requests)
    for _ in range(3):
        failure(fetch)
    assert len(host.emulator.requests) - before == 3


def test_secret_in_an_answer(host: Host) -> None:
    """Should an endpoint repeat a secret, the error does not."""
    fetch = host.secret(CLIENT_ID="id", CLIENT_SECRET="not found in the directory")
    error = failure(fetch)
    assert "not found in the directory" not in str(error)


# -- Azure's dialects


@pytest.mark.parametrize("kind", ["managed_identity", "app_service"])
@pytest.mark.parametrize("body", [None, "", "pod list is empty", "<html>busy</html>"])
@pytest.mark.parametrize("status", ["404", "410", "429", "500", "503"])
def test_failing_status(host: Host, kind: str, body: str | None, status: str) -> None:
    """The status tells of an endpoint that fails for a while, in whatever words."""
    host.environ(kind)
    fetch = host.fetch(KIND="managed_identity")
    host.emulator.faults.fail(status, retry_after=3, body=body)
    error = failure(fetch)
    assert error.code == "token_endpoint_failing"
    assert f"HTTP {status}" in str(error)
    assert error.retry_after == 3.0
    host.emulator.faults.recover()
    fetch()


@pytest.mark.parametrize(
    ("endpoint", "secret"),
    [("IDENTITY_ENDPOINT", "IDENTITY_HEADER"), ("MSI_ENDPOINT", "MSI_SECRET")],
)
def test_header_that_the_endpoint_quotes(
    host: Host, endpoint: str, secret: str
) -> None:
    """What a platform's endpoint is asked with is not told."""
    words = b"no such header: sesame"
    with serve(400, words, Content_Type="text/plain") as (url, _):
        host.monkeypatch.setenv(endpoint, url)
        host.monkeypatch.setenv(secret, "sesame")
        error = failure(host.fetch(KIND="managed_identity"))
    assert str(error).endswith("HTTP 400: no such header: ***")
    assert error.code == "managed_identity_refused"


@pytest.mark.parametrize("body", [None, "", "busy", "<html>busy</html>"])
@pytest.mark.parametrize("status", ["429", "500", "502", "503"])
def test_failing_status_of_entra(host: Host, body: str | None, status: str) -> None:
    """Entra's, or that of something before it, too."""
    fetch = host.secret()
    host.emulator.faults.fail(status, body=body)
    error = failure(fetch)
    assert error.code == "token_endpoint_failing"
    assert f"HTTP {status}" in str(error)
    assert ("AADSTS9" in str(error)) is (body is None)  # Entra's own words


#: Where msal looks for the keys of Azure Arc's agent.
ARC_KEYS = "msal.managed_identity._supported_arc_platforms_and_their_prefixes"


class Arc:
    """Azure Arc's agent: it wants a key that it has written to a file."""

    def __init__(self, host: Host, directory: Path) -> None:
        host.monkeypatch.setattr(ARC_KEYS, {sys.platform: str(directory)})
        self.value = host.emulator.issue_token()
        self.key = directory / "1.key"
        self.key.write_text("open sesame")
        self.stated = {"expires_in": "600"}

    def __call__(self, headers: Message) -> tuple[int, dict[str, str], bytes]:
        """Answer."""
        if headers["Authorization"] is None:
            challenge = f"Basic realm=/var/opt/azcmagent/tokens/{self.key.name}"
            return 401, {"WWW-Authenticate": challenge}, b""
        if headers["Authorization"] != "Basic open sesame":
            return 403, {}, b'{"error": "invalid_request"}'
        answer = {"access_token": self.value, **self.stated}
        return 200, {}, json.dumps(answer).encode()


@pytest.fixture
def arc(host: Host, tmp_path: Path) -> Iterator[Arc]:
    """Give an agent."""
    agent = Arc(host, tmp_path)
    with serve_with(agent) as (url, _):
        host.monkeypatch.setenv("IDENTITY_ENDPOINT", url)
        host.monkeypatch.setenv("IMDS_ENDPOINT", url)
        yield agent


def test_emulated_azure_arc(host: Host) -> None:
    """A new key at each request, and the identity that was named, or none."""
    host.monkeypatch.setattr(ARC_KEYS, {sys.platform: str(host.emulator.arc_keys)})
    host.environ("azure_arc")
    fetch = host.fetch(KIND="managed_identity")
    for _ in range(2):
        assert_token(fetch(), host.emulator.system_assigned.object_id)
    assert host.last.endpoint == "azure_arc"
    user = host.emulator.user_assigned
    try:
        token = host.fetch(KIND="managed_identity", CLIENT_ID=user.client_id)()
    except TokenRequestError as error:
        # An old msal knows no named identities there.
        assert error.code == "managed_identity_unknown"  # noqa: PT017 - either is right
    else:
        assert token.username == user.object_id
    host.emulator.faults.fail("410", endpoint="azure_arc")
    assert failure(fetch).code == "token_endpoint_failing"


def test_azure_arc(host: Host, arc: Arc) -> None:
    """Whoever can read the key gets a token."""
    fetch = host.fetch(KIND="managed_identity")
    assert fetch().value == arc.value
    arc.key.write_text("another one")
    error = failure(fetch)
    assert (error.code, "another" in str(error)) == ("managed_identity_refused", False)


@pytest.mark.parametrize("body", [b"", b"busy", b'{"error": "x"}'])
@pytest.mark.parametrize("status", [404, 429, 500])
def test_azure_arc_that_fails(host: Host, arc: Arc, status: int, body: bytes) -> None:
    """Its agent's status decides as others' does, before a key is read."""
    with serve(status, body, Retry_After="5") as (url, _):
        host.monkeypatch.setenv("IDENTITY_ENDPOINT", url)
        error = failure(host.fetch(KIND="managed_identity"))
    assert (error.code, error.retry_after) == ("token_endpoint_failing", 5.0)
    assert f"HTTP {status}" in str(error)


#: The variables by which platforms are known, that of the URL first.
PLATFORMS = {
    "imds": ("AZURE_POD_IDENTITY_AUTHORITY_HOST",),
    "app_service": ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"),
    "machine_learning": ("MSI_ENDPOINT", "MSI_SECRET"),
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    "stated", [{}, {"expires_on": None}, {"expires_in": None, "expires_on": None}]
)
def test_token_without_a_stated_expiry(
    host: Host, platform: str, stated: dict[str, Any]
) -> None:
    """A JWT tells its expiry itself; of another token nobody does."""
    value = host.emulator.issue_token(lifetime=60.0)
    tokens = [value, "opaque"]

    def answer(headers: Message) -> tuple[int, dict[str, str], bytes]:
        content = {"access_token": tokens[0], "token_type": "Bearer", **stated}
        return 200, {}, json.dumps(content).encode()

    with serve_with(answer) as (url, _):
        for name in PLATFORMS[platform]:
            host.monkeypatch.setenv(name, url)
        fetch = host.fetch(KIND="managed_identity", USERNAME="me")
        token = fetch()
        assert (token.value, token.username) == (value, "me")
        assert 50.0 < token.life < 70.0
        tokens.pop(0)
        error = failure(fetch)
    assert error.code == "token_expiry_unreadable"
    assert "no expiry" in str(error)
    assert "opaque" not in str(error)


@pytest.mark.parametrize(
    "stated", [{"expires_in": "55"}, {"expires_on": int(time.time()) + 3600}]
)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_expiry_in_the_field_of_another_platform(
    host: Host, platform: str, stated: dict[str, Any]
) -> None:
    """Either field counts, and the token's own claim beside it."""
    answer = {"access_token": host.emulator.issue_token(lifetime=60.0), **stated}
    with serve(200, json.dumps(answer).encode()) as (url, _):
        for name in PLATFORMS[platform]:
            host.monkeypatch.setenv(name, url)
        assert 50.0 < host.fetch(KIND="managed_identity")().life < 70.0


def test_expiry_in_another_field_that_can_not_be_read(host: Host) -> None:
    """It is told as that of the platform's own field."""
    answer = {"access_token": host.emulator.issue_token(), "expires_in": "soon"}
    with serve(200, json.dumps(answer).encode()) as (url, _):
        for name in PLATFORMS["app_service"]:
            host.monkeypatch.setenv(name, url)
        error = failure(host.fetch(KIND="managed_identity"))
    assert error.code == "token_expiry_unreadable"
    assert "expires_in is 'soon'" in str(error)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("date", [None, 0.0, 3600.0])
@pytest.mark.parametrize(
    ("stated", "code"),
    [
        ({"expires_in": -1}, "token_expired_already"),
        ({"expires_in": "0"}, "token_expired_already"),
        ({"expires_on": -1}, "token_expiry_unreadable"),
        ({"expires_on": "3600"}, "token_expiry_unreadable"),
        ({"expires_in": True}, "token_expiry_unreadable"),
        ({"expires_on": True}, "token_expiry_unreadable"),
    ],
)
def test_expiry_that_is_none(
    host: Host, platform: str, date: float | None, stated: dict[str, Any], code: str
) -> None:
    """It is the endpoint's fault, whatever its clock shows; msal takes true for 1."""
    sent = {} if date is None else {"Date": formatdate(time.time() - date)}
    content = json.dumps({"access_token": "opaque", **stated}).encode()
    with raw_server(says(answer(200, content, **sent))) as server:
        for name in PLATFORMS[platform]:
            host.monkeypatch.setenv(name, server.url)
        error = failure(host.fetch(KIND="managed_identity", USERNAME="me"))
    assert error.code == code


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("stated", ["Infinity", "-Infinity", "1" + 400 * "0", "1e400"])
def test_expiry_beyond_all_numbers(host: Host, platform: str, stated: str) -> None:
    """msal trips over it with an error of its own."""
    for field in ("expires_in", "expires_on"):
        answer = f'{{"access_token": "opaque", "{field}": {stated}}}'
        with serve(200, answer.encode()) as (url, _):
            for name in PLATFORMS[platform]:
                host.monkeypatch.setenv(name, url)
            error = failure(host.fetch(KIND="managed_identity", USERNAME="me"))
        assert error.code == "token_expiry_unreadable"


@pytest.mark.parametrize("named", [{}, {"CLIENT_ID": "a"}])
def test_token_of_azure_arc_without_a_stated_expiry(
    host: Host, arc: Arc, named: dict[str, str]
) -> None:
    """Nobody says that it is the named identity's: then it is not taken."""
    arc.stated = {}
    fetch = host.fetch(KIND="managed_identity", **named)
    if named:
        # An old msal knows no named identities there.
        assert failure(fetch).code in (
            "managed_identity_unknown",
            "token_expiry_unreadable",
        )
    else:
        assert fetch().value == arc.value


def test_credential_without_an_expiry(host: Host) -> None:
    """The JWT's counts here, too."""

    class Bare:
        token = host.emulator.issue_token(lifetime=60.0)

    token = host.fetch(CREDENTIAL=Broken(Bare()))()
    assert 50.0 < token.life < 70.0
    Bare.token = "opaque"
    error = failure(host.fetch(CREDENTIAL=Broken(Bare()), USERNAME="me"))
    assert error.code == "token_expiry_unreadable"


def test_entra_without_an_expiry(host: Host) -> None:
    """So it does in an answer of Entra's, or of what stands in for it."""
    value = host.emulator.issue_token(lifetime=60.0)
    replace_answers(host, lambda _: {"access_token": value})
    token = host.secret()()
    assert (token.value, 50.0 < token.life < 70.0) == (value, True)


@pytest.mark.parametrize("name", ["expires_in", "expires_on"])
def test_expiry_of_entra_that_can_not_be_read(host: Host, name: str) -> None:
    """It is told with the field, as of a managed identity, and with no secret."""
    said = f"2026-11-29T12:00:00Z\n{host.emulator.application.secret}"
    replace_answers(host, lambda _: {"access_token": "opaque", name: said})
    error = failure(host.secret(USERNAME="me"))
    assert error.code == "token_expiry_unreadable"
    assert f"({name} is '2026-11-29T12:00:00Z ***')" in str(error)


MALFORMED = [
    "",
    "127.0.0.1:42356/msi/token",
    "localhost:42356/msi/token",
    "localhost",
    "'http://localhost:42356/msi/token'",
    "http:localhost:42356",
    "http://",
    "http://:80/",
    "http:///msi/token",
    "http://[::1/msi/token",
    "http://localhost:port/",
    "http://localhost:99999/",
    "ftp://localhost/",
    "unix:///run/identity.sock",
    "http://.localhost/",
    "http://local..host/",
    f"http://{'a' * 64}.example/",
]


@pytest.mark.parametrize("value", MALFORMED)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_malformed_address(host: Host, platform: str, value: str) -> None:
    """What is no URL is told as the variable's, not as an endpoint that is not up."""
    names = PLATFORMS[platform]
    for name in names:
        host.monkeypatch.setenv(name, "sesame")
    host.monkeypatch.setenv(names[0], value)
    error = failure(host.fetch(KIND="managed_identity"))
    assert error.code == "managed_identity_variables"
    assert f"${names[0]} is '{value}', which is not a URL" in str(error)


@pytest.mark.parametrize("value", ["open sesame\n", " open sesame", "a\rb", "sésam€"])
@pytest.mark.parametrize("platform", ["app_service", "machine_learning"])
def test_secret_that_no_header_can_hold(host: Host, platform: str, value: str) -> None:
    """It is told as the variable's, and not shown."""
    url, secret = PLATFORMS[platform]
    with serve(200) as (served, seen):
        host.monkeypatch.setenv(url, served)
        host.monkeypatch.setenv(secret, value)
        error = failure(host.fetch(KIND="managed_identity"))
    assert error.code == "managed_identity_variables"
    assert str(error).startswith(f"${secret} holds a line break")
    assert "sesam" not in str(error)
    assert seen == []


@pytest.mark.parametrize(
    "proxy",
    ["http://", "nowhere://a:sesame@b:1", "http://[::1", "http://a:sesame/@b:1"],
)
def test_malformed_proxy(host: Host, proxy: str) -> None:
    """Of a request to Entra, all that is malformed is the proxy; its password is not
    shown."""
    host.monkeypatch.setenv("HTTPS_PROXY", proxy)
    error = failure(host.secret())
    assert error.code == "token_proxy"
    assert "$HTTPS_PROXY" in str(error)
    assert "sesame" not in str(error)


def remove(key: Path) -> None:
    """Have it not be there."""
    key.unlink()


def replace_by_a_folder(key: Path) -> None:
    """Have it be no file."""
    key.unlink()
    key.mkdir()


def fill_with_bytes(key: Path) -> None:
    """Have it be no text."""
    key.write_bytes(bytes(range(256)))


def end_a_line(key: Path) -> None:
    """Have it be what no header can hold."""
    key.write_text("open sesame\n")


def fill_up(key: Path) -> None:
    """Have it be larger than a key is."""
    key.write_text("x" * 5000)


@pytest.mark.parametrize(
    "spoil", [remove, replace_by_a_folder, fill_with_bytes, end_a_line, fill_up]
)
def test_key_of_azure_arc(
    host: Host,
    arc: Arc,
    spoil: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A key that can't be read is this machine's failure, and told as such."""
    spoil(arc.key)
    error = failure(host.fetch(KIND="managed_identity"))
    assert error.code == "arc_key_unreadable"
    assert "HTTP" not in str(error)
    assert "himds" in str(error)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


#: What holds no token: nothing, bytes that are no print, or several words.
no_tokens = (
    st.text(st.sampled_from(" \t\r\n"), max_size=3).map(str.encode)
    | st.builds(
        lambda before, odd, after: before + odd + after,
        st.binary(max_size=5),
        st.sampled_from([b"\xff", b"\0", b"a b", b"a\nb", "é".encode(), b"a\x7f"]),
        st.from_regex(rb"[!-~]{1,5}", fullmatch=True),
    )
    | st.text(st.characters(codec="ascii"), min_size=1).map(
        lambda text: text.encode("utf-16")
    )
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=no_tokens)
@example(content=b"")
def test_token_file_that_holds_no_token(
    host: Host, tmp_path: Path, content: bytes
) -> None:
    """It is told before anybody is asked."""
    path = tmp_path / "token"
    path.write_bytes(content)
    before = len(host.emulator.requests)
    error = failure(workload(host, path))
    assert error.code == "token_file_unusable"
    assert str(error).startswith(f"TOKEN_FILE '{path}' ")
    assert str(error).isprintable()
    assert len(host.emulator.requests) == before


@pytest.mark.parametrize("key", ["TOKEN_FILE", "CLIENT_CERTIFICATE"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pipe", "it is not a regular file"),
        ("/dev/zero", "it is not a regular file"),
        ("large", "it has more than 1048576 bytes"),
        ("a\0b", "embedded null"),
    ],
)
def test_file_that_can_not_be_read_whole(
    host: Host, tmp_path: Path, key: str, name: str, why: str
) -> None:
    """Nobody waits for a writer of a pipe, nor reads what has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"A" * (2**20 + 1))
    kind = "workload_identity" if key == "TOKEN_FILE" else "service_principal"
    error = failure(host.application(KIND=kind, **{key: tmp_path / name}))
    assert error.code in ("token_file_unreadable", "certificate_unreadable")
    assert f"{key} '" in str(error)
    assert why in str(error)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_token_file_with_a_mark(host: Host, tmp_path: Path, mark: bytes) -> None:
    """Windows' mark of UTF-8, and line breaks of all kinds, don't matter."""
    path = tmp_path / "token"
    path.write_bytes(mark + host.emulator.federated_token().encode() + b"\r\n")
    assert_token(workload(host, path)(), host.emulator.application.object_id)


def test_bundle_that_is_not_there(host: Host) -> None:
    """The variable is named that names the file."""
    fetch = host.secret()
    host.monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    error = failure(fetch)
    assert error.code == "token_ca_bundle"
    assert "$REQUESTS_CA_BUNDLE names '/nowhere/ca.pem'" in str(error)
    # A managed identity's endpoint has no certificate.
    host.environ("managed_identity", REQUESTS_CA_BUNDLE="/nowhere/ca.pem")
    host.fetch(KIND="managed_identity")()


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_bundle_without_an_end(
    host: Host, tmp_path: Path, variable: str, name: str
) -> None:
    """Nobody waits for a pipe's writer, nor reads a device."""
    os.mkfifo(tmp_path / "pipe")
    fetch = host.secret()
    host.monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    host.monkeypatch.setenv(variable, str(tmp_path / name))
    error = failure(fetch)
    assert error.code == "token_ca_bundle"
    assert f"${variable} names '{tmp_path / name}'" in str(error)
    assert "it is not a regular file" in str(error)


def test_proxy_of_an_identity_binding(host: Host) -> None:
    """azure-identity's credential asks the cluster's proxy, and nobody else."""
    identity: Any = pytest.importorskip("azure.identity")
    if tuple(map(int, identity.__version__.split(".")[:2])) < (1, 26):
        pytest.skip("azure-identity knows no proxy yet")
    emulator = host.emulator
    # The emulator's authority stands in for the proxy.
    host.monkeypatch.setenv("AZURE_KUBERNETES_TOKEN_PROXY", emulator.authority_host)
    host.monkeypatch.setenv("AZURE_KUBERNETES_CA_FILE", str(emulator.ca_file))

    def make() -> Any:
        return identity.WorkloadIdentityCredential(
            tenant_id=emulator.tenant_id,
            client_id=emulator.application.client_id,
            token_file_path=str(emulator.federated_token_file),
            authority="https://login.invalid",
            disable_instance_discovery=True,
            enable_azure_proxy=True,
        )

    assert_token(host.fetch(CREDENTIAL=make)(), emulator.application.object_id)
