"""The cache client: what it does when Redis, or the way to it, fails."""

import asyncio
import contextlib
import functools
import gc
import logging
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.connections import event_loops, registry
from django_entra_redis.exceptions import UncertainResultError
from emulator import Emulator
from emulator.certificates import CertificateAuthority
from emulator.server import ServerError, find_servers
from emulator.sockets import free_port
from tests.support.caches import (
    PATIENCE,
    Database,
    Proxy,
    let_in,
    make_cache,
    recovered,
    wait_until,
)
from tests.support.machine import lacks

KEYS = [f"key-{number}" for number in range(4)]


@pytest.fixture(autouse=True)
def empty(database: Database) -> Iterator[None]:
    """Begin with nothing, and leave no connection."""
    database.admin.flushall()
    yield
    registry.reset()


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """Give a proxy that stands before the server."""
    running = Proxy(database.address)
    yield running
    running.close()


# -- faults at every byte of a reply


def value_of(key: str) -> str:
    """Return the value that belongs to a key, and to no other."""
    return f"the value of {key}"


def pipeline(cache: EntraRedisCache) -> object:
    """Use redis-py's own client, as one may."""
    client: Any = redis.Redis(connection_pool=cache.get_pool())
    pipe = client.pipeline(transaction=False)
    pipe.strlen(cache.make_key(KEYS[0]))
    pipe.exists(cache.make_key(KEYS[1]))
    return pipe.execute()


OPERATIONS: dict[str, Callable[[EntraRedisCache], object]] = {
    "get": lambda cache: cache.get(KEYS[0]),
    "get_many": lambda cache: cache.get_many(KEYS),
    "set_many": lambda cache: cache.set_many({key: value_of(key) for key in KEYS}),
    "touch": lambda cache: cache.touch(KEYS[0], 300),
    "pipeline": pipeline,
}
RIGHT: dict[str, object] = {
    "get": value_of(KEYS[0]),
    "get_many": {key: value_of(key) for key in KEYS},
    "set_many": [],
    "touch": True,
    "pipeline": [len(pickle.dumps(value_of(KEYS[0]), pickle.HIGHEST_PROTOCOL)), 1],
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("stall", [False, True], ids=["cut", "stalled"])
def test_fault_at_every_byte(
    database: Database, proxy: Proxy, operation: str, stall: bool
) -> None:
    """Wherever a reply breaks off, no key's value is ever returned for another's."""
    cache = make_cache(
        proxy.url(database.url),
        identity=None,
        # What a stall costs at each byte; a reply that comes is quicker, or asked for
        # again.
        socket_timeout=0.03 if stall else PATIENCE,
        retry=Retry(NoBackoff(), 0),
    )
    run, right = OPERATIONS[operation], RIGHT[operation]
    database.cache().set_many({key: value_of(key) for key in KEYS})
    patient = make_cache(proxy.url(database.url), identity=None)
    run(patient)
    proxy.arm(10**9)
    assert run(patient) == right
    length = proxy.replied
    for key in KEYS:
        wait_until_answered(cache, key)
    for after in range(length):
        before = proxy.connections
        proxy.arm(after, stall=stall)
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            run(cache)
        proxy.disarm()
        for key in KEYS:
            wait_until_answered(cache, key)
        assert proxy.connections > before
    proxy.arm(length)
    with contextlib.suppress(redis.TimeoutError):
        assert run(cache) == right
    for key in KEYS:
        wait_until_answered(cache, key)


def wait_until_answered(cache: EntraRedisCache, key: str) -> None:
    """Ask for a key, again where the answer fails to come; see that it is right."""
    answers: list[object] = []

    def ask() -> bool:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            answers.append(cache.get(key))
        return bool(answers)

    wait_until(ask)
    assert answers == [value_of(key)]


@pytest.mark.parametrize("operation", ["get", "get_many", "set_many", "touch"])
def test_fault_at_every_byte_is_repeated(
    database: Database, proxy: Proxy, operation: str
) -> None:
    """By default such a fault costs the caller nothing."""
    cache = make_cache(proxy.url(database.url), identity=None)
    run, right = OPERATIONS[operation], RIGHT[operation]
    database.cache().set_many({key: value_of(key) for key in KEYS})
    run(cache)
    proxy.arm(10**9)
    assert run(cache) == right
    for after in range(0, proxy.replied, 5):
        proxy.arm(after)
        assert run(cache) == right


@pytest.mark.parametrize("operation", ["incr", "decr", "add"])
def test_never_applied_twice(database: Database, proxy: Proxy, operation: str) -> None:
    """Where Redis may have done it, the error says that this is unknown."""
    cache = make_cache(proxy.url(database.url), identity=None)
    direct = database.cache()
    direct.set("number", 10)
    direct.incr("number", 0)  # From now on the server knows the script.
    for after in range(3):
        with contextlib.suppress(ValueError):
            cache.get("number")
        proxy.arm(after)
        arguments = (f"new-{after}", after) if operation == "add" else ("number",)
        with pytest.raises(UncertainResultError, match="not retried"):
            getattr(cache, operation)(*arguments)
        if operation == "add":
            assert direct.get(f"new-{after}") == after
        else:
            change = 1 if operation == "incr" else -1
            assert direct.get("number") == 10 + change * (after + 1)


@pytest.mark.parametrize(
    ("run", "first", "repeated"),
    [
        (lambda cache: cache.delete("key"), True, False),
        (lambda cache: cache.touch("key", 0), True, False),
        (lambda cache: cache.set("key", 1, 0, xx=True), True, False),
        (lambda cache: cache.persist("key"), True, False),
        (lambda cache: cache.expire("key", -1), True, False),
        (lambda cache: cache.pexpire("key", 0), True, False),
        (lambda cache: cache.expire_at("key", 1), True, False),
        (lambda cache: cache.delete_pattern("k*"), 1, 0),
    ],
)
def test_what_a_repeat_finds(
    database: Database, proxy: Proxy, run: Any, first: Any, repeated: Any
) -> None:
    """It is told, whatever the first try did, whose reply was lost."""
    cache = make_cache(proxy.url(database.url), identity=None)
    direct = database.cache()
    direct.set("key", 1)
    cache.get("key")
    proxy.arm(10**9)
    assert run(cache) == first
    direct.set("key", 1)
    proxy.arm(proxy.replied - 3)
    assert run(cache) == repeated
    assert direct.ttl("key") in (0, None)


@pytest.mark.usefixtures("asgiref_thread")
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("stampede", [None, {}])
def test_get_or_set_whose_reply_is_lost(
    database: Database, proxy: Proxy, asynchronous: bool, stampede: Any
) -> None:
    """Whether the value was stored, or another one before, it reads anyway."""
    cache = make_cache(proxy.url(database.url), identity=None, stampede=stampede)
    direct = database.cache()
    computed: list[str] = []

    def compute() -> str:
        computed.append("value")
        proxy.arm(0)
        return "value"

    if asynchronous:
        assert asyncio.run(cache.aget_or_set("key", compute)) == "value"
    else:
        assert cache.get_or_set("key", compute) == "value"
    assert computed == ["value"]
    assert direct.get("key") == "value"


def test_connection_lost_before_is_no_uncertainty(
    database: Database, proxy: Proxy
) -> None:
    """What breaks before a command is sent is repeated, also for incr and add."""
    cache = make_cache(proxy.url(database.url), identity=None, db=1)
    database.cache(db=1).set("number", 1)
    assert cache.incr("number") == 2
    cache.get_pool().disconnect()
    # The reply to AUTH breaks off.
    proxy.arm(2)
    assert cache.incr("number") == 3
    cache.get_pool().disconnect()
    proxy.arm(2)
    assert cache.add("new", 1) is True


# -- interrupts


class Interrupted(Exception):  # noqa: N818 - none of the errors
    """What a signal handler raises."""


class Alarm:
    """Has a signal handler raise after so many seconds, in code that is tested."""

    def __init__(self) -> None:
        self._armed = False

    def __enter__(self) -> "Alarm":
        self._before = signal.signal(signal.SIGALRM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._disarm()
        signal.signal(signal.SIGALRM, self._before)

    def interrupt(self, action: Callable[[], object], after: float) -> bool:
        """Return whether an action was interrupted."""
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, after)
            action()
        except (Interrupted, UnboundLocalError):
            # redis-py 5.3 makes the second of the first in a constructor's finally.
            return True
        finally:
            self._disarm()
        return False

    def _disarm(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._armed and _is_tested(frame):
            self._armed = False
            raise Interrupted
        # Again in a moment, if it is still wanted then.
        signal.setitimer(signal.ITIMER_REAL, 1e-4 if self._armed else 0)


def _is_tested(frame: FrameType | None) -> bool:
    """Whether what is interrupted is the package's code or redis-py's.

    Python prints what a __del__ raises, and coverage's own code takes no interrupts.
    """
    if frame is None or frame.f_globals["__name__"].split(".")[0] not in (
        "django_entra_redis",
        "redis",
    ):
        return False
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return "__del__" not in names


@pytest.mark.filterwarnings(
    # redis-py does not close a socket that it was interrupted on opening; Python does.
    "ignore:unclosed <socket:ResourceWarning"
)
@pytest.mark.parametrize("operation", ["get", "get_many", "set_many"])
@pytest.mark.parametrize("connected", [True, False])
def test_interrupted_anywhere(
    database: Database, operation: str, connected: bool
) -> None:
    """A signal handler that raises, anywhere, has no reply taken for another's."""
    # As text: hiredis 3.5 turns a number into text without a look at whether that
    # worked, and crashes the process when a signal handler has raised meanwhile.
    cache = database.cache(max_connections=3, pool_timeout=PATIENCE, db="2")
    database.cache(db=2).set_many({key: value_of(key) for key in KEYS})
    database.cache().set_many(dict.fromkeys(KEYS, "another database's"))
    run = functools.partial(OPERATIONS[operation], cache)
    # Python 3.14 may leave a lock taken for ever that it is interrupted on acquiring
    # (github.com/python/cpython/issues/148874): not one that other threads need.
    run()

    def once(turn: int) -> bool:
        if not connected:
            cache.get_pool().disconnect()
        delay = (turn + 1) * (2e-6 if connected else 8e-6)
        interrupted = alarm.interrupt(run, delay)
        gc.collect(0)
        for key in KEYS:
            assert cache.get(key) == value_of(key)
        return interrupted

    with Alarm() as alarm:
        # In one line: an interrupt has coverage lose its place in what called this.
        assert any([once(turn) for turn in range(250)]) and all_released(cache)  # noqa: C419, PT018


def all_released(cache: EntraRedisCache) -> bool:
    """Return whether no connection counts as in use, nor more than there may be."""
    gc.collect()
    idle, used = cache.get_pool().counts()
    return bool(idle <= 3 and used == 0)


# -- losses under load


def test_all_connections_dropped_again_and_again(database: Database) -> None:
    """What is safe to repeat is; what is not is never applied twice."""
    cache = database.cache()
    user = parse_url(database.url)["username"]
    me = database.admin.execute_command("CLIENT", "ID")
    cache.set("number", 0)
    done = threading.Event()
    counted = [0, 0]

    def work(number: int) -> None:
        key = f"key-{number}"
        while not done.is_set():
            cache.set(key, number)
            assert cache.get(key) == number
            assert cache.touch(key, 100)
            assert cache.touch(key, None)
            assert cache.has_key(key)
            assert cache.set_many({key: number, f"{key}-2": number}) == []
            assert cache.get_many([key, f"{key}-2"]) == {
                key: number,
                f"{key}-2": number,
            }
            cache.delete(f"{key}-2")
            cache.delete_many([f"{key}-2"])

    def count() -> None:
        while not done.is_set():
            try:
                cache.incr("number")
                counted[0] += 1
            except UncertainResultError:
                counted[1] += 1

    def went_on(seen: int) -> bool:
        commands = database.received("total_commands_processed")
        return commands > seen + 400 or any(future.done() for future in futures)

    with ThreadPoolExecutor(5) as executor:
        futures = [executor.submit(work, number) for number in range(4)]
        futures.append(executor.submit(count))
        for _ in range(20):
            commands = database.received("total_commands_processed")
            database.admin.execute_command(
                "CLIENT", "KILL", "USER", user, "SKIPME", "yes"
            )
            wait_until(functools.partial(went_on, commands))
        done.set()
        for future in futures:
            future.result(PATIENCE)
    assert me == database.admin.execute_command("CLIENT", "ID")
    succeeded, uncertain = counted
    assert succeeded
    assert succeeded <= cache.get("number") <= succeeded + uncertain


def test_dropped_by_the_emulator(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an identity too, a server that drops its connections costs no error."""
    with let_in(emulator, monkeypatch):
        cache = make_cache(emulator.redis_url, ssl_ca_certs=str(emulator.ca_file))
        cache.set("key", 0)
        for turn in range(10):
            emulator.drop_connections()
            cache.set("key", turn)
            emulator.drop_connections()
            assert cache.get("key") == turn
        assert len(emulator.requests) == 1


def start_any(folder: Path, lines: list[str]) -> Database:
    """Run the first redis-server that takes these lines of configuration."""
    for executable in find_servers():
        with contextlib.suppress(ServerError):
            return Database(folder, executable, lines)
    lacks("no redis-server with TLS")  # pragma: no cover - a machine has one or not


@pytest.fixture(scope="module")
def limited(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Database, dict[str, tuple[str, dict[str, Any]]]]]:
    """Run a server that takes values of a megabyte; give its addresses, TLS's, too."""
    folder = tmp_path_factory.mktemp("limited")
    authority, port = CertificateAuthority(), free_port()
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "server.pem").write_bytes(authority.server_pem("localhost"))
    lines = [
        "proto-max-bulk-len 1mb",
        f"tls-port {port}",
        f"tls-cert-file {folder / 'server.pem'}",
        f"tls-key-file {folder / 'server.pem'}",
        f"tls-ca-cert-file {folder / 'ca.pem'}",
        "tls-auth-clients no",
    ]
    running = start_any(folder, lines)
    trust = {"ssl_ca_certs": str(folder / "ca.pem")}
    secret = f"{running.url.partition('//')[2].partition('@')[0]}"
    urls = {
        "TCP": (running.url, {}),
        "TLS": (f"rediss://{secret}@localhost:{port}", trust),
    }
    yield running, urls
    registry.reset()
    running.stop()


@pytest.mark.parametrize("transport", ["TCP", "TLS"])
@pytest.mark.parametrize("way", ["set", "add", "aset"])
@pytest.mark.parametrize("size", [1_100_000, 16_000_000])
def test_a_value_over_the_servers_limit(
    limited: tuple[Database, dict[str, tuple[str, dict[str, Any]]]],
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
    way: str,
    size: int,
) -> None:
    """The server's own words are told, and the value is sent once."""
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    server, urls = limited
    url, options = urls[transport]
    cache = make_cache(url, identity=None, **options)
    cache.set("key", "small")
    asyncio.run(cache.aset("key", "small"))
    connections = server.received()
    call = functools.partial(getattr(cache, way), "key", "x" * size)
    # Behind TLS, a loop's transport may be quicker to write than to read what the
    # server says, so that it is sent again; on a busy machine it may be so each time.
    lossy = (transport, way) == ("TLS", "aset")
    errors = (redis.ResponseError, redis.ConnectionError)[: 1 + lossy]
    with pytest.raises(errors, match="invalid bulk length" + "|closed" * lossy):
        _ = asyncio.run(call()) if way == "aset" else call()
    # One more where the other loop had its own.
    more = 4 if lossy else way.startswith("a")
    assert server.received() <= connections + more
    assert cache.get("key") == "small"
    registry.reset()


@pytest.mark.parametrize("transport", ["TCP", "TLS"])
@pytest.mark.parametrize("way", ["set_many", "aset_many"])
@pytest.mark.parametrize(
    ("before", "size"),
    # The last does not fit into the socket's buffers: it is refused while it is sent.
    [(1, 1_100_000), (800, 1_100_000), (1, 16_000_000)],
)
def test_a_batch_with_a_value_over_the_servers_limit(
    limited: tuple[Database, dict[str, tuple[str, dict[str, Any]]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    transport: str,
    way: str,
    before: int,
    size: int,
) -> None:
    """What comes before it is set, the rest is told as refused, and it is sent once.

    Unless the server's words are lost: Linux may hold a reply back while the one before
    it is on its way, and drops it when the server then closes the connection.
    """
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    server, urls = limited
    url, options = urls[transport]
    cache = make_cache(url, identity=None, ignore_exceptions=True, **options)
    server.admin.flushall()
    cache.set("key", "small")
    small = {f"small-{number}": "x" * 1000 for number in range(before)}
    data = {**small, "large": "x" * size, "after": 1}
    calls = server.calls("set")
    refused = getattr(cache, way)(data)
    refused = asyncio.run(refused) if way == "aset_many" else refused
    # Behind TLS a loop's transport may have read nothing of the server's words.
    lost = refused != ["large", "after"]
    may_be_lost = (transport, way) == ("TLS", "aset_many")
    assert may_be_lost or not lost
    assert lost or cache.get_many(list(data)) == small
    attempts, rest = divmod(server.calls("set") - calls, before)
    assert lost or rest == 0
    assert attempts <= (4 if may_be_lost or before > 1 else 1)
    assert lost or "invalid bulk length" in caplog.text
    assert lost or "can't be used" not in caplog.text


# -- a replica in place of the primary


def test_read_only(
    database: Database, redis_server: str, tmp_path_factory: Any
) -> None:
    """A server that has become a replica is left, and asked for again."""
    replica = Database(tmp_path_factory.mktemp("replica"), redis_server)
    proxy = Proxy(replica.address)
    try:
        cache = make_cache(
            proxy.url(replica.url),
            identity=None,
            retry=Retry(NoBackoff(), 1, (redis.ReadOnlyError,)),
        )
        assert cache.get("key") is None
        replica.admin.replicaof(*database.address)
        before = proxy.connections
        with pytest.raises(redis.ReadOnlyError):
            cache.set("key", 1)
        assert proxy.connections == before + 1
        with pytest.raises(redis.ReadOnlyError):
            recovered(lambda: cache.set_many({"key": 1}))
        assert proxy.connections == before + 3
        with pytest.raises(redis.ReadOnlyError):
            recovered(lambda: cache.add("key", 1))
        assert proxy.connections == before + 5
        with pytest.raises(redis.ReadOnlyError):
            recovered(cache.clear)
        # It is the primary again: nothing is to be done.
        replica.admin.replicaof("NO", "ONE")
        recovered(lambda: cache.set("key", 1))
        assert cache.incr("key") == 2
    finally:
        registry.reset()
        proxy.close()
        replica.stop()


# -- the retry policy


class Flaky(redis.Connection):
    """Each try to connect fails in a way of its own, until there is none left."""

    failures: list[Exception] = []  # noqa: RUF012 - set anew by each test

    def on_connect(self) -> None:
        """Fail, or go on."""
        if Flaky.failures:
            raise Flaky.failures.pop(0)
        super().on_connect()  # type: ignore[no-untyped-call]

    def on_connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Fail, or go on: what redis-py 6.2 and newer calls."""
        if Flaky.failures:
            raise Flaky.failures.pop(0)
        super().on_connect_check_health(*args, **kwargs)


@pytest.mark.parametrize(
    ("options", "failures", "succeeds"),
    [
        pytest.param({}, [redis.ConnectionError()] * 3, True, id="default"),
        pytest.param({}, [redis.ConnectionError()] * 4, False, id="no more than that"),
        pytest.param({}, [redis.TimeoutError()], False, id="no timeout by default"),
        pytest.param(
            {"retry_on_timeout": True}, [redis.TimeoutError()], True, id="timeout"
        ),
        pytest.param(
            {"retry_on_error": [redis.exceptions.OutOfMemoryError]},
            [redis.exceptions.OutOfMemoryError()],
            True,
            id="an error of one's choice",
        ),
        pytest.param(
            {}, [redis.exceptions.OutOfMemoryError()], False, id="another error"
        ),
        pytest.param(
            {"retry": Retry(NoBackoff(), 0)},
            [redis.ConnectionError()],
            False,
            id="none",
        ),
        pytest.param(
            {"retry": Retry(NoBackoff(), 5)},
            [redis.ConnectionError()] * 5,
            True,
            id="more",
        ),
    ],
)
@pytest.mark.parametrize("operation", ["get", "set_many", "add"])
def test_retry(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    failures: list[Exception],
    succeeds: bool,
    operation: str,
) -> None:
    """redis-py's retry options decide what is repeated, and how often."""
    monkeypatch.setattr(Flaky, "failures", list(failures))
    cache = database.cache(connection_class=Flaky, **options)
    operations: dict[str, Callable[[], object]] = {
        "get": lambda: cache.get("key"),
        "set_many": lambda: cache.set_many({"key": 1}),
        "add": lambda: cache.add("key", 1),
    }
    if succeeds:
        operations[operation]()
    else:
        with pytest.raises(type(failures[0])):
            operations[operation]()
    assert Flaky.failures == []


# -- scripts refused


def test_scripts_refused(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Without scripting incr goes a slower way, found once for all threads."""
    url = database.url_of("unscripted", "+@all -@scripting ~* &*")

    def count(_: int) -> int:
        # One for each thread, as Django has it.
        return make_cache(url, identity=None).incr("number")

    database.cache().set("number", 0)
    with caplog.at_level(logging.WARNING, "django_entra_redis"):
        first = count(0)
        with ThreadPoolExecutor(4) as executor:
            assert sorted([first, *executor.map(count, range(9))]) == [*range(1, 11)]
        with pytest.raises(ValueError, match=":1:missing"):
            make_cache(url, identity=None).incr("missing")
    assert len(caplog.records) == 1
    assert "two round trips" in caplog.text
    assert database.admin.exists(":1:missing") == 0


def test_other_refusals_are_errors(database: Database) -> None:
    """Only a refused script has a way around it."""
    cache = database.cache()
    cache.set("text", "not a number")
    with pytest.raises(redis.ResponseError, match="not an integer"):
        cache.incr("text")
    narrow = make_cache(database.url_of("narrow", "+@all ~other* &*"), identity=None)
    with pytest.raises(redis.ResponseError, match=r"(?i)permission"):
        narrow.incr("text")
    with pytest.raises(redis.ResponseError, match=r"(?i)permission"):
        narrow.touch("text", None)


def test_server_that_loads(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says that it did nothing is asked again, also for incr."""
    cache = database.cache(connection_class=Loading)
    cache.set("number", 1)
    monkeypatch.setattr(Loading, "answers", 1)
    assert cache.incr("number") == 2
    assert Loading.answers == 0


class Loading(redis.Connection):
    """Answers as a server does that is reading its data; a real one is too quick."""

    answers = 0

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command, unless it is to be refused."""
        if not Loading.answers:
            super().send_packed_command(  # type: ignore[no-untyped-call]
                *args, **kwargs
            )

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read the reply."""
        if Loading.answers:
            Loading.answers -= 1
            raise redis.BusyLoadingError("Redis is loading the dataset in memory")
        return super().read_response(*args, **kwargs)


# -- how connections introduce themselves


def test_driver(database: Database, proxy: Proxy) -> None:
    """Connections say that they are Django's, unless OPTIONS have another name."""
    other: dict[str, Any] = (
        {"driver_info": None}
        if hasattr(redis, "DriverInfo")
        else {"lib_name": None, "lib_version": None}
    )
    url = proxy.url(database.url)
    make_cache(url, identity=None, **other).get("key")
    assert b"SETINFO" not in proxy.requested
    make_cache(url, identity=None).get("key")
    assert b"django_v" in proxy.requested


def test_get_client(database: Database) -> None:
    """redis-py's own client is there for what Django's cache API does not have."""
    client = database.cache().get_client("key")
    assert client.ping()
    assert client.connection_pool is database.cache().get_pool()


def test_get_client_with_replicas(database: Database) -> None:
    """With several servers a writing client is the first one's."""
    cache = make_cache(
        [database.url, f"{database.url}?db=1", f"{database.url}?db=2"], identity=None
    )
    writer = cache.get_client(write=True)
    assert writer.connection_pool is cache.get_pool()
    assert cache.get_client("key") is not writer
