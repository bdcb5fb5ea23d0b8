"""What a failed token request means: from foreign errors to one of our own.

Each failure gets a code, by which :mod:`.advice` knows its cause and cure.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

# requests comes with msal, which makes its requests with it.
import requests

from ..exceptions import TokenRequestError

#: Entra's error codes ("Microsoft Entra authentication and authorization error
#: codes"), the first that an error's text names.
_ENTRA_CODES: Mapping[str, str] = {
    "AADSTS90002": "token_unknown_tenant",
    "AADSTS900023": "token_unknown_tenant",
    "AADSTS700016": "token_unknown_client",
    "AADSTS7000229": "token_unknown_client",
    "AADSTS7000112": "token_client_disabled",
    "AADSTS53003": "token_blocked",
    "AADSTS7000215": "token_wrong_secret",
    "AADSTS7000222": "token_expired_secret",
    "AADSTS700027": "token_certificate_not_registered",
    "AADSTS700024": "token_assertion_expired",
    "AADSTS70021": "token_assertion_rejected",
    "AADSTS70025": "token_assertion_rejected",
    "AADSTS700222": "token_assertion_rejected",
    "AADSTS7002138": "token_assertion_rejected",
    "AADSTS700211": "token_assertion_rejected",
    "AADSTS700212": "token_assertion_rejected",
    "AADSTS700213": "token_assertion_rejected",
    "AADSTS50027": "token_assertion_rejected",
    "AADSTS500011": "token_wrong_scope",
    "AADSTS1002012": "token_wrong_scope",
    "AADSTS70011": "token_wrong_scope",
}

#: What the endpoints of managed identities say, in the order to look for it.
_MANAGED_IDENTITY_CODES: Mapping[str, str] = {
    "multiple user assigned": "managed_identity_ambiguous",
    "identity not found": "managed_identity_unknown",
    "no managed identity": "managed_identity_unknown",
    "no user assigned": "managed_identity_unknown",
    "invalid_resource": "token_wrong_scope",
}


def explain_answer(answer: Any, *, managed: bool) -> TokenRequestError | None:
    """Return the failure that msal's answer stands for; ``None`` if it has a token.

    Parameters:
        answer: what msal returned.
        managed: whether it is a managed identity's.
    """
    if not isinstance(answer, Mapping):
        return TokenRequestError(
            "the identity endpoint's answer is not what it should be.",
            code="token_bad_answer",
        )
    if answer.get("access_token"):
        return None
    if "error" not in answer:
        return TokenRequestError(
            "the identity endpoint's answer holds no access token.",
            code="token_bad_answer",
        )
    # What follows the first line are Entra's trace and correlation IDs.
    description = str(answer.get("error_description") or "").strip().split("\n")[0]
    text = f"{answer['error']}: {description.strip()}".rstrip(": ")
    return TokenRequestError(text, code=_code_of(text, managed=managed))


def explain_error(
    error: Exception,
    answer: requests.Response | None,
    *,
    timeout: float,
    managed: bool,
) -> TokenRequestError:
    """Return the failure that an exception out of msal stands for.

    Parameters:
        error: the exception.
        answer: the last HTTP response, if there was one.
        timeout: REQUEST_TIMEOUT in seconds.
        managed: whether it is a managed identity's.
    """
    if isinstance(error, TokenRequestError):
        return error
    if isinstance(error, requests.RequestException):
        return _explain_transport(error, timeout=timeout, managed=managed)
    if isinstance(error, RecursionError):
        # gevent's patched ssl calls itself where urllib3 has the old one.
        return TokenRequestError(
            "ssl calls itself without end: it was monkey-patched after urllib3 had "
            "been imported.",
            code="token_patched_late",
        )
    if answer is None:
        return TokenRequestError(f"{type(error).__name__}: {error}")
    status = f"the identity endpoint answered HTTP {answer.status_code}"
    try:
        json.loads(answer.text)
    except ValueError:
        kind = answer.headers.get("Content-Type", "no content type")
        return TokenRequestError(
            f"{status} with something that is not JSON ({kind}).",
            code="token_not_json",
        )
    if answer.status_code >= 500 or answer.status_code == 429:
        return TokenRequestError(f"{status}.", code="token_endpoint_failing")
    code = _code_of(answer.text, managed=managed)
    return TokenRequestError(f"{status}: {error}", code=code)


def _explain_transport(
    error: requests.RequestException, *, timeout: float, managed: bool
) -> TokenRequestError:
    unreachable = "managed_identity_unavailable" if managed else "token_unreachable"
    if isinstance(error, requests.exceptions.SSLError):
        text = f"the identity endpoint's certificate is not trusted: {error}"
        return TokenRequestError(text, code="token_endpoint_untrusted")
    if isinstance(error, requests.exceptions.ProxyError):
        text = f"the proxy to the identity endpoint failed: {error}"
        return TokenRequestError(text, code="token_proxy")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        text = f"the identity endpoint could not be reached within {timeout:g} s."
        return TokenRequestError(text, code=unreachable)
    if isinstance(error, requests.Timeout):
        text = (
            f"the identity endpoint did not answer within {timeout:g} s "
            "(REQUEST_TIMEOUT)."
        )
        return TokenRequestError(text, code="token_timeout")
    text = f"the identity endpoint could not be reached: {error}"
    return TokenRequestError(text, code=unreachable)


def _code_of(text: str, *, managed: bool) -> str:
    if "temporarily_unavailable" in text or "server_error" in text:
        return "token_endpoint_failing"
    if managed:
        low = text.lower()
        for phrase, code in _MANAGED_IDENTITY_CODES.items():
            if phrase in low:
                return code
        return "managed_identity_refused"
    names = re.findall(r"AADSTS\d+", text)
    for name in names:
        if name in _ENTRA_CODES:
            return _ENTRA_CODES[name]
    # A number that is not known here says something else.
    if "invalid_client" in text and not names:
        return "token_wrong_secret"
    return "token_failed"
