"""Single flight: one call of a function at a time, whose result all callers share."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from redis.exceptions import ConnectionError

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Calls a function in a thread; callers that come meanwhile wait for that call.

    Parameters:
        function: the function.
        pause: seconds after a call in which :meth:`hint` begins no other.
        monotonic: the clock, in seconds.
    """

    def __init__(
        self,
        function: Callable[[], T],
        *,
        pause: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._function = function
        self._pause = pause
        self._monotonic = monotonic
        self.reset()

    def reset(self) -> None:
        """Forget the call that is under way, as a child process must."""
        # Guards the two attributes below. It is reentrant, since a signal handler may
        # use the cache while its thread holds the lock.
        self._lock = threading.RLock()
        self._call: Future[T] | None = None
        self._next_at = 0.0

    def hint(self) -> None:
        """Begin a call, unless there has just been one; do not wait for it."""
        if self._monotonic() >= self._next_at:
            self.begin()

    def catch_up(self, timeout: float) -> None:
        """Wait for a call to end, ``timeout`` seconds at most; ignore its error."""
        time.sleep(self._pause_left())
        wait([self.begin()], timeout)

    async def acatch_up(self, timeout: float) -> None:
        """Do as :meth:`catch_up` does, without blocking the event loop."""
        await asyncio.sleep(self._pause_left())
        await asyncio.wait([_wrap(self.begin())], timeout=timeout)

    def join(self, timeout: float | None = None) -> T:
        """Wait for a call to end; return its result, or raise its error.

        Parameters:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: the call has not ended. It goes on all the same.
        """
        call = self.begin()
        wait([call], timeout)
        return _result(call)

    async def ajoin(self, timeout: float | None = None) -> T:
        """Do as :meth:`join` does, without blocking the event loop."""
        call = self.begin()
        await asyncio.wait([_wrap(call)], timeout=timeout)
        return _result(call)

    def _pause_left(self) -> float:
        under_way = self._call is not None
        return 0.0 if under_way else max(0.0, self._next_at - self._monotonic())

    def begin(self) -> "Future[T]":
        """Return the call that is under way, or begin one."""
        call: Future[T] = Future()
        # A running future can't be cancelled, not even by a waiter that is cancelled.
        call.set_running_or_notify_cancel()
        try:
            with self._lock:
                if self._call is not None:
                    return self._call
                self._call = call
            thread = threading.Thread(
                target=self._run, args=(call,), name="entra-redis-flight", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                # No thread starts at the process's limit, nor at its end.
                self._run(call)
        except BaseException:
            # A signal handler has raised, and the thread may not have started.
            self._end(call, ConnectionError("Another thread's call was interrupted."))
            raise
        return call

    def _run(self, call: "Future[T]") -> None:
        try:
            result = self._function()
        except Exception as failure:
            self._end(call, failure.with_traceback(None))
        except BaseException as failure:
            # Such as SystemExit in a user's function: it must not end other threads.
            self._end(call, ConnectionError(f"The call was broken off: {failure!r}"))
            raise
        else:
            self._end(call, result=result)

    def _end(
        self, call: "Future[T]", error: Exception | None = None, *, result: Any = None
    ) -> None:
        with self._lock:
            if self._call is call:
                self._call = None
                self._next_at = self._monotonic() + self._pause
            if call.done():
                return
            if error is None:
                call.set_result(result)
            else:
                call.set_exception(error)


def _wrap(call: "Future[T]") -> "asyncio.Future[T]":
    """Return a call as a future of the running event loop."""
    waiting = asyncio.wrap_future(call)
    # Retrieves the error, about which asyncio would log a warning otherwise.
    waiting.add_done_callback(asyncio.Future.exception)
    return waiting


def _result(call: "Future[T]") -> T:
    error = call.exception(timeout=0)
    if error is not None:
        try:
            raise error.with_traceback(None)
        finally:
            # Otherwise a frame of its traceback would keep the error alive.
            del error
    return call.result()
