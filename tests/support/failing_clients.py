"""Clients of users' own whose connections fail while they authenticate.

What the tests of debug pages and of error reporters have in common: the errors that
such clients raise, in whose frames the token must not be found.
"""

import asyncio
import base64
import dataclasses
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import redis
import redis.asyncio
from django.test import override_settings
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_entra_redis.credentials import get_credential_provider, provider
from django_entra_redis.credentials.renewal import Renewal
from django_entra_redis.identity.token import Token
from tests.support.caches import PATIENCE
from tests.support.sites import Credential, ScriptedServer

#: Seconds that a client waits for a reply.
TIMEOUT = 0.2


def _part(claims: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


#: A token like Entra's, with everything that it consists of.
TOKEN = ".".join(
    [_part({"alg": "RS256"}), _part({"oid": "the-object-id"}), "c2lnbmF0dXJl" * 20]
)
#: What gives it away.
TRACES = (TOKEN[:16], TOKEN.split(".")[1], "c2lnbmF0dXJl")


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Run a server that answers so to whoever authenticates; give its port."""
    server = ScriptedServer({"AUTH": answer, "HELLO": answer})
    yield server.server_address[1]
    server.stop()


@contextmanager
def resetting() -> Iterator[int]:
    """Run a server that resets a connection before it is sent anything.

    The token comes only then, so that it is sent into a connection that is broken.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)
    asked, broken = threading.Event(), threading.Event()

    def serve() -> None:
        client, _ = listener.accept()
        asked.wait(PATIENCE)
        # Closed with a RST, at once.
        linger = struct.pack("ii", 1, 0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.close()
        broken.set()

    current = Renewal.current

    def late(self: Renewal) -> Token:
        asked.set()
        broken.wait(PATIENCE)
        return current(self)

    async def alate(self: Renewal) -> Token:
        return late(self)

    thread = threading.Thread(target=serve)
    thread.start()
    with patch.multiple(Renewal, current=late, acurrent=alate):
        yield listener.getsockname()[1]
    thread.join()
    listener.close()


FAULTS: dict[str, Callable[[], Any]] = {
    "refused": lambda: answering(b"-WRONGPASS invalid username-password pair\r\n"),
    "old server": lambda: answering(
        b"-ERR wrong number of arguments for 'auth' command\r\n"
    ),
    "error": lambda: answering(b"-ERR something else\r\n"),
    "no reply": lambda: answering(b""),
    "garbage": lambda: answering(b"?\r\n"),
    "reset": resetting,
}


def failure(fault: str, *, asynchronous: bool, protocol: int) -> BaseException:
    """Return the error of a client whose connection fails as it authenticates."""
    with identity(), FAULTS[fault]() as port:
        options = {
            "port": port,
            "protocol": protocol,
            "socket_timeout": TIMEOUT,
            # On a busy machine it takes longer than TIMEOUT, and is what is tried here.
            "socket_connect_timeout": PATIENCE,
            "credential_provider": get_credential_provider(),
        }
        with pytest.raises((redis.RedisError, OSError)) as info:
            asyncio.run(_ask_in_a_loop(options)) if asynchronous else _ask(options)
    return info.value


def _ask(options: dict[str, Any]) -> None:
    with redis.Redis(**options, retry=Retry(NoBackoff(), 0)) as client:
        client.get("key")


async def _ask_in_a_loop(options: dict[str, Any]) -> None:
    client = redis.asyncio.Redis(**options, retry=AsyncRetry(NoBackoff(), 0))
    try:
        await client.get("key")
    finally:
        await client.aclose()


def failure_to_authenticate_anew() -> BaseException:
    """Return the error of a client that is cut off where its token is replaced.

    redis-py sends the new one when the connection is given back to its pool.
    """
    renewed, _ = provider._subscriptions["default"]

    with identity(), answering(b"+OK\r\n") as port:
        renewal = get_credential_provider().renewal
        client = redis.Redis(
            port=port, protocol=2, credential_provider=get_credential_provider()
        )
        connection: Any = client.connection_pool.get_connection()
        other = dataclasses.replace(renewal.current(), username="renewed")
        renewed.notify(provider.RedisToken(renewal, other))
        connection._sock.shutdown(socket.SHUT_RDWR)
        with client, pytest.raises((redis.RedisError, OSError)) as info:
            client.connection_pool.release(connection)
    return info.value


@contextmanager
def identity() -> Iterator[None]:
    """Have an identity, with the token at hand: nobody waits for it in here."""
    entry = {"CREDENTIAL": Credential(TOKEN), "USERNAME": "the-object-id"}
    with override_settings(ENTRA_REDIS={"default": entry}):
        get_credential_provider().get_credentials()
        yield


def traces_in(told: str) -> list[str]:
    """Return what of the token is in a text."""
    return [trace for trace in TRACES if trace in told]
