"""The values that options may have: rules, each with the hint what is wanted."""

import codecs
import functools
import os
import re
import socket
import ssl
import sys
from collections.abc import Callable, Collection, Mapping
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


def _may_be_empty(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a function that takes what is false, too: redis-py leaves it out then."""
    return lambda value: not value or fits(value)


def _is_bound(value: Any) -> bool:
    return _is_number(value, _DECADES) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes)


def _is_secret(value: Any) -> bool:
    # redis-py sends a number as its digits; True would be none.
    return _is_text(value) or (isinstance(value, int) and value is not True)


def _is_path(value: Any) -> bool:
    """Whether a value is a path, which has no null character.

    An empty one is the value of an unset variable: OpenSSL tells of that.
    """
    if not isinstance(value, str | bytes | os.PathLike):
        return False
    return "\0" not in os.fsdecode(value)


def _is_client_name(value: Any) -> bool:
    """Whether Redis takes a value for a connection's name (validateClientAttr())."""
    if isinstance(value, bytes | memoryview):
        text = bytes(value).decode("latin-1")
    elif isinstance(value, str):
        text = str.__str__(value)  # As it is encoded: an enum's str() is another.
    elif type(value) in (int, float):
        text = str(value)
    else:
        return False
    return re.fullmatch("[!-~]*", text) is not None


def _is_of(module: str, name: str, value: Any) -> bool:
    """Whether a value is an object of a class of redis-py's, or may be one.

    Where there is such an object, redis-py has been imported; this module does not.
    """
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _is_connection(value: Any) -> bool:
    kind = getattr(sys.modules.get("redis.connection"), "AbstractConnection", None)
    return kind is not None and isinstance(value, type) and issubclass(value, kind)


def _are_exceptions(value: Any) -> bool:
    return isinstance(value, Collection) and all(
        isinstance(one, type) and issubclass(one, BaseException) for one in value
    )


def _are_socket_options(value: Any) -> bool:
    """Whether a value is a table that ``setsockopt()`` takes."""
    return isinstance(value, Mapping) and all(
        _is_c_int(option)
        and (isinstance(value[option], bytes | bytearray) or _is_c_int(value[option]))
        for option in value
    )


def _is_c_int(value: Any) -> bool:
    return isinstance(value, int) and -(2**31) <= value < 2**31


def _is_certificate(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii()
    return isinstance(value, bytes | bytearray | memoryview)


def _is_verification(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("none", "optional", "required")
    return isinstance(value, int) and value in [*ssl.VerifyMode]


def _is_version(value: Any) -> bool:
    return isinstance(value, int) and value in [*ssl.TLSVersion]


def _are_ciphers(value: Any) -> bool:
    return isinstance(value, str) and _knows_ciphers(value)


# Settings are parsed for many cache objects, and a context takes long to make.
@functools.cache
def _knows_ciphers(names: str) -> bool:
    """Whether OpenSSL knows one of the cipher suites."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(names)
    except (ssl.SSLError, ValueError):
        return False
    return True


def _are_flags(value: Any) -> bool:
    # Flags that are joined by "|" are a collection of themselves.
    return isinstance(value, Collection | ssl.VerifyFlags) and all(
        isinstance(one, int) for one in value
    )


_FAMILIES = (0, socket.AF_INET, socket.AF_INET6)
_FLAGS = "a list of ssl.VerifyFlags"
#: Options of redis-py's. It takes whatever their values are, and fails at each request.
_BORROWED: Rules = {
    "client_name": (
        _may_be_empty(_is_client_name),
        "a text of letters, digits and signs, without spaces, such as 'site'",
    ),
    "credential_provider": (
        lambda value: not value or callable(getattr(value, "get_credentials", None)),
        "an object of redis.credentials.CredentialProvider",
    ),
    "db": (
        _may_be(lambda value: str(value).isdecimal() and str(value).isascii()),
        "the number of a database, such as 0",
    ),
    "driver_info": (
        _may_be(lambda value: _is_of("redis", "DriverInfo", value)),
        "an object of redis.DriverInfo",
    ),
    "health_check_interval": (
        _may_be(lambda value: _is_number(value, _DECADES)),
        "a number of seconds, such as 30, or 0 for never",
    ),
    "maint_notifications_config": (
        _may_be_empty(lambda value: hasattr(value, "enabled")),
        "an object of redis.maint_notifications.MaintNotificationsConfig",
    ),
    "max_connections": (
        _may_be(lambda value: type(value) is int and value >= 0),
        "a number of connections, such as 100",
    ),
    "protocol": (_may_be(lambda value: str(value) in ("2", "3")), "2 or 3"),
    "password": (_may_be_empty(_is_secret), "text or bytes"),
    "redis_connect_func": (
        _may_be(callable),
        "a function that is called with each new connection",
    ),
    "retry": (
        _may_be(lambda value: callable(getattr(value, "call_with_retry", None))),
        "an object of redis.retry.Retry",
    ),
    "retry_on_error": (
        _are_exceptions,
        "a list of classes of exceptions, such as [redis.TimeoutError]",
    ),
    "socket_connect_timeout": (
        _may_be(_is_bound),
        "a number of seconds, such as 5, or None for no bound",
    ),
    "socket_keepalive_options": (
        _may_be_empty(_are_socket_options),
        "a dict of numbers, such as {socket.TCP_KEEPIDLE: 30}",
    ),
    "socket_read_size": (
        lambda value: isinstance(value, int) and value > 0,
        "a number of bytes, such as 65536",
    ),
    "socket_timeout": (
        _may_be(_is_bound),
        "a number of seconds, such as 5, or None for no bound",
    ),
    "socket_type": (
        lambda value: isinstance(value, int) and value in _FAMILIES,
        "0, socket.AF_INET or socket.AF_INET6",
    ),
    "ssl_ca_certs": (_may_be(_is_path), "the path of a file"),
    "ssl_ca_data": (
        _may_be(_is_certificate),
        "certificates, as ASCII text or as bytes",
    ),
    "ssl_ca_path": (_may_be(_is_path), "the path of a folder"),
    "ssl_cert_reqs": (
        _may_be(_is_verification),
        "left out: the certificate is verified then, which is 'required'",
    ),
    "ssl_certfile": (_may_be(_is_path), "the path of a file"),
    "ssl_ciphers": (
        lambda value: not value or _are_ciphers(value),
        "cipher suites as OpenSSL writes them, such as 'ECDHE+AESGCM'",
    ),
    "ssl_exclude_verify_flags": (_may_be_empty(_are_flags), _FLAGS),
    "ssl_include_verify_flags": (_may_be_empty(_are_flags), _FLAGS),
    "ssl_keyfile": (_may_be_empty(_is_path), "the path of a file"),
    "ssl_min_version": (
        _may_be(_is_version),
        "one of ssl.TLSVersion, such as ssl.TLSVersion.TLSv1_2",
    ),
    "ssl_password": (
        _may_be_empty(
            lambda value: (
                _is_text(value) or isinstance(value, bytearray) or callable(value)
            )
        ),
        "text or bytes",
    ),
    "username": (_may_be_empty(_is_secret), "text or bytes"),
}


def _never(value: Any) -> bool:
    return False


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
        key: _BORROWED[key]
        for key in (
            "client_name",
            "ssl_ca_certs",
            "ssl_ca_data",
            "ssl_ca_path",
            "ssl_cert_reqs",
            "ssl_certfile",
            "ssl_ciphers",
            "ssl_keyfile",
        )
    },
    # No text is such a value.
    **{
        key: (_never, f"in OPTIONS, not in LOCATION: {_BORROWED[key][1]}")
        for key in (
            "credential_provider",
            "driver_info",
            "maint_notifications_config",
            "redis_connect_func",
            "retry",
            "retry_on_error",
            "socket_keepalive_options",
            "socket_type",
        )
    },
    **{
        key: (_reads_as(kind, _BORROWED[key][0]), _BORROWED[key][1])
        for key, kind in {
            "db": int,
            "health_check_interval": int,
            "max_connections": int,
            "protocol": str,
            "socket_connect_timeout": float,
            "socket_read_size": int,
            "socket_timeout": float,
            "ssl_min_version": int,
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
        _may_be(_is_connection),
        "a class of redis-py's connections, such as redis.connection.SSLConnection",
    ),
    **FIXED,
    **_BORROWED,
}
