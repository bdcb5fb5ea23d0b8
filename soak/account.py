"""What a process of a server or a worker has done with the cache."""

import os
import threading
import time
from typing import Any

from django.core.cache import caches

from django_entra_redis.credentials import get_credential_provider
from soak.load import Worker, warm_up
from soak.tally import Counter

#: Operations at a time: one of each kind.
ROUND = 11
PAUSE = 0.01
#: Seconds that a thread may be late before it is noted.
LATE = 0.05


class Account:
    """A process's operations, and how late its threads were."""

    def __init__(self) -> None:
        self._counter = Counter()
        self._workers: dict[str, Worker] = {}
        self._late: list[tuple[float, float]] = []

    def use(self, name: str) -> dict[str, Any]:
        """Carry out one round of operations; return what has become of all.

        Parameters:
            name: of who uses it; the same one never twice at a time.
        """
        worker = self._workers.get(name)
        if worker is None:
            # What a busy machine makes of the start is no row's affair.
            warm_up(caches["default"])
            worker = Worker(f"{os.getpid()}-{name}", caches["default"], self._counter)
            self._workers[name] = worker
        for number in range(ROUND):
            worker.step(number)
            time.sleep(PAUSE)
        return {
            "pid": os.getpid(),
            "renewals": get_credential_provider().status().renewals,
            "tally": self._counter.tally(whole=True).to_json(),
            "counted": [worker.counts, worker.incremented + worker.unknown],
            "late": list(self._late),
        }

    def watch(self) -> None:
        """Have a thread, or a greenlet, note when it is held up."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            began = time.monotonic()
            time.sleep(PAUSE)
            late = time.monotonic() - began - PAUSE
            if late > LATE:
                self._late.append((began, late))


_accounts: dict[int, Account] = {}


def own_account() -> Account:
    """Return this process's account; a child's is its own."""
    account = Account()
    # Of several threads that come at first, one has its own kept.
    kept = _accounts.setdefault(os.getpid(), account)
    if kept is account:
        account.watch()
    return kept
