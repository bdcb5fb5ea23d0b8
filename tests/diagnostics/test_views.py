"""Probes: what they say of identities and caches, to whom, and what they never say."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest
from django.test import Client, override_settings
from django.urls import include, path, reverse

from django_entra_redis.credentials import get_credential_provider
from django_entra_redis.diagnostics import health
from django_entra_redis.diagnostics.health import caches_health
from django_entra_redis.exceptions import TokenError
from emulator import Emulator
from tests.support.caches import PATIENCE, wait_until
from tests.support.sites import BACKEND, Credential, Site

LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}


class Urls(ModuleType):
    """A site's addresses."""

    urlpatterns: tuple[Any, ...] = (
        path("health/", include("django_entra_redis.urls"), {"ping": True}),
        path("open/", include("django_entra_redis.urls", namespace="open")),
    )


@pytest.fixture
def site(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Return a site with probes."""
    found = Site(emulator, monkeypatch)
    with override_settings(ROOT_URLCONF=Urls("urls"), ALLOWED_HOSTS=["testserver"]):
        yield found


def ask(address: str = "/health/") -> tuple[int, dict[str, Any]]:
    """Return the status and the document of a probe."""
    response = Client().get(address)
    assert response["Content-Type"] == "application/json"
    assert "no-store" in response["Cache-Control"]
    document: dict[str, Any] = json.loads(response.content)
    return response.status_code, document


def test_addresses(site: Site) -> None:
    """They have names of their own, which are reversed in their namespace."""
    names = ["health", "ready", "live"]
    addresses = [reverse(f"django_entra_redis:{name}") for name in names]
    assert addresses == ["/health/", "/health/ready/", "/health/live/"]


@pytest.mark.parametrize("address", ["/health/", "/health/ready/"])
def test_ready(site: Site, address: str) -> None:
    """A process with a valid token is ready; what it says is in its memory."""
    with site.settings():
        provider = get_credential_provider()
        provider.get_credentials()
        requests, connections = (
            len(site.emulator.requests),
            site.emulator.stats.connections_opened,
        )
        status, document = ask(address)
        (identity,) = document["identities"]
        known = provider.status()
    assert (status, document["ok"], identity["ok"]) == (200, True, True)
    assert document.keys() == {"ok", "identities"}
    assert (identity["identity"], identity["renewals"]) == ("default", 0)
    assert known.expires_at is not None
    assert identity["expires_at"][:19] == known.expires_at.isoformat()[:19]
    assert len(site.emulator.requests) == requests
    assert site.emulator.stats.connections_opened == connections


def wait_for_request(site: Site) -> None:
    """Wait until a token has been asked for.

    Python 3.11 does not close a socket whose peer has gone before the handshake, as the
    emulator has at the end of a test.
    """
    wait_until(lambda: bool(site.emulator.requests))


def test_not_ready_yet(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A process without a token is not, and says so at once, and not in the log."""
    site.emulator.faults.fail("hang", endpoint="token")
    with site.settings(), caplog.at_level(logging.INFO):
        status, document = ask()
        wait_for_request(site)
    assert (status, document["ok"]) == (503, False)
    assert document["identities"][0]["expires_at"] is None
    assert caplog.text == ""


def test_becomes_ready(site: Site) -> None:
    """The probes alone are enough for a process to become ready."""
    with site.settings():
        wait_until(lambda: ask()[0] == 200)


def test_alive_in_an_outage(site: Site) -> None:
    """An outage of Entra does not end with a restart: the process is alive."""
    site.emulator.faults.fail("500", endpoint="token")
    with site.settings():
        ready, _ = ask("/health/ready/")
        alive, document = ask("/health/live/")
        wait_for_request(site)
    assert (ready, alive, document["ok"]) == (503, 200, True)
    assert not document["identities"][0]["ok"]


def test_ping(site: Site) -> None:
    """Readiness can be asked to have the caches answer, too."""
    with site.settings():
        status, document = ask("/health/?ping=1")
        (cache,) = document["caches"]
        assert (status, cache["cache"], cache["ok"]) == (200, "default", True)
        assert cache["ms"] > 0
        site.emulator.set_access(site.emulator.application.object_id, None)
        status, document = ask("/health/?ping=1")
        (cache,) = document["caches"]
    assert status == 503
    assert (document["ok"], cache["ok"], cache["error"]) == (
        False,
        False,
        "TokenRefusedError",
    )


def test_ping_asks_only_caches_with_an_identity(site: Site) -> None:
    """A local cache beside them is nobody's business here."""
    plain = {
        "BACKEND": BACKEND,
        "LOCATION": "redis://127.0.0.1:1",
        "OPTIONS": {"identity": None},
    }
    default = {"BACKEND": BACKEND, "LOCATION": site.location, "OPTIONS": site.options}
    with override_settings(
        CACHES={"default": default, "plain": plain, "local": LOCMEM},
        ENTRA_REDIS={"default": site.identity},
    ):
        _, document = ask("/health/?ping=1")
    assert [cache["cache"] for cache in document["caches"]] == ["default"]


def test_ping_by_strangers(site: Site) -> None:
    """Where the addresses do not say so, nobody has a worker wait for a cache."""
    with site.settings():
        get_credential_provider().get_credentials()
        connections = site.emulator.stats.connections_opened
        status, document = ask("/open/ready/?ping=1")
        assert site.emulator.stats.connections_opened == connections
    assert status == 200
    assert document.keys() == {"ok", "identities", "ping"}
    assert document["ping"] == "off"


@pytest.fixture
def silent_caches() -> Iterator[list[socket.socket]]:
    """Return the sockets of servers that never answer, each that of a cache."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(3)
        ]
        locations = [f"redis://127.0.0.1:{s.getsockname()[1]}" for s in servers]
        options = {"socket_timeout": 60}
        stack.enter_context(
            override_settings(
                CACHES={"default": LOCMEM}
                | {
                    f"silent-{number}": {
                        "BACKEND": BACKEND,
                        "LOCATION": location,
                        "OPTIONS": options,
                    }
                    for number, location in enumerate(locations)
                },
                ENTRA_REDIS={
                    "default": {"CREDENTIAL": Credential("token"), "USERNAME": "me"}
                },
            )
        )
        yield servers


def test_silent_caches(silent_caches: list[socket.socket]) -> None:
    """They hold nobody up for longer than one would, nor once more with each probe."""
    for _ in range(3):
        found = caches_health(timeout=0.05)
        assert [health.cache for health in found] == [
            "silent-0",
            "silent-1",
            "silent-2",
        ]
        assert {health.error for health in found} == {"TimeoutError"}
        assert not any(health.ok for health in found)
    for server in silent_caches:
        server.settimeout(PATIENCE)
        with server.accept()[0]:
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()


def test_silent_caches_after_a_fork(silent_caches: list[socket.socket]) -> None:
    """A child does not wait for what the parent's threads have begun."""
    caches_health(timeout=0.0)
    assert health._pings
    # In one line, since what measures coverage sees no others of the child in here.
    child = os.fork() or os._exit(len(health._pings))
    assert os.waitpid(child, 0)[1] == 0


def test_a_ping_that_fails_otherwise(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told by its kind, as all else."""

    def fail(*args: Any) -> None:
        raise RuntimeError("details")

    monkeypatch.setattr(health, "cache_health", fail)
    with site.settings():
        (found,) = caches_health()
    assert (found.ok, found.error) == (False, "RuntimeError")


def test_broken_settings(site: Site) -> None:
    """Settings that can't be used make a process that is not ready, not an error."""
    site.identity = {"X": 1}
    with site.settings():
        status, document = ask("/health/?ping=1")
    assert status == 503
    assert document["identities"][0] == {
        "identity": "default",
        "ok": False,
        "expires_at": None,
        "renewed_at": None,
        "next_renewal_at": None,
        "renewals": 0,
        "failures": 0,
    }
    assert document["caches"][0]["error"] == "ConfigurationError"


def test_an_identity_that_nothing_uses(site: Site) -> None:
    """An entry for another deployment does not keep this one from being ready."""
    other = {"CREDENTIAL": Credential(""), "USERNAME": "other"}
    with (
        site.settings(),
        override_settings(ENTRA_REDIS={"default": site.identity, "other": other}),
    ):
        get_credential_provider().get_credentials()
        assert ask()[0] == 200
        with pytest.raises(TokenError):
            get_credential_provider("other").get_credentials()
        status, document = ask()
    assert status == 503
    assert [each["identity"] for each in document["identities"]] == ["default", "other"]


def test_nothing_in_use(site: Site) -> None:
    """Where no cache has an identity there is nothing to wait for."""
    with override_settings(CACHES={"default": LOCMEM}, ENTRA_REDIS={}):
        assert ask() == (200, {"ok": True, "identities": []})


def test_no_secret(site: Site) -> None:
    """Neither a token, nor a principal, nor what an error says is for strangers."""
    application = site.emulator.application
    with site.settings():
        get_credential_provider().get_credentials()
        site.emulator.faults.fail("invalid_client")
        site.emulator.revoke(application.object_id)
        _, document = ask("/health/?ping=1")
    text = json.dumps(document)
    for secret in (
        application.secret,
        application.object_id,
        application.client_id,
        site.emulator.tenant_id,
        "eyJ",
        "AADSTS",
    ):
        assert secret not in text


def test_methods(site: Site) -> None:
    """Probes read: GET and HEAD."""
    with override_settings(CACHES={"default": LOCMEM}, ENTRA_REDIS={}):
        assert Client().head("/health/").status_code == 200
        assert Client().post("/health/live/").status_code == 405


# -- django-health-check -------------------------------------------------------------


def health_check(**settings: Any) -> tuple[int, str]:
    """Return what django-health-check's own view says of a cache."""
    views = pytest.importorskip("health_check.views")
    view = views.HealthCheckView.as_view(
        checks=[("django_entra_redis.health_check.EntraRedis", settings)]
    )
    urls = Urls("urls")
    urls.urlpatterns = (path("check/", view),)
    with override_settings(ROOT_URLCONF=urls):
        response = Client().get("/check/", headers={"accept": "application/json"})
    return response.status_code, response.content.decode()


def test_health_check(site: Site) -> None:
    """It passes while the cache answers, and tells the kind of error when not."""
    with site.settings():
        assert health_check()[0] == 200
        site.emulator.set_access(site.emulator.application.object_id, None)
        status, text = health_check(cache="default")
    assert status == 500
    assert "TokenRefusedError" in text
    assert site.emulator.application.object_id not in text


def test_health_check_of_another_cache(site: Site) -> None:
    """A cache of another backend is a mistake, which it tells."""
    with override_settings(CACHES={"default": LOCMEM}):
        status, text = health_check()
    assert status == 500
    assert "is not a cache of django_entra_redis" in text
