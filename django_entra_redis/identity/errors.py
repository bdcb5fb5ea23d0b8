"""Translation of a failed token request into a :exc:`TokenRequestError` with a code.

:mod:`~..diagnostics.advice` has the cause and the cure for each code.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msal

# requests is a dependency of msal, which makes its HTTP requests with it; urllib3 is a
# dependency of requests.
import requests
import urllib3

from ..exceptions import TokenRequestError
from .answers import Answer, read_answer
from .entra_codes import code_of
from .platforms import Platform, find_incomplete
from .trust import is_special, unusable_directory, unusable_file

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
#: What they say where the machine has several identities, and none was named. The time
#: that it takes is in proportion to the square of the text's length, which is bounded.
_SEVERAL = re.compile(r"\b(multiple|several|more than one)\b.*identit", re.IGNORECASE)
#: Statuses by which the same request may succeed later, besides the 5xx: Request
#: Timeout, Misdirected Request, Locked, Too Early, Too Many Requests (RFC 9110, 4918,
#: 8470, 6585), and Microsoft's own Retry With.
_TEMPORARY = frozenset({408, 421, 423, 425, 429, 449})
#: The status of a proxy that wants a login (RFC 9110, 15.5.8).
_PROXY_LOGIN = 407
#: OAuth's words for the same (RFC 6749, 4.1.2.1).
_TEMPORARY_ERRORS = ("temporarily_unavailable", "server_error")
#: The variables for a file of trusted certificates, of which requests uses the first.
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_REFUSED = "managed_identity_refused"
#: Characters of an answer's text that an error quotes at most, and numbers of errors.
_MAX_SHOWN = 200
_MAX_NUMBERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """A token request that has failed, as far as it explains the failure.

    Parameters:
        timeout: REQUEST_TIMEOUT in seconds.
        platform: the platform to whose endpoint of managed identity it went; ``None``
            for Entra's own.
        named: whether the settings name one of the machine's identities.
    """

    timeout: float
    platform: Platform | None = None
    named: bool = False

    @property
    def managed(self) -> bool:
        """Whether it went to a managed identity's endpoint."""
        return self.platform is not None


def token_error(
    outcome: Any, response: requests.Response | None, request: RequestInfo
) -> TokenRequestError | None:
    """Return the error of a token request; ``None`` if there is a token.

    The class of an exception counts first, then the response's status, then whether
    its content is JSON, and its wording last. A token in a refusal, which msal takes,
    is none: nobody has granted it.

    Parameters:
        outcome: what msal returned, or the exception that it raised.
        response: the last HTTP response, if there was one.
        request: what is known of the request.
    """
    if isinstance(outcome, Exception):
        failure = _explain_exception(outcome, response, request)
        if failure is not None:
            return failure
    elif isinstance(outcome, Mapping):
        token = outcome.get("access_token")
        granted = response is None or read_answer(response).status < 300
        if isinstance(token, str) and token and granted:
            return None
    if response is None:
        return _explain_unread(outcome, request)
    return _explain_response(outcome, response, request)


def _explain_exception(
    error: Exception, response: requests.Response | None, request: RequestInfo
) -> TokenRequestError | None:
    """Return the error for an exception; ``None`` if its class does not explain it."""
    if isinstance(error, TokenRequestError):
        return error
    if isinstance(error, (*_UNSENDABLE_URL, *_UNSENDABLE_HEADER)):
        failure = _explain_unsendable(error, response, request)
        if failure is not None:
            return failure
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


#: The exceptions for a URL that can't be requested, and for a header's value.
_UNSENDABLE_URL = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    # Raised for a host with a label that is empty or too long.
    urllib3.exceptions.LocationParseError,
)
_UNSENDABLE_HEADER = (requests.exceptions.InvalidHeader, UnicodeEncodeError)


def _explain_unsendable(
    error: Exception, response: requests.Response | None, request: RequestInfo
) -> TokenRequestError | None:
    """Return the error for a request that could not even be written.

    AUTHORITY_HOST has been checked before; all else that is variable in a request to
    Entra is the proxy.
    """
    if request.platform is None:
        if isinstance(error, _UNSENDABLE_HEADER):
            return None
        # Other errors may quote a part of the proxy's password.
        why = "it should be like 'http://proxy.example:3128'"
        if isinstance(error, requests.exceptions.InvalidSchema):
            why = str(error)  # No library for SOCKS is installed.
        return TokenRequestError(
            f"the proxy that $HTTPS_PROXY or $ALL_PROXY names can't be used: {why}",
            code="token_proxy",
        )
    if isinstance(error, _UNSENDABLE_HEADER):
        what = "holds a line break, or something else that can't stand in a header"
        if response is not None:
            return _unreadable_key(what)
        variable = request.platform.secret
    else:
        variable = request.platform.endpoint
        value = os.environ.get(variable or "", "")
        what = (
            f"is '{value}', which is not a URL: it should begin with 'http://' or "
            "'https://', and name a host, with a port up to 65535 if any"
        )
    if variable is None:
        return None
    return TokenRequestError(f"${variable} {what}.", code="managed_identity_variables")


def _unreadable_key(what: str) -> TokenRequestError:
    return TokenRequestError(
        f"The key file that Azure Arc's agent asks for {what.rstrip('.')}. Its readers "
        "are the members of the group himds.",
        code="arc_key_unreadable",
    )


def check_bundle() -> None:
    """Refuse a file of trusted certificates whose reading might never end.

    OpenSSL waits for a pipe's writer, and reads a device without end.

    Raises:
        TokenRequestError: it is such a file.
    """
    variable = _bundle_variable()
    if variable is not None and is_special(os.environ[variable]):
        raise _bundle_error(variable, "it is not a regular file")


def _bundle_variable() -> str | None:
    return next((name for name in _BUNDLES if os.environ.get(name)), None)


def _unusable_bundle() -> TokenRequestError | None:
    """Return the error of an unusable file of trusted certificates, else None."""
    variable = _bundle_variable()
    if variable is None:
        return None
    path = os.environ[variable]
    why = unusable_directory(path) if os.path.isdir(path) else unusable_file(path)
    if why is None:
        return None
    return _bundle_error(variable, why)


def _bundle_error(variable: str, why: str) -> TokenRequestError:
    return TokenRequestError(
        f"${variable} names '{os.environ[variable]}', which can't be used: {why}.",
        code="token_ca_bundle",
    )


def _explain_transport(
    error: requests.RequestException, request: RequestInfo
) -> TokenRequestError:
    unreachable, where = "token_unreachable", "the identity endpoint"
    platform = request.platform
    if platform is not None and platform.announced:
        unreachable = "managed_identity_not_up"
        where = f"{platform.name}'s identity endpoint"
        if os.environ.get(platform.endpoint or ""):
            where = f"the identity endpoint that ${platform.endpoint} tells of"
    elif platform is not None:
        unreachable = "managed_identity_unavailable"
        incomplete = find_incomplete()
        if incomplete is not None:
            unreachable = "managed_identity_variables"
            where = f"{incomplete}, and {platform.name}'s identity endpoint"
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
    answer = read_answer(response)
    status, said = answer.status, answer.words
    answered = f"the identity endpoint answered HTTP {status}"
    text = f"{answered}: {said[:_MAX_SHOWN]}" if said else f"{answered}."
    platform = request.platform
    not_yet = platform.not_yet if platform else frozenset()
    if status >= 500 or status in _TEMPORARY or status in not_yet:
        return TokenRequestError(text, code="token_endpoint_failing")
    if status == _PROXY_LOGIN:
        return TokenRequestError(text, code="token_proxy")
    # msal trips over what is no object, and over missing fields.
    tripped = isinstance(outcome, AttributeError | KeyError | TypeError)
    told = isinstance(outcome, Exception) and (answer.token is not None or not tripped)
    if status < 400 and told and answer.is_object:
        return _explain_unread(outcome, request)
    if isinstance(outcome, msal.ManagedIdentityError):
        challenge = response.headers.get("WWW-Authenticate", "")
        if status == 401 and challenge.lower().startswith("basic realm="):
            return _unreadable_key(f"can't be used: {outcome}")
        return TokenRequestError(f"{answered}: {outcome}", code=_REFUSED)
    words = said if request.managed else response.text
    code = _code_of(words, answer, managed=request.managed)
    announced = platform is not None and platform.announced
    if not answer.is_json and code in (_REFUSED, "token_failed"):
        kind = response.headers.get("Content-Type", "no content type")
        if request.managed and status == 403 and not announced:
            # Docker Desktop's proxy answers 403 for addresses that it can't reach
            # (Azure/azure-sdk-for-python#31759).
            incomplete = find_incomplete()
            if incomplete is not None:
                text = f"{incomplete}, and {text}"
                return TokenRequestError(text, code="managed_identity_variables")
            return TokenRequestError(text, code="managed_identity_unavailable")
        # Nothing, or text, is no page of a proxy's.
        if not (request.managed and status >= 400 and not answer.is_page):
            text = f"{answered} with something that is not JSON ({kind})."
            code = "token_not_json"
        return TokenRequestError(text, code=code)
    if status < 400 and "error" not in answer.fields:
        if status >= 300 and answer.is_object:
            return TokenRequestError(text, code="token_bad_answer")
        if answer.token is not None:
            text = "the identity endpoint's answer states no expiry of its token."
            return TokenRequestError(text, code="token_expiry_unreadable")
        what = "holds no access token"
        if not answer.is_object:
            what = "is not what it should be"
        text = f"the identity endpoint's answer {what}."
        return TokenRequestError(text, code="token_bad_answer")
    if code == "managed_identity_unknown" and announced and not request.named:
        # A platform has an endpoint only where there is an identity.
        code = "managed_identity_ambiguous"
    if not request.managed:
        text = said or text  # Entra's text has its own error number.
    unsaid = [f"AADSTS{one}" for one in answer.numbers if str(one) not in text]
    if unsaid:
        text = f"{text} ({', '.join(unsaid[:_MAX_NUMBERS])})"
    return TokenRequestError(text, code=code)


def _explain_unread(error: Any, request: RequestInfo) -> TokenRequestError:
    """Return the error for a request that msal could not make, or whose successful
    answer it could not use."""
    if isinstance(error, msal.ManagedIdentityError) and request.named:
        # An old Azure Arc agent, or an old msal, which supports no user-assigned
        # identities there.
        return TokenRequestError(str(error), code="managed_identity_unknown")
    said = f"{type(error).__name__}: {error}"
    return TokenRequestError(f"The token request failed ({said}).")


def _code_of(text: str, answer: Answer, *, managed: bool) -> str:
    code = code_of(text, answer.numbers)
    if code not in (None, "token_failed"):
        # A managed identity's endpoint passes on the number of Entra's error.
        return code
    if answer.error in _TEMPORARY_ERRORS:
        return "token_endpoint_failing"
    if not managed:
        # OAuth's "invalid_client" counts only without a number, which is more precise.
        without_number = "token_wrong_secret" if "invalid_client" in text else None
        return code or without_number or "token_failed"
    if "invalid_resource" in text:
        return "token_wrong_scope"
    if _SEVERAL.search(text):
        return "managed_identity_ambiguous"
    if all(pattern.search(text) for pattern in _MISSING):
        return "managed_identity_unknown"
    return _REFUSED
