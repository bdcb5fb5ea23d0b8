"""Entra's error codes ("Microsoft Entra authentication and authorization error codes").

The wording counts only where one number stands for several failures.
"""

import re
from collections.abc import Mapping, Sequence

_CODES: Mapping[int, str] = {
    # -- tenant, cloud and application
    90002: "token_unknown_tenant",
    900023: "token_unknown_tenant",
    90038: "token_wrong_cloud",
    900382: "token_wrong_cloud",
    900432: "token_wrong_cloud",
    700016: "token_unknown_client",
    7000229: "token_unknown_client",
    7000112: "token_client_disabled",
    53003: "token_blocked",
    530032: "token_blocked",
    50196: "token_request_loop",
    # -- secrets and certificates
    7000215: "token_wrong_secret",
    7000222: "token_expired_secret",
    50012: "token_certificate_not_registered",
    700027: "token_certificate_not_registered",
    1000502: "token_certificate_expired",
    # -- assertions
    700024: "token_assertion_expired",
    50027: "token_assertion_rejected",
    70021: "token_assertion_rejected",
    70025: "token_assertion_rejected",
    700211: "token_assertion_rejected",
    700212: "token_assertion_rejected",
    700213: "token_assertion_rejected",
    700222: "token_assertion_rejected",
    7002121: "token_assertion_rejected",
    7002138: "token_assertion_rejected",
    700223: "token_federation_blocked",
    700238: "token_federation_blocked",
    7002381: "token_federation_blocked",
    700226: "token_assertion_of_entra",
    700227: "token_assertion_of_entra",
    700229: "token_assertion_of_entra",
    700231: "token_assertion_of_entra",
    # -- the resource
    50001: "token_wrong_scope",
    70011: "token_wrong_scope",
    500011: "token_wrong_scope",
    1002012: "token_wrong_scope",
    500014: "token_resource_disabled",
    # -- for a while, whatever the status
    90006: "token_endpoint_failing",
    90012: "token_endpoint_failing",
    90024: "token_endpoint_failing",
    90033: "token_endpoint_failing",
    90055: "token_endpoint_failing",
}

#: Words that tell failures apart which have the same number.
_REASONS: Mapping[int, Mapping[str, str]] = {
    700027: {"expired": "token_certificate_expired"},
    # Entra's older endpoints still use this number for what has several numbers now.
    50012: {
        "is expired": "token_certificate_expired",
        "time range": "token_assertion_expired",
        "client secret": "token_wrong_secret",
    },
}


def code_of(text: str, listed: Sequence[int] = ()) -> str | None:
    """Return this package's failure code for the first known number of an error.

    Parameters:
        text: the text of Entra's error.
        listed: the numbers that the error has beside its text.

    Returns:
        ``None`` if there is no number, ``"token_failed"`` if none is known.
    """
    numbers = [*listed, *map(int, re.findall(r"AADSTS([0-9]{1,9})", text))]
    if not numbers:
        return None
    number = next((number for number in numbers if number in _CODES), None)
    if number is None:
        return "token_failed"
    for words, code in _REASONS.get(number, {}).items():
        if words in text:
            return code
    return _CODES[number]
