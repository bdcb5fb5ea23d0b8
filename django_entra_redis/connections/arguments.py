"""The options that redis-py's classes take, so that a misspelt one is reported."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import redis
from django.utils.module_loading import import_string
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from .._errors import ConfigurationError, Problem, option_error
from ..conf.location import read_url, redacted_urls
from ..conf.options import BASE_CACHE, OWN, CacheOptions
from ..conf.values import FIXED

#: Options of redis-py's cluster client, which no connection knows.
CLUSTER_OPTIONS = ("address_remap", "dynamic_startup_nodes", "require_full_coverage")
#: Settings of a cache that belong beside its OPTIONS.
_BESIDE = ("BACKEND", "KEY_FUNCTION", "KEY_PREFIX", "LOCATION", "TIMEOUT", "VERSION")
#: Parameters that redis-py's classes pass to each other. As options of a cache they
#: would have no effect, or do harm.
_INTERNAL = frozenset(
    {
        "cache",
        "cache_factory",
        "event_dispatcher",
        "himport_registry",
        "maint_notifications_pool_handler",
        "maintenance_notification_hash",
        "maintenance_state",
        "orig_host_address",
        "orig_socket_connect_timeout",
        "orig_socket_timeout",
        "oss_cluster_maint_notifications_handler",
        "parser",
    }
)
#: Options that redis-py would take out of a URL as its own, and as text.
_NEVER_IN_URLS = frozenset((*OWN, "connection_class"))

_KINDS: Mapping[str, type[Any]] = {
    "redis": Connection,
    "rediss": SSLConnection,
    "unix": UnixDomainSocketConnection,
}


def _is_pool(kind: type[Any]) -> bool:
    return issubclass(kind, redis.ConnectionPool)


def _is_parser(kind: type[Any]) -> bool:
    """Whether a class has what connections of threads call of a parser."""
    return all(
        callable(method) and not inspect.iscoroutinefunction(method)
        for name in ("on_connect", "on_disconnect", "read_response")
        for method in [getattr(kind, name, None)]
    )


#: By option: what a class must be, and what to call it.
_CLASSES: Mapping[str, tuple[Callable[[type[Any]], bool], str]] = {
    "pool_class": (_is_pool, "a subclass of redis.ConnectionPool"),
    "parser_class": (_is_parser, "a class of redis-py's parsers"),
}


def connection_kind(server: str) -> type[Any]:
    """Return redis-py's connection class for the scheme of a server's URL."""
    location = read_url(server)
    return _KINDS[location.scheme] if location else Connection


def unknown_options(
    options: CacheOptions, where: str = "CACHES[...]", *, clustered: bool = False
) -> list[Problem]:
    """Return a problem for each option that neither this package nor redis-py knows.

    Parameters:
        options: the cache's settings.
        where: what to call the cache in a message.
        clustered: whether the cache is on a Redis Cluster.
    """
    beyond = CLUSTER_OPTIONS if clustered else ()
    found: list[Problem] = []
    for server in options.servers:
        taken = _taken(server, options)
        if taken is None:
            continue
        taken |= {*FIXED, *beyond}
        message = "there is no such option."
        for key in options.connection.keys() - taken:
            place = f"{where}['OPTIONS'][{key!r}]"
            found.append(Problem("E028", place, message, _hint(key, taken)))
        location = read_url(server)
        in_url = location.arguments.keys() if location else set()
        for key in (in_url - taken) | (in_url & _NEVER_IN_URLS):
            place, hint = f"{where}['LOCATION'] ({key})", _hint(key, taken)
            if key.lower() in _NEVER_IN_URLS:
                hint = f"{key.lower()!r} belongs in OPTIONS, not in LOCATION."
            if redacted_urls([server]) == ["?"]:
                # The "option" may be a part of an unescaped password: it is not shown.
                place, hint = (
                    f"{where}['LOCATION']",
                    "Check the part after the '?'.",
                )
            found.append(Problem("E028", place, message, hint))
    # Without duplicates: several servers often have the same problem.
    return list(dict.fromkeys(found))


def class_problems(options: CacheOptions, where: str = "CACHES[...]") -> list[Problem]:
    """Return a problem for each option that should be a class and is none.

    Parameters:
        options: the cache's settings.
        where: what to call the cache in a message.
    """
    found: list[Problem] = []
    for key in _CLASSES:
        if (value := getattr(options, key)) is not None:
            try:
                class_of(key, value, where)
            except ConfigurationError as error:
                found += error.problems
    return found


def class_of(key: str, value: Any, where: str = "CACHES[...]") -> Any:
    """Return the class that an option asks for.

    Parameters:
        key: the option's name.
        value: a class, or its dotted path.
        where: what to call the cache in a message.

    Raises:
        ConfigurationError: there is no such class.
    """
    message = "it is not a class of that kind."
    fits, kind = _CLASSES[key]
    try:
        found = import_string(value) if isinstance(value, str) else value
    except Exception as error:  # whatever the module behind the path raises
        found, message = None, f"it can't be used ({type(error).__name__}: {error})."
    if isinstance(found, type) and fits(found):
        return found
    hint = f"It should be {kind}, or its dotted path."
    raise option_error(key, message, hint, where)


def _taken(server: str, options: CacheOptions) -> set[str] | None:
    """Return the options that connections and pools to a server take.

    ``None``: a class of the user's own may take any option.
    """
    kind: Any = options.connection.get("connection_class") or connection_kind(server)
    pool = options.pool_class or redis.ConnectionPool
    try:
        pool = import_string(pool) if isinstance(pool, str) else pool
    except Exception:
        return None  # The error of the import is reported as such.
    if not isinstance(pool, type) or _takes_any(kind) or _takes_any(pool):
        return None
    return set(_names(kind) | _names(pool)) - _INTERNAL


@functools.cache
def _names(kind: type[Any]) -> frozenset[str]:
    """Return the names of all parameters of a class and its parents."""
    return frozenset(
        parameter.name
        for init in _inits(kind)
        for parameter in _parameters(init)
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )


@functools.cache
def _takes_any(kind: type[Any]) -> bool:
    """Whether a user's class has ``**kwargs``, so that it may take any option.

    So may one whose ``__init__`` is not written in Python: it tells nothing.
    """
    return any(not isinstance(init, FunctionType) for init in _inits(kind)) or any(
        parameter.kind is parameter.VAR_KEYWORD
        for init in _inits(kind)
        if init.__module__.partition(".")[0] not in ("redis", __name__.split(".")[0])
        for parameter in _parameters(init)
    )


def _inits(kind: type[Any]) -> Iterator[Any]:
    for parent in kind.__mro__[:-1]:
        if "__init__" in vars(parent):
            yield inspect.unwrap(vars(parent)["__init__"])


def _parameters(init: Any) -> Iterable[inspect.Parameter]:
    return list(inspect.signature(init).parameters.values())[1:]


def _hint(key: str, taken: Iterable[str]) -> str:
    name = str(key).lower()
    if name.upper() in _BESIDE:
        return f"{name.upper()} belongs beside OPTIONS, not in it."
    if name in _INTERNAL:
        return "Remove it: redis-py's classes pass it to each other."
    known = {one.lower(): one for one in (*OWN, *BASE_CACHE, *taken)}
    if name not in known:
        if name in _names(Connection):
            return "It is for TCP, and has no meaning for a Unix socket."
        if name in _names(SSLConnection):
            return "It is for TLS, for which LOCATION should start with rediss://."
        if name in CLUSTER_OPTIONS:
            return "It is for 'django_entra_redis.cache.EntraRedisClusterCache' alone."
    for near in difflib.get_close_matches(name, known, 1):
        if near in FIXED:
            return f"It should be {FIXED[near][1]}."
        return f"Did you mean {known[near]!r}?"
    return "Remove it: neither this backend nor redis-py's connections know it."
