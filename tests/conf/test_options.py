"""A cache's LOCATION and OPTIONS: what goes where, and what is refused."""

import enum
import math
import socket
import ssl
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from django.utils.functional import SimpleLazyObject
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.connection import (
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.credentials import UsernamePasswordCredentialProvider
from redis.retry import Retry

from django_entra_redis import _fork as forks
from django_entra_redis._errors import ConfigurationError, Problem
from django_entra_redis.conf.location import is_loopback, split_location
from django_entra_redis.conf.options import (
    OWN,
    CacheOptions,
    ClientSideCaching,
    Stampede,
    parse_options,
)

TLS = "rediss://contoso.westeurope.redis.azure.net:10000"
PROVIDER = UsernamePasswordCredentialProvider("me", "hush")
PLAIN = "redis://contoso.westeurope.redis.azure.net:6379"


class MyTlsConnection(SSLConnection):
    """Somebody's own connection."""


def parse(location: Any, **options: Any) -> CacheOptions:
    """Return what the settings of a cache ask for."""
    return parse_options(split_location(location), options, "CACHES['x']")


def faults(location: Any, **options: Any) -> list[Problem]:
    """Return what is said of a cache that can't be used."""
    with pytest.raises(ConfigurationError) as caught:
        parse(location, **options)
    return list(caught.value.problems)


def fault(location: Any, **options: Any) -> Problem:
    """Return the one thing that is said of a cache that can't be used."""
    (problem,) = faults(location, **options)
    return problem


# -- what is right


def test_a_location_is_all_there_must_be() -> None:
    """The defaults are those that the documentation states."""
    options = parse(TLS)
    assert options == CacheOptions(servers=(TLS,))
    assert options.identity == "default"
    assert options.pool_timeout == 5
    assert options.idle_timeout == 60
    flags = (
        options.allow_plaintext_token,
        options.ignore_exceptions,
        options.clear_by_scan,
    )
    assert flags == (False, False, False)


def test_own_options_and_those_of_redis_py() -> None:
    """What the package does not know goes on to redis-py; Django's own does not."""
    given = {
        "identity": "other",
        "allow_plaintext_token": True,
        "ignore_exceptions": True,
        "clear_by_scan": True,
        "pool_timeout": 0,
        "idle_timeout": None,
        "compressor": "a.C",
        "compressor_fallbacks": ["a.F"],
        "max_value_bytes": 1,
        "serializer": "a.S",
        "pool_class": "a.P",
        "parser_class": "a.D",
    }
    options = parse(
        PLAIN, **given, db=3, socket_timeout=2, MAX_ENTRIES=9, CULL_FREQUENCY=2
    )
    assert {key: getattr(options, key) for key in given} == given
    assert options.connection == {"db": 3, "socket_timeout": 2}


#: Its member is text, and is shown otherwise.
Name = enum.Enum("Name", {"SITE": "site"}, type=str)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (False, None),
        (True, Stampede(beta=1.0)),
        ({}, Stampede(beta=1.0)),
        ({"beta": 2}, Stampede(beta=2)),
        ({"beta": 0}, Stampede(beta=0)),
    ],
)
def test_stampede(given: Any, expected: Stampede | None) -> None:
    """It is off unless asked for; True asks for what is best on average."""
    assert parse(TLS, stampede=given).stampede == expected
    assert parse(TLS).stampede is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (False, None),
        (True, ClientSideCaching(2**25, 2**18, 5.0, None)),
        ({}, ClientSideCaching()),
        ({"max_bytes": 10, "prefixes": ["a"]}, ClientSideCaching(10, prefixes=("a",))),
        ({"max_staleness": 1, "prefixes": None}, ClientSideCaching(max_staleness=1)),
    ],
)
def test_client_side_cache(given: Any, expected: ClientSideCaching | None) -> None:
    """It is off unless asked for; what it asks for can be told apart."""
    found = parse(TLS, client_side_cache=given).client_side_cache
    assert found == expected
    assert hash(found) == hash(expected)


@pytest.mark.parametrize(
    ("location", "servers"),
    [
        (TLS, (TLS,)),
        (f"{TLS},{TLS}/1;{TLS}/2", (TLS, f"{TLS}/1", f"{TLS}/2")),
        ([TLS, f"{TLS}/1"], (TLS, f"{TLS}/1")),
        ((TLS,), (TLS,)),
    ],
)
def test_several_servers(location: Any, servers: tuple[str, ...]) -> None:
    """They are told apart as Django does it."""
    assert parse(location).servers == servers


def test_nothing_secret_is_shown() -> None:
    """Where an identity is not used, a password may be in URL and options."""
    options = parse("redis://me:hush@h", identity=None, password="hush")
    assert "hush" not in f"{options!r} {options}"


def test_no_identity_asks_for_nothing() -> None:
    """A local Redis may have a password and no TLS."""
    options = parse("redis://me:pw@elsewhere", identity=None, username="me")
    assert options.identity is None
    assert options.connection == {"username": "me"}


# -- a token in plain text


@pytest.mark.parametrize(
    "location",
    [
        TLS,
        "redis://localhost:6379/1",
        "redis://LOCALHOST",
        "redis://127.0.0.1",
        "redis://127.9.9.9:1",
        "redis://[::1]:6379",
        "redis://",
        "redis:///2",
        "redis://?host=localhost",
        "unix:///run/redis.sock",
        "unix:///run/redis.sock?db=1",
        "unix:///run/a@b.sock",
        "redis://%6cocalhost",
    ],
)
def test_locations_that_nobody_reads_along(location: str) -> None:
    """TLS, a socket file and this very machine are safe for a token."""
    assert parse(location).servers == (location,)


@pytest.mark.parametrize(
    "location",
    [
        PLAIN,
        "redis://10.0.0.1",
        "redis://[::2]",
        "redis://0.0.0.0",
        "redis://localhost.example.com",
        "redis://127.0.0.1.example.com",
        "redis://?host=elsewhere",
        "redis:///1?host=elsewhere",
        "redis://elsewhere?host=localhost",
        "redis://localhost%2eexample.com",
        # Looks like this machine's address; redis-py takes it for ::1e.
        "redis://[::1%65]",
    ],
)
def test_a_token_in_plain_text_is_refused(location: str) -> None:
    """Unless the cache allows it, or uses no identity."""
    problem = fault(location)
    assert (problem.id, problem.where) == ("E022", "CACHES['x']['LOCATION']")
    assert "rediss://" in problem.hint
    assert parse(location, allow_plaintext_token=True).allow_plaintext_token
    assert parse(location, identity=None).identity is None


def test_every_server_counts() -> None:
    """A replica gets the token as well; the same fault is told once."""
    assert fault([TLS, PLAIN]).id == "E022"
    assert fault([PLAIN, PLAIN]).id == "E022"


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_host_in_the_options(host: str | None) -> None:
    """What redis-py would connect to is what counts; the URL goes first."""
    assert fault("redis://", host=host).id == "E022"
    assert parse("redis://localhost", host=host).servers


@pytest.mark.parametrize(
    ("location", "kind", "safe"),
    [
        (PLAIN, SSLConnection, True),
        (PLAIN, MyTlsConnection, True),
        (PLAIN, UnixDomainSocketConnection, True),
        (PLAIN, Connection, False),
        (PLAIN, None, False),
        # It goes before what the scheme asks for.
        (TLS, Connection, False),
        (TLS, None, True),
        # A word in the URL is no class.
        (f"{PLAIN}?connection_class=SSLConnection", None, False),
    ],
)
def test_connection_class(location: str, kind: Any, safe: bool) -> None:
    """A class of one's own is judged by its parents."""
    options = {"connection_class": kind}
    if safe:
        assert parse(location, **options).connection == options
    else:
        assert fault(location, **options).id == "E022"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Names other than localhost may be anybody's."""
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("addresses", "loopback"),
    [
        (["127.0.0.1"], True),
        (["::1", "127.0.0.1"], True),
        (["203.0.113.5"], False),
        (["127.0.0.1", "203.0.113.5"], False),
        ([], False),
    ],
)
def test_localhost_is_where_it_leads(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], loopback: bool
) -> None:
    """A hosts file may lead it elsewhere, and a token would go there.

    Nobody forks while it is looked up: the child's own lookups could wait for ever.
    """

    def resolve(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        assert host == "localhost"
        with ThreadPoolExecutor(1) as other:
            assert not other.submit(
                forks._imports.lock.acquire, blocking=False
            ).result()
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert is_loopback("localhost") is loopback
    if loopback:
        assert parse("redis://localhost").servers
    else:
        assert fault("redis://localhost").id == "E022"


# -- what is wrong


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        [],
        5,
        "contoso.redis.azure.net:6380",
        "https://contoso.redis.azure.net",
        "redis:contoso",
        "REDISS://contoso",
        " rediss://contoso",
        "rediss://contoso:port",
        "rediss://[contoso",
        [None],
        b"rediss://contoso",
        f"{TLS}, {TLS}",
        # A password that is not escaped.
        "rediss://:1/hush@contoso:6380",
        "unix://:1/hush@/run/redis.sock",
    ],
)
def test_what_is_no_url_of_a_redis(location: Any) -> None:
    """It is told what should be there, also where no identity is used."""
    for identity in ("default", None):
        problem = fault(location, identity=identity)
        assert (problem.id, problem.where) == ("E024", "CACHES['x']['LOCATION']")
        assert "'rediss://contoso" in problem.hint


@pytest.mark.parametrize(
    ("location", "options", "named"),
    [
        ("rediss://me:hush@h", {}, "username and password"),
        ("rediss://:hush@h", {}, "password"),
        ("rediss://h?password=hush", {}, "password"),
        (TLS, {"username": "me", "password": "hush"}, "username and password"),
        (TLS, {"credential_provider": PROVIDER}, "credential_provider"),
        # The more telling of two faults.
        ("redis://:hush@elsewhere", {}, "password"),
    ],
)
def test_credentials_beside_an_identity(
    location: str, options: dict[str, Any], named: str
) -> None:
    """Which ones is told, never what they are."""
    problem = fault(location, **options)
    assert (problem.id, problem.where) == ("E021", "CACHES['x']")
    assert f"it has {named} beside an identity." == problem.message
    assert "hush" not in str(problem)


@pytest.mark.parametrize("nothing", [None, ""])
def test_credentials_of_absent_variables(nothing: Any) -> None:
    """What ``os.environ.get()`` gives is no credential."""
    assert parse(TLS, username=nothing, password=nothing).identity == "default"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("allow_plaintext_token", 1),
        ("ignore_exceptions", "yes"),
        ("clear_by_scan", None),
        ("identity", 5),
        ("identity", {"KIND": "managed_identity"}),
        ("compressor_fallbacks", "zlib"),
        ("max_value_bytes", 0),
        ("max_value_bytes", True),
        ("client_side_cache", 1),
        ("client_side_cache", {"max_bytes": 0}),
        ("client_side_cache", {"max_bytes": 1.5}),
        ("client_side_cache", {"max_value_bytes": -1}),
        ("client_side_cache", {"max_staleness": 0}),
        ("client_side_cache", {"max_staleness": "5"}),
        ("client_side_cache", {"prefixes": "menu"}),
        ("client_side_cache", {"prefixes": [1]}),
        ("client_side_cache", {"ttl": 1}),
        ("stampede", 1.0),
        ("stampede", "on"),
        ("stampede", {"beta": -1}),
        ("stampede", {"beta": "1"}),
        ("stampede", {"beta": True}),
        ("stampede", {"beta": math.nan}),
        ("stampede", {"delta": 1.0}),
        ("node_domain", ""),
        ("node_domain", ".contoso.com"),
        ("node_domain", "*.contoso.com"),
        ("node_domain", "contoso.com:6379"),
        ("node_domain", 5),
        ("pool_timeout", -1),
        ("pool_timeout", "5"),
        ("pool_timeout", True),
        ("pool_timeout", None),
        ("pool_timeout", math.nan),
        ("pool_timeout", math.inf),
        ("idle_timeout", 0),
        ("idle_timeout", -1),
        ("idle_timeout", "60"),
        ("idle_timeout", True),
        ("idle_timeout", math.inf),
        ("connection_class", "redis.SSLConnection"),
        ("connection_class", dict),
        ("connection_class", OrderedDict),
        ("connection_class", redis.asyncio.Connection),
        # redis-py's own, which would take them, and fail at each request.
        ("db", "one"),
        ("db", -1),
        ("db", True),
        ("db", "²"),
        ("client_name", "a b"),
        ("client_name", b"a\n"),
        ("client_name", "Zoë"),
        ("client_name", object),
        ("credential_provider", "x"),
        ("credential_provider", object()),
        ("driver_info", "django"),
        ("maint_notifications_config", 5),
        ("password", True),
        ("password", 1.5),
        ("password", ["hush"]),
        ("username", ["site"]),
        ("redis_connect_func", "os.getpid"),
        ("retry_on_error", None),
        ("retry_on_error", "TimeoutError"),
        ("retry_on_error", [5]),
        ("retry_on_error", ConnectionError),
        ("socket_keepalive_options", [1]),
        ("socket_keepalive_options", {"TCP_KEEPIDLE": 1}),
        ("socket_keepalive_options", {4: "1"}),
        ("socket_keepalive_options", {4: 2**31}),
        ("socket_read_size", None),
        ("socket_read_size", 0),
        ("socket_read_size", "65536"),
        ("socket_type", None),
        ("socket_type", 99),
        ("socket_type", "AF_INET"),
        ("ssl_ca_certs", 5),
        ("ssl_ca_certs", "a\0.pem"),
        ("ssl_ca_certs", Path("a\0.pem")),
        # It is no text, though it says so.
        ("ssl_ca_certs", SimpleLazyObject(lambda: "a.pem")),
        ("ssl_ca_path", b"a\0"),
        ("ssl_certfile", ["a.pem"]),
        ("ssl_keyfile", 5),
        ("ssl_ca_data", 5),
        ("ssl_ca_data", "Zoë"),
        ("ssl_cert_reqs", "CERT_NONE"),
        ("ssl_cert_reqs", ""),
        ("ssl_cert_reqs", []),
        ("ssl_cert_reqs", 5),
        ("ssl_ciphers", 5),
        ("ssl_ciphers", ["ECDHE+AESGCM"]),
        ("ssl_ciphers", "klingon"),
        ("ssl_ciphers", "null\0"),
        ("ssl_exclude_verify_flags", 5),
        ("ssl_include_verify_flags", ["VERIFY_X509_STRICT"]),
        ("ssl_min_version", "1.2"),
        ("ssl_min_version", 1.2),
        ("ssl_min_version", True),
        ("ssl_password", 5),
        ("health_check_interval", "30"),
        ("max_connections", "100"),
        ("max_connections", 1.5),
        ("max_connections", -1),
        ("protocol", 4),
        ("protocol", "RESP3"),
        ("retry", 3),
        ("socket_connect_timeout", "5"),
        ("socket_timeout", "5"),
        ("socket_timeout", 0),
        ("socket_timeout", -1),
        ("socket_timeout", True),
        ("socket_timeout", math.nan),
        ("socket_timeout", math.inf),
        ("encoding", "latin-1"),
        ("encoding", "utf-8-sig"),
        ("encoding", "klingon"),
        ("encoding", "null\0"),
        ("encoding", None),
        ("encoding_errors", "surrogateescape"),
        ("command_packer", object()),
        ("cache_config", object()),
    ],
)
def test_value_that_cannot_be_used(key: str, value: object) -> None:
    """The option is named, and what it should be."""
    problem = fault(TLS, **{key: value})
    assert problem.id == "E023"
    assert problem.where == f"CACHES['x']['OPTIONS']['{key}']"
    assert problem.hint.startswith("It should be ")


@pytest.mark.parametrize(
    "given",
    [
        {"db": None, "health_check_interval": None, "max_connections": None},
        {"protocol": None, "retry": None, "socket_timeout": None},
        {"db": "1", "health_check_interval": 0, "max_connections": 0},
        {"protocol": "3", "retry": Retry(NoBackoff(), 1), "socket_timeout": 200_000},
        {"socket_connect_timeout": 0.1, "max_connections": 5, "protocol": 2},
        {"client_name": "site-1", "retry_on_error": [redis.TimeoutError]},
        {"client_name": b"site", "retry_on_error": ()},
        {"client_name": None, "driver_info": None, "socket_read_size": 1},
        {"maint_notifications_config": None, "redis_connect_func": print},
        # redis-py leaves out what is false, as settings write what is switched off.
        {"password": False, "username": "", "maint_notifications_config": False},
        {"client_name": False, "socket_keepalive_options": [], "password": 0},
        {"ssl_keyfile": False, "ssl_password": False, "ssl_exclude_verify_flags": 0},
        {"ssl_include_verify_flags": False},
        {"client_name": Name.SITE, "socket_read_size": socket.SO_RCVBUF},
        {"client_name": memoryview(b"site"), "ssl_password": bytearray(b"hush")},
        {"client_name": 7, "socket_keepalive_options": {4: bytearray(b"1")}},
        {"socket_keepalive_options": {4: 1, 5: b"1"}, "socket_type": 0},
        {"socket_keepalive_options": None, "socket_type": socket.AF_INET6},
        {"ssl_ca_certs": Path("a.pem"), "ssl_ca_path": b"a", "ssl_ca_data": b"a"},
        {"ssl_certfile": "a.pem", "ssl_keyfile": "b.pem", "ssl_ca_data": "a"},
        {"ssl_cert_reqs": "optional", "ssl_ciphers": "ECDHE+AESGCM"},
        {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ciphers": None},
        {"ssl_min_version": ssl.TLSVersion.TLSv1_2, "ssl_password": lambda: "hush"},
        {"ssl_min_version": 771, "ssl_password": b"hush", "ssl_cert_reqs": None},
        {"ssl_include_verify_flags": [ssl.VerifyFlags.VERIFY_X509_STRICT]},
        {"ssl_exclude_verify_flags": ssl.VerifyFlags.VERIFY_X509_STRICT},
    ],
)
def test_values_that_redis_py_can_use(given: dict[str, Any]) -> None:
    """They go on as they are."""
    assert parse(TLS, **given).connection == given


class OwnConnection(redis.SSLConnection):
    """A user's class, which has its own idea of an option."""

    def __init__(self, credential_provider: Any = None, **options: Any) -> None:
        """Make nothing: it is only looked at."""


def test_options_that_a_connection_class_names() -> None:
    """What they may be is for that class to say; of the others it is as ever."""
    given = {
        "connection_class": OwnConnection,
        "credential_provider": "site.provider",
        "ssl_keyfile": "a.pem",
        "identity": None,
    }
    assert parse(TLS, **given).connection["credential_provider"] == "site.provider"
    problem = fault(TLS, **given, socket_timeout="5")
    assert problem.where == "CACHES['x']['OPTIONS']['socket_timeout']"


@pytest.mark.parametrize(
    "given",
    [{"username": b"site", "password": 12345}, {"username": 0, "password": "x"}],
)
def test_credentials_that_redis_py_can_use(given: dict[str, Any]) -> None:
    """A number is sent as its digits."""
    assert parse(TLS, identity=None, **given).connection == given


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf_8"])
def test_values_that_change_nothing(encoding: str) -> None:
    """What says in other words what holds anyway is taken, and left out."""
    given = {
        "encoding": encoding,
        "encoding_errors": "strict",
        "command_packer": None,
        "cache_config": None,
    }
    assert parse(TLS, **given).connection == {}
    url = f"{TLS}?encoding={encoding}&encoding_errors=strict"
    assert parse(url).servers == (url,)


@pytest.mark.parametrize(
    "query",
    [
        "encoding=latin-1",
        "encoding_errors=replace",
        "command_packer=x",
        "db=one",
        "health_check_interval=often",
        "max_connections=1.5",
        "protocol=4",
        "socket_connect_timeout=5s",
        "socket_timeout=0",
        "socket_timeout=nan",
        "client_name=a%20b",
        "credential_provider=x",
        "driver_info=x",
        "maint_notifications_config=x",
        "redis_connect_func=x",
        "retry=3",
        "retry_on_error=x",
        "socket_keepalive_options=x",
        "socket_read_size=x",
        "socket_type=2",
        "ssl_ca_certs=a%00",
        "ssl_cert_reqs=never",
        "ssl_ciphers=klingon",
        "ssl_min_version=1.2",
    ],
)
def test_value_in_the_url_that_cannot_be_used(query: str) -> None:
    """It is the same there, with an identity or without."""
    for identity in ("default", None):
        problem, *_ = faults(f"{TLS}?{query}", identity=identity)
        key = query.partition("=")[0]
        assert problem.id == "E023"
        assert problem.where == f"CACHES['x']['LOCATION'] ({key})"


def test_values_in_the_url_that_redis_py_can_read() -> None:
    """They are numbers, written as text."""
    url = f"{TLS}?db=0&health_check_interval=9&max_connections=9&protocol=3"
    url += "&socket_timeout=0.5&socket_connect_timeout=3&socket_read_size=9"
    url += "&ssl_min_version=771&ssl_cert_reqs=required&client_name=site"
    assert parse(url).servers == (url,)


@pytest.mark.parametrize("number", ["-1", "%2D1", " -1"])
def test_database_below_zero(number: str) -> None:
    """redis-py reads it from the path, and the server refuses it."""
    problem = fault(f"{TLS}/{number}")
    assert (problem.id, problem.where) == ("E023", "CACHES['x']['LOCATION'] (db)")


def test_key_without_a_certificate() -> None:
    """TLS could not be begun; the certificate may be named in either place."""
    problem = fault(TLS, ssl_keyfile="a.pem")
    assert problem.where == "CACHES['x']['OPTIONS']['ssl_keyfile']"
    url = f"{TLS}?ssl_certfile=b.pem"
    assert parse(url, ssl_keyfile="a.pem").servers == (url,)


@pytest.mark.parametrize("options", [None, [], "x", 5])
def test_options_that_are_no_dict(options: Any) -> None:
    """The setting is named."""
    with pytest.raises(ConfigurationError) as caught:
        parse_options([TLS], options, "CACHES['x']")
    (problem,) = caught.value.problems
    assert (problem.id, problem.where) == ("E023", "CACHES['x']['OPTIONS']")


def test_connections_of_redis_py_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before redis-py is imported, no class is one of its connections."""
    monkeypatch.delitem(sys.modules, "redis.connection")
    assert fault(TLS, connection_class=Connection).id == "E023"


def test_own_client_side_cache_is_named() -> None:
    """Whoever looks for redis-py's finds this package's."""
    assert "OPTIONS['client_side_cache']" in fault(TLS, cache_config=object()).hint


def test_all_options_that_are_wrong() -> None:
    """They are told at once."""
    problems = faults(TLS, clear_by_scan=1, pool_timeout=-1, identity=5)
    assert [problem.id for problem in problems] == ["E023"] * 3


def test_options_of_django_redis() -> None:
    """Each is told of, with what stands for it here."""
    problems = faults(TLS, SOCKET_TIMEOUT=1, CLIENT_CLASS="x", MAX_ENTRIES=5)
    assert [problem.id for problem in problems] == ["E025"] * 2
    assert [problem.hint for problem in problems] == [
        "Remove it.",
        "It is 'socket_timeout' here.",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("serializer", "django_redis.serializers.json.JSONSerializer"),
        ("COMPRESSOR", "django_redis.compressors.zlib.ZlibCompressor"),
    ],
)
def test_values_of_django_redis(key: str, value: str) -> None:
    """Options whose names are those of django-redis have other values."""
    problem = fault(TLS, **{key: value})
    assert problem.id == "E025"
    assert "'django_entra_redis." in problem.hint


def test_own_options_in_upper_case() -> None:
    """So django-environ has them; all of them are known so."""
    given = {"IDENTITY": None, "IGNORE_EXCEPTIONS": True, "POOL_CLASS": "a.P"}
    options = parse(TLS, **given)
    assert {key: getattr(options, key.lower()) for key in given} == given
    # Whatever they are: none goes on to redis-py.
    defaults = CacheOptions(servers=(TLS,))
    assert (
        parse(TLS, **{key.upper(): getattr(defaults, key) for key in OWN}) == defaults
    )


def test_an_option_in_both_cases() -> None:
    """Nobody knows which of the two is meant."""
    for value in (True, False):
        problem = fault(TLS, ignore_exceptions=True, IGNORE_EXCEPTIONS=value)
        assert problem.where == "CACHES['x']['OPTIONS']['IGNORE_EXCEPTIONS']"
        assert "'ignore_exceptions'" in problem.message


# -- whatever a settings file holds

hosts = st.sampled_from(
    ["", "localhost", "127.0.0.1", "[::1]", "[::1%65]", "elsewhere", "%6cocalhost"]
)
urls = st.builds(
    "{}://{}{}{}{}".format,
    st.sampled_from(["redis", "rediss", "unix", "REDIS", "http"]),
    st.sampled_from(["", "me@", "me:hush@", ":hush@", ":@"]),
    hosts,
    st.sampled_from(["", ":6379", ":0", ":x", "/", "/1"]),
    st.sampled_from(["", "?db=1", "?host=elsewhere", "?password=x", "?username="])
    | st.text(max_size=9).map("?{}".format),
)


@settings(deadline=None, database=None)
@given(urls | st.text())
@example("redis://[::1%65]")
def test_urls_are_read_as_redis_py_reads_them(url: str) -> None:
    """A URL passes only if redis-py finds no credential in it and no foreign host."""
    try:
        parse_options([url], {})
    except ConfigurationError:
        return
    read = parse_url(url)
    assert not read.get("username")
    assert not read.get("password")
    if read.get("connection_class") is None:
        assert is_loopback(read.get("host", "localhost"))


@settings(deadline=None, database=None)
@given(
    urls | st.none() | st.binary() | st.lists(urls | st.none()),
    st.dictionaries(
        st.sampled_from(
            [*CacheOptions.__dataclass_fields__, "host", "password"]
        ).filter(lambda key: key not in ("servers", "connection")),
        st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
    ),
)
def test_any_options_are_taken_or_explained(location: Any, given: Any) -> None:
    """Nothing but the package's own error comes of them."""
    try:
        assert parse(location, **given).servers
    except ConfigurationError as error:
        assert all(problem.hint for problem in error.problems)  # noqa: PT017


@pytest.mark.parametrize(
    ("server", "options", "says"),
    [
        ("unix:///run/redis.sock", {}, "Unix socket"),
        ("rediss://host:10000/3", {}, "database 3"),
        ("rediss://host:10000?db=2", {}, "database 2"),
        ("rediss://host:10000", {"db": 1}, "database 1"),
    ],
)
def test_what_a_cluster_has_not(
    server: str, options: dict[str, Any], says: str
) -> None:
    """A cluster has one database, and no socket of its own."""
    parse_options([server], options)
    with pytest.raises(ConfigurationError, match=says) as caught:
        parse_options([server], options, clustered=True)
    assert {problem.id for problem in caught.value.problems} == {"E026"}
    parse_options(["rediss://host:10000/0"], {"db": 0}, clustered=True)
