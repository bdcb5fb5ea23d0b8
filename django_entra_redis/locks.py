"""redis-py's lock for an event loop.

Nothing here but the lock's own commands runs in a thread; waiting is the loop's.
"""

import asyncio
from types import TracebackType
from typing import Any, Self

from asgiref.sync import sync_to_async
from redis.exceptions import LockError
from redis.lock import Lock


class AsyncLock:
    """A lock that tasks of any process share.

    Parameters:
        lock: redis-py's, not bound to a thread.
        sleep: seconds between two tries.
        blocking: whether to wait for it.
        blocking_timeout: seconds to wait at most; ``None`` for ever.
    """

    def __init__(
        self,
        lock: Lock,
        *,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
    ) -> None:
        self._lock = lock
        self._sleep = sleep
        self._blocking = blocking
        self._blocking_timeout = blocking_timeout

    async def acquire(
        self, *, blocking: bool | None = None, blocking_timeout: float | None = None
    ) -> bool:
        """Take the lock; return whether it was to be had.

        Parameters:
            blocking, blocking_timeout: in place of those that it was made with.
        """
        wait = self._blocking if blocking is None else blocking
        limit = self._blocking_timeout if blocking_timeout is None else blocking_timeout
        try:
            async with asyncio.timeout(limit if wait else None):
                while not await self._try():
                    if not wait:
                        return False
                    await asyncio.sleep(self._sleep)
        except TimeoutError:
            return False
        return True

    async def release(self) -> None:
        """Let go of it.

        Raises:
            LockError: it is not ours, or not any more.
        """
        # A task that is cancelled meanwhile lets go of it all the same.
        releasing = asyncio.ensure_future(_in_thread(self._lock.release))
        try:
            await asyncio.shield(releasing)
        except asyncio.CancelledError:
            await releasing
            raise

    async def extend(
        self, additional_time: float, *, replace_ttl: bool = False
    ) -> bool:
        """Hold it for longer.

        Raises:
            LockError: it is not ours, or not any more, or has no timeout.
        """
        return bool(
            await _in_thread(
                self._lock.extend, additional_time, replace_ttl=replace_ttl
            )
        )

    async def locked(self) -> bool:
        """Return whether anybody has it."""
        return bool(await _in_thread(self._lock.locked))

    async def owned(self) -> bool:
        """Return whether we have it."""
        return bool(await _in_thread(self._lock.owned))

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
        trying = asyncio.ensure_future(_in_thread(self._lock.acquire, blocking=False))
        try:
            return bool(await asyncio.shield(trying))
        except asyncio.CancelledError:
            if await trying:
                await self.release()
            raise


async def _in_thread(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function of the lock's; not in the thread that all of Django's share."""
    return await sync_to_async(function, thread_sensitive=False)(*args, **kwargs)
