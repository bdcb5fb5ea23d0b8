"""Prints what a tool sees of the same calls on Django's cache and on this package's.

``python -m tests.observability.spans TOOL URL SERVER``: the redis-server there lets in
whom the URL says, and ``the-object-id`` with ``tests.support.failing_clients``' token.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()

from django.core.cache import caches  # noqa: E402 - it needs the settings
from django.test import override_settings  # noqa: E402

from django_entra_redis.credentials import get_credential_provider  # noqa: E402
from tests.observability.ingestion import Ingestion  # noqa: E402
from tests.support.failing_clients import TOKEN  # noqa: E402
from tests.support.sites import BACKEND, Credential  # noqa: E402

#: What both backends send one request for, and ours alone in an event loop.
CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("set", ("a", 1, 300)),
    ("get", ("a",)),
    ("add", ("a", 2, 300)),
    ("touch", ("a", 300)),
    ("delete", ("a",)),
    ("set_many", ({"a": 1, "b": 2}, None)),
    ("get_many", (["a", "b"],)),
    ("delete_many", (["a", "b"],)),
]
#: In an event loop Django's makes several calls of the others.
SINGLE = 5

#: Gives a list, to which the spans of what happens within are added at its end.
Around = Callable[[], AbstractContextManager[list[str]]]


def opentelemetry() -> Around:
    """Instrument redis-py with OpenTelemetry's instrumentation."""
    from opentelemetry.instrumentation.redis import RedisInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    RedisInstrumentor().instrument(tracer_provider=provider)

    @contextmanager
    def around() -> Iterator[list[str]]:
        found: list[str] = []
        exporter.clear()
        yield found
        found += [span.to_json() for span in exporter.get_finished_spans()]

    return around


def native() -> Around:
    """Instrument this package with its own instrumentation, beside OpenTelemetry's."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )

    from django_entra_redis.opentelemetry import EntraRedisInstrumentor

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    theirs = opentelemetry()
    EntraRedisInstrumentor().instrument(tracer_provider=provider)

    @contextmanager
    def around() -> Iterator[list[str]]:
        exporter.clear()
        with theirs() as found:
            yield found
        found += [span.to_json() for span in exporter.get_finished_spans()]

    return around


def azure_monitor() -> Around:
    """Start Azure Monitor's distro, and OpenTelemetry's instrumentation of redis-py."""
    os.environ["APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL"] = "true"
    os.environ["OTEL_METRICS_EXPORTER"] = os.environ["OTEL_LOGS_EXPORTER"] = "none"
    from azure.monitor.opentelemetry import configure_azure_monitor
    from opentelemetry.instrumentation.redis import RedisInstrumentor
    from opentelemetry.trace import get_tracer_provider

    ingestion = Ingestion()
    key = "00000000-0000-0000-0000-000000000000"
    configure_azure_monitor(
        connection_string=f"InstrumentationKey={key};IngestionEndpoint={ingestion.url}",
        sampling_ratio=1.0,
        disable_offline_storage=True,
        enable_live_metrics=False,
    )
    RedisInstrumentor().instrument()
    provider: Any = get_tracer_provider()

    @contextmanager
    def around() -> Iterator[list[str]]:
        found: list[str] = []
        yield found
        provider.force_flush()
        # The distro observes requests over HTTP, too, such as those of its own for
        # settings, which it makes when it likes.
        sent = map(json.loads, ingestion.take("RemoteDependencyData"))
        found += [
            json.dumps(item)
            for item in sent
            if item["data"]["baseData"]["type"] == "redis"
        ]

    return around


def sentry() -> Around:
    """Start Sentry, with its default settings and traces."""
    import sentry_sdk
    from sentry_sdk.transport import Transport

    events: list[Any] = []

    class Kept(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            events.append(envelope.get_transaction_event())

    sentry_sdk.init("http://key@localhost/1", transport=Kept, traces_sample_rate=1.0)

    @contextmanager
    def around() -> Iterator[list[str]]:
        found: list[str] = []
        events.clear()
        with sentry_sdk.start_transaction(name="view"):
            yield found
        spans = [span for event in events for span in event["spans"]]
        found += [json.dumps(s, default=repr) for s in spans if s["op"] == "db.redis"]

    return around


def ddtrace() -> Around:
    """Patch redis-py with Datadog's tracer."""
    for name in ("INSTRUMENTATION_TELEMETRY", "REMOTE_CONFIGURATION", "CRASHTRACKING"):
        os.environ[f"DD_{name}_ENABLED"] = "false"
    from ddtrace import patch
    from ddtrace.trace import TraceFilter, tracer

    kept: list[str] = []

    class Kept(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            kept.extend(f"{s.name} {s.resource} {s.get_tags()}" for s in trace)

    tracer.configure(trace_processors=[Kept()])
    patch(redis=True)

    @contextmanager
    def around() -> Iterator[list[str]]:
        found: list[str] = []
        kept.clear()
        yield found
        found += kept

    return around


def elastic() -> Around:
    """Instrument redis-py with Elastic's agent."""
    import elasticapm
    from elasticapm.transport.base import Transport

    kept: list[tuple[str, Any]] = []

    class Kept(Transport):
        def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
            kept.append((event_type, data))

        def start_thread(self, pid: Any = None) -> None:
            """Send nothing."""

        def close(self) -> None:
            """Do nothing."""

    # By its path, as settings name it.
    globals()["Kept"] = Kept
    client = elasticapm.Client(
        service_name="site",
        transport_class=f"{__name__}.Kept",
        metrics_interval="0ms",
        central_config=False,
        cloud_provider="none",
        span_compression_enabled=False,
    )
    elasticapm.instrument()

    @contextmanager
    def around() -> Iterator[list[str]]:
        found: list[str] = []
        kept.clear()
        client.begin_transaction("request")
        yield found
        client.end_transaction("view")
        spans = [data for kind, data in kept if kind == "span"]
        found += [json.dumps(s, default=repr) for s in spans if s["subtype"] == "redis"]

    return around


def new_relic() -> Around:
    """Start New Relic's agent, which sees what this package's instrumentation tells."""
    os.environ["NEW_RELIC_LICENSE_KEY"] = "0" * 40
    os.environ["NEW_RELIC_DEVELOPER_MODE"] = "true"  # It sends nothing.
    os.environ["NEW_RELIC_OPENTELEMETRY_ENABLED"] = "true"
    import newrelic.agent
    from newrelic.core.stats_engine import StatsEngine

    from django_entra_redis.opentelemetry import EntraRedisInstrumentor

    newrelic.agent.initialize()
    site = newrelic.agent.register_application(timeout=30.0)
    EntraRedisInstrumentor().instrument()
    kept: list[Any] = []
    record = StatsEngine.record_transaction

    def keep(engine: Any, transaction: Any) -> None:
        kept.extend(transaction.root.children)
        record(engine, transaction)

    StatsEngine.record_transaction = keep

    @contextmanager
    def around() -> Iterator[list[str]]:
        found: list[str] = []
        kept.clear()
        with newrelic.agent.BackgroundTask(site, "view"):
            yield found
        # It also sees how redis-py greets a server.
        requests = [node for node in kept if node.operation != "client_setinfo"]
        found += [repr(node) for node in requests]

    return around


def toolbar() -> Around:
    """Have django-debug-toolbar's panel note the calls on caches."""
    from debug_toolbar.panels.cache import CachePanel

    CachePanel.ready()

    @contextmanager
    def around() -> Iterator[list[str]]:
        found: list[str] = []
        panel = CachePanel(None, None)
        panel.enable_instrumentation()
        yield found
        panel.disable_instrumentation()
        found += [repr(call) for call in panel.calls]

    return around


TOOLS: dict[str, Callable[[], Around]] = {
    "azure_monitor": azure_monitor,
    "ddtrace": ddtrace,
    "elastic": elastic,
    "native": native,
    "new_relic": new_relic,
    "opentelemetry": opentelemetry,
    "sentry": sentry,
    "toolbar": toolbar,
}


def look(around: Around, alias: str) -> None:
    """Print how many spans each call on a cache makes, in a thread and in a loop."""
    told: list[str] = []

    def in_a_thread() -> Iterator[int]:
        for name, args in CALLS:
            with around() as spans:
                getattr(caches[alias], name)(*args)
            told.extend(spans)
            yield len(spans)

    async def in_a_loop() -> list[int]:
        counts = []
        calls = CALLS[:SINGLE] if alias == "django" else CALLS
        # The first operations of a loop go another way.
        for name, args in calls * 2:
            cache = caches[alias]
            with around() as spans:
                await getattr(cache, f"a{name}")(*args)
            told.extend(spans)
            counts.append(len(spans))
        return counts

    seen = {"sync": list(in_a_thread()), "async": asyncio.run(in_a_loop())}
    print(json.dumps({"alias": alias, "told": told, **seen}))


def main(tool: str, url: str, server: str) -> None:
    """Look at both backends."""
    around = TOOLS[tool]()
    settings = {
        "django": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": url,
        },
        "ours": {"BACKEND": BACKEND, "LOCATION": server},
    }
    identity = {"CREDENTIAL": Credential(TOKEN), "USERNAME": "the-object-id"}
    with override_settings(
        CACHES={**settings, "default": settings["ours"]},
        ENTRA_REDIS={"default": identity},
    ):
        # A span of its own, in some of the tools.
        with around():
            get_credential_provider().get_credentials()
        for alias in settings:
            look(around, alias)


main(*sys.argv[1:])
