"""Samples operations on request: a line with a name and a count each."""

import sys


def main() -> None:
    """Answer each line with the CPU seconds that it took."""
    url, how = sys.argv[1:]
    if how == "without":
        # As if it were not installed: it decides which parser redis-py has, and how
        # commands are packed.
        sys.modules["hiredis"] = None  # type: ignore[assignment]
    import django
    from django.conf import settings

    settings.configure(USE_TZ=True)
    django.setup()

    from django.test import override_settings
    from redis.utils import HIREDIS_AVAILABLE

    from .contenders import OURS, cache_settings
    from .operations import VALUES, operations
    from .rounds import cpu_of

    assert (how == "with") == HIREDIS_AVAILABLE
    with override_settings(CACHES=cache_settings(url)):
        known = operations(OURS, VALUES["1 KB dict"])
        print("ready", flush=True)
        for line in sys.stdin:
            name, count = line.rsplit(maxsplit=1)
            print(cpu_of(known[name])(int(count)), flush=True)


if __name__ == "__main__":
    main()
