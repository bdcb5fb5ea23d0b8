"""What Entra's numbers stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_entra_redis.diagnostics.advice import ADVICE
from django_entra_redis.identity.entra_codes import code_of

CODES = {
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
    7000215: "token_wrong_secret",
    7000222: "token_expired_secret",
    50012: "token_certificate_not_registered",
    700027: "token_certificate_not_registered",
    1000502: "token_certificate_expired",
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
    50001: "token_wrong_scope",
    70011: "token_wrong_scope",
    500011: "token_wrong_scope",
    1002012: "token_wrong_scope",
    500014: "token_resource_disabled",
    1: "token_failed",
}


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_number(number: int, code: str) -> None:
    """Each has its code, alone, behind one that is unknown, and before another."""
    for text in (
        f"AADSTS{number}: Refused.",
        f"invalid_client: AADSTS70002: no. AADSTS{number}: Refused.",
        f"AADSTS{number}: see AADSTS7",
    ):
        assert code_of(text) == code
        assert code in ADVICE


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (
            "AADSTS700027: Client assertion contains an invalid signature. [Reason - "
            "The key used is expired., Thumbprint of key used by client: 'D9A7']",
            "token_certificate_expired",
        ),
        (
            "AADSTS700027: The certificate is not registered. [Reason - The key was "
            "not found.]",
            "token_certificate_not_registered",
        ),
        (
            "AADSTS700027: The certificate expired on 11/01/2026.",
            "token_certificate_expired",
        ),
        (
            "AADSTS70002: x. AADSTS50012: [The key is expired]",
            "token_certificate_expired",
        ),
        ("AADSTS50012: Invalid client secret is provided.", "token_wrong_secret"),
        ("AADSTS50012: not within its valid time range.", "token_assertion_expired"),
        ("AADSTS50012: else", "token_certificate_not_registered"),
        # Another number's words are its own.
        ("AADSTS90002: The tenant is expired.", "token_unknown_tenant"),
    ],
)
def test_reason(text: str, code: str) -> None:
    """Where a number stands for several failures, its words tell which."""
    assert code_of(text) == code


@given(st.text(), st.integers(min_value=0))
def test_any_text(text: str, number: int) -> None:
    """Whatever Entra says, there is advice about it; without a number, none."""
    assert code_of(f"AADSTS{number}{text}") in ADVICE
    assert "AADSTS" in text or code_of(text) is None
