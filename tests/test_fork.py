"""Importing in one thread while another one forks."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from django_entra_redis import _fork as forks
from tests.support.threads import hammering

#: Seconds after which a hang is one.
PATIENCE = 60.0
#: What each script begins with: modules that are slow to import, and a child process
#: whose outcome is told.
COMMON = """
import os, signal, sys, threading, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning)  # fork and threads
from django_entra_redis import _fork as forks

def import_in_thread(name):
    thread = threading.Thread(
        target=forks.import_module, args=(name, "scripts"), daemon=True
    )
    thread.start()
    return thread

def outcome(child):
    # A child that hangs is killed, and so told from one that ends.
    signal.signal(signal.SIGALRM, lambda *args: os.kill(child, signal.SIGKILL))
    signal.alarm(30)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(0)
    return status
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def run(directory: Path, script: str, **modules: str) -> str:
    """Return what a script prints that can import some modules."""
    for name, source in modules.items():
        path = directory / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(directory), *filter(None, sys.path)]),
    }
    result = subprocess.run(
        [sys.executable, "-c", COMMON + textwrap.dedent(script)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_modules_are_imported_by_name() -> None:
    """Relative names too, and what is missing is an ImportError."""
    assert forks.import_module("._fork", "django_entra_redis") is forks
    assert forks.import_module("sys", "django_entra_redis") is sys
    with pytest.raises(ModuleNotFoundError):
        forks.import_module(".nothing", "django_entra_redis")


class Cycle:
    """Takes part in forks, and goes away only with the garbage collector."""

    def __init__(self) -> None:
        self.own = self
        forks.register(self, forks.Order.CONNECTIONS)


def test_participants_may_go_while_they_are_asked() -> None:
    """The garbage collector may run at any moment; no hook is left out for that."""
    before = gc.get_threshold()
    kept: list[tuple[int, int]] = []
    try:
        for _ in range(5):
            gc.disable()
            for number in range(50):
                Cycle()
                # None are left over for CPython to use again, so that each is counted.
                kept += ((number, other) for other in range(50))
            # It is due in the middle of what follows.
            gc.set_threshold(gc.get_count()[0] + 30)
            gc.enable()
            assert forks._imports in forks._taking_part("before_fork")
    finally:
        gc.enable()
        gc.set_threshold(*before)
    gc.collect()


@needs_fork
def test_a_fork_waits_for_an_import(tmp_path: Path) -> None:
    """The child gets the whole module, since the fork happens after it was imported."""
    output = run(
        tmp_path,
        """
        import events
        import_in_thread("slow")
        events.begun.wait()
        # Runs before the hook of the package does: from here on it may go on.
        os.register_at_fork(before=events.go_on.set)
        child = os.fork()
        if not child:
            os._exit(0 if getattr(sys.modules["slow"], "whole", False) else 1)
        print(outcome(child))
        """,
        events="import threading; begun, go_on = threading.Event(), threading.Event()",
        slow="""
            import events
            events.begun.set()
            events.go_on.wait()
            for _ in range(300_000):
                pass
            whole = True
            """,
    )
    assert output == "0\n"


@needs_fork
def test_a_fork_does_not_wait_for_ever(tmp_path: Path) -> None:
    """After its patience the fork happens; parent and child go on importing."""
    output = run(
        tmp_path,
        """
        import events
        forks.IMPORT_TIMEOUT = 0.01
        thread = import_in_thread("slow")
        events.begun.wait()
        child = os.fork()
        if not child:
            forks.import_module("other", "scripts")
            os._exit(outcome(os.fork() or os._exit(7)))
        print(outcome(child))
        events.go_on.set()
        thread.join()
        forks.import_module("other", "scripts")
        print(outcome(os.fork() or os._exit(8)))
        """,
        events="import threading; begun, go_on = threading.Event(), threading.Event()",
        slow="import events; events.begun.set(); events.go_on.wait()",
        other="",
    )
    assert output == "7\n8\n"


@needs_fork
def test_what_is_imported_may_fork(tmp_path: Path) -> None:
    """A fork in the importing thread itself waits for nothing."""
    output = run(
        tmp_path,
        """
        forks.IMPORT_TIMEOUT = 1000
        module = forks.import_module("forking", "scripts")
        if not module.child:
            forks.import_module("other", "scripts")
            os._exit(5)
        print(outcome(module.child))
        forks.import_module("other", "scripts")
        """,
        forking="import os; child = os.fork()",
        other="",
    )
    assert output == "5\n"


def test_an_import_does_not_wait_for_ever(tmp_path: Path) -> None:
    """Of two threads that wait for each other's import one goes on."""
    output = run(
        tmp_path,
        """
        import events
        forks.IMPORT_TIMEOUT = 0.01

        def import_too():
            events.begun.wait()
            with forks.no_fork():
                events.go_on.set()
                import user

        thread = threading.Thread(target=import_too)
        thread.start()
        import user
        thread.join()
        print(user.whole)
        """,
        events="import threading; begun, go_on = threading.Event(), threading.Event()",
        user="""
            import events
            from django_entra_redis import _fork as forks
            events.begun.set()
            events.go_on.wait()
            with forks.no_fork():
                whole = True
            """,
    )
    assert output == "True\n"


def test_the_end_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A process ends, though what it imports never does."""
    output = run(
        tmp_path,
        """
        import events
        forks.IMPORT_TIMEOUT = 0.01
        import_in_thread("slow")
        events.begun.wait()
        print("over")
        """,
        events="import threading; begun, go_on = threading.Event(), threading.Event()",
        slow="import events; events.begun.set(); events.go_on.wait()",
    )
    assert output == "over\n"


EVENTS = "import threading; begun, go_on, inside = [threading.Event() for _ in '123']"


def test_a_package_is_not_imported_while_a_module_of_it_is(tmp_path: Path) -> None:
    """Each thread would hold the lock that the other waits for, and both would fail."""
    output = run(
        tmp_path,
        """
        import events
        forks.OTHER_IMPORTS_TIMEOUT = 60
        other = threading.Thread(target=__import__, args=("site_of_somebody",))
        other.start()
        events.begun.wait()
        thread = import_in_thread("package")
        events.inside.wait(0.5)
        events.go_on.set()
        other.join()
        thread.join()
        print(sys.modules["package"].whole)
        """,
        events=EVENTS,
        site_of_somebody="""
            import events
            events.begun.set()
            events.go_on.wait()
            import package.module
            """,
        **{
            "package.__init__": """
                import events, time
                events.inside.set()
                time.sleep(0.5)
                from package.module import whole
                """,
            "package.module": "whole = True",
        },
    )
    assert output == "True\n"


def test_who_waits_for_a_token_imports_nothing_meanwhile(tmp_path: Path) -> None:
    """A module may use the cache as it is imported."""
    output = run(
        tmp_path,
        """
        import time
        from django_entra_redis.conf.policy import Policy
        from django_entra_redis.credentials.renewal import Renewal
        from django_entra_redis.identity.token import Token
        forks.OTHER_IMPORTS_TIMEOUT = 60

        def make_fetch():
            forks.import_module("other", "scripts")
            return lambda: Token("token", "user", {}, 0.0, 9e9, 9e9)

        policy = Policy(ratio=0.7, margin=180.0, timeout=50.0)
        renewal = Renewal("default", "credential", make_fetch, policy=policy)
        import user
        print(user.token.username)
        """,
        user="""
            import __main__
            token = __main__.renewal.current()
            """,
        other="",
    )
    assert output == "user\n"


def test_calm_is_some_time_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause between two imports is no end of them; there is a limit."""
    now = 0.0
    looks = iter("+-+--+" + 20 * "-" + 99 * "+")

    class Clock:
        def monotonic(self) -> float:
            return now

        def sleep(self, seconds: float) -> None:
            nonlocal now
            now += seconds

    monkeypatch.setattr(forks, "time", Clock())
    monkeypatch.setattr(forks, "_others_import", lambda: next(looks) == "+")
    forks.wait_for_imports(60.0, 10 * forks.LOOK)
    assert 14 <= round(now / forks.LOOK) <= 16
    now = 0.0
    forks.wait_for_imports(60 * forks.LOOK)
    assert now == 0.0
    assert "+" not in [next(looks) for _ in range(8)]
    forks.wait_for_imports(60 * forks.LOOK)
    assert round(now / forks.LOOK) == 60


def test_an_import_is_waited_for_at_exit(tmp_path: Path) -> None:
    """Else Python would abort where a module in Rust is being imported."""
    output = run(
        tmp_path,
        """
        import events
        import_in_thread("slow")
        events.begun.wait()
        """,
        events=EVENTS,
        slow="""
            import events, time
            events.begun.set()
            time.sleep(0.5)
            print("imported", flush=True)
            """,
    )
    assert output == "imported\n"


def test_participants_of_other_threads() -> None:
    """Nothing of what threads add and drop meanwhile gets in the way."""
    kept = Cycle()
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            made = [Cycle() for _ in range(20)]
            for each in made:
                del each.own

    with hammering(churn, over):
        for _ in range(300):
            assert kept in forks._taking_part("own")


@needs_fork
def test_threads_that_fork_in_the_same_moment(tmp_path: Path) -> None:
    """Whichever of them got hold of the lock lets go of it."""
    output = run(
        tmp_path,
        """
        statuses, barrier = [], threading.Barrier(8)

        def fork():
            barrier.wait()
            for _ in range(5):
                statuses.append(outcome_of(os.fork() or os._exit(3)))

        def outcome_of(child):
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        threads = [threading.Thread(target=fork) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with forks.no_fork():
            forks.import_module("other", "scripts")
        print(statuses == [3] * 40)
        """,
        other="",
    )
    assert output == "True\n"


@needs_fork
def test_a_signal_handler_that_raises_before_a_fork(tmp_path: Path) -> None:
    """The hook that it interrupts lets go of nothing that it does not hold."""
    output = run(
        tmp_path,
        """
        import events
        forks.IMPORT_TIMEOUT = 1000
        reported = []
        sys.unraisablehook = lambda args: reported.append(args.exc_type.__name__)
        print(outcome(os.fork() or os._exit(3)))
        import_in_thread("slow")
        events.begun.wait()

        def interrupt(*args):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            raise KeyboardInterrupt

        def send(main=threading.get_ident(), hook=forks._Imports.before_fork.__code__):
            while sys._current_frames()[main].f_code is not hook:
                pass
            # Again and again: one that comes in the moment before the hook begins to
            # wait for the lock does not interrupt the wait.
            while not reported:
                signal.pthread_kill(main, signal.SIGUSR1)
                threading.Event().wait(0.05)

        signal.signal(signal.SIGUSR1, interrupt)
        threading.Thread(target=send, daemon=True).start()
        print(outcome(os.fork() or os._exit(4)))
        events.go_on.set()
        print(*reported)
        """,
        events="import threading; begun, go_on = threading.Event(), threading.Event()",
        slow="import events; events.begun.set(); events.go_on.wait()",
    )
    assert output == "3\n4\nKeyboardInterrupt\n"
