"""Refusals of AUTH in whatever words: what was asked decides."""

import asyncio
import base64
import re
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import quote

import pytest
import redis
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from redis._parsers import _RESP2Parser, _RESP3Parser
from redis.connection import Connection, DefaultParser
from redis.exceptions import (
    AskError,
    AuthenticationError,
    NoPermissionError,
    ResponseError,
)

from django_entra_redis.cache import EntraRedisClusterCache
from django_entra_redis.clients.redirects import cluster_error
from django_entra_redis.commands.resp import is_malformed_redirect
from django_entra_redis.connections import connection, event_loops, refusals, registry
from django_entra_redis.connections.connection import connection_class
from django_entra_redis.connections.deadlines import bounded_parser
from django_entra_redis.connections.refusals import (
    _OTHER,
    _STATES,
    greeting_error,
    read_error,
    redacted,
    sent_password,
)
from django_entra_redis.credentials.reauthentication import SPREAD
from django_entra_redis.exceptions import TokenRefusedError
from emulator import Emulator
from tests.connections.test_connection import LIFE, Identity, ping
from tests.support.caches import let_in, make_cache
from tests.support.sites import ScriptedServer

#: How refusals have been worded, or might be.
WORDS = [
    "ERR WRONGPASS invalid username-password pair",  # dapr/components-contrib#3554
    "ERR WRONGPASS invalid username-password pair or user is disabled.",
    "ERR NOAUTH Authentication required.",
    "ERR invalid username-password pair",
    "ERR invalid password",
    "ERR AUTH failed: the token is not one of this cache's",
    "ERR wrong number of arguments for 'auth' command",
    "EXPIRED the token has run out",
    "NOPERM this user has no permissions",
    "NOPERM this user has no permissions to run the 'auth' command",
    "NOPERM User x has no permissions to run the 'AUTH' command",
    "ERR NOPERM not for this token",
    "ERR",
]
#: What a server may answer AUTH with that is no refusal.
OTHERS = {
    "LOADING Redis is loading the dataset in memory": redis.BusyLoadingError,
    "ERR LOADING Redis is loading the dataset in memory": redis.BusyLoadingError,
    "ERR max number of clients reached": redis.ConnectionError,
    "ERR max number of clients + cluster connections reached": redis.ConnectionError,
    "NOPERM this user has no permissions to run the 'hello' command": NoPermissionError,
    "ERR NOPERM this user has no permissions to run the 'select' command": (
        NoPermissionError
    ),
    "ERR Max clients reached": redis.ConnectionError,
    "ERR too many connections": redis.ConnectionError,
    "ERR Redis is loading the dataset in memory": redis.BusyLoadingError,
    "READONLY You can't write against a read only replica.": redis.ReadOnlyError,
    "CLUSTERDOWN The cluster is down": ResponseError,
    "ERR MASTERDOWN Link with MASTER is down": redis.BusyLoadingError,
    "BUSY Redis is busy running a script": redis.BusyLoadingError,
    "MISCONF Redis is configured to save RDB snapshots": redis.ReadOnlyError,
    "NOREPLICAS Not enough good replicas to write.": redis.ReadOnlyError,
    "NOPROTO unsupported protocol version": ResponseError,
    "ERR unknown command `HELLO`, with args beginning with: `3`": ResponseError,
}


def read(words: str) -> Exception:
    """Return what an error reply to AUTH is taken for, by redis-py and here."""
    parse: Callable[[str], Exception] = DefaultParser.parse_error
    errors = [parse(words), read_error(words)]
    one, other = (greeting_error("AUTH", error, 0, []) for error in errors)
    # Of some states of a server only this package knows.
    assert type(one) in (type(other), ResponseError, redis.exceptions.MasterDownError)
    return other


@pytest.mark.parametrize("words", WORDS)
def test_refusals(words: str) -> None:
    """Whatever a server answers AUTH with, it does not want the token."""
    assert type(read(words)) is AuthenticationError


@settings(deadline=None)
@given(
    st.from_regex(r"(ERR )?[A-Z]{2,12}", fullmatch=True),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
)
def test_any_words(code: str, words: str) -> None:
    """Also in words that nobody has thought of."""
    taken = {*DefaultParser.EXCEPTION_CLASSES, *_OTHER} - {"ERR", "WRONGPASS", "NOAUTH"}
    assume(taken.isdisjoint({code.split()[-1], words.split(" ")[0]}))
    assert type(read(f"{code} {words}")) is AuthenticationError


@pytest.mark.parametrize(("words", "kind"), OTHERS.items())
def test_other_errors(words: str, kind: type[Exception]) -> None:
    """What is plainly something else stays so."""
    error = read(words)
    assert isinstance(error, kind)
    assert not isinstance(error, AuthenticationError)


def test_quoted_token(emulator: Emulator) -> None:
    """A server that does not know HELLO quotes the first letters of the token."""
    token = emulator.issue_token()
    words = f"ERR unknown command `HELLO`, with args beginning with: `{token[:90]}`"
    assert str(read(words)) == "unknown command `HELLO`"
    assert str(read(f"ERR token {token} is wrong")) == "token *** is wrong"


#: A token that is no JWT, and the forms in which an error reply may quote it.
OPAQUE = "0paque.Secret-Tok3n_Value9xyzQW" * 40
FORMS: list[Callable[[str], str]] = [
    str,
    lambda token: base64.b64encode(token.encode()).decode(),
    lambda token: token.encode().hex(),
    lambda token: quote(base64.b64encode(token.encode())),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", ["AUTH", "HELLO", "CLIENT", "SELECT"])
@pytest.mark.parametrize("code", ["", "ERR ", "ERR WRONGPASS ", "NOAUTH ", "MOVED 1 "])
@pytest.mark.parametrize("words", ["bad {}", "max number of clients reached {}", "{}"])
def test_quoted_secrets(
    form: Callable[[str], str], command: str, code: str, words: str
) -> None:
    """Whatever they are and whichever command the reply is for, none is told."""
    reply = code + words.format(form(OPAQUE))
    error = greeting_error(command, read_error(reply), 0, [OPAQUE])
    told = repr((error, error.args, vars(error), error.__cause__, error.__context__))
    assert form(OPAQUE)[:40] not in told
    for word in {*_OTHER, *_STATES}:
        told = repr(greeting_error(command, read_error(f"{word} {reply}"), 0, [OPAQUE]))
        assert form(OPAQUE)[:40] not in told


@pytest.mark.parametrize("command", ["AUTH", "SELECT"])
@pytest.mark.parametrize("code", ["ERR", "LOADING", "READONLY", "NOPERM", "BUSY"])
def test_words_that_would_draw(command: str, code: str) -> None:
    """What a terminal would act on is not told, nor more than somebody would read."""
    words = f"{code} bad \x1b[2J\x1b]0;evil\x07 \u202e\u2028forged {'x y ' * 25000}"
    text = str(greeting_error(command, read_error(words), 0, []))
    assert text.isprintable()
    assert len(text) < 1000


@pytest.mark.parametrize("ending", ["", "\x1b", "é", "9" * 200])
def test_a_redirection_that_leads_nowhere(ending: str) -> None:
    """It is quoted if it is short and printable; what is said is no redirection."""
    for host in ("bad host", "h" * 75, "h" * 300):
        text = str(read_error(f"MOVED 12539 {host}:1234{ending}"))
        if not (host == "h" * 75 and not ending):
            assert is_malformed_redirect(text)
            assert not isinstance(cluster_error(ResponseError(text)), AskError)
        assert text.isprintable()
        assert len(text) < 110


#: Every class of redis-py that an error reply, or a lost connection, may have.
CLASSES = [
    kind
    for kind in vars(redis.exceptions).values()
    if isinstance(kind, type) and issubclass(kind, redis.RedisError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_the_class_stays(kind: type[redis.RedisError]) -> None:
    """Also of an error that quotes something; one that quotes nothing is the same."""
    one = kind("1 host:2")
    assert redacted(one, ["sesame"]) is one
    other = redacted(kind("1 sesame:2"), ["sesame"])
    if issubclass(kind, AskError):  # Its class could not read the address any more.
        assert str(other) == "MOVED 1 ***:2"
        assert type(other) is ResponseError
    else:
        assert str(other) == "1 ***:2"
        assert type(other) is kind


#: What makes a pattern with two repetitions look at the same letters again and again.
TEMPTING = ["max", "too many", "max ", "'", "'a", "a", "MAX number of", "'a' "]


@pytest.mark.parametrize("words", TEMPTING)
@pytest.mark.parametrize("code", ["ERR", "NOPERM", "ERR NOPERM", "ERR '", "NOPERM 'a"])
def test_long_replies(words: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pattern gets more of a reply than a sentence has: none could freeze a process,
    in which no other thread runs while one is matched."""
    reply = read_error(f"{code} {words * (10**6 // len(words))}")
    asked: list[int] = []

    class Pattern:
        """Notes how much it is given to search."""

        def search(self, text: str) -> None:
            asked.append(len(text))

    for name in ("TOO_MANY_CLIENTS", "_NAMED"):
        monkeypatch.setattr(refusals, name, Pattern())
    assert len(str(greeting_error("AUTH", reply, 0, []))) < 1000
    assert max(asked) <= 1000


@pytest.mark.parametrize("pattern", [refusals.TOO_MANY_CLIENTS, refusals._NAMED])
@pytest.mark.parametrize("words", TEMPTING)
def test_patterns_are_linear(pattern: re.Pattern[str], words: str) -> None:
    """A long text takes them a moment; it would take hours otherwise."""
    for before in ("", "'", "'a"):
        assert pattern.search(before + words * (10**6 // len(words))) is None


#: How any command may be answered on a connection that the server does not know, or no
#: longer.
UNKNOWN = [
    "NOAUTH Authentication required.",
    "ERR NOAUTH Authentication required.",
    "ERR NOAUTH",
    "ERR WRONGPASS the token has expired",
    "ERR authentication required",
    "Authentication is required before any command",
    "ERR client is not authenticated",
    "UNAUTHENTICATED: no token",
]
#: What only quotes such words, or has them in another sense.
QUOTING = [
    "ERR unknown command 'x', with args beginning with: 'authentication required'",
    "ERR a key of that name: NOAUTH",
    "WRONGTYPE not authenticated",
    "ERR syntax error",
    "ERR MOVED nowhere",
]


class Once(dict[str, bytes]):
    """Answers of which each is given once."""

    def __getitem__(self, name: str) -> bytes:
        return self.pop(name)


@pytest.fixture(params=[True, False])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have replies read by our own means, or by redis-py's parser."""
    if request.param:
        monkeypatch.setattr(connection, "make_exchanger", lambda *_: None)


@pytest.mark.parametrize("words", UNKNOWN)
@pytest.mark.usefixtures("reader")
def test_unknown_to_the_server(words: str, do: "Steps") -> None:
    """The connection is replaced by one that authenticates, and nobody notices."""
    reply = f"-{words}\r\n".encode()
    server = ScriptedServer(Once(SET=reply, GET=reply))
    try:
        cache = make_cache(
            f"redis://user:secret@127.0.0.1:{server.server_address[1]}",
            identity=None,
        )
        calls = ("set", "key", 1), ("get", "key"), ("get", "key")
        assert do(cache, *calls)[1:] == [1, 1]
        assert server.connections == 3
    finally:
        registry.reset()
        server.stop()


@pytest.mark.parametrize("words", QUOTING)
def test_words_that_are_quoted(words: str) -> None:
    """They cost nobody the connection, whoever reads them."""
    for kind in (_RESP2Parser, _RESP3Parser):
        for error in (read_error(words), bounded_parser(kind).parse_error(words)):
            assert type(cluster_error(error)) is ResponseError


@settings(deadline=None)
@given(st.from_regex(r"(ERR )?(NOAUTH|WRONGPASS)( [^\r\n]*)?", fullmatch=True))
def test_codes_decide(words: str) -> None:
    """Whatever follows the code."""
    assert type(read_error(words)) is AuthenticationError


@pytest.fixture(params=WORDS[:3])
def identity(request: pytest.FixtureRequest, emulator: Emulator) -> Iterator[Identity]:
    """Give an identity of an emulator that refuses in other words."""
    emulator.refusal = request.param
    made = Identity(emulator)
    yield made
    made.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_threads(identity: Identity, protocol: int) -> None:
    """A revoked token is replaced once; without a policy it is the truth."""
    identity.connect(protocol=protocol)
    identity.emulator.revoke(identity.oid)
    connection = identity.connect(protocol=protocol)
    assert len(identity.fetched) == 2
    assert ping(connection)
    identity.emulator.set_access(identity.oid, None)
    with pytest.raises(TokenRefusedError, match="access policy") as caught:
        identity.connect(protocol=protocol)
    assert identity.oid in str(caught.value)


def test_in_the_stream(identity: Identity) -> None:
    """An AUTH refused on an open connection ends likewise."""
    connection = identity.connect()
    identity.renew()
    identity.pass_time(SPREAD * LIFE / 2)
    identity.emulator.set_access(identity.oid, None)
    with pytest.raises(TokenRefusedError):
        connection.connect()


def test_other_commands(identity: Identity) -> None:
    """What another command of the greeting is refused with is no refusal of AUTH."""
    identity.emulator.set_access(identity.oid, "+@all -select ~*")
    with pytest.raises(NoPermissionError, match=r"Allow \+select, or use database 0"):
        identity.connect(db=1)
    identity.emulator.set_access(identity.oid, "+@all ~*")
    with pytest.raises(ResponseError, match="range"):
        identity.connect(db=99)
    assert len(identity.fetched) == 1


@pytest.mark.parametrize("protocol", [2, 3])
def test_password(protocol: int) -> None:
    """Without an identity it is redis-py's error for a wrong password."""
    words = f"-{WORDS[0]}\r\n".encode()
    server = ScriptedServer({"AUTH": words, "HELLO": words})
    try:
        connection = connection_class(Connection, entra=False)(
            port=server.server_address[1],
            protocol=protocol,
            username="user",
            password="guessed",
        )
        with pytest.raises(AuthenticationError) as caught:
            connection.connect()
        assert caught.value.__context__ is None
    finally:
        server.stop()


Steps = Callable[..., list[Any]]


def in_threads(cache: Any, *calls: tuple[str, *tuple[Any, ...]]) -> list[Any]:
    """Return the results of a cache's methods."""
    return [getattr(cache, name)(*arguments) for name, *arguments in calls]


def in_a_loop(cache: Any, *calls: tuple[str, *tuple[Any, ...]]) -> list[Any]:
    """Return the results of their asynchronous counterparts, in one event loop."""

    async def main() -> list[Any]:
        return [await getattr(cache, f"a{name}")(*args) for name, *args in calls]

    return asyncio.run(main())


@pytest.fixture(params=[in_threads, in_a_loop])
def do(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Give either way to call a cache's methods."""
    # Loops connect at once.
    monkeypatch.setattr(event_loops, "FIRST_OPERATIONS", 0)
    return cast(Steps, request.param)


@pytest.mark.parametrize("words", WORDS[:2])
def test_caches(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, do: Steps, words: str
) -> None:
    """In threads and event loops: one other token, then what it is."""
    emulator.refusal = words
    oid, options = emulator.application.object_id, {"ssl_ca_certs": emulator.ca_file}
    with let_in(emulator, monkeypatch):
        cache = make_cache(emulator.redis_url, **options)
        forgiving = make_cache(emulator.redis_url, **options, ignore_exceptions=True)
        do(cache, ("set", "key", 1))
        emulator.revoke(oid)
        assert do(cache, ("get", "key")) == [1]
        assert len(emulator.requests) == 2
        emulator.set_access(oid, None)
        with pytest.raises(TokenRefusedError, match=oid):
            do(cache, ("get", "key"))
        assert do(forgiving, ("get", "key", "none")) == ["none"]


def test_clusters(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, do: Steps
) -> None:
    """At a cluster's nodes likewise, whichever refuses."""
    monkeypatch.setattr(cluster, "refusal", WORDS[0])
    oid, options = cluster.application.object_id, {"ssl_ca_certs": cluster.ca_file}
    values = {f"key-{n}": n for n in range(40)}
    with let_in(cluster, monkeypatch):
        cache = EntraRedisClusterCache(cluster.redis_url, {"OPTIONS": options})
        assert do(cache, ("set_many", values)) == [[]]
        requests = len(cluster.requests)
        cluster.revoke(oid)
        assert do(cache, ("get_many", values)) == [values]
        assert len(cluster.requests) == requests + 1
        cluster.set_access(oid, None)
        with pytest.raises(TokenRefusedError, match=oid):
            do(cache, ("get_many", values))
        cluster.set_access(oid, "+@all ~* &*")


@pytest.mark.parametrize("command", ["AUTH", "HELLO", "SELECT", "CLIENT"])
@pytest.mark.parametrize(
    "words", [*WORDS, "ERR DB index is out of range", "ERR Client names: no spaces"]
)
def test_translated_once(command: str, words: str) -> None:
    """What has been translated stays as it is: a connection does so in two places."""
    reply = cast(ResponseError, read_error(words, DefaultParser.parse_error))
    first = greeting_error(command, reply, 1, [])
    assert isinstance(first, ResponseError | redis.ConnectionError)
    for _ in range(2):
        again = greeting_error(command, first, 1, [])
        assert str(again) == str(first)
        assert type(again) is type(first)


@pytest.mark.parametrize(
    ("password", "sent"),
    [("hush", ["hush"]), (b"hush", ["hush"]), (12345, ["12345"]), (None, [])],
)
def test_sent_passwords(password: object, sent: list[str]) -> None:
    """What Redis may quote of a password is redacted, whatever its type."""
    assert sent_password(password) == sent
