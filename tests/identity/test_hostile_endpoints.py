"""Whoever answers for the identity endpoint gets no secret, no time and no memory."""

import base64
import gzip
import html
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from django_entra_redis.conf.identities import parse_identity
from django_entra_redis.exceptions import TokenRequestError
from django_entra_redis.identity.kinds import make_fetch
from django_entra_redis.identity.token import Fetch
from emulator.certificates import CertificateAuthority
from tests.support.hostile import RawServer, Speak, answer, raw_server, says

SECRET = 'S3cr~t/va+lue"of\\the&application'
HEADER = "853b9a84-5bfa-4b22-a3f3-0b9a43d9ad8a"
TOKEN = {
    "access_token": "opaque",
    "token_type": "Bearer",
    "expires_in": 3600,
    "expires_on": "4102444800",
}
KINDS = ["imds", "app_service", "application"]
#: A limit that only hangs reach.
TIMEOUT = 20.0


def give(content: Any) -> bytes:
    """Return an answer in JSON."""
    return answer(200, json.dumps(content).encode(), Content_Type="application/json")


@contextmanager
def endpoint(
    kind: str,
    speak: Speak,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    timeout: float = TIMEOUT,
    token_endpoint: str | None = None,
) -> Iterator[tuple[RawServer, Fetch]]:
    """Give an endpoint that answers so, and what requests a token of it.

    An application's answers the discovery as Entra does.
    """
    entry: dict[str, Any] = {"USERNAME": "somebody", "REQUEST_TIMEOUT": timeout}
    if kind != "application":
        with raw_server(speak) as server:
            if kind == "imds":
                monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", server.url)
            else:
                monkeypatch.setenv("IDENTITY_ENDPOINT", server.url)
                monkeypatch.setenv("IDENTITY_HEADER", HEADER)
            entry["KIND"] = "managed_identity"
            yield server, make_fetch(parse_identity("default", entry))
        return
    authority = CertificateAuthority()
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "server.pem").write_bytes(authority.server_pem("localhost"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.pem"))

    def discover_first(request: bytes, connection: socket.socket) -> None:
        if request.startswith(b"GET"):
            own = f"https://localhost:{server.port}/tenant"
            found = {"issuer": own, "authorization_endpoint": own}
            connection.sendall(give({**found, "token_endpoint": token_endpoint or own}))
        else:
            speak(request, connection)

    with raw_server(discover_first, folder / "server.pem") as server:
        entry |= {
            "KIND": "service_principal",
            "TENANT_ID": "00000000-0000-0000-0000-000000000001",
            "CLIENT_ID": "00000000-0000-0000-0000-000000000002",
            "CLIENT_SECRET": SECRET,
            "AUTHORITY_HOST": f"localhost:{server.port}",
            "INSTANCE_DISCOVERY": False,
        }
        yield server, make_fetch(parse_identity("default", entry))


def failure(fetch: Fetch) -> TokenRequestError:
    """Return the error of a request, on which no foreign frames hang."""
    with pytest.raises(TokenRequestError) as info:
        fetch()
    assert (info.value.__cause__, info.value.__context__) == (None, None)
    return info.value


@pytest.mark.parametrize("kind", KINDS)
def test_the_servers_are_endpoints(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without an attack each gives a token, and is sent what it is to be sent."""
    with endpoint(kind, says(give(TOKEN)), monkeypatch, tmp_path) as (server, fetch):
        assert fetch().value == "opaque"
    sent = {"imds": b"Metadata", "app_service": HEADER.encode(), "application": b"S3cr"}
    assert sent[kind] in server.requests[-1]


#: Of an answer that is no redirect, all that can be a refusal.
REFUSALS = [304, 400, 401, 403, 404, 409, 429, 500, 503]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("inside", [False, True])
def test_no_token_is_taken_from_a_refusal(
    kind: str,
    status: int,
    inside: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The status counts, also where it stands in the JSON, and no token beside it."""
    content = json.dumps({**TOKEN, "statusCode": status} if inside else TOKEN).encode()
    data = answer(200 if inside else status, content, Content_Type="application/json")
    with endpoint(kind, says(data), monkeypatch, tmp_path) as (_, fetch):
        error = failure(fetch)
    assert str(error).startswith(f"the identity endpoint answered HTTP {status}")
    passing = status in (429, 500, 503) or (kind != "application" and status == 404)
    assert (error.code == "token_endpoint_failing") is passing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["sésame", "a b", "a\r\nAUTH x y", " ", "\0"])
def test_what_can_not_be_sent_is_no_token(
    kind: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No command can be smuggled in with a token, and none fails when it is packed."""
    speak = says(give({**TOKEN, "access_token": value}))
    with endpoint(kind, speak, monkeypatch, tmp_path) as (_, fetch):
        error = failure(fetch)
    assert error.code == "token_bad_answer"
    assert "is no access token" in str(error)


def test_token_in_a_refusal_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After some in a row Entra is asked for its own endpoints anew."""
    data = answer(400, json.dumps(TOKEN).encode())
    with endpoint("application", says(data), monkeypatch, tmp_path) as (server, fetch):
        for asked in (1, 1, 1, 2):
            failure(fetch)
            assert sum(sent.startswith(b"GET") for sent in server.requests) == asked


# -- redirects


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    kind: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing goes where it leads, and no token comes from there."""
    with raw_server(says(give(TOKEN))) as other:
        redirect = answer(status, json.dumps(TOKEN).encode(), Location=other.url)
        speak = says(redirect)
        with endpoint(kind, speak, monkeypatch, tmp_path) as (server, fetch):
            error = failure(fetch)
    assert (error.code, other.requests) == ("token_redirected", [])
    assert f"HTTP {status}, a redirect to 127.0.0.1. " in str(error)
    assert len(server.requests) == (2 if kind == "application" else 1)


@pytest.mark.parametrize("location", ["", "/there", "//[", "https://a\x1b[2Jb\xff/"])
def test_redirects_to_nowhere(
    location: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What stands for the place may be anything."""
    data = answer(302, b"", Location=location)
    with endpoint("imds", says(data), monkeypatch, tmp_path) as (_, fetch):
        error = failure(fetch)
    assert error.code == "token_redirected"
    assert str(error).isprintable()


def test_discovery_that_names_an_endpoint_without_tls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The secret is not sent there."""
    speak = says(give(TOKEN))
    with (
        raw_server(speak) as other,
        endpoint(
            "application", speak, monkeypatch, tmp_path, token_endpoint=other.url
        ) as (_, fetch),
    ):
        error = failure(fetch)
    assert "should consist of an https url" in str(error)
    assert other.requests == []


def test_discovery_that_names_an_endpoint_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is asked again after some failures, and not believed until a restart."""
    told = ["https://localhost:1/tenant"]

    def speak(request: bytes, connection: socket.socket) -> None:
        own = f"https://localhost:{server.port}/tenant"
        there = told.pop() if told else own
        found = {"issuer": own, "authorization_endpoint": own, "token_endpoint": there}
        connection.sendall(give(found if request.startswith(b"GET") else TOKEN))

    with endpoint("application", speak, monkeypatch, tmp_path) as (server, fetch):
        server.speak = speak
        for _ in range(3):
            assert failure(fetch).code == "token_unreachable"
        for _ in range(3):
            assert fetch().value == "opaque"
        # Two discoveries, and a request for each token.
        assert len(server.requests) == 5


# -- size and time


def pour(start: bytes, piece: bytes) -> Speak:
    """Return what sends pieces without end."""

    def speak(_: bytes, connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(piece)

    return speak


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "speak",
    [
        pour(HEAD + b"\r\n", b" " * 65536),
        pour(HEAD + b"Content-Length: 99999999999\r\n\r\n", b"[" * 65536),
        pour(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
        pour(HEAD, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        pour(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        pour(b"", b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 60000 + b"\r\n\r\n"),
        pour(HEAD, b"x" * 65536),
        pour(HEAD, b"X: y\r\n" * 1000),
    ],
    ids=["stream", "length", "chunks", "odd", "continue", "long", "line", "headers"],
)
def test_nothing_is_read_without_end(
    kind: str, speak: Speak, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a megabyte the connection is closed."""
    with endpoint(kind, speak, monkeypatch, tmp_path) as (server, fetch):
        failure(fetch)
    assert server.cut_off


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_nothing_is_decompressed(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was not asked for; a few kilobytes might become gigabytes."""
    body = gzip.compress(json.dumps({**TOKEN, "padding": "x" * 10_000_000}).encode())
    speak = says(answer(200, body, Content_Encoding=encoding))
    with endpoint("imds", speak, monkeypatch, tmp_path) as (server, fetch):
        assert failure(fetch).code in ("token_not_json", "token_bad_answer")
    assert b"Accept-Encoding: identity\r\n" in server.requests[0]


@pytest.mark.parametrize("charset", ["utf-16", "idna", "punycode", "rot13", "nothing"])
def test_no_charset_is_believed(
    charset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """JSON's own encoding tells itself."""
    kind = f"application/json; charset={charset}"
    speak = says(answer(200, json.dumps(TOKEN).encode(), Content_Type=kind))
    with endpoint("imds", speak, monkeypatch, tmp_path) as (_, fetch):
        assert fetch().value == "opaque"


@pytest.mark.parametrize(
    "line", ["X-No-Colon", f" {HEADER}", "X: \r\r y", "transfer-encoding: chunked"]
)
def test_headers_that_are_none(
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are refused; urllib3 would warn of them with all that they hold."""
    data = HEAD + line.encode() + b"\r\nContent-Length: 2\r\n\r\n{}"
    with endpoint("app_service", says(data), monkeypatch, tmp_path) as (_, fetch):
        assert failure(fetch).code == "token_bad_answer"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def drip(start: bytes, end: threading.Event) -> Speak:
    """Return what sends a byte now and then, until the test is over."""

    def speak(_: bytes, connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            assert not end.wait(0.02)
            connection.sendall(b"1")

    return speak


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "start",
    [b"", HEAD, HEAD + b"\r\n", HEAD + b"Content-Length: 9000\r\n\r\n", CHUNKED],
    ids=["status", "header", "stream", "length", "chunks"],
)
def test_dripping_is_bounded_as_a_whole(
    kind: str, start: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However many reads it takes, at REQUEST_TIMEOUT the connection is closed."""
    end = threading.Event()
    try:
        speak = drip(start, end)
        with endpoint(kind, speak, monkeypatch, tmp_path, 0.5) as (server, fetch):
            assert failure(fetch).code in ("token_timeout", "managed_identity_timeout")
            # Whoever drips notices that nobody reads any more.
            while not server.cut_off:
                assert not end.wait(0.01)
    finally:
        end.set()


def test_a_proxy_is_bounded_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What answers to CONNECT may drip as well, or pour."""
    end = threading.Event()
    try:
        for speak in (drip(HEAD, end), pour(HEAD, b"X: y\r\n" * 1000)):
            with (
                raw_server(speak) as proxy,
                endpoint("application", speak, monkeypatch, tmp_path, 0.5) as (
                    _,
                    fetch,
                ),
            ):
                monkeypatch.setenv("HTTPS_PROXY", proxy.url)
                failure(fetch)
                while not proxy.cut_off:
                    assert not end.wait(0.01)
    finally:
        end.set()


# -- what it says


def deep(depth: int) -> bytes:
    """Return JSON that is nested without end."""
    return b'{"error":' + b"[" * depth


@pytest.mark.parametrize("kind", KINDS)
def test_deep_json_is_the_endpoint_s_fault(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not gevent's."""
    speak = says(answer(200, deep(200_000)))
    with endpoint(kind, speak, monkeypatch, tmp_path) as (_, fetch):
        assert failure(fetch).code in ("token_not_json", "token_bad_answer")


def base64_at(offset: int) -> Callable[[str], str]:
    """Return what has a secret in base64, behind so many bytes."""
    return lambda secret: base64.b64encode(b"x" * offset + secret.encode()).decode()


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in capitals": str.upper,
    "in capitals, quoted": lambda secret: quote(secret.upper(), safe=""),
    "quoted": quote,
    "quoted plus": quote_plus,
    "quoted twice": lambda secret: quote(quote(secret, safe=""), safe=""),
    "all quoted": lambda secret: "".join(f"%{ord(one):02x}" for one in secret),
    "JSON": lambda secret: json.dumps(secret)[1:-1],
    "JSON in numbers": lambda secret: "".join(f"\\u{ord(one):04X}" for one in secret),
    "repr": lambda secret: repr(secret)[1:-1].replace("S", "\\x53"),
    "HTML": html.escape,
    "base64": base64_at(0),
    "base64 + 1": base64_at(1),
    "base64 + 2": base64_at(2),
    "base64 in a URL": lambda secret: base64.urlsafe_b64encode(
        f"id:{secret}".encode()
    ).decode(),
    "hexadecimal": lambda secret: secret.encode().hex(),
    "base64, quoted": lambda secret: quote(base64_at(1)(secret), safe=""),
}


@pytest.mark.parametrize("kind", ["app_service", "application"])
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_secrets_that_the_endpoint_quotes(
    kind: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In whatever form and place: neither in the error nor in any log."""
    caplog.set_level(logging.DEBUG)
    secret = SECRET if kind == "application" else HEADER
    headers = {"WWW_Authenticate": "Bearer x", "Content_Type": "text/plain"}
    said: list[bytes] = []

    def speak(_: bytes, connection: socket.socket) -> None:
        connection.sendall(answer(status, said[-1], **headers))

    with endpoint(kind, speak, monkeypatch, tmp_path) as (_, fetch):
        for form in FORMS.values():
            shown = form(secret)
            text = f"it was {shown} that you sent"
            for key in ("error_description", "error", "message", None):
                said.append(text.encode())
                if key is not None:
                    content = {"error": "invalid_request", key: text}
                    said[-1] = json.dumps(content).encode()
                error = failure(fetch)
                for told in (str(error), caplog.text):
                    for part in (secret, shown, shown.replace("\\", "\\\\")):
                        assert part not in told
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_the_endpoint_quotes(
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that it gave before, and one that only looks like one."""
    caplog.set_level(logging.DEBUG)
    token = "not-at-all-like-a-token"
    random = "q8Zr4TnX0vWb7KcE2mYs9LgP5dHu3JfA"
    answers = [give({**TOKEN, "access_token": token})]
    for given in (token, random):
        refused = {"error": "invalid_request", "error_description": f"not {given}"}
        answers.append(answer(400, json.dumps(refused).encode()))
    left = iter(answers)

    def speak(_: bytes, connection: socket.socket) -> None:
        connection.sendall(next(left))

    with endpoint(kind, speak, monkeypatch, tmp_path) as (_, fetch):
        assert fetch().value == token
        told = [str(failure(fetch)) for _ in range(2)]
    for given in (token, random):
        assert given not in "".join(told) + caplog.text
    assert "not ***" in told[0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_line_is_forged(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is told is one line of print, and not a long one."""
    said = "no\r\nERROR all is well\x1b[2J\x9b31m\u2028\u202e" + "very " * 1000
    for key in ("error", "error_description"):
        body = json.dumps({"error": "refused", key: said}).encode()
        speak = says(answer(400, body))
        with endpoint(kind, speak, monkeypatch, tmp_path) as (_, fetch):
            error = failure(fetch)
        assert str(error).isprintable()
        assert len(str(error)) < 600


def test_what_helps_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Numbers, names and identifiers stay as they are."""
    said = (
        "AADSTS700213: No matching federated identity record found for presented "
        "assertion subject 'system:serviceaccount:my-namespace-1:my-service-account-2' "
        "of 72f988bf-86f1-41af-91ab-2d7cd011db47 at https://login.microsoftonline.com/"
        "72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0 for /subscriptions/72f988bf-86f1-"
        "41af-91ab-2d7cd011db47/resourcegroups/rg1/Microsoft.ManagedIdentity/id1"
    )
    body = json.dumps({"error": "invalid_request", "error_description": said}).encode()
    with endpoint("application", says(answer(400, body)), monkeypatch, tmp_path) as (
        _,
        fetch,
    ):
        assert said in str(failure(fetch))
