"""What a failed token request is taken for: by Entra's codes, and by the transport."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msal
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from django_entra_redis.diagnostics.advice import ADVICE
from django_entra_redis.exceptions import TokenRequestError
from django_entra_redis.identity import errors
from django_entra_redis.identity.errors import RequestInfo, token_error
from django_entra_redis.identity.platforms import (
    APP_SERVICE,
    AZURE_ARC,
    MACHINE_LEARNING,
    VIRTUAL_MACHINE,
    Platform,
)


def response(
    status: int, body: object = "", content_type: str = "", encoding: str = "utf-8"
) -> requests.Response:
    """Return an HTTP response; what is no text becomes JSON."""
    answer = requests.Response()
    answer.status_code = status
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    answer._content = text.encode(encoding)
    kind = "text/plain" if isinstance(body, str) else "application/json"
    answer.headers["Content-Type"] = content_type or f"{kind}; charset={encoding}"
    answer.encoding = encoding
    return answer


def explained(
    outcome: Any,
    answer: requests.Response | None = None,
    platform: Platform | None = None,
    **asked: Any,
) -> TokenRequestError:
    """Return the failure that msal's answer, or its exception, is taken for."""
    request = RequestInfo(timeout=10.0, platform=platform, **asked)
    failure = token_error(outcome, answer, request)
    assert failure is not None
    return failure


def test_code_of_entra() -> None:
    """Its number decides, wherever in the text it is; what follows is left out."""
    answer = {
        "error": "invalid_client",
        "error_description": "AADSTS90002: Refused.\r\nTrace ID: 1\r\nTimestamp: 2",
    }
    failure = explained(answer, response(400, answer))
    assert failure.code == "token_unknown_tenant"
    assert str(failure) == "invalid_client: AADSTS90002: Refused."


def test_error_without_a_number() -> None:
    """An authority that is not Entra's own has but OAuth's word."""
    answer = {"error": "invalid_client"}
    failure = explained(answer, response(401, answer))
    assert (str(failure), failure.code) == ("invalid_client", "token_wrong_secret")


@pytest.mark.parametrize(
    "listed",
    [
        [7000215],
        ["7000215"],
        ["AADSTS7000215"],
        7000215,
        "7000215",
        [1, 7000215],
        [None, "x", 7000215],
    ],
)
@pytest.mark.parametrize("platform", [None, VIRTUAL_MACHINE])
def test_number_beside_the_text(listed: Any, platform: Platform | None) -> None:
    """Entra lists its numbers in a field of their own; they are told, too."""
    answer = {"error": "invalid_request", "error_codes": listed}
    for described in ({}, {"error_description": "Refused."}):
        content = {**answer, **described}
        failure = explained(content, response(400, content), platform)
        assert failure.code == "token_wrong_secret"
        assert "AADSTS7000215" in str(failure)
    content = {**answer, "error_description": "AADSTS7000215: Refused."}
    failure = explained(content, response(400, content), platform)
    assert str(failure).count("7000215") == 1


@pytest.mark.parametrize("platform", [None, VIRTUAL_MACHINE, APP_SERVICE])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize(
    "form",
    [
        {"error": "x", "error_description": "Sorry.\r\nAADSTS7000215"},
        {"error": {"code": "x", "innererror": {"message": "AADSTS7000215: é"}}},
        {"odata.error": {"code": "x", "message": {"value": "AADSTS7000215: é"}}},
        {"errors": [{"message": "AADSTS7000215"}]},
        [{"error_description": "AADSTS7000215"}],
    ],
)
def test_number_anywhere(form: Any, encoding: str, platform: Platform | None) -> None:
    """The number is Entra's own, wherever whoever passes it on has put it."""
    answer = response(400, form, encoding=encoding)
    failure = explained(ValueError(), answer, platform)
    assert failure.code == "token_wrong_secret"
    assert "AADSTS7000215" in str(failure)


@pytest.mark.parametrize("listed", [[], [None], {}, [[]], [True], ["9" * 5000], -1])
def test_numbers_that_are_none(listed: Any) -> None:
    """Whatever stands there, the rest counts."""
    content = {"error": "invalid_client", "error_codes": listed}
    failure = explained(content, response(401, content))
    assert (str(failure), failure.code) == ("invalid_client", "token_wrong_secret")


@pytest.mark.parametrize("number", [90006, 90012, 90024, 90033, 90055])
@pytest.mark.parametrize("platform", [None, VIRTUAL_MACHINE])
def test_numbers_of_what_passes(number: int, platform: Platform | None) -> None:
    """Entra has numbers for what fails for a while, whatever the status is."""
    content = {"error": "x", "error_description": f"AADSTS{number}: Try again."}
    failure = explained(content, response(400, content), platform)
    assert failure.code == "token_endpoint_failing"


@pytest.mark.parametrize("body", ["", "<html>Login", {"error": "x"}])
def test_login_of_a_proxy(body: Any) -> None:
    """Only a proxy has this status, whatever it says beside it."""
    failure = explained(ValueError("no JSON"), response(407, body))
    assert failure.code == "token_proxy"
    assert "HTTP 407" in str(failure)


# -- managed identities ----------------------------------------------------------------

UNKNOWN = "managed_identity_unknown"
NOT_UP = "managed_identity_not_up"
VARIABLES = "managed_identity_variables"
#: Types that a text may be declared to have.
DECLARED = ("text/html; charset=utf-8", "application/json", "application/problem+json")
#: How endpoints put their words into JSON: a virtual machine's, App Service's,
#: Service Fabric's.
FORMS: dict[str, Callable[[int, str], Any]] = {
    "imds": lambda status, words: {
        "error": "invalid_request",
        "error_description": words,
    },
    "app_service": lambda status, words: {"statusCode": status, "message": words},
    "service_fabric": lambda status, words: {
        "error": {"code": "SomethingElse", "message": words}
    },
    "capitals": lambda status, words: {"StatusCode": status, "Message": words},
    "problem": lambda status, words: {"title": "Bad Request", "detail": words},
    "string": lambda status, words: words,
}


@pytest.mark.parametrize("form", [*FORMS, "text"])
@pytest.mark.parametrize(
    "words",
    ["multiple ", "more than one ", "no ", "identity ", "found ", "AADSTS1 ", "a", "<"],
)
def test_long_words(form: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pattern gets more of them than a sentence has: none could freeze a process,
    in which no other thread runs while one is matched."""
    text = words * (10**6 // len(words))
    body = text if form == "text" else FORMS[form](400, text)
    asked: list[int] = []

    def search(text: str) -> None:
        asked.append(len(text))

    pattern = SimpleNamespace(search=search)
    monkeypatch.setattr(errors, "_SEVERAL", pattern)
    monkeypatch.setattr(errors, "_MISSING", (pattern,))
    failure = explained({}, response(400, body), VIRTUAL_MACHINE)
    assert len(str(failure)) < 1000
    assert max(asked, default=0) <= 1000


@pytest.mark.parametrize("form", [*FORMS, "text"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (
            "Multiple user assigned identities exist, please specify the clientId",
            "managed_identity_ambiguous",
        ),
        ("Identity not found", "managed_identity_unknown"),
        ("No managed identity was found", "managed_identity_unknown"),
        ("No User Assigned or Delegated Identity", "managed_identity_unknown"),
        ("No MSI found for specified ClientId", "managed_identity_unknown"),
        ("Unable to load the proper Managed Identity.", "managed_identity_unknown"),
        ("Unable to load requested managed identity.", "managed_identity_unknown"),
        ("The identity is not assigned to this machine", "managed_identity_unknown"),
        ("The requested identity isn't assigned to this resource", UNKNOWN),
        ("Could not find the managed identity: it was not found", UNKNOWN),
        ("Cannot load identity", UNKNOWN),
        ("There is no MSI enabled here", UNKNOWN),
        ("No managed identity is associated with this resource", UNKNOWN),
        ("The identity is not attached to this machine", UNKNOWN),
        ("There is no identity configured for this app", UNKNOWN),
        ("More than one identity is assigned", "managed_identity_ambiguous"),
        ("invalid_resource", "token_wrong_scope"),
        ("AADSTS500011: The principal named x was not found", "token_wrong_scope"),
        ("AADSTS7000112: Application is disabled", "token_client_disabled"),
        ("The X-IDENTITY-HEADER is not this instance's", "managed_identity_refused"),
        ("Required metadata header not found", "managed_identity_refused"),
        ("AADSTS9999999: nobody knows", "managed_identity_refused"),
    ],
)
def test_words_of_managed_identities(form: str, words: str, code: str) -> None:
    """Where the status leaves it open, their words decide, in whatever form."""
    content: Any = words if form == "text" else FORMS[form](400, words)
    answers = [response(400, content)]
    if form == "string":
        answers = [response(400, json.dumps(words), "application/json")]
    if form == "text":
        # Frameworks declare another type than that of what they are given.
        answers += [response(400, content, kind) for kind in DECLARED]
    for answer in answers:
        failure = explained(ValueError(), answer, VIRTUAL_MACHINE, named=True)
        assert failure.code == code
        assert "HTTP 400" in str(failure)
        assert words.rstrip(".") in str(failure)


@pytest.mark.parametrize(
    ("platform", "named", "code"),
    [
        (VIRTUAL_MACHINE, False, "managed_identity_unknown"),
        (APP_SERVICE, True, "managed_identity_unknown"),
        (APP_SERVICE, False, "managed_identity_ambiguous"),
    ],
)
def test_identity_that_is_not_named(platform: Platform, named: bool, code: str) -> None:
    """Where a platform tells of an endpoint there is an identity: it wants a name."""
    content = {"statusCode": 400, "message": "Unable to load the proper identity."}
    failure = explained({}, response(400, content), platform, named=named)
    assert failure.code == code


@pytest.mark.parametrize("status", [401, 403, 405, 409, 451])
@pytest.mark.parametrize("body", ["", "no", " \r\n", "\ufeff"])
def test_nothing_is_no_page(status: int, body: str) -> None:
    """A managed identity's endpoint may leave it at the status: that is no page."""
    for kind in ("", *DECLARED):
        answer = response(status, body, kind)
        failure = explained(ValueError("no JSON"), answer, APP_SERVICE)
        assert failure.code == "managed_identity_refused"
        assert str(failure).startswith(f"the identity endpoint answered HTTP {status}")
        assert "not JSON" not in str(failure)


@pytest.mark.parametrize("content", [None, [], "x", 5, {}, {"access_token": 5}])
@pytest.mark.parametrize("platform", [None, VIRTUAL_MACHINE])
def test_content_that_msal_trips_over(content: Any, platform: Platform | None) -> None:
    """What holds no token is told as that, and not as msal's own error."""
    answer = response(200, json.dumps(content), "application/json")
    for outcome in (AttributeError("x"), TypeError("x"), content):
        failure = explained(outcome, answer, platform)
        assert failure.code == "token_bad_answer"


def test_other_words_of_managed_identities() -> None:
    """What nobody knows is told as it is, and of a page of HTML its kind."""
    content = {"error": "invalid_request", "error_description": "something else"}
    failure = explained(content, response(400, content), VIRTUAL_MACHINE)
    assert failure.code == "managed_identity_refused"
    assert str(failure).endswith("HTTP 400: invalid_request: something else")
    for text in ("<html>no managed identity", "\ufeff\n <!DOCTYPE html>", "\x1f\x8b"):
        for kind in (*DECLARED, "text/plain"):
            page = response(400, text, kind)
            failure = explained(ValueError(), page, VIRTUAL_MACHINE)
            assert failure.code == "token_not_json"
            assert str(failure).endswith(
                f"HTTP 400 with something that is not JSON ({kind})."
            )


#: Statuses by which HTTP has a client ask again, besides the 5xx.
TEMPORARY = (408, 421, 423, 425, 429, 449)
#: Bodies of an endpoint that fails, whatever they say.
bodies = st.one_of(
    st.just(""),
    st.text(max_size=300),
    st.text(max_size=60).map(lambda words: FORMS["imds"](0, words)),
    st.text(max_size=60).map(lambda words: FORMS["app_service"](429, words)),
    st.sampled_from(["Identity not found", "AADSTS7000215: no", "<html>no</html>"]),
    st.lists(st.integers(), max_size=3),
)


@given(
    status=st.sampled_from([404, 410, *TEMPORARY]) | st.integers(500, 599),
    body=bodies,
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
    answered=st.booleans(),
)
def test_failing_managed_identity(
    status: int, body: Any, encoding: str, answered: bool
) -> None:
    """The status decides, whatever the body is: JSON, text or nothing."""
    outcome: Any = {"error": "invalid_scope"} if answered else ValueError("no JSON")
    answer = response(status, body, encoding=encoding)
    failure = explained(outcome, answer, VIRTUAL_MACHINE)
    assert failure.code == "token_endpoint_failing"
    assert f"HTTP {status}" in str(failure)
    assert len(str(failure)) < 300
    assert "\n" not in str(failure)


@given(status=st.sampled_from(TEMPORARY) | st.integers(500, 599), body=bodies)
def test_failing_authority(status: int, body: Any) -> None:
    """So it does with Entra's, whose words are kept."""
    failure = explained(ValueError("x"), response(status, body))
    assert failure.code == "token_endpoint_failing"
    assert f"HTTP {status}" in str(failure)


@pytest.mark.parametrize("word", ["temporarily_unavailable", "server_error"])
def test_failing_authority_in_other_words(word: str) -> None:
    """OAuth has words for it, too."""
    failure = explained({"error": word}, response(400, {"error": word}))
    assert failure.code == "token_endpoint_failing"


def test_words_of_a_failing_authority() -> None:
    """What Entra says of an outage is told."""
    content = {
        "error": "temporarily_unavailable",
        "error_description": "AADSTS90033: x",
    }
    failure = explained(ValueError("x"), response(503, content))
    assert str(failure).endswith("HTTP 503: temporarily_unavailable: AADSTS90033: x")


def test_status_within_json() -> None:
    """A status that only the JSON tells of counts."""
    content = {"statusCode": 500, "message": "An unexpected error occurred."}
    failure = explained({}, response(200, content), VIRTUAL_MACHINE)
    assert failure.code == "token_endpoint_failing"


@given(body=st.sampled_from(["", "connectex: unreachable network", "<html>no"]))
def test_docker_desktop(body: str) -> None:
    """Its proxy answers for a virtual machine's endpoint that is not there."""
    failure = explained(ValueError("no JSON"), response(403, body), VIRTUAL_MACHINE)
    assert failure.code == "managed_identity_unavailable"
    # It does not, if variables for another endpoint are there in part.
    with mock.patch.dict(os.environ, {"IDENTITY_ENDPOINT": "http://localhost:4141"}):
        failure = explained(ValueError("no JSON"), response(403, body), VIRTUAL_MACHINE)
    assert failure.code == VARIABLES
    assert "without $IDENTITY_HEADER" in str(failure)
    # A platform that tells of its endpoint is no such thing.
    failure = explained(ValueError("no JSON"), response(403, body), APP_SERVICE)
    assert failure.code in ("managed_identity_refused", "token_not_json")


# -- what is no error, and no token either ---------------------------------------------


def test_token() -> None:
    """An answer with a token is no failure."""
    request = RequestInfo(timeout=1.0)
    for answer in (None, response(200, {"access_token": "x"}), response(204)):
        assert token_error({"access_token": "x"}, answer, request) is None


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 409, 429, 500, 503])
@pytest.mark.parametrize(
    "platform", [None, VIRTUAL_MACHINE, APP_SERVICE, AZURE_ARC, MACHINE_LEARNING]
)
def test_token_in_a_refusal(status: int, platform: Platform | None) -> None:
    """msal takes it; nobody has granted it."""
    content = {"access_token": "sesame", "expires_in": 60}
    failure = explained(content, response(status, content), platform)
    assert str(failure) == f"the identity endpoint answered HTTP {status}."
    inside = {**content, "statusCode": status}
    assert str(explained(inside, response(200, inside), platform)) == str(failure)


@pytest.mark.parametrize("platform", [None, VIRTUAL_MACHINE])
@pytest.mark.parametrize("answer", [[], 1, {}, {"access_token": ""}, {"x": 1}])
def test_answer_that_is_none(answer: Any, platform: Platform | None) -> None:
    """Whatever has neither a token nor an error does not come from such an endpoint."""
    failure = explained(answer, response(200, answer), platform)
    assert failure.code == "token_bad_answer"


@given(
    st.integers(100, 599),
    st.dictionaries(st.text(), st.none() | st.text() | st.integers()) | st.text(),
    st.sampled_from([None, VIRTUAL_MACHINE, APP_SERVICE]),
)
def test_any_answer(status: int, content: Any, platform: Platform | None) -> None:
    """Whatever an endpoint says, there is advice about it."""
    answer = response(status, content)
    for outcome in (content, ValueError("x")):
        request = RequestInfo(timeout=1.0, platform=platform)
        failure = token_error(outcome, answer, request)
        assert failure is None or failure.code in ADVICE


@pytest.mark.parametrize("status", [200, 302, 400])
@pytest.mark.parametrize("body", ["<html>", "\ufeff", "{"])
def test_no_json(status: int, body: str) -> None:
    """A login page is what a proxy answers, and not an identity endpoint."""
    failure = explained(ValueError("x"), response(status, body, "text/html"))
    assert failure.code == "token_not_json"
    assert f"HTTP {status} with something that is not JSON (text/html)" in str(failure)


def test_what_msal_trips_over() -> None:
    """It is told as what it is, not as the endpoint's answer."""
    content = {"access_token": "sesame", "expires_on": "5"}
    failure = explained(KeyError("token_type"), response(200, content), VIRTUAL_MACHINE)
    assert str(failure) == "The token request failed (KeyError: 'token_type')."
    assert failure.code == "token_failed"
    content = {"access_token": "sesame", "resource": "x"}
    failure = explained({"error": "x"}, response(200, content), VIRTUAL_MACHINE)
    assert failure.code == "token_expiry_unreadable"
    assert "states no expiry" in str(failure)
    error = msal.ManagedIdentityError("Azure Arc did not confirm it.")
    failure = explained(error, response(200, content), VIRTUAL_MACHINE, named=True)
    assert failure.code == "managed_identity_unknown"
    error = msal.ManagedIdentityError("Unrecognizable WWW-Authenticate header.")
    failure = explained(error, response(401), VIRTUAL_MACHINE)
    assert str(failure).endswith("HTTP 401: Unrecognizable WWW-Authenticate header.")
    assert failure.code == "managed_identity_refused"


# -- this machine ----------------------------------------------------------------------


def test_own_errors() -> None:
    """What this package has found itself stays as it is."""
    error = TokenRequestError("x", code="certificate_unusable")
    assert explained(error, response(200)) is error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "/tokens/1.key"),
        PermissionError(13, "Permission denied", "/tokens/1.key"),
        IsADirectoryError(21, "Is a directory", "/tokens/1.key"),
    ],
)
def test_key_file_of_azure_arc(error: OSError) -> None:
    """It is named, and what is wrong with it."""
    failure = explained(error, response(401), VIRTUAL_MACHINE)
    assert failure.code == "arc_key_unreadable"
    assert f"'/tokens/1.key' can't be read: {error.strerror}." in str(failure)


def test_key_file_that_is_no_text() -> None:
    """A key is text."""
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    failure = explained(error, response(401), VIRTUAL_MACHINE)
    assert (failure.code, "holds no text" in str(failure)) == (
        "arc_key_unreadable",
        True,
    )


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(
    ("made", "why"),
    [
        ("none", "No such file or directory"),
        ("empty", "it holds no certificate"),
        ("binary", "it holds no certificate"),
    ],
)
def test_bundle(
    variable: str, made: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of certificates that can't be used is named, with its variable."""
    path = tmp_path / made
    if made != "none":
        path.write_bytes(b"" if made == "empty" else b"\xff\x00" * 50)
    monkeypatch.setenv(variable, str(path))
    for error in (OSError("no suitable bundle"), requests.exceptions.SSLError("x")):
        failure = explained(error)
        assert failure.code == "token_ca_bundle"
        assert f"${variable} names '{path}'" in str(failure)
        assert why in str(failure)
    # Managed identities don't look at it.
    failure = explained(requests.exceptions.SSLError("x"), None, VIRTUAL_MACHINE)
    assert failure.code == "token_endpoint_untrusted"


def test_bundle_that_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is as good as a file, if its files are named as OpenSSL wants."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    (tmp_path / "root.pem").write_text("")
    failure = explained(requests.exceptions.SSLError("x"))
    assert failure.code == "token_ca_bundle"
    assert f"names '{tmp_path}'" in str(failure)
    assert "openssl rehash" in str(failure)
    (tmp_path / "3513523f.0").write_text("")
    failure = explained(requests.exceptions.SSLError("x"))
    assert failure.code == "token_endpoint_untrusted"


def test_other_errors_of_the_system() -> None:
    """What is nothing of these is told as it is."""
    for error in (
        OSError("no space left"),
        UnicodeEncodeError("ascii", "x", 0, 1, "y"),
    ):
        platform = VIRTUAL_MACHINE if isinstance(error, UnicodeError) else None
        failure = explained(error, None, platform)
        assert failure.code == "token_failed"
        assert type(error).__name__ in str(failure)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (requests.exceptions.SSLError("x"), "token_endpoint_untrusted", "not trusted"),
        (requests.exceptions.ProxyError("x"), "token_proxy", "proxy"),
        (requests.exceptions.ConnectTimeout(), "token_unreachable", "within 10 s"),
        (requests.exceptions.ReadTimeout(), "token_timeout", "REQUEST_TIMEOUT"),
        (requests.exceptions.ConnectionError("x"), "token_unreachable", "reached: x"),
        (requests.exceptions.ContentDecodingError("x"), "token_bad_answer", "decoded"),
        (RecursionError(), "token_patched_late", "monkey-patched"),
        (
            requests.exceptions.InvalidSchema("no SOCKS"),
            "token_proxy",
            "used: no SOCKS",
        ),
        (requests.exceptions.InvalidHeader("x"), "token_unreachable", "reached: x"),
    ],
)
def test_transport(error: Exception, code: str, says: str) -> None:
    """How far the request came tells where to look."""
    failure = explained(error)
    assert failure.code == code
    assert says in str(failure)


@pytest.mark.parametrize(
    ("platform", "variables", "code", "says"),
    [
        (VIRTUAL_MACHINE, (), "managed_identity_unavailable", "the identity endpoint"),
        (APP_SERVICE, ("IDENTITY_ENDPOINT",), NOT_UP, "that $IDENTITY_ENDPOINT tells"),
        (MACHINE_LEARNING, ("MSI_ENDPOINT",), NOT_UP, "that $MSI_ENDPOINT tells of"),
        (AZURE_ARC, ("IDENTITY_ENDPOINT",), NOT_UP, "that $IDENTITY_ENDPOINT tells"),
        # Known by the agent that is installed.
        (AZURE_ARC, (), NOT_UP, "Azure Arc's identity endpoint"),
        # Not all is there by which a platform is known.
        (VIRTUAL_MACHINE, ("IDENTITY_ENDPOINT",), VARIABLES, "$IDENTITY_HEADER"),
        (VIRTUAL_MACHINE, ("IDENTITY_ENDPOINT",), VARIABLES, "$IMDS_ENDPOINT"),
        (VIRTUAL_MACHINE, ("IDENTITY_HEADER",), VARIABLES, "$IDENTITY_ENDPOINT"),
        (VIRTUAL_MACHINE, ("MSI_ENDPOINT",), VARIABLES, "without $MSI_SECRET"),
        (VIRTUAL_MACHINE, ("MSI_SECRET",), VARIABLES, "without $MSI_ENDPOINT"),
    ],
)
def test_transport_to_a_managed_identity(
    platform: Platform,
    variables: tuple[str, ...],
    code: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing there: no managed identity, a sidecar that is not up yet, or variables
    that have got lost."""
    for name in variables:
        monkeypatch.setenv(name, "sesame")
    for error in (
        requests.exceptions.ConnectionError("x"),
        requests.exceptions.ConnectTimeout(),
    ):
        failure = explained(error, None, platform)
        assert failure.code == code
        assert says in str(failure)
        assert "sesame" not in str(failure)


def test_json_that_is_nested_too_deeply() -> None:
    """It is no fault of gevent's."""
    failure = explained(RecursionError(), response(200, "[" * 100_000))
    assert failure.code == "token_not_json"
