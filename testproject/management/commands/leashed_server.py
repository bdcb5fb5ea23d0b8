"""``manage.py leashed_server``: a ``runserver`` that dies with its parent."""

import os
import signal
import sys
import threading
from typing import Any

from django.core.management.commands.runserver import Command as Runserver

GRACE = 2.0


class Command(Runserver):
    """Serves until standard input ends."""

    help = (
        "Serve without reloader until standard input ends, which it does with the "
        "process that holds its other end, even when that one is killed."
    )

    def run(self, **options: Any) -> None:
        """Watch standard input beside serving; the reloader would have its own."""
        # A shell's background jobs, and their children, ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=_follow, name="leash", daemon=True).start()
        self.inner_run(**options)


def _follow() -> None:
    """Wait for the end of standard input, then end the server as Ctrl-C does."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    timer = threading.Timer(GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()
    os.kill(os.getpid(), signal.SIGINT)
