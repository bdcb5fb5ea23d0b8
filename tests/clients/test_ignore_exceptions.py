"""``ignore_exceptions``: a cache that is down answers like an empty one."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.clients import retry
from django_entra_redis.connections import event_loops, registry
from emulator import Emulator
from tests.support.caches import Database, let_in, make_cache, wait_until

Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def fresh(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with nothing, do not wait between tries, and leave no connection."""
    monkeypatch.setattr(retry, "BACKOFF", NoBackoff())
    database.admin.flushall()
    yield
    registry.reset()


def synchronous(cache: EntraRedisCache) -> Call:
    """Return how to call an operation."""
    return lambda name, *args, **kwargs: getattr(cache, name)(*args, **kwargs)


def asynchronous(cache: EntraRedisCache) -> Call:
    """Return how to call an operation in a loop, on the loop's own connection."""

    def call(name: str, *args: Any, **kwargs: Any) -> Any:
        return asyncio.run(getattr(cache, f"a{name}")(*args, **kwargs))

    return call


@pytest.fixture(params=[synchronous, asynchronous])
def calling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give both ways to call a cache's operations."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    return request.param


def test_every_operation(
    database: Database, calling: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is there while the server is down; that is logged once, and its end."""
    url = database.url_of("app", "+@all ~* &*")
    cache = make_cache(url, identity=None, ignore_exceptions=True)
    scanning = make_cache(
        url, identity=None, ignore_exceptions=True, clear_by_scan=True
    )
    call = calling(cache)
    with caplog.at_level(logging.INFO, "django_entra_redis"):
        call("set", "key", 1)
        assert call("get", "key") == 1
        assert caplog.records == []
        database.admin.execute_command("ACL", "SETUSER", "app", "off")
        database.admin.execute_command("CLIENT", "KILL", "USER", "app")
        assert call("get", "key") is None
        assert call("get", "key", "default") == "default"
        assert call("set", "key", 1) is None
        assert call("add", "key", 1) is False
        assert call("touch", "key") is False
        assert call("delete", "key") is False
        assert call("has_key", "key") is False
        assert call("get_many", ["key"]) == {}
        assert call("set_many", {"key": 1, "other": 2}) == ["key", "other"]
        assert call("delete_many", ["key"]) is None
        assert call("get_or_set", "key", 5) == 5
        assert call("clear") is False
        assert calling(scanning)("clear") is False
        for name in ("incr", "decr"):
            with pytest.raises(ValueError, match="not found"):
                call(name, "key")
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "answers like an empty one" in record.getMessage()
        caplog.clear()
        database.admin.execute_command("ACL", "SETUSER", "app", "on")
        assert call("get", "key") == 1
        assert call("incr", "key") == 2
        assert call("clear") is True
        assert calling(scanning)("clear") is True
        (record,) = caplog.records
        assert record.levelname == "INFO"
        assert re.match(
            r"The cache is back\. .* cost 17 operations within \d+\.\d s\.",
            record.getMessage(),
        )


def test_mistakes_are_seen(database: Database, calling: Any) -> None:
    """What is wrong in the code, or in the access policy, is no outage."""
    call = calling(database.cache(ignore_exceptions=True))
    with pytest.raises(Exception, match=r"pickle|local object"):
        call("set", "key", lambda: None)
    call("set", "key", "text")
    with pytest.raises(redis.ResponseError, match="not an integer"):
        call("incr", "key")
    with pytest.raises(ValueError, match="not found"):
        call("incr", "missing")
    narrow = make_cache(
        database.url_of("narrow", "+@all ~other* &*"),
        identity=None,
        ignore_exceptions=True,
    )
    with pytest.raises(redis.ResponseError, match=r"(?i)permission"):
        calling(narrow)("get", "key")


def test_no_token(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, calling: Any
) -> None:
    """An identity that gets no token is an outage too."""
    with let_in(emulator, monkeypatch):
        emulator.faults.fail("500")
        cache = make_cache(
            emulator.redis_url,
            ssl_ca_certs=str(emulator.ca_file),
            ignore_exceptions=True,
        )
        call = calling(cache)
        assert call("get", "key", "default") == "default"
        emulator.faults.recover()
        wait_until(lambda: call("add", "key", 1))
        assert call("get", "key") == 1
