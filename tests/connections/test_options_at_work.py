"""Options that go on to redis-py: each is seen to do what it says, on a real server."""

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from django_entra_redis.connections import registry
from django_entra_redis.types import EntraRedisOptions
from tests.support.caches import Database, make_cache


@pytest.fixture(scope="module")
def database(database: Database) -> Iterator[Database]:
    """Close all connections before the server stops."""
    yield database
    registry.reset()


class OwnRedis(redis.Connection):
    """Somebody's own connection."""


def _count(connection: Any) -> None:
    """Do as redis-py does when it connects, and name the connection."""
    connection.on_connect()
    connection.send_command("CLIENT", "SETNAME", "counted")
    connection.read_response()


#: What an option is set to, and what is seen of it: on a connection in use, and in what
#: the server's CLIENT LIST says of it.
OPTIONS: dict[str, tuple[Any, Callable[[Any, dict[str, str]], object]]] = {
    "client_name": ("site", lambda used, told: told["name"] == "site"),
    "connection_class": (OwnRedis, lambda used, told: isinstance(used, OwnRedis)),
    "db": (3, lambda used, told: told["db"] == "3"),
    "health_check_interval": (
        9,
        lambda used, told: used.health_check_interval == 9,
    ),
    "protocol": (
        3,
        lambda used, told: told.get("resp", "3") == "3" and used.protocol == 3,
    ),
    "redis_connect_func": (_count, lambda used, told: told["name"] == "counted"),
    "socket_connect_timeout": (
        7.0,
        lambda used, told: used.socket_connect_timeout == 7,
    ),
    "socket_keepalive": (
        False,
        lambda used, told: not _option(used, socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    ),
    "socket_keepalive_options": (
        {socket.TCP_KEEPCNT: 7},
        lambda used, told: _option(used, socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 7,
    ),
    # Of redis-py's reads: those of the short way are as large as ever.
    "socket_read_size": (64, lambda used, told: used._socket_read_size == 64),
    "socket_timeout": (3.0, lambda used, told: used._sock.gettimeout() == 3),
}

HERE = "connections/test_options_at_work.py"
#: The tests that see what the others do.
ELSEWHERE = {
    "address_remap": "clients/test_cluster.py::test_address_remap",
    "allow_plaintext_token": (
        "conf/test_options.py::test_a_token_in_plain_text_is_refused"
    ),
    "clear_by_scan": "cache/test_backend.py::test_clear_refused",
    "client_side_cache": "clients/test_client_side_cache.py::test_prefixes",
    "compressor": "cache/test_backend.py::test_what_others_have_compressed",
    "compressor_fallbacks": "cache/test_backend.py::test_what_others_have_compressed",
    "credential_provider": f"{HERE}::test_credential_provider",
    "driver_info": "clients/test_sync.py::test_driver",
    "identity": "connections/test_pool.py::test_two_identities_never_share",
    "idle_timeout": "connections/test_pool.py::test_idle_connections_are_closed",
    "ignore_exceptions": "clients/test_ignore_exceptions.py::test_every_operation",
    "lib_name": "clients/test_sync.py::test_driver",
    "lib_version": "clients/test_sync.py::test_driver",
    "maint_notifications_config": (
        "connections/test_pushes.py::test_what_the_settings_say_of_notifications"
    ),
    "max_connections": f"{HERE}::test_max_connections",
    "max_value_bytes": "cache/test_backend.py::test_what_others_have_compressed",
    "node_domain": "clients/test_hijack.py::test_names_below_a_domain",
    "password": f"{HERE}::test_username_and_password",
    "parser_class": "connections/test_pool.py::test_parser_class",
    "pool_class": "connections/test_pool.py::test_blocking_pool_waits_as_long",
    "pool_timeout": "connections/test_pool.py::test_empty_pool_is_an_error_in_time",
    "retry": "clients/test_retry.py::test_a_policy_of_ones_own",
    "serializer": "cache/test_backend.py::test_serializer",
    "socket_type": f"{HERE}::test_socket_type",
    "ssl_ca_certs": "connections/test_tls_options.py::test_ca_certs",
    "ssl_ca_data": "connections/test_tls_options.py::test_ca_certs",
    "ssl_ca_path": "connections/test_tls_options.py::test_ca_certs",
    "ssl_cert_reqs": "connections/test_tls_options.py::test_cert_reqs",
    "ssl_certfile": "connections/test_tls_options.py::test_certificate_of_the_client",
    "ssl_check_hostname": "connections/test_tls_options.py::test_check_hostname",
    "ssl_ciphers": "connections/test_tls_options.py::test_versions_and_suites",
    "ssl_keyfile": "connections/test_tls_options.py::test_certificate_of_the_client",
    "ssl_min_version": "connections/test_tls_options.py::test_versions_and_suites",
    "ssl_password": "connections/test_tls_options.py::test_certificate_of_the_client",
    "stampede": "cache/test_stampede.py::test_one_thread_at_a_time_early",
    "username": f"{HERE}::test_username_and_password",
}
TESTS = Path(__file__).parents[1]


def _option(used: Any, level: int, option: int) -> int:
    found: int = used._sock.getsockopt(level, option)
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_option(database: Database, option: str) -> None:
    """It is on the cache's connection, which works."""
    value, seen = OPTIONS[option]
    cache = database.cache(**{option: value})
    cache.set("key", "value")
    assert cache.get("key") == "value"
    pool = cache.get_pool()
    used = pool.get_connection()
    try:
        used.send_command("CLIENT", "INFO")
        said = used.read_response(disable_decoding=True).decode()
        told = dict(word.partition("=")[::2] for word in said.split())
        assert seen(used, told)
    finally:
        pool.release(used)


def test_every_option_does_something() -> None:
    """Each is seen at work here, or by a test that there is, in a file that has it."""
    assert EntraRedisOptions.__annotations__.keys() - OPTIONS == ELSEWHERE.keys()
    for option, where in ELSEWHERE.items():
        path, _, name = where.partition("::")
        text = (TESTS / path).read_text(encoding="utf-8")
        assert f"\ndef {name}(" in text, where
        assert re.search(rf"\b{option}\b", text), option


def test_credential_provider(database: Database) -> None:
    """Beside no identity it gives the credentials."""
    url = database.url_of("provided", "+@all ~* &*")
    provider = redis.UsernamePasswordCredentialProvider("provided", "secret")
    location = f"redis://{url.rpartition('@')[2]}"
    cache = make_cache(location, identity=None, credential_provider=provider)
    assert cache.get_client().execute_command("ACL", "WHOAMI") == b"provided"


@pytest.mark.parametrize(
    ("family", "works"), [(socket.AF_INET, True), (socket.AF_INET6, False), (0, True)]
)
def test_socket_type(database: Database, family: int, works: bool) -> None:
    """Whoever wants IPv6 does not connect by IPv4."""
    cache = database.cache(socket_type=family, retry=None)
    if works:
        assert cache.get_client().ping()
    else:
        with pytest.raises(redis.ConnectionError):
            cache.get("key")
    registry.reset()


def test_username_and_password(database: Database) -> None:
    """Beside no identity they are the credentials."""
    url = database.url_of("me", "+@all ~* &*")
    location = f"redis://{url.rpartition('@')[2]}"
    options = {"username": "me", "password": "secret"}
    cache = make_cache(location, identity=None, **options)
    assert cache.get_client().execute_command("ACL", "WHOAMI") == b"me"


def test_max_connections(database: Database) -> None:
    """There are no more than that."""
    cache = database.cache(max_connections=2, pool_timeout=0)
    pool = cache.get_pool()
    used = [pool.get_connection() for _ in range(2)]
    with pytest.raises(redis.ConnectionError, match="max_connections"):
        pool.get_connection()
    for connection in used:
        pool.release(connection)
