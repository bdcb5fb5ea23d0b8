"""What cache objects of equal settings have in common: each thread has one of its own,
and each request under ASGI."""

import asyncio
import threading
from typing import Any

import pytest
import redis
from django.core.exceptions import ImproperlyConfigured
from django.views.debug import ExceptionReporter
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_entra_redis.cache import EntraRedisCache, EntraRedisClusterCache
from django_entra_redis.connections import registry
from django_entra_redis.serializers import JSONSerializer
from tests.support.caches import make_cache

URL = "redis://127.0.0.1:1"
OWN = "django_entra_redis.compressors.ZlibCompressor"


class Reading(EntraRedisCache):
    """One that reads its settings in its own way."""

    def read_options(self, where: str = "CACHES[...]") -> Any:
        """Return them."""
        return super().read_options(where)


@pytest.fixture(autouse=True)
def forget() -> None:
    """Begin with nothing in common."""
    registry.reset()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"socket_timeout": 1.5, "socket_keepalive_options": {1: 2}},
        {"COMPRESSOR": OWN, "compressor_fallbacks": [OWN]},
        {"compressor": None, "serializer": "", "client_side_cache": False},
        {"connection_class": redis.connection.Connection, "retry_on_error": [OSError]},
    ],
)
def test_equal_settings(options: dict[str, Any]) -> None:
    """One client serves them all, whatever their prefix; each kind of cache has one."""

    def make(kind: type[EntraRedisCache], **params: Any) -> EntraRedisCache:
        return kind(URL, {**params, "OPTIONS": {"identity": None, **options}})

    one, other = make(EntraRedisCache), make(EntraRedisCache, KEY_PREFIX="b")
    made = [make(EntraRedisCache)]
    thread = threading.Thread(target=lambda: made.append(make(EntraRedisCache)))
    thread.start()
    thread.join()
    assert one._cache is other._cache is made[0]._cache is made[1]._cache
    assert one._async_cache is other._async_cache
    assert one.options is other.options
    if "connection_class" not in options:
        cluster = make(EntraRedisClusterCache)
        assert cluster._cache is not one._cache
        assert cluster._cache is make(EntraRedisClusterCache)._cache


@pytest.mark.parametrize(
    "options",
    [
        {"retry": Retry(NoBackoff(), 1)},
        {"serializer": "json"},
        {"serializer": JSONSerializer},
        {"COMPRESSOR": __name__ + ".Mine"},
        {"compressor_fallbacks": (OWN, __name__ + ".Mine")},
        {"client_side_cache": True},
        {"client_side_cache": {}},
        {"Client_Side_Cache": True},
        {"socket_keepalive_options": {1: object()}},
    ],
)
def test_what_is_each_ones_own(options: dict[str, Any]) -> None:
    """What need not be made for several threads at once is not used by several."""
    caches = [make_cache(URL, identity=None, **options) for _ in range(2)]
    assert caches[0]._settings_key is None
    assert caches[0]._in_common("x", object) is not caches[1]._in_common("x", object)


def test_a_subclass_with_its_own_ways() -> None:
    """Nothing is taken from a cache that may have another client."""
    assert Reading(URL, {})._settings_key is None
    assert Reading(URL, {}).options == make_cache(URL).options


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"socket_timeout": 1}, {"socket_timeout": 2}),
        ({"db": 1}, {"db": "1"}),
        ({"socket_timeout": 1}, {"socket_timeout": 1.0}),
        ({"ignore_exceptions": False}, {"ignore_exceptions": True}),
        ({"username": "a"}, {"username": "b"}),
    ],
)
def test_other_settings(one: dict[str, Any], other: dict[str, Any]) -> None:
    """They have another client, also where Python takes the values for equal."""
    made = [make_cache(URL, identity=None, **options) for options in (one, other)]
    assert made[0]._cache is not made[1]._cache
    elsewhere = make_cache(f"{URL}/2", identity=None, **one)
    assert elsewhere._cache is not made[0]._cache


def test_settings_that_are_changed_in_place() -> None:
    """A cache object is made by what they are then."""
    options: dict[str, Any] = {"identity": None}
    before = EntraRedisCache(URL, {"OPTIONS": options})
    assert before.options.ignore_exceptions is False
    options["ignore_exceptions"] = True
    after = EntraRedisCache(URL, {"OPTIONS": options})
    assert after.options.ignore_exceptions is True
    assert after._cache is not before._cache


def test_settings_that_are_overridden() -> None:
    """All is made anew; what was being made by then is its maker's alone."""
    before = make_cache(URL, identity=None)._cache
    registry.reset()
    assert make_cache(URL, identity=None)._cache is not before

    def make() -> object:
        registry.reset()
        return object()

    assert registry.in_common("a", make) is not registry.in_common("a", object)


def test_broken_settings() -> None:
    """They are told each time, without the password that the debug page would show."""
    for _ in range(2):
        cache = make_cache("http://a:passw0rd@b", identity=None, password="pa55")

        def asynchronously(key: str, cache: EntraRedisCache = cache) -> Any:
            return asyncio.run(cache.aget(key))

        for use in (cache.get, asynchronously):
            with pytest.raises(ImproperlyConfigured) as told:
                use("key")
            # Without this function, whose text the page would show.
            assert told.tb.tb_next is not None
            frames = told.tb.tb_next.tb_next
            reporter = ExceptionReporter(None, told.type, told.value, frames)
            text = reporter.get_traceback_html()
            assert "in_common" in text
            assert "&lt;settings&gt;" in text
            assert "passw0rd" not in text
            assert "pa55" not in text
