"""Where the live suite finds its cache, and the report that it prints."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version

import django
import pytest
import redis
from django.test import override_settings

from django_entra_redis.credentials import provider

from .report import Report

#: What the machine says of its identity, before the other tests' fixture hides it.
ENVIRON = dict(os.environ)
URL = ENVIRON.get("AZURE_REDIS_URL", "")
REPORT = Report()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what can be pasted into an issue: no host, no principal, no secret."""
    if REPORT.lines:
        terminalreporter.section("live report: paste this into an issue")
        for line in REPORT.lines:
            terminalreporter.line(line)


@pytest.fixture
def report() -> Report:
    """Give what the report is written to."""
    return REPORT


@pytest.fixture(scope="session")
def versions() -> str:
    """Tell the versions once."""
    names = ("redis", "msal")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    told = f"Python {platform.python_version()}, Django {django.__version__}, {found}"
    REPORT.add("versions", told)
    return told


@pytest.fixture
def live(
    clean_environment: None, versions: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Point Django's default cache at the one that $AZURE_REDIS_URL names."""
    if not URL:
        pytest.skip("needs $AZURE_REDIS_URL, an Azure cache's URL")
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    kind = "Cluster" if ENVIRON.get("AZURE_REDIS_CLUSTER") == "1" else ""
    # Its own keys alone: clear() is never called, and the cache may be in use.
    options = {
        "clear_by_scan": True,
        "ssl_ca_certs": ENVIRON.get("AZURE_REDIS_CA_CERTS"),
    }
    caches = {
        "default": {
            "BACKEND": f"django_entra_redis.cache.EntraRedis{kind}Cache",
            "LOCATION": URL,
            "KEY_PREFIX": "django-entra-redis-live",
            "OPTIONS": options,
        }
    }
    discovery = ENVIRON.get("AZURE_REDIS_INSTANCE_DISCOVERY") != "0"
    identity = {
        "INSTANCE_DISCOVERY": discovery,
        # A token of an hour is renewed after a few seconds.
        "REFRESH_RATIO": 0.002 if not ENVIRON.get("AZURE_REDIS_SHORT") else 0.3,
    }
    with override_settings(CACHES=caches, ENTRA_REDIS={"default": identity}):
        yield URL
    provider.reset()


def server_version(client: redis.Redis) -> str:
    """Return the version that a server gives, or "?" where INFO is refused."""
    try:
        return str(client.info("server").get("redis_version", "?"))
    except redis.RedisError:  # pragma: no cover - where an access policy refuses INFO
        return "?"
