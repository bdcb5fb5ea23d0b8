"""The endpoints of managed identity: IMDS on a VM, App Service's, Service Fabric's,
Azure Arc's."""

import asyncio
import hmac
import math
import secrets
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from emulator.clock import Clock
from emulator.directory import (
    RESOURCES,
    Directory,
    IssuedToken,
    ManagedIdentity,
)
from emulator.faults import Faults
from emulator.files import write_private
from emulator.journal import Journal, TokenRequest
from emulator.settings import Settings
from emulator.web import Answer, Request, Response

IMDS_PATH = "/metadata/identity/oauth2/token"
# Where tokens are repeated, the share of its life in which one is handed out again.
REPEATED = 0.8


class IdentityError(Exception):
    """A request that is refused."""

    def __init__(
        self,
        status: int,
        error: str,
        text: str,
        outcome: str,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(text)
        self.status = status
        self.error = error
        self.outcome = outcome
        self.headers = headers


class ManagedIdentities:
    """The identities of this machine, and the tokens that it holds for them."""

    def __init__(
        self,
        clock: Clock,
        directory: Directory,
        system_assigned: ManagedIdentity,
        user_assigned: ManagedIdentity,
        settings: Settings,
    ) -> None:
        self._clock = clock
        self._directory = directory
        self._system_assigned = system_assigned
        self._user_assigned = user_assigned
        self._settings = settings
        self._tokens: dict[tuple[str, str], IssuedToken] = {}

    def find(self, names: dict[str, str]) -> ManagedIdentity:
        """Return the identity that `names` (client_id, object_id, ...) stand for."""
        if not names:
            if not self._settings.system_assigned_enabled:
                raise IdentityError(
                    400,
                    "invalid_request",
                    "Multiple user assigned identities exist, please specify the "
                    "clientId / resourceId of the identity in the token request",
                    "identity_not_named",
                )
            return self._system_assigned
        identities = [self._user_assigned]
        if self._settings.system_assigned_enabled:
            identities.append(self._system_assigned)
        for identity in identities:
            if all(
                getattr(identity, name).lower() == value.lower()
                for name, value in names.items()
            ):
                return identity
        raise IdentityError(
            400, "invalid_request", "Identity not found", "identity_not_found"
        )

    def token(self, identity: ManagedIdentity, resource: str) -> IssuedToken:
        """Return a token, the one held already where tokens are repeated."""
        audience = RESOURCES.get(resource.rstrip("/"))
        if audience is None:
            raise IdentityError(
                400,
                "invalid_resource",
                f"AADSTS500011: The resource principal named {resource} was not found "
                f"in the tenant named {self._directory.tenant_id}. This can happen if "
                "the application has not been installed by the administrator of the "
                "tenant or consented to by any user in the tenant.",
                "AADSTS500011",
            )
        held = self._tokens.get((identity.object_id, audience))
        if self._settings.repeat_tokens and held is not None:
            left = held.expires_at - self._clock.wall()
            if left > (1 - REPEATED) * (held.expires_at - held.issued_at):
                return held
        token = self._directory.issue(
            identity.object_id,
            self._settings.token_lifetime,
            audience,
            {"xms_mirid": identity.resource_id},
        )
        self._tokens[identity.object_id, audience] = token
        return token


class Endpoint:
    """What all endpoints have in common.

    With a `secret`, each request has to bring it in the header `secret_header`;
    `no_secret` is the error, its text and the outcome where it does not.
    """

    name: ClassVar[str]
    path: ClassVar[str] = IMDS_PATH
    api_versions: ClassVar[tuple[str, ...]]
    # query parameter to attribute of ManagedIdentity
    names: ClassVar[dict[str, str]]
    secret_header: ClassVar[str] = ""
    no_secret: ClassVar[tuple[str, str, str]]

    def __init__(
        self,
        clock: Clock,
        identities: ManagedIdentities,
        faults: Faults,
        journal: Journal,
        secret: str | None = None,
    ) -> None:
        self._clock = clock
        self._identities = identities
        self._faults = faults
        self._journal = journal
        self._secret = secret

    def handle(self, request: Request) -> Answer:
        """Answer one request."""
        return self.answer_at_once(request)

    def answer_at_once(self, request: Request) -> Response:
        """Answer one request."""
        query = request.query
        details: dict[str, Any] = {
            "at": self._clock.monotonic(),
            "endpoint": self.name,
            "client_id": next((query[n] for n in self.names if n in query), None),
            "asked": query.get("resource"),
        }
        fault = self._faults.active(self.name)
        if fault is not None:
            self._journal.token_request(TokenRequest(outcome=fault.mode, **details))
            return fault.response(
                lambda status, text: self.refusal(
                    IdentityError(status, "invalid_request", text, fault.mode)
                )
            )
        if request.path != self.path:
            return Response(404, b"")
        try:
            self.check(request)
            identity = self._identities.find(
                {self.names[name]: query[name] for name in self.names if name in query}
            )
            token = self._identities.token(identity, query["resource"])
        except IdentityError as error:
            outcome = error.outcome
            self._journal.token_request(TokenRequest(outcome=outcome, **details))
            response = Response.json(error.status, self.refusal(error))
            return replace(response, headers=error.headers)
        self._journal.token_request(TokenRequest(outcome="ok", **details))
        remaining = token.expires_at - self._clock.wall()
        self._journal.event(
            f"token for {remaining:g} s issued to {identity.object_id} ({self.name})"
        )
        content = self.answer(token, remaining)
        content["client_id"] = identity.client_id
        content["resource"] = query["resource"]
        return Response.json(200, content)

    def check(self, request: Request) -> None:
        """Raise `IdentityError` unless the request is formed as it has to be."""
        if self._secret is not None:
            sent = request.headers.get(self.secret_header, "")
            if not hmac.compare_digest(sent.encode(), self._secret.encode()):
                raise IdentityError(401, *self.no_secret)
        if request.method != "GET":
            raise IdentityError(
                405, "method_not_allowed", "Method not allowed", "method"
            )
        if request.query.get("api-version") not in self.api_versions:
            raise IdentityError(
                400,
                "invalid_request",
                "Required query variable 'api-version' is missing or not supported",
                "api_version",
            )
        if not request.query.get("resource"):
            raise IdentityError(
                400,
                "invalid_request",
                "Required query variable 'resource' is missing",
                "resource_missing",
            )

    def refusal(self, error: IdentityError) -> dict[str, Any]:
        """Return an error's JSON."""
        raise NotImplementedError  # pragma: no cover

    def answer(self, token: IssuedToken, remaining: float) -> dict[str, Any]:
        """Return a token's JSON."""
        raise NotImplementedError  # pragma: no cover


def require_metadata(request: Request) -> None:
    """Raise `IdentityError` without the header that a forwarded request would lack."""
    if request.headers.get("metadata", "").lower() != "true":
        raise IdentityError(
            400,
            "invalid_request",
            "Required metadata header not specified",
            "metadata_header",
        )


class Imds(Endpoint):
    """The instance metadata service of a virtual machine."""

    name = "imds"
    api_versions = ("2018-02-01",)
    names: ClassVar[dict[str, str]] = {
        "client_id": "client_id",
        "object_id": "object_id",
        "msi_res_id": "resource_id",
        "mi_res_id": "resource_id",
    }

    def __init__(
        self,
        clock: Clock,
        identities: ManagedIdentities,
        faults: Faults,
        journal: Journal,
        settings: Settings,
    ) -> None:
        super().__init__(clock, identities, faults, journal)
        self._settings = settings
        self._served: deque[float] = deque()
        self._at_work = 0

    def handle(self, request: Request) -> Answer:
        """Answer one request, after the time that it takes."""
        response, latency = self.answer_at_once(request), self._settings.imds_latency
        if response.status == 429 or latency <= 0:
            return response
        self._at_work += 1
        loop = asyncio.get_running_loop()
        later: asyncio.Future[Response] = loop.create_future()

        def answer() -> None:
            self._at_work -= 1
            later.set_result(response)

        loop.call_later(latency, answer)
        return later

    def check(self, request: Request) -> None:
        """Refuse who comes when as many as the limits have come, then check the rest.

        There is a limit for a second, and one for what is answered at a time.
        """
        now, settings = self._clock.monotonic(), self._settings
        while self._served and self._served[0] <= now - 1.0:
            self._served.popleft()
        for limit, count in (
            (settings.imds_limit, len(self._served)),
            (settings.imds_at_a_time, self._at_work),
        ):
            if limit is not None and count >= limit:
                raise IdentityError(429, "invalid_request", "Too many requests", "429")
        self._served.append(now)
        require_metadata(request)
        super().check(request)

    def refusal(self, error: IdentityError) -> dict[str, Any]:
        """Return OAuth's form."""
        return {"error": error.error, "error_description": str(error)}

    def answer(self, token: IssuedToken, remaining: float) -> dict[str, Any]:
        """Return numbers as strings, as IMDS does."""
        return {
            "access_token": token.value,
            "expires_in": str(max(1, math.floor(remaining))),
            "expires_on": str(token.expires_on),
            "ext_expires_in": str(max(1, math.floor(remaining))),
            "not_before": str(math.floor(token.issued_at)),
            "token_type": "Bearer",
        }


class AppService(Endpoint):
    """The endpoint that App Service tells by IDENTITY_ENDPOINT."""

    name = "app_service"
    path = "/msi/token"
    api_versions = ("2019-08-01",)
    secret_header = "x-identity-header"
    no_secret = (
        "unauthorized",
        "The X-IDENTITY-HEADER is missing or not this instance's",
        "identity_header",
    )
    names: ClassVar[dict[str, str]] = {
        "client_id": "client_id",
        "principal_id": "object_id",
        "object_id": "object_id",
        "mi_res_id": "resource_id",
    }

    def refusal(self, error: IdentityError) -> dict[str, Any]:
        """Return App Service's form."""
        return {"statusCode": error.status, "message": str(error)}

    def answer(self, token: IssuedToken, remaining: float) -> dict[str, Any]:
        """Return the expiry alone; rounded down, so that nobody overstays."""
        return {
            "access_token": token.value,
            "expires_on": str(math.floor(token.expires_at)),
            "token_type": "Bearer",
        }


class ServiceFabric(Endpoint):
    """The endpoint of a node of Service Fabric, whose certificate is pinned.

    An application there has the one identity that its manifest gives it.
    """

    name = "service_fabric"
    api_versions = ("2019-07-01-preview",)
    names: ClassVar[dict[str, str]] = {}
    secret_header = "secret"
    no_secret = (
        "SecretHeaderNotFound",
        "Secret is not found in the request headers.",
        "secret_header",
    )

    def refusal(self, error: IdentityError) -> dict[str, Any]:
        """Return Service Fabric's form (microsoft/service-fabric#416)."""
        return {
            "error": {
                "correlationId": "emulated",
                "code": error.error,
                "message": str(error),
            }
        }

    def answer(self, token: IssuedToken, remaining: float) -> dict[str, Any]:
        """Return the expiry alone, as a number."""
        return {
            "token_type": "Bearer",
            "access_token": token.value,
            "expires_on": math.floor(token.expires_at),
        }


class AzureArc(Endpoint):
    """The endpoint of Azure Arc's agent, for those who can read a file of its own.

    It answers the first request with a challenge, the path of a key in `keys`. The
    files stay: a client that is slow has to find its own.
    """

    name = "azure_arc"
    # msal's, and azure-identity's.
    api_versions = ("2020-06-01", "2019-11-01")
    names: ClassVar[dict[str, str]] = {
        "client_id": "client_id",
        "object_id": "object_id",
        "msi_res_id": "resource_id",
    }

    def __init__(
        self,
        clock: Clock,
        identities: ManagedIdentities,
        faults: Faults,
        journal: Journal,
        keys: Path,
    ) -> None:
        super().__init__(clock, identities, faults, journal)
        self._keys = keys
        self._known: set[str] = set()

    def check(self, request: Request) -> None:
        """Check the rest, then the key."""
        require_metadata(request)
        super().check(request)
        sent = request.headers.get("authorization")
        if sent is None:
            raise self._challenge()
        if sent.removeprefix("Basic ") not in self._known:
            raise IdentityError(
                403, "forbidden", "The key is not one of this agent's", "arc_key"
            )

    def _challenge(self) -> IdentityError:
        key = secrets.token_urlsafe(32)
        path = self._keys / f"{secrets.token_hex(8)}.key"
        write_private(path, key.encode())
        self._known.add(key)
        return IdentityError(
            401,
            "unauthorized",
            "Read the key and send it in the header Authorization",
            "challenge",
            (("WWW-Authenticate", f"Basic realm={path}"),),
        )

    def refusal(self, error: IdentityError) -> dict[str, Any]:
        """Return OAuth's form, as IMDS does."""
        return {"error": error.error, "error_description": str(error)}

    def answer(self, token: IssuedToken, remaining: float) -> dict[str, Any]:
        """Return both expiries, as numbers in text."""
        return {
            "access_token": token.value,
            "expires_in": str(max(1, math.floor(remaining))),
            "expires_on": str(token.expires_on),
            "token_type": "Bearer",
        }
