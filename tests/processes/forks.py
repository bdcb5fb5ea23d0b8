"""Forks in awkward moments: ``python -m tests.processes.forks KIND [NUMBER]``.

Prints a line of JSON: what the processes say of themselves.
"""

import faulthandler
import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import django

#: Seconds after which a child counts as stuck.
PATIENCE = 100


def set_up() -> None:
    """Be a Django process, which tells where it hangs when an alarm ends it."""
    faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.settings")
    django.setup()


def account_for() -> dict[str, Any]:
    """Return a process's account, once it has renewed the token by itself."""
    set_up()
    from tests.processes.account import give_account

    # Where it hangs, if it does.
    faulthandler.dump_traceback_later(PATIENCE - 5)
    first = give_account()
    last = first
    while last["renewals"] == first["renewals"]:
        time.sleep(0.05)
        last = give_account()
    faulthandler.cancel_dump_traceback_later()
    return {**last, "clients": sorted({first["client"], last["client"]})}


def fork(child: Callable[[], Any]) -> Callable[[], Any]:
    """Run ``child`` in a child process; return a function that waits for its result."""
    read, write = os.pipe()
    # In one line, since what measures coverage sees no others of the child in here.
    pid = os.fork() or _be_child(child, write)
    os.close(write)

    def result() -> Any:
        with os.fdopen(read) as pipe:
            text = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"the child ended with status {status}"
        return json.loads(text)

    return result


def _be_child(child: Callable[[], Any], write: int) -> NoReturn:
    # A deadlock ends the child, and is told by its status.
    signal.alarm(PATIENCE)
    with os.fdopen(write, "w") as pipe:
        json.dump(child(), pipe)
    os._exit(0)


def fork_in_flight() -> Any:
    """Fork while the parent waits for the answer to a renewal."""
    from tests.processes.account import give_account
    from tests.processes.credential import held

    parent = give_account()
    held.hold()
    assert held.asked.wait(PATIENCE)
    children = [fork(account_for) for _ in range(2)]
    accounts = [child() for child in children]
    held.released.set()
    return {"parent": parent, "children": accounts}


def fork_often(number: int) -> Any:
    """Fork again and again, while other threads hold every lock there is."""
    from django.core.cache import cache, caches, close_caches
    from django.core.signals import setting_changed

    from django_entra_redis.credentials import get_credential_provider

    # A child that is forked in the midst of a lookup may wait for ever in its own, for
    # one of the C library's locks. So all addresses are known before.
    vars(socket)["getaddrinfo"] = functools.cache(socket.getaddrinfo)
    get_credential_provider().get_credentials()
    # Not looked up in the children: asgiref guards what `caches` holds by one lock for
    # all threads (asgiref.local.Local), which another of them may hold at the fork.
    backend = caches["default"]
    backend.get("key")
    # The thread that forks would wait for each of the others, 5 ms at a time.
    sys.setswitchinterval(0.0005)
    over = threading.Event()

    def use() -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            cache.get("key")
            get_credential_provider().get_credentials()
            if turn % 1000 == 999:
                # Pools are closed, and the renewal is made anew.
                setting_changed.send(sender=None, setting="ENTRA_REDIS")
            close_caches()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    done = 0
    for turn in range(number):
        read, write = os.pipe()
        pid = os.fork() or _be_short_lived(backend, turn, write)
        os.close(write)
        done += os.read(read, 1) == b"."
        os.close(read)
        os.waitpid(pid, 0)
    over.set()
    for thread in threads:
        thread.join(PATIENCE)
    return {"done": done, "stuck": sum(thread.is_alive() for thread in threads)}


def _be_short_lived(backend: Any, turn: int, write: int) -> NoReturn:
    from django_entra_redis.credentials import get_credential_provider

    signal.alarm(PATIENCE)
    get_credential_provider().get_credentials()
    if turn % 10 == 0:  # pragma: no branch - the others' lines are not told
        backend.get("key")
    os.write(write, b".")
    if turn == 0:  # pragma: no branch
        os._exit(0)
    # Not by os._exit(): what measures coverage would write a file each time.
    os.kill(os.getpid(), signal.SIGKILL)  # pragma: no cover - it tells nobody
    raise AssertionError  # pragma: no cover


def send_account(end: Any) -> None:
    """Send the parent this process's account."""
    end.send(account_for())


def start_processes(method: str) -> Any:
    """Start processes by multiprocessing, from one that has used the cache."""
    from tests.processes.account import give_account

    parent = give_account()
    context: Any = multiprocessing.get_context(method)
    processes, ends = [], []
    for _ in range(3):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=send_account, args=(there,))
        process.start()
        processes.append(process)
        ends.append(here)
    accounts = [end.recv() for end in ends if end.poll(PATIENCE)]
    for process in processes:
        process.join(PATIENCE)
    return {"parent": parent, "children": accounts}


def main(kind: str, number: int = 0) -> None:
    """Run one of them."""
    set_up()
    if kind == "in_flight":
        found = fork_in_flight()
    elif kind == "often":
        found = fork_often(number)
    else:
        found = start_processes(kind)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":  # pragma: no branch - multiprocessing imports it
    main(sys.argv[1], *map(int, sys.argv[2:]))
