"""The check that Django has the app, without which no renewal starts before a request.

The other system checks are registered by the app, this one by whatever brings the
backend in. Django may have begun its checks by then, so that there is a record, too.
"""

import logging
import threading
from typing import Any

from django.apps import apps
from django.core.cache import caches
from django.core.checks import CheckMessage, Tags, Warning, register

logger = logging.getLogger(__name__)

APP = "django_entra_redis"
_WHAT = f"'{APP}' is not in INSTALLED_APPS."
_HINT = (
    "Add it: until then no token is there before the first request needs one, and "
    "neither the other system checks nor entra_redis_check run."
)

_warned = threading.Event()


@register(Tags.caches)
def check_installed(**kwargs: Any) -> list[CheckMessage]:
    """Warn of a cache with an identity whose app is not installed."""
    if not _missing():
        return []
    return [Warning(_WHAT, hint=_HINT, id="django_entra_redis.W006")]


def warn_if_missing() -> None:
    """Log the same, once in a process."""
    if not _warned.is_set() and _missing():
        _warned.set()
        logger.warning("%s %s", _WHAT, _HINT)


def _missing() -> bool:
    # Whoever uses the credential provider without Django's apps, or without a cache of
    # this package, needs no app.
    return apps.ready and not apps.is_installed(APP) and any(map(_needs_it, caches))


def _needs_it(alias: str) -> bool:
    try:
        cache = caches[alias]
    except Exception:
        return False  # Another one's trouble, for which Django has its own words.
    return getattr(cache, "identity", None) is not None
