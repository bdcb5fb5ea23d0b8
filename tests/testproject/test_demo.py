"""The demo as a user runs it, and that it would notice a failure."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from emulator import Emulator
from emulator.server import ServerError
from testproject import demo
from testproject.siteprocess import SiteProcess
from testproject.visitor import VisitError, Visitor
from tests.support.caches import wait_until

CHECKOUT = Path(demo.__file__).parent.parent
PATIENCE = 120.0
CLOSING_LINE = re.compile(r"demo: renewals=(\d+) visits=(\d+) errors=(\d+)")

processes = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processes are read from /proc"
)


@contextmanager
def running_demo(home: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo with an empty home; whatever happens, it does not outlive this."""
    home.mkdir()
    temporary = home.with_name("temporary")
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "testproject.demo", *arguments],
        cwd=CHECKOUT,
        env={
            **os.environ,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # As a terminal does: Ctrl-C goes to a group of processes.
        start_new_session=True,
    )
    with process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def files_of(directory: Path) -> set[Path]:
    """List the files below a directory, less what Python compiles for itself."""
    return {
        path
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.mark.parametrize("clustered", [False, True], ids=["server", "cluster"])
def test_demo_goes_through_renewals(
    tmp_path: Path, clustered: bool, request: pytest.FixtureRequest
) -> None:
    """It tells what happens, ends with its line, and leaves no file behind."""
    arguments = ["--token-lifetime", "2"]
    if clustered:
        request.getfixturevalue("cluster_server")
        arguments = ["--cluster"]
    before = files_of(CHECKOUT / "testproject")
    with running_demo(tmp_path / "home", *arguments) as process:
        output, _ = process.communicate()
    *lines, last = output.splitlines()
    match = CLOSING_LINE.fullmatch(last)
    assert match is not None, output
    renewals, visits, errors = map(int, match.groups())
    assert (process.returncode, errors) == (0, 0), output
    assert renewals >= 3
    assert visits > renewals
    assert sum("token renewed" in line for line in lines) >= 1
    assert any("re-authenticated" in line for line in lines), output
    assert any("visits: " in line for line in lines), output
    assert files_of(CHECKOUT / "testproject") == before
    assert not files_of(tmp_path)


def descendants(pid: int) -> set[int]:
    """Find a process's children, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # pragma: no cover - it ended while we were looking
            continue
        # "pid (any name) state ppid ..."
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, of in parents.items() if of in found} - found:
        found |= more
    return found - {pid}


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


@processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_serve_ends_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The site stays up to click through; however the demo ends, all of it does."""
    arguments = ("--serve", "--token-lifetime", "2", "--renewals", "1")
    seen: list[str] = []
    with running_demo(tmp_path / "home", *arguments) as process:
        assert process.stdout is not None
        while not any(map(CLOSING_LINE.match, seen)) or "Ctrl-C" not in seen[-1]:
            seen.append(process.stdout.readline())
            assert seen[-1], seen
        invitation = re.search(
            r"open (\S+)  user: (\S+)  password: (\S+)", "".join(seen)
        )
        assert invitation is not None, seen
        url, user, password = invitation.groups()
        visitor = Visitor(url)
        visitor.log_in(user, password)
        visitor.visit()
        visitor.close()
        children = descendants(process.pid)
        assert len(children) >= 2, "the site and its Redis"
        os.killpg(process.pid, number)
        rest = process.stdout.read()
        status = process.wait()
    deadline = time.monotonic() + PATIENCE
    while any(map(alive, children)):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.02)
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert (status, rest.splitlines()[-1][-7:]) == (0, "stopped"), rest
        assert not files_of(tmp_path)


def test_a_failure_is_a_failure(tmp_path: Path) -> None:
    """A site that does not start: the reason, an error counted, exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running_demo(tmp_path / "home", "--port", port) as process:
            output, _ = process.communicate()
    assert process.returncode == 1
    assert "port is already in use" in output
    assert output.splitlines()[-1] == "demo: renewals=0 visits=0 errors=1"


def test_a_redis_without_clusters_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sentence, not a traceback."""
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=6.2.14\n")
    old.chmod(0o700)
    monkeypatch.setenv("REDIS_SERVER", str(old))
    with running_demo(tmp_path / "home", "--cluster") as process:
        output, _ = process.communicate()
    assert process.returncode == 1
    assert "ERROR: the emulator does not start: a cluster needs Linux and" in output
    assert output.count("\n") == 1


def test_a_cluster_is_rearranged(
    cluster: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its replicas take over, slots move, and that is told."""
    before = cluster.nodes()
    rearrangement = demo.Rearrangement(cluster, threading.Event())
    rearrangement.begin()
    wait_until(lambda: not rearrangement.running())
    assert rearrangement.errors == 0
    roles = [node.role for node in before]
    assert [node.role for node in cluster.nodes()] == roles[::-1]
    assert max(node.slots for node in cluster.nodes()) == 5461 + demo.SLOTS_MOVED
    shown = capsys.readouterr().out
    assert shown.count(" of the cluster: ") == 6
    assert shown.count(" has taken over from ") == 3
    assert f"{demo.SLOTS_MOVED} slots moved" in shown


@pytest.mark.parametrize("stopping", [False, True])
def test_a_cluster_that_fails_is_an_error(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch, stopping: bool
) -> None:
    """Unless it is Ctrl-C that has ended it."""

    def fail(number: int) -> None:
        raise ServerError(f"node {number} does not take over")

    monkeypatch.setattr(cluster, "failover", fail)
    event = threading.Event()
    if stopping:
        event.set()
    rearrangement = demo.Rearrangement(cluster, event)
    rearrangement.begin()
    wait_until(lambda: not rearrangement.running())
    assert rearrangement.errors == (0 if stopping else 1)


def test_one_server_is_not_rearranged(
    emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to tell."""
    rearrangement = demo.Rearrangement(emulator, threading.Event())
    rearrangement.begin()
    assert not rearrangement.running()
    assert capsys.readouterr().out == ""


def test_no_renewals_is_a_failure(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even without an error does the demo pass before its renewals."""
    options = demo.parse([])
    site = SiteProcess(tmp_path, {})
    run = demo.Demo(options, emulator, site, threading.Event())
    run.visits = 100
    assert not run.passed
    run.renewals = 3
    assert run.passed
    run.errors = 1
    assert not run.passed
    assert run.closing_line() == "demo: renewals=3 visits=100 errors=1"


@pytest.mark.parametrize(
    "arguments",
    [["--renewals", "0"], ["--visitors", "0"], ["--token-lifetime", "0.5"]],
)
def test_nonsense_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A demo of nothing is a mistake on the command line."""
    with pytest.raises(SystemExit):
        demo.parse(arguments)
    assert "at least 1" in capsys.readouterr().err


# -- what counts as an error


@contextmanager
def fake_site(*pages: tuple[int, str]) -> Iterator[str]:
    """Serve these pages, one after the other."""
    answers = iter(pages)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = next(answers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def page(yours: int, everybody: int) -> tuple[int, str]:
    """Make the first page with its two counters."""
    return 200, (
        f'<p id="yours" data-visits="{yours}"><p id="everybody" '
        f'data-visits="{everybody}">'
    )


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (page(2, 5), "the cache counts 5 visits after 5"),
        (page(2, 1), "the cache counts 1 visits after 5"),
        (page(1, 6), "the session counts 1 visits, not 2"),
        (page(3, 6), "the session counts 3 visits, not 2"),
        ((302, ""), "status 302"),
        ((500, ""), "status 500"),
        ((200, "something else"), "a page without"),
    ],
)
def test_visitor_notices(second: tuple[int, str], message: str) -> None:
    """A lost session, a counter going back, any page but the right one."""
    with fake_site(page(1, 5), second) as url:
        visitor = Visitor(url)
        visitor.visit()
        with pytest.raises(VisitError, match=message):
            visitor.visit()
        visitor.close()


def test_visitor_notices_a_refused_login() -> None:
    """A form that comes back is no login."""
    form = 200, 'name="csrfmiddlewaretoken" value="abc"'
    with fake_site(form, form) as url:
        visitor = Visitor(url)
        with pytest.raises(VisitError, match="cannot log in as demo: status 200"):
            visitor.log_in("demo", "wrong")
        visitor.close()


def test_crowd_counts_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """Every error of every visitor is counted, the first ones are printed."""
    bad = [(500, "")] * (demo.ERRORS_SHOWN + 2)
    with fake_site(page(1, 1), *bad, *[page(2, 2)] * 1000) as url:
        visitor = Visitor(url)
        crowd = demo.Crowd([visitor])
        crowd.come()
        deadline = time.monotonic() + PATIENCE
        while crowd.visits < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        crowd.leave()
        crowd.report()
        visitor.close()
    assert crowd.errors >= len(bad)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == demo.ERRORS_SHOWN
    assert shown[0].endswith("ERROR: visitor 1: status 500 for /")
