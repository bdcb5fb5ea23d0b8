"""The site: settings from the environment, pages over real HTTP, what they show."""

import re
import runpy
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import requests
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest
from django.test import RequestFactory, override_settings

from django_entra_redis.status import Status
from emulator import Emulator
from testproject import history, siteprocess, snapshot, views
from testproject.siteprocess import SiteError, SiteProcess
from tests.support.demo_site import running_site, visiting

PATIENCE = 60.0
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SETTINGS = Path(siteprocess.__file__).with_name("settings.py")


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds; fail when it does not for very long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Emulator, SiteProcess]]:
    """One emulator and one site for all tests that leave them as they are."""
    with (
        Emulator() as emulator,
        running_site(emulator, tmp_path_factory.mktemp("site")) as site,
    ):
        yield emulator, site


@pytest.fixture
def site(shared: tuple[Emulator, SiteProcess]) -> SiteProcess:
    """The site that is running."""
    return shared[1]


# -- settings


def load_settings(monkeypatch: pytest.MonkeyPatch, **environ: str) -> dict[str, Any]:
    """Run the settings file with nothing but these variables."""
    for name in ("DATABASE_PATH", "DJANGO_ALLOWED_HOSTS", "DJANGO_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return runpy.run_path(str(SETTINGS))


def test_no_environment_is_a_local_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any variable the cache is on this machine, with no identity."""
    settings = load_settings(monkeypatch)
    cache = settings["CACHES"]["default"]
    assert cache["LOCATION"] == "redis://localhost:6379"
    assert cache["OPTIONS"] == {"identity": None}
    assert settings["ENTRA_REDIS"] == {}
    assert settings["DATABASES"]["default"]["NAME"] == SETTINGS.parent / "db.sqlite3"
    assert not settings["DEBUG"]


def test_redis_url_is_all_that_azure_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a URL alone, every other decision is the package's."""
    url = "rediss://contoso.westeurope.redis.azure.net:10000"
    settings = load_settings(monkeypatch, REDIS_URL=url)
    assert settings["CACHES"]["default"]["LOCATION"] == url
    assert settings["CACHES"]["default"]["OPTIONS"] == {}
    assert "ENTRA_REDIS" not in settings


def test_emulator_needs_its_authority_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator's certificate and authority are unknown to the world."""
    settings = load_settings(
        monkeypatch,
        REDIS_URL="rediss://localhost:1",
        REDIS_CA_CERTS="/ca.pem",
        ENTRA_REDIS_EMULATOR="1",
        DATABASE_PATH="/elsewhere/db",
    )
    assert settings["CACHES"]["default"]["OPTIONS"] == {"ssl_ca_certs": "/ca.pem"}
    assert settings["ENTRA_REDIS"] == {"default": {"INSTANCE_DISCOVERY": False}}
    assert settings["DATABASES"]["default"]["NAME"] == "/elsewhere/db"


@pytest.mark.parametrize(
    ("value", "backend"), [("1", "EntraRedisClusterCache"), ("0", "EntraRedisCache")]
)
def test_cluster_has_a_backend_of_its_own(
    monkeypatch: pytest.MonkeyPatch, value: str, backend: str
) -> None:
    """All else is as with one server."""
    settings = load_settings(
        monkeypatch, REDIS_URL="rediss://localhost:1", REDIS_CLUSTER=value
    )
    cache = settings["CACHES"]["default"]
    assert cache["BACKEND"] == f"django_entra_redis.cache.{backend}"
    assert cache["LOCATION"] == "rediss://localhost:1"


def test_open_to_others_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that everybody knows is for loopback."""
    with pytest.raises(ImproperlyConfigured, match="DJANGO_SECRET_KEY"):
        load_settings(monkeypatch, DJANGO_ALLOWED_HOSTS="example.com")
    settings = load_settings(
        monkeypatch, DJANGO_ALLOWED_HOSTS="example.com, *", DJANGO_SECRET_KEY="secret"
    )
    assert settings["SECRET_KEY"] == "secret"
    assert settings["ALLOWED_HOSTS"][:2] == ["example.com", "*"]
    assert settings["CSRF_TRUSTED_ORIGINS"] == ["https://example.com"]


# -- pages


def test_a_stranger_is_sent_to_the_login(site: SiteProcess) -> None:
    """Without a session no page tells anything, and a script is told why."""
    for path in ("", "status/"):
        answer = requests.get(site.url + path, timeout=30, allow_redirects=False)
        assert answer.status_code == 302
        assert answer.headers["Location"] == f"/login/?next=/{path}"
    answer = requests.get(site.url + "status.json", timeout=30)
    assert (answer.status_code, answer.json()) == (401, {"error": "Log in first."})


def test_a_wrong_password_is_refused(site: SiteProcess) -> None:
    """The form comes back with a word on what is wrong."""
    with requests.Session() as session:
        form = session.get(site.url + "login/", timeout=30).text
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', form)
        assert token is not None
        fields = {
            "csrfmiddlewaretoken": token[1],
            "username": "demo",
            "password": "wrong",
        }
        answer = session.post(site.url + "login/", fields, timeout=30)
        assert answer.status_code == 200
        assert "match" in answer.text
        assert "sessionid" not in session.cookies


def test_visits_are_counted_in_session_and_cache(site: SiteProcess) -> None:
    """Each visitor has a counter of their own; the cache counts everybody."""
    with visiting(site) as first, visiting(site) as second:
        for visitor in (first, second, first):
            visitor.visit()
        assert (first.visits, second.visits) == (2, 1)
        assert first.everybody == second.everybody + 1


def test_sessions_live_in_the_cache(shared: tuple[Emulator, SiteProcess]) -> None:
    """A login leaves a key in Redis, and nothing in the database."""
    emulator, site = shared
    with visiting(site), redis.Redis.from_url(emulator.backend_url) as observer:
        assert observer.keys("*django.contrib.sessions.cache*")
    with sqlite3.connect(site.environ["DATABASE_PATH"]) as database:
        rows = database.execute("SELECT COUNT(*) FROM django_session").fetchone()
    database.close()
    assert rows == (0,)


def test_logging_out_ends_the_session(site: SiteProcess) -> None:
    """After it, the session's cookie opens nothing."""
    with visiting(site) as visitor:
        visitor.visit()
        session = visitor.session
        cookie = session.cookies["sessionid"]
        headers = {"X-CSRFToken": session.cookies["csrftoken"]}
        session.post(site.url + "logout/", headers=headers, timeout=30)
        answer = requests.get(
            site.url + "status.json", cookies={"sessionid": cookie}, timeout=30
        )
        assert answer.status_code == 401


def test_a_cached_page_stands_still(site: SiteProcess) -> None:
    """Two loads of the clock show one time, kept in the cache."""

    def rendered() -> str:
        page = requests.get(site.url + "clock/", timeout=30)
        assert page.status_code == 200
        match = re.search(r'id="rendered" datetime="([^"]+)', page.text)
        assert match is not None
        return match[1]

    first, second = rendered(), rendered()
    if first != second:  # pragma: no cover - the ten seconds ended in between
        first, second = second, rendered()
    assert first == second


def test_static_files_are_served(site: SiteProcess) -> None:
    """Style and script come from the site itself, as what they are."""
    page = requests.get(site.url + "login/", timeout=30).text
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    for name, kind in (("site.css", "text/css"), ("status.js", "text/javascript")):
        answer = requests.get(site.url + f"static/testproject/{name}", timeout=30)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith(kind)


def test_status_shows_identity_and_cache(
    shared: tuple[Emulator, SiteProcess],
) -> None:
    """The principal's object ID, the token's life, the cache's round trip."""
    emulator, site = shared
    with visiting(site) as visitor:
        status = visitor.status()
        page = visitor.session.get(site.url + "status/", timeout=30).text
    (identity,) = status["identities"]
    assert identity["identity"] == "default"
    assert identity["oid"] == emulator.application.object_id
    assert identity["state"] == "fresh"
    assert identity["remaining"] > 3000
    assert 0 <= identity["age"] < identity["renewal_after"] < identity["life"]
    assert identity["last_error"] is None
    (cache,) = status["caches"]
    assert cache["location"] == emulator.redis_url
    assert cache["identity"] == "default"
    assert cache["round_trip_ms"] > 0
    assert status["events"][-1]["text"].startswith("Token renewed")
    assert status["pid"] == site.pid
    assert emulator.application.object_id in page


def test_no_secret_is_shown(shared: tuple[Emulator, SiteProcess]) -> None:
    """Neither pages nor the log hold a token or the application's secret."""
    emulator, site = shared
    with visiting(site) as visitor:
        pages = [
            visitor.session.get(site.url + path, timeout=30).text
            for path in ("", "status/", "status.json")
        ]
    for text in (*pages, site.log.read_text()):
        assert emulator.application.secret not in text
        assert "eyJ" not in text  # what every JWT begins with


def test_check_command_passes(site: SiteProcess) -> None:
    """The package's own command finds nothing wrong with the site's cache."""
    status, output = site.manage("entra_redis_check")
    assert status == 0, output


def test_asgi_serves_the_same(site: SiteProcess) -> None:
    """The ASGI entry point answers, from the same cache."""
    script = """
import asyncio
from asgiref.testing import ApplicationCommunicator
from testproject.asgi import application

async def main():
    scope = {"type": "http", "method": "GET", "path": "/clock/", "query_string": b"",
             "headers": [(b"host", b"localhost")]}
    client = ApplicationCommunicator(application, scope)
    await client.send_input({"type": "http.request"})
    start = await client.receive_output(30)
    body = await client.receive_output(30)
    print(start["status"], b"stands still" in body["body"])

asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=site.environ,
        cwd=SETTINGS.parent.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.stdout.split() == ["200", "True"], result.stderr


def test_renewal_outage_and_recovery(emulator: Emulator, tmp_path: Path) -> None:
    """A renewal can be watched; an outage is told, and ends with the session kept."""
    emulator.token_lifetime = 4.0

    def refused() -> bool:
        return visitor.session.get(site.url, timeout=30).status_code == 503

    with running_site(emulator, tmp_path) as site, visiting(site) as visitor:
        visitor.visit()
        eventually(lambda: visitor.status()["identities"][0]["renewals"] > 0)
        emulator.faults.fail("500")
        eventually(refused)
        page = visitor.session.get(site.url, timeout=30)
        assert "cache cannot be reached" in page.text
        emulator.faults.recover()
        eventually(lambda: not refused())
        status = visitor.status()
        assert status["identities"][0]["failures"] > 0
        assert status["identities"][0]["last_error"] is None
        assert {event["ok"] for event in status["events"]} == {True, False}
        yours = re.search(
            r'id="yours" data-visits="(\d+)"',
            visitor.session.get(site.url, timeout=30).text,
        )
        assert yours is not None
        assert int(yours[1]) > visitor.visits, "the session has been lost"


# -- what the pages are made of


def make_status(**changes: Any) -> Status:
    """Make the status of a token that is 4 s old, of 10 s."""
    values = {
        "identity": "default",
        "kind": "service_principal",
        "oid": "oid",
        "renewed_at": NOW - timedelta(seconds=4),
        "next_renewal_at": NOW + timedelta(seconds=3),
        "expires_at": NOW + timedelta(seconds=6),
        "renewals": 2,
        "failures": 0,
        "last_error": None,
    }
    return Status(**{**values, **changes})


def test_a_token_on_its_time_line() -> None:
    """Age, remaining life and the time of renewal are seconds on one line."""
    seen = snapshot.describe_identity(make_status(), NOW)
    assert (seen.age, seen.remaining, seen.life, seen.renewal_after) == (4, 6, 10, 7)
    assert seen.expires_at == "2026-11-24T12:00:06+00:00"


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "fresh"),
        ({"next_renewal_at": NOW}, "due"),
        ({"next_renewal_at": None}, "fresh"),
        ({"last_error": "no route"}, "failing"),
        ({"expires_at": NOW, "last_error": "no route"}, "expired"),
        ({"renewed_at": None, "expires_at": None}, "waiting"),
    ],
)
def test_states_of_an_identity(changes: dict[str, Any], state: str) -> None:
    """One word says how it stands, the worst first."""
    assert snapshot.describe_identity(make_status(**changes), NOW).state == state


def test_broken_settings_are_shown() -> None:
    """An identity that cannot be is part of the page, not a crash."""
    with override_settings(ENTRA_REDIS={"other": {"KIND": "nonsense"}}):
        seen = snapshot.look_at_identity("other", NOW)
    assert seen.state == "broken"
    assert seen.last_error


def test_identities_are_those_of_the_caches() -> None:
    """Caches of other kinds and caches without Entra have none."""
    entra = "django_entra_redis.cache.EntraRedisCache"
    caches = {
        "default": {"BACKEND": entra},
        "again": {"BACKEND": entra, "OPTIONS": {"identity": "default"}},
        "local": {"BACKEND": entra, "OPTIONS": {"identity": None}},
        "other": {"BACKEND": entra, "OPTIONS": {"identity": "another"}},
        "memory": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    }
    with override_settings(CACHES=caches):
        assert snapshot.identities() == ["another", "default"]


def test_a_cache_that_fails_is_shown_without_its_password() -> None:
    """Its error is on the page, its URL's credentials are not."""
    cache = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": ["redis://user:secret@localhost:1/0?password=secret", "unix://x"],
    }
    with override_settings(CACHES={"default": cache}):
        seen = snapshot.look_at_cache("default")
    assert seen.location == "redis://localhost:1/0, unix://x"
    assert seen.error
    assert seen.round_trip_ms is None


def test_history_counts_what_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of many retries is one entry; the newest comes first."""
    monkeypatch.setattr(history, "_events", deque(maxlen=3))
    history.on_token_renewed(identity="default", status=make_status())
    for _ in range(3):
        history.on_token_renewal_failed(identity="default", error="no route")
    history.on_token_renewed(identity="default", status=make_status(expires_at=None))
    assert [(event.text, event.times) for event in history.recent_events()] == [
        ("Token renewed, good until an unknown time", 1),
        ("Renewal failed: no route", 3),
        ("Token renewed, good until 12:00:06", 1),
    ]


def as_user(*, is_staff: bool) -> HttpRequest:
    """Make a request of somebody who is logged in."""
    request = RequestFactory().get("/")
    user: Any = SimpleNamespace(is_authenticated=True, is_staff=is_staff)
    request.user = user
    return request


def test_status_is_for_staff() -> None:
    """Object IDs and errors are not for everybody who may log in."""
    assert views.status_json(as_user(is_staff=False)).status_code == 403
    with pytest.raises(PermissionDenied):
        views.status(as_user(is_staff=False))


def test_other_errors_stay_errors() -> None:
    """Only a cache that fails is a 503."""
    with override_settings(
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
    ):
        assert views.server_error(as_user(is_staff=True)).status_code == 500


# -- the site's processes


def test_user_needs_a_password(tmp_path: Path) -> None:
    """The command says which variable it wants."""
    with SiteProcess(tmp_path, {"DEMO_PASSWORD": ""}) as process:
        status, output = process.manage("create_demo_user")
    assert status == 1
    assert "DEMO_PASSWORD" in output


def test_a_site_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Its output is part of the error."""
    environ = {"DJANGO_ALLOWED_HOSTS": "example.com", "DJANGO_SECRET_KEY": ""}
    with SiteProcess(tmp_path, environ) as process:
        with pytest.raises(SiteError, match="DJANGO_SECRET_KEY"):
            process.serve()
        assert not process.running()
