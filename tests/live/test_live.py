"""The package on a real cache in Azure: see docs/live.md.

Without $AZURE_REDIS_URL all of it is skipped; tests/project/test_live.py runs it
against the emulator.
"""

import asyncio
import contextlib
import json
import time
from io import StringIO

import pytest
from django.core.cache import caches
from django.core.management import CommandError, call_command

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.credentials import get_credential_provider

from .conftest import server_version
from .report import Report

#: Renewals to go through, and seconds that they may take.
RENEWALS = 3
PATIENCE = 120.0


def make_cache() -> EntraRedisCache:
    """Return the cache."""
    cache = caches["default"]
    assert isinstance(cache, EntraRedisCache)
    return cache


def test_check(live: str, report: Report) -> None:
    """The check command finds nothing wrong."""
    out = StringIO()
    with contextlib.suppress(SystemExit, CommandError):  # the document says it all
        call_command("entra_redis_check", "--json", "--timeout", "30", stdout=out)
    found = json.loads(out.getvalue())
    for step in found["caches"][0]["steps"]:
        said = "ok" if step["ok"] else step["code"]
        report.add(f"check, {step['name']}", f"{said}, {step['ms']:.0f} ms")
    assert found["ok"], [step["code"] for step in found["caches"][0]["steps"]]


def test_operations(live: str, report: Report) -> None:
    """Django's cache API, in threads."""
    cache = make_cache()
    report.add("server", server_version(cache.get_client(write=True)))
    names = [f"key-{number}" for number in range(20)]
    try:
        assert cache.set_many(dict.fromkeys(names, "value"), 60) == []
        assert cache.get_many(names) == dict.fromkeys(names, "value")
        cache.set("number", 1, 60)
        assert cache.incr("number", 2) == 3
        assert not cache.add("number", 5, 60)
        assert cache.touch("number", 60)
    finally:
        cache.delete_many([*names, "number"])
    assert cache.get("number") is None
    report.add("operations in threads", "ok")


def test_operations_in_a_loop(live: str, report: Report) -> None:
    """The same in an event loop, on its own connection."""
    cache = make_cache()

    async def use() -> None:
        for number in range(20):
            await cache.aset(f"key-{number}", number, 60)
        names = [f"key-{number}" for number in range(20)]
        values = dict(zip(names, range(20), strict=True))
        try:
            assert await cache.aget_many(names) == values
        finally:
            await cache.adelete_many(names)

    asyncio.run(use())
    report.add("operations in an event loop", "ok")


def test_renewals(live: str, report: Report) -> None:
    """Reads go on through several renewals, on one connection."""
    cache = make_cache()
    provider = get_credential_provider()
    reads, deadline = 0, time.monotonic() + PATIENCE
    cache.set("kept", 1, 600)
    try:
        while provider.status().renewals < RENEWALS and time.monotonic() < deadline:
            assert cache.get("kept") == 1
            reads += 1
            time.sleep(0.05)
    finally:
        cache.delete("kept")
    status = provider.status()
    report.add("kind of identity", status.kind)
    report.add("renewals", f"{status.renewals}, {status.failures} failed requests")
    report.add("reads meanwhile", f"{reads}, no error")
    assert status.failures == 0
    if status.renewals < RENEWALS:  # pragma: no cover - a managed identity's endpoint
        pytest.skip("the identity endpoint hands out one token for most of its life")
