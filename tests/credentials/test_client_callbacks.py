"""Who is told of new tokens, and what their callbacks may do."""

import asyncio
import functools
import gc
import logging
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.exceptions import AuthenticationError, ConnectionError, TimeoutError

from django_entra_redis.credentials import client_callbacks as subscriptions
from django_entra_redis.credentials import get_credential_provider, provider
from django_entra_redis.credentials.client_callbacks import Subscriptions
from tests.support.failing_clients import answering, identity

PATIENCE = 30.0


class Client:
    """Somebody whose methods are callbacks."""

    def __init__(self, *errors: Exception) -> None:
        self.heard: list[str] = []
        self.told = threading.Event()
        self._errors = list(errors)

    def listen(self, value: str) -> None:
        """Hear, or raise the next error."""
        self.heard.append(value)
        if self._errors:
            raise self._errors.pop(0)
        self.told.set()

    async def alisten(self, value: str) -> None:
        """Do the same on an event loop."""
        self.heard.append(f"{value} in {threading.current_thread().name}")
        if self._errors:
            raise self._errors.pop(0)
        self.told.set()


def test_everybody_hears() -> None:
    """Methods and functions are called, in the order in which they came."""
    made, client = Subscriptions(), Client()
    heard: list[str] = []
    made.add(client.listen)
    made.add(heard.append)
    made.notify("one")
    made.notify("two")
    assert client.heard == heard == ["one", "two"]
    assert len(made) == 2


def test_forgotten_with_its_object() -> None:
    """A method is held no longer than its object lives, a function for good."""
    made = Subscriptions()
    heard: list[str] = []
    made.add(Client().listen)
    made.add(lambda value: heard.append(value))
    gc.collect()
    assert len(made) == 1
    made.notify("one")
    assert heard == ["one"]
    for _ in range(1000):
        made.add(Client().listen)
        gc.collect(0)
    assert len(made) == 1
    assert len(made._subscriptions) <= 2


@pytest.mark.parametrize(
    "error", [ValueError("secret"), AuthenticationError("secret"), OSError("secret")]
)
def test_error_of_one(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """What one raises keeps nobody else from hearing, and is not tried again."""
    caplog.set_level(logging.DEBUG)
    made, client = Subscriptions(), Client(error)
    heard: list[str] = []
    made.add(client.listen)
    made.add(heard.append)
    made.notify("one")
    assert client.heard == heard == ["one"]
    assert type(error).__name__ in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError])
def test_dead_connections(error: type[Exception]) -> None:
    """A client that fails on its dead connections is called until all are done."""
    made, client = Subscriptions(), Client(*[error("dead")] * 7)
    made.add(client.listen)
    made.notify("one")
    assert client.told.is_set()
    assert len(client.heard) == 8


def test_server_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes on failing is left alone, after some tries or some time."""
    made, client = Subscriptions(), Client(*[ConnectionError("down")] * 1000)
    made.add(client.listen)
    made.notify("one")
    assert len(client.heard) == subscriptions.TRIES
    monkeypatch.setattr(subscriptions, "RETRY_FOR", 0.0)
    made.notify("two")
    assert client.heard.count("two") == 1


def test_nobody_waits_for_the_server_of_another() -> None:
    """Everybody is called once before a client that has failed is called again."""
    made, calls = Subscriptions(), []
    clients = [Client(*[ConnectionError("down")] * 3), Client(*[ConnectionError("x")])]

    def listen(number: int, client: Client, value: str) -> None:
        calls.append(number)
        client.listen(value)

    for number, client in enumerate(clients):
        made.add(functools.partial(listen, number, client))
    made.add(lambda value: calls.append(2))
    made.notify("one")
    assert calls == [0, 1, 2, 0, 1, 0, 0]


def test_a_client_that_goes_away_while_it_fails() -> None:
    """It is not kept alive in order to be called again."""
    made = Subscriptions()
    # Not one error thrice: it would hold the client by its traceback.
    clients = [Client(*[ConnectionError("down") for _ in range(3)])]
    heard = clients[0].heard
    made.add(clients[0].listen)
    made.add(lambda value: clients.clear())
    made.notify("one")
    assert heard == ["one"]


def test_coroutine_functions() -> None:
    """A coroutine function runs on the loop that it was added in."""
    made, client = Subscriptions(), Client(ConnectionError("dead"))

    async def main() -> None:
        made.add(client.alisten)
        threading.Thread(target=made.notify, args=("one",), name="other").start()
        await asyncio.to_thread(client.told.wait, PATIENCE)
        assert len(made) == 1

    asyncio.run(main())
    assert client.heard == ["one in MainThread"] * 2
    assert len(made) == 0
    made.notify("two")
    made.add(client.alisten)
    assert len(made) == 0
    assert len(client.heard) == 2


@pytest.mark.parametrize(
    ("error", "calls"),
    [(ConnectionError, subscriptions.TRIES), (AuthenticationError, 1), (ValueError, 1)],
)
def test_coroutine_functions_that_go_on_failing(
    error: type[Exception], calls: int
) -> None:
    """They are left alone, as in threads."""
    made, client = Subscriptions(), Client(*[error("down") for _ in range(1000)])

    async def main() -> None:
        made.add(client.alisten)
        made.notify("one")
        while len(client.heard) < calls or subscriptions._tasks:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert len(client.heard) == calls


def test_a_client_that_goes_away_before_its_loop_runs() -> None:
    """Nobody is called, and nothing is raised in the loop."""
    made, clients = Subscriptions(), [Client()]
    heard = clients[0].heard
    complaints: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: complaints.append(context))
        made.add(clients[0].alisten)
        made.notify("one")
        clients.clear()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert heard == complaints == []


def test_loop_that_stands_still(recwarn: pytest.WarningsRecorder) -> None:
    """A loop that is never run again is left alone, without a warning."""
    made, client = Subscriptions(), Client()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        made.add(client.alisten)

    loop.run_until_complete(main())
    made.notify("one")
    loop.close()
    del loop
    gc.collect()
    assert client.heard == []
    assert not recwarn.list


def test_loop_that_is_closed_meanwhile() -> None:
    """A loop that is closed while others are called is passed over."""
    made, client = Subscriptions(), Client()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        made.add(client.alisten)

    made.add(lambda _: loop.close())
    loop.run_until_complete(main())
    made.notify("one")
    assert client.heard == []


def in_child(check: Callable[[], None]) -> None:
    """Run a check in a forked child; fail if it does."""
    child = multiprocessing.get_context("fork").Process(target=check)
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    child.close()


def test_fork() -> None:
    """A child goes on with the parent's callbacks, but for those of event loops."""
    made, client, other = Subscriptions(), Client(), Client()
    made.add(client.listen)

    def check() -> None:
        made.after_fork()
        made.notify("one")
        assert (client.heard, other.heard) == (["one"], [])
        made.add(other.listen)
        assert len(made) == 2

    async def main() -> None:
        made.add(other.alisten)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    assert len(made) == 2
    in_child(check)
    loop.close()


def test_a_command_that_can_not_be_sent() -> None:
    """Only errors of AUTH lose their frames; the user's own come as they are."""

    async def main() -> None:
        client = redis.asyncio.Redis(
            port=port, protocol=2, credential_provider=get_credential_provider()
        )
        unfit: Any = object()
        with pytest.raises(redis.DataError) as caught:
            await client.set("key", unfit)
        await client.aclose()
        assert "send_command" in [frame.name for frame in caught.traceback[-3:]]

    with identity(), answering(b"+OK\r\n") as port:
        asyncio.run(main())


def test_a_client_that_is_collected_while_its_pool_authenticates() -> None:
    """It closes its pool then, in the middle of what holds the pool's lock."""
    renewed, _ = provider._get_subscriptions("default")
    with identity(), answering(b"+OK\r\n") as port:
        renewal = get_credential_provider().renewal
        clients = [
            redis.Redis(
                port=port, protocol=2, credential_provider=get_credential_provider()
            )
        ]
        pool = clients[0].connection_pool
        connection: Any = pool.get_connection()
        pool.release(connection)
        send, collected = connection.send_command, []

        def collect_and_send(*args: Any, **kwargs: Any) -> None:
            clients.clear()
            gc.collect()
            collected.append(connection._sock is None)
            send(*args, **kwargs)

        connection.send_command = collect_and_send
        token = provider.RedisToken(renewal, renewal.current())
        telling = threading.Thread(target=renewed.notify, args=(token,), daemon=True)
        telling.start()
        telling.join(PATIENCE)
        assert not telling.is_alive()
        assert collected[0]
        connection.send_command = send
        pool.disconnect()
