"""The asynchronous client: the same operations, on one connection for each loop."""

import asyncio
import contextlib
import gc
import operator
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.test import override_settings
from django.utils.asyncio import async_unsafe
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import NoScriptError
from redis.retry import Retry

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.clients import retry
from django_entra_redis.connections import event_loops, registry
from django_entra_redis.connections import protocol as links
from django_entra_redis.credentials import get_credential_provider
from django_entra_redis.exceptions import (
    ConnectionPoolTimeout,
    TokenRefusedError,
    UncertainResultError,
)
from emulator import Emulator
from tests.support.caches import Database, Proxy, let_in, make_cache, wait_until
from tests.support.peers import Peer, PeerHost

PATIENCE = 30.0
KEYS = [f"key-{number}" for number in range(4)]
BACKEND = "django_entra_redis.cache.EntraRedisCache"


@pytest.fixture(scope="module", autouse=True)
def thread() -> None:
    """Have the one thread begin that all synchronous code of Django goes through."""
    asyncio.run(sync_to_async(int)())


@pytest.fixture(autouse=True)
def fresh(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with nothing; have loops connect at once; leave no connection."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    database.admin.flushall()
    yield
    registry.reset()
    gc.collect()


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Give a proxy that stands before the server."""
    running = Proxy(database.address)
    yield running
    running.close()


def run(main: Awaitable[Any]) -> Any:
    """Run in a loop; nothing may be left to be complained about."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> Any:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        return await main

    result = asyncio.run(watched())
    gc.collect()
    assert complaints == []
    return result


def value_of(key: str) -> str:
    """Return the value that belongs to a key, and to no other."""
    return f"the value of {key}"


async def until(condition: Callable[[], object]) -> None:
    """Return once a condition holds, letting the loop go on."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


def sockets() -> int:
    """Return how many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


def connected(database: Database) -> int:
    """Return how many clients a server has."""
    return int(database.admin.info("clients")["connected_clients"])


# -- the operations


def test_operations(database: Database) -> None:
    """Each one does what the synchronous one does, and both see each other's writes."""
    cache = database.cache()

    async def main() -> None:
        assert await cache.aget("key") is None
        assert await cache.aget("key", "default") == "default"
        assert await cache.aset("key", {"a": 1}) is None
        assert await cache.aget("key") == cache.get("key") == {"a": 1}
        assert await cache.aset("key", 1, 0) is None
        assert await cache.ahas_key("key") is False
        assert await cache.aadd("key", 5) is True
        assert await cache.aadd("key", 6) is False
        assert await cache.aadd("key", 6, 0) is False
        assert await cache.aincr("key", 3) == 8
        assert await cache.adecr("key") == 7
        with pytest.raises(ValueError, match="not found"):
            await cache.aincr("missing")
        assert await cache.atouch("key", None) is True
        assert await cache.atouch("missing", None) is False
        assert await cache.atouch("key", 100) is True
        assert await cache.atouch("missing", 100) is False
        assert await cache.aset_many({"a": 1, "b": 2}, 100) == []
        assert await cache.aset_many({"one": 1}) == []
        assert await cache.aset_many({}) == []
        assert await cache.aget_many(["a", "b", "c"]) == {"a": 1, "b": 2}
        assert await cache.aget_many([]) == {}
        assert await cache.aget_or_set("d", lambda: 4) == 4
        assert cache.get_many(iter("abd")) == {"a": 1, "b": 2, "d": 4}
        assert await cache.aincr_version("d") == 2
        assert await cache.aget("d", version=2) == 4
        assert await cache.adecr_version("d", version=2) == 1
        assert await cache.adelete("d") is True
        assert await cache.adelete("d") is False
        assert await cache.adelete_many(iter("ab")) is None  # type: ignore[func-returns-value]
        assert await cache.adelete_many([]) is None  # type: ignore[func-returns-value]
        assert await cache.aclose() is None  # type: ignore[func-returns-value]
        cache.set("left", 1)
        assert await cache.aclear() is True
        assert cache.get("left") is None

    run(main())


def test_a_late_reply(database: Database) -> None:
    """It does not take away what another task has noted: that a later request of its
    own has been answered already."""
    cache = database.cache()
    outages = cache._cache.endpoints[0].outages

    async def main() -> None:
        await cache.aget("connected")
        outages.answered_at = later = outages.clock() + 60
        await cache.aget("key")
        await cache.aset("key", 1)
        await cache.ahas_key("key")
        assert outages.answered_at == later

    run(main())


def test_clear_by_scan(database: Database) -> None:
    """Only the cache's own keys go, a batch at a time."""
    mine = database.cache(clear_by_scan=True, params={"KEY_PREFIX": "mine"})
    other = database.cache(params={"KEY_PREFIX": "other"})

    async def main() -> None:
        await mine.aset_many({str(number): 1 for number in range(1500)})
        await other.aset("key", 1)
        assert await mine.aclear() is True
        assert await mine.aget_many(map(str, range(1500))) == {}
        assert await other.aget("key") == 1

    run(main())


class Lazy:
    """Needs the database to be pickled, as a queryset does, and to be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _read, (_query(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lazy)

    __hash__ = None  # type: ignore[assignment]


@async_unsafe
def _query() -> int:
    return 1


def _read(_: int) -> Lazy:
    _query()
    return Lazy()


def test_values_that_need_the_database(database: Database) -> None:
    """They are pickled and unpickled where it may be used, as Django does it."""
    cache = database.cache()

    async def main() -> None:
        await cache.aset("key", Lazy())
        assert await cache.aget("key") == Lazy()
        assert await cache.aadd("other", Lazy()) is True
        assert await cache.aset_many({"a": Lazy(), "b": 1}) == []
        assert await cache.aget_many(["a", "b"]) == {"a": Lazy(), "b": 1}

    run(main())


def test_error_replies(database: Database) -> None:
    """They are raised, and cost no connection."""
    cache = database.cache()
    narrow = make_cache(
        database.url_of("narrow", "+@all -flushdb ~* &*"), identity=None
    )

    async def main() -> None:
        await cache.aset("text", "not a number")
        before = database.received()
        with pytest.raises(redis.ResponseError, match="not an integer"):
            await cache.aincr("text")
        assert await cache.aget("text") == "not a number"
        assert database.received() == before
        with pytest.raises(redis.ResponseError, match="clear_by_scan"):
            await narrow.aclear()

    run(main())


def test_one_connection_for_all_tasks(database: Database) -> None:
    """However many there are, and whichever cache object they have."""
    made = [database.cache() for _ in range(20)]

    async def work(cache: BaseCache, key: str) -> None:
        await cache.aset(key, value_of(key))
        assert await cache.aget(key) == value_of(key)

    async def main() -> None:
        before = database.received()
        await asyncio.gather(
            *(work(made[number % 20], f"key-{number}") for number in range(200))
        )
        assert database.received() == before + 1

    run(main())


def test_replicas(database: Database) -> None:
    """The first server is written to, the others are read from."""
    urls = [f"{database.url}?db={number}" for number in (1, 2, 3)]
    cache = make_cache(urls, identity=None)

    async def main() -> None:
        await cache.aset("key", "first")
        assert await cache.aget("key") is None
        for number in (2, 3):
            database.cache(db=number).set("key", number)
        found = {await cache.aget("key") for _ in range(60)}
        assert found == {2, 3}
        assert await cache.aadd("key", 1) is False

    run(main())
    assert database.cache(db=1).get("key") == "first"


def test_unix_socket(redis_server: str, database: Database, tmp_path: Path) -> None:
    """A Unix socket in LOCATION."""

    def answer(peer: Peer, command: list[bytes]) -> bytes:
        return b"$1\r\n7\r\n"

    async def main() -> None:
        path = str(tmp_path / "redis.sock")
        host = PeerHost(answer)
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: Peer(host), path)
        cache = make_cache(f"unix://{path}", identity=None)
        assert await cache.aget("key") == 7
        assert host.peers
        server.close()

    run(main())


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({"health_check_interval": 5}, ""),
        ({}, "?health_check_interval=5"),
        ({"retry": Retry(NoBackoff(), 1)}, ""),
        ({"protocol": 3}, ""),
        ({"redis_connect_func": redis.Connection.on_connect}, ""),
        ({"parser_class": "redis.connection.DefaultParser"}, ""),
        ({"connection_class": redis.Connection}, ""),
        ({"pool_class": "redis.BlockingConnectionPool"}, ""),
        (
            {"credential_provider": UsernamePasswordCredentialProvider("me", "secret")},
            "",
        ),
    ],
)
def test_what_a_thread_does(
    database: Database, options: dict[str, Any], query: str
) -> None:
    """Options that an event-loop connection has no equal of work as ever."""
    url = database.url_of("me", "+@all ~* &*")
    if options.get("credential_provider"):
        url = url.replace("me:secret@", "")
    cache = make_cache(url + query, identity=None, **options)

    async def main() -> None:
        await cache.aset("key", 1)
        assert await cache.aget("key") == 1
        assert asyncio.get_running_loop() not in event_loops._loops

    run(main())


@pytest.mark.parametrize(
    "options",
    [{"health_check_interval": 0}, {"socket_keepalive": False}, {"client_name": "me"}],
)
def test_what_a_channel_does(database: Database, options: dict[str, Any]) -> None:
    """Those that it knows are used."""
    cache = database.cache(**options)

    async def main() -> None:
        await cache.aset("key", 1)
        assert asyncio.get_running_loop() in event_loops._loops
        names = [client["name"] for client in database.admin.client_list()]
        assert ("me" in names) == ("client_name" in options)

    run(main())


# -- loops


def test_first_operations_go_through_a_thread(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that is made for a call or two costs no connection."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 3)
    cache = database.cache()
    cache.set("key", 1)

    async def some(count: int) -> None:
        for _ in range(count):
            assert await cache.aget("key") == 1

    before = database.received()
    for _ in range(5):
        run(some(3))
        async_to_sync(some)(3)
    assert database.received() == before
    run(some(4))
    assert database.received() == before + 1
    async_to_sync(some)(4)
    assert database.received() == before + 2


def test_many_loops(database: Database) -> None:
    """One after the other, each with its connection: nothing is left of them."""
    cache = database.cache()

    async def work() -> None:
        await cache.aset("key", 1)
        await asyncio.gather(*(cache.aget("key") for _ in range(3)))

    asyncio.run(work())
    gc.collect()
    before, clients = sockets(), connected(database)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(100):
            if number % 3:
                asyncio.run(work(), debug=number % 3 == 2)
            else:
                async_to_sync(work)()
    gc.collect()
    assert sockets() <= before
    assert len(event_loops._loops) == 0
    wait_until(lambda: connected(database) <= clients)


def test_loop_that_is_stopped_while_connecting(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one whose tasks nobody cancels: closing its generators is enough."""
    cache = database.cache()
    loop = asyncio.new_event_loop()
    task = loop.create_task(cache.aget("key"))
    loop.run_until_complete(asyncio.sleep(0))
    assert not task.done()
    loop.run_until_complete(loop.shutdown_asyncgens())
    with pytest.raises(redis.ConnectionError):
        loop.run_until_complete(task)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    del task
    gc.collect()
    assert caplog.records == []


def test_loops_that_were_closed_are_forgotten() -> None:
    """Also those that were just closed, when the next one comes."""
    cache = make_cache("redis://127.0.0.1:1", identity=None)
    loop = asyncio.new_event_loop()
    with pytest.raises(redis.ConnectionError):
        loop.run_until_complete(cache.aget("key"))
    loop.close()
    with override_settings(ENTRA_REDIS={}, USE_TZ=False):
        pass  # it has nothing to be told
    assert loop in event_loops._loops

    async def other() -> None:
        with pytest.raises(redis.ConnectionError):
            await cache.aget("key")
        assert [*event_loops._loops] == [asyncio.get_running_loop()]

    run(other())


def test_loops_in_threads(database: Database) -> None:
    """Each has its own connection; they know nothing of each other."""
    cache = database.cache()

    async def work(number: int) -> None:
        for turn in range(50):
            await cache.aset(f"key-{number}", turn)
            assert await cache.aget(f"key-{number}") == turn

    def loop(number: int) -> None:
        asyncio.run(work(number))

    before = database.received()
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(loop, range(4)))
    assert database.received() == before + 4


def test_settings_change_while_a_loop_runs(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The next operation goes where they say now; none is lost or cancelled."""

    cache = database.cache()

    def setting(number: int) -> dict[str, Any]:
        location = f"{database.url}?db={number}"
        return {
            "default": {
                "BACKEND": BACKEND,
                "LOCATION": location,
                "OPTIONS": {"identity": None},
            }
        }

    async def work(stop: asyncio.Event) -> int:
        turns = 0
        while not stop.is_set():
            turns += 1
            await cache.aset("key", turns)
            assert await cache.aget("key")
        return turns

    async def main() -> None:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(work(stop)) for _ in range(5)]
        await asyncio.sleep(0.01)
        for number in range(1, 5):
            with override_settings(CACHES=setting(number)):
                await caches["default"].aset("key", number)
                assert await caches["default"].aget("key") == number
            with override_settings(ENTRA_REDIS={}):
                await asyncio.sleep(0.01)
        stop.set()
        assert all(await asyncio.gather(*tasks))

    run(main())
    for number in range(1, 5):
        assert database.cache(db=number).get("key") == number
    assert caplog.records == []


def fork(child: Callable[[], object]) -> int:
    """Do something in a child process; return its id."""
    pid = os.fork()
    return pid or _leave(child)


def _leave(child: Callable[[], object]) -> NoReturn:
    status = 1
    signal.alarm(int(PATIENCE))  # a child that hangs ends, too
    try:
        child()
        status = 0
    finally:
        os._exit(status)


def test_fork_with_a_loop_running(database: Database) -> None:
    """The child has its own connections and loops; the parent's go on."""
    cache = database.cache()

    async def work() -> None:
        for number in range(20):
            await cache.aset("child", number)
            assert await cache.aget("child") == number

    def child() -> None:
        gc.collect()
        event_loops.FIRST_OPERATIONS = 5
        cache.set("forked", 1)
        # In this thread a loop runs that is the parent's.
        thread = threading.Thread(target=lambda: asyncio.run(work()))
        thread.start()
        thread.join()
        assert cache.get("child") == 19

    async def main() -> None:
        await cache.aset("key", 1)
        tasks = [asyncio.create_task(cache.aget("key")) for _ in range(50)]
        await asyncio.sleep(0)
        pid = fork(child)
        assert await asyncio.gather(*tasks) == [1] * 50
        assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
        assert await cache.aget("forked") == 1

    run(main())


def test_fork_without_a_loop(database: Database) -> None:
    """Where the parent had none, children do as any process does."""
    cache = database.cache()

    def child() -> None:
        asyncio.run(cache.aset("key", 1))

    pid = fork(child)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert cache.get("key") == 1


@pytest.mark.parametrize("options", [{}, {"health_check_interval": 5}])
def test_threads_after_a_fork(
    database: Database, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A child waits for no thread of its parent's, whatever loops that one has had."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 1)
    cache = database.cache(**options)

    async def work() -> None:
        for number in range(4):
            await cache.aset("key", number)
            assert await cache.aget("key") == number

    def child() -> None:
        asyncio.run(work())
        # Of these there is one as ever, which is Django's way for what needs it.
        asyncio.run(cache.aset("lazy", Lazy()))
        idents = {
            asyncio.run(sync_to_async(threading.get_ident)()),
            asyncio.run(sync_to_async(threading.get_ident)()),
        }
        assert len(idents) == 1

    run(work())
    pid = fork(child)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert cache.get("lazy") == Lazy()


@pytest.mark.parametrize(
    "context", [contextlib.nullcontext, ThreadSensitiveContext], ids=["one", "request"]
)
def test_fork_in_a_thread_of_a_loop(
    database: Database, context: Callable[[], Any]
) -> None:
    """Synchronous code in a loop, such as a view under ASGI, may fork."""
    cache = database.cache(health_check_interval=5)

    async def main() -> None:
        async with context():
            pid = await sync_to_async(fork)(
                lambda: asyncio.run(cache.aset("forked", 1))
            )
        assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
        assert await cache.aget("forked") == 1

    run(main())


# -- cancelled tasks


def test_cancelled_anywhere(database: Database) -> None:
    """No task ever gets another's value, wherever others are cancelled."""
    cache = database.cache()
    cache.set_many({key: value_of(key) for key in KEYS})
    generator = random.Random(5)
    user = redis.connection.parse_url(database.url)["username"]
    cancelled = [0]

    async def one(key: str) -> None:
        try:
            if generator.random() < 0.3:
                found = (await cache.aget_many([key, "none"]))[key]
            else:
                found = await cache.aget(key)
        except asyncio.CancelledError:
            cancelled[0] += 1
            raise
        assert found == value_of(key)

    async def worker(number: int) -> None:
        for turn in range(150):
            key = KEYS[(number + turn) % len(KEYS)]
            task = asyncio.create_task(one(key))
            for _ in range(generator.randrange(8)):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await one(key)

    async def drop(done: asyncio.Event) -> None:
        while not done.is_set():
            await asyncio.to_thread(
                database.admin.execute_command,
                *("CLIENT", "KILL", "USER", user, "SKIPME", "yes"),
            )
            # Seldom enough for three retries on a slow machine.
            await asyncio.sleep(0.3)

    async def main() -> None:
        done = asyncio.Event()
        dropping = asyncio.create_task(drop(done))
        await asyncio.gather(*(worker(number) for number in range(20)))
        done.set()
        await dropping

    run(main())
    assert cancelled[0] > 1000


def test_timeouts_of_callers(database: Database) -> None:
    """``asyncio.timeout`` ends an operation, and no other one."""
    cache = database.cache()
    cache.set("key", value_of("key"))

    async def main() -> None:
        database.admin.execute_command("CLIENT", "PAUSE", 200)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await cache.aset("key", "other", 0)
        database.admin.execute_command("CLIENT", "UNPAUSE")
        for _ in range(20):
            assert await cache.aget("key") in (value_of("key"), None)

    run(main())


# -- faults


OPERATIONS: dict[str, Callable[[EntraRedisCache], Awaitable[object]]] = {
    "get": lambda cache: cache.aget(KEYS[0]),
    "get_many": lambda cache: cache.aget_many(KEYS),
    "set_many": lambda cache: cache.aset_many({key: value_of(key) for key in KEYS}),
    "touch": lambda cache: cache.atouch(KEYS[0], None),
}
RIGHT: dict[str, object] = {
    "get": value_of(KEYS[0]),
    "get_many": {key: value_of(key) for key in KEYS},
    "set_many": [],
    "touch": True,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_fault_at_every_byte(
    database: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Wherever a reply breaks off, it is asked for again; nothing is mixed up."""
    monkeypatch.setattr(retry, "BACKOFF", NoBackoff())
    cache = make_cache(proxy.url(database.url), identity=None)
    database.cache().set_many({key: value_of(key) for key in KEYS})
    act, right = OPERATIONS[operation], RIGHT[operation]

    async def main() -> None:
        await act(cache)
        proxy.arm(10**9)
        assert await act(cache) == right
        for after in range(proxy.replied):
            proxy.arm(after)
            results = await asyncio.gather(
                act(cache), *(cache.aget(key) for key in KEYS)
            )
            assert results == [right, *map(value_of, KEYS)]

    run(main())


@pytest.mark.parametrize("operation", ["incr", "decr", "add"])
def test_never_applied_twice(database: Database, proxy: Proxy, operation: str) -> None:
    """Where Redis may have done it, the error says that this is unknown."""
    cache = make_cache(proxy.url(database.url), identity=None)
    direct = database.cache()
    direct.set("number", 9)
    # From here on the server has the script: nothing is sent a second time.
    assert direct.incr("number") == 10

    async def main() -> None:
        for after in range(3):
            await cache.aget("number")
            proxy.arm(after)
            arguments = (f"new-{after}", after) if operation == "add" else ("number",)
            with pytest.raises(UncertainResultError, match="not retried"):
                await getattr(cache, f"a{operation}")(*arguments)
            if operation == "add":
                assert direct.get(f"new-{after}") == after
            else:
                change = 1 if operation == "incr" else -1
                assert direct.get("number") == 10 + change * (after + 1)

    run(main())


def test_connection_lost_before_is_no_uncertainty(
    database: Database, proxy: Proxy
) -> None:
    """What breaks before a command is sent is repeated, also for incr and add."""
    cache = make_cache(proxy.url(database.url), identity=None, db=1)
    database.cache(db=1).set("number", 1)
    user = redis.connection.parse_url(database.url)["username"]
    kill = ("CLIENT", "KILL", "USER", user, "SKIPME", "yes")

    def is_lost() -> bool:
        (connection,) = event_loops._loops[
            asyncio.get_running_loop()
        ]._connections.values()
        protocol: Any = connection._protocol
        return bool(protocol.closed)

    async def main() -> None:
        for number in range(2, 5):
            # The reply to AUTH breaks off.
            proxy.arm(2)
            assert await cache.aincr("number") == number
            database.admin.execute_command(*kill)
            await until(is_lost)
        proxy.arm(2)
        assert await cache.aadd("new", 1) is True

    run(main())


def test_dropped_again_and_again(database: Database) -> None:
    """What is safe to repeat is; what is not is never applied twice."""
    cache = database.cache()
    user = redis.connection.parse_url(database.url)["username"]
    counted, turns = [0, 0], [0] * 20

    async def work(number: int, done: asyncio.Event) -> None:
        key = f"key-{number}"
        while not done.is_set():
            await cache.aset(key, number)
            assert await cache.aget(key) == number
            assert await cache.atouch(key, None)
            assert await cache.aset_many({key: number, f"{key}-2": number}) == []
            assert len(await cache.aget_many([key, f"{key}-2"])) == 2
            turns[number] += 1

    async def count(done: asyncio.Event) -> None:
        while not done.is_set():
            try:
                await cache.aincr("number")
                counted[0] += 1
            except UncertainResultError:
                counted[1] += 1

    async def all_go_on() -> None:
        seen = list(turns)
        await until(lambda: all(map(operator.lt, seen, turns)))

    async def main() -> None:
        done = asyncio.Event()
        await cache.aset("number", 0)
        tasks = [
            asyncio.create_task(work(number, done)) for number in range(len(turns))
        ]
        tasks.append(asyncio.create_task(count(done)))
        for _ in range(20):
            await asyncio.to_thread(
                database.admin.execute_command,
                *("CLIENT", "KILL", "USER", user, "SKIPME", "yes"),
            )
            await all_go_on()
        done.set()
        await asyncio.gather(*tasks)

    run(main())
    succeeded, uncertain = counted
    assert succeeded <= cache.get("number") <= succeeded + uncertain


def answering(*answers: bytes | None) -> tuple[PeerHost, list[bytes | None]]:
    """Return a server that gives these answers in turn, and what is left of them."""
    left = list(answers)

    def answer(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] in (b"CLIENT", b"PING"):
            return b"+OK\r\n"
        reply = left.pop(0)
        if reply == b"":
            peer.transport.abort()
        return reply

    return PeerHost(answer), left


@pytest.mark.parametrize(
    ("options", "answers", "outcome"),
    [
        pytest.param({}, [b""] * 3 + [b":1\r\n"], 1, id="dropped"),
        pytest.param({}, [b""] * 4, redis.ConnectionError, id="no more than that"),
        pytest.param({}, [b"-LOADING it loads\r\n"] * 3 + [b":1\r\n"], 1, id="loading"),
        pytest.param(
            {}, [b"-READONLY replica\r\n"] * 4, redis.ReadOnlyError, id="replica"
        ),
        pytest.param({}, [b"-OOM\r\n"], redis.ResponseError, id="another error"),
        pytest.param(
            {"retry_on_error": [redis.ResponseError]},
            [b"-OOM\r\n", b":1\r\n"],
            1,
            id="an error of one's choice",
        ),
        pytest.param({}, [None], redis.TimeoutError, id="no timeout by default"),
        pytest.param({"retry_on_timeout": True}, [None, b":1\r\n"], 1, id="timeout"),
    ],
)
def test_retry(
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    answers: list[bytes | None],
    outcome: Any,
) -> None:
    """redis-py's options decide what is repeated; by default a lost connection is."""
    monkeypatch.setattr(retry, "BACKOFF", NoBackoff())

    async def main() -> None:
        host, left = answering(*answers)
        async with host:
            silent = None in answers
            cache = make_cache(
                f"redis://127.0.0.1:{host.port}",
                identity=None,
                socket_timeout=0.1 if silent else PATIENCE,
                **options,
            )
            if isinstance(outcome, type):
                with pytest.raises(outcome):
                    await cache.ahas_key("key")
            else:
                assert await cache.ahas_key("key") == outcome
            assert left == []

    run(main())


ONCE: dict[str, Callable[[EntraRedisCache], Awaitable[Any]]] = {
    "aget": lambda cache: cache.aget("key"),
    "aset": lambda cache: cache.aset("key", {"a": 1}),
    "aadd": lambda cache: cache.aadd("key", 1),
    "aincr": lambda cache: cache.aincr("key"),
    "atouch": lambda cache: cache.atouch("key", None),
    "aget_many": lambda cache: cache.aget_many(["a", "b"]),
    "aset_many": lambda cache: cache.aset_many({"a": 1, "b": 2}),
    "of none": lambda cache: cache.aget_many([]),
}
OK = b"+OK\r\n"
REPLIES: dict[str, list[bytes | None]] = {
    "well": [OK],
    "a number": [b":1\r\n"],
    "nothing": [b"$-1\r\n"],
    "values": [b"*2\r\n$1\r\n7\r\n$-1\r\n"],
    "an error": [b"-ERR no\r\n"],
    "no script": [b"-NOSCRIPT none\r\n", b":5\r\n"],
    "no scripts": [b"-NOPERM no permissions to run 'evalsha'\r\n", b":1\r\n"],
    "full": [b"-OOM full\r\n"],
    "a replica": [b"-READONLY replica\r\n"],
    "loading": [b"-LOADING it loads\r\n"],
    "a node": [b"-MOVED 5 127.0.0.1:7000\r\n"],
    "of another kind": [b"*1\r\n:1\r\n"],
    "no reply": [b"!\r\n"],
    "dropped": [b""],
    "silent": [None],
}


@pytest.mark.parametrize("operation", ONCE)
def test_both_ways_of_a_first_attempt(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Straight to the connection, and through retries and outages: the same commands,
    connections and outcomes, whatever the reply is."""
    monkeypatch.setattr(retry, "BACKOFF", NoBackoff())

    async def outcome(replies: list[bytes | None], direct: bool) -> Any:
        # The port may be that of an earlier one, which refused scripts.
        registry.reset()
        host, _ = answering(OK, *replies, *[OK] * 8)
        async with host:
            url = f"redis://127.0.0.1:{host.port}"
            silent = None in replies
            cache = make_cache(
                url, identity=None, socket_timeout=0.3 if silent else PATIENCE
            )
            client: Any = cache._async_cache
            monkeypatch.setattr(client, "_direct", direct)
            await cache.aset("connected", 1)
            try:
                said: Any = await ONCE[operation](cache)
            except (redis.RedisError, ValueError) as error:
                said = type(error), str(error).replace(str(host.port), "")
            return said, host.commands, len(host.peers), cache.get_pool().counts()

    async def main() -> None:
        # To wait for nothing takes its time: once for what is repeated, once for what
        # is not.
        quick = operation not in ("aget", "aincr")
        for replies in REPLIES.values():
            if quick and None in replies:
                continue
            found = [await outcome(replies, direct) for direct in (True, False)]
            assert found[0] == found[1]

    run(main())


@pytest.mark.parametrize("name", ["incr", "aincr"])
def test_script_that_a_server_never_knows(name: str) -> None:
    """That is told as it is, and not as if the key did not exist."""

    async def main() -> None:
        host, _ = answering(*[b"-NOSCRIPT none\r\n"] * 9)
        async with host:
            cache = make_cache(f"redis://127.0.0.1:{host.port}", identity=None)
            incr = cache.aincr if name == "aincr" else sync_to_async(cache.incr)
            with pytest.raises(NoScriptError):
                await incr("key")

    run(main())


def test_list_of_replies_that_stands_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that has become a replica is left; single errors are told by key."""
    monkeypatch.setattr(retry, "BACKOFF", NoBackoff())

    async def main() -> None:
        host, left = answering(
            *(b"+OK\r\n", b"-READONLY replica\r\n"),
            *(b"+OK\r\n", b"-OOM full\r\n"),
        )
        async with host:
            cache = make_cache(f"redis://127.0.0.1:{host.port}", identity=None)
            assert await cache.aset_many({"a": 1, "b": 2}) == ["b"]
            assert len(host.peers) == 2
            assert left == []

    run(main())


def test_more_at_once_than_are_let_through(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for their turn; for too long, and it is an error that says so."""
    monkeypatch.setattr(links, "MAX_IN_FLIGHT", 8)
    cache = database.cache()
    held = []

    def hold(peer: Peer, command: list[bytes]) -> bytes | None:
        if command[0] == b"CLIENT":
            return b"+OK\r\n"
        held.append(peer)
        return None

    async def main() -> None:
        await asyncio.gather(*(cache.aset(f"key-{n}", n) for n in range(500)))
        found = await asyncio.gather(*(cache.aget(f"key-{n}") for n in range(500)))
        assert found == list(range(500))
        async with PeerHost(hold) as host:
            url = f"redis://127.0.0.1:{host.port}"
            impatient = make_cache(url, identity=None, pool_timeout=0.05)
            tasks = [asyncio.create_task(impatient.aget("key")) for _ in range(10)]
            waiting, late = tasks[:8], tasks[8:]
            await asyncio.wait(late)
            assert not any(task.done() for task in waiting)
            for task in late:
                with pytest.raises(ConnectionPoolTimeout, match="pool_timeout"):
                    await task
            await until(lambda: len(held) == 8)
            for peer in held:
                peer.transport.write(b"$1\r\n1\r\n")
            assert await asyncio.gather(*waiting) == [1] * 8

    run(main())


def test_huge_values_leave_the_loop_its_turns(database: Database) -> None:
    """While they go to and fro, other tasks get theirs."""
    cache = database.cache()
    huge = os.urandom(1 << 20) * 50

    async def beat(done: asyncio.Event) -> int:
        beats = 0
        while not done.is_set():
            beats += 1
            await asyncio.sleep(0)
        return beats

    async def main() -> None:
        await cache.aset("small", 1)
        done = asyncio.Event()
        beating = asyncio.create_task(beat(done))
        await cache.aset("huge", huge)
        assert await cache.aget("huge") == huge
        done.set()
        # Pieces of 256 KB, each way.
        assert await beating > 200
        assert await cache.aget("small") == 1

    run(main())


# -- with an identity


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Run Entra and its Redis with tokens that last for seconds, and are renewed early:
    a loop that stalls for a while still has a valid one."""
    with (
        Emulator(token_lifetime=4.0) as emulator,
        let_in(emulator, monkeypatch, refresh_ratio=0.3),
    ):
        yield emulator


@contextlib.asynccontextmanager
async def at_work(cache: EntraRedisCache, tasks: int) -> AsyncIterator[list[int]]:
    """Have tasks use a cache meanwhile; any error of theirs is one."""
    done = asyncio.Event()
    turns = [0]

    async def work(number: int) -> None:
        key = f"key-{number}"
        await cache.aset(key, 0)
        turn = 0
        while not done.is_set():
            turn += 1
            assert await cache.aincr(key) == turn
            assert await cache.aget(key) == turn
            turns[0] += 1
            await asyncio.sleep(0.01)

    working = [asyncio.create_task(work(number)) for number in range(tasks)]
    try:
        yield turns
    finally:
        done.set()
        await asyncio.gather(*working)


def test_renewals(short_lived: Emulator) -> None:
    """Nobody notices one; AUTH goes out on the one connection that there is."""
    cache = make_cache(short_lived.redis_url, ssl_ca_certs=str(short_lived.ca_file))

    async def main() -> None:
        async with at_work(cache, 20):
            await until(lambda: short_lived.stats.auths >= 3)

    run(main())
    stats = short_lived.stats
    assert stats.auths_refused == 0
    assert stats.connections_opened == 1
    assert stats.closed_by_expiry == 0


def test_outage_shorter_than_the_token(short_lived: Emulator) -> None:
    """Nobody notices it either."""
    cache = make_cache(short_lived.redis_url, ssl_ca_certs=str(short_lived.ca_file))
    status = get_credential_provider().status

    async def main() -> None:
        async with at_work(cache, 5):
            await until(lambda: status().renewals)
            short_lived.faults.fail("500")
            await until(lambda: status().failures)
            short_lived.faults.recover()
            renewals = status().renewals
            await until(lambda: status().renewals > renewals)

    run(main())
    assert short_lived.stats.closed_by_expiry == 0


def test_outage_longer_than_the_token(short_lived: Emulator) -> None:
    """The errors say what it is; with its end all is well again."""
    cache = make_cache(short_lived.redis_url, ssl_ca_certs=str(short_lived.ca_file))

    async def fails() -> bool:
        try:
            await cache.aget("key")
        except redis.ConnectionError as error:
            return "500" in str(error)
        return False

    async def main() -> None:
        await cache.aset("key", 1)
        short_lived.faults.fail("500")
        deadline = time.monotonic() + PATIENCE
        while not await fails():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        results = await asyncio.gather(*(fails() for _ in range(10)))
        assert results == [True] * 10
        short_lived.faults.recover()
        while await fails():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert await cache.aget("key") == 1

    run(main())


def test_dropped_by_the_server(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs no error, and no token."""
    with let_in(emulator, monkeypatch):
        cache = make_cache(emulator.redis_url, ssl_ca_certs=str(emulator.ca_file))

        async def main() -> None:
            for turn in range(5):
                await cache.aset("key", turn)
                emulator.drop_connections()
                assert await cache.aget("key") == turn

        run(main())
        assert len(emulator.requests) == 1


def test_revoked(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One other token is tried; then the error says whose it is."""
    with let_in(emulator, monkeypatch):
        cache = make_cache(emulator.redis_url, ssl_ca_certs=str(emulator.ca_file))
        oid = emulator.application.object_id

        async def main() -> None:
            await cache.aset("key", 1)
            emulator.set_access(oid, None)
            emulator.drop_connections()
            with pytest.raises(TokenRefusedError, match=oid):
                await cache.aget("key")

        run(main())
        assert len(emulator.requests) == 2


def test_large_values_over_tls(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also encrypted, they come and go in pieces, among small ones."""
    with let_in(emulator, monkeypatch):
        cache = make_cache(emulator.redis_url, ssl_ca_certs=str(emulator.ca_file))

        async def main() -> None:
            values = {f"key-{n}": os.urandom(1 << (4 * n)) for n in range(6)}
            await asyncio.gather(
                *(cache.aset(key, value) for key, value in values.items())
            )
            found = await asyncio.gather(*map(cache.aget, values))
            assert found == list(values.values())

        for number in (1, 2):
            run(main())
            assert emulator.stats.connections_opened == number
