"""Passwords of caches without an identity: nobody sees them in an error."""

import asyncio
import asyncio.selector_events as selector_events
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.test import override_settings
from django.utils.module_loading import import_string
from redis._parsers import _RESP2Parser

from django_entra_redis.connections import event_loops
from tests.support.caches import Database, make_cache
from tests.support.hostile import RawServer, Speak, read_some, says
from tests.support.sites import BACKEND, CLUSTER_BACKEND

USER, PASSWORD = "S3cretUser", "S3cretPassword"
OTHERS = "S3cretOfTheKey"


@pytest.fixture(autouse=True, scope="module")
def thread_of_asgiref() -> None:
    """Start the thread that asgiref keeps for as long as the process lives."""
    asyncio.run(sync_to_async(int)())


@pytest.fixture(autouse=True)
def natively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no operation of an event loop go through a thread."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)


def errors_of(backend: str, location: str, **options: Any) -> list[str]:
    """Return what a debug page and others show of a cache's errors, sync and async."""
    settings = {
        "BACKEND": backend,
        "LOCATION": location,
        "OPTIONS": {"identity": None, "socket_timeout": 0.2, **options},
    }
    failures: list[Exception] = []
    with override_settings(CACHES={"default": settings}):
        used: Any = caches["default"]
        operations: tuple[Callable[[], Any], ...] = (
            lambda: used.get("key"),
            lambda: used.set_many({"a": 1, "b": 2}),
            lambda: asyncio.run(used.aget("key")),
            lambda: asyncio.run(used.aset("key", 1)),
        )
        for operate in operations:
            try:
                operate()
            except Exception as error:
                failures.append(error)
    # Here, since the page shows the settings, too.
    assert len(failures) == 4, failures
    pages = [shown_of(error) for error in failures]
    assert all("in errors_of" not in page and "self = <" in page for page in pages)
    return [*pages, *map(repr, failures)]


def shown_of(error: Exception) -> str:
    """Return each frame's local variables, as error reporters show them.

    Without the test's own frame, in which everything secret is at hand.
    """
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(trace.format())


def assert_hidden(told: list[str]) -> None:
    """Fail on what is to be seen of user name and passwords."""
    for text in told:
        at = text.find("S3cret")
        assert at < 0, text[max(0, at - 500) : at + 100]


def placed(where: str, address: tuple[str, int]) -> tuple[str, dict[str, Any]]:
    """Return a LOCATION and OPTIONS that have the password there."""
    host = f"{address[0]}:{address[1]}"
    if where == "url":
        return f"redis://{USER}:{PASSWORD}@{host}", {}
    if where == "query":
        return f"redis://{host}?username={USER}&password={PASSWORD}", {}
    return f"redis://{host}", {"username": USER, "password": PASSWORD}


@pytest.mark.parametrize("where", ["url", "query", "options"])
@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
def test_wrong_password(database: Database, where: str, backend: str) -> None:
    """A server that refuses it."""
    location, options = placed(where, database.address)
    assert_hidden(errors_of(backend, location, **options))


def made(backend: str, location: str, **options: Any) -> Any:
    """Return a cache without an identity."""
    return import_string(backend)(location, {"OPTIONS": {"identity": None, **options}})


async def ask_lent(used: Any) -> Any:
    """Ask with the client that a cache lends to a loop."""
    return await used.get_async_client().get("key")


@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("user", [{}, {"username": USER.encode()}], ids=["", "user"])
def test_wrong_password_in_bytes(
    database: Database, backend: str, protocol: int, user: dict[str, Any]
) -> None:
    """redis-py sends them as they are, in each of its clients."""
    host, port = database.address
    location = f"redis://{host}:{port}"
    options = {"password": PASSWORD.encode(), "protocol": protocol, **user}
    assert_hidden(errors_of(backend, location, **options))
    lent = made(backend, location, **options)
    with pytest.raises(redis.AuthenticationError) as info:
        asyncio.run(ask_lent(lent))
    assert_hidden([shown_of(info.value), repr(info.value)])


@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
def test_lent_client_that_can_not_be_made(
    database: Database, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever redis-py has against an option of its own."""

    def fail(self: object, **options: Any) -> None:
        raise LookupError("no client today")

    for kind in (redis.asyncio.RedisCluster, redis.asyncio.ConnectionPool):
        monkeypatch.setattr(kind, "__init__", fail)
    location, options = placed("options", database.address)
    lent = made(backend, location, **options)
    with pytest.raises(LookupError) as info:
        asyncio.run(ask_lent(lent))
    assert_hidden([shown_of(info.value), repr(info.value)])


@pytest.mark.parametrize("where", ["url", "options"])
@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    "speak",
    [
        says(b""),
        says(b"-LOADING it is not there yet\r\n"),
        says(b"?nonsense\r\n"),
        says(b"+OK\r\n"),
        lambda _, connection: connection.recv(1),
    ],
    ids=["closed", "loading", "nonsense", "then closed", "silent"],
)
def test_server_that_fails(
    where: str, backend: str, protocol: int, speak: Speak
) -> None:
    """One that breaks off, or answers something else, or nothing."""
    with RawServer(speak, read=read_some) as server:
        location, options = placed(where, ("127.0.0.1", server.port))
        assert_hidden(errors_of(backend, location, protocol=protocol, **options))


@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
@pytest.mark.parametrize("where", ["url", "options"])
def test_server_that_is_not_there(backend: str, where: str) -> None:
    """Nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    location, options = placed(where, address)
    assert_hidden(errors_of(backend, location, **options))


class FailingPool(redis.ConnectionPool):
    """A pool that can't be made."""

    def __init__(self, **kwargs: Any) -> None:
        raise LookupError("no pool today")


class FailingConnection(redis.Connection):
    """A connection that can't be made."""

    def __init__(self, **kwargs: Any) -> None:
        raise LookupError("no connection today")


class FailingParser(_RESP2Parser):
    """A parser that can't be made."""

    def __init__(self, **kwargs: Any) -> None:
        raise LookupError("no parser today")


def no_retry() -> None:
    """Be nothing that repeats."""


@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
@pytest.mark.parametrize("where", ["url", "options"])
@pytest.mark.parametrize(
    "given",
    [
        {"pool_class": FailingPool},
        {"pool_class": "nowhere.Pool"},
        {"pool_class": dict},
        {"connection_class": FailingConnection},
        {"parser_class": FailingParser},
        {"retry": no_retry},
        {"protocol": "x"},
        {"protocol": 9},
        {"retry_on_error": 5},
        {"max_connections": "many"},
        {"max_connections": -1},
        {"client_name": object},
        {"db": "x"},
        {"nonsense": 1},
    ],
    ids=lambda given: "-".join(map(str, given)),
)
def test_options_that_can_not_be_used(
    database: Database, backend: str, where: str, given: dict[str, Any]
) -> None:
    """Whatever redis-py or a class of one's own has against them."""
    location, options = placed(where, database.address)
    assert_hidden(errors_of(backend, location, **options, **given))


@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
def test_password_of_a_certificate(
    database: Database, backend: str, tmp_path: Path
) -> None:
    """That of the client's key, whose file is none."""
    path = tmp_path / "client.pem"
    path.write_text("no key")
    host, port = database.address
    options = {"ssl_certfile": str(path), "ssl_password": OTHERS}
    assert_hidden(errors_of(backend, f"rediss://{host}:{port}", **options))


@pytest.mark.parametrize("pool", [None, redis.BlockingConnectionPool])
def test_pools_do_not_show_it(database: Database, pool: type[Any] | None) -> None:
    """Nor do their connections, whatever redis-py is."""
    location, options = placed("options", database.address)
    location = location.replace("redis:", "rediss:")
    used: Any = make_cache(
        location, identity=None, pool_class=pool, ssl_password=OTHERS, **options
    )
    client: Any = used._cache
    (endpoint,) = client.endpoints
    pool_of = endpoint.pool
    shown = [
        used,
        client,
        pool_of,
        client.options,
        endpoint,
        pool_of.connection_class(**pool_of.connection_kwargs),
        endpoint.target if pool is None else None,
        used.get_client(),
    ]
    assert_hidden([repr(one) + str(one) for one in shown])

    async def shown_of_the_loops() -> str:
        return repr(used.get_async_client())

    text = asyncio.run(shown_of_the_loops())
    assert_hidden([text])
    assert f"<ConnectionPool to {location.rpartition('/')[2]}>" in text


def test_transport_that_raises(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """AUTH is a local variable of its frames, and of ours that write to it."""

    def write(self: object, data: bytes) -> None:
        raise RuntimeError("the transport is broken")

    transports: Any = selector_events
    monkeypatch.setattr(transports._SelectorSocketTransport, "write", write)
    for where in ("url", "options"):
        location, options = placed(where, database.address)
        used = make_cache(location, identity=None, **options)
        with pytest.raises(redis.ConnectionError) as info:
            asyncio.run(used.aget("key"))
        assert_hidden([shown_of(info.value), repr(info.value)])
    failures = [record.exc_info for record in caplog.records if record.exc_info]
    assert failures
    for _, error, _ in failures:
        assert error is not None
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        assert_hidden(["".join(trace.format())])
