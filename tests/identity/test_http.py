"""The HTTP session: bounded, without a kept connection, and wary of what comes back."""

import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from django_entra_redis.identity.http import BoundedSession, parse_retry_after
from tests.support.hostile import raw_server, says
from tests.support.http import serve

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@contextmanager
def begun(
    timeout: float = 30.0, *, trust_env: bool = False
) -> Iterator[BoundedSession]:
    """Give a session whose time has begun."""
    with BoundedSession(timeout, trust_env=trust_env) as session:
        session.begin()
        yield session


def test_no_connection_is_kept() -> None:
    """Each request asks for its connection's end, beside its own headers."""
    with serve() as (url, seen), begun() as session:
        session.get(url)
        session.get(url, headers={"Metadata": "true"})
    assert [headers["Connection"] for headers in seen] == ["close", "close"]
    assert seen[1]["Metadata"] == "true"


def test_hanging_server() -> None:
    """A server that accepts and is silent is given up after the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server, begun(0.05) as session:
        with pytest.raises(requests.Timeout):
            session.get(f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert session.answer is None
        assert session.retry_after() is None


def test_one_timeout_for_all_requests() -> None:
    """The time is that of all requests together, and begin() starts it anew."""
    now = [100.0]
    with serve() as (url, seen):
        session = BoundedSession(10.0, trust_env=False, monotonic=lambda: now[0])
        session.begin()
        session.get(url)
        now[0] = 110.0
        with pytest.raises(requests.Timeout, match="no time left"):
            session.get(url)
        assert session.answer is not None
        session.begin()
        assert session.answer is None
        session.get(url)
        session.close()
    assert len(seen) == 2


@pytest.mark.parametrize("body", [b"<html></html>", b"", b"\xff\xfe", b'{"token": "ey'])
def test_not_json(body: bytes) -> None:
    """What is not JSON goes no further, and can be looked at."""
    with serve(502, body, Retry_After="7") as (url, _), begun() as session:
        with pytest.raises(ValueError, match=r"Expecting value|Unterminated"):
            session.get(url)
        assert session.answer is not None
        assert session.answer.status_code == 502
        assert session.retry_after() == 7.0


@pytest.mark.parametrize("chunks", [b"", b"5\r\n{}", b"x\r\n{}\r\n", b"-1\r\n"])
def test_body_that_breaks_off(chunks: bytes) -> None:
    """What ends before its end, or can't be read, is a connection's error."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw_server(says(head + chunks)) as server, begun() as session:
        with pytest.raises(requests.ConnectionError):
            session.get(server.url)
        assert session.answer is None


def test_challenge() -> None:
    """Azure Arc's challenge needs no body that is JSON."""
    header = "Basic realm=/var/opt/azcmagent/tokens/1.key"
    with serve(401, b"", WWW_Authenticate=header) as (url, _), begun() as session:
        assert session.get(url).headers["WWW-Authenticate"] == header


def test_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxies count where they are to count, only."""
    with serve(body=b"1") as (proxy, through), serve(body=b"2") as (url, direct):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with begun() as session:
            assert session.get(url).text == "2"
        with begun(trust_env=True) as session:
            assert session.get(url).text == "1"
    assert (len(through), len(direct)) == (1, 1)


@pytest.mark.parametrize("entry", ["machine 127.0.0.1", "default"])
@pytest.mark.parametrize("trust_env", [False, True])
def test_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, trust_env: bool
) -> None:
    """A password in ~/.netrc is not the identity endpoint's to see."""
    path = tmp_path / ".netrc"
    path.write_text(f"{entry} login me password sesame\n")
    path.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with serve() as (url, seen), begun(trust_env=trust_env) as session:
        assert requests.get(url, timeout=30.0).ok
        session.get(url)
        session.get(url, headers={"Authorization": "Basic key"})
    assert "Authorization" in seen[0]
    assert [headers.get("Authorization") for headers in seen[1:]] == [None, "Basic key"]


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Mon, 23 Nov 2026 12:00:00 GMT", NOW.timestamp()),
        ("Mon, 23 Nov 2026 13:00:00 +0100", NOW.timestamp()),
        # Without a zone it is UTC (RFC 9110, 5.6.7), wherever this machine is.
        ("Mon, 23 Nov 2026 12:00:00 -0000", NOW.timestamp()),
        ("Mon Nov 23 12:00:00 2026", NOW.timestamp()),
        ("Monday, 23-Nov-26 12:00:00 GMT", NOW.timestamp()),
        ("noon", None),
        ("", None),
        ("Mon, 23 Nov 99999 12:00:00 GMT", None),
    ],
)
def test_answered_at(
    date: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's time is what its Date header says."""
    monkeypatch.setenv("TZ", "America/Chicago")
    time.tzset()
    session = BoundedSession(1.0, trust_env=False)
    assert session.answered_at() is None
    session.answer = requests.Response()
    assert session.answered_at() is None
    session.answer.headers["Date"] = date
    try:
        assert session.answered_at() == seconds
    finally:
        monkeypatch.undo()
        time.tzset()
    session.close()


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry_After": "12"}, 12.0),
        (503, {"Retry_After": "soon"}, None),
        (503, {}, None),
    ],
)
def test_retry_after(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    """What the last answer asks for is told, also that of an error."""
    with serve(status, b"{}", **headers) as (url, _), begun() as session:
        session.get(url)
        assert session.retry_after() == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("-5", 0.0),
        ("86400", 3600.0),
        ("9" * 400, 3600.0),
        ("9" * 5000, None),
        ("Mon, 23 Nov 2026 12:01:00 GMT", 60.0),
        ("Mon, 23 Nov 2026 12:01:00 -0000", 60.0),
        ("Mon, 23 Nov 2026 13:01:00 +0100", 60.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("Mon, 23 Nov 2099 11:00:00 GMT", 3600.0),
        ("", None),
        ("1.5", None),
        ("soon", None),
    ],
)
def test_parse_retry_after(value: str, seconds: float | None) -> None:
    """Seconds and HTTP dates are understood, up to an hour."""
    assert parse_retry_after(value, NOW) == seconds


@given(
    st.one_of(
        st.text(),
        st.integers().map(str),
        st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ \S+"),
        st.lists(st.integers().map(str)).map(" ".join),
    )
)
def test_parse_any_retry_after(value: str) -> None:
    """Whatever a server sends is a wait between none and an hour, or nothing."""
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or (0.0 <= seconds <= 3600.0 and math.isfinite(seconds))


@given(st.integers(0, 3600))
def test_parse_retry_after_dates(seconds: int) -> None:
    """A date is so many seconds from now."""
    value = (NOW + timedelta(seconds=seconds)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert parse_retry_after(value, NOW) == seconds
