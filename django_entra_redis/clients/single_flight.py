"""Single flight: one call at a time, whose outcome all who asked meanwhile get."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from redis.exceptions import ConnectionError

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Calls a function in a thread of its own; who comes meanwhile waits for that call.

    Parameters:
        function: what to call.
        pause: seconds after a call in which :meth:`hint` makes no other.
        monotonic: clock to tell the time by.
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
        """Begin anew, as a child process must: there, no call is under way."""
        # Guards the two attributes below. Reentrant for the sake of signal handlers
        # that use the cache.
        self._lock = threading.RLock()
        self._call: Future[T] | None = None
        self._next_at = 0.0

    def hint(self) -> None:
        """Call the function unless it has just been called; wait for nothing."""
        if self._monotonic() >= self._next_at:
            self.begin()

    def catch_up(self, timeout: float) -> None:
        """Wait for a call that ends after now, ``timeout`` seconds at most.

        What it raises is for others to be told.
        """
        time.sleep(self._pause_left())
        wait([self.begin()], timeout)

    async def acatch_up(self, timeout: float) -> None:
        """Do as :meth:`catch_up` does, without blocking the event loop."""
        await asyncio.sleep(self._pause_left())
        await asyncio.wait([_wrap(self.begin())], timeout=timeout)

    def join(self, timeout: float | None = None) -> T:
        """Wait for a call to end; return what it returns, and raise what it raises.

        Parameters:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: it has not ended. It goes on, for others to wait for.
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
        """Return the call that is under way, or else one that begins now."""
        call: Future[T] = Future()
        # Then no waiter that is cancelled cancels it for the others.
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
            # A signal handler's: the thread has started, or has not.
            self._end(call, ConnectionError("Another thread's call was interrupted."))
            raise
        return call

    def _run(self, call: "Future[T]") -> None:
        try:
            result = self._function()
        except Exception as failure:
            self._end(call, failure.with_traceback(None))
        except BaseException as failure:
            # Such as a SystemExit of a user's function: nobody else is to end of it.
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
    """Return a call for an event loop to wait for."""
    waiting = asyncio.wrap_future(call)
    # Else it is complained of that nobody has asked this one for the error.
    waiting.add_done_callback(asyncio.Future.exception)
    return waiting


def _result(call: "Future[T]") -> T:
    # Without waiting any more.
    error = call.exception(timeout=0)
    if error is not None:
        try:
            raise error.with_traceback(None)
        finally:
            # Else it would be kept by a frame of its own traceback.
            del error
    return call.result()
