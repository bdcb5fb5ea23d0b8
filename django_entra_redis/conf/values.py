"""The values that options may have: rules, each with the hint what is wanted."""

import codecs
import re
from collections.abc import Callable, Mapping
from typing import Any

_DAY = 86400.0
#: Seconds that a bound of redis-py's may have at most: sockets take no infinite ones.
_DECADES = 1e9


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any, most: float = _DAY) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= most


def _is_table(value: Any, fits: Mapping[str, Callable[[Any], bool]]) -> bool:
    """Whether a value is None, True or False, or a dict of settings that all fit."""
    if isinstance(value, Mapping):
        return all(key in fits and fits[key](value[key]) for key in value)
    return value is None or isinstance(value, bool)


def _is_domain(value: Any) -> bool:
    return isinstance(value, str) and bool(
        re.fullmatch(r"\w[\w-]*(\.\w[\w-]*)*", value)
    )


def _is_utf8(value: Any) -> bool:
    try:
        return codecs.lookup(value).name == "utf-8"
    except (LookupError, TypeError, ValueError):
        return False


#: By option: a function that tells whether a value can be used, and what it should be.
Rules = Mapping[str, tuple[Callable[[Any], bool], str]]

_FLAG = (_is_flag, "True or False")
#: Options of redis-py's that can have one value only, in OPTIONS or in a URL. redis-py
#: itself supports other values only without hiredis, or not at all.
FIXED: Rules = {
    "encoding": (
        _is_utf8,
        "left out: keys are written in UTF-8, which is 'utf-8'",
    ),
    "encoding_errors": (
        lambda value: value == "strict",
        "left out: a key that UTF-8 has no bytes for is an error, which is 'strict'",
    ),
    "command_packer": (
        lambda value: value is None,
        "left out: the cache packs its commands itself",
    ),
    "cache_config": (
        lambda value: value is None,
        "left out: redis-py's client-side cache would serve nothing here; the "
        "cache's own is OPTIONS['client_side_cache']",
    ),
}


def _may_be(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a function that takes ``None``, too: then redis-py's default counts."""
    return lambda value: value is None or fits(value)


def _is_bound(value: Any) -> bool:
    return _is_number(value, _DECADES) and value > 0


#: Options of redis-py's. It takes whatever their values are, and fails at each request.
_BORROWED: Rules = {
    "db": (
        _may_be(lambda value: str(value).isdecimal()),
        "the number of a database, such as 0",
    ),
    "health_check_interval": (
        _may_be(lambda value: _is_number(value, _DECADES)),
        "a number of seconds, such as 30, or 0 for never",
    ),
    "max_connections": (
        _may_be(lambda value: type(value) is int and value >= 0),
        "a number of connections, such as 100",
    ),
    "protocol": (_may_be(lambda value: str(value) in ("2", "3")), "2 or 3"),
    "retry": (
        _may_be(lambda value: callable(getattr(value, "call_with_retry", None))),
        "an object of redis.retry.Retry",
    ),
    "socket_connect_timeout": (
        _may_be(_is_bound),
        "a number of seconds, such as 5, or None for no bound",
    ),
    "socket_timeout": (
        _may_be(_is_bound),
        "a number of seconds, such as 5, or None for no bound",
    ),
}


def _reads_as(
    kind: Callable[[str], Any], fits: Callable[[Any], bool]
) -> Callable[[str], bool]:
    """Return a function that tells whether a text is a number that can be used."""

    def reads(text: str) -> bool:
        try:
            return fits(kind(text))
        except ValueError:
            return False

    return reads


#: Rules for a URL's arguments, which are text.
IN_URL: Rules = {
    **FIXED,
    **{
        key: (_reads_as(kind, _BORROWED[key][0]), _BORROWED[key][1])
        for key, kind in {
            "db": int,
            "health_check_interval": int,
            "max_connections": int,
            "protocol": str,
            "socket_connect_timeout": float,
            "socket_timeout": float,
        }.items()
    },
}
_CLIENT_SIDE: Mapping[str, Callable[[Any], bool]] = {
    "max_bytes": lambda value: type(value) is int and value > 0,
    "max_value_bytes": lambda value: type(value) is int and value > 0,
    "max_staleness": lambda value: _is_number(value) and value > 0,
    "prefixes": lambda value: (
        value is None
        or (
            isinstance(value, list | tuple | set | frozenset)
            and all(isinstance(prefix, str) for prefix in value)
        )
    ),
}
VALUES: Rules = {
    "allow_plaintext_token": _FLAG,
    "ignore_exceptions": _FLAG,
    "clear_by_scan": _FLAG,
    "identity": (
        lambda value: isinstance(value, str | None),
        "the name of an entry of ENTRA_REDIS, or None",
    ),
    "compressor_fallbacks": (
        lambda value: isinstance(value, list | tuple),
        "a list of compressors, such as "
        "['django_entra_redis.compressors.ZlibCompressor']",
    ),
    "max_value_bytes": (
        lambda value: type(value) is int and value > 0,
        "a number of bytes, such as 536870912",
    ),
    "node_domain": (
        lambda value: value is None or _is_domain(value),
        "a domain, such as 'nodes.contoso.com', or None",
    ),
    "pool_timeout": (_is_number, "a number of seconds, such as 5"),
    "idle_timeout": (
        lambda value: value is None or (_is_number(value) and value > 0),
        "a number of seconds, such as 60, or None for never",
    ),
    "client_side_cache": (
        lambda value: _is_table(value, _CLIENT_SIDE),
        "True, or a dict such as {'max_bytes': 33554432, 'max_value_bytes': 262144, "
        "'max_staleness': 5, 'prefixes': ['menu', 'flags']}",
    ),
    "stampede": (
        lambda value: _is_table(value, {"beta": _is_number}),
        "None, or a dict such as {'beta': 1.0}",
    ),
    "connection_class": (
        lambda value: isinstance(value, type | None),
        "a class, such as redis.connection.SSLConnection",
    ),
    **FIXED,
    **_BORROWED,
}
