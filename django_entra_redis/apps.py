"""The Django app: it starts the renewal threads, and registers the system checks and
the parameter for redis-py's URLs."""

import atexit
import contextlib
import importlib
import logging
import threading
from typing import Any

from django.apps import AppConfig

from . import redis_urls
from ._fork import (
    IMPORT_TIMEOUT,
    Order,
    import_module,
    no_fork,
    register,
    wait_for_imports,
)

logger = logging.getLogger(__name__)

#: Seconds from start-up to the first request, unless somebody needs a token sooner:
#: ``manage.py check`` is over by then.
FIRST_REQUEST = 1.0
#: Seconds without another thread's import after which the site counts as loaded.
CALM = 0.2


class EntraRedisConfig(AppConfig):
    """Keeps the tokens of the identities in use fresh from the start."""

    name = "django_entra_redis"
    verbose_name = "Redis with Entra ID"

    def __init__(self, app_name: str, app_module: Any) -> None:
        super().__init__(app_name, app_module)
        # Before the apps are ready: some read their Redis URL as they are imported.
        redis_urls.register()

    def ready(self) -> None:
        """Register the checks, and begin to start the renewals; return at once."""
        import_module(".checks", __package__)
        _starter.start()


class _Starter:
    """Starts the renewals in a thread, a moment after start-up.

    The thread also imports redis-py and the caches' backends, which takes time.
    """

    def __init__(self) -> None:
        self._pending = False
        self._exiting = threading.Event()

    def start(self) -> None:
        """Start the thread that starts the renewals."""
        self._pending = True
        # If no thread can start (the process's limit, a subinterpreter), the first
        # demand of a token starts its renewal.
        with contextlib.suppress(RuntimeError):
            threading.Thread(
                target=self._run, name="entra-redis-start", daemon=True
            ).start()

    def stop(self) -> None:
        """Import nothing more: the interpreter is about to exit."""
        self._exiting.set()

    def _run(self) -> None:
        self._exiting.wait(FIRST_REQUEST)
        # A site that takes long to load is still importing its own modules.
        wait_for_imports(IMPORT_TIMEOUT, CALM)
        try:
            # The caches' backends are imported as the caches are looked at.
            with no_fork():
                if self._exiting.is_set():
                    return
                # The package before any of its modules: see wait_for_imports().
                importlib.import_module("redis")
                import_module(".cache.in_use", __package__).start_renewals()
        except Exception:
            # A cache of another backend that is broken: nothing that a traceback on
            # standard error would help. The first demand of a token starts its renewal
            # all the same.
            logger.debug("No renewal started at start-up.", exc_info=True)
        self._pending = False

    def after_fork_in_child(self) -> None:
        """Start the thread in a child process, if the parent's had not finished."""
        self._exiting = threading.Event()
        if self._pending:
            self.start()


_starter = _Starter()
register(_starter, Order.THREADS)
atexit.register(_starter.stop)
