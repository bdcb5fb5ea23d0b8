"""Options that go on to redis-py: each is seen to do what it says, on a real server."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from django_entra_redis.connections import registry
from tests.support.caches import Database, make_cache


@pytest.fixture(scope="module")
def database(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """Run a real redis-server."""
    running = Database(tmp_path_factory.mktemp("redis"), redis_server)
    yield running
    registry.reset()
    running.stop()


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
    "socket_timeout": (3.0, lambda used, told: used._sock.gettimeout() == 3),
    "socket_type": (
        socket.AF_INET,
        lambda used, told: used._sock.family == socket.AF_INET,
    ),
}


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
