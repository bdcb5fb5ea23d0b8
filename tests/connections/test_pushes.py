"""RESP 3: pushes between replies, and redis-py's maintenance notifications."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.connections import registry
from tests.support.peers import Peer, PeerHost

#: What Redis Enterprise, and with it Azure Managed Redis, may push to whoever has asked
#: for it, and what any Redis may.
PUSHES = [
    b">4\r\n$6\r\nMOVING\r\n:1\r\n:30\r\n$14\r\n127.0.0.1:6379\r\n",
    b">3\r\n$9\r\nMIGRATING\r\n:2\r\n:30\r\n",
    b">2\r\n$8\r\nMIGRATED\r\n:3\r\n",
    b">3\r\n$12\r\nFAILING_OVER\r\n:4\r\n:30\r\n",
    b">2\r\n$11\r\nFAILED_OVER\r\n:5\r\n",
    b">3\r\n$10\r\nSMIGRATING\r\n:6\r\n$5\r\n0-100\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n",
]


def converse(
    use: Callable[[EntraRedisCache], Any], push: bytes, **options: Any
) -> tuple[Any, list[list[bytes]]]:
    """Use a cache at a server that pushes before each reply to GET.

    Returns:
        what the use returns, and all that the server was asked.
    """

    def answer(peer: Peer, command: list[bytes]) -> bytes:
        if command[0] == b"HELLO":
            return b"%2\r\n$5\r\nproto\r\n:3\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
        if command[0] == b"GET":
            return push + b"$1\r\n5\r\n"
        return b"+OK\r\n"

    async def main() -> tuple[Any, list[list[bytes]]]:
        async with PeerHost(answer) as host:
            cache = EntraRedisCache(
                f"redis://127.0.0.1:{host.port}",
                {"OPTIONS": {"identity": None, **options}},
            )
            try:
                return await asyncio.to_thread(use, cache), host.commands
            finally:
                registry.reset()

    return asyncio.run(main())


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("pool_class", [None, "redis.BlockingConnectionPool"])
def test_nobody_asks_for_maintenance_notifications(
    protocol: int, pool_class: str | None
) -> None:
    """redis-py 8 would in RESP 3, and change our connections from other threads."""
    _, commands = converse(
        lambda cache: cache.get("key"), b"", protocol=protocol, pool_class=pool_class
    )
    said = [command[:2] for command in commands]
    assert [b"CLIENT", b"MAINT_NOTIFICATIONS"] not in said
    assert ([b"HELLO", b"3"] in said) is (protocol == 3)


def test_what_the_settings_say_of_notifications() -> None:
    """It goes before the default."""
    notifications = pytest.importorskip("redis.maint_notifications")
    own = notifications.MaintNotificationsConfig(enabled="auto")
    _, commands = converse(
        lambda cache: cache.get("key"), b"", protocol=3, maint_notifications_config=own
    )
    said = [command[:2] for command in commands]
    assert [b"CLIENT", b"MAINT_NOTIFICATIONS"] in said


@pytest.mark.parametrize("push", PUSHES, ids=lambda push: push.split(b"\r\n")[2])
def test_a_push_is_no_reply(push: bytes) -> None:
    """One that comes before a reply is not taken for it, now or later."""

    def use(cache: EntraRedisCache) -> list[Any]:
        client = redis.Redis(connection_pool=cache.get_client().connection_pool)
        return [*(cache.get("key") for _ in range(3)), client.get("key")]

    found, _ = converse(use, push, protocol=3)
    assert found == [5, 5, 5, b"5"]
