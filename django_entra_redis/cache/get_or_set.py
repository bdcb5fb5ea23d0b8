"""``get_or_set()`` and ``aget_or_set()``, a mixin of the backend.

The computation of missing values (:mod:`.stampede`) is imported at first use, to keep
the start of a process short.
"""

from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.utils.functional import cached_property

from .._fork import no_fork
from .ended import ended

if TYPE_CHECKING:
    from types import ModuleType

    from ..clients.asynchronous import AsyncCacheClient
    from ..clients.sync import Client
    from ..commands.operations import Operations
    from ..conf.options import CacheOptions
    from .drivers import Steps
    from .stampede import Call

#: The result of ``get()`` for a key that does not exist.
_MISSING: Any = object()


class ComputingMethods:
    """The methods that compute a value if its key does not exist."""

    if TYPE_CHECKING:

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

        get: Any
        aget: Any
        _seconds: Any

    def get_or_set(
        self,
        key: str,
        default: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> Any:
        """Return a key's value, computed by ``default`` if the key does not exist.

        Other callers of this process that miss the same key meanwhile wait for this
        computation, and get its result: the value, or the exception.
        """
        before = ended[0]
        found = self.get(key, _MISSING, version=version)
        if found is not _MISSING and self.options.stampede is None:
            return found
        steps = self._get_or_set(found, before, key, default, timeout, version)
        threads = self._drivers.Threads(self, self._cache, key, timeout, version)
        return threads.drive(steps)

    async def aget_or_set(
        self,
        key: str,
        default: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> Any:
        """See :meth:`get_or_set`; ``default`` may be a coroutine function, too."""
        if type(self).get_or_set is not ComputingMethods.get_or_set:
            # A subclass overrides get_or_set(): Django 6.1 calls it here, too.
            return await sync_to_async(self.get_or_set)(key, default, timeout, version)
        before = ended[0]
        found = await self.aget(key, _MISSING, version=version)
        if found is not _MISSING and self.options.stampede is None:
            return found
        steps = self._get_or_set(
            found, before, key, default, timeout, version, native=True
        )
        tasks = self._drivers.Tasks(self, self._async_cache, key, timeout, version)
        return await tasks.drive(steps)

    @cached_property
    def _drivers(self) -> "ModuleType":
        with no_fork():
            from . import drivers

        return drivers

    @cached_property
    def _computing(self) -> "ModuleType":
        with no_fork():
            from . import stampede

        return stampede

    def _get_or_set(
        self,
        found: Any,
        before: int,
        key: str,
        default: Any,
        timeout: Any,
        version: int | None,
        *,
        native: bool = False,
    ) -> "Steps[Any]":
        """Return the steps after a value has been found, or was missing."""
        call: Call = self._computing.Call(
            operations=self._operations,
            options=self.options.stampede,
            names=self._computing.make_names(self, key, version),
            default=default,
            seconds=self._seconds(timeout),
            ended=before,
            native=native,
        )
        return call.missed() if found is _MISSING else call.found(found)
