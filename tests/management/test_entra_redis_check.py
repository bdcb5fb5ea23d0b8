"""``manage.py entra_redis_check``: what it prints, and with which status it ends."""

import io
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.management.commands.entra_redis_check import Command
from django_entra_redis.signals import token_renewal_failed
from emulator import Emulator
from tests.support.sites import BACKEND, Site

PATIENCE = 120.0
LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
NO_ENTRA = {
    "BACKEND": BACKEND,
    "LOCATION": "redis://127.0.0.1:1",
    "OPTIONS": {"identity": None},
}


@pytest.fixture
def site(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site that has nothing wrong with it, and a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return Site(emulator, monkeypatch)


def run(*arguments: str, **options: Any) -> tuple[int, str]:
    """Return the command's exit status and output."""
    output = io.StringIO()
    status = 0
    try:
        call_command("entra_redis_check", *arguments, stdout=output, **options)
    except SystemExit as error:
        status = cast(int, error.code)
    return status, output.getvalue()


@contextmanager
def site_caches(site: Site, **others: dict[str, Any]) -> Iterator[None]:
    """Have the site's cache, and others beside it."""
    default = {"BACKEND": BACKEND, "LOCATION": site.location, "OPTIONS": site.options}
    with override_settings(
        CACHES={"default": default, **others}, ENTRA_REDIS={"default": site.identity}
    ):
        yield


def test_passing(site: Site) -> None:
    """A line per step at least, each with its mark and its time."""
    with site.settings():
        status, text = run()
    assert status == 0
    title, *lines = text.splitlines()
    assert title == f"Cache 'default' at {site.location}"
    begun = [line.split()[:2] for line in lines if not line.startswith(" " * 10)]
    names = ["settings", "dns", "tcp", "tls", "token", "auth", "ping", "round_trip"]
    assert begun == [[name, "ok"] for name in names]
    assert text.count(" ms)") == len(names)


def test_failing(site: Site) -> None:
    """The step that fails is the last, with its code and what to do."""
    site.identity["USERNAME"] = site.emulator.application.client_id
    with site.settings():
        status, text = run()
    assert status == 1
    words = " ".join(text.split())
    assert " auth FAIL Redis refused the token of user " in words
    assert words.endswith(
        "code: auth_username_is_client_id The Redis user name is the principal's "
        "client ID. It must be its object ID, the commonest mistake. Leave USERNAME "
        "out, or set it to the object ID. az ad sp show --id CLIENT_ID --query id "
        "prints the object ID of an application or a user-assigned identity."
    )
    assert "ping" not in text


def test_width(site: Site) -> None:
    """It is readable at 80 columns: nothing is wider, nor coloured when piped."""
    site.identity["USERNAME"] = site.emulator.application.client_id
    with site.settings():
        _, text = run()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text


def test_colours(site: Site) -> None:
    """Django's own style colours it."""
    with site.settings():
        _, text = run(force_color=True)
    assert "\x1b[32;1mok  \x1b[0m" in text


def test_several_caches(site: Site) -> None:
    """All are checked, each reported; a single failure fails the whole."""
    broken = {
        "BACKEND": BACKEND,
        "LOCATION": "rediss://127.0.0.1:1",
        "OPTIONS": {"db": 1},
    }
    with site_caches(site, broken=broken, local=LOCMEM, plain=NO_ENTRA):
        status, text = run("--json")
        chosen, _ = run("--json", "--cache", "default")
    document = json.loads(text)
    reports = {report["cache"]: report["ok"] for report in document["caches"]}
    assert reports == {"default": True, "broken": False}
    assert (status, document["ok"], chosen) == (1, False, 0)


def test_time_is_shared(site: Site) -> None:
    """A cache that hangs takes no more than its share of the time."""
    site.emulator.freeze()
    hanging = {"BACKEND": BACKEND, "LOCATION": site.location}
    site.location, site.options = "redis://127.0.0.1:1", {}
    with site_caches(site, hanging=hanging):
        status, text = run("--json", "--timeout=5")
    steps = {r["cache"]: r["steps"][-1]["code"] for r in json.loads(text)["caches"]}
    assert steps == {"default": "tcp_refused", "hanging": "port_silent"}
    assert status == 1


def test_no_entra_cache() -> None:
    """Without any Entra cache nothing is all right, and it says why."""
    with override_settings(CACHES={"default": LOCMEM, "plain": NO_ENTRA}):
        status, text = run()
        as_json, document = run("--json")
    assert (status, text) == (1, "No cache in CACHES has an Entra identity.\n")
    assert (as_json, json.loads(document)) == (1, {"ok": False, "caches": []})


def test_unknown_alias(site: Site) -> None:
    """A name that is none fails beside the others, and those there are are told."""
    with site_caches(site, local=LOCMEM):
        status, document = run(
            "--json", "--cache=x", "--cache=local", "--cache=default"
        )
        _, text = run("--cache=x")
    reports = json.loads(document)["caches"]
    assert [(r["cache"], r["ok"]) for r in reports] == [
        ("x", False),
        ("local", False),
        ("default", True),
    ]
    (step,) = reports[0]["steps"]
    assert step["detail"] == "'x' is not a cache of django_entra_redis in CACHES."
    assert step["hint"] == "Those there are: default."
    assert status == 1
    assert text.startswith("Cache 'x' at ?\n  settings   FAIL 'x' is not a cache")
    with override_settings(CACHES={"default": LOCMEM}):
        assert "Those there are: none." in run("--cache=x")[1]


class OwnCache(EntraRedisCache):
    """Somebody's own backend."""


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"KEY_FUNCTION": "nowhere.key"}, "No module named 'nowhere'"),
        ({"BACKEND": f"{BACKEND}X"}, "Could not find backend"),
        (
            {"BACKEND": f"{__name__}.OwnCache", "KEY_FUNCTION": "nowhere.key"},
            "No module named 'nowhere'",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--cache=default", "--cache=broken")])
def test_cache_that_django_can_not_build(
    site: Site, broken: dict[str, Any], says: str, arguments: tuple[str, ...]
) -> None:
    """It fails at its settings, beside those that pass; others' are none of ours."""
    others: dict[str, Any] = {"another": {"BACKEND": "nowhere.Cache"}, "none": None}
    with site_caches(site, broken={**NO_ENTRA, **broken}, **others):
        status, document = run("--json", *arguments)
        as_text, text = run(*arguments)
    passing, failing = json.loads(document)["caches"]
    assert (passing["cache"], passing["ok"]) == ("default", True)
    (step,) = failing.pop("steps")
    assert failing == {
        "cache": "broken",
        "ok": False,
        "location": "?",
        "identity": None,
    }
    assert (step["name"], step["code"]) == ("settings", "settings_invalid")
    assert step["detail"].startswith("CACHES['broken'] can't be used: ")
    assert says in step["detail"]
    assert "Cache 'broken' at ?\n  settings   FAIL CACHES['broken'] can't be" in text
    assert (status, as_text) == (1, 1)


def test_json_and_watch() -> None:
    """One document has no end to wait for."""
    with pytest.raises(CommandError, match="exclude each other") as info:
        run("--json", "--watch")
    assert info.value.returncode == 1


@pytest.mark.parametrize("location", ["rediss://[x", []])
def test_location_that_is_none(location: Any) -> None:
    """Broken settings are a failed step, whether or not there is a URL to show."""
    default = {"BACKEND": BACKEND, "LOCATION": location}
    with override_settings(CACHES={"default": default}, ENTRA_REDIS={"default": {}}):
        status, text = run()
        _, document = run("--json")
    assert status == 1
    assert text.startswith("Cache 'default' at ?\n")
    (report,) = json.loads(document)["caches"]
    assert (report["location"], report["identity"]) == ("?", None)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_timeout_that_is_none(value: str) -> None:
    """It is to be a number of seconds."""
    with pytest.raises(CommandError, match="not a number of seconds"):
        run(f"--timeout={value}")


# -- --watch -------------------------------------------------------------------------


def test_watch_tells_of_failures(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal that fails has its line too; nobody is told after the end."""

    def fail_then_end(command: Command) -> None:
        token_renewal_failed.send("default", identity="default", error="no luck")
        raise KeyboardInterrupt

    monkeypatch.setattr(Command, "_wait", fail_then_end)
    before = len(token_renewal_failed.receivers)
    with site.settings():
        status, text = run("--watch")
    assert status == 0
    assert re.search(r"\n\d\d:\d\d:\d\d default: renewal failed: no luck\n", text)
    assert len(token_renewal_failed.receivers) == before


def test_watch(site: Site) -> None:
    """It goes on through renewals, a line for each, until Ctrl-C ends it with 0."""
    site.emulator.token_lifetime = 3.0
    environment = {
        **os.environ,
        **site.emulator.environ("service_principal"),
        "ENTRA_REDIS_EMULATOR": "1",
        "DJANGO_SETTINGS_MODULE": "testproject.settings",
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "django", "entra_redis_check", "--watch"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    seen: list[str] = []

    def read(stream: Any) -> None:
        for line in stream:
            lines.put(line)

    reading = threading.Thread(target=read, args=(process.stdout,))
    reading.start()
    try:
        renewals = 0
        while renewals < 2:
            seen.append(lines.get(timeout=PATIENCE))
            renewals += "token renewed" in seen[-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        reading.join()
        assert process.stderr is not None
        error = process.stderr.read()
        process.stderr.close()
        process.stdout.close()
    text = "".join(seen)
    assert "Watching renewals; Ctrl-C ends it.\n" in text
    assert re.search(
        r"^\d\d:\d\d:\d\d default: token renewed, expires \d\d:\d\d:\d\d, "
        r"next \d\d:\d\d:\d\d$",
        seen[-1].rstrip(),
    )
    assert "Traceback" not in error
    for secret in ("eyJ", site.emulator.application.secret):
        assert secret not in text + error


def test_fault_in_a_real_process(site: Site) -> None:
    """Nothing but the report and the status: no traceback, no warning, no secret."""
    site.emulator.break_tls("hostname")
    environment = {
        **os.environ,
        **site.emulator.environ("service_principal"),
        "ENTRA_REDIS_EMULATOR": "1",
        "DJANGO_SETTINGS_MODULE": "testproject.settings",
    }
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", "entra_redis_check"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert result.returncode == 1
    # On a slow machine the renewal thread has begun, and says so in the site's log.
    said = result.stderr.splitlines()
    assert [line for line in said if "has a token" not in line] == []
    assert "code: tls_hostname" in result.stdout


# -- what ends it --------------------------------------------------------------------


def start(environment: dict[str, str], *arguments: str, **streams: Any) -> Any:
    """Run the command in a process of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-W", "error", "-m", "django"),
            *("entra_redis_check", *arguments),
        ],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "testproject.settings",
            **environment,
        },
        stderr=subprocess.PIPE,
        text=True,
        **streams,
    )


def test_interrupt() -> None:
    """Ctrl-C while a step waits ends it with 130, as any command, and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        url = f"rediss://127.0.0.1:{silent.getsockname()[1]}"
        process = start({"REDIS_URL": url}, stdout=subprocess.PIPE)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=PATIENCE)
        connection.close()
    assert (process.returncode, error) == (130, "")
    assert output.startswith(f"Cache 'default' at {url}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_closed_pipe(unbuffered: str, arguments: tuple[str, ...]) -> None:
    """Nobody reads on, as after ``| head -1``: it ends without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {
        "REDIS_URL": "rediss://127.0.0.1:1",
        "PYTHONUNBUFFERED": unbuffered,
    }
    with start(environment, *arguments, stdout=writing) as process:
        os.close(writing)
        _, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, error) == (1, "")


def test_closed_pipe_of_a_watch(site: Site) -> None:
    """It ends at the next line that it can't write."""
    site.emulator.token_lifetime = 3.0
    environment = {
        **site.emulator.environ("service_principal"),
        "ENTRA_REDIS_EMULATOR": "1",
    }
    with start(environment, "--watch", stdout=subprocess.PIPE) as process:
        while "Watching" not in process.stdout.readline():
            pass
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(PATIENCE) == 1
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
