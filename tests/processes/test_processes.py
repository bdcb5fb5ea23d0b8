"""Real processes: forks, servers, exits. Each is a row of the soak's table too."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

import django_entra_redis
from emulator import Emulator
from emulator.sockets import free_port
from testproject.siteprocess import FOREIGN

pytest.importorskip("gunicorn", reason="gunicorn is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

ROOT = Path(__file__).resolve().parents[2]
#: Where processes find the package and the tests, unless they are installed.
PATHS = [str(ROOT)] if Path(django_entra_redis.__file__).parents[1] == ROOT else []
#: Seconds within which whatever does not hang is done, on a busy machine too.
PATIENCE = 240.0
LIFE = 6.0
#: No renewal comes earlier than after this share of a life.
EARLIEST = 0.6
#: The soak makes more of them.
FORKS = int(os.environ.get("SOAK_FORKS", "100"))

Account = dict[str, Any]
Tell = Callable[..., None]

pytestmark = [
    pytest.mark.usefixtures("redis_server"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Run the emulator, with tokens that are soon to be renewed."""
    with Emulator(token_lifetime=LIFE) as running:
        yield running


@pytest.fixture
def tell(emulator: Emulator, record_property: Callable[[str, object], None]) -> Tell:
    """Return a function that leaves a row for the soak's table."""

    def tell(fault: str, note: str = "") -> None:
        stats = emulator.stats
        for name, value in {
            "fault": fault,
            "note": note,
            "connections": stats.connections_opened,
            "auths": stats.auths,
            "token_requests": stats.token_requests,
            "closed_in_use": stats.closed_by_expiry_in_use,
        }.items():
            record_property(name, value)

    return tell


def environment(emulator: Emulator, **more: str) -> dict[str, str]:
    """Return the environment of a process that is to reach the emulator."""
    return {
        **{k: v for k, v in os.environ.items() if not FOREIGN.fullmatch(k)},
        **emulator.environ("service_principal"),
        "DJANGO_SETTINGS_MODULE": "tests.processes.settings",
        "PYTHONPATH": os.pathsep.join(PATHS),
        "PYTHONUNBUFFERED": "1",
        "TEST_EMULATOR": str(emulator.directory / "emulator.json"),
        **more,
    }


def run(emulator: Emulator, module: str, *arguments: str, **more: str) -> Any:
    """Run a script to its end, without a word on standard error; return its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.processes.{module}", *arguments],
        env=environment(emulator, **more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    # multiprocessing and os.fork() are warned of where threads run, as they do here.
    errors = re.sub(r".*DeprecationWarning: This process .*\n.*\n", "", done.stderr)
    assert (done.returncode, errors) == (0, ""), done.stderr[-5000:]
    return json.loads(done.stdout)


@contextlib.contextmanager
def serving(
    emulator: Emulator, directory: Path, *command: str, **more: str
) -> Iterator[str]:
    """Run a server on a free port, ``{port}`` in its command; yield its address."""
    port = free_port()
    log = directory / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(port=port) for part in command)],
            env=environment(emulator, **more),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # With its children it makes a group of its own.
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}/"
    except BaseException:  # pragma: no cover - shows what a failed test was about
        print(log.read_text(errors="replace")[-5000:])
        raise
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


def ask(url: str) -> Account | None:
    """Return what a server's process says, ``None`` while there is none to say it."""
    try:
        answer = requests.get(url, timeout=PATIENCE)
    except requests.ConnectionError:
        return None
    assert answer.status_code == 200, answer.text[:2000]
    # Without a body the reloader has ended the process after the headers, in which
    # runserver tells no length.
    account: Account | None = answer.json() if answer.content else None
    return account


def ask_until(
    url: str, enough: Callable[[Mapping[int, list[Account]]], bool]
) -> Mapping[int, list[Account]]:
    """Ask, several at a time, until ``enough``; return the answers by process."""
    found: dict[int, list[Account]] = {}
    deadline = time.monotonic() + PATIENCE
    with ThreadPoolExecutor(8) as executor:
        while not enough(found):
            assert time.monotonic() < deadline, found
            for account in executor.map(ask, [url] * 8):
                if account is not None:
                    found.setdefault(account["pid"], []).append(account)
            # What it waits for takes seconds; the servers are to have time for it.
            time.sleep(0.2)
    return found


def renewed(accounts: list[Account]) -> bool:
    """Whether a process has renewed the token since it was first asked."""
    return bool(accounts[-1]["renewals"] > accounts[0]["renewals"])


def check(accounts: Mapping[int, list[Account]]) -> None:
    """Check that each process has its own connections, and one renewal thread."""
    clients = [{account["client"] for account in own} for own in accounts.values()]
    assert sum(map(len, clients)) == len(set().union(*clients))
    for pid, own in accounts.items():
        assert {account["answer"] for account in own} == {pid}
        assert own[-1]["threads"] == 1


def no_early_request(emulator: Emulator) -> bool:
    """Whether nobody who had a fresh token has asked for one."""
    times = [request.at for request in emulator.requests if request.outcome == "ok"]
    return times[1] - times[0] >= EARLIEST * LIFE


def test_gunicorn_preload(emulator: Emulator, tmp_path: Path, tell: Tell) -> None:
    """Every worker renews, with connections of its own, and no request at start."""
    with serving(
        emulator,
        tmp_path,
        "gunicorn",
        "--preload",
        "--workers=4",
        "--bind=127.0.0.1:{port}",
        "tests.processes.wsgi:application",
    ) as url:
        found = ask_until(
            url, lambda found: len(found) == 4 and all(map(renewed, found.values()))
        )
    check(found)
    assert no_early_request(emulator)
    tell("gunicorn --preload, 4 workers", "every worker renews, no request at start")


def test_uvicorn(emulator: Emulator, tmp_path: Path, tell: Tell) -> None:
    """An ASGI server's process renews, with one thread for all its requests."""
    with serving(
        emulator,
        tmp_path,
        "uvicorn",
        "--lifespan=off",
        "--port={port}",
        "tests.processes.asgi:application",
    ) as url:
        found = ask_until(
            f"{url}async",
            lambda found: len(found) == 1 and all(map(renewed, found.values())),
        )
    check(found)
    (accounts,) = found.values()
    assert all(account["found"] == [0, 1, 2] for account in accounts)
    tell("uvicorn (ASGI)", "one renewal thread")


def test_runserver_reloads(emulator: Emulator, tmp_path: Path, tell: Tell) -> None:
    """The development server renews, before and after it reloads itself."""
    module = tmp_path / "reloaded.py"
    module.write_text("")
    with serving(
        emulator,
        tmp_path,
        "django",
        "runserver",
        "127.0.0.1:{port}",
        TEST_MODULE="reloaded",
        PYTHONPATH=os.pathsep.join([str(tmp_path), *PATHS]),
    ) as url:
        before = ask_until(url, lambda found: any(map(renewed, found.values())))
        module.write_text("changed = True\n")
        after = ask_until(
            url,
            lambda found: any(
                renewed(own) for pid, own in found.items() if pid not in before
            ),
        )
    check(before)
    check({pid: own for pid, own in after.items() if pid not in before})
    tell("runserver and its reloader", "one renewal thread in each process")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(emulator: Emulator, method: str, tell: Tell) -> None:
    """Every process renews; those that inherit a fresh token do not ask at start."""
    found = run(emulator, "forks", method)
    accounts = [*found["children"], found["parent"]]
    check({account["pid"]: [account] for account in found["children"]})
    clients = [client for child in found["children"] for client in child["clients"]]
    assert found["parent"]["client"] not in clients
    assert len({account["pid"] for account in accounts}) == 4
    # Spawned ones inherit nothing.
    assert method == "spawn" or no_early_request(emulator)
    tell(f"multiprocessing, {method}", "every process renews")


def test_fork_while_a_renewal_is_in_flight(emulator: Emulator, tell: Tell) -> None:
    """A child does not wait for the parent's request: it makes its own."""
    found = run(
        emulator,
        "forks",
        "in_flight",
        TEST_IDENTITY='{"CREDENTIAL": "tests.processes.credential.held"}',
        TEST_LIFE="10",
    )
    check({child["pid"]: [child] for child in found["children"]})
    assert len(found["children"]) == 2
    tell("fork while a renewal is in flight", "every child renews")


def test_a_thousand_forks(emulator: Emulator, tell: Tell) -> None:
    """No child is ever stuck at a lock that another thread held at the fork."""
    emulator.token_lifetime = 2.0
    found = run(
        emulator, "forks", "often", str(FORKS), REDIS_URL=emulator.plaintext_url
    )
    assert found == {"done": FORKS, "stuck": 0}
    tell(f"{FORKS:,} forks, locks held by 4 threads", "no deadlock")


def test_without_background_threads(emulator: Emulator, tell: Tell) -> None:
    """Callers renew in the advisory window, and none of them waits for it."""
    found = run(
        emulator,
        "threadless",
        TEST_IDENTITY='{"CREDENTIAL": "tests.processes.credential.held"}',
        TEST_LIFE="20",
    )
    assert found == {"same": True, "renewed": True, "threads": 0}
    tell("no background thread (uWSGI)", "callers renew, nobody waits")


@pytest.mark.parametrize("kind", ["token request", "renewal", "AUTH"])
def test_interpreter_shutdown(emulator: Emulator, kind: str, tell: Tell) -> None:
    """The process ends promptly, with nothing on standard error."""
    emulator.token_lifetime = 2.0
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tests.processes.quitting", kind],
            env=environment(emulator),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "quits\n", "")
        # Whoever waited for the endpoint or for Redis would wait for 60 s.
        assert time.monotonic() - began < 45
        emulator.faults.recover()
        emulator.freeze(False)
    tell(f"interpreter shutdown during {kind}", "prompt exit, nothing on stderr")
