"""This package's own instrumentation, with OpenTelemetry's SDK."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.apps import apps
from django.core.cache import caches
from django.test import override_settings
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from django_entra_redis.cache import EntraRedisClusterCache
from django_entra_redis.clients.observation import INSTRUMENTATION
from django_entra_redis.connections.event_loops import FIRST_OPERATIONS
from django_entra_redis.connections.pool import ConnectionPool
from django_entra_redis.credentials import get_credential_provider
from django_entra_redis.exceptions import ConnectionPoolTimeout, TokenError
from django_entra_redis.opentelemetry import EntraRedisInstrumentor
from django_entra_redis.sessions import SessionStore
from emulator import Emulator
from tests.support.caches import Database, let_in, make_cache, wait_until
from tests.support.failing_clients import TOKEN, traces_in
from tests.support.sites import BACKEND, Credential, ScriptedServer


@pytest.fixture(scope="module", autouse=True)
def thread() -> None:
    """Have the one thread begin that all synchronous code of Django goes through."""
    asyncio.run(sync_to_async(int)())


class Telemetry:
    """What has been exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([self._reader])

    def spans(self) -> list[Any]:
        """Return the spans that have ended, and forget them."""
        found = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return found

    def text(self) -> str:
        """Return everything that the spans and metrics hold."""
        spans = [span.to_json() for span in self._exporter.get_finished_spans()]
        metrics = self._reader.get_metrics_data()
        return "\n".join([*spans, "" if metrics is None else metrics.to_json()])

    def points(self) -> dict[str, list[Any]]:
        """Return the data points of each metric."""
        data: Any = self._reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """Instrument the package for one test."""
    made = Telemetry()
    providers = (made.tracer_provider, made.meter_provider)
    instrumentor = EntraRedisInstrumentor()
    instrumentor.instrument(tracer_provider=providers[0], meter_provider=providers[1])
    yield made
    instrumentor.uninstrument()


def measured(point: Any) -> tuple[Any, ...]:
    """Return what a data point of an operation is about."""
    return (point.attributes["db.operation.name"], point.attributes.get("error.type"))


def test_spans(database: Database, telemetry: Telemetry) -> None:
    """A request is one span by the conventions, without key and value."""
    cache = database.cache(db=3)
    cache.set("the-key", "the-value")
    cache.set_many({"the-key": 1, "b": 2})
    cache.get_client().acl_whoami()
    text = telemetry.text()
    single, batch = telemetry.spans()
    host, port = database.address
    common = {
        "db.system.name": "redis",
        "db.namespace": "3",
        "server.address": host,
        "server.port": port,
    }
    assert (single.name, single.kind) == ("SET", SpanKind.CLIENT)
    assert dict(single.attributes) == {**common, "db.operation.name": "SET"}
    assert batch.name == "PIPELINE SET"
    assert dict(batch.attributes) == {
        **common,
        "db.operation.name": "PIPELINE SET",
        "db.operation.batch.size": 2,
    }
    assert "the-key" not in text
    assert "the-value" not in text


def test_spans_of_an_event_loop(database: Database, telemetry: Telemetry) -> None:
    """The same there, in whatever way the loop carries an operation out."""
    cache = database.cache()

    async def main() -> None:
        with telemetry.tracer_provider.get_tracer("test").start_as_current_span("view"):
            for number in range(FIRST_OPERATIONS + 2):
                await cache.aset("a", number)
            await cache.aset_many({"a": 1, "b": 2})

    asyncio.run(main())
    *spans, view = telemetry.spans()
    assert [span.name for span in spans] == ["SET"] * 10 + ["PIPELINE SET"]
    assert {span.parent.span_id for span in spans} == {view.context.span_id}


def test_spans_of_a_cluster(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, telemetry: Telemetry
) -> None:
    """A batch is one span, however many nodes it goes to."""
    cache = EntraRedisClusterCache(
        cluster.redis_url, {"OPTIONS": {"ssl_ca_certs": str(cluster.ca_file)}}
    )

    async def main() -> None:
        for _ in range(FIRST_OPERATIONS + 1):
            await cache.aget("a")

    with let_in(cluster, monkeypatch):
        cache.set_many({"a": 1, "b": 2, "c": 3})
        assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2, "c": 3}
        cache.clear()
        asyncio.run(main())
        names = [span.name for span in telemetry.spans()]
    assert names[:2] == ["entra_redis.token_request", "PIPELINE SET"]
    assert names[2:] == ["PIPELINE GET", "FLUSHDB", *["GET"] * (FIRST_OPERATIONS + 1)]


def test_keys_if_asked_for(database: Database) -> None:
    """With ``capture_keys`` commands are told with their keys, never their values."""
    telemetry = Telemetry()
    instrumentor = EntraRedisInstrumentor()
    instrumentor.instrument(
        tracer_provider=telemetry.tracer_provider, capture_keys=True
    )
    cache = database.cache()
    cache.set("a", "the-value", 300)
    cache.set_many({"a": "the-value", "b": 2})
    cache.incr("b")  # Redis may not know the script yet
    cache.incr("b")
    cache.get_many(["a", "b"])
    cache.clear()
    instrumentor.uninstrument()
    text = telemetry.text()
    queries = [span.attributes["db.query.text"] for span in telemetry.spans()]
    while "EVAL ? 1 :1:b ?" in queries or queries.count("EVALSHA ? 1 :1:b ?") > 1:
        del queries[2]
    assert queries == [
        "SET :1:a ? ? ?",
        "SET :1:a ? ? ?\nSET :1:b ? ? ?",
        "EVALSHA ? 1 :1:b ?",
        "MGET :1:a :1:b",
        "FLUSHDB",
    ]
    assert "the-value" not in text


def test_errors(database: Database, telemetry: Telemetry) -> None:
    """The kind of an error is told, in spans and metrics; what Redis says, too."""
    cache = database.cache()
    cache.get_client().lpush(":1:list", "x")
    with pytest.raises(redis.ResponseError):
        cache.get("list")
    with pytest.raises(redis.ConnectionError):
        make_cache("redis://127.0.0.1:1", identity=None).get("a")
    refused, broken = telemetry.spans()
    assert refused.attributes["db.response.status_code"] == "WRONGTYPE"
    assert refused.attributes["error.type"] == "ResponseError"
    assert refused.status.description is None
    assert broken.status.description.startswith("Error")
    assert broken.attributes["error.type"] == "ConnectionError"
    assert not refused.events
    points = telemetry.points()["db.client.operation.duration"]
    assert {measured(point) for point in points} == {
        ("GET", "ResponseError"),
        ("GET", "ConnectionError"),
    }


def test_no_second_span(database: Database, telemetry: Telemetry) -> None:
    """With OpenTelemetry's instrumentation of redis-py on, each has its commands."""
    cache = database.cache()
    theirs = RedisInstrumentor()
    theirs.instrument(tracer_provider=telemetry.tracer_provider)

    async def main() -> None:
        await cache.aset("a", 1)

    cache.set("a", 1)
    cache.set_many({"a": 1, "b": 2})
    asyncio.run(main())
    ours = telemetry.spans()
    cache.get_client().get("a")
    (other,) = telemetry.spans()
    theirs.uninstrument()
    assert len(ours) == 3
    assert {span.instrumentation_scope.name for span in ours} == {
        "django_entra_redis.opentelemetry"
    }
    assert other.instrumentation_scope.name == "opentelemetry.instrumentation.redis"


def test_sessions(database: Database, telemetry: Telemetry) -> None:
    """What a session does is a request, and so a span: sync and async."""
    options = {"identity": None}
    settings = {"BACKEND": BACKEND, "LOCATION": database.url, "OPTIONS": options}
    with override_settings(CACHES={"default": settings}):
        made = SessionStore()
        made.create()
        made["a"] = 1
        made.save()
        assert SessionStore(made.session_key)["a"] == 1
        made.delete()
        names = [span.name for span in telemetry.spans()]
        assert names == ["SET", "SET", "GET", "DEL"]

        async def main() -> None:
            made = SessionStore()
            await made.acreate()
            await made.aset("a", 1)
            await made.asave()
            assert await SessionStore(made.session_key).aget("a") == 1
            await made.adelete()

        asyncio.run(main())
    assert [span.name for span in telemetry.spans()] == names


@pytest.mark.parametrize("clustered", [False, True])
def test_locks(
    cluster: Emulator,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    telemetry: Telemetry,
    *,
    clustered: bool,
) -> None:
    """They are redis-py's: the instrumentation of redis-py records their commands."""
    cache = database.cache()
    if clustered:
        options = {"ssl_ca_certs": str(cluster.ca_file)}
        cache = EntraRedisClusterCache(cluster.redis_url, {"OPTIONS": options})

    async def main() -> None:
        async with cache.alock("the-lock", timeout=60):
            pass

    def hold() -> None:
        with cache.lock("the-lock", timeout=60):
            pass
        asyncio.run(main())

    with let_in(cluster, monkeypatch):
        hold()
        # The first of a cluster finds out its nodes.
        assert {span.name for span in telemetry.spans()} <= {
            "entra_redis.token_request"
        }
        theirs = RedisInstrumentor()
        theirs.instrument(tracer_provider=telemetry.tracer_provider)
        hold()
        theirs.uninstrument()
        spans = [span.name for span in telemetry.spans()]
    assert spans == ["SET", "EVALSHA"] * 2


def test_token_requests(telemetry: Telemetry) -> None:
    """A token request is a span, with what went wrong, and never the token."""
    entry: dict[str, Any] = {"CREDENTIAL": Credential(TOKEN), "USERNAME": "me"}
    with override_settings(ENTRA_REDIS={"default": entry}):
        get_credential_provider().get_credentials()
        points = telemetry.points()
        text = telemetry.text()
    (span,) = telemetry.spans()
    assert span.name == "entra_redis.token_request"
    assert span.attributes["entra_redis.identity"] == "default"
    assert span.status.is_ok
    assert points["entra_redis.token.renewals"][0].value == 0
    assert 0 < points["entra_redis.token.time_to_expiry"][0].value <= 3600
    assert traces_in(text) == []
    entry["CREDENTIAL"] = Credential(ValueError("in vain"))
    with override_settings(ENTRA_REDIS={"default": entry}):
        with pytest.raises(TokenError):
            get_credential_provider().get_credentials()
        points = telemetry.points()
    # On a busy machine the first retry may have come meanwhile.
    failed = {span.attributes["error.type"] for span in telemetry.spans()}
    assert failed == {"credential_raised"}
    assert points["entra_redis.token.failures"][0].value >= 1
    assert "entra_redis.token.time_to_expiry" not in points


def test_pools(database: Database, telemetry: Telemetry) -> None:
    """Connections are counted by state, and waiting for one is measured."""
    cache: Any = database.cache(max_connections=1, pool_timeout=0.01)
    pool = cache.get_pool()
    connection = pool.check_out()
    with pytest.raises(ConnectionPoolTimeout):
        pool.check_out()
    other: Any = database.cache(max_connections=2)
    other.get("a")
    points = telemetry.points()
    pool.release(connection)
    name = f"{database.address[0]}:{database.address[1]}/0"

    def values(metric: str) -> dict[Any, Any]:
        return {
            point.attributes.get("db.client.connection.state"): point
            for point in points[metric]
            if point.attributes["db.client.connection.pool.name"] == name
        }

    assert values("db.client.connection.count")["used"].value >= 1
    assert values("db.client.connection.count")["idle"].value >= 1
    assert values("db.client.connection.max")[None].value >= 3
    assert values("db.client.connection.timeouts")[None].value == 1
    assert values("db.client.connection.wait_time")[None].count == 3


def test_client_side_caches(database: Database, telemetry: Telemetry) -> None:
    """Hits and misses of the copies in this process are counted; hits make no span."""
    settings = {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": database.url,
        "OPTIONS": {"identity": None, "client_side_cache": True},
    }
    plain = {**settings, "OPTIONS": {"identity": None}}
    with override_settings(CACHES={"default": plain, "copied": settings}):
        cache: Any = caches["copied"]
        cache.set("copied", 1)
        wait_until(
            lambda: cache.get("copied") and cache.client_side_cache_info().hits > 1
        )
        info = cache.client_side_cache_info()
        points = telemetry.points()
    (hits,) = points["entra_redis.client_side_cache.hits"]
    (misses,) = points["entra_redis.client_side_cache.misses"]
    assert (hits.value, misses.value) == (info.hits, info.misses)
    assert dict(hits.attributes) == {"entra_redis.cache": "copied"}
    names = [span.name for span in telemetry.spans()]
    assert names == ["SET", *["GET"] * info.misses]


def test_unknown_commands(telemetry: Telemetry) -> None:
    """What Redis says quotes the command, and so its key: it is not told."""
    said = b"-ERR unknown command 'EXISTS', with args beginning with: ':1:the-key'\r\n"
    server = ScriptedServer({"EXISTS": said})
    with pytest.raises(redis.ResponseError, match="the-key"):
        make_cache(server.url, identity=None).has_key("the-key")
    server.stop()
    assert "the-key" not in telemetry.text()
    (span,) = telemetry.spans()
    assert span.attributes["db.response.status_code"] == "ERR"


def test_metrics_before_django_is_ready(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter may begin early; settings that are broken raise nothing."""
    monkeypatch.setattr(apps, "ready", False)
    assert "entra_redis.client_side_cache.hits" not in telemetry.points()
    monkeypatch.undo()
    broken = {"BACKEND": BACKEND, "LOCATION": "redis://x:y@localhost"}
    with override_settings(CACHES={"default": broken}):
        assert "entra_redis.client_side_cache.hits" not in telemetry.points()


def test_unix_sockets(telemetry: Telemetry) -> None:
    """A server without a port is told by its path."""
    with pytest.raises(redis.ConnectionError):
        make_cache("unix:///nowhere.sock", identity=None).get("a")
    (span,) = telemetry.spans()
    assert span.attributes["server.address"] == "/nowhere.sock"
    assert "server.port" not in span.attributes
    assert telemetry.points()


def test_nothing_is_left_behind(database: Database) -> None:
    """After ``uninstrument()`` everything is as it was."""
    telemetry, before = Telemetry(), ConnectionPool.check_out
    cache = database.cache()
    instrumentor = EntraRedisInstrumentor()
    instrumentor.instrument(tracer_provider=telemetry.tracer_provider)
    assert not INSTRUMENTATION.idle()
    instrumentor.uninstrument()
    assert INSTRUMENTATION.idle()
    assert ConnectionPool.check_out is before
    cache.get("a")
    assert telemetry.spans() == []
    assert instrumentor.instrumentation_dependencies() == ()
