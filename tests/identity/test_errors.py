"""What a failed token request is taken for: by Entra's codes, and by the transport."""

import json

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from django_entra_redis.diagnostics.advice import ADVICE
from django_entra_redis.exceptions import TokenRequestError
from django_entra_redis.identity.errors import explain_answer, explain_error

ENTRA = {
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
    "AADSTS1": "token_failed",
}


def response(
    status: int, body: str, content_type: str = "text/html"
) -> requests.Response:
    """Return an HTTP response."""
    answer = requests.Response()
    answer.status_code = status
    answer._content = body.encode()
    answer.headers["Content-Type"] = content_type
    return answer


def explained(
    error: Exception, answer: requests.Response | None = None, *, managed: bool = False
) -> TokenRequestError:
    """Return what an exception is taken for."""
    return explain_error(error, answer, timeout=10.0, managed=managed)


@pytest.mark.parametrize(("name", "code"), ENTRA.items())
def test_codes_of_entra(name: str, code: str) -> None:
    """Its number decides, wherever in the text it is; what follows is left out."""
    answer = {
        "error": "invalid_request",
        "error_description": f"{name}: Refused.\r\nTrace ID: 1\r\nTimestamp: 2",
    }
    failure = explain_answer(answer, managed=False)
    assert failure is not None
    assert failure.code == code
    assert str(failure) == f"invalid_request: {name}: Refused."


def test_error_without_a_number() -> None:
    """An authority that is not Entra's own has but OAuth's word."""
    failure = explain_answer({"error": "invalid_client"}, managed=False)
    assert failure is not None
    assert (str(failure), failure.code) == ("invalid_client", "token_wrong_secret")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Multiple user assigned identities exist", "managed_identity_ambiguous"),
        ("Identity not found", "managed_identity_unknown"),
        ("No managed identity was found", "managed_identity_unknown"),
        ("No user assigned or delegated identity", "managed_identity_unknown"),
        ("invalid_resource", "token_wrong_scope"),
        ("something else", "managed_identity_refused"),
    ],
)
def test_words_of_managed_identities(text: str, code: str) -> None:
    """Their endpoints have no numbers; their words decide."""
    answer = {"error": "400", "error_description": text}
    failure = explain_answer(answer, managed=True)
    assert failure is not None
    assert failure.code == code


def test_token() -> None:
    """An answer with a token is no failure."""
    assert explain_answer({"access_token": "x"}, managed=False) is None


@pytest.mark.parametrize("answer", [None, [], "text", {}, {"access_token": ""}])
def test_answer_that_is_none(answer: object) -> None:
    """Whatever has neither a token nor an error does not come from such an endpoint."""
    failure = explain_answer(answer, managed=False)
    assert failure is not None
    assert failure.code == "token_bad_answer"


@given(st.dictionaries(st.text(), st.none() | st.text() | st.integers()), st.booleans())
def test_any_answer(answer: dict[str, object], managed: bool) -> None:
    """Whatever an endpoint says, there is advice about it."""
    failure = explain_answer(answer, managed=managed)
    assert failure is None or failure.code in ADVICE


def test_own_errors() -> None:
    """What this package has found itself stays as it is."""
    error = TokenRequestError("x", code="certificate_unusable")
    assert explained(error) is error


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (requests.exceptions.SSLError("x"), "token_endpoint_untrusted", "not trusted"),
        (requests.exceptions.ProxyError("x"), "token_proxy", "proxy"),
        (requests.exceptions.ConnectTimeout(), "token_unreachable", "within 10 s"),
        (requests.exceptions.ReadTimeout(), "token_timeout", "REQUEST_TIMEOUT"),
        (requests.exceptions.ConnectionError("x"), "token_unreachable", "reached: x"),
    ],
)
def test_transport(error: Exception, code: str, says: str) -> None:
    """How far the request came tells where to look."""
    failure = explained(error)
    assert failure.code == code
    assert says in str(failure)


def test_transport_to_a_managed_identity() -> None:
    """Nothing there at all means that there is none on this machine."""
    for error in (
        requests.exceptions.ConnectionError("x"),
        requests.exceptions.ConnectTimeout(),
    ):
        failure = explained(error, managed=True)
        assert failure.code == "managed_identity_unavailable"


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (None, "token_failed", "ValueError: no"),
        (response(200, "<html>"), "token_not_json", "HTTP 200 with something"),
        (response(502, "<html>"), "token_not_json", "(text/html)"),
        (response(503, "{}"), "token_endpoint_failing", "HTTP 503."),
        (response(429, "{}"), "token_endpoint_failing", "HTTP 429."),
        (
            response(400, json.dumps({"error_description": "AADSTS90002: x"})),
            "token_unknown_tenant",
            "HTTP 400: no",
        ),
    ],
)
def test_errors_of_msal(answer: requests.Response | None, code: str, says: str) -> None:
    """Its exceptions say little; the last response says more."""
    failure = explained(ValueError("no"), answer)
    assert failure.code == code
    assert says in str(failure)
