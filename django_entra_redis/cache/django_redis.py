"""The methods of django-redis beyond Django's cache API, a mixin of the backend.

Names and semantics are django-redis'. Modules for locks are imported at first use.
"""

import copy
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.utils.functional import cached_property

from .._fork import no_fork
from ..commands.patterns import NAME, KeyPattern, glob_escape, of_cache
from .arguments import duration, moment

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis
    from redis.lock import Lock

    from ..clients.asynchronous import AsyncCacheClient
    from ..clients.straight import SingleKey
    from ..clients.sync import Client
    from ..commands.operations import Operations
    from ..conf.options import CacheOptions
    from .locks import AsyncLock

logger = logging.getLogger(__name__)

#: By command, its time units in a second.
_PER_SECOND = {"EXPIRE": 1, "EXPIREAT": 1, "PEXPIRE": 1000, "PEXPIREAT": 1000}
#: Keys that a SCAN examines, unless ``itersize`` says otherwise.
_ITERSIZE = 1000


class DjangoRedisClient:
    """``cache.client``, for packages that are made for django-redis.

    All other attributes are the cache's: in django-redis, the client has all methods of
    the cache.

    Parameters:
        cache: the cache.
    """

    def __init__(self, cache: Any) -> None:
        self._backend = cache

    def get_client(self, write: bool = True, tried: Any = None) -> "Redis":
        """Return redis-py's client on the cache's connections.

        Parameters:
            write: whether it must be the server that takes the writes.
            tried: unused; django-redis' client has this parameter.
        """
        client: Redis = self._backend.get_client(write=write)
        return client

    def get_async_client(self, write: bool = True) -> "AsyncRedis":
        """Return redis-py's client for the running event loop.

        Parameters:
            write: whether it must be the server that is written to.
        """
        client: AsyncRedis = self._backend.get_async_client(write=write)
        return client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._backend, name)


class KeyspaceMethods:
    """Methods for timeouts, for finding keys, and for locks."""

    if TYPE_CHECKING:
        default_timeout: Any
        key_prefix: str
        version: Any
        key_func: Any
        make_key: Any
        _single_key: SingleKey

        @cached_property
        def options(self) -> CacheOptions:
            """The cache's settings."""
            ...

        @cached_property
        def _cache(self) -> Client:
            """The client."""
            ...

        @cached_property
        def _async_cache(self) -> AsyncCacheClient:
            """The client for event loops."""
            ...

        @cached_property
        def _operations(self) -> Operations:
            """The operations of Django's API."""
            ...

        def make_and_validate_key(self, key: str, version: int | None = None) -> str:
            """Return the key in Redis, with prefix and version."""
            ...

        def get_client(self, key: str | None = None, *, write: bool = False) -> Redis:
            """Return redis-py's client."""
            ...

    # -- redis-py's client, by the names of django-redis and django-redis-cache ------

    @property
    def client(self) -> DjangoRedisClient:
        """The object of which packages call ``client.get_client()``."""
        return DjangoRedisClient(self)

    def get_master_client(self) -> "Redis":
        """Return redis-py's client for the server that takes the writes."""
        return self.get_client(write=True)

    # -- timeouts --------------------------------------------------------------------

    def ttl(self, key: str, version: int | None = None) -> int | None:
        """Return the seconds until a key expires: ``None``: never; 0: there is none."""
        made = self.make_and_validate_key(key, version)
        return self._single_key.time_to_live("TTL", made)

    async def attl(self, key: str, version: int | None = None) -> int | None:
        """See :meth:`ttl`."""
        made = self.make_and_validate_key(key, version)
        return await self._async_cache.run(self._operations.time_to_live, "TTL", made)

    def pttl(self, key: str, version: int | None = None) -> int | None:
        """Return what :meth:`ttl` does, in milliseconds."""
        made = self.make_and_validate_key(key, version)
        return self._single_key.time_to_live("PTTL", made)

    async def apttl(self, key: str, version: int | None = None) -> int | None:
        """See :meth:`pttl`."""
        made = self.make_and_validate_key(key, version)
        return await self._async_cache.run(self._operations.time_to_live, "PTTL", made)

    def persist(self, key: str, version: int | None = None) -> bool:
        """Remove a key's timeout; return whether it exists and had one.

        After a connection that broke before the answer came, it is what the repeat
        found: ``False`` also of a key whose timeout the first try may have removed.
        """
        made = self.make_and_validate_key(key, version)
        return self._single_key.change_expiry("PERSIST", made)

    async def apersist(self, key: str, version: int | None = None) -> bool:
        """See :meth:`persist`."""
        made = self.make_and_validate_key(key, version)
        return await self._async_cache.run(
            self._operations.change_expiry, "PERSIST", made
        )

    def expire(
        self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Set a key's timeout; return whether the key exists.

        A timeout of 0 or less deletes the key. After a connection that broke before the
        answer came, the result is what the repeat found: ``False`` also of a key that
        the first try may have deleted.

        Parameters:
            key, version: the key.
            timeout: seconds or a timedelta; DEFAULT_TIMEOUT is the cache's TIMEOUT.

        Raises:
            TypeError, ValueError: it is not a duration; the key is not changed.
        """
        call = self._expire_call("EXPIRE", key, version, timeout)
        return self._change(*call)

    async def aexpire(
        self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """See :meth:`expire`."""
        call = self._expire_call("EXPIRE", key, version, timeout)
        return await self._achange(*call)

    def pexpire(
        self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Do as :meth:`expire` does, with milliseconds."""
        call = self._expire_call("PEXPIRE", key, version, timeout)
        return self._change(*call)

    async def apexpire(
        self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """See :meth:`pexpire`."""
        call = self._expire_call("PEXPIRE", key, version, timeout)
        return await self._achange(*call)

    def expire_at(
        self, key: str, when: int | datetime, version: int | None = None
    ) -> bool:
        """Set when a key expires; return whether the key exists.

        A moment that is over deletes the key: see :meth:`expire` for a lost answer.

        Parameters:
            key, version: the key.
            when: seconds since the epoch, or a datetime.

        Raises:
            TypeError, ValueError: it is not a moment; the key is not changed.
        """
        call = self._expire_at_call("EXPIREAT", key, version, when)
        return self._change(*call)

    async def aexpire_at(
        self, key: str, when: int | datetime, version: int | None = None
    ) -> bool:
        """See :meth:`expire_at`."""
        call = self._expire_at_call("EXPIREAT", key, version, when)
        return await self._achange(*call)

    def pexpire_at(
        self, key: str, when: int | datetime, version: int | None = None
    ) -> bool:
        """Do as :meth:`expire_at` does, with milliseconds since the epoch."""
        call = self._expire_at_call("PEXPIREAT", key, version, when)
        return self._change(*call)

    async def apexpire_at(
        self, key: str, when: int | datetime, version: int | None = None
    ) -> bool:
        """See :meth:`pexpire_at`."""
        call = self._expire_at_call("PEXPIREAT", key, version, when)
        return await self._achange(*call)

    def _change(self, operation: str, *args: Any) -> bool:
        """Carry out an operation that changes when a key expires."""
        return bool(getattr(self._single_key, operation)(*args))

    async def _achange(self, operation: str, *args: Any) -> bool:
        """See :meth:`_change`."""
        found = getattr(self._operations, operation)
        return bool(await self._async_cache.run(found, *args))

    def _expire_call(
        self, command: str, key: str, version: int | None, timeout: Any
    ) -> tuple[Any, ...]:
        """Return the name of the operation that sets a key's timeout, and its
        arguments."""
        made = self.make_and_validate_key(key, version)
        if timeout is DEFAULT_TIMEOUT:
            if self.default_timeout is None:
                return "touch", made, None
            amount = int(self.default_timeout * _PER_SECOND[command])
        else:
            amount = duration(timeout, _PER_SECOND[command])
        return "change_expiry", command, made, amount

    def _expire_at_call(
        self, command: str, key: str, version: int | None, when: Any
    ) -> tuple[Any, ...]:
        """Return the name of the operation that sets when a key expires, and its
        arguments."""
        made = self.make_and_validate_key(key, version)
        amount = moment(when, _PER_SECOND[command])
        return "change_expiry", command, made, amount

    # -- finding keys ----------------------------------------------------------------

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
            search, version: the pattern.
            itersize: keys that one SCAN examines. No connection is held between two.
        """
        pattern, strip = self._pattern(search, version), self._strip(version)
        cursor: Any = 0
        while True:
            cursor, found = self._cache.run(
                self._operations.scan, cursor, pattern, itersize or _ITERSIZE
            )
            yield from strip(found)
            if cursor == 0:
                return

    async def aiter_keys(
        self, search: str, itersize: int | None = None, version: int | None = None
    ) -> AsyncIterator[str]:
        """See :meth:`iter_keys`."""
        pattern, strip = self._pattern(search, version), self._strip(version)
        cursor: Any = 0
        while True:
            cursor, found = await self._async_cache.run(
                self._operations.scan, cursor, pattern, itersize or _ITERSIZE
            )
            for key in strip(found):
                yield key
            if cursor == 0:
                return

    def delete_pattern(
        self,
        pattern: str,
        version: int | None = None,
        prefix: str | None = None,
        itersize: int | None = None,
    ) -> int:
        """Delete the keys that match a glob pattern; return how many were deleted.

        Keys that a try deleted whose answer was lost are not in the number.

        Parameters:
            pattern, version: the pattern.
            prefix: a prefix in place of KEY_PREFIX.
            itersize: keys that one SCAN examines.
        """
        made = self._pattern(pattern, version, prefix)
        return self._cache.run(
            self._operations.delete_matching, made, itersize or _ITERSIZE
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
            self._operations.delete_matching, made, itersize or _ITERSIZE
        )

    def _pattern(
        self, search: str, version: int | None, prefix: str | None = None
    ) -> str:
        before, after = self._around(version, prefix)
        return f"{glob_escape(before)}{search}{glob_escape(after)}"

    def pattern_of_all(self) -> KeyPattern:
        """Return the pattern of this cache's keys, with all versions.

        Raises:
            ValueError: the KEY_FUNCTION makes keys that no pattern can match.
        """
        beside, own = copy.copy(self), self.key_prefix

        def make(name: str, version: Any, more: str) -> str:
            # By the cache's own method, which a subclass may override.
            # Text, as key functions make it: an object's format may be another.
            beside.key_prefix = f"{self.key_prefix!s}{more}" if more else own
            return str(beside.make_key(name, version=version))

        return of_cache(make, self.version)

    def _strip(self, version: int | None) -> Callable[[Iterable[bytes]], Iterator[str]]:
        """Return a function that removes prefix and version from keys in Redis.

        It leaves out keys that are not text, since the cache has not made them.
        """
        before, after = self._around(version)

        def strip(keys: Iterable[bytes]) -> Iterator[str]:
            for key in keys:
                try:
                    name = key.decode()
                except UnicodeDecodeError:
                    logger.debug("A key that is not UTF-8 is left out: %r", key)
                else:
                    yield name.removeprefix(before).removesuffix(after)

        return strip

    def around_name(self) -> tuple[str, str]:
        """Return the text before and after the name of a key in Redis.

        Raises:
            ValueError: the KEY_FUNCTION hides the name.
        """
        return self._around(None)

    def _around(self, version: Any, prefix: str | None = None) -> tuple[str, str]:
        """Return the text before and after the name of a key in Redis."""
        if prefix is None:
            made = self.make_key(NAME, version=version)
        else:
            shown = self.version if version is None else version
            made = self.key_func(NAME, prefix, shown)
        parts = str(made).split(NAME)
        if len(parts) != 2:
            raise ValueError(
                "This cache's KEY_FUNCTION hides the names of the keys, or repeats "
                "them, so that they can't be found in Redis."
            )
        return parts[0], parts[1]

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
        """Return redis-py's lock, a context manager that processes share.

        Parameters:
            key, version: the key of the lock.
            timeout: seconds after which it is released in any case; ``None``: never,
                even if its holder dies.
            sleep: seconds between two attempts to acquire it.
            blocking: whether to wait for it.
            blocking_timeout: seconds to wait at most; ``None``: without end.
            thread_local: whether only the thread that acquired it may release it.
        """
        lock: Lock = self._cache.get_lock_client().lock(
            self.make_and_validate_key(key, version),
            timeout=timeout,
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            thread_local=thread_local,
            lock_class=self._lock_class,
        )
        return lock

    @cached_property
    def _lock_class(self) -> "type[Lock] | None":
        if self.options.client_side_cache is None:
            return None  # redis-py's own
        with no_fork():
            from ..clients.client_side_cache import copying_lock

        client: Any = self._cache
        return copying_lock(client.local)

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
