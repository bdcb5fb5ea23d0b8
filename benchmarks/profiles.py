"""Where the time of an operation goes."""

import cProfile
import pstats
import sys

from django.test import override_settings

from .contenders import OURS, cache_settings
from .operations import VALUES, operations
from .servers import RedisServer

LINES = 20


def profile(operation: str, server: RedisServer) -> int:
    """Print a profile of many times one operation; return the exit status."""
    with override_settings(CACHES=cache_settings(server.url)):
        value = VALUES["small int" if operation == "incr" else "1 KB dict"]
        known = operations(OURS, value)
        if operation not in known:
            print(f"It is one of {', '.join(known)}.", file=sys.stderr)
            return 2
        call = known[operation]
        count = 500 if "many" in operation else 20_000
        call()
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(count):
            call()
        profiler.disable()
    statistics = pstats.Stats(profiler)
    statistics.strip_dirs().sort_stats("tottime").print_stats(LINES)
    return 0
