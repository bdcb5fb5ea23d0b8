"""redis-py's lock for an event loop.

Nothing here but the lock's own commands runs in a thread; waiting is the loop's.
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
    """A lock that tasks of any process share.

    Parameters:
        make: returns redis-py's, not bound to a thread. On a cluster its client asks
            for the nodes first: it is called in a thread, too.
        sleep: seconds between two tries.
        blocking: whether to wait for it.
        blocking_timeout: seconds to wait at most; ``None`` for ever.
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
        # The threads of tasks that share it may make one each, but all take the same:
        # it alone knows the token of whoever has the lock. ``setdefault`` is atomic,
        # and, unlike a lock of our own, never held at a fork.
        if not self._made:
            self._made.setdefault("lock", self._make())
        return self._made["lock"]

    async def acquire(
        self, *, blocking: bool | None = None, blocking_timeout: float | None = None
    ) -> bool:
        """Take the lock; return whether it was to be had.

        Parameters:
            blocking, blocking_timeout: in place of those that it was made with.
        """
        wait = self._blocking if blocking is None else blocking
        limit = self._blocking_timeout if blocking_timeout is None else blocking_timeout
        clock = asyncio.get_running_loop().time
        deadline = None if limit is None else clock() + limit
        # As redis-py does it: there is one try at least, and none after the deadline.
        while not await self._try():
            late = deadline is not None and clock() + self._sleep > deadline
            if late or not wait:
                return False
            await asyncio.sleep(self._sleep)
        return True

    async def release(self) -> None:
        """Let go of it.

        Raises:
            LockError: it is not ours, or not any more.
        """
        # A task that is cancelled meanwhile lets go of it all the same.
        releasing = _in_thread(lambda: self._lock.release())
        cancelled = await _outlast(releasing)
        if cancelled is not None:
            releasing.exception()  # has been seen
            raise cancelled
        releasing.result()

    async def extend(
        self, additional_time: float, *, replace_ttl: bool = False
    ) -> bool:
        """Hold it for longer.

        Raises:
            LockError: it is not ours, or not any more, or has no timeout.
        """
        return bool(
            await _in_thread(
                lambda: self._lock.extend(additional_time, replace_ttl=replace_ttl)
            )
        )

    async def locked(self) -> bool:
        """Return whether anybody has it."""
        return bool(await _in_thread(lambda: self._lock.locked()))

    async def owned(self) -> bool:
        """Return whether we have it."""
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
        # A task that is cancelled meanwhile must not leave a lock behind that nobody
        # knows of.
        trying = _in_thread(lambda: self._lock.acquire(blocking=False))
        cancelled = await _outlast(trying)
        if cancelled is None:
            return bool(trying.result())
        if trying.exception() is None and trying.result():
            with contextlib.suppress(RedisError):
                await self.release()
        raise cancelled


def _in_thread(call: Callable[[], Any]) -> "asyncio.Future[Any]":
    """Call a function of the lock's; not in the thread that all of Django's share.

    It is no task, which the end of a loop would cancel.
    """
    run = contextvars.copy_context().run
    return asyncio.get_running_loop().run_in_executor(None, run, call)


async def _outlast(future: "asyncio.Future[Any]") -> asyncio.CancelledError | None:
    """Wait until a future is done, however often this task is cancelled meanwhile;
    return the last of these cancellations."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled
