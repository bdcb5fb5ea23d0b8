"""The packages of soak.ecosystem: the settings that each takes, and its own calls."""

import asyncio
import io
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

Work = Callable[[], object]
AsyncWork = Callable[[], Awaitable[object]]
Made = tuple[Work | None, AsyncWork | None]


@dataclass(frozen=True)
class Row:
    """A package.

    Parameters:
        name: the distribution's.
        make: returns what is to be called again and again, for threads and for an event
            loop; either may be ``None``.
        lines: the settings that it takes, as the table shows and this program runs
            them. ``URL`` is the cache's with a credential provider, ``LOCATION`` is
            without.
        apps: what it adds to INSTALLED_APPS.
        more: settings that it needs with any Redis.
        short: whether it is one of the ten of the short form.
        before: what a settings file that uses the package has before these lines.
        code: what is written in a program in place of a setting.
        alone: whether it needs other versions than the others, and so is run only where
            it is asked for by its name.
    """

    name: str
    make: Callable[[], Made]
    lines: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    more: str = ""
    short: bool = False
    before: str = ""
    code: str = ""
    alone: bool = False


def _sessions() -> Made:
    store = import_module("django.contrib.sessions.backends.cache").SessionStore

    def work() -> None:
        session = store()
        session["a"] = 1
        session.save()
        assert store(session.session_key)["a"] == 1

    async def awork() -> None:
        session = store()
        await session.aset("a", 1)
        await session.asave()
        assert await store(session.session_key).aget("a") == 1

    return work, awork


def _rest_framework() -> Made:
    base: Any = import_module("rest_framework.throttling").SimpleRateThrottle

    class Throttle(base):  # type: ignore[misc]  # of a package without types
        rate = "1000000/day"

        def get_cache_key(self, request: Any, view: Any) -> str:
            return "somebody"

    def work() -> None:
        assert Throttle().allow_request(None, None)

    return work, None


def _ratelimit() -> Made:
    check_settings()
    is_ratelimited = import_module("django_ratelimit.core").is_ratelimited
    request = import_module("django.test").RequestFactory().get("/")

    def work() -> None:
        limited = is_ratelimited(
            request, group="all", key="ip", rate="1000000/d", increment=True
        )
        assert limited is False

    return work, None


def _defender() -> Made:
    utils = import_module("defender.utils")

    def work() -> None:
        assert utils.increment_key("somebody") > 0
        assert not utils.is_user_already_locked("somebody")
        assert utils.get_blocked_ips() == []

    return work, None


def _rq() -> Made:
    queue = import_module("django_rq").get_queue()
    worker = import_module("rq").SimpleWorker([queue], connection=queue.connection)

    def work() -> None:
        job = queue.enqueue(len, "abc")
        worker.work(burst=True, logging_level="ERROR")
        assert job.return_value(refresh=True) == 3

    return work, None


def _q2() -> Made:
    broker = import_module("django_q.brokers").get_broker()

    def work() -> None:
        broker.enqueue("task")
        assert broker.dequeue() == [(None, b"task")]

    return work, None


def _huey() -> Made:
    djhuey = import_module("huey.contrib.djhuey")
    huey = djhuey.HUEY

    @djhuey.task()  # type: ignore[untyped-decorator]
    def length(text: str) -> int:
        return len(text)

    def work() -> None:
        result: Any = length("abc")
        huey.execute(huey.dequeue())
        assert result.get(blocking=True, timeout=5) == 3

    return work, None


def _dramatiq() -> Made:
    dramatiq = import_module("dramatiq")
    broker = dramatiq.get_broker()
    done = threading.Event()

    @dramatiq.actor  # type: ignore[untyped-decorator]
    def note() -> None:
        done.set()

    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()

    def work() -> None:
        done.clear()
        note.send()
        assert done.wait(20)

    return work, None


def _constance() -> Made:
    config = import_module("constance").config

    def work() -> None:
        config.ANSWER = 43
        assert config.ANSWER == 43

    return work, None


def _cacheops() -> Made:
    cacheops = import_module("cacheops")

    @cacheops.cached(timeout=60)  # type: ignore[untyped-decorator]
    def double(number: int) -> int:
        return 2 * number

    def work() -> None:
        assert double(2) == 4

    return work, None


def _sorl() -> Made:
    store = import_module("sorl.thumbnail.kvstores.redis_kvstore").KVStore()

    def work() -> None:
        store._set_raw("key", "value")
        assert store._get_raw("key") == b"value"

    return work, None


def _cache() -> Made:
    cache: Any = import_module("django.core.cache").cache
    # The program has set it up by the row's settings, not by its own.
    assert cache.get_client().connection_pool.connection_kwargs["port"]

    def work() -> None:
        cache.set("a", 1)
        assert cache.get("a") == 1

    async def awork() -> None:
        await cache.aset("a", 1)
        assert await cache.aget("a") == 1

    return work, awork


def _prometheus() -> Made:
    total = import_module("django_prometheus.cache.metrics").django_cache_get_total
    work, awork = _cache()

    def counted() -> None:
        counter = total.labels(backend="native_redis")
        before = counter._value.get()
        assert work is not None
        work()
        assert counter._value.get() == before + 1

    return counted, awork


def check_settings() -> None:
    """Fail where Django's system checks warn of anything but the admin's templates."""
    found = import_module("django.core.checks").run_checks()
    assert [one for one in found if not (one.is_silenced() or "admin" in one.id)] == []


def _cachalot() -> Made:
    check_settings()
    _migrate()
    users = import_module("django.contrib.auth.models").User.objects

    def work() -> None:
        users.create(username=f"user-{users.count()}")
        count = users.count()
        assert users.count() == count == users.exclude(username="").count()

    return work, None


def _environ() -> Made:
    check_settings()
    return _cache()


def _rq_scheduler() -> Made:
    client = import_module("django_entra_redis").get_redis_connection()
    scheduler = import_module("rq_scheduler").Scheduler("later", connection=client)
    queue = import_module("rq").Queue("later", connection=client)

    def work() -> None:
        before = queue.count
        scheduler.enqueue_in(timedelta(), len, "abc")
        scheduler.run(burst=True)
        assert queue.count == before + 1
        queue.empty()

    return work, None


def _eventstream() -> Made:
    send = import_module("django_eventstream").send_event
    make = import_module("django_eventstream.views").RedisListener

    def work() -> None:
        send("news", "message", {"text": "abc"})

    subscriber: Any = None

    async def awork() -> None:
        nonlocal subscriber
        if subscriber is None:
            subscriber = make().pubsub
            await subscriber.subscribe("events_channel")
        message = None
        while message is None or message["type"] != "message":
            await asyncio.to_thread(work)
            message = await subscriber.get_message(timeout=1)

    return work, awork


def _celery_results() -> Made:
    app = make_celery()
    result = import_module("celery.result").AsyncResult

    def work() -> None:
        app.backend.store_result("id", 3, "SUCCESS")
        assert result("id", app=app).get(timeout=5) == 3

    return work, None


def _migrate() -> None:
    """Create the tables of all models, without the packages' many migrations."""
    settings: Any = import_module("django.conf").settings
    apps = import_module("django.apps").apps.get_app_configs()
    settings.MIGRATION_MODULES = {app.label: None for app in apps}
    import_module("django.core.management").call_command(
        "migrate", verbosity=0, run_syncdb=True
    )


def _waffle() -> Made:
    _migrate()
    waffle = import_module("waffle")
    waffle.get_waffle_switch_model().objects.create(name="new", active=True)

    def work() -> None:
        assert waffle.switch_is_active("new")

    return work, None


def _select2() -> Made:
    _migrate()
    user = import_module("django.contrib.auth.models").User
    widget = import_module("django_select2.forms").ModelSelect2Widget
    cache = import_module("django_select2.cache").cache

    def work() -> None:
        made = widget(model=user, search_fields=["username__icontains"])
        made.render("name", None)
        kept = cache.get(made._get_cache_key())
        assert kept["queryset"][0].model is user

    return work, None


def _sorl_cached() -> Made:
    _migrate()
    store = import_module("sorl.thumbnail.kvstores.cached_db_kvstore").KVStore()

    def work() -> None:
        store._set_raw("key", "value")
        assert store._get_raw("key") == "value"
        # That there is none is kept, too.
        assert store._get_raw("another") is None

    return work, None


def _wagtail() -> Made:
    _migrate()
    files = import_module("django.core.files.images")
    content = io.BytesIO()
    import_module("PIL.Image").new("RGB", (20, 20)).save(content, "PNG")
    import_module("wagtail.models").Collection.add_root(name="Root")
    image = import_module("wagtail.images").get_image_model()(title="image")
    image.file = files.ImageFile(content, name="image.png")
    image.save()

    def work() -> None:
        assert image.get_rendition("fill-10x10").width == 10
        fresh = type(image).objects.get(pk=image.pk)
        assert fresh.get_rendition("fill-10x10").width == 10

    return work, None


def length_of(text: str) -> int:
    """Return the length of a text: a task that a worker can import."""
    return len(text)


def _tasks_rq() -> Made:
    task = import_module("django_tasks").task(queue_name="tasks")(length_of)
    # The worker finds it by its name.
    globals()["length_of"] = task
    worker = import_module("django_rq").get_worker("tasks")

    def work() -> None:
        result = task.enqueue("abc")
        worker.work(burst=True, logging_level="ERROR")
        result.refresh()
        assert result.return_value == 3

    return work, None


def _arq() -> Made:
    arq = import_module("arq")
    connect = import_module("django_entra_redis").aget_redis_connection

    async def length(context: Any, text: str) -> int:
        return len(text)

    async def awork() -> None:
        pool = arq.ArqRedis((await connect()).connection_pool)
        job = await pool.enqueue_job("length", "abc")
        worker = arq.Worker(
            [import_module("arq.worker").func(length, name="length")],
            redis_pool=pool,
            burst=True,
            handle_signals=False,
            poll_delay=0.01,
        )
        await worker.async_run()
        assert await job.result(timeout=5) == 3

    return None, awork


def make_celery() -> Any:
    """Return a Celery application of the settings, with one task."""
    app = import_module("celery").Celery("ecosystem")
    app.config_from_object("django.conf:settings", namespace="CELERY")

    @app.task(name="length")  # type: ignore[untyped-decorator]
    def length(text: str) -> int:
        return len(text)

    return app


def _celery() -> Made:
    celery = import_module("celery")
    app = make_celery()
    command = ("celery", "-A", "soak.ecosystem_celery", "worker", "--pool=threads")
    subprocess.Popen(
        [sys.executable, "-m", *command, "--concurrency=2", "--loglevel=ERROR"],
        stdin=subprocess.DEVNULL,
        # Not this process's own, whose end somebody waits for.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def work() -> None:
        result = app.send_task("length", ("abc",))
        # As the documentation has it: who waits at an expiry may not be woken.
        for _ in range(10):
            with suppress(celery.exceptions.TimeoutError):
                assert result.get(timeout=3) == 3
                return
        raise AssertionError("no result")

    return work, None


def _redbeat() -> Made:
    kind = import_module("redbeat").RedBeatSchedulerEntry
    every = import_module("celery.schedules").schedule(10)
    app = make_celery()

    def work() -> None:
        entry = kind("entry", "length", every, app=app)
        entry.save()
        assert kind.from_key(entry.key, app=app).task == "length"

    return work, None


def _singleton() -> Made:
    app = make_celery()
    kind = import_module("celery_singleton").Singleton

    @app.task(base=kind, name="one")  # type: ignore[untyped-decorator]
    def task() -> None:
        """Nothing is done: its locks are what this is about."""

    def work() -> None:
        backend = task.singleton_backend
        assert backend.lock("lock", "id", expiry=60)
        assert backend.get("lock") == "id"
        backend.unlock("lock")

    return work, None


def _flower() -> Made:
    app = make_celery()
    broker = import_module("flower.utils.broker").Broker

    async def awork() -> None:
        # Flower makes one for each look at the queues.
        seen = broker(
            app.conf.broker_url,
            broker_use_ssl=app.conf.broker_use_ssl,
            # Its own, 1 and 2 s, are short on a machine with all of this at once.
            broker_options={"socket_connect_timeout": 20, "socket_timeout": 20},
        )
        assert await seen.queues(["empty"]) == [{"name": "empty", "messages": 0}]

    return None, awork


def _taskiq() -> Made:
    from django.conf import settings

    broker = import_module("taskiq_redis").ListQueueBroker(settings.TASKIQ_URL)

    @broker.task  # type: ignore[untyped-decorator]
    async def length(text: str) -> int:
        return len(text)

    async def awork() -> None:
        await length.kiq("abc")
        async for message in broker.listen():
            assert b"abc" in message
            break

    return None, awork


CELERY = (
    'TLS = {"ssl_cert_reqs": "required", "protocol": 2, '
    '"credential_provider": EntraCredentialProvider()}',
    "CELERY_BROKER_URL = CELERY_RESULT_BACKEND = LOCATION",
    "CELERY_BROKER_USE_SSL = CELERY_REDIS_BACKEND_USE_SSL = TLS",
)
_CELERY_MORE = (
    'TLS["ssl_ca_certs"] = CA\n'
    'CELERY_BROKER_TRANSPORT_OPTIONS = {"reauth_check_interval": 0.2}\n'
    "CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True"
)

_CA_MORE = 'CACHES["default"].setdefault("OPTIONS", {})["ssl_ca_certs"] = CA'

ROWS = (
    Row(
        "django",
        _sessions,
        ('SESSION_ENGINE = "django.contrib.sessions.backends.cache"',),
    ),
    Row("djangorestframework", _rest_framework, short=True),
    Row(
        "django-ratelimit",
        _ratelimit,
        (
            'SILENCED_SYSTEM_CHECKS = ["django_ratelimit.E003", '
            '"django_ratelimit.W001"]',
        ),
        ("django_ratelimit",),
        short=True,
    ),
    Row(
        "django-defender",
        _defender,
        ('DEFENDER_REDIS_NAME = "default"',),
        ("defender",),
        short=True,
    ),
    Row(
        "django-rq",
        _rq,
        ('RQ_QUEUES = {"default": {"USE_REDIS_CACHE": "default"}}',),
        ("django_rq",),
        short=True,
    ),
    Row(
        "django-q2",
        _q2,
        ('Q_CLUSTER = {"name": "site", "django_redis": "default"}',),
        ("django_q",),
    ),
    Row(
        "huey",
        _huey,
        ('HUEY = {"connection": {"url": URL}, "immediate": False}',),
        ("huey.contrib.djhuey",),
        short=True,
    ),
    Row(
        "dramatiq",
        _dramatiq,
        (
            'DRAMATIQ_BROKER = {"BROKER": "dramatiq.brokers.redis.RedisBroker", '
            '"OPTIONS": {"url": URL}}',
        ),
        ("django_dramatiq",),
        short=True,
    ),
    Row(
        "django-constance",
        _constance,
        ("CONSTANCE_REDIS_CONNECTION = URL",),
        ("constance",),
        'CONSTANCE_BACKEND = "constance.backends.redisd.RedisBackend"\n'
        'CONSTANCE_CONFIG = {"ANSWER": (42, "")}',
        short=True,
    ),
    Row(
        "django-cacheops",
        _cacheops,
        ("CACHEOPS_REDIS = URL",),
        ("cacheops",),
        short=True,
    ),
    Row(
        "sorl-thumbnail",
        _sorl,
        ("THUMBNAIL_REDIS_URL = URL",),
        ("sorl.thumbnail",),
    ),
    Row("celery", _celery, CELERY, more=_CELERY_MORE, short=True),
    Row("celery-redbeat", _redbeat, CELERY, more=_CELERY_MORE, short=True),
    Row(
        "celery-singleton",
        _singleton,
        (*CELERY, "CELERY_SINGLETON_BACKEND_KWARGS = TLS"),
        more=_CELERY_MORE,
    ),
    Row("flower", _flower, CELERY, more=_CELERY_MORE),
    Row("taskiq-redis", _taskiq, ("TASKIQ_URL = URL",)),
    Row(
        "rq-scheduler",
        _rq_scheduler,
        code="Scheduler(connection=get_redis_connection())",
    ),
    Row(
        "django-eventstream",
        _eventstream,
        (
            'EVENTSTREAM_REDIS = {"host": HOST, "port": PORT, "ssl": True, '
            '"credential_provider": EntraCredentialProvider()}',
        ),
        ("django_eventstream",),
        'EVENTSTREAM_REDIS["ssl_ca_certs"] = CA',
    ),
    Row(
        "django-celery-results",
        _celery_results,
        (
            'CELERY_RESULT_BACKEND = "django-cache"',
            'CELERY_CACHE_BACKEND = "default"',
        ),
        ("django_celery_results",),
        "CELERY_BROKER_URL = LOCATION",
    ),
    Row(
        "django-tasks-rq",
        _tasks_rq,
        ('RQ_QUEUES = {"default": {"USE_REDIS_CACHE": "default"}}',),
        ("django_rq", "django_tasks", "django_tasks_rq"),
        'RQ_QUEUES["tasks"] = RQ_QUEUES["default"]\n'
        'TASKS = {"default": {"BACKEND": "django_tasks_rq.RQBackend", '
        '"QUEUES": ["tasks"]}}\n'
        'RQ = {"JOB_CLASS": "django_tasks_rq.Job"}',
    ),
    Row(
        "django-prometheus",
        _prometheus,
        ('CACHES["default"]["BACKEND"] = "site.CountedCache"',),
        ("django_prometheus",),
        'CACHES["default"]["BACKEND"] = "soak.counted_cache.CountedCache"',
        code="class CountedCache(NativeRedisCache, EntraRedisCache): ...",
    ),
    Row(
        "django-cachalot",
        _cachalot,
        ('SILENCED_SYSTEM_CHECKS = ["cachalot.W001"]',),
        ("cachalot",),
    ),
    Row(
        "django-environ",
        _environ,
        ('CACHES = {"default": env.cache_url("CACHE_URL", backend=BACKEND)}',),
        more=_CA_MORE,
        before="import environ\nenv = environ.Env()\n"
        'env.ENVIRON["CACHE_URL"] = LOCATION',
    ),
    Row(
        "django-cache-url",
        _environ,
        ('CACHES = {"default": django_cache_url.config() | {"BACKEND": BACKEND}}',),
        more=_CA_MORE,
        before='import os, django_cache_url\nos.environ["CACHE_URL"] = LOCATION',
    ),
    Row("django-waffle", _waffle, apps=("waffle",)),
    Row(
        "django-select2",
        _select2,
        apps=("django_select2",),
        more='ROOT_URLCONF = "soak.select2_urls"',
    ),
    Row("sorl-thumbnail (cached_db)", _sorl_cached, apps=("sorl.thumbnail",)),
    Row(
        "wagtail (renditions)",
        _wagtail,
        apps=(
            "wagtail.images",
            "wagtail.users",
            "wagtail.admin",
            "wagtail.search",
            "wagtail",
            "taggit",
        ),
        more="import tempfile\nMEDIA_ROOT = tempfile.mkdtemp()\n"
        'WAGTAIL_SITE_NAME = "site"; STATIC_URL = "/static/"',
    ),
    Row(
        "arq",
        _arq,
        code="ArqRedis((await aget_redis_connection()).connection_pool)",
        alone=True,
    ),
)
