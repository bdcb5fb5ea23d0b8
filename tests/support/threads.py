"""Threads that get in each other's way as often as they can, and those left running."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .caches import wait_until


@contextmanager
def all_ended() -> Iterator[None]:
    """Wait in the end for the threads that have been started meanwhile."""
    before = set(threading.enumerate())
    try:
        yield
    finally:
        wait_until(lambda: before.issuperset(threading.enumerate()))


@contextmanager
def hammering(
    churn: Callable[[], None], over: threading.Event, threads: int = 2
) -> Iterator[None]:
    """Have threads change something while this one reads it.

    Parameters:
        churn: changes it until ``over`` is set.
    """
    interval = sys.getswitchinterval()
    started = [threading.Thread(target=churn) for _ in range(threads)]
    for thread in started:
        thread.start()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        over.set()
        for thread in started:
            thread.join()
