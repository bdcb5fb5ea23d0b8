"""Translation of a failed token request into a :exc:`TokenRequestError` with a code.

:mod:`~..diagnostics.advice` has the cause and the cure for each code.
"""

import json
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msal

# requests is a dependency of msal, which makes its HTTP requests with it.
import requests

from ..exceptions import TokenRequestError
from .entra_codes import code_of

#: All three match where an endpoint says that this machine has no such managed
#: identity: "no", "identity", "found". IMDS, App Service (Azure/azure-cli#20196),
#: Container Apps (Azure/data-api-builder#1939) and Service Fabric do so.
_MISSING = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(no|not|without|unable|cannot|failed)\b|n't\b|NotFound\b",
        r"identit(y|ies)|\bmsi\b",
        r"found\b|\b(assigned|associated|attached|configured|enabled|exists?|load(ed)?)\b",
    )
)
#: What they say where the machine has several identities, and none was named.
_SEVERAL = re.compile(r"\b(multiple|several|more than one)\b.*identit", re.IGNORECASE)
#: Statuses of a managed identity's endpoint that is not ready yet ("How to use managed
#: identities for Azure resources on an Azure VM to acquire an access token";
#: Azure/azure-sdk-for-net#28568).
NOT_YET = frozenset({404, 410})
#: Statuses of an endpoint that is overloaded, besides the 5xx.
_BUSY = frozenset({408, 429})
#: The variables for a file of trusted certificates, of which requests uses the first.
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_REFUSED = "managed_identity_refused"
#: The content of an answer that is not JSON.
_NOT_JSON: Any = object()
#: Characters of an answer's text that an error quotes at most.
_MAX_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """A token request that has failed, as far as it explains the failure.

    Parameters:
        timeout: REQUEST_TIMEOUT in seconds.
        managed: whether it went to a managed identity's endpoint.
        named: whether the settings name one of the machine's identities.
        variable: the environment variable with the endpoint's URL; ``None`` on a
            virtual machine, where the URL is fixed.
        not_yet: statuses of a managed identity's endpoint that is not ready yet.
    """

    timeout: float
    managed: bool = False
    named: bool = False
    variable: str | None = None
    not_yet: frozenset[int] = NOT_YET


def token_error(
    outcome: Any, response: requests.Response | None, request: RequestInfo
) -> TokenRequestError | None:
    """Return the error of a token request; ``None`` if there is a token.

    The class of an exception counts first, then the response's status, then whether
    its content is JSON, and its wording last.

    Parameters:
        outcome: what msal returned, or the exception that it raised.
        response: the last HTTP response, if there was one.
        request: what is known of the request.
    """
    if isinstance(outcome, Exception):
        failure = _explain_exception(outcome, response, request)
        if failure is not None:
            return failure
    elif isinstance(outcome, Mapping) and outcome.get("access_token"):
        return None
    if response is None:
        said = f"{type(outcome).__name__}: {outcome}"
        return TokenRequestError(f"The token request failed ({said}).")
    return _explain_response(outcome, response, request)


def _explain_exception(
    error: Exception, response: requests.Response | None, request: RequestInfo
) -> TokenRequestError | None:
    """Return the error for an exception; ``None`` if its class does not explain it."""
    if isinstance(error, TokenRequestError):
        return error
    if isinstance(error, requests.RequestException):
        return _explain_transport(error, request)
    if isinstance(error, RecursionError) and response is None:
        # gevent's patched ssl calls itself if urllib3 was imported before the patch.
        return TokenRequestError(
            "ssl calls itself without end: it was monkey-patched after urllib3 had "
            "been imported.",
            code="token_patched_late",
        )
    if isinstance(error, OSError) and not request.managed:
        return _unusable_bundle()
    if response is None:
        return None
    # msal reads one file: the key file that Azure Arc's challenge names.
    if isinstance(error, OSError) and error.filename:
        return _unreadable_key(f"'{error.filename}' can't be read: {error.strerror}")
    if isinstance(error, UnicodeDecodeError):
        return _unreadable_key("holds no text")
    return None


def _unreadable_key(what: str) -> TokenRequestError:
    return TokenRequestError(
        f"The key file that Azure Arc's agent asks for {what.rstrip('.')}. Its readers "
        "are the members of the group himds.",
        code="arc_key_unreadable",
    )


def _unusable_bundle() -> TokenRequestError | None:
    """Return the error of an unusable file of trusted certificates, else None."""
    variable = next((name for name in _BUNDLES if os.environ.get(name)), None)
    if variable is None:
        return None
    path = Path(os.environ[variable])
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            ssl.create_default_context(cafile=path)
    except OSError as error:
        why = error.strerror or "it holds no certificate in PEM form"
        if isinstance(error, ssl.SSLError):
            why = "it holds no certificate in PEM form"
        return TokenRequestError(
            f"${variable} names '{path}', which can't be used: {why}.",
            code="token_ca_bundle",
        )
    return None


def _explain_transport(
    error: requests.RequestException, request: RequestInfo
) -> TokenRequestError:
    unreachable, where = "token_unreachable", "the identity endpoint"
    if request.managed:
        unreachable = "managed_identity_unavailable"
        if request.variable is not None:
            unreachable = "managed_identity_not_up"
            where = f"the identity endpoint that ${request.variable} tells of"
    if isinstance(error, requests.exceptions.SSLError):
        bundle = None if request.managed else _unusable_bundle()
        text = f"the identity endpoint's certificate is not trusted: {error}"
        return bundle or TokenRequestError(text, code="token_endpoint_untrusted")
    if isinstance(error, requests.exceptions.ProxyError):
        text = f"the proxy to the identity endpoint failed: {error}"
        return TokenRequestError(text, code="token_proxy")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        text = f"{where} could not be reached within {request.timeout:g} s."
        return TokenRequestError(text, code=unreachable)
    if isinstance(error, requests.Timeout):
        text = (
            f"the identity endpoint did not answer within {request.timeout:g} s "
            "(REQUEST_TIMEOUT)."
        )
        return TokenRequestError(text, code="token_timeout")
    if isinstance(error, requests.exceptions.ContentDecodingError):
        text = f"the identity endpoint's answer can't be decoded: {error}"
        return TokenRequestError(text, code="token_bad_answer")
    if unreachable == "managed_identity_not_up":
        where += " is not up yet, or no longer: it"
    text = f"{where} could not be reached: {error}"
    return TokenRequestError(text, code=unreachable)


def _explain_response(
    outcome: Any, response: requests.Response, request: RequestInfo
) -> TokenRequestError:
    """Return the error for an answer without a usable token."""
    content = _content(response)
    status = _status(response, content)
    said = _words(response, content)
    answered = f"the identity endpoint answered HTTP {status}"
    text = f"{answered}: {said[:_MAX_SHOWN]}" if said else f"{answered}."
    transient = _BUSY | request.not_yet if request.managed else _BUSY
    if status >= 500 or status in transient:
        return TokenRequestError(text, code="token_endpoint_failing")
    if status < 400 and isinstance(outcome, Exception) and content is not _NOT_JSON:
        return _explain_unread(outcome, content, request)
    if isinstance(outcome, msal.ManagedIdentityError):
        challenge = response.headers.get("WWW-Authenticate", "")
        if status == 401 and challenge.lower().startswith("basic realm="):
            return _unreadable_key(f"can't be used: {outcome}")
        return TokenRequestError(f"{answered}: {outcome}", code=_REFUSED)
    words = said if request.managed else response.text
    code = _code_of(words, managed=request.managed)
    if content is _NOT_JSON and code in (_REFUSED, "token_failed"):
        kind = response.headers.get("Content-Type", "no content type")
        if request.managed and status == 403 and request.variable is None:
            # Docker Desktop's proxy answers 403 for addresses that it can't reach
            # (Azure/azure-sdk-for-python#31759).
            return TokenRequestError(text, code="managed_identity_unavailable")
        if not (request.managed and status >= 400 and said):
            text = f"{answered} with something that is not JSON ({kind})."
            code = "token_not_json"
        return TokenRequestError(text, code=code)
    if status < 400 and not (isinstance(content, Mapping) and "error" in content):
        what = "holds no access token"
        if not isinstance(content, Mapping):
            what = "is not what it should be"
        text = f"the identity endpoint's answer {what}."
        return TokenRequestError(text, code="token_bad_answer")
    if code == "managed_identity_unknown" and request.variable and not request.named:
        # A platform sets the variable only where there is an identity.
        code = "managed_identity_ambiguous"
    if said and not request.managed:
        text = said  # Entra's text has its own error number.
    return TokenRequestError(text, code=code)


def _explain_unread(
    error: Exception, content: Any, request: RequestInfo
) -> TokenRequestError:
    """Return the error for a successful answer that msal could not use."""
    if isinstance(error, msal.ManagedIdentityError) and request.named:
        # An old Azure Arc agent, which does not support user-assigned identities.
        return TokenRequestError(str(error), code="managed_identity_unknown")
    if isinstance(content, Mapping) and content.get("access_token"):
        for name in ("expires_on", "expires_in"):
            value = content.get(name)
            if value is not None and not re.fullmatch(r"-?\d+", str(value).strip()):
                return TokenRequestError(
                    "the token's expiry can't be read in the identity endpoint's "
                    f"answer: {name} is '{value}'.",
                    code="token_expiry_unreadable",
                )
    said = f"{type(error).__name__}: {error}"
    return TokenRequestError(f"The token request failed ({said}).")


def _content(response: requests.Response) -> Any:
    """Return the parsed JSON of a response, or ``_NOT_JSON``."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _status(response: requests.Response, content: Any) -> int:
    """Return the status, which some endpoints state in their JSON alone."""
    inner = str(_fields(content).get("statuscode"))
    if response.status_code < 400 and re.fullmatch("[1-5][0-9]{2}", inner):
        return int(inner)
    return response.status_code


def _fields(content: Any) -> Mapping[str, Any]:
    """Return the fields of a JSON object, in whose names some endpoints have capitals;
    none for anything else."""
    if not isinstance(content, Mapping):
        return {}
    return {str(name).lower(): value for name, value in content.items()}


def _words(response: requests.Response, content: Any) -> str:
    """Return the error text of a response, on one line."""
    if content is _NOT_JSON:
        kind = response.headers.get("Content-Type", "").lower()
        plain = not kind or kind.startswith("text/plain")
        said = response.text if plain else ""
    elif isinstance(content, Mapping):
        fields = _fields(content)
        error: Any = fields.get("error")
        message = fields.get("message") or fields.get("detail")
        if isinstance(error, Mapping):
            inner = _fields(error)
            error, message = inner.get("code"), inner.get("message")
        message = fields.get("error_description") or message
        said = ": ".join(str(part).strip() for part in (error, message) if part)
    else:
        said = content if isinstance(content, str) else ""
    # After the first line, Entra has trace and correlation IDs.
    lines = said.strip().splitlines()
    return lines[0].strip().rstrip(": ") if lines else ""


def _code_of(text: str, *, managed: bool) -> str:
    if "temporarily_unavailable" in text or "server_error" in text:
        return "token_endpoint_failing"
    code = code_of(text)
    if not managed:
        # OAuth's "invalid_client" counts only without a number, which is more precise.
        without_number = "token_wrong_secret" if "invalid_client" in text else None
        return code or without_number or "token_failed"
    # A managed identity's endpoint passes on the number of Entra's error.
    if code not in (None, "token_failed"):
        return code
    if "invalid_resource" in text:
        return "token_wrong_scope"
    if _SEVERAL.search(text):
        return "managed_identity_ambiguous"
    if all(pattern.search(text) for pattern in _MISSING):
        return "managed_identity_unknown"
    return _REFUSED
