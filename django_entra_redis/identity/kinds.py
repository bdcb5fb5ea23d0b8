"""The kinds of identity, each of which requests tokens in its own way.

msal makes the requests, except for ``CREDENTIAL``. This module is imported at the first
request, since msal costs as much start-up time as redis-py.
"""

import codecs
import inspect
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msal
from django.utils.module_loading import import_string

from .._fork import no_fork
from ..conf.identities import Identity, is_identity_binding
from ..conf.keys import REDIS_SCOPE
from ..exceptions import TokenRequestError
from . import service_fabric
from .answers import read_token
from .certificates import read_certificate
from .errors import RequestInfo, check_bundle, token_error
from .http import MAX_BYTES, BoundedSession
from .platforms import AZURE_ARC, SERVICE_FABRIC, Platform, find_platform
from .redaction import redact
from .token import SYSTEM_CLOCK, Clock, Fetch, Token, receive_token, text_of

Answer = Mapping[str, Any]

#: Failures in a row after which a credential, or msal's client, is made anew: it may
#: keep a connection that is closed, the content of a file that has been rotated, or
#: what the authority said of its own endpoints at the beginning.
_PATIENCE = 3


def make_fetch(identity: Identity, clock: Clock = SYSTEM_CLOCK) -> Fetch:
    """Return the function that requests a token for an identity.

    Parameters:
        identity: its settings.
        clock: the clocks for the token's expiry.
    """
    request = _KINDS[identity.kind](identity)

    def fetch() -> Token:
        answer = request()
        try:
            return receive_token(
                answer.get("access_token"),
                clock=clock,
                expires_in=answer.get("expires_in"),
                expires_on=answer.get("expires_on"),
                username=identity.username,
                answered_at=answer.get("answered_at"),
                giver=request.giver,
            )
        except TokenRequestError as error:
            text, code = request.redact(str(error)), error.code
        raise TokenRequestError(text, code=code)

    return fetch


class _NoTokenCache(msal.TokenCache):  # type: ignore[misc]  # msal has no types
    """A cache without tokens: msal would answer a renewal with the old token."""

    def add(self, event: Any, now: Any = None) -> None:
        """Do nothing with a token."""

    def search(self, *args: Any, **kwargs: Any) -> Any:
        """Find nothing."""
        return iter(())


#: Seconds to wait after a failure without Retry-After: after too many requests Entra
#: refuses further ones for some minutes, and longer if they go on.
_PAUSES: Mapping[str, float] = {"token_request_loop": 60.0}


#: The codes of an assertion that Entra does not accept.
_REJECTED = ("token_assertion_rejected", "token_federation_blocked")


class _MsalIdentity(ABC):
    """Base of the kinds that msal requests tokens for."""

    #: Whether it is a managed identity, whose endpoint is on this machine: requests to
    #: it must not go through a proxy.
    managed = False
    #: Who gives the token, as errors call it.
    giver = "The identity endpoint"

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.session = BoundedSession(
            identity.request_timeout, trust_env=not self.managed, local=self.managed
        )
        # msal caches error answers in it, which would also be the answers to retries.
        self.http_cache: dict[str, Any] = {}
        #: The last token.
        self.last_token: str | None = None
        #: Failures in a row; a request counts as one until it has succeeded.
        self.failures = 0

    def __call__(self) -> Answer:
        """Request a token; return the endpoint's answer.

        Raises:
            TokenRequestError: there is no token; without cause and context, whose
                frames hold secrets.
        """
        self.session.begin()
        self.http_cache.clear()
        answer: Answer = {}
        try:
            answer = self.acquire()
            failure = token_error(answer, self.session.answer, self.request_info())
        except Exception as error:
            # msal words errors of its discovery anew.
            origin = self.session.failure or error
            failure = token_error(origin, self.session.answer, self.request_info())
        finally:
            self.session.end()
        if failure is None:
            self.last_token = str(answer.get("access_token"))
            self.failures = 0
            return {**answer, "answered_at": self.session.answered_at()}
        raise TokenRequestError(
            self.redact(str(failure)),
            code=self.specific_code(failure.code),
            retry_after=self.session.retry_after() or _PAUSES.get(failure.code),
        )

    def redact(self, text: str) -> str:
        """Return a text without the secrets that the endpoint might quote."""
        return redact(text, [*self.secrets(), self.last_token, *self.session.secrets])

    def request_info(self) -> RequestInfo:
        """Return the request's description, to explain its failure."""
        return RequestInfo(timeout=self.identity.request_timeout)

    @abstractmethod
    def acquire(self) -> Answer:
        """Have msal request a token; return its answer."""

    def specific_code(self, code: str) -> str:
        """Return a more specific code for a failure, if this identity has one."""
        if code == "token_wrong_scope" and self.identity.scope == REDIS_SCOPE:
            return "token_resource_missing"
        return code

    def secrets(self) -> Iterable[str | None]:
        """Return the secrets that an endpoint's error might quote."""
        identity = self.identity
        return identity.client_secret, identity.client_certificate_password


class _ManagedIdentity(_MsalIdentity):
    """A managed identity, on a virtual machine, App Service or another platform."""

    managed = True

    def __init__(self, identity: Identity) -> None:
        super().__init__(identity)
        self.resource = identity.scope.removesuffix("/.default")
        chosen = {
            "client_id": identity.client_id,
            "object_id": identity.object_id,
            "resource_id": identity.resource_id,
        }
        self.named = any(chosen.values())
        self.client = msal.ManagedIdentityClient(
            msal.UserAssignedManagedIdentity(**chosen)
            if self.named
            else msal.SystemAssignedManagedIdentity(),
            http_client=self.session,
            token_cache=_NoTokenCache(),
            http_cache=self.http_cache,
        )

    def secrets(self) -> Iterable[str | None]:
        # Platforms set these secrets, which requests to their endpoints contain.
        return map(os.environ.get, ("IDENTITY_HEADER", "MSI_SECRET"))

    def request_info(self) -> RequestInfo:
        platform = find_platform()
        return RequestInfo(
            timeout=self.identity.request_timeout,
            platform=platform,
            # Service Fabric's own settings name the identity.
            named=self.named or platform is SERVICE_FABRIC,
        )

    def acquire(self) -> Answer:
        platform = find_platform()
        if platform is SERVICE_FABRIC:
            if self.named:
                raise TokenRequestError(
                    "Service Fabric's own settings say which managed identity an "
                    "application has: remove CLIENT_ID, OBJECT_ID, RESOURCE_ID and "
                    "$AZURE_CLIENT_ID.",
                    code="managed_identity_unknown",
                )
            return service_fabric.request_token(self.session, self.resource)
        answer: Answer = {}
        try:
            answer = self.client.acquire_token_for_client(resource=self.resource)
        except (KeyError, OverflowError, TypeError, ValueError):
            # msal expects certain fields of a token's answer.
            if not self._read(platform):
                raise
        return self._read(platform) or answer

    def _read(self, platform: Platform) -> Answer:
        """Return the token in an answer, as it stands there; empty if there is none.

        msal leaves out an expiry, computes another one by this machine's clock, or
        takes ``true`` for a second.

        Raises:
            TokenRequestError: its expiry can't be read.
        """
        if self.named and platform is AZURE_ARC:
            # msal compares the identity's name with the one that was asked for.
            return {}
        return read_token(self.session.answer)


class _Application(_MsalIdentity):
    """An application: a service principal, or a federated workload."""

    def __init__(self, identity: Identity) -> None:
        super().__init__(identity)
        self._client: Any = None
        self._certificate = b""

    def acquire(self) -> Answer:
        check_bundle()
        path = self.identity.client_certificate
        if path is not None:
            content = _read(path, "CLIENT_CERTIFICATE")
            if content != self._certificate:
                self._client = None
            self._certificate = content
        self.failures += 1
        if self.failures > _PATIENCE:
            self._client, self.failures = None, 0
        if self._client is None:
            self._client = self._build(self._certificate)
        answer: Any = self._client.acquire_token_for_client([self.identity.scope])
        if not _fits_header(answer):
            self._client = None
        return answer  # type: ignore[no-any-return]  # msal has no types

    def specific_code(self, code: str) -> str:
        if code == "token_certificate_not_registered":
            code = self._unregistered()
        if code in _REJECTED and is_identity_binding(self.identity, os.environ):
            return "token_identity_binding"
        return super().specific_code(code)

    def _unregistered(self) -> str:
        """Return the code for a proof that is not one of the application's.

        Entra has one number for all proofs, and tells them apart by its words alone.
        """
        identity = self.identity
        if identity.token_file is not None:
            return "token_assertion_rejected"
        if identity.client_certificate is None:
            return "token_wrong_secret"
        password = identity.client_certificate_password
        if read_certificate(self._certificate, password).has_expired():
            return "token_certificate_expired"
        return "token_certificate_not_registered"

    def _build(self, certificate: bytes) -> Any:
        identity = self.identity
        if identity.token_file is not None:
            # msal calls it at each request, since the file is rotated.
            proof: Any = {"client_assertion": self._assertion}
        elif identity.client_certificate is not None:
            proof = _certificate_credential(identity, certificate)
        else:
            proof = identity.client_secret
        return msal.ConfidentialClientApplication(
            identity.client_id,
            client_credential=proof,
            authority=f"https://{identity.authority_host}/{identity.tenant_id}",
            instance_discovery=None if identity.instance_discovery else False,
            http_client=self.session,
            token_cache=_NoTokenCache(),
            http_cache=self.http_cache,
        )

    def _assertion(self) -> str:
        path = self.identity.token_file
        assert path is not None
        content = _read(path, "TOKEN_FILE").removeprefix(codecs.BOM_UTF8).strip()
        if re.fullmatch(rb"[!-~]+", content):
            return content.decode()
        what = "holds something that is not a token" if content else "is empty"
        raise TokenRequestError(
            f"TOKEN_FILE '{path}' {what}.", code="token_file_unusable"
        )


class _Credential:
    """A user's object with ``get_token(*scopes)``, such as one of azure-identity."""

    giver = "CREDENTIAL"
    redact = staticmethod(redact)

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._credential: Any = None
        self._failures = 0

    def __call__(self) -> Answer:
        """Request a token from it.

        Raises:
            TokenRequestError: it returned none; the text has the reason.
        """
        self._failures += 1
        try:
            if self._credential is None or self._failures > _PATIENCE:
                self._credential, self._failures = None, 0
                self._credential = _resolve(self.identity.credential)
            token = _ask(self._credential, self.identity.scope)
            expires_on = getattr(token, "expires_on", None)
            answer = {"access_token": token.token, "expires_on": expires_on}
            self._failures = 0
            return answer
        except TokenRequestError as error:
            code, failure = error.code, text_of(error)
        except ImportError as error:
            code, failure = "credential_import", f"can't be imported: {text_of(error)}."
            if (error.name or "").partition(".")[0] == "azure":
                code = "azure_identity_missing"
                failure += " Install the extra: django-entra-redis[azure-identity]."
        except Exception as error:
            code, failure = (
                "credential_raised",
                f"raised {type(error).__name__}: {text_of(error)}",
            )
        raise TokenRequestError(f"CREDENTIAL {redact(failure)}", code=code)


_KINDS: Mapping[str, Callable[[Identity], _MsalIdentity | _Credential]] = {
    "managed_identity": _ManagedIdentity,
    "service_principal": _Application,
    "workload_identity": _Application,
    "credential": _Credential,
}


def _fits_header(answer: Any) -> bool:
    """Whether an answer's word for an error, if it has one, can stand in a header.

    msal sends it with each later request, and trips over what is no such word.
    """
    error = answer.get("error", "") if isinstance(answer, Mapping) else ""
    return isinstance(error, str) and error.isascii() and error.isprintable()


def _ask(credential: Any, scope: str) -> Any:
    """Return a credential's token.

    Raises:
        TokenRequestError: the credential is asynchronous.
    """
    return _not_awaitable(credential.get_token(scope))


def _not_awaitable(value: Any) -> Any:
    """Return what a credential or its maker has returned.

    Raises:
        TokenRequestError: it is to be awaited.
    """
    if inspect.iscoroutine(value):
        value.close()  # Otherwise Python warns that nobody has awaited it.
    if not inspect.isawaitable(value):
        return value
    raise TokenRequestError(
        "is asynchronous: take the class of the same name from azure.identity, not "
        "azure.identity.aio.",
        code="credential_asynchronous",
    )


def _resolve(credential: Any) -> Any:
    if isinstance(credential, str):
        with no_fork():
            credential = import_string(credential)
    if isinstance(credential, type) or not hasattr(credential, "get_token"):
        credential = _not_awaitable(credential())
    return credential


def _certificate_credential(identity: Identity, content: bytes) -> dict[str, Any]:
    """Return the client certificate in the form in which msal takes it.

    Raises:
        TokenRequestError: the file can't be used.
    """
    try:
        certificate = read_certificate(content, identity.client_certificate_password)
        return certificate.for_msal(send_chain=identity.send_certificate_chain)
    except ValueError as error:
        failure = (
            f"CLIENT_CERTIFICATE '{identity.client_certificate}' can't be used: "
            f"{error}. It should be a PEM file with the private RSA key and its "
            "certificate, or a PFX file, and CLIENT_CERTIFICATE_PASSWORD its password "
            "if it has one."
        )
    raise TokenRequestError(failure, code="certificate_unusable")


def _read(path: Path, key: str) -> bytes:
    """Return the content of a file that a setting names.

    Raises:
        TokenRequestError: it can't be read. A pipe is not even opened, which would
            wait for a writer; nor is a device read, which may have no end.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode) or path.is_dir():
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) <= MAX_BYTES:
                return content
            why = f"it has more than {MAX_BYTES} bytes"
        else:
            why = "it is not a regular file"
    except (OSError, ValueError) as error:
        # A path with a null byte is a ValueError.
        why = getattr(error, "strerror", None) or str(error)
    failure = f"{key} '{path}' can't be read: {why}."
    code = "token_file_unreadable" if key == "TOKEN_FILE" else "certificate_unreadable"
    raise TokenRequestError(failure, code=code)
