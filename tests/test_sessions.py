"""The session engine: Django's keys and values, one command for each save."""

import asyncio
import string
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.contrib.sessions.backends.cache import SessionStore as DjangosStore
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings

from django_entra_redis.connections import registry
from django_entra_redis.exceptions import UncertainResultError
from django_entra_redis.sessions import SessionStore
from tests.support.caches import Database, Proxy

ENGINE = "django_entra_redis.sessions"
BACKEND = "django_entra_redis.cache.EntraRedisCache"
DJANGOS_BACKEND = "django.core.cache.backends.redis.RedisCache"
NOWHERE = "redis://127.0.0.1:1"


@pytest.fixture(scope="module", autouse=True)
def thread() -> None:
    """Have the one thread begin that all synchronous code of Django goes through."""
    asyncio.run(sync_to_async(int)())


@pytest.fixture(autouse=True)
def empty(database: Database) -> Iterator[None]:
    """Begin with nothing, and leave no connection."""
    database.admin.flushall()
    yield
    registry.reset()


@pytest.fixture(autouse=True)
def on_cache(database: Database) -> Iterator[None]:
    """Have the sessions in a cache on that server."""
    with cached(database.url):
        yield


def cached(location: str, backend: str = BACKEND, **options: Any) -> override_settings:
    """Have the sessions in a cache of these settings."""
    if backend == BACKEND:
        options["identity"] = None
    cache = {"BACKEND": backend, "LOCATION": location, "OPTIONS": options}
    return override_settings(CACHES={"default": cache}, SESSION_ENGINE=ENGINE)


class Synchronous:
    """Calls a session's synchronous methods."""

    def __call__(self, session: Any, name: str, *arguments: Any, **named: Any) -> Any:
        """Return what the method returns."""
        return getattr(session, name)(*arguments, **named)


class Asynchronous:
    """Calls a session's asynchronous ones, each in a loop of its own."""

    def __call__(self, session: Any, name: str, *arguments: Any, **named: Any) -> Any:
        """Return what the method returns."""
        return asyncio.run(getattr(session, f"a{name}")(*arguments, **named))


call = pytest.mark.parametrize(
    "call", [Synchronous(), Asynchronous()], ids=["sync", "async"]
)
Call = Callable[..., Any]


def commands(database: Database, do: Callable[[], object]) -> dict[str, int]:
    """Return how often sessions are asked for or changed while something is done."""
    database.admin.config_resetstat()
    do()
    return {
        name.removeprefix("cmdstat_"): found["calls"]
        for name, found in database.admin.info("commandstats").items()
        if name in ("cmdstat_get", "cmdstat_set", "cmdstat_exists", "cmdstat_del")
    }


def saved(**data: Any) -> Any:
    """Return a session that has been saved."""
    session = SessionStore()
    session.update(data)
    session.save()
    return session


# -- the same keys and values as Django's


@call
@pytest.mark.parametrize("backend", [BACKEND, DJANGOS_BACKEND])
def test_reads_djangos_sessions(database: Database, backend: str, call: Call) -> None:
    """Who is logged in stays so when the engine is changed."""
    with cached(database.url, backend):
        theirs: Any = DjangosStore()
        theirs.update({"user": 5, "path": ["a", ("b", 1)]})
        theirs.save()
        caches["default"].close()
    ours = SessionStore(theirs.session_key)
    assert call(ours, "load") == {"user": 5, "path": ["a", ("b", 1)]}
    assert ours.session_key == theirs.session_key
    assert call(ours, "exists", theirs.session_key)


@call
def test_writes_djangos_sessions(database: Database, call: Call) -> None:
    """And when it is changed back: the same key, the same bytes, the same expiry."""
    session = SessionStore()
    session["user"] = 5
    call(session, "save")
    session["path"] = "/"
    call(session, "save")
    (key,) = database.admin.keys("*")
    assert key == f":1:django.contrib.sessions.cache{session.session_key}".encode()
    data, life = database.admin.get(key), database.admin.ttl(key)
    theirs: Any = DjangosStore(session.session_key)
    assert theirs.load() == {"user": 5, "path": "/"}
    assert dict(theirs.items()) == {"user": 5, "path": "/"}
    theirs.save()
    assert database.admin.get(key) == data
    assert database.admin.ttl(key) - life in (0, 1)


@call
@pytest.mark.parametrize("age", [0, 100, -1])
def test_expiry(database: Database, call: Call, age: int) -> None:
    """A session's own expiry is Redis'; one that is over deletes it."""
    session = saved(user=5)
    session.set_expiry(age)
    call(session, "save")
    life = database.admin.ttl(f":1:{session.cache_key}")
    if age < 0:
        assert life == -2
        with pytest.raises(UpdateError):
            call(session, "save")
    else:
        assert life in {100: (99, 100), 0: (1209599, 1209600)}[age]


@pytest.mark.parametrize("prefix", ["", "of-its-own"])
def test_a_subclass_names_its_keys(database: Database, prefix: str) -> None:
    """``cache_key_prefix`` is what it is with Django's."""
    kind = type("Named", (SessionStore,), {"cache_key_prefix": prefix})
    session = kind()
    session.save()
    assert database.admin.keys("*") == [f":1:{prefix}{session.session_key}".encode()]


# -- round trips


@call
def test_a_save_is_one_command(database: Database, call: Call) -> None:
    """It sets the session only if it is still there."""
    session = saved(user=5)
    session["user"] = 6
    assert commands(database, lambda: call(session, "save")) == {"set": 1}
    assert SessionStore(session.session_key).load() == {"user": 6}


@call
@pytest.mark.parametrize("name", ["save", "create"])
def test_a_new_session_is_one_command(
    database: Database, call: Call, name: str
) -> None:
    """Nobody asks first whether its key is taken."""
    session = SessionStore()
    assert commands(database, lambda: call(session, name)) == {"set": 1}
    assert session.modified
    assert len(session.session_key or "") == 32
    assert call(session, "exists", session.session_key)
    assert call(SessionStore(session.session_key), "load") == {}


@call
def test_a_new_key_keeps_the_data(database: Database, call: Call) -> None:
    """As at a login, against session fixation."""
    session = saved(user=5)
    before = session.session_key
    call(session, "cycle_key")
    call(session, "save")
    assert session.session_key != before
    assert not call(session, "exists", before)
    assert call(SessionStore(session.session_key), "load") == {"user": 5}
    call(session, "flush")
    assert database.admin.dbsize() == 0


# -- sessions that others have changed


@call
def test_a_deleted_session_stays_deleted(database: Database, call: Call) -> None:
    """A request that was under way at a logout does not bring it back."""
    session = saved(user=5)
    SessionStore(session.session_key).delete()
    with pytest.raises(UpdateError):
        call(session, "save")
    with pytest.raises(UpdateError):
        call(SessionStore("x" * 32), "save")
    assert database.admin.dbsize() == 0


@call
def test_a_taken_key_is_not_overwritten(database: Database, call: Call) -> None:
    """Whoever must create a session does not get another's."""
    key = saved(user=5).session_key
    with pytest.raises(CreateError):
        call(SessionStore(key), "save", must_create=True)
    assert SessionStore(key).load() == {"user": 5}


@call
def test_a_session_that_is_not_there(call: Call) -> None:
    """It is empty, and its key is not used again."""
    session = SessionStore("x" * 32)
    assert call(session, "load") == {}
    assert session.session_key is None


@call
@pytest.mark.parametrize("data", [b"\x80garbage", b"garbage", b"\x80\x05."])
def test_an_unreadable_session_is_empty(
    database: Database, call: Call, data: bytes
) -> None:
    """As with Django's engine: nothing else would come of it at the next try."""
    session = saved(user=5)
    database.admin.set(f":1:{session.cache_key}", data)
    again = SessionStore(session.session_key)
    assert call(again, "load") == {}
    assert again.session_key is None


@call
def test_a_cookie_that_is_no_key(call: Call) -> None:
    """Whatever a client sends, nobody has such a session; here warnings are errors."""
    overlong = (string.ascii_letters + string.digits) * 20
    for cookie in (overlong, "with a space", "\ud800" * 8):
        session = SessionStore(cookie)
        assert call(session, "load") == {}
        assert session.session_key is None


# -- outages


@call
@pytest.mark.parametrize("forgiving", [False, True])
@pytest.mark.parametrize("name", ["load", "save", "create", "exists", "delete"])
def test_an_outage_is_an_error(call: Call, name: str, forgiving: bool) -> None:
    """Nobody is logged out by one, and nobody looks 10,000 times for a free key."""
    key = "x" * 32
    with cached(NOWHERE, ignore_exceptions=forgiving, retry_on_error=[]):
        session: Any = SessionStore(None if name == "create" else key)
        session._session_cache = {"user": 5}
        with pytest.raises(redis.ConnectionError):
            call(session, name, *([key] if name == "exists" else []))
        if name != "create":
            assert session.session_key == key
        # Others' use of the cache is forgiven.
        if forgiving:
            assert caches["default"].get("key") is None


def test_a_prefix_that_is_changed_while_it_is_used(database: Database) -> None:
    """A cache with ``ignore_exceptions`` names sessions as it does without."""
    for forgiving in (False, True):
        cache: Any = database.cache(ignore_exceptions=forgiving)
        cache.strict.set("first", 1)
        cache.key_prefix, cache.version, cache.default_timeout = "tenant", 9, 77
        cache.strict.set("k", forgiving)
        assert cache.get("k") == forgiving
        assert 70 < database.admin.ttl("tenant:9:k") <= 77


def test_a_broken_setting_is_an_error() -> None:
    """It would log everybody out, too."""
    with cached("nonsense"), pytest.raises(ImproperlyConfigured):
        SessionStore("x" * 32).load()


@call
def test_a_create_in_doubt_takes_another_key(database: Database, call: Call) -> None:
    """Where the connection breaks before the answer there is one more session, which
    nobody uses, and the visitor gets his."""
    proxy = Proxy(database.address)
    try:
        with cached(proxy.url(database.url)):
            caches["default"].get("connected")
            session = SessionStore()
            proxy.arm(0)
            call(session, "create")
            assert SessionStore(session.session_key).load() == {}
            assert database.admin.dbsize() == 2
    finally:
        registry.reset()
        proxy.close()


@call
def test_a_create_that_stays_in_doubt_is_an_error(
    monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """It is not tried for ever."""
    tried = []

    def add(*arguments: Any) -> bool:
        tried.append(arguments)
        raise UncertainResultError("in doubt")

    async def aadd(*arguments: Any) -> bool:
        return add(*arguments)

    monkeypatch.setattr(caches["default"], "add", add)
    monkeypatch.setattr(caches["default"], "aadd", aadd)
    session = SessionStore()
    with pytest.raises(UncertainResultError):
        call(session, "create")
    assert len(tried) == 2


# -- other caches, and the middleware


@call
@pytest.mark.parametrize("alias", ["default", "elsewhere"])
def test_in_a_cache_of_another_package(call: Call, alias: str) -> None:
    """A test's settings may have one: it is Django's engine there."""
    local = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    elsewhere = {"default": {**local, "LOCATION": "other"}, alias: local}
    with override_settings(CACHES=elsewhere, SESSION_CACHE_ALIAS=alias):
        session = saved(user=5)
        session["user"] = 6
        call(session, "save")
        assert caches[alias].get(session.cache_key) == {"user": 6}
        assert call(SessionStore(session.session_key), "load") == {"user": 6}
        with pytest.raises(UpdateError):
            call(SessionStore("x" * 32), "save")
        call(session, "delete")
        assert not call(session, "exists", session.session_key)


def visit(key: str | None, view: Callable[[Any], None]) -> HttpResponse:
    """Return what the middleware answers a request that a view handles."""

    def respond(request: HttpRequest) -> HttpResponse:
        view(request.session)
        return HttpResponse("seen")

    request = RequestFactory().get("/")
    if key is not None:
        request.COOKIES["sessionid"] = key
    answer = SessionMiddleware(respond)(request)
    assert isinstance(answer, HttpResponse)
    return answer


def test_through_the_middleware(database: Database) -> None:
    """A visit reads the session and writes it, one command each."""
    key = saved(visits=1).session_key

    def count(session: Any) -> None:
        session["visits"] += 1

    found = commands(database, lambda: visit(key, count))
    assert found == {"get": 1, "set": 1}
    assert SessionStore(key).load() == {"visits": 2}
    cookie = visit(None, lambda session: session.update({"visits": 1})).cookies[
        "sessionid"
    ]
    assert SessionStore(cookie.value).load() == {"visits": 1}


def test_an_outage_leaves_the_cookie(database: Database) -> None:
    """The middleware would delete that of an empty session."""
    with cached(NOWHERE, ignore_exceptions=True), pytest.raises(redis.ConnectionError):
        visit("x" * 32, lambda session: session.get("user"))


def test_a_logout_meanwhile_is_told() -> None:
    """The visitor is asked to log in again."""
    key = saved(user=5).session_key

    def log_out(session: Any) -> None:
        session["user"] = 6
        SessionStore(key).delete()

    with pytest.raises(SessionInterrupted):
        visit(key, log_out)


def test_in_one_loop(database: Database) -> None:
    """Under ASGI all of it is on the loop's own connection."""

    async def many() -> Any:
        sessions: list[Any] = [SessionStore() for _ in range(20)]
        for number, session in enumerate(sessions):
            await session.aset("number", number)
            await session.asave()
            await session.aset("number", -number)
            await session.asave()
        found = [await SessionStore(one.session_key).aload() for one in sessions]
        return sum(one["number"] for one in found)

    assert asyncio.run(many()) == -190
