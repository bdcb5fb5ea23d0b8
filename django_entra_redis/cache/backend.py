"""The cache backends, for one server and for a Redis Cluster."""

import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.redis import RedisCache
from django.core.exceptions import SynchronousOnlyOperation
from django.utils.functional import cached_property

from .._errors import ConfigurationError, hidden
from .._fork import no_fork
from ..commands.patterns import KeyPattern

# For the sake of its system check, which is registered with it.
from ..conf import app_installed as app_installed
from ..conf.location import read_url, redacted_urls, split_location
from ..conf.options import CacheOptions, in_lower_case, is_on, parse_options
from ..connections.registry import PlainKey, in_common, plain_key
from .arguments import whole
from .copied_keys import CopyingMethods
from .django_redis import KeyspaceMethods
from .get_or_set import ComputingMethods
from .keys import KeyMethods
from .replaced import ReplacedMethods

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from ..clients.asynchronous import AsyncCacheClient
    from ..clients.straight import SingleKey
    from ..clients.sync import Client
    from ..clients.topology import Topology
    from ..commands.operations import Operation, Operations

T = TypeVar("T")

#: Options whose values make an object for each client. One of a user's own is each
#: thread's, since it need not be made for several at once.
_MADE = frozenset(("serializer", "compressor", "compressor_fallbacks"))
#: What a cache's keys and timeouts are made of, beside what callers give.
_NAMING = ("default_timeout", "key_func", "key_prefix", "version")
#: Asks a client of redis-py for bytes, also one with ``decode_responses``.
_UNDECODED = {"NEVER_DECODE": True}
#: What decides, besides class and settings, what a cache object's client is.
_DECISIVE = ("options", "read_options", "copying")


class EntraRedisCache(
    ReplacedMethods,
    CopyingMethods,
    ComputingMethods,
    KeyspaceMethods,
    KeyMethods,
    RedisCache,
):
    """Django's Redis cache, authenticated with Microsoft Entra ID tokens.

    It is a ``BACKEND`` in ``CACHES``. It has all methods of Django's cache, synchronous
    and asynchronous, and those of django-redis for expiries, patterns and locks.

    Parameters:
        server: ``LOCATION``: one URL, several with commas between, or a list.
        params: the other settings of the cache.
    """

    #: Whether the cache is on a Redis Cluster.
    clustered = False

    _servers: list[str]
    _params: dict[str, Any]
    _single_key: "SingleKey"

    def __init__(self, server: str | list[str], params: dict[str, Any]) -> None:
        options = params.get("OPTIONS", {})
        given = params
        if not isinstance(options, Mapping):
            # Django would raise an AttributeError here, also in its system checks:
            # read_options() tells what is wrong.
            given = {**params, "OPTIONS": {}}
        super().__init__(server, given)
        self._init_keys()
        # Past ReplacedMethods.__setattr__(), as there.
        vars(self).update(_servers=list(split_location(server)), _params=params)

    @cached_property
    def options(self) -> CacheOptions:
        """What the settings ask for; read at first use.

        Raises:
            ConfigurationError: they can't be used as they are.
        """
        return self._in_common("options", self.read_options)

    def _in_common(self, what: str, make: Callable[[], T]) -> T:
        """Return what all cache objects of these settings have in common.

        Each thread has a cache object of its own, and each request under ASGI: what it
        would take them long to make is made once, unless somebody has changed how.
        """
        key = self._settings_key
        return make() if key is None else in_common((what, key), make)

    @cached_property
    def _settings_key(self) -> PlainKey | None:
        """What tells its class and settings from others; ``None`` if nothing is in
        common."""
        own, options = type(self), self._params.get("OPTIONS", {})
        if not isinstance(options, Mapping):
            return None
        for name in _DECISIVE:
            if getattr(own, name) is not getattr(EntraRedisCache, name):
                return None
        for given, value in options.items():
            name = str(given).lower()
            # Copies are of the keys that this cache object makes.
            if name == "client_side_cache" and is_on(value):
                return None
            if name in _MADE and not _is_own(value):
                return None
        return plain_key(own, self._servers, options)

    @cached_property
    def _given(self) -> dict[str, Any]:
        """``OPTIONS``, with their names as they are known here."""
        options = self._params.get("OPTIONS", {})
        return in_lower_case(options) if isinstance(options, Mapping) else {}

    def read_options(self, where: str = "CACHES[...]") -> CacheOptions:
        """Return what the settings ask for; ``where`` names the cache in messages.

        Raises:
            ConfigurationError: they can't be used as they are.
        """
        try:
            return parse_options(
                self._servers,
                self._params.get("OPTIONS", {}),
                where,
                clustered=self.clustered,
            )
        except ConfigurationError as error:
            problems = error.problems
        # Without the frames in whose locals Django's debug page would print passwords.
        raise ConfigurationError(problems)

    @property
    def identity(self) -> str | None:
        """Name of its identity; ``None`` without one, or if the settings are broken."""
        try:
            return self.options.identity
        except ConfigurationError:
            return None

    @property
    def wants_identity(self) -> bool:
        """Whether it is to have an identity, also if the settings are broken."""
        return self._given.get("identity", "default") is not None

    @property
    def strict(self) -> "EntraRedisCache":
        """The same cache without ``ignore_exceptions``: what can't be done raises."""
        if not self._given.get("ignore_exceptions"):
            return self
        # As they are now: they may have been changed since this cache was made.
        vars(self._strict).update((name, getattr(self, name)) for name in _NAMING)
        return self._strict

    @cached_property
    def _strict(self) -> "EntraRedisCache":
        options = {**self._given, "ignore_exceptions": False}
        return type(self)(self._servers, {**self._params, "OPTIONS": options})

    @property
    def location(self) -> str:
        """The first server's URL, without what may be secret in it; "?" if it can't be
        told."""
        return redacted_urls(self._servers)[0]

    # At first use, as Django's own backend imports redis-py: for start-up time. Each
    # thread comes here, also in a server that is about to fork its workers.

    @cached_property
    # The client is none of Django's; what is inherited from there does not use it.
    def _cache(self) -> "Client":  # type: ignore[override]
        return self._in_common("client", self._connect)

    @cached_property
    def _async_cache(self) -> "AsyncCacheClient":
        return self._in_common("asynchronous client", self._connect_async)

    def _connect(self) -> "Client":
        kind, _ = self._client_kinds()
        return self._connected_by(kind)

    def _connect_async(self) -> "AsyncCacheClient":
        _, kind = self._client_kinds()
        client: AsyncCacheClient = kind(self._cache)
        return client

    def _client_kinds(self) -> tuple[Any, Any]:
        options = self.options
        with no_fork():
            from ..clients.kinds import client_kinds

            return client_kinds(options, clustered=self.clustered)

    def _connected_by(self, kind: Any) -> "Client":
        """Return a client of the cache's.

        Raises:
            ConfigurationError: an option can't be used, as redis-py or a class of the
                user's own has it.
            Exception: what such a class raises.
        """
        # As above: the frames know URLs.
        client: Client = hidden(lambda: kind(self.options, *self.copying()))
        return client

    @cached_property
    def _operations(self) -> "Operations":
        return self._cache.operations

    # Type checkers would take any name for an attribute.
    if not TYPE_CHECKING:  # pragma: no branch - it never is while this runs

        def __getattr__(self, name: str) -> Any:
            """Return the path of operations on one key, at its first use.

            A cached property would do, too. But CPython does not specialize the access
            to an attribute that is in its class as well, which would cost each
            operation one per cent of its instructions (Python/specialize.c).
            """
            if name != "_single_key":
                # Raises again what it has raised, such as the error of a property.
                return super().__getattribute__(name)
            path = self._cache.single_key
            vars(self).update(_single_key=path)
            return path

    def get_pool(self) -> Any:
        """Return the pool of connections to the first server in ``LOCATION``."""
        return self._cache.endpoints[0].pool

    def get_pools(self) -> list[Any]:
        """Return the pools of connections to all servers."""
        return [endpoint.pool for endpoint in self._cache.endpoints]

    def get_client(self, key: str | None = None, *, write: bool = False) -> "Redis":
        """Return redis-py's client, for what Django's cache API does not have."""
        return self._cache.get_client(key, write=write)

    def get_async_client(self, *, write: bool = False) -> "AsyncRedis":
        """Return redis-py's client for the running event loop; it is the loop's, and
        closes with it.

        Parameters:
            write: whether it must be the server that is written to.

        Raises:
            RuntimeError: no event loop is running.
        """
        endpoints = self._cache.endpoints
        with no_fork():
            from ..clients.loop_clients import client_of_loop, make_client

        if write or len(endpoints) == 1:
            endpoint = endpoints[0]
        else:
            endpoint = random.choice(endpoints[1:])
        client: AsyncRedis = client_of_loop(endpoint, make_client)
        return client

    def _seconds(self, timeout: Any) -> Any:
        # The stubs know timeouts as BaseCache's; RedisCache makes them whole seconds.
        seconds: Any = self.get_backend_timeout(timeout)
        # A subclass may add a random part to it.
        return seconds if type(seconds) is int or seconds is None else int(seconds)

    def _conditional(self, nx: bool, xx: bool) -> "Callable[..., Operation[bool]]":
        """Return the operation that sets a key under a condition."""
        _exclude(nx, xx)
        return self._operations.replace if xx else self._operations.add

    # -- Django's cache API; the operations are the same for both kinds of caller ----
    # Values that need the database to be pickled, such as a queryset that has not been
    # evaluated yet, take Django's way, through a thread.

    def add(
        self,
        key: str,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> bool:
        """Set a key that does not exist; return whether it was set."""
        made = self.make_and_validate_key(key, version)
        return self._single_key.add(made, value, self._seconds(timeout))

    def get(
        self,
        key: str,
        default: Any = None,
        version: int | None = None,
        *,
        client: Any = None,
    ) -> Any:
        """Return a key's value; ``client`` is redis-py's, to be asked for it."""
        made = self.make_and_validate_key(key, version)
        if client is not None:
            data = client.execute_command("GET", made, **_UNDECODED)
            return default if data is None else self._operations.loads(data)
        return self._single_key.get(made, default)

    # Django's returns nothing; django-redis' a bool.
    def set(  # type: ignore[override]
        self,
        key: str,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
    ) -> bool | None:
        """Set a key: in any case, or only if it is not there (``nx``), or if it is
        (``xx``); with one of these, return whether it was set.

        With ``xx`` and a timeout of 0 the key is deleted: see :meth:`delete`.
        """
        made = self.make_and_validate_key(key, version)
        seconds = self._seconds(timeout)
        if nx or xx:
            _exclude(nx, xx)
            write = self._single_key.replace if xx else self._single_key.add
            return write(made, value, seconds)
        self._single_key.set(made, value, seconds)
        return None

    def touch(
        self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Set a key's timeout; return whether it is there.

        A timeout of 0 deletes the key: see :meth:`delete`.
        """
        made = self.make_and_validate_key(key, version)
        return self._single_key.touch(made, self._seconds(timeout))

    def delete(self, key: str, version: int | None = None) -> bool:
        """Delete a key; return whether it was there.

        After a connection that broke before the answer came, it is what the repeat
        found: ``False`` also of a key that the first try may have deleted.
        """
        made = self.make_and_validate_key(key, version)
        return self._single_key.delete(made)

    def has_key(self, key: str, version: int | None = None) -> bool:
        """Return whether a key is there."""
        made = self.make_and_validate_key(key, version)
        return self._single_key.has_key(made)

    def incr(
        self,
        key: str,
        delta: int = 1,
        version: int | None = None,
        *,
        ignore_key_check: bool = False,
    ) -> int:
        """Add to a number; return the sum. A key that is not there is a ValueError, or
        counts as 0 (``ignore_key_check``)."""
        made = self.make_and_validate_key(key, version)
        by = delta if type(delta) is int else whole(delta)
        if ignore_key_check:
            return self._cache.run(self._operations.count, made, by)
        return self._single_key.incr(made, by)

    def decr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Subtract from a number; return the difference. See :meth:`incr`."""
        return self.incr(key, -whole(delta), version)

    def get_many(
        self, keys: Iterable[str], version: int | None = None
    ) -> dict[str, Any]:
        """Return the values of the keys that are there."""
        made, names = self._named(keys, version)
        return self._single_key.get_many(made, names)

    def set_many(
        self,
        data: Mapping[str, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[str]:
        """Set several keys in one round trip; return those that Redis refused."""
        if not data:
            return []
        made, names = self._named(data, version)
        if len(names) < len(data):
            data = {name: data[name] for name in names}
        return self._single_key.set_many(made, data, self._seconds(timeout))

    def delete_many(self, keys: Iterable[str], version: int | None = None) -> None:
        """Delete several keys."""
        made = self._make_and_validate_keys(keys, version)
        self._single_key.delete_many(made)

    def _pattern_to_clear(self) -> KeyPattern:
        """Return the pattern of this cache's keys, which knows the other caches of the
        same database in the settings."""
        others = []
        for other in entra_caches().values():
            if not self._places.isdisjoint(other._places):
                # One whose keys no pattern can match can't tell which are its own.
                with suppress(ValueError):
                    others.append(other.pattern_of_all().regex)
        return replace(self.pattern_of_all(), others=others)

    @property
    def _places(self) -> frozenset[tuple[str, ...]]:
        """What tells the databases of ``LOCATION`` from others, however written."""
        servers = filter(None, map(read_url, self._servers))
        return frozenset(server.place(self._given) for server in servers)

    # Django's returns a bool too, whatever the stubs say.
    def clear(self) -> bool:  # type: ignore[override]
        """Empty the database, or with ``clear_by_scan`` remove this cache's keys.

        Raises:
            ValueError: of some keys it can't be told whether they are this cache's.
        """
        if self.options.clear_by_scan:
            return self._cache.run(
                self._operations.clear_matching, self._pattern_to_clear()
            )
        return self._cache.run(self._operations.clear)

    async def aadd(
        self,
        key: str,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> bool:
        """See :meth:`add`."""
        made = self.make_and_validate_key(key, version)
        try:
            return await self._async_cache.run(
                self._operations.add, made, value, self._seconds(timeout)
            )
        except SynchronousOnlyOperation:
            return await super().aadd(key, value, timeout, version)

    async def aget(
        self,
        key: str,
        default: Any = None,
        version: int | None = None,
        *,
        client: Any = None,
    ) -> Any:
        """See :meth:`get`; ``client`` is one of redis-py's for event loops."""
        made = self.make_and_validate_key(key, version)
        if client is not None:
            data = await client.execute_command("GET", made, **_UNDECODED)
            return default if data is None else self._operations.loads(data)
        try:
            return await self._async_cache.get(made, default)
        except SynchronousOnlyOperation:
            return await super().aget(key, default, version)

    async def aset(  # type: ignore[override]  # as set()
        self,
        key: str,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
    ) -> bool | None:
        """See :meth:`set`."""
        made = self.make_and_validate_key(key, version)
        seconds = self._seconds(timeout)
        try:
            if nx or xx:
                return await self._async_cache.run(
                    self._conditional(nx, xx), made, value, seconds
                )
            await self._async_cache.set(made, value, seconds)
            return None
        except SynchronousOnlyOperation:
            return await sync_to_async(self.set)(
                key, value, timeout, version, nx=nx, xx=xx
            )

    async def atouch(
        self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """See :meth:`touch`."""
        made = self.make_and_validate_key(key, version)
        return await self._async_cache.run(
            self._operations.touch, made, self._seconds(timeout)
        )

    async def adelete(self, key: str, version: int | None = None) -> bool:
        """See :meth:`delete`."""
        made = self.make_and_validate_key(key, version)
        return await self._async_cache.run(self._operations.delete, made)

    async def ahas_key(self, key: str, version: int | None = None) -> bool:
        """See :meth:`has_key`."""
        made = self.make_and_validate_key(key, version)
        return await self._async_cache.run(self._operations.has_key, made)

    async def aincr(
        self,
        key: str,
        delta: int = 1,
        version: int | None = None,
        *,
        ignore_key_check: bool = False,
    ) -> int:
        """See :meth:`incr`."""
        made = self.make_and_validate_key(key, version)
        operations = self._operations
        operation = operations.count if ignore_key_check else operations.incr
        return await self._async_cache.run(operation, made, whole(delta))

    async def adecr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """See :meth:`decr`."""
        return await self.aincr(key, -whole(delta), version)

    async def aget_many(
        self, keys: Iterable[str], version: int | None = None
    ) -> dict[str, Any]:
        """See :meth:`get_many`."""
        made, names = self._named(keys, version)
        try:
            return await self._async_cache.run(self._operations.get_many, made, names)
        except SynchronousOnlyOperation:
            return await super().aget_many(names, version)

    async def aset_many(
        self,
        data: Mapping[str, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[str]:
        """See :meth:`set_many`."""
        if not data:
            return []
        made, names = self._named(data, version)
        if len(names) < len(data):
            data = {name: data[name] for name in names}
        try:
            return await self._async_cache.run(
                self._operations.set_many, made, data, self._seconds(timeout)
            )
        except SynchronousOnlyOperation:
            return await super().aset_many(dict(data), timeout, version)

    async def adelete_many(
        self, keys: Iterable[str], version: int | None = None
    ) -> None:
        """See :meth:`delete_many`."""
        made = self._make_and_validate_keys(keys, version)
        await self._async_cache.run(self._operations.delete_many, made)

    async def aclear(self) -> bool:  # type: ignore[override]  # as clear()
        """See :meth:`clear`."""
        if self.options.clear_by_scan:
            return await self._async_cache.run(
                self._operations.clear_matching, self._pattern_to_clear()
            )
        return await self._async_cache.run(self._operations.clear)

    async def aclose(self, **kwargs: Any) -> None:
        """Do nothing, as :meth:`close` does: connections outlive requests."""


class EntraRedisClusterCache(EntraRedisCache):
    """The same on a Redis Cluster: Azure's OSS cluster policy.

    Parameters:
        server: ``LOCATION``: the URL of the cluster's endpoint, or several, each of
            which leads to the whole cluster.
        params: the other settings of the cache.
    """

    clustered = True

    def get_async_client(self, *, write: bool = False) -> "AsyncRedis":
        """Return redis-py's client of the cluster for the running event loop; it is the
        loop's, and closes with it.

        Parameters:
            write: unused; the client finds the node itself.

        Raises:
            RuntimeError: no event loop is running.
        """
        topology = self.get_topology()
        with no_fork():
            from ..clients.loop_clients import client_of_loop
            from ..clients.loop_cluster_clients import make_cluster_client

        client: AsyncRedis = client_of_loop(topology, make_cluster_client)
        return client

    def get_topology(self) -> "Topology":
        """Return the cluster's topology: its nodes and their slots."""
        client: Any = self._cache
        topology: Topology = client.topology
        return topology

    def get_pools(self) -> list[Any]:
        """Return the pools of connections to all primaries."""
        topology = self.get_topology()
        topology.ensure()
        return [endpoint.pool for endpoint in topology.primaries.values()]


def entra_caches() -> dict[str, EntraRedisCache]:
    """Return the caches in the settings that this backend serves, by alias."""
    found = {}
    for alias in caches:
        try:
            cache = caches[alias]
        except Exception:
            continue  # Django reports the error of another backend itself.
        if isinstance(cache, EntraRedisCache):
            found[alias] = cache
    return found


def _is_own(value: Any) -> bool:
    """Whether the value of an option names objects of this package alone."""
    if isinstance(value, list | tuple):
        return all(map(_is_own, value))
    return not value or str(value).startswith("django_entra_redis.")


def _exclude(nx: bool, xx: bool) -> None:
    if nx and xx:
        raise ValueError("nx and xx exclude each other: set one of them.")
