"""A cache's ``LOCATION`` and ``OPTIONS``, checked."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import FunctionType
from typing import Any

from .._errors import ConfigurationError, Problem
from ..compressors import MAX_VALUE_BYTES
from .location import is_loopback, read_url, transport
from .services import service_of
from .values import FIXED, IN_URL, VALUES, Rules

_CREDENTIALS = ("username", "password", "credential_provider")
#: Options of django-redis, and the advice what to write instead.
_DJANGO_REDIS: Mapping[str, str] = {
    "CLIENT_CLASS": "Remove it.",
    "CLOSE_CONNECTION": "Remove it: connections outlive requests.",
    "CONNECTION_FACTORY": "Remove it.",
    "CONNECTION_POOL_CLASS": "It is 'pool_class' here.",
    "CONNECTION_POOL_CLASS_KWARGS": "Write its contents directly into OPTIONS.",
    "CONNECTION_POOL_KWARGS": "Write its contents directly into OPTIONS.",
    "LOG_IGNORED_EXCEPTIONS": "Remove it: an outage is logged once.",
    "PASSWORD": "It is 'password' here, which only a cache without an identity has.",
    "PICKLE_VERSION": "Remove it, or set 'serializer' to one of your own.",
    "REDIS_CLIENT_CLASS": "Remove it.",
    "REDIS_CLIENT_KWARGS": "Write its contents directly into OPTIONS.",
    "REVERSE_KEY_FUNCTION": "Remove it: keys() finds out what KEY_FUNCTION adds.",
    "SOCKET_CONNECT_TIMEOUT": "It is 'socket_connect_timeout' here.",
    "SOCKET_TIMEOUT": "It is 'socket_timeout' here.",
}
#: Advice for values of django-redis in options that exist in this package, too.
_DJANGO_REDIS_VALUES: Mapping[str, str] = {
    "compressor": "It should be such as "
    "'django_entra_redis.compressors.ZlibCompressor', which reads what django-redis "
    "has written.",
    "serializer": "It should be such as "
    "'django_entra_redis.serializers.JSONSerializer', which reads what django-redis "
    "has written.",
}
#: Django's BaseCache reads these two from OPTIONS; redis-py does not know them.
BASE_CACHE = ("MAX_ENTRIES", "CULL_FREQUENCY")


@dataclass(frozen=True, slots=True)
class Stampede:
    """How ``get_or_set()`` prevents many computations at a key's expiry.

    Parameters:
        beta: how early a value is computed anew before it expires: 1.0 is best on
            average, more is earlier, 0 is never before.
    """

    beta: float = 1.0


@dataclass(frozen=True, slots=True)
class ClientSideCaching:
    """The settings of the client-side cache: copies of values in this process.

    Parameters:
        max_bytes: bytes that all copies take at most.
        max_value_bytes: bytes of a value of which a copy is kept at most.
        max_staleness: seconds for which copies are used without a sign of life of the
            connection on which Redis invalidates them.
        prefixes: prefixes of the names of keys that are copied; ``None``: all keys.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_value_bytes: int = 256 * 1024
    max_staleness: float = 5.0
    prefixes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.prefixes is not None:
            object.__setattr__(self, "prefixes", tuple(self.prefixes))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """The settings of a cache, checked.

    Parameters:
        servers: one or several URLs; the first server takes the writes.
        identity: entry of ``ENTRA_REDIS``; ``None``: no Entra at all.
        pool_timeout: seconds to wait for a free connection.
        idle_timeout: seconds after which an idle connection is closed; ``None``: never.
        node_domain: the domain of a cluster's nodes: the certificate of a node below it
            must be for the node's own name, not for the one in ``LOCATION``.
        client_side_cache: ``None``: all values come from the server.
        stampede: ``None``: ``get_or_set()`` does not compute a value before it expires,
            and does not wait for other processes.
        connection: the options that are passed on to redis-py.
    """

    servers: tuple[str, ...] = field(repr=False)
    identity: str | None = "default"
    allow_plaintext_token: bool = False
    ignore_exceptions: bool = False
    clear_by_scan: bool = False
    pool_timeout: float = 5.0
    idle_timeout: float | None = 60.0
    node_domain: str | None = None
    compressor: Any = None
    compressor_fallbacks: Sequence[Any] = ()
    max_value_bytes: int = MAX_VALUE_BYTES
    serializer: Any = None
    pool_class: Any = None
    parser_class: Any = None
    client_side_cache: ClientSideCaching | None = None
    stampede: Stampede | None = None
    connection: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def exposes_token(self, scheme: str, host: str) -> bool:
        """Whether a token would be sent to another host in plain text.

        Parameters:
            scheme: the connection's scheme, see :func:`transport`.
            host: the host that it connects to.
        """
        return (
            self.identity is not None
            and not self.allow_plaintext_token
            and scheme == "redis"
            and not is_loopback(host)
        )


#: Options whose value is a dict of settings: ``None`` is off, ``True`` the defaults.
_TABLES: Mapping[str, Callable[..., Any]] = {
    "client_side_cache": ClientSideCaching,
    "stampede": Stampede,
}
#: Options of this package; all others are redis-py's.
OWN = tuple(
    one.name
    for one in fields(CacheOptions)
    if one.name not in ("servers", "connection")
)


def parse_options(
    servers: Sequence[str],
    options: Mapping[str, Any],
    where: str = "CACHES[...]",
    *,
    clustered: bool = False,
) -> CacheOptions:
    """Check a cache's settings.

    Parameters:
        servers: the URLs in ``LOCATION``.
        options: its ``OPTIONS``.
        where: what to call the cache in a message.
        clustered: whether the cache is on a Redis Cluster.

    Raises:
        ConfigurationError: the settings have problems.
    """
    at = f"{where}['OPTIONS']"
    if not isinstance(options, Mapping):
        hint = "It should be a dict of options, or left out."
        raise ConfigurationError([Problem("E023", at, "it is no dict.", hint)])
    problems = [
        *_duplicates(options, at),
        *_option_problems(in_lower_case(options), at),
    ]
    rest = {
        key: value
        for key, value in in_lower_case(options).items()
        if key not in (*BASE_CACHE, *_DJANGO_REDIS, *FIXED)
    }
    own = {key: rest.pop(key) for key in OWN if key in rest}
    for key, make in _TABLES.items():
        if key in own and not problems:
            given = own[key]
            table = given if isinstance(given, Mapping) else {}
            own[key] = make(**table) if is_on(given) else None
    checked = CacheOptions(**own, servers=tuple(servers), connection=rest)
    if not problems:
        problems = _server_problems(checked, where)
        if clustered:
            problems += _cluster_problems(checked, where)
    if problems:
        # Without duplicates: several servers often have the same problem.
        raise ConfigurationError(list(dict.fromkeys(problems)))
    return checked


def is_on(table: Any) -> bool:
    """Whether the value of an option that may be a dict switches it on.

    An empty dict does: all of its keys have defaults.
    """
    return table is not None and table is not False


def in_lower_case(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``OPTIONS`` with the names of this package's options in lower case.

    django-environ, and other packages that read a cache's settings from a URL, make the
    names of all options upper case.
    """
    own = {name.upper(): name for name in OWN}
    return {own.get(key, key): value for key, value in options.items()}


def _duplicates(options: Mapping[str, Any], at: str) -> Iterator[Problem]:
    for key in OWN:
        if key in options and key.upper() in options:
            message = f"it is given twice, as {key!r} too."
            hint = "One of them should be removed."
            yield Problem("E023", f"{at}[{key.upper()!r}]", message, hint)


def _option_problems(options: Mapping[str, Any], at: str) -> Iterator[Problem]:
    for key, hint in _DJANGO_REDIS.items():
        if key in options:
            message = "it is an option of django-redis."
            yield Problem("E025", f"{at}[{key!r}]", message, hint)
    for key, hint in _DJANGO_REDIS_VALUES.items():
        if str(options.get(key, "")).startswith("django_redis."):
            message = "it is one of django-redis."
            yield Problem("E025", f"{at}[{key!r}]", message, hint)
    own = _parameters(options.get("connection_class"))
    rules = {key: rule for key, rule in VALUES.items() if key not in own}
    yield from _value_problems(rules, options, lambda key: f"{at}[{key!r}]")


def _parameters(kind: Any) -> frozenset[str]:
    """Return the options that a user's connection class names itself, and may take for
    what it likes."""
    return frozenset(
        name
        for parent in getattr(kind, "__mro__", ())
        if parent.__module__.partition(".")[0] != "redis"
        and isinstance(init := vars(parent).get("__init__"), FunctionType)
        for name in inspect.signature(init).parameters
    )


def _value_problems(
    rules: Rules,
    given: Mapping[str, Any],
    at: Callable[[str], str],
) -> Iterator[Problem]:
    """Yield the problems of options' values.

    Parameters:
        rules: the rules.
        given: the options.
        at: returns the place of an option in the settings, for the message.
    """
    for key, (fits, hint) in rules.items():
        if key in given and not _takes(fits, given[key]):
            message = "its value can't be used."
            yield Problem("E023", at(key), message, f"It should be {hint}.")


def _takes(fits: Callable[[Any], bool], value: Any) -> bool:
    try:
        return fits(value)
    except Exception:
        # A lazy object says that it is text, and is not what the system takes for it.
        return False


def _server_problems(options: CacheOptions, where: str) -> list[Problem]:
    problems = []
    # An empty list is reported as an empty URL.
    for server in options.servers or ("",):
        location = read_url(server)
        if location is None:
            problems.append(
                Problem(
                    "E024",
                    f"{where}['LOCATION']",
                    "it is not the URL of a Redis server.",
                    "It should be such as "
                    "'rediss://contoso.westeurope.redis.azure.net:10000'.",
                )
            )
            continue
        problems += _value_problems(
            IN_URL, location.values, lambda key: f"{where}['LOCATION'] ({key})"
        )
        # As in redis-py, the URL overrides OPTIONS.
        connection = {**options.connection, **location.arguments}
        # A user's connection class may add the certificate itself.
        pair = {"ssl_certfile", "connection_class"}
        if connection.get("ssl_keyfile") and not any(map(connection.get, pair)):
            problems.append(
                Problem(
                    "E023",
                    f"{where}['OPTIONS']['ssl_keyfile']",
                    "it has no certificate.",
                    "It should be beside ssl_certfile, or left out: a file may have "
                    "both, and is ssl_certfile then.",
                )
            )
        if options.identity is None:
            continue
        if stray := sent_credentials(connection):
            problems.append(
                Problem(
                    "E021",
                    where,
                    f"it has {' and '.join(stray)} beside an identity.",
                    "The identity's token is the credential: remove it from LOCATION "
                    "and OPTIONS, or set OPTIONS['identity'] to None.",
                )
            )
        elif options.exposes_token(
            transport(location.scheme, connection),
            str(connection.get("host", "localhost")),
        ):
            problems.append(
                Problem(
                    "E022",
                    f"{where}['LOCATION']",
                    "a token would cross the network in plain text.",
                    "It should start with rediss://, or, where the network protects "
                    "it, set OPTIONS['allow_plaintext_token'] to True.",
                )
            )
    return problems


def sent_credentials(connection: Mapping[str, Any]) -> list[str]:
    """Return the names of the options that a connection authenticates with.

    Parameters:
        connection: the options that are passed on to redis-py. redis-py sends none
            that is false, such as the empty value of an unset variable.
    """
    return [key for key in _CREDENTIALS if connection.get(key)]


def _cluster_problems(options: CacheOptions, where: str) -> Iterator[Problem]:
    """Yield the problems of settings that a cluster does not support."""
    for server in options.servers:
        location = read_url(server)
        if location is None:
            continue  # Another problem reports that.
        if location.scheme == "unix":
            yield Problem(
                "E026",
                f"{where}['LOCATION']",
                "a Unix socket leads to no cluster.",
                "It should be such as "
                "'rediss://contoso.westeurope.redis.azure.net:10000'.",
            )
        if (database := location.database(options.connection)) != "0":
            yield _no_database("E026", where, "a cluster", database)


def database_problems(options: CacheOptions, where: str) -> list[Problem]:
    """Return the problems of database numbers that Azure does not have.

    They are warnings: the service is only guessed from the host name.
    """
    found = []
    # A server that is not a URL is reported by another problem.
    for location in filter(None, map(read_url, options.servers)):
        host = {**options.connection, **location.arguments}.get("host", "")
        service, database = service_of(str(host)), location.database(options.connection)
        if service is not None and service.one_database and database != "0":
            found.append(_no_database("E027", where, service.name, database))
    return list(dict.fromkeys(found))


def _no_database(number: str, where: str, what: str, database: str) -> Problem:
    return Problem(
        number,
        where,
        f"it has database {database}, and {what} has database 0 alone.",
        "Remove it from LOCATION and OPTIONS; to tell caches apart, set KEY_PREFIX.",
    )
