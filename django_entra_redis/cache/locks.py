"""redis-py's lock for an event loop.

The lock's commands run in threads; the event loop itself waits for a lock to be free.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from redis.exceptions import LockError, RedisError
from redis.lock import Lock


class AsyncLock:
    """A lock that tasks of several processes share.

    Parameters:
        make: makes redis-py's lock, not bound to a thread. It is called in a thread,
            since a cluster's client discovers the nodes first.
        sleep: seconds between two attempts to acquire it.
        blocking: whether to wait for it.
        blocking_timeout: seconds to wait at most; ``None``: without end.
    """

    def __init__(
        self,
        make: Callable[[], Lock],
        *,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
    ) -> None:
        self._make = make
        self._sleep = sleep
        self._blocking = blocking
        self._blocking_timeout = blocking_timeout
        self._made: dict[str, Lock] = {}

    @property
    def _lock(self) -> Lock:
        # Several threads may each make one, but all use the same: it keeps the token of
        # the holder. ``setdefault`` is atomic and, unlike a lock, not held at a fork.
        if not self._made:
            self._made.setdefault("lock", self._make())
        return self._made["lock"]

    async def acquire(
        self, *, blocking: bool | None = None, blocking_timeout: float | None = None
    ) -> bool:
        """Acquire the lock; return whether that succeeded.

        Parameters:
            blocking, blocking_timeout: in place of the arguments of the constructor.
        """
        wait = self._blocking if blocking is None else blocking
        limit = self._blocking_timeout if blocking_timeout is None else blocking_timeout
        clock = asyncio.get_running_loop().time
        deadline = None if limit is None else clock() + limit
        # As in redis-py, there is one attempt at least, and none after the deadline.
        while not await self._try():
            late = deadline is not None and clock() + self._sleep > deadline
            if late or not wait:
                return False
            await asyncio.sleep(self._sleep)
        return True

    async def release(self) -> None:
        """Release the lock.

        Raises:
            LockError: this lock object does not hold it, or not any more.
        """
        # It is released even if the task is cancelled meanwhile.
        releasing = _in_thread(lambda: self._lock.release())
        cancelled = await _outlast(releasing)
        if cancelled is not None:
            releasing.exception()  # retrieved, so that asyncio does not log it
            try:
                raise cancelled
            finally:
                del cancelled  # Otherwise this frame would keep it alive.
        releasing.result()

    async def extend(
        self, additional_time: float, *, replace_ttl: bool = False
    ) -> bool:
        """Extend the time for which the lock is held.

        Raises:
            LockError: this lock object does not hold it, or it has no timeout.
        """
        return bool(
            await _in_thread(
                lambda: self._lock.extend(additional_time, replace_ttl=replace_ttl)
            )
        )

    async def locked(self) -> bool:
        """Return whether the lock is held, by whomever."""
        return bool(await _in_thread(lambda: self._lock.locked()))

    async def owned(self) -> bool:
        """Return whether this lock object holds it."""
        return bool(await _in_thread(lambda: self._lock.owned()))

    async def __aenter__(self) -> Self:
        if await self.acquire():
            return self
        raise LockError("Unable to acquire lock within the time specified")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.release()

    async def _try(self) -> bool:
        # If the task is cancelled meanwhile, a lock that has been acquired is released.
        trying = _in_thread(lambda: self._lock.acquire(blocking=False))
        cancelled = await _outlast(trying)
        if cancelled is None:
            return bool(trying.result())
        if trying.exception() is None and trying.result():
            with contextlib.suppress(RedisError):
                await self.release()
        try:
            raise cancelled
        finally:
            del cancelled  # Otherwise this frame would keep it alive.


def _in_thread(call: Callable[[], Any]) -> "asyncio.Future[Any]":
    """Call a function of the lock in a thread of the loop's default executor.

    Django's shared thread would be blocked by it. The result is a future, not a task:
    asyncio cancels tasks at the end of a loop.
    """
    run = contextvars.copy_context().run
    return asyncio.get_running_loop().run_in_executor(None, run, call)


async def _outlast(future: "asyncio.Future[Any]") -> asyncio.CancelledError | None:
    """Wait until a future is done, even if this task is cancelled meanwhile.

    Returns the last of these cancellations, for the caller to raise.
    """
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled
