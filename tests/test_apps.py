"""What the app does at start-up, in real processes: little, quietly, and in forks."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import override_settings

from django_entra_redis import apps as starting
from django_entra_redis.cache import in_use as startup
from django_entra_redis.credentials import provider as credentials
from emulator import Emulator

#: Seconds after which a process hangs.
PATIENCE = 120.0
APP = "django_entra_redis"
ENTRA = "django_entra_redis.cache.EntraRedisCache"
URL = "rediss://localhost:1"
LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}

SETTINGS = """
import json, os
SECRET_KEY = "for tests only"
USE_TZ = True
globals().update(json.loads(os.environ["SITE"]))
"""
#: As ``startproject`` writes it, but it tells what the main thread has had to wait for.
MANAGE = """
import os, sys, threading

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("redis", "msal", "requests"):
            note(name)

def note(what):
    if threading.current_thread() is threading.main_thread():
        seen.append(what)

def audit(event, args):
    # The name localhost is looked up in a file of this machine's.
    if event == "socket.connect" or (
        event == "socket.getaddrinfo" and args[0] != "localhost"
    ):
        note(event)

seen = []
sys.addaudithook(audit)
sys.meta_path.insert(0, Watch())
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
if "SEEN" in os.environ:
    with open(os.environ["SEEN"], "w") as file:
        file.write(" ".join(seen))
"""
#: What the scripts begin with. An event says that a token has come, or that none has.
COMMON = """
import os, signal, sys, threading, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning)  # fork and threads
import django
from django_entra_redis import signals

renewed, failed, who = threading.Event(), threading.Event(), []

def on_renewed(sender, **kwargs):
    who.append(sender)
    renewed.set()

def on_failed(**kwargs):
    failed.set()

signals.token_renewed.connect(on_renewed)
signals.token_renewal_failed.connect(on_failed)

def outcome(child):
    # A child that hangs is killed, and so told from one that ends.
    signal.signal(signal.SIGALRM, lambda *args: os.kill(child, signal.SIGKILL))
    signal.alarm(60)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(0)
    return status

def starter():
    (thread,) = [t for t in threading.enumerate() if t.name == "entra-redis-start"]
    return thread

django.setup()
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Site:
    """A Django project in a folder of its own."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.settings = {
            "INSTALLED_APPS": [APP],
            "CACHES": {"default": {"BACKEND": ENTRA, "LOCATION": URL}},
            **settings,
        }
        self.write("site_settings", SETTINGS)
        self.write("manage", MANAGE)
        # No identity answers here, at once. (Not every msal can be told where IMDS is.)
        self.ask("http://127.0.0.1:1")

    def ask(self, endpoint: str) -> None:
        """Have an identity endpoint of App Service."""
        self.environ = {"IDENTITY_ENDPOINT": endpoint, "IDENTITY_HEADER": "header"}

    def write(self, name: str, source: str) -> None:
        """Add a module."""
        text = textwrap.dedent(source)
        (self.directory / f"{name}.py").write_text(text, encoding="utf-8")

    def begin(self, *args: str) -> "subprocess.Popen[str]":
        """Start a Python process in the project."""
        paths = [str(self.directory), *filter(None, sys.path)]
        return subprocess.Popen(
            [sys.executable, *args],
            env={
                **os.environ,
                **self.environ,
                "DJANGO_SETTINGS_MODULE": "site_settings",
                "PYTHONPATH": os.pathsep.join(paths),
                "SITE": json.dumps(self.settings),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, *args: str) -> str:
        """Return what a process prints, which succeeds with nothing on stderr."""
        return finish(self.begin(*args))

    def manage(self, *args: str) -> str:
        """Return what a command prints."""
        return self.python(str(self.directory / "manage.py"), *args)

    def run(self, script: str) -> str:
        """Return what a script prints once Django is set up."""
        return self.python("-c", COMMON + textwrap.dedent(script))


def finish(process: "subprocess.Popen[str]", text: str = "") -> str:
    """Return what a process prints, which succeeds with nothing on stderr."""
    with process:
        try:
            output, errors = process.communicate(text, timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    return output


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a project with an Entra cache, on a machine without identity."""
    return Site(tmp_path)


@pytest.fixture
def served(tmp_path: Path, emulator: Emulator) -> Site:
    """Return a project on a machine with a managed identity."""
    site = Site(tmp_path)
    site.environ = emulator.environ("app_service")
    return site


# -- manage.py


@pytest.mark.parametrize("command", [["check"], ["migrate"], ["check", "--deploy"]])
def test_commands_say_the_same_as_without_the_app(
    tmp_path: Path, command: list[str]
) -> None:
    """In a build with no network and no identity nothing changes."""
    said = []
    for apps in ([], [APP]):
        directory = tmp_path / f"with{len(apps)}"
        directory.mkdir()
        database = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(directory / "db.sqlite3"),
        }
        site = Site(
            directory,
            INSTALLED_APPS=[
                "django.contrib.contenttypes",
                "django.contrib.auth",
                *apps,
            ],
            DATABASES={"default": database},
            SILENCED_SYSTEM_CHECKS=[f"security.W{number:03}" for number in range(30)],
        )
        said.append(site.manage(*command))
    without, with_app = said
    assert without == with_app
    assert without


@pytest.mark.parametrize("command", ["check", "diffsettings"])
def test_the_main_thread_waits_for_nothing(site: Site, command: str) -> None:
    """Neither for redis-py, nor for msal, nor for the network."""
    seen = site.directory / "seen"
    site.environ["SEEN"] = str(seen)
    assert site.manage(command)
    assert seen.read_text() == ""


def test_checks_are_registered(site: Site) -> None:
    """``manage.py check`` knows those of the app."""
    site.settings["CACHES"] = {"default": {"BACKEND": ENTRA, "LOCATION": "redis://far"}}
    process = site.begin(str(site.directory / "manage.py"), "check")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "(django_entra_redis.E022)" in errors
    assert "Traceback" not in errors


# -- the first request


def test_a_token_before_anybody_asks(served: Site, emulator: Emulator) -> None:
    """It is there soon after start-up, and cost one request."""
    output = served.run(
        """
        print(renewed.wait(60), *who)
        from django_entra_redis.credentials import get_credential_provider
        print(get_credential_provider().status().oid)
        """
    )
    assert output.split() == ["True", "default", emulator.system_assigned.object_id]
    assert emulator.stats.token_requests == 1


def test_a_failure_that_nobody_waits_for_is_quiet(site: Site) -> None:
    """A command that runs for longer says nothing of an identity it does not need."""
    assert site.run("print(failed.wait(60))") == "True\n"


def test_a_hanging_request_does_not_keep_the_process(site: Site) -> None:
    """It exits at once, and silently, in the middle of a request."""
    site.settings["ENTRA_REDIS"] = {"default": {"REQUEST_TIMEOUT": 3600}}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        host, port = server.getsockname()
        site.ask(f"http://{host}:{port}")
        process = site.begin("-c", COMMON + "print(input())")
        connection, _ = server.accept()
        with connection:
            assert finish(process, "over\n") == "over\n"


@pytest.mark.parametrize(
    "caches",
    [
        {"default": {"BACKEND": ENTRA, "LOCATION": URL, "OPTIONS": {"identity": None}}},
        {"default": LOCMEM},
    ],
)
def test_without_an_identity_nothing_starts(
    served: Site, emulator: Emulator, caches: dict[str, Any]
) -> None:
    """A developer's machine has no renewal thread and asks nobody."""
    served.settings["CACHES"] = caches
    output = served.run(
        """
        starter().join()
        print([t.name for t in threading.enumerate() if t.name.startswith("entra")])
        """
    )
    assert output == "[]\n"
    assert emulator.stats.token_requests == 0


def test_one_broken_identity_is_not_all_of_them(served: Site) -> None:
    """The others are renewed from the start; the checks tell of the broken one."""
    served.settings["ENTRA_REDIS"] = {"default": {"KIND": "nonsense"}, "good": {}}
    served.settings["CACHES"]["other"] = cache(identity="good")
    assert served.run("print(renewed.wait(60), *who)") == "True good\n"


def test_a_broken_cache_of_another_kind_is_not_ours_to_tell(site: Site) -> None:
    """No traceback of a background thread ends up on standard error."""
    site.settings["CACHES"]["other"] = {**LOCMEM, "KEY_FUNCTION": "no.such.function"}
    assert site.run("starter().join(); print('over')") == "over\n"


def test_where_no_thread_can_start(site: Site) -> None:
    """At the process's limit the app is up all the same."""
    script = """
        import threading

        def refuse(self):
            raise RuntimeError("can't start new thread")

        threading.Thread.start = refuse
        import django
        django.setup()
        print("up")
        """
    assert site.python("-c", textwrap.dedent(script)) == "up\n"


# -- forks


@needs_fork
def test_a_fork_within_the_first_second(served: Site, emulator: Emulator) -> None:
    """The child has a thread that starts its renewal, as its parent has."""
    output = served.run(
        """
        child = os.fork()
        if not child:
            os._exit(0 if renewed.wait(50) else 1)
        print(outcome(child), renewed.wait(60))
        """
    )
    assert output == "0 True\n"
    assert emulator.stats.token_requests == 2


@needs_fork
def test_a_fork_later_inherits_the_token(served: Site, emulator: Emulator) -> None:
    """The child has nothing to start: a token is there, and it asks nobody."""
    output = served.run(
        """
        from django_entra_redis.credentials import get_credential_provider
        renewed.wait(60)
        starter_is_over = [t.join() for t in threading.enumerate()
                           if t.name == "entra-redis-start"]
        token = get_credential_provider().get_credentials()
        child = os.fork()
        if not child:
            same = get_credential_provider().get_credentials() == token
            names = {t.name for t in threading.enumerate()}
            os._exit(0 if same and "entra-redis-start" not in names else 1)
        print(outcome(child))
        """
    )
    assert output == "0\n"
    assert emulator.stats.token_requests == 1


@needs_fork
def test_a_fork_while_backends_are_imported(site: Site) -> None:
    """The child can import the one that was under way when it was forked."""
    site.settings["CACHES"]["other"] = {"BACKEND": "slow.Backend"}
    site.write(
        "events",
        "import threading; begun, go_on = threading.Event(), threading.Event()",
    )
    site.write(
        "slow",
        """
        import events
        events.begun.set()
        events.go_on.wait()
        for _ in range(300_000):
            pass
        from django.core.cache.backends.dummy import DummyCache as Backend
        """,
    )
    output = site.run(
        """
        import events
        events.begun.wait()
        # Runs before the hook of the package does: from here on it may go on.
        os.register_at_fork(before=events.go_on.set)
        child = os.fork()
        if not child:
            import slow
            os._exit(0)
        print(outcome(child))
        """
    )
    assert output == "0\n"


def test_redis_is_imported_meanwhile(site: Site) -> None:
    """Whoever imports it as the renewals start does not meet a locked module."""
    output = site.run(
        """
        import time
        from importlib.machinery import PathFinder
        from django_entra_redis import apps

        # Others' imports are waited for no longer than that.
        apps.IMPORT_TIMEOUT = 1.0

        class Slow:
            def find_spec(self, name, path=None, target=None):
                spec = PathFinder.find_spec(name, path)
                if name == "redis.asyncio":
                    run = spec.loader.exec_module
                    spec.loader.exec_module = lambda module: (wait(), run(module))
                return spec

        def wait():
            # Until the other one waits for a module that is being imported.
            (starting,) = [
                t.ident for t in threading.enumerate() if t.name == "entra-redis-start"
            ]
            while sys._current_frames()[starting].f_code.co_name != "acquire":
                time.sleep(0.01)

        sys.meta_path.insert(0, Slow())
        import redis
        print(redis.Redis.__name__)
        """
    )
    assert output == "Redis\n"


# -- which identities


def cache(**options: Any) -> dict[str, Any]:
    """Return the settings of an Entra cache."""
    return {"BACKEND": ENTRA, "LOCATION": URL, "OPTIONS": options}


@pytest.mark.parametrize(
    ("caches", "identities", "used"),
    [
        # Those of the caches, and not those that the settings define beside.
        ({"default": cache()}, {"default": {}}, ["default"]),
        (
            {"default": cache(identity="a"), "b": cache(identity="b")},
            {"a": {}, "b": {}, "laptop": {}},
            ["a", "b"],
        ),
        ({"default": cache(identity="gone")}, {}, ["gone"]),
        # None where every cache does without.
        ({"default": cache(identity=None)}, {"default": {}}, []),
        ({"default": cache(identity=None), "b": cache()}, {}, ["default"]),
        # Without an Entra cache they are for something else, Celery perhaps.
        ({"default": LOCMEM}, {"default": {}}, ["default"]),
        ({"default": LOCMEM}, {}, []),
        ({"default": LOCMEM}, None, []),
        # A cache that can't be used says nothing of its identity.
        ({"default": cache(pool_timeout=-1)}, {}, []),
    ],
)
def test_identities_in_use(
    caches: dict[str, Any], identities: Any, used: list[str]
) -> None:
    """Whose tokens are kept fresh from the start."""
    with override_settings(CACHES=caches, ENTRA_REDIS=identities):
        assert startup.identities_in_use() == used


def test_without_any_setting_none_is_in_use() -> None:
    """A machine with neither an Entra cache nor an identity polls no endpoint."""
    with override_settings(CACHES={"default": LOCMEM}):
        del settings.ENTRA_REDIS
        assert startup.identities_in_use() == []


def test_identities_are_in_use_from_their_first_use(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no cache names is some client's, once that has asked for a token."""
    for name, value in emulator.environ("app_service").items():
        monkeypatch.setenv(name, value)
    identities: dict[str, Any] = {"default": {}, "client": {}, "laptop": {}}
    with override_settings(ENTRA_REDIS=identities, CACHES={"default": cache()}):
        credentials.get_credential_provider("client").get_credentials()
        credentials.get_credential_provider("laptop").status()
        assert startup.identities_in_use() == ["client", "default"]


def test_starting_twice_is_starting_once(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One identity has one token in a process, however often it is started."""
    for name, value in emulator.environ("app_service").items():
        monkeypatch.setenv(name, value)
    identities: dict[str, Any] = {"default": {}, "broken": {"KIND": "nonsense"}}
    caches = {"default": cache(), "other": cache(identity="broken")}
    with override_settings(ENTRA_REDIS=identities, CACHES=caches):
        startup.start_renewals()
        provider = credentials.get_credential_provider()
        username, _ = provider.get_credentials()
        startup.start_renewals()
        assert username == emulator.system_assigned.object_id
        assert provider.get_credentials()[0] == username
    assert emulator.stats.token_requests == 1


def test_a_site_that_is_still_loading(served: Site) -> None:
    """Its imports of redis-py's modules do not meet the start of the renewals."""
    served.write("views", "import time; time.sleep(1.5); import redis.cluster")
    output = served.run(
        """
        import time

        class Slow:
            def find_spec(self, name, path=None, target=None):
                if threading.current_thread() is threading.main_thread():
                    if name == "redis.cluster":
                        print("imported in", threading.current_thread().name)
                elif name == "redis.client":
                    time.sleep(1.0)

        sys.meta_path.insert(0, Slow())
        import views
        print(renewed.wait(60))
        """
    )
    assert output == "imported in MainThread\nTrue\n"


def test_nothing_is_imported_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would end the thread in the middle of it."""
    started: list[bool] = []
    monkeypatch.setattr(startup, "start_renewals", lambda: started.append(True))
    starter = starting._Starter()
    starter.stop()
    starter._run()
    assert not started


def test_whatever_goes_wrong_at_start_up_is_for_the_log_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first demand of a token starts its renewal all the same."""

    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(starting, "FIRST_REQUEST", 0.0)
    monkeypatch.setattr(startup, "start_renewals", fail)
    with caplog.at_level("DEBUG", "django_entra_redis"):
        starting._Starter()._run()
    assert "No renewal started at start-up." in caplog.text
