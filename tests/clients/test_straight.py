"""The straight path beside the general one: the same bytes, answers and errors."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.http import QueryDict
from django.utils.datastructures import MultiValueDict

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.clients.straight import GeneralPath, StraightPath
from django_entra_redis.connections import exchanger, registry
from django_entra_redis.connections.pool import ConnectionPool
from django_entra_redis.exceptions import InvalidReplyError, UncertainResultError
from emulator import Emulator
from tests.support.caches import Database, Proxy, let_in, make_cache, wait_until

Do = Callable[[BaseCache], Any]

MISSING = object()
NONE = b"$-1\r\n"
VALUES: dict[str, Any] = {
    "int": 7,
    "negative": -5,
    "big": 2**70,
    "bool": True,
    "none": None,
    "text": "über",
    "bytes": b"\x00\xff\r\n",
    "dict": {"a": [1, (2, 3)]},
    "long": "x" * 200_000,
}


def timed(name: str, timeout: Any, cache: BaseCache) -> Any:
    """Do what takes a timeout."""
    arguments = ["key"] if name == "touch" else ["key", {"new": 1}]
    return getattr(cache, name)(*arguments, timeout)


def conditional(word: str, timeout: Any, cache: Any) -> Any:
    """Set a key under a condition."""
    return cache.set("key", 9, timeout, **{word: True})


def timed_anew(name: str, amount: Any, cache: Any) -> Any:
    """Change when a key expires, and see whether that has been done."""
    return getattr(cache, name)("key", amount), cache.has_key("key")


def several(timeout: Any, cache: Any) -> Any:
    """Set several keys, and get them."""
    return cache.set_many(MANY, timeout), cache.get_many(MANY)


def delete_several(cache: Any) -> Any:
    """Delete several keys, and see what is left."""
    cache.delete_many(NAMES)
    return cache.get_many(NAMES)


def every(cache: Any) -> Any:
    """Do all that one can with a key that is not ASCII."""
    key = "schlüssel"
    return (
        cache.set(key, 1),
        cache.get(key),
        cache.has_key(key),
        cache.touch(key, 5),
        cache.incr(key),
        cache.delete(key),
    )


class Unpicklable:
    """Can't be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


NAMES = ["key", "schlüssel", "none", "a", "b"]
MANY: dict[str, Any] = {
    **dict(zip(NAMES, [7, {"b": 2}, None, "text", b"bytes"], strict=True)),
    "key2": 2**70,
}
#: Operations on one key, each of which is done in each state of that key.
OPERATIONS: dict[str, Do] = {
    "get": lambda cache: cache.get("key"),
    "get with a default": lambda cache: cache.get("key", MISSING),
    "has_key": lambda cache: cache.has_key("key"),
    "delete": lambda cache: cache.delete("key"),
    "incr": lambda cache: cache.incr("key"),
    "incr by": lambda cache: cache.incr("key", -2),
    "decr": lambda cache: cache.decr("key", 2**40),
    **{
        f"{name} {timeout}": partial(timed, name, timeout)
        for name in ("set", "add", "touch")
        for timeout in (None, 0, -1, 5, 300.9)
    },
    **{
        f"set {word} {timeout}": partial(conditional, word, timeout)
        for word in ("nx", "xx")
        for timeout in (None, 0, 5)
    },
    "another version": lambda cache: cache.get("key", version=2),
    "a key that is not ASCII": every,
    "get_many": lambda cache: cache.get_many(NAMES),
    "get_many of numbers": lambda cache: (
        cache.set_many(dict.fromkeys(NAMES, 5)),
        cache.get_many([*NAMES, "key2"]),
        cache.get_many(NAMES),
        cache.incr("key", -7),
        cache.get_many(NAMES),
        cache.get_many(NAMES[::-1]),
    ),
    "get_many of long names": lambda cache: cache.get_many(["key", "k" * 240]),
    "get_many of one": lambda cache: cache.get_many(["key"]),
    "get_many of none": lambda cache: cache.get_many([]),
    **{
        f"set_many {timeout}": partial(several, timeout)
        for timeout in (None, 0, 5, 300.9)
    },
    "set_many of values that are given once": lambda cache: (
        cache.set_many(QueryDict("key=1&a=2&b=3")),
        cache.set_many(MultiValueDict({"none": [1], "key2": [2, 3]})),
        cache.get_many([*NAMES, "key2"]),
    ),
    "set_many of none": lambda cache: cache.set_many({}),
    "set_many of what can't be pickled": lambda cache: cache.set_many(
        {"key": 1, "other": Unpicklable()}
    ),
    "delete_many": delete_several,
    "delete_many of none": lambda cache: cache.delete_many([]),
    "timeouts": lambda cache: [
        (getattr(cache, name)("key"), getattr(cache, name)("none"))
        for name in ("ttl", "persist", "ttl", "pttl")
    ],
    **{
        f"{name} {word}": partial(timed_anew, name, amount)
        for name, word, amount in (
            *(("expire", "soon", 5), ("expire", "at once", -1)),
            ("expire", "by default", DEFAULT_TIMEOUT),
            *(("pexpire", "soon", 5000), ("pexpire_at", "once", 2**42)),
            *(("expire_at", "once", 2**32), ("expire_at", "before", 1)),
        )
    },
    "what can't be pickled": lambda cache: cache.set("key", threading.Lock()),
}


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
    registry.reset()
    running.close()


def general(cache: EntraRedisCache) -> EntraRedisCache:
    """Have a cache take the general path."""
    vars(cache)["_single_key"] = GeneralPath(cache._cache)
    return cache


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the commands that go along the straight path from now on."""
    sent: list[bytes] = []
    exchange = exchanger.Exchanger.exchange

    def note(self: exchanger.Exchanger, packed: bytes, count: int = 0) -> Any:
        sent.append(packed)
        return exchange(self, packed, count)

    monkeypatch.setattr(exchanger.Exchanger, "exchange", note)
    return sent


def outcome(do: Do, cache: EntraRedisCache) -> tuple[str, Any]:
    """Return what an operation returns, or raises."""
    try:
        return "returned", do(cache)
    except Exception as error:
        return type(error).__name__, str(error)


# -- equal to the general path


@pytest.mark.parametrize("name", OPERATIONS)
def test_both_paths(database: Database, proxy: Proxy, name: str) -> None:
    """In each state of the key: the same bytes, the same answer, the same key after."""
    url = proxy.url(database.url)
    states: list[Any] = [MISSING, *VALUES.values()]
    caches = make_cache(url, identity=None), general(make_cache(url, identity=None))
    caches[0].get("connected")
    database.cache().set("number", 1)
    database.cache().incr("number")  # The server knows the script.
    for state in states:
        found, lives = [], []
        for cache in caches:
            database.cache().delete("key")
            if state is not MISSING:
                database.cache().set("key", state, 100)
            proxy.requested = b""
            said = outcome(OPERATIONS[name], cache)
            left = database.admin.get(":1:key")
            lives.append(database.admin.ttl(":1:key"))
            found.append((said, proxy.requested, left))
        assert found[0] == found[1]
        # Between the two a second may have passed, also on an idle machine.
        assert min(lives) >= 0 or lives[0] == lives[1]
        assert abs(lives[0] - lives[1]) <= 2


def test_it_is_taken(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of these go along it, from the second command of a connection on."""
    sent = counted(monkeypatch)
    cache = database.cache()
    cache.set("key", 1)
    assert sent == []
    cache.set("key", 1)
    cache.get("key")
    cache.add("key", 1)
    cache.add("key", 1, 0)
    cache.incr("key")
    cache.touch("key", 5)
    cache.has_key("key")
    cache.set("key", 1, xx=True)
    cache.delete("key")
    assert cache.set_many({"key": 1, "other": 2}) == []
    assert cache.get_many(["key", "other", "none"]) == {"key": 1, "other": 2}
    assert cache._single_key.set_many([], {}, 5) == []
    cache.delete_many(["key", "other"])
    names = [packed.split(b"\r\n")[2] for packed in sent]
    assert names == [
        *(b"SET", b"GET", b"SET", b"EXISTS", b"EVALSHA"),
        *(b"EXPIRE", b"EXISTS", b"SET", b"DEL", b"SET", b"MGET", b"DEL"),
    ]
    cache.set_many({"key": "x" * 600_000, "other": 1})
    assert len(cache.get("key")) == 600_000
    assert len(sent) == len(names) + 1
    cache.set("key", "x" * 300_000)
    assert (cache.ttl("key"), cache.persist("key"), cache.expire("key", 5)) == (
        *(300, True, True),
    )
    assert len(sent) == len(names) + 5


@pytest.mark.parametrize("size", [10, 32 * 1024, 100_000, 1_000_000, 20_000_000])
@pytest.mark.parametrize("tls", [False, True])
def test_values_of_any_size(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    tls: bool,
) -> None:
    """What comes and goes in many pieces is whole, with TLS and an identity too."""
    with let_in(emulator, monkeypatch):
        sent = counted(monkeypatch)
        options = {"ssl_ca_certs": str(emulator.ca_file)} if tls else {}
        url = emulator.redis_url if tls else emulator.plaintext_url
        cache = make_cache(url, **options)
        value = bytes(range(251)) * (size // 251) + b"\r\n"
        for key in ("first", "second"):
            cache.set(key, value)
            assert cache.get(key) == value
        assert cache.get("none") is None
        assert cache.incr("first-number", 1) if cache.add("first-number", 1) else 0
        assert len(sent) >= 5


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, StraightPath),
        ({"socket_timeout": None}, StraightPath),
        ({"decode_responses": True}, StraightPath),
        ({"retry_on_timeout": True}, StraightPath),
        ({"ignore_exceptions": True}, GeneralPath),
        ({"ignore_exceptions": True, "socket_timeout": None}, GeneralPath),
        ({"protocol": 3}, GeneralPath),
        ({"health_check_interval": 5}, GeneralPath),
        ({"parser_class": "redis._parsers._RESP2Parser"}, GeneralPath),
        ({"pool_class": "redis.BlockingConnectionPool"}, GeneralPath),
        ({"pool_class": type("Own", (ConnectionPool,), {})}, GeneralPath),
        (
            {"connection_class": type("Own", (redis.connection.Connection,), {})},
            GeneralPath,
        ),
        ({"redis_connect_func": lambda connection: connection.on_connect()}, None),
    ],
)
def test_who_takes_it(
    database: Database, options: dict[str, Any], kind: type[Any] | None
) -> None:
    """Whatever a command and a reply are not enough for takes the general path, and
    both do."""
    cache = database.cache(**options)
    assert type(cache._cache.single_key) is (kind or GeneralPath)
    for _ in range(2):
        cache.set("key", "value")
        assert cache.get("key") == "value"
        assert cache.set_many({"key": 1, "other": 2}) == []


def test_replicas(database: Database) -> None:
    """One that reads may be asked straight; of several one is drawn each time."""
    urls = [f"{database.url}?db={number}" for number in range(3)]
    for number, kind in ((2, StraightPath), (3, GeneralPath)):
        cache = make_cache(urls[:number], identity=None)
        assert type(cache._cache.single_key) is kind
        make_cache(urls[1], identity=None).set("key", "replica")
        make_cache(urls[2], identity=None).set("key", "replica")
        for _ in range(3):
            cache.set("key", "primary")
            assert cache.get("key") == "replica"


# -- faults


def test_cut_at_every_byte(database: Database, proxy: Proxy) -> None:
    """Wherever the connection breaks, the answer is the right one, or the error tells
    that nobody knows."""
    cache = make_cache(proxy.url(database.url), identity=None)
    direct = database.cache()
    direct.set("key", {"a": 1})
    direct.set("number", 1)
    direct.incr("number")
    whole = len(b"$%d\r\n\r\n") + len(database.admin.get(":1:key"))
    for after in range(whole):
        cache.get("connected")
        proxy.arm(after)
        assert cache.get("key") == {"a": 1}
        proxy.disarm()
    for after in range(4):
        cache.get("connected")
        before = direct.get("number")
        proxy.arm(after)
        with pytest.raises(UncertainResultError, match="EVALSHA"):
            cache.incr("number")
        assert direct.get("number") == before + 1


class Peer:
    """A server that answers each command as it is told to."""

    def __init__(self, *answers: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answers = list(answers)
        self.connections = 0
        self._open: list[socket.socket] = []
        self.cache = self.make()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def make(self, **options: Any) -> EntraRedisCache:
        """Return a cache that says nothing as it connects."""
        port = self._listener.getsockname()[1]
        newer = hasattr(redis, "DriverInfo")
        silent = dict.fromkeys(
            ["driver_info"] if newer else ["lib_name", "lib_version"]
        )
        options = {"identity": None, **silent, **options}
        return make_cache(f"redis://127.0.0.1:{port}", **options)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while self._answers:
                served, _ = self._listener.accept()
                self.connections += 1
                self._open.append(served)
                while self._answers and served.recv(65536):
                    served.sendall(self._answers.pop(0))

    def wait_for(self, connections: int) -> None:
        """Wait until so many connections have been made."""
        wait_until(lambda: self.connections == connections)

    def close(self) -> None:
        """Close all."""
        registry.reset()
        self._answers.clear()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for one in self._open:
            one.close()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Give what makes such servers."""
    made: list[Peer] = []

    def make(*answers: bytes) -> Peer:
        made.append(Peer(*answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("begun", [b"", b"$5\r\nab", b"$40000\r\nabc"])
def test_silence(peer: Callable[..., Peer], begun: bytes) -> None:
    """A timeout is the same error as on the general path, and is not tried again."""
    found = []
    for make in (lambda cache: cache, general):
        server = peer(NONE, begun, NONE)
        cache = make(server.make(socket_timeout=0.5))
        assert cache.get("connected") is None
        found.append(outcome(lambda cache: cache.get("key"), cache))
        # The second is for another opinion on whether the server is down.
        server.wait_for(2)
    assert found[0] == found[1]
    assert found[0][0] == "TimeoutError"


def test_a_server_that_does_not_read(peer: Callable[..., Peer]) -> None:
    """A value that it does not take in is a timeout, too."""
    server = peer(NONE)
    cache = server.make(socket_timeout=0.2)
    assert cache.get("key") is None
    with pytest.raises(redis.TimeoutError, match="writing"):
        cache.set("key", b"x" * 30_000_000)


@pytest.mark.parametrize("more", [b"$1\r\n5\r\n", b"$1\r\n", b"-ERR unasked\r\n"])
def test_an_unasked_reply_is_no_answer(peer: Callable[..., Peer], more: bytes) -> None:
    """Neither a whole one nor a part: the connection that it came on is given up."""
    server = peer(NONE, NONE + more, NONE, NONE)
    for number in range(4):
        assert server.cache.get("key") is None
        assert server.connections == (1 if number < 2 else 2)


@pytest.mark.parametrize(
    "answer",
    [
        b"~1\r\n:1\r\n",
        b"!\r\n",
        b"*1\r\n:1\r\n",
        b":1\r\n",
        b"-MOVED nowhere\r\n",
        b"$-x\r\n" + b"x" * 40_002,
        b"$40000x\r\n" + b"x" * 40_002,
    ],
)
def test_what_is_no_reply(peer: Callable[..., Peer], answer: bytes) -> None:
    """It is tried again on another connection, as on the general path, and in the end
    is an error."""
    server = peer(NONE, answer, NONE)
    assert server.cache.get("key") is None
    assert server.cache.get("key") is None
    assert server.connections == 2
    server = peer(NONE, *[answer] * 4)
    assert server.cache.get("key") is None
    with pytest.raises(InvalidReplyError):
        server.cache.get("key")
    server = peer(NONE, answer)
    assert server.cache.get("key") is None
    if answer[:1] != b":":
        with pytest.raises(UncertainResultError):
            server.cache.incr("key")


def test_a_key_that_is_not_set(peer: Callable[..., Peer]) -> None:
    """Redis may say so without an error, though not to this package's commands."""
    server = peer(NONE, NONE, NONE)
    assert server.cache.get("key") is None
    assert server.cache.set("key", 1, 5) is None
    assert server.cache.get("key") is None
    assert server.connections == 1


def test_an_error_reply(peer: Callable[..., Peer]) -> None:
    """One that is about its command leaves the connection as it is."""
    server = peer(NONE, b"-ERR no\r\n", NONE)
    assert server.cache.get("key") is None
    with pytest.raises(redis.ResponseError, match="no"):
        server.cache.get("key")
    assert server.cache.get("key") is None
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
    ],
)
def test_refusals_of_a_server_that_changes(
    peer: Callable[..., Peer], answer: bytes
) -> None:
    """They are tried again on another connection, as often as elsewhere."""
    server = peer(NONE, answer, b"+OK\r\n")
    assert server.cache.get("key") is None
    server.cache.set("key", 1)
    assert server.connections == 2
    server = peer(NONE, answer, answer, answer, answer, NONE)
    assert server.cache.get("key") is None
    with pytest.raises(redis.RedisError):
        server.cache.set("key", 1)
    assert server.connections == 4


def test_a_cluster_is_told(peer: Callable[..., Peer]) -> None:
    """A redirection names the other backend, as on the general path."""
    server = peer(NONE, b"-MOVED 5 127.0.0.1:7000\r\n")
    assert server.cache.get("key") is None
    with pytest.raises(redis.ResponseError, match="EntraRedisClusterCache"):
        server.cache.get("key")


def test_an_interrupt_leaves_no_reply_behind(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a reply is under way: nobody gets that reply."""
    cache = database.cache()
    cache.set("a", "a")
    cache.set("b", "b")
    connection = cache.get_pool().idle[-1]

    def interrupted() -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(connection.exchanger, "_read_some", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.get("a")
    assert connection.exchanger is None
    assert cache.get("b") == "b"
    assert cache.get("b") == "b"


def test_a_connection_that_is_waited_for(database: Database) -> None:
    """The thread that waits gets it, when the exchange has ended."""
    cache = database.cache(max_connections=1)
    cache.set("key", 1)
    pool = cache.get_pool()
    (connection,) = pool.idle
    read, came = connection.exchanger._read_some, []
    thread = threading.Thread(target=lambda: came.append(pool.check_out()))

    def while_a_thread_waits() -> bytes:
        thread.start()
        wait_until(lambda: pool.queue)
        data: bytes = read()
        return data

    connection.exchanger._read_some = while_a_thread_waits
    assert cache.get("key") == 1
    thread.join()
    assert came == [connection]
    pool.release(connection)


def test_connections_that_are_closed_meanwhile(database: Database) -> None:
    """The one that is in use is closed when its exchange has ended."""
    cache = database.cache()
    cache.set("key", 1)
    pool = cache.get_pool()
    (connection,) = pool.idle
    read = connection.exchanger._read_some

    def while_all_are_closed() -> bytes:
        pool.disconnect()
        data: bytes = read()
        return data

    connection.exchanger._read_some = while_all_are_closed
    assert cache.get("key") == 1
    assert connection.exchanger is None
    assert pool.idle == [connection]
    assert cache.get("key") == 1


def test_scripts_are_refused(database: Database) -> None:
    """Then a sum takes two commands, from then on."""
    url = database.url_of("plain", "+@all -eval -evalsha ~* &*")
    cache = make_cache(url, identity=None)
    cache.set("key", 1)
    for number in range(2, 6):
        assert cache.incr("key") == number
    with pytest.raises(ValueError, match="not found"):
        cache.incr("missing")


def test_a_new_server_learns_the_script(database: Database) -> None:
    """After a failover it may know no script."""
    cache = database.cache()
    cache.set("key", 1)
    for number in range(2, 5):
        database.admin.script_flush()
        assert cache.incr("key") == number
        assert cache.incr("key", 0) == number


# -- several commands in one piece


OK = b"+OK\r\n"
REPLIES: dict[str, bytes] = {
    "well": OK * 3,
    "deleted": b":1\r\n:0\r\n" + OK,
    "all deleted": b":1\r\n:0\r\n:1\r\n",
    "refused": OK + b"-ERR no\r\n" + OK,
    "full": OK + b"-OOM command not allowed when used memory > 'maxmemory'.\r\n" + OK,
    "a replica": b"-READONLY You can't write.\r\n" * 3,
    "a node": OK + b"-MOVED 5 127.0.0.1:7000\r\n" + OK,
    "loading": b"-LOADING Redis is loading\r\n" * 3,
    "not answers": OK + b"$1\r\nx\r\n" + OK,
    "no replies": OK + b"!\r\n",
    "of RESP 3": OK + b"~1\r\n:1\r\n" + OK,
    "cut": OK + b"+O",
}


DATA = {"a": 1, "b": {"c": 2}, "d": "e"}


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize(
    "do",
    [lambda cache: cache.set_many(DATA), lambda cache: cache.delete_many(DATA)],
    ids=["set_many", "delete_many"],
)
def test_replies_to_several(peer: Callable[..., Peer], do: Do, name: str) -> None:
    """Both paths answer the same, whatever some of the replies are, and have connected
    as often."""
    found = []
    for make in (lambda cache: cache, general):
        server = peer(NONE, REPLIES[name], *[OK * 3] * 4)
        cache = make(server.make(socket_timeout=0.4))
        assert cache.get("connected") is None
        said, again = outcome(do, cache), outcome(do, cache)
        found.append((said, again, server.connections))
    assert found[0] == found[1]


def test_large_ones(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes and goes in several pieces is whole, with TLS and an identity too."""
    with let_in(emulator, monkeypatch):
        sent = counted(monkeypatch)
        cache = make_cache(emulator.redis_url, ssl_ca_certs=str(emulator.ca_file))
        data = {f"key{number}": "x" * number * 20 for number in range(200)}
        for _ in range(2):
            assert cache.set_many(data) == []
            assert cache.get_many(data) == data
        assert len(sent) == 3


def test_several_replies_in_pieces() -> None:
    """They are waited for, and have one deadline."""
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(0.2)
        tried = exchanger.make_exchanger(one, 0.2)
        assert tried is not None
        read, pieces = tried._read_some, [OK + b"+", b"OK\r\n+", b"OK\r\n"]

        def read_and_send() -> bytes:
            data: bytes = read()
            if pieces:
                other.sendall(pieces.pop(0))
            return data

        def write(packed: bytes) -> int:
            other.sendall(pieces.pop(0))
            return len(packed)

        tried._read_some = read_and_send
        tried._write = write
        assert tried.exchange(b"x", 3) == [b"OK"] * 3
        pieces = [OK]
        with pytest.raises(redis.TimeoutError):
            tried.exchange(b"x", 2)


# -- the socket


def test_a_reply_that_is_not_there_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux may tell of bytes that it then drops (select(2), "BUGS")."""
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(5)
        tried = exchanger.make_exchanger(one, 5.0)
        assert tried is not None
        poll = tried._poll
        # Nothing before the command is sent; then what is not there.
        told = [[], [(one.fileno(), select.POLLIN)]]

        def tell(timeout: float | None) -> Any:
            if told:
                return told.pop(0)
            other.sendall(OK)
            return poll(timeout)

        monkeypatch.setattr(tried, "_poll", tell)
        assert tried.exchange(b"x") == b"OK"


def test_sockets_of_greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's calls would have all greenlets wait; nor does each system poll."""
    one, other = socket.socketpair()
    with one, other:
        assert exchanger.make_exchanger(one, 1.0) is not None
        assert (
            exchanger.make_exchanger(type("Green", (), {"fileno": one.fileno})(), 1.0)
            is None
        )
        monkeypatch.delattr(select, "poll")
        assert exchanger.make_exchanger(one, 1.0) is None


def test_without_a_wire(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, every operation falls back."""
    cache = database.cache()
    monkeypatch.setattr(exchanger, "_MODULES", ())
    for number in range(3):
        cache.set("key", number)
        assert cache.get("key") == number


def test_a_poll_that_errs() -> None:
    """What is said to be there and is not, is waited for."""
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(5)
        tried = exchanger.make_exchanger(one, 5.0)
        assert tried is not None
        poll, times = tried._poll, []

        def early(timeout: float | None = None, /) -> list[tuple[int, int]]:
            times.append(timeout)
            if len(times) == 3:
                other.sendall(NONE)
            return [(0, 1)] if len(times) == 2 else poll(timeout)

        tried._poll = early
        assert tried.exchange(b"x") is None
        assert len(times) == 3


def test_a_socket_that_is_closed() -> None:
    """Whichever call meets it."""
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(5)
        tried = exchanger.make_exchanger(one, 5.0)
        assert tried is not None
        other.sendall(NONE)
        other.close()
        assert tried.exchange(b"x") is exchanger.UNSENT
        # From here on, it closes between the look and the command.
        poll = tried._poll

        def late(timeout: float | None = None, /) -> list[tuple[int, int]]:
            return poll(timeout) if timeout else []

        tried._poll = late
        with pytest.raises(redis.ConnectionError, match="writing"):
            tried.exchange(b"x")
        tried._write = len
        assert tried.exchange(b"x") is None
        with pytest.raises(redis.ConnectionError, match="closed by server"):
            tried.exchange(b"x")

        def reset() -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

        tried._read_some = reset
        with pytest.raises(redis.ConnectionError, match="reading"):
            tried.exchange(b"x")


@pytest.mark.parametrize("end", [b"\r\n", b"xx", b""])
def test_a_large_value_in_pieces(end: bytes) -> None:
    """It is whole where its end is where it should be."""
    one, other = socket.socketpair()
    value = bytes(range(256)) * 400
    with one, other:
        one.settimeout(5)
        tried = exchanger.make_exchanger(one, 5.0)
        assert tried is not None

        def answer() -> None:
            asked.append(other.recv(10))
            for piece in (b"$%d\r\n" % len(value) + value[:9], value[9:], end):
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)

        asked: list[bytes] = []
        thread = threading.Thread(target=answer)
        thread.start()
        if end == b"\r\n":
            assert tried.exchange(b"x") == value
        else:
            kinds = (InvalidReplyError, redis.ConnectionError)
            with pytest.raises(kinds[not end]):
                tried.exchange(b"x")
        thread.join()
        assert asked == [b"x"]


class Encrypted:
    """Stands in for a TLS socket of which nothing comes but what it is to give."""

    def __init__(self, sock: socket.socket, *pieces: bytes) -> None:
        self.fileno = sock.fileno
        self.pieces = list(pieces)
        # Whether it is asked for the first time, before anything is sent.
        self.quiet = False

    def write(self, data: bytes) -> int:
        """Take in a part of it, as a TLS socket may."""
        self.quiet = False
        return len(data) // 2

    def sendall(self, data: bytes) -> None:
        """Take in the rest, or time out."""
        if len(data) > 10:
            raise TimeoutError

    def pending(self) -> int:
        """Return how much has been decrypted already."""
        return 0 if self.quiet else len(self.pieces)

    def read(self, size: int) -> bytes:
        """Return some of it; nothing at first, as where a record is not whole yet."""
        if self.pieces[0] == b"nothing":
            self.pieces.pop(0)
            raise BlockingIOError
        return self.pieces.pop(0)

    def recv_into(self, buffer: memoryview) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([b"nothing", b":", b"5\r\n"], None),
        ([b"$40000\r\n123", b"nothing", b"4" * 39_997, b"\r\n"], None),
        ([b"$40000\r\n123", b""], redis.ConnectionError),
        ([b"$40000\r\n123"], redis.TimeoutError),
        ([b":", b""], redis.ConnectionError),
        ([b":"], redis.TimeoutError),
    ],
)
def test_pieces_of_tls(pieces: list[bytes], error: type[Exception] | None) -> None:
    """What has been decrypted needs no waiting; an end and silence are told."""
    one, other = socket.socketpair()
    with one, other:
        encrypted = Encrypted(one, *pieces)
        tried = exchanger.Exchanger(encrypted, 0.05, tls=True)
        assert tried.exchange(b"early") is exchanger.UNSENT
        encrypted.quiet = True
        if error is None:
            assert tried.exchange(b"x") in (5, b"123" + b"4" * 39_997)
        else:
            with pytest.raises(error):
                tried.exchange(b"x")


def test_a_command_that_is_not_taken_in() -> None:
    """That is a timeout, as redis-py has it."""
    one, other = socket.socketpair()
    with one, other:
        tried = exchanger.Exchanger(Encrypted(one), 0.05, tls=True)
        with pytest.raises(redis.TimeoutError, match="writing"):
            tried.exchange(b"x" * 100)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_first_of_all(database: Database, name: str) -> None:
    """Where there is no connection yet, any of them opens one."""
    found = []
    for make in (lambda cache: cache, general):
        registry.reset()
        database.admin.flushall()
        found.append(outcome(OPERATIONS[name], make(database.cache())))
    assert found[0] == found[1]


@pytest.mark.parametrize("timeout", [0.3, None])
@pytest.mark.parametrize("large", [True, False])
def test_a_reply_that_drips(large: bool, timeout: float | None) -> None:
    """One that comes a byte at a time has a deadline as a whole, if there is one."""
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(timeout)
        tried = exchanger.make_exchanger(one, timeout)
        assert tried is not None
        stop = threading.Event()

        def drip() -> None:
            other.recv(10)
            other.sendall(b"$40000\r\n" + b"x" * 5 if large else b"$40000\r\n")
            for _ in range(20):
                if stop.wait(0.05):
                    return
                other.sendall(b"x")
            other.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=drip)
        thread.start()
        kind = redis.TimeoutError if timeout else redis.ConnectionError
        with pytest.raises(kind):
            tried.exchange(b"x")
        stop.set()
        thread.join()
