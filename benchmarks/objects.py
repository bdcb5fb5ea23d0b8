"""What a new cache object costs, and a session's save."""

from typing import Any

from django.contrib.sessions.backends.cache import SessionStore as DjangosStore
from django.core.cache import caches
from django.test import override_settings

from django_entra_redis.sessions import SessionStore

from .contenders import CACHES, DJANGO, DJANGO_REDIS, OURS, VCACHE, cache_settings
from .report import Report, Target
from .rounds import Sample, cpu_of
from .servers import RedisServer

#: What the first get() of a cache object is to reach: a thread, or a request under
#: ASGI, has one of its own.
FIRST_GET: dict[str, Target | None] = {
    DJANGO: Target(20.0),
    DJANGO_REDIS: Target(4.0),
    VCACHE: None,
}
SAVE = Target(8.0)
DJANGOS_ENGINE = "Django's engine"


def measure_objects(server: RedisServer, report: Report) -> None:
    """Measure the first get() of a new cache object, and a session's save()."""
    report.line("Client CPU time, in µs: median (minimum-maximum).")
    report.line()
    report.table("operation", OURS, "against", "takes", "ratio", "target")
    with override_settings(CACHES=cache_settings(server.url)):
        for other, target in FIRST_GET.items():
            if other in CACHES:
                report.versus(
                    "first get of a new cache object",
                    other,
                    _first_get(OURS),
                    _first_get(other),
                    target,
                )
    settings = cache_settings(server.url)
    aliases = {"default": settings[OURS], "theirs": settings[DJANGO]}
    with override_settings(CACHES=aliases):
        ours = _save(SessionStore())
        with override_settings(SESSION_CACHE_ALIAS="theirs"):
            theirs = _save(DjangosStore())
        report.versus("session save", f"{DJANGOS_ENGINE}, {DJANGO}", ours, theirs, SAVE)
        report.versus(
            "session save",
            f"{DJANGOS_ENGINE}, {OURS}",
            ours,
            _save(DjangosStore()),
            None,
        )
    report.line()


def _first_get(name: str) -> Sample:
    caches[name].set("key", 1)

    def first_get() -> None:
        made = caches.create_connection(name)
        assert made.get("key") == 1
        # What Django does at the end of each request.
        made.close()

    return cpu_of(first_get)


def _save(session: Any) -> Sample:
    session.update({"_auth_user_id": "5", "path": "/somewhere", "visits": 1})
    session.save()

    def save() -> None:
        session["visits"] += 1
        session.save()

    return cpu_of(save)
