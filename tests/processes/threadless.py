"""A process in which no thread runs on its own.

As under uWSGI without ``enable-threads``: there, threads run while a request does.
"""

import json
import os
import threading
import time

import django

START = threading.Thread.start


def start(self: threading.Thread) -> None:
    """Start a thread, unless it is one that is to run between requests."""
    if self.name.startswith(("entra-redis-renewal", "entra-redis-start")):
        raise RuntimeError("can't start new thread")
    START(self)


def main() -> None:
    """Ask for credentials, as requests do, before and after the token is due."""
    threading.Thread.start = start  # type: ignore[method-assign]
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.settings")
    django.setup()
    from django_entra_redis.credentials import get_credential_provider
    from tests.processes.account import renewal_threads
    from tests.processes.credential import held

    provider = get_credential_provider()
    old = provider.get_credentials()
    held.hold()
    # Somebody asks, time and again; one of them sets the renewal off.
    while not held.asked.is_set():
        during = provider.get_credentials()
        time.sleep(0.02)
    # It is under way, and has no answer: nobody waits for it.
    during = provider.get_credentials()
    held.released.set()
    while provider.status().renewals == 0:
        time.sleep(0.02)
    found = {
        "same": during == old,
        "renewed": provider.get_credentials() != old,
        "threads": renewal_threads(),
    }
    print(json.dumps(found), flush=True)


main()
