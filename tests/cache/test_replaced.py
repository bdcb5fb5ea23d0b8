"""Methods that tools replace on a cache object: asynchronous calls go through them."""

import asyncio
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from tests.support.caches import Database

pytestmark = pytest.mark.usefixtures("asgiref_thread")


#: Each method with a twin: what it is called with, and what it answers in this order.
CALLS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("set", ("a", 1), None),
    ("add", ("a", 2), False),
    ("get", ("a",), 1),
    ("incr", ("a",), 2),
    ("decr", ("a",), 1),
    ("touch", ("a", None), True),
    ("has_key", ("a",), True),
    ("ttl", ("a",), None),
    ("get_or_set", ("a", 5), 1),
    ("set_many", ({"b": 2},), []),
    ("get_many", (["a", "b"],), {"a": 1, "b": 2}),
    ("keys", ("a*",), ["a"]),
    ("incr_version", ("b",), 2),
    ("delete_many", (["b"],), None),
    ("delete_pattern", ("x*",), 0),
    ("delete", ("a",), True),
    ("clear", (), True),
]


def watch(cache: Any, name: str, seen: list[str]) -> None:
    """Replace a method, as tools do it."""
    method: Callable[..., Any] = getattr(cache, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(name)
        return method(*args, **kwargs)

    setattr(cache, name, watched)


def test_both_twins_are_replaced(database: Database) -> None:
    """Each does what it was replaced by, in whatever order; undoing leaves nothing."""
    for first, second in (("get", "aget"), ("aget", "get")):
        cache: Any = database.cache()
        cache.set("a", 1)
        with (
            mock.patch.object(cache, first, **replacement(first)),
            mock.patch.object(cache, second, **replacement(second)),
        ):
            assert cache.get("a") == "get"
            assert asyncio.run(cache.aget("a")) == "aget"
        assert {"get", "aget"}.isdisjoint(vars(cache))
        assert cache.get("a") == asyncio.run(cache.aget("a")) == 1


def replacement(name: str) -> dict[str, Any]:
    """Return what replaces a method: a mock that answers with the method's name."""
    kind = mock.AsyncMock if name.startswith("a") else mock.Mock
    return {"new": kind(return_value=name)}


def test_put_back_by_assignment(database: Database) -> None:
    """The asynchronous call needs no thread any more."""
    cache: Any = database.cache()
    method = cache.get
    watch(cache, "get", [])
    assert "aget" in vars(cache)
    cache.get = method
    assert "aget" not in vars(cache)
    assert asyncio.run(cache.aget("missing", 5)) == 5


def test_methods_that_make_keys(database: Database) -> None:
    """Replaced on an object, they count for one key and for many."""
    cache: Any = database.cache()
    seen: list[str] = []
    cache.set("a", 1)
    cache.validate_key = seen.append
    cache.set("b", 1)
    cache.set_many({"c": 1, "d": 1})
    assert seen == [":1:b", ":1:c", ":1:d"]
    for name in ("make_key", "make_and_validate_key"):
        cache = database.cache()
        setattr(cache, name, lambda key, version=None: f"made-{key}")
        cache.set("a", 1)
        cache.set_many({"b": 2, "c": 3})
        assert database.admin.mget("made-a", "made-b", "made-c") == [b"1", b"2", b"3"]
        assert cache.get_many(["a", "c"]) == {"a": 1, "c": 3}
        database.admin.flushall()


def test_twins_go_through_them(database: Database) -> None:
    """Each asynchronous call is seen under its synchronous name and answers as ever."""
    cache: Any = database.cache()
    seen: list[str] = []
    for name, _, _ in CALLS:
        watch(cache, name, seen)

    async def main() -> None:
        for name, args, expected in CALLS:
            assert await getattr(cache, f"a{name}")(*args) == expected
            assert seen[0] == name
            seen.clear()

    asyncio.run(main())


def test_others_stay_as_they_are(database: Database) -> None:
    """What is not replaced, or no longer, or on another object, takes no thread."""
    cache: Any = database.cache()
    seen: list[str] = []
    watch(cache, "get", seen)
    cache.note = print

    async def main() -> None:
        await cache.aset("a", 1)
        assert await database.cache().aget("a") == 1
        assert seen == []
        assert await cache.aget("a") == 1
        assert seen == ["get"]
        del cache.get
        del cache.note
        assert await cache.aget("a") == 1
        assert seen == ["get"]

    asyncio.run(main())


@pytest.mark.parametrize("by_name", [False, True])
def test_coroutine_functions(database: Database, by_name: bool) -> None:
    """What computes a value may be one, though the call goes through a thread."""
    cache: Any = database.cache()
    seen: list[str] = []
    watch(cache, "get_or_set", seen)

    async def compute() -> int:
        return 7

    async def main() -> None:
        cache.delete("computed")
        given: dict[str, Any] = {"default": compute} if by_name else {}
        args = () if by_name else (compute,)
        assert await cache.aget_or_set("computed", *args, **given) == 7
        assert await cache.aget_or_set("computed", 8) == 7
        assert seen == ["get_or_set"] * 2

    asyncio.run(main())
