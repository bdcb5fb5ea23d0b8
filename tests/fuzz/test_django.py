"""Any calls, to Django's RedisCache and to this one: the same answers, bytes, errors.

What is meant to differ is in ``DIFFERENCES``, in the words of the page on moving here.
"""

import asyncio
import contextlib
import enum
import functools
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.redis import RedisCache, RedisSerializer
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff

from django_entra_redis.cache import EntraRedisCache, EntraRedisClusterCache
from django_entra_redis.clients import retry
from django_entra_redis.connections import event_loops, registry
from emulator import Emulator
from tests.support.caches import Database, let_in
from tests.support.clusters import primaries

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate-django.md"


@dataclass(frozen=True)
class Named:
    """A key that is no text, and whose formatting is another than its text."""

    name: str

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return "formatted"


class Level(enum.IntEnum):
    """A number that is no plain one."""

    ONE = 1


class Loud(str):
    """Text whose own text is another."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Mute:
    """A key without text."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = object.__repr__


class Texts:
    """A serializer of one's own."""

    def dumps(self, value: Any) -> bytes:
        """Write a value."""
        return json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        """Read one."""
        return json.loads(data)


class Unpicklable:
    """A value that nobody can write."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("no")


#: Few names, so that calls meet; and all that may be one.
names = st.sampled_from(["a", "b", "c"]) | st.one_of(
    st.text(max_size=5),
    st.text(st.characters(codec=None), max_size=3),
    st.sampled_from(["", " ", "\n", "a b", "ключ", "k" * 251, "k" * 240, "\ud800"]),
    st.integers(-3, 3),
    st.none(),
    st.booleans(),
    st.binary(max_size=2),
    st.builds(Named, st.sampled_from(["a", "b", "x y"])),
    st.sampled_from(
        [
            *(
                Loud("a"),
                Mute(),
                SafeString("<a>"),
                format_lazy("a"),
                Path("a/b"),
                Level.ONE,
            ),
            *(
                1.0,
                -0.0,
                float("inf"),
                Decimal("1.50"),
                date(2026, 1, 2),
                (1, "a"),
                "%s",
            ),
        ]
    ),
)
#: What settings may name in place of text or of a number.
odd = st.sampled_from(
    [
        None,
        0,
        1.0,
        True,
        "",
        Named("n"),
        Loud("n"),
        format_lazy("n"),
        Path("n"),
        Level.ONE,
    ]
)
values = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), 10**40, Level.ONE, Unpicklable()]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner),
        max_leaves=4,
    ),
)
timeouts = st.sampled_from(
    [DEFAULT_TIMEOUT, None, 0, -1, 1000, 1000.9, "1000", "x", 10**30]
)
versions = st.sampled_from([None, None, None, 2, -1, "beta", Named("v"), Level.ONE])
deltas = st.sampled_from([1, -1, 0, 2**62, True, Level.ONE, "2", "x", None, 1.5, 2.0])


@dataclass(frozen=True)
class Call:
    """A call of a cache's method."""

    name: str
    args: tuple[Any, ...]
    version: Any

    def made(self) -> tuple[Any, ...]:
        """Return the arguments; of generators, new ones."""
        return tuple(arg() if callable(arg) else arg for arg in self.args)


def calls_of(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    """Return calls of a method with arguments and a version."""
    return st.builds(Call, st.just(name), st.tuples(*arguments), versions)


many_names = st.lists(names, max_size=3)
calls = st.one_of(
    calls_of("set", names, values, timeouts),
    calls_of("add", names, values, timeouts),
    calls_of("get", names, values),
    calls_of("touch", names, timeouts),
    calls_of("delete", names),
    calls_of("has_key", names),
    calls_of("incr", names, deltas),
    calls_of("decr", names, deltas),
    calls_of("get_or_set", names, values, timeouts),
    calls_of("get_many", many_names),
    calls_of("set_many", st.dictionaries(names, values, max_size=3), timeouts),
    calls_of("delete_many", many_names),
    calls_of("delete_many", many_names.map(lambda found: lambda: iter(found))),
    st.builds(Call, st.just("incr_version"), st.tuples(names), st.sampled_from([1, 2])),
    st.builds(Call, st.just("clear"), st.just(()), st.just(None)),
)
params = st.fixed_dictionaries(
    {},
    optional={
        "KEY_PREFIX": st.sampled_from(["", "p", "p:1", "*", "ключ"]) | odd,
        "VERSION": st.sampled_from([1, 2, -1, "beta"]) | odd,
        "TIMEOUT": st.sampled_from([None, 0, 50, 300]),
        "KEY_FUNCTION": st.sampled_from(
            [lambda key, prefix, version: f"{key}|{version}|{prefix}"]
        ),
    },
)

#: Options that both have.
common = st.sampled_from(
    [
        *[{}] * 4,
        *({"serializer": one} for one in (Texts, Texts(), f"{__name__}.Texts")),
        {"serializer": functools.partial(RedisSerializer, protocol=2)},
    ]
)
#: Options of this backend's that change nothing in the answers of a well server,
#: nor, unless they say otherwise, in its bytes.
harmless = st.sampled_from(
    [
        *[{}] * 6,
        *[{"clear_by_scan": True}] * 3,
        {"CLEAR_BY_SCAN": True, "IGNORE_EXCEPTIONS": True},
        {"client_name": "fuzz", "health_check_interval": 1},
        {"client_side_cache": True},
        {"compressor": "django_entra_redis.compressors.GzipCompressor"},
        {"compressor": "django_entra_redis.compressors.ZlibCompressor"},
        {"decode_responses": True, "ignore_exceptions": True},
        {"max_connections": 1, "protocol": 3},
        {"pool_class": "redis.BlockingConnectionPool", "retry_on_timeout": True},
        {"stampede": {"beta": 1.0}, "decode_responses": True},
    ]
)
#: Options under which the server has other bytes.
REWRITING = {"compressor", "stampede"}
#: A key in each database that is another cache's.
FOREIGN = b"foreign:1:key"

#: What a method does: its answer or the kind of its error, and what it warns of.
Outcome = tuple[Any, Any, frozenset[str]]


def outcome(call: Callable[[], Any]) -> Outcome:
    """Return what a call does."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer, error = call(), None
        except Exception as failure:
            answer, error = None, kind(failure)
    said = frozenset(
        str(one.message) for one in caught if "memcached" in str(one.message)
    )
    return answer, error, said


def kind(error: Exception) -> str:
    """Return what an ``except`` clause would tell an error by."""
    known = (redis.RedisError, ValueError, TypeError, pickle.PicklingError)
    kinds = [each for each in known if isinstance(error, each)]
    return [*kinds, type(error)][0].__name__


# -- what is meant to differ


@dataclass(frozen=True)
class Difference:
    """Something that is meant to differ.

    Parameters:
        documented: its words in the documentation's list.
        applies: whether it explains two outcomes of a call, Django's first.
    """

    documented: str
    applies: Callable[[Call, Outcome, Outcome], bool]


def _delta(call: Call, theirs: Outcome, ours: Outcome) -> bool:
    return call.name in ("incr", "decr") and (
        (ours[1] in ("TypeError", "ValueError") and theirs[1] is not None)
        # What is added to a number that is a pickle, or is not there, never matters.
        or (theirs[1] is not None and isinstance(call.args[1], Level | bool | str))
    )


DIFFERENCES = (
    Difference(
        "`touch(key, None)` is true of a key that had no timeout, too",
        lambda call, theirs, ours: (
            call.name == "touch" and (theirs[0], ours[0]) == (False, True)
        ),
    ),
    Difference("a `delta` that is no integer is a `TypeError` or `ValueError`", _delta),
    Difference(
        "`delete_many()` and `get_many()` of nothing do nothing",
        lambda call, theirs, ours: (
            call.name in ("delete_many", "get_many")
            and (theirs[1], ours[1]) == ("RedisError", None)
        ),
    ),
    Difference(
        "`set_many()` returns the keys that Redis refused",
        lambda call, theirs, ours: (
            call.name == "set_many" and theirs[1] == "RedisError" and bool(ours[0])
        ),
    ),
)


def explained(call: Call, theirs: Outcome, ours: Outcome) -> bool:
    """Return whether two outcomes are the same, or are meant to differ."""
    return theirs == ours or any(
        difference.applies(call, theirs, ours) for difference in DIFFERENCES
    )


# -- the test


@pytest.fixture(scope="module")
def database(database: Database) -> Iterator[Database]:
    """Close all connections before the server stops."""
    yield database
    registry.reset()


@pytest.fixture(scope="module")
def admins(database: Database) -> Iterator[list[Any]]:
    """Give administrators of three of its databases."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(redis.Redis.from_url(f"{database.url}/{number}"))
            for number in range(3)
        ]


@pytest.fixture
def nodes(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Mapping[str, Any], list[Any]]]:
    """Give a cluster's LOCATION and OPTIONS, and administrators of its primaries."""
    urls = [cluster.node_url(node.number) for node in primaries(cluster)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(let_in(cluster, monkeypatch))
        admins = [stack.enter_context(redis.Redis.from_url(url)) for url in urls]
        yield cluster.redis_url, {"ssl_ca_certs": cluster.ca_file}, admins


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Have loops connect at once, retries wait for nothing, and asgiref's one thread
    start, which it keeps as long as the process lives."""
    asyncio.run(sync_to_async(int)())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_loops, "FIRST_OPERATIONS", 0)
        patch.setattr(retry, "BACKOFF", NoBackoff())
        yield


def do(cache: Any, call: Call, runner: asyncio.Runner | None = None) -> Outcome:
    """Return what a call does on a cache; with a runner, the asynchronous one."""
    given = {} if call.name == "clear" else {"version": call.version}
    if runner is None:
        return outcome(lambda: getattr(cache, call.name)(*call.made(), **given))
    method = getattr(cache, f"a{call.name}")
    return outcome(lambda: runner.run(method(*call.made(), **given)))


@contextlib.contextmanager
def django_cache(url: str, made: Mapping[str, Any]) -> Iterator[RedisCache]:
    """Give Django's own cache; close its connections at the end."""
    cache: Any = RedisCache(url, dict(made))
    yield cache
    for pool in cache._cache._pools.values():
        pool.disconnect()


def contents(*admins: Any) -> dict[bytes, tuple[bytes, bool]]:
    """Return the keys of databases, their bytes, and whether they expire."""
    return {
        key: (admin.get(key), admin.ttl(key) > 0)
        for admin in admins
        for key in admin.keys("*")
        if key != FOREIGN
    }


patient = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@patient
@given(
    made=params,
    shared=common,
    own=harmless,
    sequence=st.lists(calls, min_size=1, max_size=8),
)
@example(
    made={},
    shared={},
    own={},
    sequence=[Call("set_many", ({"a": Unpicklable()}, 0), None)],
)
# Of two errors, the first is the same; and so is a warning before one.
@example(
    made={},
    shared={},
    own={},
    sequence=[
        Call("set_many", ({"\ud800": 1, "a": Unpicklable()}, 1000), None),
        Call("set_many", ({"\ud800": 1, "a": Unpicklable()}, 0), None),
        Call("get_many", ([" ", Mute()],), None),
        Call("delete_many", ((" ", Mute()),), None),
    ],
)
def test_one_server(
    database: Database,
    admins: list[Any],
    made: dict[str, Any],
    shared: dict[str, Any],
    own: dict[str, Any],
    sequence: list[Call],
) -> None:
    """Whatever the calls, in whatever order, sync and async, with whatever options."""
    database.admin.flushall()
    urls = [f"{database.url}/{number}" for number in range(3)]
    options = {"identity": None, **shared, **own}
    by_scan = "clear_by_scan" in map(str.lower, own)
    sync, native = (
        EntraRedisCache(url, {**made, "OPTIONS": options}) for url in urls[1:]
    )
    with (
        asyncio.Runner() as runner,
        django_cache(urls[0], {**made, "OPTIONS": shared}) as django,
    ):
        for call in sequence:
            for admin in admins:
                admin.set(FOREIGN, "theirs")
            theirs, ours = do(django, call), do(sync, call)
            assert explained(call, theirs, ours), call
            assert ours == do(native, call, runner), call
            assert contents(admins[1]) == contents(admins[2]), call
            cleared = call.name == "clear" and not by_scan
            assert admins[1].exists(FOREIGN) == (not cleared), call
            if theirs != ours:
                break  # From here on they may well have different data.
            if REWRITING.isdisjoint(own):
                assert contents(admins[0]) == contents(admins[1]), call
            assert set(contents(admins[0])) == set(contents(admins[1])), call


@patient
@given(
    made=params,
    own=st.sampled_from([{}, {"clear_by_scan": True, "ignore_exceptions": True}]),
    sequence=st.lists(st.tuples(calls, st.booleans()), min_size=1, max_size=8),
)
def test_cluster(
    database: Database,
    nodes: tuple[str, Mapping[str, Any], list[Any]],
    made: dict[str, Any],
    own: dict[str, Any],
    sequence: list[tuple[Call, bool]],
) -> None:
    """Keys in several slots of a cluster, as on one server; sync and async mixed."""
    database.admin.flushall()
    location, options, admins = nodes
    for admin in admins:
        admin.flushall()
    clustered = EntraRedisClusterCache(
        location, {**made, "OPTIONS": {**options, **own}}
    )
    with asyncio.Runner() as runner, django_cache(database.url, made) as django:
        for call, native in sequence:
            theirs = do(django, call)
            ours = do(clustered, call, runner if native else None)
            assert explained(call, theirs, ours), call
            if theirs != ours:
                break
            assert contents(database.admin) == contents(*admins), call


def test_a_key_that_is_formatted_otherwise() -> None:
    """It is, wherever a key function formats it."""
    assert (str(Named("a")), f"{Named('a')}") == ("a", "formatted")


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda one: one.documented)
def test_page_tells_what_differs(difference: Difference) -> None:
    """Each difference that is meant is in the page's list."""
    text = PAGE.read_text(encoding="utf-8")
    assert difference.documented in text
