"""The check that the app is installed; without it no renewal starts before a request.

The app registers all other system checks. This one is registered by the import of the
backend, which may happen after Django has run the checks: therefore it also logs.
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
    "Add it: without it the first token is requested only when a request needs it, and "
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
    """Log the same warning, once in a process."""
    if not _warned.is_set() and _missing():
        _warned.set()
        logger.warning("%s %s", _WHAT, _HINT)


def _missing() -> bool:
    # The credential provider can be used without Django's apps, and without a cache of
    # this package: then the app is not needed.
    return apps.ready and not apps.is_installed(APP) and any(map(_needs_it, caches))


def _needs_it(alias: str) -> bool:
    try:
        cache = caches[alias]
    except Exception:
        return False  # Django reports the error of another backend itself.
    return getattr(cache, "identity", None) is not None
