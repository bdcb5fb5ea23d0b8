"""The system checks: what ``manage.py check`` says, without asking the network."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from django.core.cache import caches
from django.core.checks import ERROR, CheckMessage, Error, Tags, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.functional import SimpleLazyObject

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.checks import check_caches, check_identities

ENTRA = "django_entra_redis.cache.EntraRedisCache"
LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
TLS = "rediss://contoso.westeurope.redis.azure.net:10000"


@contextmanager
def settings_of(cache: dict[str, Any], identities: Any) -> Iterator[None]:
    """Have a default cache of this backend, and identities."""
    default = {"BACKEND": ENTRA, "LOCATION": TLS, **cache}
    with override_settings(CACHES={"default": default}, ENTRA_REDIS=identities):
        yield


def checked() -> list[CheckMessage]:
    """Return what the checks of caches say."""
    return run_checks(tags=[Tags.caches])


def test_nothing_to_say() -> None:
    """Settings that work pass, whatever other caches there are."""
    all_caches = {
        "default": {"BACKEND": ENTRA, "LOCATION": TLS},
        "local": {"BACKEND": ENTRA, "LOCATION": TLS, "OPTIONS": {"identity": None}},
        "other": LOCMEM,
        "none": {"BACKEND": "no.such.Backend"},
    }
    # Django's own checks of caches would stumble over the last one.
    with override_settings(CACHES=all_caches, ENTRA_REDIS={"default": {}}):
        assert check_identities() == []
        assert check_caches() == []


class Asynchronous:
    """A credential such as azure.identity.aio's, which a check does not make."""

    def __init__(self) -> None:
        raise AssertionError

    async def get_token(self, *scopes: str) -> None:
        """Get a token."""


class AsynchronousOfClass:
    """Another one."""

    @classmethod
    async def get_token(cls, *scopes: str) -> None:
        """Get a token."""


async def make_credential() -> None:
    """Make a credential."""


def make_another() -> None:
    """Make a credential, of which nobody knows before."""


class Synchronous:
    """A credential that can be used."""

    def __init__(self) -> None:
        raise AssertionError  # pragma: no cover - a check calls nothing

    def get_token(self, *scopes: str) -> None:
        """Get a token."""


#: Objects that a module may hold: one of them is made when it is first used.
asynchronous = object.__new__(Asynchronous)
synchronous = object.__new__(Synchronous)
lazy = SimpleLazyObject(Asynchronous)


@pytest.mark.parametrize(
    "name",
    ["Asynchronous", "AsynchronousOfClass", "asynchronous", "make_credential"],
)
def test_asynchronous_credential(name: str) -> None:
    """What a dotted path leads to is looked at, and not called."""
    path = f"{__name__}.{name}"
    with settings_of({}, {"default": {"CREDENTIAL": path}}):
        (found,) = checked()
    where = "ENTRA_REDIS['default']['CREDENTIAL']"
    assert found.id == "django_entra_redis.E007"
    assert found.msg == f"{where}: '{path}' is asynchronous."
    assert "azure.identity.aio" in str(found.hint)


@pytest.mark.parametrize(
    "path",
    [
        f"{__name__}.Synchronous",
        f"{__name__}.synchronous",
        f"{__name__}.lazy",
        f"{__name__}.make_another",
        f"{__name__}.no_such_name",
        "no.such.module",
        "nothing",
        # It is not even imported.
        "azure.identity.NoSuchCredential",
    ],
)
def test_credential_that_may_be_synchronous(path: str) -> None:
    """Only what is known to be asynchronous is told; the rest is told at its use."""
    with settings_of({}, {"default": {"CREDENTIAL": path}}):
        assert checked() == []


FAULTS: list[tuple[str, dict[str, Any], Any, str]] = [
    ("E001", {}, None, "ENTRA_REDIS: it is not a dictionary."),
    ("E001", {}, {"default": None}, "ENTRA_REDIS['default']: it is not a dictionary."),
    ("E002", {}, {"default": {"X": 1}}, "ENTRA_REDIS['default']: there is no key 'X'."),
    (
        "E003",
        {},
        {"default": {"KIND": "x"}},
        "ENTRA_REDIS['default']['KIND']: 'x' is not a known KIND.",
    ),
    (
        "E004",
        {},
        {
            "default": {
                "KIND": "service_principal",
                "TENANT_ID": "a",
                "CLIENT_ID": "b",
            }
        },
        "ENTRA_REDIS['default']: CLIENT_SECRET is missing.",
    ),
    (
        "E005",
        {},
        {
            "default": {
                "KIND": "service_principal",
                "TENANT_ID": "a",
                "CLIENT_ID": "b",
                "CLIENT_SECRET": "c",
                "CLIENT_CERTIFICATE": "d",
            }
        },
        "ENTRA_REDIS['default']: it has CLIENT_SECRET and CLIENT_CERTIFICATE.",
    ),
    (
        "E006",
        {},
        {"default": {"TOKEN_FILE": "/x"}},
        "ENTRA_REDIS['default']: TOKEN_FILE is not used by KIND 'environment'.",
    ),
    (
        "E007",
        {},
        {"default": {"REFRESH_RATIO": 2}},
        "ENTRA_REDIS['default']['REFRESH_RATIO']: its value can't be used.",
    ),
    (
        "E008",
        {"OPTIONS": {"identity": "other"}},
        {"default": {}},
        "ENTRA_REDIS['other']: there is no such identity.",
    ),
    ("E008", {}, {}, "ENTRA_REDIS['default']: there is no such identity."),
    (
        "E021",
        {"OPTIONS": {"password": "hush"}},
        {"default": {}},
        "CACHES['default']: it has password beside an identity.",
    ),
    (
        "E022",
        {"LOCATION": "redis://contoso"},
        {"default": {}},
        "CACHES['default']['LOCATION']: a token would cross the network in plain text.",
    ),
    (
        "E023",
        {"OPTIONS": {"clear_by_scan": 1}},
        {"default": {}},
        "CACHES['default']['OPTIONS']['clear_by_scan']: its value can't be used.",
    ),
    (
        "E023",
        {"OPTIONS": {"serializer": "nowhere.Serializer"}},
        {"default": {}},
        "CACHES['default']['OPTIONS']['serializer']: it can't be used "
        "(ModuleNotFoundError: No module named 'nowhere').",
    ),
    (
        "E023",
        {"OPTIONS": {"compressor": 3}},
        {"default": {}},
        "CACHES['default']['OPTIONS']['compressor']: it can't be used.",
    ),
    (
        "E023",
        {"OPTIONS": {"compressor_fallbacks": [3]}},
        {"default": {}},
        "CACHES['default']['OPTIONS']['compressor_fallbacks']: it can't be used.",
    ),
    (
        "E024",
        {"LOCATION": None},
        {"default": {}},
        "CACHES['default']['LOCATION']: it is not the URL of a Redis server.",
    ),
    (
        "E025",
        {"OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient"}},
        {"default": {}},
        "CACHES['default']['OPTIONS']['CLIENT_CLASS']: it is an option of "
        "django-redis.",
    ),
    (
        "E028",
        {"OPTIONS": {"ignore_exeptions": True}},
        {"default": {}},
        "CACHES['default']['OPTIONS']['ignore_exeptions']: there is no such option.",
    ),
    (
        "E028",
        {"LOCATION": f"{TLS}?socket_timout=3"},
        {"default": {}},
        "CACHES['default']['LOCATION'] (socket_timout): there is no such option.",
    ),
]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("ignore_exeptions", "Did you mean 'ignore_exceptions'?"),
        ("Ignore_Exceptions", "Did you mean 'ignore_exceptions'?"),
        ("SSL_CA_CERTS", "Did you mean 'ssl_ca_certs'?"),
        ("ssl_cacerts", "Did you mean 'ssl_ca_certs'?"),
        ("max_connection", "Did you mean 'max_connections'?"),
        ("max_entries", "Did you mean 'MAX_ENTRIES'?"),
        ("cull_frequency", "Did you mean 'CULL_FREQUENCY'?"),
        # Those that are refused are not recommended.
        ("CACHE_CONFIG", "It should be left out: redis-py's client-side cache"),
        ("ENCODING", "It should be left out: keys are written in UTF-8"),
        ("comand_packer", "It should be left out: the cache packs"),
        ("KEY_PREFIX", "KEY_PREFIX belongs beside OPTIONS, not in it."),
        ("timeout", "TIMEOUT belongs beside OPTIONS, not in it."),
        ("address_remap", "It is for 'django_entra_redis.cache.EntraRedisCluster"),
        ("event_dispatcher", "Remove it: redis-py's classes pass it to each other"),
        ("nonsense", "Remove it: neither this backend nor redis-py's"),
        (5, "Remove it: neither this backend nor redis-py's"),
    ],
)
def test_options_that_nobody_knows(key: Any, hint: str) -> None:
    """The nearest known one is named, or where it belongs."""
    with settings_of({"OPTIONS": {key: "value"}}, {"default": {}}):
        (error,) = checked()
        with pytest.raises(ImproperlyConfigured, match="no such option"):
            caches["default"].set("key", 1)
    assert error.id == "django_entra_redis.E028"
    assert str(error.hint).startswith(hint)


@pytest.mark.parametrize(
    "query",
    ["ignore_exceptions=1", "IDENTITY=default", "pool_class=x", "connection_class=x"],
)
def test_own_options_in_a_url(query: str) -> None:
    """redis-py would take them for its own; they belong in OPTIONS."""
    with settings_of({"LOCATION": f"{TLS}?{query}"}, {"default": {}}):
        (error,) = checked()
        with pytest.raises(ImproperlyConfigured, match="no such option"):
            caches["default"].set("key", 1)
    key = query.partition("=")[0]
    assert error.id == "django_entra_redis.E028"
    assert error.msg.startswith(f"CACHES['default']['LOCATION'] ({key})")
    assert error.hint == f"{key.lower()!r} belongs in OPTIONS, not in LOCATION."


@pytest.mark.parametrize("key", ["ssl_ca_certs", "SSL_CA_CERTS"])
def test_options_for_tls_alone(key: str) -> None:
    """redis-py's plain connection does not take them, which is told."""
    plain = {"LOCATION": "redis://localhost", "OPTIONS": {key: "a.pem"}}
    with settings_of(plain, {"default": {}}):
        (error,) = checked()
    assert (error.id, "rediss://" in str(error.hint)) == (
        "django_entra_redis.E028",
        True,
    )
    options = {"connection_class": redis.SSLConnection, "ssl_ca_certs": "a.pem"}
    with settings_of({**plain, "OPTIONS": options}, {"default": {}}):
        assert checked() == []


class Generous(redis.Connection):
    """Somebody's own connection, which may take any option; none is ever made."""

    def __init__(self, *args: Any, colour: str = "", **kwargs: Any) -> None: ...


class Frugal(redis.Connection):
    """Another one, with an option more, and fewer of redis-py's."""

    def __init__(self, host: str, port: int, flavour: str = "") -> None: ...


class Compiled(dict[str, Any], redis.Connection):
    """One whose ``__init__`` is not written in Python."""


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"connection_class": Generous, "flavour": 1, "colour": 2}, []),
        ({"connection_class": Frugal, "flavour": 1}, []),
        ({"connection_class": Frugal, "flavours": 1}, ["django_entra_redis.E028"]),
        ({"pool_class": redis.BlockingConnectionPool, "timeout": 3}, []),
        ({"pool_class": "redis.BlockingConnectionPool", "timeout": 3}, []),
        (
            {"pool_class": "redis.ConnectionPool", "timeout": 3},
            ["django_entra_redis.E028"],
        ),
        # Which options it takes nobody knows.
        (
            {"pool_class": "nowhere.Pool", "timeout": 3},
            ["django_entra_redis.E023"],
        ),
        ({"pool_class": 5, "timeout": 3}, ["django_entra_redis.E023"]),
        ({"pool_class": dict}, ["django_entra_redis.E023"]),
        ({"pool_class": "redis.Redis"}, ["django_entra_redis.E023"]),
        ({"pool_class": "collections.OrderedDict"}, ["django_entra_redis.E023"]),
        ({"parser_class": dict}, ["django_entra_redis.E023"]),
        ({"connection_class": dict}, ["django_entra_redis.E023"]),
        ({"connection_class": Compiled, "flavour": 1}, []),
        ({"parser_class": "redis.nowhere"}, ["django_entra_redis.E023"]),
        ({"parser_class": "redis._parsers._RESP2Parser"}, []),
    ],
)
def test_options_of_classes_of_ones_own(
    options: dict[str, Any], ids: list[str]
) -> None:
    """What they name is known; one that takes any keyword may know all."""
    cache = {"LOCATION": "redis://localhost", "OPTIONS": options}
    with settings_of(cache, {"default": {}}):
        assert [error.id for error in checked()] == ids


@pytest.mark.parametrize("options", [None, [], "x"])
def test_options_that_are_no_dict(options: Any) -> None:
    """Django's own checks make the cache, too."""
    with settings_of({"OPTIONS": options}, {"default": {}}):
        (error,) = checked()
        with pytest.raises(ImproperlyConfigured, match="it is no dict"):
            caches["default"].set("key", 1)
    assert error.id == "django_entra_redis.E023"
    assert error.msg == "CACHES['default']['OPTIONS']: it is no dict."


def test_options_of_a_socket_file() -> None:
    """It has no use for what TCP has."""
    cache = {"LOCATION": "unix:///x", "OPTIONS": {"socket_keepalive": True}}
    with settings_of(cache, {"default": {}}):
        (error,) = checked()
    assert error.id == "django_entra_redis.E028"
    assert str(error.hint).startswith("It is for TCP")
    with settings_of({"LOCATION": "unix:///x?db=1"}, {"default": {}}):
        assert checked() == []


def test_options_of_a_cluster() -> None:
    """It takes some that a single server does not."""
    options = {"address_remap": print, "require_full_coverage": True}
    cache = {
        "BACKEND": "django_entra_redis.cache.EntraRedisClusterCache",
        "OPTIONS": options,
    }
    with settings_of(cache, {"default": {}}):
        assert checked() == []


def test_options_in_upper_case() -> None:
    """The backend's own are known so, also to who asks only for the identity."""
    options = {"IDENTITY": None, "IGNORE_EXCEPTIONS": True, "POOL_TIMEOUT": 1}
    cache = {"LOCATION": "redis://127.0.0.1:1", "OPTIONS": options}
    with settings_of(cache, {"default": {"X": 1}}):
        assert checked() == []
        assert caches["default"].get("key", "default") == "default"


@pytest.mark.parametrize(("number", "cache", "identities", "message"), FAULTS)
def test_fault(
    number: str, cache: dict[str, Any], identities: Any, message: str
) -> None:
    """Each is told once, under an id of its own, with a hint."""
    with settings_of(cache, identities):
        (error,) = checked()
    assert isinstance(error, Error)
    assert (error.id, error.msg) == (f"django_entra_redis.{number}", message)
    assert error.hint
    assert "hush" not in f"{error}"


@pytest.mark.parametrize(("number", "cache", "identities", "message"), FAULTS)
def test_first_use_raises_the_same(
    number: str, cache: dict[str, Any], identities: Any, message: str
) -> None:
    """Whoever ignores the checks meets the same words, before any connection."""
    with (
        settings_of(cache, identities),
        pytest.raises(ImproperlyConfigured) as caught,
    ):
        caches["default"].get("key")
    assert message.partition(": ")[2] in str(caught.value)


@pytest.mark.parametrize(
    ("options", "ids"),
    [({}, ["E002", "E024"]), ({"identity": None}, ["E024"])],
)
def test_faults_of_identity_and_location(options: Any, ids: list[str]) -> None:
    """Neither hides the other, unless the cache does without an identity."""
    cache = {"LOCATION": None, "OPTIONS": options}
    with settings_of(cache, {"default": {"X": 1}}):
        assert sorted(str(error.id)[-4:] for error in checked()) == ids


def test_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check says what to install, before the first use does."""
    monkeypatch.setitem(sys.modules, "msgpack", None)
    options = {"serializer": "django_entra_redis.serializers.MsgPackSerializer"}
    with settings_of({"OPTIONS": options}, {"default": {}}):
        (error,) = checked()
    assert error.id == "django_entra_redis.E023"
    assert error.msg == (
        "CACHES['default']['OPTIONS']: it needs msgpack, which is not installed."
    )
    assert str(error.hint).startswith("python -m pip install ")


def test_faults_of_several_caches() -> None:
    """Each cache is named; an identity's fault is not told for each of them."""
    all_caches = {
        "default": {"BACKEND": ENTRA, "LOCATION": TLS},
        "second": {"BACKEND": ENTRA, "LOCATION": TLS},
        "third": {"BACKEND": ENTRA, "LOCATION": "redis://contoso"},
    }
    with override_settings(CACHES=all_caches, ENTRA_REDIS={"default": {"X": 1}}):
        said = sorted((error.id, error.msg.partition(":")[0]) for error in checked())
    assert said == [
        ("django_entra_redis.E002", "ENTRA_REDIS['default']"),
        ("django_entra_redis.E022", "CACHES['third']['LOCATION']"),
    ]


def test_importing_the_checks_brings_neither_redis_nor_msal() -> None:
    """They are for every ``manage.py``; what a cache needs to run comes later."""
    script = (
        "import json, sys; import django_entra_redis.checks; print(json.dumps("
        "sorted({'redis', 'msal', 'requests'} & sys.modules.keys())))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (result.stderr, json.loads(result.stdout)) == ("", [])


# -- databases -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "contoso.westeurope.redis.azure.net",
        "CONTOSO.westeurope.Redis.Azure.Net.",
        "contoso.privatelink.redis.azure.net",
        "contoso.westeurope.redisenterprise.cache.azure.net",
        "contoso.redis.chinacloudapi.cn",
        "contoso.redis.usgovcloudapi.net",
        *(f"contoso.redis.sovcloud-api.{country}" for country in ("de", "fr", "sg")),
    ],
)
@pytest.mark.parametrize(
    ("end", "options"),
    [("/1", {}), ("?db=2", {}), ("/0?db=3", {}), ("", {"db": 4}), ("/x", {"db": "5"})],
)
def test_database_of_a_managed_redis(
    host: str, end: str, options: dict[str, Any]
) -> None:
    """Azure Managed Redis has database 0 alone, whoever asks for another, and how."""
    for identity in ("default", None):
        cache = {
            "LOCATION": f"rediss://{host}:10000{end}",
            "OPTIONS": {"identity": identity, **options},
        }
        with settings_of(cache, {"default": {}}):
            (message,) = checked()
            assert (message.id, message.level) == ("django_entra_redis.E027", ERROR)
            assert "and Azure Managed Redis has database 0 alone" in message.msg
            # The name may lead elsewhere: what the server refuses decides.
            assert isinstance(caches["default"], EntraRedisCache)
            caches["default"].read_options()


@pytest.mark.parametrize(
    ("location", "options"),
    [
        (f"{TLS}/0", {"db": 1}),
        (f"{TLS}/", {}),
        (f"{TLS}/1?db=0", {}),
        ("rediss://contoso.redis.cache.windows.net:6380/1", {}),
        ("rediss://contoso.redis.cache.sovcloud-api.de:6380/1", {}),
        ("rediss://redis.azure.net.example:10000/1", {}),
        ("unix:///run/redis.azure.net/1", {}),
    ],
)
def test_databases_that_there_may_be(location: str, options: dict[str, Any]) -> None:
    """Nothing is said of database 0, nor of services that have others."""
    with settings_of({"LOCATION": location, "OPTIONS": options}, {"default": {}}):
        assert checked() == []
