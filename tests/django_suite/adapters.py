"""Caches whose synchronous methods do what the asynchronous ones do.

Django tests its backends synchronously, all but the dummy: with these, the same tests
hold for the asynchronous half.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import TestCase, TestResult

from asgiref.sync import async_to_sync, sync_to_async

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.connections import event_loops

Method = Callable[..., Any]


def _sync(name: str) -> Method:
    def method(cache: "LoopPerCallCache", *args: Any, **kwargs: Any) -> Any:
        call = async_to_sync(getattr(cache.twin, f"a{name}"))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return call(*args, **kwargs)
        # A synchronous call in an asynchronous test: not in the loop's own thread.
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(call, *args, **kwargs).result()

    return method


def _async(name: str) -> Method:
    async def method(cache: "LoopPerCallCache", *args: Any, **kwargs: Any) -> Any:
        return await getattr(cache.twin, name)(*args, **kwargs)

    return method


def repeated(method: Method, before_again: Callable[[], object]) -> Method:
    """Return a test's method that is tried again, up to twice, where it fails.

    Parameters:
        method: the method.
        before_again: clears what it has left behind.
    """

    def repeat() -> Any:
        for _ in range(2):
            try:
                return method()
            except AssertionError:
                before_again()
        return method()

    return repeat


class LoopPerCallCache(EntraRedisCache):
    """Each call has a loop of its own, as with ``async_to_sync`` under WSGI."""

    @property
    def twin(self) -> EntraRedisCache:
        """The cache without an adapter, in the same state."""
        twin = EntraRedisCache.__new__(EntraRedisCache)
        twin.__dict__ = self.__dict__
        return twin

    for _name in (
        *("add", "get", "set", "touch", "delete", "has_key", "clear"),
        *("get_many", "set_many", "delete_many", "get_or_set"),
        *("incr", "decr", "incr_version", "decr_version"),
    ):
        locals()[_name] = _sync(_name)
        # Django's look whether their synchronous sisters are theirs.
        locals()[f"a{_name}"] = _async(f"a{_name}")


class LoopPerTestCache(LoopPerCallCache):
    """All calls of one test share a loop, and are made on its own connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        event_loops.FIRST_OPERATIONS = 0


def run_in_loop(run: Method) -> Method:
    """Return a ``TestCase.run`` that has a loop, which ``async_to_sync`` comes back to.

    The test runs in the main thread all the same: there it has its database.
    """

    def run_with_loop(test: TestCase, result: TestResult | None = None) -> Any:
        return async_to_sync(sync_to_async(run))(test, result)

    return run_with_loop
