"""Whatever answers in place of an identity endpoint."""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from django_entra_redis.conf.identities import parse_identity
from django_entra_redis.exceptions import TokenRequestError
from django_entra_redis.identity.kinds import make_fetch
from django_entra_redis.identity.redaction import redact
from django_entra_redis.identity.token import Fetch, Token
from tests.support.hostile import RawServer

HEADER = "853b9a84-5bfa-4b22-a3f3-0b9a43d9ad8a"

times = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(["3600", "1e9", "", "never", 3600, 4_102_444_800, "9" * 5000]),
)
words = st.text(max_size=30) | st.sampled_from(
    [HEADER, f"x{HEADER}\n\x1b[2J", "é\ud800"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
    ),
    max_leaves=6,
)
contents = anything | st.fixed_dictionaries(
    {},
    optional={
        "access_token": words | anything,
        "expires_in": times | anything,
        "expires_on": times | anything,
        "token_type": anything,
        "resource": anything,
        "error": words | anything,
        "error_description": words | anything,
        "message": words | anything,
        "statusCode": st.integers() | anything,
        "StatusCode": anything,
    },
)
bodies = contents.map(lambda content: json.dumps(content).encode()) | st.binary()
headers = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(b"Content-Type", b"Content-Encoding", b"Transfer-Encoding"),
                *(b"Content-Length", b"Location", b"Retry-After", b"WWW-Authenticate"),
                *(b"Date", b"Set-Cookie", b"Connection"),
            ]
        ),
        st.binary(max_size=20)
        | st.sampled_from(
            [b"gzip", b"chunked", b"Basic realm=/x/y.key", b"-1", b"1e9"]
        ),
    ),
    max_size=3,
)
statuses = st.sampled_from([200, 302, 400, 401, 404, 410, 429, 500]) | st.integers(
    0, 999
)


def written(status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return a response; nothing says that its parts fit."""
    lines = [b"HTTP/1.1 %d Told" % status]
    lines += [b"%b: %b" % field for field in fields]
    return b"\r\n".join([*lines, b"", b""]) + body


_TOKEN = b'{"access_token": "opaque", "expires_in": 3600, "expires_on": "4102444800"}'
RIGHT = written(200, [(b"Content-Length", b"%d" % len(_TOKEN))], _TOKEN)
answers = st.builds(written, statuses, headers, bodies) | st.binary()


class Endpoint(RawServer):
    """Answers what it is given."""

    def __init__(self) -> None:
        super().__init__(self.say)
        self.answer = b""
        #: What it has been sent that nobody is to see.
        self.secret = "nothing of the kind"

    def __enter__(self) -> "Endpoint":
        """Begin."""
        super().__enter__()
        return self

    def say(self, _: bytes, connection: socket.socket) -> None:
        """Answer."""
        connection.sendall(self.answer)


@pytest.fixture(scope="module", params=["imds", "app_service", "arc"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Endpoint, Fetch]]:
    """Give an endpoint, and what requests a token of it."""
    with Endpoint() as endpoint:
        environ = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": endpoint.url}
        if request.param == "app_service":
            environ = {"IDENTITY_ENDPOINT": endpoint.url, "IDENTITY_HEADER": HEADER}
            endpoint.secret = HEADER
        if request.param == "arc":
            environ = {"IDENTITY_ENDPOINT": endpoint.url, "IMDS_ENDPOINT": endpoint.url}
        entry = {"KIND": "managed_identity", "USERNAME": "x", "REQUEST_TIMEOUT": 20.0}
        fetch = make_fetch(parse_identity("default", entry))

        def fetch_there() -> Token:
            with mock.patch.dict(os.environ, environ):
                return fetch()

        yield endpoint, fetch_there


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=answers)
@example(answer=RIGHT)
def test_any_answer(
    served: tuple[Endpoint, Fetch], caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    """It is a token that can be used, or one error of ours, told on one line."""
    endpoint, fetch = served
    endpoint.answer = answer
    caplog.clear()
    with contextlib.suppress(TokenRequestError):
        token = fetch_or_check(fetch, endpoint.secret)
        assert token.value.isascii()
        assert token.life > 0
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert endpoint.secret not in caplog.text


def fetch_or_check(fetch: Fetch, secret: str) -> Token:
    """Return a token; look at the error if there is none, and raise it."""
    try:
        return fetch()
    except TokenRequestError as error:
        told: Any = str(error)
        if not told.isprintable() or secret in told or error.__context__:
            raise AssertionError(told) from error  # pragma: no cover - what is hunted
        raise


@settings(deadline=None)
@given(st.text() | words, st.text(min_size=5), st.text())
def test_any_text(before: str, secret: str, after: str) -> None:
    """It is one line of print without the secret, whatever surrounds it."""
    told = redact(before + secret + after, [secret])
    assert told.isprintable()
    assert secret not in told.replace("***", "") or secret in "*" * len(secret)
