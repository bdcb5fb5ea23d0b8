"""The clients of caches with ``OPTIONS["client_side_cache"]``.

They keep copies of values that this process has read, until Redis invalidates them. A
read uses a copy if there is one. A write drops the copies of its keys when its reply
comes, whatever that is, so that this process always reads what it has written.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from time import monotonic
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.utils.functional import cached_property
from redis.exceptions import ReadOnlyError, TimeoutError
from redis.lock import Lock

from ..commands.operations import Operation
from ..commands.request import Request
from ..conf.options import CacheOptions
from ..connections.copies import Copy
from ..connections.endpoint import Endpoint
from ..connections.event_loops import LoopConnections, connections_of
from ..connections.tracked_calls import fitting
from ..connections.tracked_connection import MOST_FETCHED
from ..connections.tracking import Begun, Tracker, Values
from .asynchronous import AsyncCacheClient
from .attempts import Attempts
from .copying_path import CopyingPath
from .local_copies import LocalCopies, local_copies
from .straight import single_key_path
from .sync import CacheClient, Client

T = TypeVar("T")

#: Returns whether copies are kept of a key in Redis.
Keeps = Callable[[str], bool]

#: A read that asks for keys that a tracking connection is to fetch, or for the
#: operation as it is without copies.
Reading = Generator[tuple[str, Any], Any, Any]


def _reading(keys: Sequence[str]) -> Request:
    """Return the request that observing tools see when values are fetched."""
    command = ("GET", keys[0]) if len(keys) == 1 else ("MGET", *keys)
    return Request(command, write=False)


class CopyingClient(Client):
    """A mixin of the clients with copies."""

    local: LocalCopies
    keeps: Keeps

    def run(self, operation: Callable[..., Operation[T]], *args: Any) -> T:
        """Carry out an operation; use copies for a read."""
        name = operation.__name__
        if name == "get" and (copy := self.find(args[0])) is not None:
            if copy.data is None:  # too large for a copy
                return super().run(operation, *args)
            found: T = self.operations.loads(copy.data)
            return found
        reading = self.reading(operation, name, args)
        if reading is None:
            return super().run(operation, *args)
        result: T
        try:
            kind, wanted = next(reading)
            while True:
                if kind == "fetch":
                    kind, wanted = reading.send(self.fetch(wanted))
                else:
                    kind, wanted = reading.send(super().run(operation, *wanted))
        except StopIteration as stop:
            result = stop.value
        return result

    def execute_at(self, endpoint: Endpoint, request: Request) -> Any:
        """Carry out a request; drop the copies of keys that it may have changed."""
        try:
            return super().execute_at(endpoint, request)
        finally:
            self.local.forget(request.changes)

    def with_retries(
        self, attempt: Callable[[], T], before_retry: Callable[[], None] | None = None
    ) -> T:
        """See :meth:`Client.with_retries`."""

        def attempting() -> T:
            try:
                return attempt()
            except ReadOnlyError as error:
                self.demoted(error)
                raise

        return super().with_retries(attempting, before_retry)

    @abstractmethod
    def find(self, key: str) -> Copy | None:
        """Return the copy of a value, if it is as good as what Redis would answer."""

    @abstractmethod
    def parts_of(self, keys: Sequence[str]) -> dict[Endpoint, list[int]]:
        """Return the servers that have keys, each with the keys' indexes.

        Raises:
            RedisError: no server has one of them.
        """

    def demoted(self, error: ReadOnlyError) -> None:
        """Note that the server that takes the writes has become a replica."""

    def fetch(self, keys: Sequence[str]) -> Values:
        """Fetch values on tracking connections, and keep copies; ``None``: it fails."""
        if self.instrumentation.observed():
            fetched: Values = self.instrumentation.call(
                self.endpoints[0].pool,
                _reading(keys),
                lambda: self.fetch_directly(keys),
            )
            return fetched
        return self.fetch_directly(keys)

    def fetch_directly(self, keys: Sequence[str]) -> Values:
        """Do as :meth:`fetch` does, whoever observes."""
        found: list[bytes | None] = [None] * len(keys)
        began = monotonic()
        begun: list[tuple[Endpoint, list[int], Tracker, Begun]] = []
        # All servers work at the same time.
        for endpoint, indexes in self.parts_of(keys).items():
            tracker = self.local.tracker(endpoint)
            wanted = [keys[index] for index in indexes]
            try:
                part = tracker.begin(wanted)
            except TimeoutError as error:
                self.give_up(self.first_attempt(endpoint, wanted, began), error)
                return None
            if part is None:
                return None
            begun.append((endpoint, indexes, tracker, part))
        for endpoint, indexes, tracker, part in begun:
            try:
                values = tracker.end(part)
            except TimeoutError as error:
                self.give_up(self.first_attempt(endpoint, keys, began), error)
                return None
            if values is None:
                return None
            put_values(found, indexes, values)
        return found

    def first_attempt(
        self, endpoint: Endpoint, keys: Sequence[str], began: float
    ) -> Attempts:
        """Return the record of an attempt to fetch values on a tracking connection.

        Parameters:
            endpoint: the server.
            keys: the keys.
            began: when it began, on the monotonic clock.
        """
        attempts = self.attempts(_reading(keys))
        attempts.begun(endpoint, began)
        return attempts

    def reading(
        self, operation: Callable[..., Any], name: str, args: Any
    ) -> Reading | None:
        """Return a generator for an operation that reads copies, else ``None``."""
        if self.local.unsupported:
            return None
        if name == "get":
            return self._get(*args)
        if name == "get_many":
            return self._get_many(*args)
        if name == "has_key":
            return self._has_key(*args)
        return None

    def wants(self, key: str) -> bool:
        """Whether to make a copy of a key's value, of which there is none."""
        local = self.local
        return (
            not local.unsupported and not local.copies.is_cold(key) and self.keeps(key)
        )

    def _get(self, key: str, default: Any) -> Reading:
        if self.wants(key):
            values = yield "fetch", [key]
            if values is not None:
                data = values[0]
                return default if data is None else self.operations.loads(data)
        return (yield "ask", (key, default))

    def _has_key(self, key: str) -> Reading:
        copy = self.find(key)
        if copy is not None and copy.data is not None:
            return True
        return (yield "ask", (key,))

    def _get_many(self, keys: Sequence[str], names: Iterable[Any]) -> Reading:
        pairs = list(zip(keys, names, strict=True))
        loads = self.operations.loads
        found, wanted, others = {}, [], []
        for key, name in pairs:
            copy = self.find(key)
            if copy is not None and copy.data is not None:
                found[name] = loads(copy.data)
            elif copy is None and self.wants(key):
                wanted.append((key, name))
            else:
                others.append((key, name))
        if wanted:
            # The rest is read without copies in one go: to fetch it, too, would take a
            # round trip for each piece that may be unanswered.
            count = fitting([key for key, _ in wanted], MOST_FETCHED)
            self.local.copies.miss(len(wanted) - count)
            others += wanted[count:]
            del wanted[count:]
        if wanted:
            values = yield "fetch", [key for key, _ in wanted]
            if values is None:
                others += wanted
            else:
                for (_, name), data in zip(wanted, values, strict=True):
                    if data is not None:
                        found[name] = loads(data)
        if others:
            found |= yield "ask", tuple(map(list, zip(*others, strict=True)))
        return {name: found[name] for _, name in pairs if name in found}


def put_values(
    found: list[bytes | None], indexes: Sequence[int], values: Sequence[bytes | None]
) -> None:
    """Put values at their indexes."""
    for index, value in zip(indexes, values, strict=True):
        found[index] = value


class CopyingCacheClient(CopyingClient, CacheClient):
    """The synchronous client of ``EntraRedisCache`` with copies.

    Parameters:
        options: the cache's settings.
        keeps: returns whether copies are kept of a key.
    """

    def __init__(self, options: CacheOptions, keeps: Keeps) -> None:
        super().__init__(options)
        self.keeps = keeps
        endpoint = self.endpoints[0]
        # A replica may lag behind what this process has written.
        self._readers = [endpoint]
        self.local = local_copies(
            endpoint, options, [endpoint.name], lambda: [endpoint]
        )
        #: To the server that takes the writes, as all reads.
        self.tracker = self.local.tracker(endpoint)

    @cached_property
    def single_key(self) -> Any:
        """The path that operations on a single key take."""
        path = single_key_path(self, self._readers)
        return path if self.local.unsupported else CopyingPath(self, path)

    def find(self, key: str) -> Copy | None:
        """Return the copy of a value, if it is as good as what Redis would answer."""
        return self.local.find(key)

    def parts_of(self, keys: Sequence[str]) -> dict[Endpoint, list[int]]:
        """Return the one server that copies come from."""
        return {self.endpoints[0]: list(range(len(keys)))}

    def demoted(self, error: ReadOnlyError) -> None:
        """Close the tracking connection, which leads to the replica, too."""
        self.tracker.close(error)


class CopyingAsyncClient(AsyncCacheClient):
    """Carries out the operations of a cache with copies in an event loop.

    Parameters:
        client: the synchronous client of the same cache.
    """

    client: CopyingClient  # pyright: ignore[reportIncompatibleVariableOverride] - it is set once, by __init__

    async def run(self, operation: Callable[..., Operation[T]], *args: Any) -> T:
        """See :meth:`CopyingClient.run`."""
        client, name = self.client, operation.__name__
        if name == "get" and (copy := client.find(args[0])) is not None:
            if copy.data is None:  # too large for a copy
                return await super().run(operation, *args)
            found: T = client.operations.loads(copy.data)
            return found
        reading = client.reading(operation, name, args)
        if reading is None:
            return await super().run(operation, *args)
        result: T
        try:
            kind, wanted = next(reading)
            while True:
                if kind == "fetch":
                    kind, wanted = reading.send(await self.fetch(wanted))
                else:
                    kind, wanted = reading.send(await super().run(operation, *wanted))
        except StopIteration as stop:
            result = stop.value
        return result

    async def execute_at(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """See :meth:`CopyingClient.execute_at`."""
        try:
            return await super().execute_at(connections, endpoint, request)
        finally:
            self.client.local.forget(request.changes)

    async def fetch(self, keys: Sequence[str]) -> Values:
        """See :meth:`CopyingClient.fetch`."""
        if self.instrumentation.observed():
            fetched: Values = await self.instrumentation.call(
                self.client.endpoints[0].pool, _reading(keys), lambda: self._fetch(keys)
            )
            return fetched
        return await self._fetch(keys)

    async def _fetch(self, keys: Sequence[str]) -> Values:
        connections = connections_of(asyncio.get_running_loop())
        if not self._native or not (connections.open or await connections.count()):
            return await sync_to_async(self.client.fetch_directly)(keys)
        return await self.fetch_natively(connections, keys)

    async def fetch_natively(
        self, connections: LoopConnections, keys: Sequence[str]
    ) -> Values:
        """Fetch values on tracking connections that this loop watches."""
        found: list[bytes | None] = [None] * len(keys)
        parts = self.client.parts_of(keys)
        fetches = [
            self._fetch_part(connections, endpoint, [keys[index] for index in indexes])
            for endpoint, indexes in parts.items()
        ]
        # All servers work at the same time.
        fetched = (
            await asyncio.gather(*fetches) if len(fetches) > 1 else [await fetches[0]]
        )
        for indexes, values in zip(parts.values(), fetched, strict=True):
            if values is None:
                return None
            put_values(found, indexes, values)
        return found

    async def _fetch_part(
        self, connections: LoopConnections, endpoint: Endpoint, keys: Sequence[str]
    ) -> Values:
        began = monotonic()
        try:
            return await self.client.local.tracker(endpoint).afetch(keys)
        except TimeoutError as error:
            attempts = self.client.first_attempt(endpoint, keys, began)
            await self.give_up(attempts, connections, error)
            return None

    async def with_retries(self, attempt: Any, before_retry: Any = None) -> Any:
        """See :meth:`CopyingClient.with_retries`."""

        async def attempting() -> Any:
            try:
                return await attempt()
            except ReadOnlyError as error:
                self.client.demoted(error)
                raise

        return await super().with_retries(attempting, before_retry)


def copying_lock(local: LocalCopies) -> type[Lock]:
    """Return redis-py's lock, which drops the copy of its key with each command."""

    class CopyingLock(Lock):
        def forget(self) -> None:
            """Drop the copy of the lock's key."""
            name: Any = self.name
            local.forget([name])

        def do_acquire(self, token: str) -> bool:
            """Take the lock."""
            try:
                return super().do_acquire(token)
            finally:
                self.forget()

        def do_release(self, expected_token: Any) -> None:
            """Release the lock."""
            try:
                super().do_release(expected_token)
            finally:
                self.forget()

        def do_extend(self, additional_time: Any, replace_ttl: bool) -> Any:
            """Extend the time for which the lock is held."""
            try:
                return super().do_extend(additional_time, replace_ttl)
            finally:
                self.forget()

        def do_reacquire(self) -> Any:
            """Begin the time for which the lock is held anew."""
            try:
                return super().do_reacquire()
            finally:
                self.forget()

    return CopyingLock
