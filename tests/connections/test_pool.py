"""Pools: who gets which connection, and when there is none."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from django.conf import settings
from django.test import override_settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_entra_redis._errors import ConfigurationError
from django_entra_redis.connections import pool as pools
from django_entra_redis.connections import registry
from django_entra_redis.connections.pool import ConnectionPool
from django_entra_redis.exceptions import ConnectionPoolTimeout, TokenError
from emulator import Emulator
from tests.support.caches import PATIENCE, Database, let_in, make_cache, wait_until
from tests.support.threads import hammering


@pytest.fixture
def make_pool(database: Database) -> Iterator[Callable[..., Any]]:
    """Give what makes pools by OPTIONS; they are closed afterwards."""
    yield lambda **options: database.cache(**options).get_pool()
    registry.reset()


def client_id(connection: Any) -> int:
    """Return the server's number of a connection, which never comes twice."""
    connection.send_command("CLIENT", "ID")
    return int(connection.read_response())


def test_last_used_first(make_pool: Callable[..., Any]) -> None:
    """The connection that was used last is the next to be used."""
    pool = make_pool()
    first, second = pool.get_connection(), pool.get_connection()
    assert first is not second
    assert pool.counts() == (0, 2)
    pool.release(second)
    pool.release(first)
    assert pool.counts() == (2, 0)
    assert pool.get_connection() is first
    assert pool.get_connection() is second


def test_released_twice(make_pool: Callable[..., Any]) -> None:
    """One connection is never two threads', however often somebody releases it."""
    pool = make_pool()
    connection = pool.get_connection()
    pool.release(connection)
    pool.release(connection)
    assert pool.counts() == (1, 0)
    assert pool.get_connection() is not pool.get_connection()


class Clock:
    """A pool's clock, which goes when it is told to."""

    def __init__(self, pool: Any) -> None:
        self.now = time.monotonic()
        pool.clock = self

    def __call__(self) -> float:
        return self.now


def connected(database: Database) -> int:
    """Return how many connections the server has besides the one that asks."""
    return int(database.admin.info("clients")["connected_clients"])


def burst(pool: Any, count: int) -> list[Any]:
    """Return the connections of so many threads that work at once."""
    made = [pool.get_connection() for _ in range(count)]
    for connection in made:
        pool.release(connection)
    return made


@pytest.mark.parametrize("straight", [True, False])
def test_idle_connections_are_closed(database: Database, straight: bool) -> None:
    """What a burst has opened is closed once it has been idle for idle_timeout, by the
    next operation of whatever path; the connections in use stay."""
    cache = database.cache(idle_timeout=10)
    pool = cache.get_pool()
    before = connected(database)
    clock = Clock(pool)
    made = burst(pool, 6)
    cache = database.cache(idle_timeout=10, ignore_exceptions=not straight)
    assert cache.get_pool() is pool
    lent = pool.get_connection()
    assert lent is made[-1]
    for seconds in (4, 4):
        clock.now += seconds
        cache.get("key")
    assert pool.counts() == (5, 1)
    clock.now += 2
    cache.get("key")
    assert pool.counts() == (1, 1)
    wait_until(lambda: connected(database) == before + 2)
    assert pool.get_connection() is made[-2]
    pool.release(made[-2])
    # It has been in use: it is idle from now on.
    clock.now += 9
    pool.release(lent)
    pool.release(pool.get_connection())
    assert pool.counts() == (2, 0)
    # Those that have been closed make room for others.
    clock.now += 10
    cache.set("key", 1)
    assert pool.counts() == (1, 0)
    assert pool.get_connection() not in made
    registry.reset()


def test_idle_for_ever(make_pool: Callable[..., Any]) -> None:
    """Without idle_timeout none is closed; with the default it is a minute."""
    assert make_pool().idle_timeout == 60
    pool = make_pool(idle_timeout=None)
    clock = Clock(pool)
    burst(pool, 3)
    clock.now += 10**6
    pool.release(pool.get_connection())
    assert pool.counts() == (3, 0)


def test_idle_connections_that_others_take(make_pool: Callable[..., Any]) -> None:
    """Threads that look at once close no connection that is in use, and lose none."""
    pool = make_pool(idle_timeout=10)
    clock = Clock(pool)
    first, second = burst(pool, 2)

    class Idle(list[Any]):
        """Idle connections, the oldest of which is taken between look and hand."""

        def pop(self, index: Any = -1) -> Any:
            del self[0]
            return super().pop(index)

    clock.now += 10
    pool.idle[:] = [first, second]
    pool.idle = Idle(pool.idle)
    second.idle_since = clock.now - 1
    pool.close_idle(clock.now)
    assert list(pool.idle) == [second]
    assert second.idle_since == clock.now - 1

    class Gone(list[Any]):
        """Those, all of which are taken."""

        def pop(self, index: Any = -1) -> Any:
            self.clear()
            return super().pop(index)

    pool.idle = Gone([second])
    clock.now += 10
    pool.close_idle(clock.now)
    assert pool.close_idle_at == clock.now + 10


def test_counts_for_metrics(make_pool: Callable[..., Any]) -> None:
    """What redis-py 8 counts connections by for its metrics is right."""
    pool = make_pool()
    first, second = pool.get_connection(), pool.get_connection()
    pool.release(first)
    # They are what its get_connection_count() asks, which older ones have not.
    assert pool._get_free_connections() == [first]
    assert pool._get_in_use_connections() == {second}


def test_empty_pool_is_an_error_in_time(make_pool: Callable[..., Any]) -> None:
    """At max_connections an operation waits for pool_timeout, and says so."""
    pool = make_pool(max_connections=1, pool_timeout=0.05)
    connection = pool.get_connection()
    with pytest.raises(ConnectionPoolTimeout, match=r"0\.05 s .*pool_timeout.* all 1 "):
        pool.get_connection()
    pool.release(connection)
    assert pool.get_connection() is connection


def test_default_maximum(make_pool: Callable[..., Any]) -> None:
    """Without max_connections there is one all the same."""
    assert make_pool().max_connections == pools.MAX_CONNECTIONS
    assert make_pool(max_connections=7).max_connections == 7


def test_busy_threads_do_not_starve_others(database: Database) -> None:
    """Whoever waits gets a connection before those that come later."""
    cache = database.cache(max_connections=1, pool_timeout=PATIENCE)
    counts = [0] * 4
    done = threading.Event()

    def work(number: int) -> None:
        while not done.is_set():
            cache.get("key")
            counts[number] += 1
            if min(counts) >= 100:
                done.set()

    with ThreadPoolExecutor(len(counts)) as executor:
        for future in [executor.submit(work, number) for number in range(4)]:
            future.result(PATIENCE)
    # Whoever is always quicker would have had tens of thousands meanwhile. A busy
    # machine may keep a thread that is not waiting from running for some thousands.
    assert max(counts) < 50 * min(counts)
    assert cache.get_pool().counts() == (1, 0)


class InterruptedAlarm(Exception):  # noqa: N818 - none of the errors
    """What a signal handler raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], object]]:
    """Give what has a signal handler raise in so many seconds."""

    def handle(*_: object) -> None:
        raise InterruptedAlarm

    before = signal.signal(signal.SIGALRM, handle)
    yield lambda after: signal.setitimer(signal.ITIMER_REAL, after)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_interrupted_while_waiting(
    make_pool: Callable[..., Any], alarm: Callable[[float], object]
) -> None:
    """Who was interrupted while waiting is not handed a connection later on."""
    pool = make_pool(max_connections=1, pool_timeout=PATIENCE)
    connection = pool.get_connection()
    alarm(0.05)
    with pytest.raises(InterruptedAlarm):
        pool.get_connection()
    pool.release(connection)
    assert pool.get_connection() is connection


def test_lost_connection_counts_no_longer(make_pool: Callable[..., Any]) -> None:
    """A connection lost between two lines leaves its place to another one."""
    pool = make_pool(max_connections=1, pool_timeout=0.0)
    lost = pool.get_connection()
    with pytest.raises(ConnectionPoolTimeout):
        pool.get_connection()
    del lost
    gc.collect()
    assert pool.counts() == (0, 0)
    pool.release(pool.get_connection())
    assert pool.counts() == (1, 0)


def test_lost_connection_wakes_those_who_wait(make_pool: Callable[..., Any]) -> None:
    """Whoever waits makes the next one, or waits on if somebody has been quicker."""
    pool = make_pool(max_connections=1, pool_timeout=2 * PATIENCE)
    lost = pool.get_connection()
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(pool.get_connection)
        wait_until(lambda: pool.queue)
        (place,) = pool.queue
        with pool._gate:
            del lost
            gc.collect()
            quicker = pool.get_connection()
        wait_until(lambda: pool.queue and place not in pool.queue)
        assert pool.counts() == (0, 1)
        del quicker
        gc.collect()
        pool.release(waiting.result(PATIENCE))
    assert pool.counts() == (1, 0)


def test_wrong_option_takes_no_place(make_pool: Callable[..., Any]) -> None:
    """A connection that can't be made does not count."""

    class Wrong(redis.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise redis.ConnectionError("wrong option")

    pool = make_pool(max_connections=1, connection_class=Wrong)
    for _ in range(2):
        with pytest.raises(redis.ConnectionError, match="wrong option"):
            pool.get_connection()
    assert pool.counts() == (0, 0)


def test_unreachable_server_takes_no_place() -> None:
    """A connection that can't connect is there for the next try."""
    cache = make_cache("redis://127.0.0.1:1", identity=None, max_connections=1)
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            cache.get_pool().get_connection()
    assert cache.get_pool().counts() == (1, 0)
    registry.reset()


def test_no_more_connections_than_in_use_at_once(database: Database) -> None:
    """32 threads, then 200 short ones, open no more connections than are in use."""
    cache = database.cache()
    before = database.received()
    barrier = threading.Barrier(32)

    def work(number: int) -> None:
        barrier.wait(PATIENCE)
        for turn in range(20):
            cache.set(f"key-{number}", turn)
            assert cache.get(f"key-{number}") == turn

    with ThreadPoolExecutor(32) as executor:
        list(executor.map(work, range(32)))
    opened = database.received() - before
    assert opened <= 32
    assert sum(cache.get_pool().counts()) == opened
    for number in range(200):
        thread = threading.Thread(target=cache.get, args=(f"key-{number}",))
        thread.start()
        thread.join(PATIENCE)
    assert database.received() - before == opened
    registry.reset()


def test_closed_by_the_server(
    database: Database, make_pool: Callable[..., Any]
) -> None:
    """A connection that the server has closed meanwhile is noticed at checkout."""
    pool = make_pool()
    connection = pool.get_connection()
    number = client_id(connection)
    pool.release(connection)
    database.admin.execute_command("CLIENT", "KILL", "ID", number)
    wait_until(
        lambda: not database.admin.execute_command("CLIENT", "LIST", "ID", number)
    )
    again = pool.get_connection()
    assert again is connection
    assert client_id(again) > number


def test_unread_reply(make_pool: Callable[..., Any]) -> None:
    """A connection with something to read on it is not handed out as it is."""
    pool = make_pool()
    connection = pool.get_connection()
    number = client_id(connection)
    connection.send_command("PING")
    wait_until(connection.can_read)
    pool.release(connection)
    again = pool.get_connection()
    assert client_id(again) > number


class BrokenConnection(redis.Connection):
    """Its socket breaks while one looks at it."""

    def can_read(self, timeout: float = 0) -> bool:
        """Raise."""
        raise redis.ConnectionError("broken")


def test_broken_while_looking(make_pool: Callable[..., Any]) -> None:
    """A connection of which that can't be told is made anew."""
    pool = make_pool(connection_class=BrokenConnection)
    number = client_id(pool.get_connection())
    assert client_id(pool.get_connection()) > number + 1


def test_disconnect(make_pool: Callable[..., Any]) -> None:
    """Idle connections are closed at once, those in use when they come back."""
    pool = make_pool()
    used, idle = pool.get_connection(), pool.get_connection()
    numbers = client_id(used), client_id(idle)
    pool.release(idle)
    pool.disconnect()
    assert client_id(used) == numbers[0]
    pool.release(used)
    assert pool.counts() == (2, 0)
    assert client_id(pool.get_connection()) > numbers[1]
    assert client_id(pool.get_connection()) > numbers[1]


def test_disconnect_of_the_idle_alone(make_pool: Callable[..., Any]) -> None:
    """Connections in use can be left alone."""
    pool = make_pool()
    used, idle = pool.get_connection(), pool.get_connection()
    numbers = client_id(used), client_id(idle)
    pool.release(idle)
    pool.disconnect(inuse_connections=False)
    pool.release(used)
    assert client_id(pool.get_connection()) == numbers[0]
    assert client_id(pool.get_connection()) > numbers[1]


class TakenPool(ConnectionPool):
    """All its connections are taken as soon as one is released."""

    taken: list[Any] | None = None

    def release(self, connection: Any) -> None:
        """Release it, and take all there are."""
        super().release(connection)
        if self.taken is not None:
            self.taken += [self.get_connection() for _ in range(self.counts()[0])]


def test_disconnect_while_others_take_connections(
    make_pool: Callable[..., Any],
) -> None:
    """It closes what it finds; the others are closed when they come back."""
    pool = make_pool(pool_class=TakenPool, max_connections=2)
    first, second = pool.get_connection(), pool.get_connection()
    number = client_id(second)
    pool.release(second)
    pool.release(first)
    pool.taken = []
    pool.disconnect()
    taken, pool.taken = pool.taken, None
    assert set(taken) == {first, second}
    for connection in taken:
        pool.release(connection)
    assert client_id(pool.get_connection()) > number
    assert client_id(pool.get_connection()) > number


class MarkedRetry(Retry):
    """A retry policy that can be told from others."""


def test_set_retry(make_pool: Callable[..., Any]) -> None:
    """A retry policy set later on is for the idle connections and all new ones."""
    pool = make_pool()
    pool.release(pool.get_connection())
    pool.set_retry(MarkedRetry(NoBackoff(), 7))
    for _ in ("idle", "new"):
        assert isinstance(pool.get_connection().retry, MarkedRetry)


def test_no_other_thread_authenticates(make_pool: Callable[..., Any]) -> None:
    """What redis-py calls with a new token touches no connection."""
    pool = make_pool()
    connection = pool.get_connection()
    pool.release(connection)
    pool.re_auth_callback(object())
    assert pool.get_connection() is connection


# -- forks


def in_child(action: Callable[[], object]) -> str:
    """Return what an action returns in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - some tracers are lost in a fork
        try:
            said = str(action())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def test_fork(make_pool: Callable[..., Any]) -> None:
    """A child has connections of its own, and leaves the parent's alone."""
    pool = make_pool()
    idle, used = pool.get_connection(), pool.get_connection()
    numbers = client_id(idle), client_id(used)
    pool.release(idle)

    def use() -> tuple[int, tuple[int, int]]:
        pool.release(used)  # inherited in use: nobody's
        connection = pool.get_connection()
        return client_id(connection), pool.counts()

    number, rest = in_child(use).lstrip("(").split(", ", 1)
    assert int(number) > max(numbers)
    assert rest == "(0, 1))"
    assert client_id(used) == numbers[1]
    pool.release(used)
    assert {client_id(pool.get_connection()) for _ in range(2)} == set(numbers)


class SlowConnection(redis.Connection):
    """Takes its time to be made."""

    making = threading.Event()
    go_on = threading.Event()

    def __init__(self, **kwargs: Any) -> None:
        self.making.set()
        assert self.go_on.wait(PATIENCE)
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]


def test_fork_while_another_thread_makes_a_connection(
    make_pool: Callable[..., Any],
) -> None:
    """A lock that a thread held at the fork is none of the child's."""
    pool = make_pool(connection_class=SlowConnection)

    def use() -> int:
        SlowConnection.go_on.set()
        return client_id(pool.get_connection())

    with ThreadPoolExecutor(1) as executor:
        connection = executor.submit(pool.get_connection)
        assert SlowConnection.making.wait(PATIENCE)
        number = in_child(use)
        SlowConnection.go_on.set()
        assert client_id(connection.result(PATIENCE)) != int(number)


# -- which caches share a pool


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        pytest.param({}, {}, True, id="the same"),
        pytest.param({"db": 1}, {"db": 2}, False, id="another database"),
        pytest.param(
            {"socket_timeout": 1},
            {"socket_timeout": 1.0},
            False,
            id="equal is not the same",
        ),
        pytest.param({"pool_timeout": 1}, {"pool_timeout": 2}, False, id="timeout"),
        pytest.param({"clear_by_scan": True}, {}, True, id="nothing of connections"),
        pytest.param({"allow_plaintext_token": True}, {}, False, id="plain text"),
        pytest.param(
            {"socket_keepalive_options": {1: 2}},
            {"socket_keepalive_options": {1: 2}},
            True,
            id="equal dictionaries",
        ),
        pytest.param(
            {"socket_keepalive_options": {1: 2}},
            {"socket_keepalive_options": {1: 3}},
            False,
            id="other dictionaries",
        ),
        pytest.param(
            {"retry_on_error": [redis.TimeoutError]},
            {"retry_on_error": [redis.TimeoutError]},
            True,
            id="equal lists",
        ),
        pytest.param(
            {"retry": Retry(NoBackoff(), 1)},
            {"retry": Retry(NoBackoff(), 1)},
            False,
            id="two objects",
        ),
        pytest.param(
            {"pool_class": "redis.ConnectionPool"},
            {"pool_class": "redis.BlockingConnectionPool"},
            False,
            id="pool class",
        ),
        pytest.param(
            {"parser_class": "redis._parsers._RESP2Parser"}, {}, False, id="parser"
        ),
    ],
)
def test_shared(
    database: Database,
    make_pool: Callable[..., Any],
    first: dict[str, Any],
    second: dict[str, Any],
    shared: bool,
) -> None:
    """Caches share a pool only if nothing distinguishes their connections."""
    assert (make_pool(**first) is make_pool(**second)) is shared


def test_settings_stay_as_they_are(make_pool: Callable[..., Any]) -> None:
    """Connections leave the settings' list alone; the next thread has the same pool."""
    errors: list[Any] = [redis.exceptions.BusyLoadingError]
    options = {"retry_on_timeout": True, "retry_on_error": errors}
    pool = make_pool(**options)
    connection = pool.get_connection()
    assert redis.TimeoutError in connection.retry_on_error
    pool.release(connection)
    assert errors == [redis.exceptions.BusyLoadingError]
    assert make_pool(**options) is pool


def test_parser_class(make_pool: Callable[..., Any]) -> None:
    """A parser may be named by its dotted path."""
    pool = make_pool(parser_class="redis._parsers._RESP2Parser")
    assert client_id(pool.get_connection()) > 0


@pytest.mark.parametrize(
    "options",
    [{"pool_timeout": 0.05}, {"timeout": 0.05, "pool_timeout": PATIENCE}],
)
def test_blocking_pool_waits_as_long(
    make_pool: Callable[..., Any], options: dict[str, float]
) -> None:
    """pool_timeout is redis-py's BlockingConnectionPool's too; its own goes first."""
    pool = make_pool(
        pool_class=redis.BlockingConnectionPool, max_connections=1, **options
    )
    connection = pool.get_connection()
    with pytest.raises(redis.ConnectionError):
        pool.get_connection()
    pool.release(connection)


def test_unix_socket(tmp_path: Path) -> None:
    """A socket file does: none of the options of TCP are for it."""
    cache = make_cache(f"unix://{tmp_path}/nobody.sock", identity=None)
    with pytest.raises(redis.ConnectionError, match=r"nobody\.sock"):
        cache.get("key")
    registry.reset()


class Credential:
    """Gets the tokens of another identity."""

    def __init__(self, emulator: Emulator, object_id: str) -> None:
        self._emulator = emulator
        self._object_id = object_id

    def get_token(self, *scopes: str) -> Any:
        """Return a token as azure-identity does."""
        value = self._emulator.issue_token(self._object_id)
        return SimpleNamespace(token=value, expires_on=time.time() + 3600)


@pytest.mark.usefixtures("redis_server")
def test_two_identities_never_share(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two caches with one URL and two identities are let in as who they are."""
    other = {"CREDENTIAL": Credential(emulator, emulator.user_assigned.object_id)}
    with let_in(emulator, monkeypatch, other=other):
        caches = [
            make_cache(emulator.plaintext_url, identity=identity)
            for identity in ("default", "other")
        ]

        def work(number: int) -> str:
            cache = caches[number % 2]
            connection = cache.get_pool().get_connection()
            connection.send_command("ACL", "WHOAMI")
            said: bytes = connection.read_response()
            cache.get_pool().release(connection)
            return said.decode()

        with ThreadPoolExecutor(8) as executor:
            said = list(executor.map(work, range(200)))
    assert set(said[::2]) == {emulator.application.object_id}
    assert set(said[1::2]) == {emulator.user_assigned.object_id}


def test_override_settings_closes(database: Database) -> None:
    """Settings that change close all connections, and are read anew."""
    cache = database.cache()
    pool = cache.get_pool()
    connection = pool.get_connection()
    number = client_id(connection)
    pool.release(connection)
    with override_settings(CACHES={}):
        wait_until(
            lambda: not database.admin.execute_command("CLIENT", "LIST", "ID", number)
        )
        assert database.cache().get_pool() is not pool
    with override_settings(USE_TZ=False):
        pass
    assert client_id(pool.get_connection()) > number
    registry.reset()


def test_a_token_is_waited_for_without_a_connection(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds no token is told so, not that connections are in use."""
    emulator.faults.fail("hang", endpoint="token")
    with let_in(emulator, monkeypatch):
        identity = {**settings.ENTRA_REDIS["default"], "REQUEST_TIMEOUT": 1.0}
        with override_settings(ENTRA_REDIS={"default": identity}):
            cache = make_cache(
                emulator.redis_url,
                ssl_ca_certs=str(emulator.ca_file),
                max_connections=1,
                pool_timeout=0.1,
            )
            with ThreadPoolExecutor(4) as executor:
                futures = [executor.submit(cache.get, "key") for _ in range(4)]
                errors = [future.exception(PATIENCE) for future in futures]
    assert {type(error) for error in errors} == {TokenError}


@pytest.mark.parametrize("key", ["pool_class", "parser_class"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("nowhere.Class", "No module named 'nowhere'"),
        ("os.getpid", "it is not a class"),
        ("redis.Redis", "it is not a class of that kind"),
        ("collections.OrderedDict", "it is not a class of that kind"),
        ("builtins.int", "it is not a class of that kind"),
        ("redis.asyncio.ConnectionPool", "it is not a class of that kind"),
        ("redis._parsers._AsyncRESP2Parser", "it is not a class of that kind"),
    ],
)
def test_class_that_is_none(key: str, value: str, says: str) -> None:
    """The option is named, and what it should be."""
    cache = make_cache("redis://localhost", identity=None, **{key: value})
    with pytest.raises(ConfigurationError, match=says) as caught:
        cache.get("key")
    (problem,) = caught.value.problems
    assert (problem.id, problem.where) == ("E023", f"CACHES[...]['OPTIONS']['{key}']")
    assert problem.hint.endswith(", or its dotted path.")


def test_pools_that_threads_make_meanwhile() -> None:
    """Whoever counts all pools gets in no thread's way, nor does one in theirs."""
    kept = ConnectionPool()
    over = threading.Event()

    def churn() -> None:
        made = []
        while not over.is_set():
            made = [ConnectionPool() for _ in range(20)]
        made.clear()

    with hammering(churn, over):
        for _ in range(300):
            assert kept in pools.known_pools()
