"""gevent and eventlet: greenlets renew, share connections, and hold up nobody."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator import Emulator
from tests.integrations.workers import PATIENCE, environment
from tests.processes.test_processes import ask_until, check, renewed, serving

LIFE = 12.0
RENEWALS = 3
PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}

# No module, since coverage can't follow it from greenlet to greenlet.
PROGRAM = """
import json, os, threading, time
import django
django.setup()
from django.core.cache import cache
from django_entra_redis.credentials import get_credential_provider
from emulator import EmulatorControl

control = EmulatorControl.from_file(os.environ["TEST_EMULATOR"])
over, errors, done = threading.Event(), [], [0] * 20

def work(number):
    while not over.is_set():
        try:
            cache.set(f"key-{number}", number)
            if cache.get(f"key-{number}") != number:
                errors.append("another value")
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        done[number] += 1
        time.sleep(0.01)

threads = [threading.Thread(target=work, args=(n,)) for n in range(len(done))]
for thread in threads:
    thread.start()
provider = get_credential_provider()
while provider.status().renewals < RENEWALS:
    time.sleep(0.05)
control.fail("hang")
request = "entra-redis-token-request"
while not any(t.name.startswith(request) for t in threading.enumerate()):
    time.sleep(0.01)
before = list(done)
while any(now < then + 2 for now, then in zip(done, before)):
    time.sleep(0.01)
hung = any(t.name.startswith(request) for t in threading.enumerate())
over.set()
for thread in threads:
    thread.join()
print(json.dumps({"errors": errors[:3], "hung": hung}), flush=True)
os._exit(0)
"""

COPIES = """
import json, os, threading, time
import django
django.setup()
from django.conf import settings
from django.core.cache import caches
default = settings.CACHES["default"]
copying = {**default["OPTIONS"], "client_side_cache": True}
settings.CACHES["copying"] = {**default, "OPTIONS": copying}
cache, other = caches["copying"], caches["default"]
other.set_many({f"key-{number}": number for number in range(100)})
errors = []

def work(number):
    for turn in range(40):
        key = (number + turn) % 100
        if cache.get(f"key-{key}") != key:
            errors.append("another value")
        cache.set(f"own-{number}", turn)
        if cache.get(f"own-{number}") != turn:
            errors.append("not its own")
        if turn % 10 == 0:
            time.sleep(0)

threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
other.set("key-0", "new")
while cache.get("key-0") != "new":
    time.sleep(0.001)
info = caches["copying"].client_side_cache_info()
found = {"errors": errors[:3], "hits": info.hits > 100, "connected": info.connected}
print(json.dumps(found), flush=True)
os._exit(0)
"""


KILLS = """
import gc, json, os, signal
import gevent
import django
django.setup()
import redis
from django.conf import settings
from django.core.cache import caches

PLACES = 3
default = settings.CACHES["default"]
few = {"max_connections": PLACES, "pool_timeout": 20}
settings.CACHES["tls"] = {**default, "OPTIONS": {**default["OPTIONS"], **few}}
plain = {"LOCATION": os.environ["TEST_BACKEND"], "OPTIONS": {**few, "identity": None}}
settings.CACHES["plain"] = {**default, **plain}
with redis.Redis.from_url(os.environ["TEST_BACKEND"]) as admin:
    server = admin.info("server")["process_id"]
calls = [
    lambda cache: cache.get("key"),
    lambda cache: cache.incr("key"),
    lambda cache: cache.set_many({"a": 1, "b": 2}),
    lambda cache: cache.set("key", "x" * 500_000),
    lambda cache: cache.keys("*"),
    lambda cache: cache.lock("key", timeout=9).acquire(blocking=False),
    lambda cache: cache.client.get_client().get("key"),
]
kills = 0

class Injected(Exception):
    pass

def work(cache, call):
    global kills
    try:
        call(cache)
    except BaseException as error:
        kills += isinstance(error, (gevent.GreenletExit, gevent.Timeout, Injected))

caches["tls"].set("number", 1)
gc.collect()
gc.disable()
for number, (alias, call) in enumerate((a, c) for a in ("tls", "plain") for c in calls):
    cache = caches[alias]
    for turn, cause in enumerate((gevent.GreenletExit, gevent.Timeout, Injected)):
        os.kill(server, signal.SIGSTOP)
        # One more than there are places for waits for one.
        greenlets = [gevent.spawn(work, cache, call) for _ in range(PLACES + 1)]
        gevent.sleep((number + turn) % 4 * 0.01)  # They die wherever they are.
        gevent.killall(greenlets, exception=cause)
        os.kill(server, signal.SIGCONT)
        del greenlets
    # All are to be had, at once: nothing that has been lost counts as taken.
    places = [gevent.spawn(cache.get, "number") for _ in range(2 * PLACES)]
    gevent.joinall(places, raise_error=True)
    assert [one.value for one in places] == [1] * len(places)
    del places
print(json.dumps({"killed": kills > 50}), flush=True)
os._exit(0)
"""


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Run the emulator; its clients' coverage is not measured."""
    for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(name, raising=False)
    with Emulator(token_lifetime=LIFE) as running:
        yield running


def run(emulator: Emulator, program: str) -> Any:
    """Run a program that has the emulator's Redis for a cache."""
    environ = environment(
        emulator,
        DJANGO_SETTINGS_MODULE="tests.processes.settings",
        TEST_EMULATOR=str(emulator.directory / "emulator.json"),
        TEST_BACKEND=emulator.backend_url,
        # Long before it is over, so that there is time for an endpoint that hangs.
        TEST_IDENTITY='{"REFRESH_RATIO": 0.25}',
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("kind", PATCHES)
def test_greenlets(emulator: Emulator, kind: str) -> None:
    """They go through renewals, and on while the identity endpoint hangs."""
    program = PROGRAM.replace("RENEWALS", str(RENEWALS))
    done = run(emulator, f"{PATCHES[kind]}\n{program}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"errors": [], "hung": True}
    assert emulator.stats.closed_by_expiry_in_use == 0
    # The last one hangs.
    assert emulator.stats.token_requests in (RENEWALS + 1, RENEWALS + 2)


def test_copies(emulator: Emulator) -> None:
    """Greenlets read copies, and what is asked for on one connection, each its own; a
    write of another cache is seen, and nobody holds up the others."""
    done = run(emulator, f"{PATCHES['gevent']}\n{COPIES}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"errors": [], "hits": True, "connected": True}


def test_kills(emulator: Emulator) -> None:
    """Greenlets that are killed anywhere leave no connection that counts as taken, and
    no cycle that the garbage collector, which is off, would have to break for that."""
    done = run(emulator, f"{PATCHES['gevent']}\n{KILLS}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"killed": True}


def test_patched_too_late(emulator: Emulator) -> None:
    """The error says what to do."""
    program = f"""
import requests
{PATCHES["gevent"]}
import django
django.setup()
from django.core.cache import cache
from django_entra_redis.exceptions import TokenError
try:
    cache.get("key")
except TokenError as error:
    print(error.code)
"""
    assert run(emulator, program).stdout == "token_patched_late\n"


@pytest.mark.parametrize("preload", [False, True])
def test_gunicorn(emulator: Emulator, tmp_path: Path, preload: bool) -> None:
    """Its gevent workers renew; with --preload where its configuration patches."""
    emulator.token_lifetime = 6.0
    command = ["gunicorn", "--worker-class=gevent", "--workers=2"]
    if preload:
        configuration = tmp_path / "gunicorn.conf.py"
        configuration.write_text(PATCHES["gevent"])
        command += ["--preload", f"--config={configuration}"]
    with serving(
        emulator,
        tmp_path,
        *command,
        "--bind=127.0.0.1:{port}",
        "tests.processes.wsgi:application",
        # What is left of a token's life is for a busy machine.
        TEST_IDENTITY='{"REFRESH_RATIO": 0.3}',
    ) as url:
        found = ask_until(
            url, lambda found: len(found) == 2 and all(map(renewed, found.values()))
        )
    check(found)
