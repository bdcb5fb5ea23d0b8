"""The cache backend: every operation, as Django has it, on a real server."""

import asyncio
import copy
import enum
import gc
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import ref

import pytest
import redis
from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.base import InvalidCacheKey
from django.core.cache.backends.redis import RedisCache
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.translation import gettext_lazy

from django_entra_redis.cache.backend import EntraRedisCache, entra_caches
from django_entra_redis.compressors import ZlibCompressor
from django_entra_redis.connections import event_loops, registry
from django_entra_redis.exceptions import (
    ConfigurationError,
    GreetingNotPermittedError,
    GreetingRefusedError,
    UnreadableValueError,
)
from emulator import Emulator
from tests.support.caches import Database, Proxy, let_in, make_cache
from tests.support.sites import ScriptedServer

VALUES: dict[str, Any] = {
    "int": 5,
    "negative": -5,
    "big": 2**70,
    "bool": True,
    "none": None,
    "str": "text",
    "empty": "",
    "bytes": b"\x00\xff",
    "float": 1.5,
    "dict": {"a": [1, (2, 3)], "b": {4}},
    "digits": "5",
}


@pytest.fixture(autouse=True)
def empty(database: Database) -> Iterator[None]:
    """Begin with nothing, and leave no connection."""
    database.admin.flushall()
    yield
    registry.reset()


@pytest.fixture
def cache(database: Database) -> EntraRedisCache:
    """Give a cache without an identity."""
    return database.cache()


@pytest.fixture
def builtin(database: Database) -> Iterator[RedisCache]:
    """Give Django's own cache on the same server."""
    made: Any = RedisCache(database.url, {})
    yield made
    made._cache.get_client("key", write=True).connection_pool.disconnect()


# -- the same bytes as Django's


def stored(database: Database) -> dict[bytes, tuple[bytes, bool]]:
    """Return all keys with their bytes and whether they expire."""
    admin = database.admin
    return {key: (admin.get(key), admin.ttl(key) > 0) for key in admin.keys("*")}


@pytest.mark.parametrize("timeout", [None, 100, 100.9])
def test_writes_what_django_writes(
    database: Database,
    cache: EntraRedisCache,
    builtin: RedisCache,
    timeout: float | None,
) -> None:
    """Keys, values and expiry are Django's to the byte, whoever wrote them."""
    written = []
    for one in (cache, builtin):
        database.admin.flushall()
        for key, value in VALUES.items():
            one.set(key, value, timeout)
            assert one.add(f"added-{key}", value, timeout)
        assert (
            one.set_many({f"many-{key}": VALUES[key] for key in VALUES}, timeout) == []
        )
        written.append(stored(database))
    assert written[0] == written[1]
    assert len(written[0]) == 3 * len(VALUES)
    for key, value in VALUES.items():
        assert cache.get(key) == builtin.get(key) == value
    names = [f"many-{key}" for key in VALUES]
    assert cache.get_many(names) == builtin.get_many(names)
    assert cache.get_many(names) == {f"many-{key}": VALUES[key] for key in VALUES}


@pytest.mark.parametrize(
    "params",
    [
        {"KEY_PREFIX": "prefix", "VERSION": 3},
        {"KEY_FUNCTION": lambda key, prefix, version: f"{key}|{prefix}|{version}"},
        {"TIMEOUT": None},
    ],
)
def test_keys_are_django_s(database: Database, params: dict[str, Any]) -> None:
    """Prefix, version, key function and default timeout count as they do there."""
    written = []
    builtin: Any = RedisCache(database.url, params)
    for one in (database.cache(params=params), builtin):
        database.admin.flushall()
        one.set("key", 1)
        one.set("key", 2, version=7)
        one.set_many({"a": 1, "b": 2})
        one.set_many({"a": 1, "b": 2}, version=7)
        assert one.get_many(["a", "b", "c"], version=7) == {"a": 1, "b": 2}
        one.delete_many(["b"], version=7)
        written.append(stored(database))
    builtin._cache.get_client("key", write=True).connection_pool.disconnect()
    assert written[0] == written[1]


class Named:
    """A key that is no text, and whose formatting is another than its text."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return "formatted"


class Release(str, enum.Enum):  # noqa: UP042 - StrEnum's text is always its value
    """Versions whose text depends on the way in which it is made."""

    NEXT = "next"


@pytest.mark.parametrize(
    "key", [Named("a"), 5, 1.5, None, b"a", ("a",), Release.NEXT, gettext_lazy("a")]
)
@pytest.mark.parametrize("version", [None, Named("b"), Release.NEXT])
def test_one_way_to_make_keys(
    database: Database,
    cache: EntraRedisCache,
    builtin: RedisCache,
    key: Any,
    version: Any,
) -> None:
    """Many keys at once are those of the single ones, and Django's, of any object."""
    assert f"{Named('a')}" != str(Named("a"))
    for writer in (cache, builtin):
        for reader in (cache, builtin):
            writer.set(key, "value", version=version)
            assert reader.get_many([key], version=version) == {key: "value"}
            reader.delete_many([key], version=version)
            writer.set_many({key: "other"}, version=version)
            assert reader.get(key, version=version) == "other"
            reader.delete(key, version=version)
            assert database.admin.dbsize() == 0


class Textless:
    """A key that has no text."""

    def __str__(self) -> str:
        raise LookupError


def made_and_warned_of(make: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return the keys that are made, or the error, and what is warned of meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            made = make()
        except LookupError as error:
            made = error
    return repr(made), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("prefix", ["", "site", "my site"])
@pytest.mark.parametrize(
    "keys",
    [
        [],
        [""],
        ["a", "b"],
        ["a b"],
        ["a", " b", "c\n"],
        ["a", "x" * 260],
        [1, "a b", 2],
        [Textless()],
        ["a b", Textless(), "c d"],
    ],
)
def test_many_keys_are_made_as_single_ones(
    database: Database, prefix: str, keys: list[Any]
) -> None:
    """They are the same, and the same ones are warned of."""
    cache = database.cache(params={"KEY_PREFIX": prefix})
    assert made_and_warned_of(
        lambda: cache._make_and_validate_keys(keys, None)
    ) == made_and_warned_of(lambda: [*map(cache.make_and_validate_key, keys)])


class Missing:
    """An attribute that is not there."""

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        """Tell so."""
        raise AttributeError("there is no from_url")


class Broken(redis.ConnectionPool):
    """A pool class of a user's own that lacks what pools have."""

    from_url = Missing()


def test_attributes_that_are_not_there(database: Database) -> None:
    """The error names them, and does not hide one that it comes of."""
    cache = database.cache()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cache.nothing  # type: ignore[attr-defined]
    broken = database.cache(pool_class=Broken)
    for _ in range(2):
        with pytest.raises(AttributeError, match="from_url"):
            broken.get("key")


def test_a_cache_object_goes_with_its_last_reference(database: Database) -> None:
    """ASGI servers make one for each request."""
    gc.collect()
    gc.disable()
    try:
        cache: EntraRedisCache | None = database.cache()
        assert cache is not None
        known = [ref(cache), ref(copy.deepcopy(cache))]
        cache.get("key")
        cache = None
        assert [one() for one in known] == [None, None]
    finally:
        gc.enable()


def test_a_key_function_that_returns_the_key(
    database: Database, builtin: RedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subclass of ``str`` is sent as what it holds, not as it is formatted."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    params = {"KEY_FUNCTION": lambda key, prefix, version: key}
    cache = database.cache(params=params)
    key: Any = Release.NEXT
    cache.set_many({key: 1})
    assert database.admin.keys("*") == [b"next"]
    assert cache.incr(key) == 2
    assert cache.touch(key) is True
    assert cache.get_many([key]) == {key: 2}
    assert asyncio.run(cache.aget_many([key])) == {key: 2}
    assert asyncio.run(cache.aget(key)) == cache.get(key) == 2
    cache.delete_many([key])
    assert database.admin.dbsize() == 0


@pytest.mark.parametrize("key", [("a",), b"a", 5, None, gettext_lazy("a")])
def test_a_key_function_that_returns_no_text(database: Database, key: Any) -> None:
    """That is an error, as with Django's, whichever way the key is to go."""
    params: dict[str, Any] = {"KEY_FUNCTION": lambda key, prefix, version: key}
    cache = database.cache(params=params)
    for get in (cache.get, RedisCache(database.url, params).get):
        with pytest.raises(TypeError):
            get(key)
    with pytest.raises(TypeError, match="KEY_FUNCTION"):
        asyncio.run(cache.aget_many([key]))


def test_names_of_one_key(
    cache: EntraRedisCache, builtin: RedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several names of one key the last is answered, as Django does it."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    for one in (cache, builtin):
        cache.set("1", "value")
        assert one.get_many([1, "1"]) == {"1": "value"}
        assert one.get_many(["1", 1]) == {1: "value"}
        several: dict[Any, Any] = {1: "first", "1": "last", "2": "more"}
        assert not one.set_many(several)
        assert one.get_many(["1", "2"]) == {"1": "last", "2": "more"}
    several = {"1": "first", 1: "end"}
    assert not asyncio.run(cache.aset_many(several))
    assert builtin.get(1) == "end"


# -- options of redis-py's that decide on bytes


@pytest.mark.parametrize(
    "serializer", [None, "JSONSerializer", "MsgPackSerializer", "OrMsgPackSerializer"]
)
@pytest.mark.parametrize("in_url", [False, True])
def test_decode_responses(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    serializer: str | None,
    in_url: bool,
) -> None:
    """It counts for clients of one's own; the cache reads its bytes all the same."""
    # The loop has its own connection from the first operation on.
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    if serializer and serializer.endswith("MsgPackSerializer"):
        pytest.importorskip("ormsgpack")
    options: dict[str, Any] = {} if in_url else {"decode_responses": True}
    if serializer:
        options["serializer"] = f"django_entra_redis.serializers.{serializer}"
    url = database.url + ("?decode_responses=true" if in_url else "")
    cache = make_cache(url, identity=None, **options)
    for number in (5, 10**30, -7):
        cache.set("number", number)
        assert cache.get("number") == number
    for value in ("text", {"a": [1, None]}, 1.5):
        cache.set("key", value)
        assert cache.get("key") == value
        assert cache.get_many(["key", "number"]) == {"key": value, "number": -7}
    assert cache.incr("number") == -6
    assert set(cache.keys()) == {"key", "number"}
    assert set(cache.iter_keys("k*")) == {"key"}
    assert cache.delete_pattern("k*") == 1
    assert asyncio.run(cache.akeys("n*")) == ["number"]
    assert cache.get_client().get(cache.make_key("number")) == "-6"
    assert cache.ttl("number") == 300


@pytest.mark.parametrize("count", [5000, 20_000])
def test_integer_that_is_too_long(cache: EntraRedisCache, count: int) -> None:
    """It is the error that Python makes of it, in each operation."""
    number = int("9" * count, 16)
    cache.set("key", 1)
    pipeline: Any = cache.get_client().pipeline()
    calls: list[Callable[[], object]] = [
        lambda: cache.set("key", number),
        lambda: cache.set_many({"key": number}),
        lambda: cache.add("other", number),
        lambda: cache.get_or_set("other", number),
        lambda: cache.lock("lock", timeout=number).acquire(blocking=False),
        lambda: cache.get_client().set("key", number),
        lambda: pipeline.set("key", number).execute(),
        lambda: cache.set("key", number, xx=True),
        lambda: cache.set("other", number, nx=True),
        lambda: cache.incr("key", number),
        lambda: cache.decr("key", number),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="integer string conversion"):
            call()
    assert cache.get("key") == 1
    assert not cache.has_key("other")


# -- the operations


def test_get(cache: EntraRedisCache) -> None:
    """A key that is not there gives the default; None is a value too."""
    assert cache.get("key") is None
    assert cache.get("key", "default") == "default"
    cache.set("key", None)
    assert cache.get("key", "default") is None


@pytest.mark.usefixtures("asgiref_thread")
@pytest.mark.parametrize("part", [1.01, True])
def test_a_subclass_that_spreads_timeouts(database: Database, part: float) -> None:
    """Its timeouts are whole seconds, and those of other caches stay what they are."""

    class Spread(EntraRedisCache):
        def get_backend_timeout(self, timeout: Any = None) -> Any:
            return (super().get_backend_timeout(timeout) or 0) * part

    spread: Any = Spread(database.url, {"OPTIONS": {"identity": None}})

    async def asynchronously() -> None:
        await spread.aset("d", 1, 77)
        await spread.aadd("e", 1, 77)

    spread.set("a", 1, 77)
    spread.add("b", 1, 77)
    spread.set_many({"c": 1}, 77)
    asyncio.run(asynchronously())
    spread.set("f", 1, None)
    assert spread.touch("a", 77)
    assert spread.get_or_set("g", lambda: 1, 77) == 1
    for name in "abcdeg":
        assert 70 < database.admin.ttl(f":1:{name}") <= 77
    plain = database.cache()
    plain.set("a", 1, 77)
    plain.set("a", 1, 1)
    assert plain.set_many({"a": 1}, 77) == []
    assert plain.add("other", 1, 77)


def test_set_with_no_timeout_left(cache: EntraRedisCache) -> None:
    """A timeout of 0, or below, removes the key."""
    for timeout in (0, -1):
        cache.set("key", 1)
        cache.set("key", 2, timeout)
        assert cache.get("key") is None
        cache.set_many({"key": 1, "other": 2})
        assert cache.set_many({"key": 1, "other": 2}, timeout) == []
        assert cache.get_many(["key", "other"]) == {}


def test_add(database: Database, cache: EntraRedisCache) -> None:
    """Only a key that is not there is added."""
    assert cache.add("key", 1) is True
    assert cache.add("key", 2) is False
    assert cache.get("key") == 1
    assert cache.add("forever", 1, None) is True
    assert database.admin.ttl(":1:forever") == -1
    assert cache.add("key", 1, 0) is False
    assert cache.add("gone", 1, 0) is True
    assert cache.get("gone") is None


def test_touch(database: Database, cache: EntraRedisCache) -> None:
    """The timeout is set anew, or taken away; a missing key is told."""
    assert cache.touch("key") is False
    assert cache.touch("key", None) is False
    cache.set("key", 1, 10)
    assert cache.touch("key", 1000) is True
    assert database.admin.ttl(":1:key") > 10
    for _ in range(2):
        assert cache.touch("key", None) is True
        assert database.admin.ttl(":1:key") == -1
    assert cache.touch("key", 0) is True
    assert cache.get("key") is None


def test_delete(cache: EntraRedisCache) -> None:
    """A key is deleted, and whether it was there is told."""
    cache.set("key", 1)
    assert cache.delete("key") is True
    assert cache.delete("key") is False


def test_has_key(cache: EntraRedisCache) -> None:
    """Whether a key is there is told, also by the operator."""
    assert not cache.has_key("key")
    cache.set("key", None)
    assert cache.has_key("key")
    assert "key" in cache
    assert "other" not in cache


def test_many_of_nothing(database: Database, cache: EntraRedisCache) -> None:
    """Nothing at all is no error, generators included, and asks nobody."""
    cache.get("key")
    before = database.received("total_commands_processed")
    assert cache.get_many([]) == {}
    assert cache.get_many(key for key in "") == {}
    assert cache.set_many({}) == []
    cache.delete_many([])
    cache.delete_many(key for key in "")
    assert database.received("total_commands_processed") == before + 1


def test_many_from_a_generator(cache: EntraRedisCache) -> None:
    """Keys may come one at a time."""
    cache.set_many({"a": 1, "b": 2, "c": 3})
    assert cache.get_many(key for key in "abx") == {"a": 1, "b": 2}
    cache.delete_many(key for key in "abx")
    assert cache.get_many("abc") == {"c": 3}


def test_partial_failure(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """set_many returns the keys that Redis refused, and sets the others."""
    url = database.url_of("partial", "+@all ~*good* &*")
    cache = make_cache(url, identity=None, params={"VERSION": 2})
    data = {"good-1": 1, "bad": 2, "good-2": 3}
    assert cache.set_many(data) == ["bad"]
    assert cache.set_many(data, 0) == ["bad"]
    assert cache.set_many(data, 100) == ["bad"]
    assert "1 of 3 keys could not be set" in caplog.text
    assert database.admin.keys("*bad*") == []
    assert cache.get_many(["good-1", "good-2"]) == {"good-1": 1, "good-2": 3}


class Unpicklable:
    """A value that can't be pickled."""

    def __reduce__(self) -> str:
        raise pickle.PicklingError("no")


class Failing:
    """A serializer that fails."""

    def dumps(self, obj: Any) -> bytes:
        """Raise."""
        raise pickle.PicklingError("no")

    def loads(self, data: bytes) -> Any:
        """Return what is there."""
        return data


def test_unpicklable_value(database: Database, cache: EntraRedisCache) -> None:
    """A value that can't be written is an error before anything is sent."""
    value: Any = Unpicklable()
    for kind in (cache, database.cache(serializer=Failing)):
        with pytest.raises(pickle.PicklingError):
            kind.set("key", value)
        with pytest.raises(pickle.PicklingError):
            kind.add("key", value)
        with pytest.raises(pickle.PicklingError):
            kind.set_many({"a": "b", "key": value})
    assert database.admin.dbsize() == 0


def test_serializer(database: Database) -> None:
    """Another serializer reads what is there, in its own way."""
    database.admin.set(":1:key", b"raw")
    assert database.cache(serializer=f"{__name__}.Failing").get("key") == b"raw"


def test_what_others_have_compressed(database: Database) -> None:
    """It is read as far as the options go, and no further."""
    cache = database.cache(compressor=ZlibCompressor)
    cache.set("key", "x" * 1000)
    short: dict[str, Any] = {"compressor": ZlibCompressor, "max_value_bytes": 999}
    for options in ({}, short):
        with pytest.raises(UnreadableValueError):
            database.cache(**options).get("key")
    fallback = database.cache(compressor_fallbacks=[ZlibCompressor])
    assert fallback.get("key") == "x" * 1000


def test_key_warnings_are_django_s(cache: EntraRedisCache, builtin: RedisCache) -> None:
    """Keys that Django warns of are warned of here, in every operation."""
    for key in (
        "with space",
        "x" * 250,
        "tab\t",
        "line\n",
        "\x7f",
        "\x80",
        "ümlaut",
        "ok",
    ):
        for name, arguments in {
            "set": (key, 1),
            "get": (key,),
            "get_many": (["good", key],),
            "set_many": ({"good": 1, key: 1},),
            "delete_many": (["good", key],),
            "has_key": (key,),
        }.items():
            said = []
            for one in (cache, builtin):
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always")
                    getattr(one, name)(*arguments)
                said.append([str(warning.message) for warning in warned])
            assert said[0] == said[1]
            assert bool(said[0]) is (key not in ("\x80", "ümlaut", "ok"))


class Strict(EntraRedisCache):
    """Forbids keys, as a subclass may."""

    def validate_key(self, key: str) -> None:
        """Forbid some."""
        if "forbidden" in key:
            raise InvalidCacheKey(key)


class Shouting(EntraRedisCache):
    """Makes keys in its own way."""

    def make_key(self, key: Any, version: int | None = None) -> str:
        """Return a key in capitals."""
        return str(super().make_key(key, version=version)).upper()


def test_subclass_validates(database: Database) -> None:
    """A subclass's own validation is asked for every key."""
    cache = Strict(database.url, {"OPTIONS": {"identity": None}})
    cache.set("good", 1)
    for operation in (
        lambda: cache.get("forbidden"),
        lambda: cache.get_many(["good", "forbidden"]),
        lambda: cache.set_many({"good": 1, "forbidden": 2}),
        lambda: cache.delete_many(["forbidden"]),
    ):
        with pytest.raises(InvalidCacheKey):
            operation()


def test_subclass_makes_keys(database: Database) -> None:
    """A subclass's own keys are used everywhere."""
    cache = Shouting(database.url, {"OPTIONS": {"identity": None}})
    cache.set_many({"a": 1})
    cache.set("b", 2)
    assert sorted(database.admin.keys("*")) == [b":1:A", b":1:B"]
    assert cache.get_many(["a", "b"]) == {"a": 1, "b": 2}


# -- counting


def test_incr_and_decr(database: Database, cache: EntraRedisCache) -> None:
    """Numbers are counted up and down, and keep their timeout."""
    cache.set("key", 5, 100)
    assert cache.incr("key") == 6
    assert cache.incr("key", 10) == 16
    assert cache.decr("key") == 15
    assert cache.decr("key", 10) == 5
    assert cache.incr("key", 0) == 5
    assert cache.get("key") == 5
    assert 0 < database.admin.ttl(":1:key") <= 100


@pytest.mark.parametrize("number", [2**53 - 2, 2**53, 2**60, -(2**53), -(2**60)])
def test_incr_of_a_large_number(cache: EntraRedisCache, number: int) -> None:
    """Numbers are exact beyond those that a script can hold."""
    cache.set("key", number)
    assert cache.incr("key") == number + 1
    assert cache.decr("key", 3) == number - 2
    assert cache.get("key") == number - 2


def test_incr_of_a_missing_key(database: Database, cache: EntraRedisCache) -> None:
    """That is a ValueError, and makes no key."""
    for operation in (cache.incr, cache.decr):
        with pytest.raises(ValueError, match=":1:missing"):
            operation("missing")
    assert database.admin.dbsize() == 0


def test_incr_is_one_round_trip(database: Database, cache: EntraRedisCache) -> None:
    """It asks the server once."""
    proxy = Proxy(database.address)
    try:
        cache = make_cache(proxy.url(database.url), identity=None)
        cache.set("key", 1)
        proxy.arm(10**9)
        assert cache.incr("key") == 2
        assert proxy.replied == len(b":2\r\n")
    finally:
        registry.reset()
        proxy.close()


def test_incr_is_atomic(cache: EntraRedisCache) -> None:
    """Threads that count together lose nothing."""
    cache.set("key", 0)
    with ThreadPoolExecutor(8) as executor:
        counts = list(executor.map(lambda _: cache.incr("key"), range(400)))
    assert sorted(counts) == list(range(1, 401))


def test_versions(cache: EntraRedisCache) -> None:
    """A key's version is counted as Django promises."""
    cache.set("key", "value")
    assert cache.incr_version("key") == 2
    assert cache.get("key") is None
    assert cache.get("key", version=2) == "value"
    assert cache.decr_version("key", version=2) == 1
    assert cache.get("key") == "value"
    with pytest.raises(ValueError, match="missing"):
        cache.incr_version("missing")
    cache.set("number", 1, version=2)
    assert cache.incr("number", version=2) == 2
    assert cache.get_or_set("new", lambda: "made") == "made"


# -- clearing


def test_clear(database: Database, cache: EntraRedisCache) -> None:
    """The whole database is emptied, as Django's backend does, and no other."""
    database.cache(db=1).set("key", 1)
    cache.set("key", 1)
    database.admin.set("foreign", 1)
    assert cache.clear() is True
    assert database.admin.dbsize() == 0
    assert database.cache(db=1).get("key") == 1


def test_clear_by_scan_of_a_longer_prefix(database: Database) -> None:
    """A cache whose prefix begins with this one's keeps its keys."""
    settings = {
        "default": entry(database, "a", clear_by_scan=True),
        "other": entry(database, "a:b"),
        "named": {**entry(database, "a", clear_by_scan=True), "VERSION": "beta"},
    }
    with override_settings(CACHES=settings):
        cache, other, named = (caches[alias] for alias in settings)
        for one in (cache, named):
            other.set("key", "value")
            cache.set("key", "value", version=20)
            named.set_many({"key": "value", "1:key": "value"})
            one.clear()
            assert other.get("key") == "value"
            assert cache.get("key", version=20) is None
            assert named.get("key") is None
        # Only its own cache knows that these are no keys of the prefix "a:beta".
        assert named.get("1:key") is None


@pytest.mark.parametrize("version", [-1, 0, "beta", "1.5", "v*", ""])
@pytest.mark.parametrize(
    "key_function",
    [
        None,
        lambda key, prefix, version: f"{key}|{prefix}|{version}",
        lambda key, prefix, version: f"{version}:{key}",
        lambda key, prefix, version: f"{version}.{key}.{prefix}.{version}.{key}",
        lambda key, prefix, version: f"{prefix}/{key.replace(' ', '_')}",
    ],
)
def test_clear_by_scan_of_any_version(
    database: Database, version: Any, key_function: Any
) -> None:
    """Nothing of the cache is left, whatever the version, wherever it stands."""
    params = {"KEY_PREFIX": "mine"}
    if key_function:
        params["KEY_FUNCTION"] = key_function
    cache = database.cache(clear_by_scan=True, params=params)
    cache.set_many({"key": 1, "a:b": 2, "käse": 3}, version=version)
    cache.set("key", 1)
    database.admin.set("foreign", 1)
    assert cache.clear() is True
    assert database.admin.keys("*") == [b"foreign"]


@pytest.mark.usefixtures("asgiref_thread")
@pytest.mark.parametrize("prefix", ["a:2fa", "a:1b", "a:-", "a:1.5", "a:", "a:\u0661"])
def test_clear_by_scan_of_what_begins_like_a_version(
    database: Database, prefix: str
) -> None:
    """Of a version there are digits alone, which no glob pattern can say."""
    cache = database.cache(clear_by_scan=True, params={"KEY_PREFIX": "a"})
    other = database.cache(params={"KEY_PREFIX": prefix})
    other.set("key", "value")
    cache.set("key", "value", version=-3)
    database.admin.set("a:40:key\nof two lines", 1)
    for clear in (cache.clear, lambda: asyncio.run(cache.aclear())):
        # Without the other cache in the settings nobody knows whose its key is.
        with pytest.raises(ValueError, match="longer KEY_PREFIX"):
            clear()
    assert other.get("key") == "value"
    assert database.admin.dbsize() == 1
    settings = entry(database, prefix), entry(database, "a", clear_by_scan=True)
    with override_settings(
        CACHES=dict(zip(("other", "default"), settings, strict=True))
    ):
        caches["default"].clear()
    assert other.get("key") == "value"
    # Caches of other databases tell nothing.
    settings = entry(database, prefix, db=1), entry(database, "a", clear_by_scan=True)
    with (
        override_settings(
            CACHES=dict(zip(("other", "default"), settings, strict=True))
        ),
        pytest.raises(ValueError, match="longer KEY_PREFIX"),
    ):
        caches["default"].clear()


@pytest.mark.parametrize(
    ("other", "options"),
    [("{}", {"db": 0}), ("{}/0", {}), ("{}/", {}), ("{}?db=0", {}), ("{}/x", {})],
)
def test_clear_by_scan_of_a_database_in_other_words(
    database: Database, other: str, options: dict[str, Any]
) -> None:
    """A cache is known by the server and the database, however they are written."""
    url = other.format(database.url)
    settings = {
        "default": entry(database, "a", clear_by_scan=True),
        "other": {**entry(database, "a:2fa", **options), "LOCATION": url},
    }
    with override_settings(CACHES=settings):
        caches["other"].set("key", 1)
        caches["default"].set("key", 1)
        caches["default"].clear()
        assert caches["other"].get("key") == 1
        assert "key" not in caches["default"]


def entry(database: Database, prefix: str, **options: Any) -> dict[str, Any]:
    """Return an entry of CACHES."""
    return {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": database.url,
        "KEY_PREFIX": prefix,
        "OPTIONS": {"identity": None, **options},
    }


def hide(key: str, prefix: str, version: int) -> str:
    """Make keys that nobody can read."""
    return f"hidden-{hash(key)}"


@pytest.mark.parametrize(
    ("key_function", "version", "name"),
    [
        (None, "a:1", "key"),
        (None, "a", "1:key"),
        (lambda key, prefix, version: f"{prefix}{version}{key}", "beta", "7"),
    ],
)
def test_clear_by_scan_of_keys_that_may_be_anybody_s(
    database: Database, key_function: Any, version: Any, name: str
) -> None:
    """They are left, and that is told; what is certain has gone."""
    params = {"KEY_PREFIX": "p", "KEY_FUNCTION": key_function}
    cache = database.cache(clear_by_scan=True, params=params)
    cache.set(name, 1, version=version)
    cache.set("key", 1)
    hiding = {**entry(database, ""), "KEY_FUNCTION": hide}
    with (
        override_settings(CACHES={"default": hiding}),
        pytest.raises(ValueError, match="has left keys such as b'p"),
    ):
        cache.clear()
    assert cache.get("key") is None
    assert cache.get(name, version=version) == 1


@pytest.mark.parametrize("version", [1, "beta"])
def test_clear_by_scan_of_keys_beside_values(database: Database, version: Any) -> None:
    """What get_or_set() has stored goes, too, whatever the keys' names."""
    params = {"VERSION": version}
    cache = database.cache(clear_by_scan=True, stampede={}, params=params)
    for key in ("key", "1:key"):
        assert cache.get_or_set(key, lambda: 1) == 1
    assert database.admin.dbsize() == 4
    assert cache.clear() is True
    assert database.admin.dbsize() == 0


class Prefix:
    """A prefix that is no text, and whose formatting is another than its text."""

    def __str__(self) -> str:
        return "mine"

    def __format__(self, spec: str) -> str:
        return "formatted"


def test_clear_by_scan_of_a_prefix_that_is_no_text(database: Database) -> None:
    """It finds the keys by the text that they are made of."""
    assert f"{Prefix()}" == "formatted"
    cache = database.cache(clear_by_scan=True, params={"KEY_PREFIX": Prefix()})
    cache.set_many({"a": 1, "b": 2})
    database.admin.set("formatted:1:a", 1)
    assert cache.clear() is True
    assert database.admin.keys("*") == [b"formatted:1:a"]


def test_clear_by_scan_of_a_version_that_comes_twice(database: Database) -> None:
    """What a KEY_FUNCTION repeats is the same version in both places."""
    params = {"KEY_FUNCTION": lambda key, prefix, version: f"{version}:{key}:{version}"}
    cache = database.cache(clear_by_scan=True, params=params)
    cache.set("key", "value", version=12)
    database.admin.set("12:key:13", 1)
    assert cache.clear()
    assert database.admin.keys("*") == [b"12:key:13"]


def test_clear_by_scan(database: Database) -> None:
    """Only keys with the cache's own prefix go, in all versions; many of them."""
    params = {"KEY_PREFIX": "a*b[c]?\\^d-e"}
    cache = database.cache(clear_by_scan=True, params=params)
    cache.set_many({f"key-{number}": number for number in range(2500)})
    cache.set("key", 1, version=2)
    foreign = ["foreign", "axb[c]?\\^d-e:1:key", "a*bc?\\^d-e:1:key", ":1:key"]
    for key in foreign:
        database.admin.set(key, 1)
    assert cache.clear() is True
    assert sorted(database.admin.keys("*")) == sorted(key.encode() for key in foreign)
    assert cache.clear() is True


def test_clear_by_scan_with_a_key_function(database: Database) -> None:
    """One may take numbers alone; one that hides keys is an error."""
    counted = database.cache(
        clear_by_scan=True,
        params={"KEY_FUNCTION": lambda key, prefix, version: f"{version:03d}/{key}"},
    )
    hidden = database.cache(
        clear_by_scan=True,
        params={"KEY_FUNCTION": lambda key, prefix, version: str(hash(key))},
    )
    counted.set("key", 1)
    counted.set("key", 1, version=2)
    assert counted.clear()
    assert counted.get("key") is None
    assert counted.get("key", version=2) is None
    with pytest.raises(ValueError, match="KEY_FUNCTION hides"):
        hidden.clear()


def test_clear_refused(database: Database) -> None:
    """Where FLUSHDB is refused the error names the option for that."""
    url = database.url_of("cautious", "+@all -flushdb ~* &*")
    cache = make_cache(url, identity=None)
    with pytest.raises(redis.ResponseError, match="clear_by_scan") as caught:
        cache.clear()
    assert "flushdb" in str(caught.value)
    assert isinstance(caught.value, redis.exceptions.NoPermissionError)
    cache = make_cache(url, identity=None, clear_by_scan=True)
    cache.set("key", 1)
    cache.clear()
    assert cache.get("key") is None


@pytest.mark.parametrize("clear_by_scan", [False, True])
def test_clear_that_is_not_refused(database: Database, clear_by_scan: bool) -> None:
    """What a connection began with is not FLUSHDB's affair, nor the server's state."""
    url = database.url_of("nameless", "+@all -client|setname ~* &*")
    named = {"identity": None, "client_name": "web", "clear_by_scan": clear_by_scan}
    cache = make_cache(url, **named)
    with pytest.raises(GreetingNotPermittedError) as caught:
        cache.clear()
    assert "+client|setname" in str(caught.value)
    assert "clear_by_scan" not in str(caught.value)
    server = ScriptedServer({"CLIENT": b"-ERR no such name\r\n"})
    try:
        with pytest.raises(GreetingRefusedError, match=r"OPTIONS\['client_name'\]"):
            make_cache(server.url, **named).clear()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("ERR command is not allowed", True),
        ("ERR unknown command 'flushdb'", True),
        ("FLUSHDB is not for everybody", True),
        ("NOPERM this user has no permissions to run the 'flushdb' command", True),
        ("READONLY You can't write against a read only replica.", False),
        ("MISCONF Redis is configured to save RDB snapshots", False),
        ("BUSY Redis is busy running a script.", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("CLUSTERDOWN The cluster is down", False),
    ],
)
def test_clear_in_other_words(words: str, hint: bool) -> None:
    """Only where FLUSHDB itself is refused there is another way."""
    server = ScriptedServer({"FLUSHDB": f"-{words}\r\n".encode()})
    try:
        cache = make_cache(server.url, identity=None, protocol=2)
        with pytest.raises(redis.RedisError) as caught:
            cache.clear()
        assert ("clear_by_scan" in str(caught.value)) is hint
    finally:
        server.stop()


# -- where it is


@pytest.mark.parametrize("separator", ["list", ",", ";"])
def test_several_servers(database: Database, separator: str) -> None:
    """The first server is written to, the others are read from."""
    urls = [f"{database.url}?db={number}" for number in range(3)]
    location = urls if separator == "list" else separator.join(urls)
    cache = make_cache(location, identity=None)
    cache.set("key", "written")
    cache.add("key-2", 1)
    direct = [make_cache(url, identity=None) for url in urls]
    assert [one.get("key") for one in direct] == ["written", None, None]
    direct[1].set("key", "replica")
    direct[2].set("key", "replica")
    direct[1].set("replica", 1)
    direct[2].set("replica", 1)
    for _ in range(20):
        assert cache.get("key") == "replica"
        assert cache.get_many(["key"]) == {"key": "replica"}
        assert cache.has_key("replica")
        # What is added or counted is looked for where it is written.
        assert cache.add("replica", 1, 0) is True
    assert cache.incr("key-2") == 2
    assert cache.get_pool() is direct[0].get_pool()


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("redis://user:secret@host:1/2?x=y", "redis://host:1/2"),
        (["rediss://host:1", "rediss://other:2"], "rediss://host:1"),
        ("unix://:secret@/run/a@b.sock", "?"),
        ("unix://:secret@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_location(location: str | list[str], shown: str) -> None:
    """A cache tells where it is without what may be secret."""
    assert make_cache(location).location == shown


@pytest.mark.parametrize(
    ("location", "options", "identity"),
    [
        ("rediss://host:1", {}, "default"),
        ("rediss://host:1", {"identity": "other"}, "other"),
        ("redis://host:1", {"identity": None}, None),
        ("redis://host:1", {}, None),
    ],
)
def test_identity(location: str, options: dict[str, Any], identity: str | None) -> None:
    """A cache tells whose token it uses; broken settings use nobody's."""
    assert make_cache(location, **options).identity == identity


def test_plaintext_is_refused() -> None:
    """A token is not sent over a network in plain text."""
    cache = make_cache("redis://cache.example:6379")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="plain text"):
            cache.get("key")
    with pytest.raises(ImproperlyConfigured, match="CACHES"):
        cache.set("key", 1)


def test_plaintext_to_loopback(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine itself it may be."""
    with let_in(emulator, monkeypatch):
        cache = make_cache(emulator.plaintext_url)
        cache.set("key", 1)
        assert cache.get("key") == 1
    assert emulator.stats.auths == 1


def test_without_an_identity(database: Database) -> None:
    """identity None asks nobody for a token, whatever ENTRA_REDIS says."""
    with override_settings(ENTRA_REDIS="nonsense"):
        cache = database.cache()
        cache.set("key", 1)
        assert cache.get("key") == 1


def test_entra_caches(database: Database) -> None:
    """The caches of this backend are found among others, broken ones included."""
    settings = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "broken": {"BACKEND": "nowhere.Cache"},
        "redis": {
            "BACKEND": "django_entra_redis.cache.EntraRedisCache",
            "LOCATION": database.url,
            "OPTIONS": {"identity": None},
        },
    }
    with override_settings(CACHES=settings):
        assert list(entra_caches()) == ["redis"]
        caches["redis"].set("key", 1)
        assert entra_caches()["redis"].get("key") == 1
        with pytest.raises(InvalidCacheBackendError):
            caches["broken"]
