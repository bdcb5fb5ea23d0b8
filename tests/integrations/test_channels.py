"""Channels: both layers of channels_redis, through expiries."""

import asyncio
import contextlib
import time
from typing import Any

import pytest
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from django_entra_redis.credentials import EntraCredentialProvider
from emulator import Emulator
from tests.integrations.workers import DURATION, EXPIRIES, LIFE, PATIENCE, identity
from tests.support.caches import let_in

MEMBERS = 3


class CoreLayer(RedisChannelLayer):  # type: ignore[misc]
    """The layer, which waits no longer for a message than these tokens last."""

    brpop_timeout = 1


@pytest.fixture
def emulator() -> Any:
    """Run Entra and its Redis, with tokens that last for seconds."""
    with Emulator(token_lifetime=LIFE) as running:
        yield running


@pytest.mark.parametrize("kind", [CoreLayer, RedisPubSubChannelLayer])
def test_group(kind: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each member of a group gets each message once, in order, without an error."""
    host = {
        "address": emulator.redis_url,
        "ssl_ca_certs": str(emulator.ca_file),
        "credential_provider": EntraCredentialProvider(),
        "protocol": 3,
    }
    options = {"capacity": 10_000} if kind is CoreLayer else {}

    async def main() -> tuple[int, list[list[int]]]:
        receiving, sending = kind([host], **options), kind([host], **options)
        received: list[list[int]] = []

        async def receive(channel: str, into: list[int]) -> None:
            while True:
                into.append((await receiving.receive(channel))["number"])

        async def all_there(sent: int) -> None:
            while True:
                await asyncio.sleep(0.05)
                if min(map(len, received)) >= sent:  # pragma: no branch - at once
                    return

        tasks = []
        for _ in range(MEMBERS):
            channel = await receiving.new_channel()
            await receiving.group_add("group", channel)
            received.append([])
            tasks.append(asyncio.create_task(receive(channel, received[-1])))
        end = time.monotonic() + DURATION
        sent = 0
        while time.monotonic() < end:
            await sending.group_send("group", {"type": "number", "number": sent})
            sent += 1
            await asyncio.sleep(0.01)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(all_there(sent), PATIENCE)
        for task in tasks:
            assert not task.done(), task.result()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await receiving.flush()
        await sending.flush()
        return sent, received

    with let_in(emulator, monkeypatch, default=identity(emulator)):
        sent, received = asyncio.run(main())
    assert received == [list(range(sent))] * MEMBERS
    stats = emulator.stats
    assert stats.token_requests > EXPIRIES
    assert stats.closed_by_expiry_in_use == 0
