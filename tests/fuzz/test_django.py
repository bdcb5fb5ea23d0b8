"""Any calls, to Django's RedisCache and to this one: the same answers, bytes, errors.

What is meant to differ is in ``DIFFERENCES``, in the words of the page on moving here.
"""

import asyncio
import enum
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.redis import RedisCache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.clients import retry
from django_entra_redis.connections import event_loops, registry
from tests.support.caches import Database

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate.md"


class Named:
    """A key that is no text, and whose formatting is another than its text."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Named({self.name!r})"

    def __format__(self, spec: str) -> str:
        return "formatted"


class Level(enum.IntEnum):
    """A number that is no plain one."""

    ONE = 1


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
        "KEY_PREFIX": st.sampled_from(["", "p", "p:1", "*", "ключ"]),
        "VERSION": st.sampled_from([1, 2, -1, "beta"]),
        "TIMEOUT": st.sampled_from([None, 0, 50, 300]),
        "KEY_FUNCTION": st.sampled_from(
            [lambda key, prefix, version: f"{key}|{version}|{prefix}"]
        ),
    },
)

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
    for known in (redis.RedisError, ValueError, TypeError, pickle.PicklingError):
        if isinstance(error, known):
            return known.__name__
    return type(error).__name__


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
def database(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """Run a real redis-server."""
    running = Database(tmp_path_factory.mktemp("redis"), redis_server)
    yield running
    registry.reset()
    running.stop()


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Have loops connect at once, retries wait for nothing, and asgiref's one thread
    start, which it keeps as long as the process lives."""
    asyncio.run(sync_to_async(int)())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_loops, "FIRST_OPERATIONS", 0)
        patch.setattr(retry, "BACKOFF", NoBackoff())
        yield


class Sides:
    """The same cache three times: Django's, this one, and this one in a loop."""

    def __init__(
        self, url: str, made: Mapping[str, Any], runner: asyncio.Runner
    ) -> None:
        self._runner = runner
        self._django: Any = RedisCache(f"{url}/0", dict(made))
        options = {"OPTIONS": {"identity": None}}
        self._sync = EntraRedisCache(f"{url}/1", {**made, **options})
        self._async = EntraRedisCache(f"{url}/2", {**made, **options})

    def outcomes(self, call: Call) -> tuple[Outcome, Outcome, Outcome]:
        """Return what a call does on each."""
        given = {} if call.name == "clear" else {"version": call.version}
        method = getattr(self._async, f"a{call.name}")
        return (
            outcome(lambda: getattr(self._django, call.name)(*call.made(), **given)),
            outcome(lambda: getattr(self._sync, call.name)(*call.made(), **given)),
            outcome(lambda: self._runner.run(method(*call.made(), **given))),
        )

    def close(self) -> None:
        """Close the connections of Django's."""
        for pool in self._django._cache._pools.values():
            pool.disconnect()


def contents(database: Database, number: int) -> dict[bytes, tuple[bytes, bool]]:
    """Return the keys of a database, their bytes, and whether they expire."""
    with redis.Redis.from_url(f"{database.url}/{number}") as admin:
        return {key: (admin.get(key), admin.ttl(key) > 0) for key in admin.keys("*")}


@settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=params, sequence=st.lists(calls, min_size=1, max_size=8))
def test_one_server(
    database: Database, made: dict[str, Any], sequence: list[Call]
) -> None:
    """Whatever the calls, in whatever order, sync and async."""
    database.admin.flushall()
    with asyncio.Runner() as runner:
        sides = Sides(database.url, made, runner)
        for call in sequence:
            theirs, ours, native = sides.outcomes(call)
            assert explained(call, theirs, ours), call
            assert ours == native, call
            assert contents(database, 1) == contents(database, 2), call
            if theirs == ours:
                assert contents(database, 0) == contents(database, 1), call
            else:
                break  # From here on they may well have different data.
        sides.close()


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda one: one.documented)
def test_page_tells_what_differs(difference: Difference) -> None:
    """Each difference that is meant is in the page's list."""
    text = PAGE.read_text(encoding="utf-8")
    _, _, moving = text.partition("**From Django's `RedisCache`**")
    assert difference.documented in moving.partition("**From django-redis**")[0]
