"""Foreign errors of a token request, translated to one error of our own with a code.

Each failure gets a code, by which :mod:`.advice` knows its cause and cure.
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

# requests comes with msal, which makes its requests with it.
import requests

from ..exceptions import TokenRequestError
from .entra_codes import code_of

#: What endpoints say of a managed identity that is not this machine's: a denial, of an
#: identity, that it is there. So do IMDS, App Service (Azure/azure-cli#20196),
#: Container Apps (Azure/data-api-builder#1939) and Service Fabric.
_MISSING = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(no|not|without|unable|cannot|failed)\b|n't\b|NotFound\b",
        r"identit(y|ies)|\bmsi\b",
        r"found\b|\bassigned\b|\bload(ed)?\b|\bexists?\b|\benabled\b",
    )
)
#: What they say where a name would tell which of several it is.
_SEVERAL = re.compile(r"\b(multiple|several|more than one)\b.*identit", re.IGNORECASE)
#: Statuses of a managed identity's endpoint that is not ready yet ("How to use managed
#: identities for Azure resources on an Azure VM to acquire an access token";
#: Azure/azure-sdk-for-net#28568).
NOT_YET = frozenset({404, 410})
#: Statuses by which any endpoint says that it has no time, beside the 5xx.
_BUSY = frozenset({408, 429})
#: Where requests looks for the certificates to trust, the first that is set.
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_REFUSED = "managed_identity_refused"
#: Stands for what is not JSON.
_NO_JSON: Any = object()
#: Characters of an answer's text that are told.
_TOLD = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is known of a token request that has failed.

    Parameters:
        timeout: REQUEST_TIMEOUT in seconds.
        managed: whether a managed identity's endpoint was asked.
        named: whether the settings name one of the machine's identities.
        variable: the environment variable that tells of the endpoint; ``None`` for a
            virtual machine's, which needs none.
        not_yet: statuses of a managed identity's endpoint that is not ready yet.
    """

    timeout: float
    managed: bool = False
    named: bool = False
    variable: str | None = None
    not_yet: frozenset[int] = NOT_YET


def token_error(
    outcome: Any, response: requests.Response | None, asked: Asked
) -> TokenRequestError | None:
    """Return the failure that a token request came to; ``None`` if there is a token.

    An exception's origin decides first, then the response's status, then whether it is
    JSON, and its words last.

    Parameters:
        outcome: what msal returned, or the exception that it raised.
        response: the last HTTP response, if there was one.
        asked: who was asked, and how.
    """
    if isinstance(outcome, Exception):
        failure = _explain_exception(outcome, response, asked)
        if failure is not None:
            return failure
    elif isinstance(outcome, Mapping) and outcome.get("access_token"):
        return None
    if response is None:
        said = f"{type(outcome).__name__}: {outcome}"
        return TokenRequestError(f"The token request failed ({said}).")
    return _explain_response(outcome, response, asked)


def _explain_exception(
    error: Exception, response: requests.Response | None, asked: Asked
) -> TokenRequestError | None:
    """Return the failure that an exception stands for, if its kind tells."""
    if isinstance(error, TokenRequestError):
        return error
    if isinstance(error, requests.RequestException):
        return _explain_transport(error, asked)
    if isinstance(error, RecursionError) and response is None:
        # gevent's patched ssl calls itself where urllib3 has the old one.
        return TokenRequestError(
            "ssl calls itself without end: it was monkey-patched after urllib3 had "
            "been imported.",
            code="token_patched_late",
        )
    if isinstance(error, OSError) and not asked.managed:
        return _unusable_bundle()
    if response is None:
        return None
    # The one file that msal reads is the one that a challenge names.
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
    """Return what is wrong with the file of certificates that requests is to trust."""
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
    error: requests.RequestException, asked: Asked
) -> TokenRequestError:
    unreachable, where = "token_unreachable", "the identity endpoint"
    if asked.managed:
        unreachable = "managed_identity_unavailable"
        if asked.variable is not None:
            unreachable = "managed_identity_not_up"
            where = f"the identity endpoint that ${asked.variable} tells of"
    if isinstance(error, requests.exceptions.SSLError):
        bundle = None if asked.managed else _unusable_bundle()
        text = f"the identity endpoint's certificate is not trusted: {error}"
        return bundle or TokenRequestError(text, code="token_endpoint_untrusted")
    if isinstance(error, requests.exceptions.ProxyError):
        text = f"the proxy to the identity endpoint failed: {error}"
        return TokenRequestError(text, code="token_proxy")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        text = f"{where} could not be reached within {asked.timeout:g} s."
        return TokenRequestError(text, code=unreachable)
    if isinstance(error, requests.Timeout):
        text = (
            f"the identity endpoint did not answer within {asked.timeout:g} s "
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
    outcome: Any, response: requests.Response, asked: Asked
) -> TokenRequestError:
    """Return the failure that an answer without a usable token stands for."""
    content = _content(response)
    status = _status(response, content)
    said = _words(response, content)
    answered = f"the identity endpoint answered HTTP {status}"
    text = f"{answered}: {said[:_TOLD]}" if said else f"{answered}."
    transient = _BUSY | asked.not_yet if asked.managed else _BUSY
    if status >= 500 or status in transient:
        return TokenRequestError(text, code="token_endpoint_failing")
    if status < 400 and isinstance(outcome, Exception) and content is not _NO_JSON:
        return _explain_unread(outcome, content, asked)
    if isinstance(outcome, msal.ManagedIdentityError):
        challenge = response.headers.get("WWW-Authenticate", "")
        if status == 401 and challenge.lower().startswith("basic realm="):
            return _unreadable_key(f"can't be used: {outcome}")
        return TokenRequestError(f"{answered}: {outcome}", code=_REFUSED)
    words = said if asked.managed else response.text
    code = _code_of(words, managed=asked.managed)
    if content is _NO_JSON and code in (_REFUSED, "token_failed"):
        kind = response.headers.get("Content-Type", "no content type")
        if asked.managed and status == 403 and asked.variable is None:
            # Docker Desktop, whose proxy answers for addresses out of its reach
            # (Azure/azure-sdk-for-python#31759).
            return TokenRequestError(text, code="managed_identity_unavailable")
        if not (asked.managed and status >= 400 and said):
            text = f"{answered} with something that is not JSON ({kind})."
            code = "token_not_json"
        return TokenRequestError(text, code=code)
    if status < 400 and not (isinstance(content, Mapping) and "error" in content):
        what = "holds no access token"
        if not isinstance(content, Mapping):
            what = "is not what it should be"
        text = f"the identity endpoint's answer {what}."
        return TokenRequestError(text, code="token_bad_answer")
    if code == "managed_identity_unknown" and asked.variable and not asked.named:
        # The platform tells of an endpoint only where there is an identity.
        code = "managed_identity_ambiguous"
    if said and not asked.managed:
        text = said  # Entra's words have a number of their own.
    return TokenRequestError(text, code=code)


def _explain_unread(error: Exception, content: Any, asked: Asked) -> TokenRequestError:
    """Return why an answer that is no error was of no use to msal."""
    if isinstance(error, msal.ManagedIdentityError) and asked.named:
        # Azure Arc's agent, where it is too old for identities that users assign.
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
    """Return the JSON of a response, whatever its encoding."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return _NO_JSON


def _status(response: requests.Response, content: Any) -> int:
    """Return the status; some endpoints tell of it in their JSON alone."""
    inner = content.get("statusCode") if isinstance(content, Mapping) else None
    if response.status_code < 400 and isinstance(inner, int):
        return inner
    return response.status_code


def _words(response: requests.Response, content: Any) -> str:
    """Return what a response says, on one line."""
    if content is _NO_JSON:
        kind = response.headers.get("Content-Type", "").lower()
        plain = not kind or kind.startswith("text/plain")
        said = response.text if plain else ""
    elif isinstance(content, Mapping):
        error: Any = content.get("error")
        message = content.get("message")
        if isinstance(error, Mapping):
            error, message = error.get("code"), error.get("message")
        message = content.get("error_description") or message
        said = ": ".join(str(part).strip() for part in (error, message) if part)
    else:
        said = content if isinstance(content, str) else ""
    # What follows the first line are Entra's trace and correlation IDs.
    lines = said.strip().splitlines()
    return lines[0].strip().rstrip(": ") if lines else ""


def _code_of(text: str, *, managed: bool) -> str:
    if "temporarily_unavailable" in text or "server_error" in text:
        return "token_endpoint_failing"
    code = code_of(text)
    if not managed:
        # A number that is not known says something else than OAuth's word.
        without_number = "token_wrong_secret" if "invalid_client" in text else None
        return code or without_number or "token_failed"
    # What Entra told the endpoint is handed on.
    if code not in (None, "token_failed"):
        return code
    if "invalid_resource" in text:
        return "token_wrong_scope"
    if _SEVERAL.search(text):
        return "managed_identity_ambiguous"
    if all(pattern.search(text) for pattern in _MISSING):
        return "managed_identity_unknown"
    return _REFUSED
