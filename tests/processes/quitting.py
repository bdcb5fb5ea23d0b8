"""Ends in the middle of something: ``python -m tests.processes.quitting KIND``."""

import os
import sys
import threading
import time

import django

from emulator import EmulatorControl

REQUEST = "entra-redis-token-request:default"


def wait_for_thread(name: str) -> None:
    """Wait until a thread of this name runs."""
    while name not in [thread.name for thread in threading.enumerate()]:
        time.sleep(0.005)


def main(kind: str) -> None:
    """Come to the point, and return: the interpreter shuts down."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.settings")
    django.setup()
    from django.core.cache import cache

    from django_entra_redis.credentials.provider import start_renewal

    control = EmulatorControl.from_file(os.environ["TEST_EMULATOR"])
    if kind == "token request":
        control.fail("hang")
        start_renewal("default")
        wait_for_thread(REQUEST)
    elif kind == "renewal":
        cache.get("key")
        control.fail("hang")
        wait_for_thread(REQUEST)
    else:
        start_renewal("default")
        control.freeze()
        threading.Thread(target=cache.get, args=("key",), daemon=True).start()
        control.description()
    print("quits", flush=True)


main(sys.argv[1])
