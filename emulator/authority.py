"""The authority: Entra's token endpoint for applications, and its discovery."""

import base64
import hmac
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives import hashes, serialization

from emulator.certificates import ClientCertificate, cached_rsa_key
from emulator.clock import Clock
from emulator.directory import (
    EXCHANGE_AUDIENCE,
    ISSUER_KEY_ID,
    RESOURCES,
    SIGNING_KEY_ID,
    Directory,
    IssuedToken,
)
from emulator.faults import Faults
from emulator.journal import Journal, TokenRequest
from emulator.settings import Settings
from emulator.web import Request, Response

# Entra puts up with clocks that are this far apart.
_SKEW = 300.0
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_TOKEN_PATH = re.compile(r"/([^/]+)/oauth2/v2\.0/token")
_DISCOVERY_PATH = re.compile(r"/([^/]+)/v2\.0/\.well-known/openid-configuration")
_KEYS_PATH = re.compile(r"/([^/]+)/discovery/v2\.0/keys")
_ISSUER_PATH = "/federation"
SUBJECT = "system:serviceaccount:default:demo"


class EntraError(Exception):
    """A request that Entra refuses."""

    def __init__(self, status: int, error: str, code: int, text: str) -> None:
        super().__init__(f"AADSTS{code}: {text}")
        self.status = status
        self.error = error
        self.code = code


@dataclass(frozen=True, repr=False)
class Credentials:
    """What the application can prove itself with."""

    client_id: str
    object_id: str
    secret: str
    expired_secret: str


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class Authority:
    """Answers what Entra answers under `login.microsoftonline.com`."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        directory: Directory,
        credentials: Credentials,
        certificate: ClientCertificate,
        faults: Faults,
        journal: Journal,
        settings: Settings,
    ) -> None:
        self.url = url
        self.certificate = certificate
        self._clock = clock
        self._directory = directory
        self._credentials = credentials
        self._faults = faults
        self._journal = journal
        self._settings = settings

    @property
    def federation_issuer(self) -> str:
        """The OIDC issuer whose assertions are a credential of the application."""
        return self.url + _ISSUER_PATH

    def federated_token(self, lifetime: float) -> str:
        """Return an assertion as a Kubernetes cluster or GitHub would give."""
        now = self._clock.wall()
        return jwt.encode(
            {
                "iss": self.federation_issuer,
                "sub": SUBJECT,
                "aud": EXCHANGE_AUDIENCE,
                "iat": int(now),
                "nbf": int(now),
                "exp": now + lifetime,
                "jti": str(uuid.uuid4()),
            },
            cached_rsa_key("federation"),
            "RS256",
            headers={"kid": ISSUER_KEY_ID},
        )

    def handle(self, request: Request) -> Response:
        """Answer one request."""
        token_path = _TOKEN_PATH.fullmatch(request.path)
        if token_path is not None:
            return self._token(request, token_path[1])
        fault = self._faults.active("discovery")
        if fault is not None:
            return fault.response()
        discovery_path = _DISCOVERY_PATH.fullmatch(request.path)
        keys_path = _KEYS_PATH.fullmatch(request.path)
        try:
            if discovery_path is not None:
                self._check_tenant(discovery_path[1])
                return Response.json(200, self._configuration())
            if keys_path is not None:
                key = self._directory.signing_key.public_key()
                return Response.json(200, _key_set(key, SIGNING_KEY_ID))
            if request.path == "/common/discovery/instance":
                return self._instance(request)
            if request.path == f"{_ISSUER_PATH}/.well-known/openid-configuration":
                return Response.json(200, self._federation_configuration())
            if request.path == f"{_ISSUER_PATH}/keys":
                key = cached_rsa_key("federation").public_key()
                return Response.json(200, _key_set(key, ISSUER_KEY_ID))
        except EntraError as error:
            return self._refusal(request, error)
        return Response(404, b"")

    def _check_tenant(self, tenant: str) -> None:
        if tenant.lower() != self._directory.tenant_id:
            raise EntraError(
                400,
                "invalid_request",
                90002,
                f"Tenant '{tenant}' not found. Check to make sure you have the correct "
                "tenant ID and are signing into the correct cloud. Check with your "
                "subscription administrator, this may happen if there are no active "
                "subscriptions for the tenant.",
            )

    def _configuration(self) -> dict[str, Any]:
        base = f"{self.url}/{self._directory.tenant_id}"
        return {
            "issuer": self._directory.issuer,
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
            "jwks_uri": f"{base}/discovery/v2.0/keys",
            "token_endpoint_auth_methods_supported": [
                "client_secret_post",
                "private_key_jwt",
            ],
            "response_types_supported": ["code", "id_token", "token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def _federation_configuration(self) -> dict[str, Any]:
        return {
            "issuer": self.federation_issuer,
            "jwks_uri": f"{self.federation_issuer}/keys",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def _instance(self, request: Request) -> Response:
        host = urlsplit(self.url).netloc
        asked = urlsplit(request.query.get("authorization_endpoint", ""))
        if asked.netloc != host:
            return Response.json(
                400,
                {
                    "error": "invalid_instance",
                    "error_description": "AADSTS50049: Unknown or invalid instance.",
                    "error_codes": [50049],
                },
            )
        tenant = asked.path.strip("/").split("/")[0]
        return Response.json(
            200,
            {
                "tenant_discovery_endpoint": f"{self.url}/{tenant}/v2.0/"
                ".well-known/openid-configuration",
                "api-version": "1.1",
                "metadata": [
                    {
                        "preferred_network": host,
                        "preferred_cache": host,
                        "aliases": [host],
                    }
                ],
            },
        )

    def _token(self, request: Request, tenant: str) -> Response:
        form = request.form
        details: dict[str, Any] = {
            "at": self._clock.monotonic(),
            "endpoint": "token",
            "client_id": form.get("client_id"),
            "asked": form.get("scope"),
            "correlation_id": request.headers.get("client-request-id"),
            **_assertion_details(form),
        }
        fault = self._faults.active("token")
        if fault is not None:
            self._journal.token_request(TokenRequest(outcome=fault.mode, **details))
            return fault.response()
        try:
            if request.method != "POST":
                raise EntraError(
                    400,
                    "invalid_request",
                    900561,
                    "The endpoint only accepts POST requests. "
                    f"Received a {request.method} request.",
                )
            token = self._grant(tenant, form)
        except EntraError as error:
            outcome = f"AADSTS{error.code}"
            self._journal.token_request(TokenRequest(outcome=outcome, **details))
            return self._refusal(request, error)
        self._journal.token_request(TokenRequest(outcome="ok", **details))
        self._journal.event(
            f"token for {token.lifetime:g} s issued to {token.object_id} "
            f"({details['assertion']})"
        )
        seconds = max(1, int(token.lifetime))
        return Response.json(
            200,
            {
                "token_type": "Bearer",
                "expires_in": seconds,
                "ext_expires_in": seconds,
                "access_token": token.value,
            },
        )

    def _grant(self, tenant: str, form: dict[str, str]) -> IssuedToken:
        self._check_tenant(tenant)
        for name in ("grant_type", "client_id", "scope"):
            if not form.get(name):
                raise EntraError(
                    400,
                    "invalid_request",
                    900144,
                    f"The request body must contain the following parameter: '{name}'.",
                )
        if form["grant_type"] != "client_credentials":
            raise EntraError(
                400,
                "unsupported_grant_type",
                70003,
                f"The app requested an unsupported grant type '{form['grant_type']}'.",
            )
        client_id = form["client_id"]
        if client_id.lower() != self._credentials.client_id:
            raise EntraError(
                400,
                "unauthorized_client",
                700016,
                f"Application with identifier '{client_id}' was not found in the "
                f"directory '{tenant}'. This can happen if the application has not "
                "been installed by the administrator of the tenant or consented to by "
                "any user in the tenant. You may have sent your authentication request "
                "to the wrong tenant.",
            )
        if "client_assertion" in form:
            self._check_assertion(form)
        elif "client_secret" in form:
            self._check_secret(form["client_secret"])
        else:
            raise EntraError(
                401,
                "invalid_client",
                7000216,
                "'client_assertion', 'client_secret' or 'request' is required for the "
                "'client_credentials' grant type.",
            )
        audience = self._audience(form["scope"])
        return self._directory.issue(
            self._credentials.object_id, self._settings.token_lifetime, audience
        )

    def _audience(self, scope: str) -> str:
        resource, slash, suffix = scope.strip().rpartition("/")
        if not slash or suffix != ".default":
            raise EntraError(
                400,
                "invalid_scope",
                1002012,
                f"The provided value for scope {scope} is not valid. Client credential "
                "flows must have a scope value with /.default suffixed to the resource "
                "identifier (application ID URI).",
            )
        audience = RESOURCES.get(resource.rstrip("/"))
        if audience is None:
            raise EntraError(
                400,
                "invalid_resource",
                500011,
                f"The resource principal named {resource} was not found in the tenant "
                f"named {self._directory.tenant_id}. This can happen if the "
                "application has not been installed by the administrator of the tenant "
                "or consented to by any user in the tenant. You might have sent your "
                "authentication request to the wrong tenant.",
            )
        return audience

    def _check_secret(self, secret: str) -> None:
        client_id = self._credentials.client_id
        if hmac.compare_digest(
            secret.encode(), self._credentials.expired_secret.encode()
        ):
            raise EntraError(
                401,
                "invalid_client",
                7000222,
                f"The provided client secret keys for app '{client_id}' are expired. "
                "Visit the Azure portal to create new keys for your app: "
                "https://aka.ms/NewClientSecret, or consider using certificate "
                "credentials for added security: https://aka.ms/certCreds.",
            )
        if not hmac.compare_digest(secret.encode(), self._credentials.secret.encode()):
            raise EntraError(
                401,
                "invalid_client",
                7000215,
                "Invalid client secret provided. Ensure the secret being sent in the "
                "request is the client secret value, not the client secret ID, for a "
                f"secret added to app '{client_id}'.",
            )

    def _check_assertion(self, form: dict[str, str]) -> None:
        assertion = form["client_assertion"]
        if form.get("client_assertion_type") != _ASSERTION_TYPE:
            raise EntraError(
                400,
                "invalid_request",
                900144,
                "The request body must contain the following parameter: "
                "'client_assertion_type'.",
            )
        unverified = _unverified(assertion)
        if unverified is None:
            raise EntraError(
                401, "invalid_client", 50027, "JWT token is invalid or malformed."
            )
        header, claims = unverified
        if claims.get("iss") == self._credentials.client_id:
            self._check_certificate_assertion(assertion, header)
        else:
            self._check_federated_assertion(assertion, claims)

    def _check_certificate_assertion(
        self, assertion: str, header: dict[str, Any]
    ) -> None:
        certificate = self.certificate
        expected = {
            "x5t": certificate.thumbprint(hashes.SHA1()),
            "x5t#S256": certificate.thumbprint(hashes.SHA256()),
        }
        sent = {name: header[name] for name in expected if name in header}
        encoded = base64.b64encode(
            certificate.certificate.public_bytes(serialization.Encoding.DER)
        ).decode()
        chain = header.get("x5c", [encoded])
        # msal leaves the line breaks of PEM in, and Entra does not mind.
        first = (
            "".join(str(chain[0]).split())
            if chain and isinstance(chain, list)
            else None
        )
        if (
            not sent
            or any(
                str(value).rstrip("=") != _base64url(expected[name])
                for name, value in sent.items()
            )
            or first != encoded
        ):
            thumbprint = certificate_thumbprint(sent)
            raise EntraError(
                401,
                "invalid_client",
                700027,
                "The certificate with identifier used to sign the client assertion is "
                "not registered on application. [Reason - The key was not found., "
                f"Thumbprint of key used by client: '{thumbprint}']",
            )
        valid = certificate.certificate.not_valid_after_utc
        if valid.timestamp() < self._clock.wall():
            raise EntraError(
                401,
                "invalid_client",
                700027,
                "Client assertion contains an invalid signature. [Reason - The key "
                "used is expired., Thumbprint of key used by client: "
                f"'{certificate_thumbprint(sent)}', Found key 'End={valid:%m/%d/%Y}']",
            )
        public_key = serialization.load_pem_public_key(
            certificate.certificate.public_key().public_bytes(
                serialization.Encoding.PEM,
                serialization.PublicFormat.SubjectPublicKeyInfo,
            )
        )
        claims = self._verified(
            assertion,
            public_key,
            EntraError(
                401,
                "invalid_client",
                700027,
                "Client assertion failed signature validation. [Reason - The provided "
                "signature value did not match the expected signature value.]",
            ),
        )
        if claims.get("sub") != self._credentials.client_id:
            raise EntraError(
                401,
                "invalid_client",
                700021,
                "Client assertion application identifier doesn't match 'client_id' "
                "parameter.",
            )
        audience = f"{self.url}/{self._directory.tenant_id}/oauth2/v2.0/token"
        if claims.get("aud") != audience:
            raise EntraError(
                401,
                "invalid_client",
                700023,
                "Client assertion audience claim does not match Realm issuer. Review "
                "the documentation at https://learn.microsoft.com/entra/"
                "identity-platform/certificate-credentials .",
            )
        self._check_times(claims)

    def _check_federated_assertion(
        self, assertion: str, unverified: dict[str, Any]
    ) -> None:
        for code, claim, word, expected in (
            (700211, "iss", "issuer", self.federation_issuer),
            (700213, "sub", "subject", SUBJECT),
            (700212, "aud", "audience", EXCHANGE_AUDIENCE),
        ):
            value = unverified.get(claim)
            if value not in (expected, [expected]):
                raise EntraError(
                    401,
                    "invalid_client",
                    code,
                    "No matching federated identity record found for presented "
                    f"assertion {word} '{value}'. Check your federated identity "
                    "credential Subject, Audience and Issuer against the presented "
                    "assertion.",
                )
        claims = self._verified(
            assertion,
            cached_rsa_key("federation").public_key(),
            EntraError(
                401,
                "invalid_client",
                700213,
                "No matching federated identity record found for presented assertion: "
                "its signature is not one of the issuer's.",
            ),
        )
        self._check_times(claims)

    def _verified(
        self, assertion: str, public_key: Any, refusal: EntraError
    ) -> dict[str, Any]:
        try:
            return jwt.decode(
                assertion,
                public_key,
                ["RS256", "PS256"],
                # Times are compared by this emulator's clock; the rest by the caller,
                # since each has an error code of its own.
                options={
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                },
            )
        except jwt.InvalidTokenError:
            raise refusal from None

    def _check_times(self, claims: dict[str, Any]) -> None:
        now = self._clock.wall()
        expires, begins = claims.get("exp"), claims.get("nbf", 0)
        # Entra's tolerance covers clocks that are apart, not assertions that are old;
        # with none for `exp` a test need not wait five minutes for its expiry.
        if (
            not isinstance(expires, int | float)
            or expires <= now
            or (not isinstance(begins, int | float) or begins > now + _SKEW)
        ):
            raise EntraError(
                401,
                "invalid_client",
                700024,
                "Client assertion is not within its valid time range. "
                f"Current time: {_timestamp(now)}, "
                f"expiry time of assertion: {expires}.",
            )

    def _refusal(self, request: Request, error: EntraError) -> Response:
        timestamp = _timestamp(self._clock.wall())
        trace_id = str(uuid.uuid4())
        correlation_id = request.headers.get("client-request-id") or str(uuid.uuid4())
        return Response.json(
            error.status,
            {
                "error": error.error,
                "error_description": f"{error} Trace ID: {trace_id} Correlation ID: "
                f"{correlation_id} Timestamp: {timestamp}",
                "error_codes": [error.code],
                "timestamp": timestamp,
                "trace_id": trace_id,
                "correlation_id": correlation_id,
                "error_uri": f"{self.url}/error?code={error.code}",
            },
        )


def certificate_thumbprint(sent: dict[str, str]) -> str:
    """Return the thumbprint of an assertion's header in hex, as Entra shows it."""
    for name in ("x5t", "x5t#S256"):
        if name in sent:
            try:
                return base64.urlsafe_b64decode(str(sent[name]) + "==").hex().upper()
            except ValueError:
                return ""
    return ""


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def _unverified(assertion: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    try:
        decoded = jwt.api_jwt.decode_complete(
            assertion, options={"verify_signature": False}
        )
    except jwt.InvalidTokenError:
        return None
    return decoded["header"], decoded["payload"]


def _assertion_details(form: dict[str, str]) -> dict[str, Any]:
    if "client_secret" in form:
        return {"assertion": "secret"}
    unverified = _unverified(form.get("client_assertion", ""))
    if unverified is None:
        return {}
    header, claims = unverified
    own = claims.get("iss") == form.get("client_id")
    return {"assertion": "certificate" if own else "federated", "x5c": "x5c" in header}


def _key_set(key: Any, key_id: str) -> dict[str, Any]:
    numbers = key.public_numbers()
    return {
        "keys": [
            {
                "kty": "RSA",
                "use": "sig",
                "alg": "RS256",
                "kid": key_id,
                "n": _number(numbers.n),
                "e": _number(numbers.e),
            }
        ]
    }
