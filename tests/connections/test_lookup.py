"""Host names that can't even be looked up."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from django.core.cache import caches
from django.test import override_settings

from django_entra_redis import aget_redis_connection
from django_entra_redis.connections import event_loops, registry
from tests.support.sites import Credential

BACKEND = "django_entra_redis.cache.EntraRedisCache"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have loops connect at once; leave no connection."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    yield
    registry.reset()


async def get_lent() -> object:
    """Get a key with redis-py's own asynchronous client."""
    client = await aget_redis_connection()
    try:
        return await client.get("key")
    finally:
        await client.aclose()


@pytest.mark.filterwarnings(
    # Python 3.11 forgets to close a socket with TLS for such a name.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:unclosed:ResourceWarning",
)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@pytest.mark.parametrize("identity", ["default", None])
@pytest.mark.parametrize("how", ["sync", "async", "lent"])
def test_no_such_name(scheme: str, identity: str | None, how: str) -> None:
    """Nobody is there, as at any other name that nobody has."""
    cache = {
        "BACKEND": BACKEND,
        "LOCATION": f"{scheme}://contoso..example",
        "OPTIONS": {"identity": identity, "allow_plaintext_token": True},
    }
    entra = {"default": {"CREDENTIAL": Credential("opaque"), "USERNAME": "me"}}
    calls: dict[str, Callable[[], Any]] = {
        "sync": lambda: caches["default"].get("key"),
        "async": lambda: asyncio.run(caches["default"].aget("key")),
        "lent": lambda: asyncio.run(get_lent()),
    }
    with (
        override_settings(CACHES={"default": cache}, ENTRA_REDIS=entra),
        pytest.raises(redis.ConnectionError, match=r"contoso\.\.example"),
    ):
        calls[how]()
    gc.collect()
