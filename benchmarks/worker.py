"""Does operations on request, in a process of its own.

Each line is a kind of value, an operation and a count with colons between, and is
answered with the seconds of CPU time that it took.
"""

import gc
import sys
from pathlib import Path


def main() -> None:
    """Answer each line.

    Parameters of the command line: the server's URL, ``with`` or ``without`` hiredis,
    and where the server speaks TLS the file of its authority.
    """
    url, how, *tls = sys.argv[1:]
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

    from .contenders import OURS
    from .hot import hot_operations, settings_of
    from .operations import VALUES, operations
    from .rounds import cpu_of

    assert (how == "with") == HIREDIS_AVAILABLE
    ca_file = Path(tls[0]) if tls else None
    with override_settings(CACHES=settings_of(url, ca_file)):
        print("ready", flush=True)
        current, known = "", {}
        for line in sys.stdin:
            kind, name, count = line.split(":")
            if kind != current:
                value = VALUES[kind]
                current = kind
                known = operations(OURS, value) | hot_operations(value)
            # So that it is not due sooner or later by what was done before.
            gc.collect()
            print(cpu_of(known[name])(int(count)), flush=True)


if __name__ == "__main__":
    main()
