"""django-redis' methods, on its names and semantics, beside Django's cache API.

A mixin: what it does is imported when it is first used, so that whoever wants Django's
API alone pays nothing for it.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.utils.functional import cached_property

from .._imports import no_fork
from ..commands.patterns import (
    NAME,
    VERSION,
    KeyPattern,
    glob_escape,
    of_all_versions,
)

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock

    from ..clients.asynchronous import AsyncCacheClient
    from ..clients.sync import Client
    from ..commands.keyspace import Keyspace
    from ..commands.operations import Operation, Operations
    from .locks import AsyncLock

_SECOND = timedelta(seconds=1)
#: How many of a command's unit make up a second.
_PER_SECOND = {"EXPIRE": 1, "EXPIREAT": 1, "PEXPIRE": 1000, "PEXPIREAT": 1000}
#: Keys that a SCAN looks at, unless ``itersize`` says otherwise.
_ITERSIZE = 1000


class KeyspaceMethods:
    """How long keys live, which there are, locks."""

    if TYPE_CHECKING:
        key_prefix: str
        version: Any
        key_func: Any
        make_key: Any

        @cached_property
        def _cache(self) -> Client:
            """What carries operations out."""
            ...

        @cached_property
        def _async_cache(self) -> AsyncCacheClient:
            """What does so in an event loop."""
            ...

        @cached_property
        def _operations(self) -> Operations:
            """The operations of Django's API."""
            ...

        def make_and_validate_key(self, key: str, version: int | None = None) -> str:
            """Return a key as Redis gets it."""
            ...

        def get_client(self, key: str | None = None, *, write: bool = False) -> Redis:
            """Return redis-py's client."""
            ...

    @cached_property
    def _keyspace(self) -> "Keyspace":
        with no_fork():
            from ..commands.keyspace import Keyspace

        return Keyspace(self._operations)

    # -- how long keys live ----------------------------------------------------------

    def ttl(self, key: str, version: int | None = None) -> int | None:
        """Return the seconds that a key will live: ``None`` for ever, 0 if it is not
        there."""
        return self._cache.run(self._life("TTL", key, version))

    async def attl(self, key: str, version: int | None = None) -> int | None:
        """See :meth:`ttl`."""
        return await self._async_cache.run(self._life("TTL", key, version))

    def pttl(self, key: str, version: int | None = None) -> int | None:
        """Return what :meth:`ttl` does, in milliseconds."""
        return self._cache.run(self._life("PTTL", key, version))

    async def apttl(self, key: str, version: int | None = None) -> int | None:
        """See :meth:`pttl`."""
        return await self._async_cache.run(self._life("PTTL", key, version))

    def persist(self, key: str, version: int | None = None) -> bool:
        """Have a key live for ever; return whether it is there and did not."""
        return self._cache.run(self._changed_life("PERSIST", key, version))

    async def apersist(self, key: str, version: int | None = None) -> bool:
        """See :meth:`persist`."""
        operation = self._changed_life("PERSIST", key, version)
        return await self._async_cache.run(operation)

    def expire(
        self, key: str, timeout: int | timedelta, version: int | None = None
    ) -> bool:
        """Have a key live for so many seconds; return whether it is there."""
        operation = self._changed_life("EXPIRE", key, version, timeout)
        return self._cache.run(operation)

    async def aexpire(
        self, key: str, timeout: int | timedelta, version: int | None = None
    ) -> bool:
        """See :meth:`expire`."""
        operation = self._changed_life("EXPIRE", key, version, timeout)
        return await self._async_cache.run(operation)

    def pexpire(
        self, key: str, timeout: int | timedelta, version: int | None = None
    ) -> bool:
        """Have a key live for so many milliseconds; return whether it is there."""
        operation = self._changed_life("PEXPIRE", key, version, timeout)
        return self._cache.run(operation)

    async def apexpire(
        self, key: str, timeout: int | timedelta, version: int | None = None
    ) -> bool:
        """See :meth:`pexpire`."""
        operation = self._changed_life("PEXPIRE", key, version, timeout)
        return await self._async_cache.run(operation)

    def expire_at(
        self, key: str, when: int | datetime, version: int | None = None
    ) -> bool:
        """Have a key live until then (seconds since the epoch, or a datetime); return
        whether it is there."""
        operation = self._changed_life("EXPIREAT", key, version, when)
        return self._cache.run(operation)

    async def aexpire_at(
        self, key: str, when: int | datetime, version: int | None = None
    ) -> bool:
        """See :meth:`expire_at`."""
        operation = self._changed_life("EXPIREAT", key, version, when)
        return await self._async_cache.run(operation)

    def pexpire_at(
        self, key: str, when: int | datetime, version: int | None = None
    ) -> bool:
        """Do as :meth:`expire_at` does, with milliseconds since the epoch."""
        operation = self._changed_life("PEXPIREAT", key, version, when)
        return self._cache.run(operation)

    async def apexpire_at(
        self, key: str, when: int | datetime, version: int | None = None
    ) -> bool:
        """See :meth:`pexpire_at`."""
        operation = self._changed_life("PEXPIREAT", key, version, when)
        return await self._async_cache.run(operation)

    def _life(
        self, command: str, key: str, version: int | None
    ) -> "Operation[int | None]":
        made = self.make_and_validate_key(key, version=version)
        return self._keyspace.life(command, made)

    def _changed_life(
        self,
        command: str,
        key: str,
        version: int | None,
        *until: int | timedelta | datetime,
    ) -> "Operation[bool]":
        made = self.make_and_validate_key(key, version=version)
        amounts = (_amount(given, _PER_SECOND[command]) for given in until)
        return self._keyspace.change_life(command, made, *amounts)

    # -- which keys there are --------------------------------------------------------

    def keys(self, search: str = "*", version: int | None = None) -> list[str]:
        """Return the keys that match a glob pattern, without prefix and version."""
        return list(dict.fromkeys(self.iter_keys(search, version=version)))

    async def akeys(self, search: str = "*", version: int | None = None) -> list[str]:
        """See :meth:`keys`."""
        found = [key async for key in self.aiter_keys(search, version=version)]
        return list(dict.fromkeys(found))

    def iter_keys(
        self, search: str, itersize: int | None = None, version: int | None = None
    ) -> Iterator[str]:
        """Iterate over the keys that match a glob pattern; some may come twice.

        Parameters:
            itersize: keys that Redis looks at in one go. No connection is held
                between two of them.
        """
        pattern, strip = self._pattern(search, version), self._strip(version)
        cursor: Any = 0
        while True:
            batch = self._keyspace.scan(cursor, pattern, itersize or _ITERSIZE)
            cursor, found = self._cache.run(batch)
            yield from map(strip, found)
            if cursor == 0:
                return

    async def aiter_keys(
        self, search: str, itersize: int | None = None, version: int | None = None
    ) -> AsyncIterator[str]:
        """See :meth:`iter_keys`."""
        pattern, strip = self._pattern(search, version), self._strip(version)
        cursor: Any = 0
        while True:
            batch = self._keyspace.scan(cursor, pattern, itersize or _ITERSIZE)
            cursor, found = await self._async_cache.run(batch)
            for key in found:
                yield strip(key)
            if cursor == 0:
                return

    def delete_pattern(
        self,
        pattern: str,
        version: int | None = None,
        prefix: str | None = None,
        itersize: int | None = None,
    ) -> int:
        """Delete the keys that match a glob pattern; return how many there were.

        Parameters:
            prefix: in place of KEY_PREFIX.
            itersize: keys that Redis looks at in one go, and deletes.
        """
        made = self._pattern(pattern, version, prefix)
        return self._cache.run(
            self._keyspace.delete_matching(made, itersize or _ITERSIZE)
        )

    async def adelete_pattern(
        self,
        pattern: str,
        version: int | None = None,
        prefix: str | None = None,
        itersize: int | None = None,
    ) -> int:
        """See :meth:`delete_pattern`."""
        made = self._pattern(pattern, version, prefix)
        return await self._async_cache.run(
            self._keyspace.delete_matching(made, itersize or _ITERSIZE)
        )

    def _pattern(
        self, search: str, version: int | None, prefix: str | None = None
    ) -> str:
        before, after = self._around(version, prefix)
        return f"{glob_escape(before)}{search}{glob_escape(after)}"

    def _pattern_of_all(self) -> KeyPattern:
        """Return the pattern of this cache's keys, of all versions."""
        own = KeyPattern(self._pattern("*", None))
        try:
            before, after = self._around(VERSION)
        except Exception:
            return own  # A KEY_FUNCTION that takes a number alone.
        numbered = isinstance(self.version, int)
        return of_all_versions(f"{before}{NAME}{after}", numbered=numbered)

    def _strip(self, version: int | None) -> Callable[[bytes], str]:
        """Return what takes prefix and version off a key as Redis has it."""
        before, after = self._around(version)

        def strip(key: bytes) -> str:
            return key.decode().removeprefix(before).removesuffix(after)

        return strip

    def _around(self, version: Any, prefix: str | None = None) -> tuple[str, str]:
        """Return what stands before a key's name in Redis, and after it."""
        if prefix is None:
            made = self.make_key(NAME, version=version)
        else:
            shown = self.version if version is None else version
            made = self.key_func(NAME, prefix, shown)
        before, mark, after = str(made).partition(NAME)
        if not mark:
            raise ValueError(
                "This cache's KEY_FUNCTION hides the names of the keys, so that they "
                "can't be found in Redis."
            )
        return before, after

    # -- locks -----------------------------------------------------------------------

    def lock(
        self,
        key: str,
        version: int | None = None,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        thread_local: bool = True,
    ) -> "Lock":
        """Return a lock that processes share: redis-py's, a context manager.

        Parameters:
            timeout: seconds after which it is free again, whoever holds it; ``None``
                for never, also if its holder dies.
            sleep: seconds between two tries.
            blocking: whether to wait for it.
            blocking_timeout: seconds to wait at most; ``None`` for ever.
            thread_local: whether only the thread that took it may let go of it.
        """
        lock: Lock = self.get_client(write=True).lock(
            self.make_and_validate_key(key, version=version),
            timeout=timeout,
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            thread_local=thread_local,
        )
        return lock

    def alock(
        self,
        key: str,
        version: int | None = None,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
    ) -> "AsyncLock":
        """Return the same lock for an event loop: an asynchronous context manager."""
        with no_fork():
            from .locks import AsyncLock

        return AsyncLock(
            lambda: self.lock(key, version, timeout, thread_local=False),
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
        )


def _amount(until: int | timedelta | datetime, per_second: int) -> int:
    """Return a duration or a moment as Redis wants it; a number is one already."""
    if isinstance(until, timedelta):
        return until * per_second // _SECOND
    if isinstance(until, datetime):
        return int(until.timestamp() * per_second)
    return int(until)
