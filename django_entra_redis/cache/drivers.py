"""The drivers of :mod:`.stampede`: threads, and tasks of event loops.

The steps come from generators. Both kinds of drivers take the same ones.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..clients.asynchronous import AsyncCacheClient
    from ..clients.sync import Client

T = TypeVar("T")

#: A generator of steps. Each is called with the driver, and the result is sent back.
Steps = Generator[Callable[[Any], Any], Any, T]


class StoppedError(Exception):
    """Stands for a StopIteration, which Python lets out of no generator."""

    def __init__(self, error: StopIteration) -> None:
        super().__init__("StopIteration")
        self.error = error


class ClosedError(BaseException):
    """Stands for a GeneratorExit that a caller's function has raised: to a generator it
    would look like its own end, after which it can take no step."""

    def __init__(self, error: GeneratorExit) -> None:
        super().__init__("GeneratorExit")
        self.error = error


def _called(default: Callable[[], Any]) -> Any:
    try:
        return default()
    except GeneratorExit as error:
        closed = ClosedError(error)
    try:
        raise closed
    finally:
        del closed  # Otherwise this frame would keep it alive.


@dataclass(frozen=True, slots=True)
class Threads:
    """The driver of a call in a thread.

    Parameters:
        cache: the cache. Its methods are used, since a subclass may override them.
        client: the client, for operations that the cache has no methods for.
        key, timeout, version: the caller's arguments.
    """

    cache: Any
    client: "Client"
    key: str
    timeout: Any
    version: int | None

    def drive(self, steps: Steps[T]) -> T:
        """Do all that is to be done; return what comes of it."""
        try:
            step = next(steps)
            while True:
                try:
                    got = step(self)
                except StopIteration as error:
                    step = steps.throw(StoppedError(error))
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    # It may hold a computation, whose error this frame would keep.
                    del step
                    step = steps.send(got)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except (StoppedError, ClosedError) as stopped:
            failure: BaseException = stopped.error
        try:
            raise failure
        finally:
            del failure  # Otherwise this frame would keep it alive.

    def get(self, default: Any) -> Any:
        """Return the value in the cache."""
        return self.cache.get(self.key, default, version=self.version)

    def add(self, value: Any) -> bool:
        """Set a value where there is none."""
        added: bool = self.cache.add(
            self.key, value, self.timeout, version=self.version
        )
        return added

    def replace(self, value: Any) -> bool | None:
        """Set a value where there is one."""
        done: bool | None = self.cache.set(
            self.key, value, self.timeout, version=self.version, xx=True
        )
        return done

    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Carry out an operation."""
        return self.client.run(operation, *args)

    def compute(self, default: Callable[[], Any]) -> Any:
        """Compute a value."""
        return _called(default)

    def wait(self, future: "Future[Any]", seconds: float) -> None:
        """Wait for another one's computation."""
        wait([future], seconds)

    def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Tasks:
    """The driver of a call in an event loop.

    Parameters:
        cache, client, key, timeout, version: see :class:`Threads`.
    """

    cache: Any
    client: "AsyncCacheClient"
    key: str
    timeout: Any
    version: int | None

    async def drive(self, steps: Steps[T]) -> T:
        """Do all that is to be done; return what comes of it."""
        try:
            step = next(steps)
            while True:
                try:
                    got = await step(self)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    # It may hold a computation, whose error this frame would keep.
                    del step
                    step = steps.send(got)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except (StoppedError, ClosedError) as stopped:
            failure: BaseException = stopped.error
        try:
            raise failure
        finally:
            del failure  # Otherwise this frame would keep it alive.

    async def get(self, default: Any) -> Any:
        """Return the value in the cache."""
        return await self.cache.aget(self.key, default, version=self.version)

    async def add(self, value: Any) -> bool:
        """Set a value where there is none."""
        added: bool = await self.cache.aadd(
            self.key, value, self.timeout, version=self.version
        )
        return added

    async def replace(self, value: Any) -> bool | None:
        """Set a value where there is one."""
        done: bool | None = await self.cache.aset(
            self.key, value, self.timeout, version=self.version, xx=True
        )
        return done

    async def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Carry out an operation."""
        return await self.client.run(operation, *args)

    async def compute(self, default: Callable[[], Any]) -> Any:
        """Compute a value; a coroutine function may, too."""
        value = _called(default)
        return await value if inspect.isawaitable(value) else value

    async def wait(self, future: "Future[Any]", seconds: float) -> None:
        """Wait for another one's computation."""
        await asyncio.wait([asyncio.wrap_future(future)], timeout=seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        await asyncio.sleep(seconds)
