"""The main job, end to end, without an Azure subscription.

Starts the emulator with short-lived tokens and the site, logs in over HTTP and visits
it through several renewals. Ends with the line ``demo: renewals=N visits=N errors=0``
and exit status 0, or not at all well. With --cluster the cache is a Redis Cluster: its
nodes change places and its slots move while people visit.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import redis
import requests

from emulator import Emulator
from emulator.server import ServerError
from testproject.siteprocess import SiteError, SiteProcess
from testproject.visitor import VisitError, Visitor

USER = "demo"
PAUSE = 0.1
LOOK_EVERY = 0.25
PROGRESS_EVERY = 2.0
#: Seconds of life that one can watch go by on the status page.
WATCHABLE_LIFETIME = 20.0
ERRORS_SHOWN = 10
PRIMARIES = 3
SLOTS_MOVED = 100


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m testproject.demo", description=__doc__
    )
    parser.add_argument(
        "--token-lifetime",
        type=float,
        metavar="SECONDS",
        help="life of the emulator's tokens (default: 5; after the demo, with "
        f"--serve, {WATCHABLE_LIFETIME:.0f})",
    )
    parser.add_argument(
        "--renewals",
        type=int,
        default=3,
        metavar="N",
        help="renewals to go through (default: %(default)s)",
    )
    parser.add_argument(
        "--visitors",
        type=int,
        default=3,
        metavar="N",
        help="people who visit at the same time (default: %(default)s)",
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help=f"have the cache be a Redis Cluster of {PRIMARIES} primaries and as many "
        "replicas (needs Linux and a redis-server of version 7.0 or later)",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="keep the site up afterwards, to click through, until Ctrl-C",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=0,
        help="the site's port (default: one that is free)",
    )
    options = parser.parse_args(arguments)
    if options.renewals < 1 or options.visitors < 1:
        parser.error("--renewals and --visitors are at least 1")
    if options.token_lifetime is not None and options.token_lifetime < 1:
        parser.error("--token-lifetime is at least 1 second")
    return options


def say(text: str) -> None:
    """Print one line of what happens, with the time."""
    print(f"{datetime.now():%H:%M:%S}  {text}", flush=True)


class Crowd:
    """Visitors, each in a thread, who go on visiting until they are told to leave."""

    def __init__(self, visitors: Sequence[Visitor]) -> None:
        self.visitors = visitors
        self.errors = 0
        self._leaving = threading.Event()
        self._problems: SimpleQueue[str] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._visit, args=(number, visitor), daemon=True)
            for number, visitor in enumerate(visitors, 1)
        ]

    @property
    def visits(self) -> int:
        """Visits that all of them have made."""
        return sum(visitor.visits for visitor in self.visitors)

    def come(self) -> None:
        """Begin to visit."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Finish the visits under way, and make no more."""
        self._leaving.set()
        for thread in self._threads:
            thread.join()

    def report(self) -> None:
        """Count and tell the errors since the last time."""
        while True:
            try:
                problem = self._problems.get_nowait()
            except Empty:
                return
            self.errors += 1
            if self.errors <= ERRORS_SHOWN:
                say(f"ERROR: {problem}")

    def _visit(self, number: int, visitor: Visitor) -> None:
        while not self._leaving.wait(PAUSE):
            try:
                visitor.visit()
            except (VisitError, requests.RequestException) as error:
                self._problems.put(f"visitor {number}: {error}")


class Watch:
    """Tells of renewals, as the site reports them, and what Redis sees of them."""

    def __init__(self, emulator: Emulator, watcher: Visitor) -> None:
        self.renewals = 0
        self._emulator = emulator
        self._watcher = watcher
        self._identity = self._look()
        self._begin = self._identity["renewals"]
        self._stats = emulator.stats

    def look(self) -> None:
        """Look, and tell what is new."""
        before, self._identity = self._identity, self._look()
        now = self._identity
        if now["renewals"] > before["renewals"]:
            self.renewals = now["renewals"] - self._begin
            expires = datetime.fromisoformat(now["expires_at"])
            left = (expires - datetime.now(UTC)).total_seconds()
            say(f"token renewed (renewal {self.renewals}), good for {left:.1f} s more")
        if now["failures"] > before["failures"]:
            say(f"renewal failed: {now['last_error']}")
        self._look_at_connections()

    def _look(self) -> dict[str, Any]:
        identities = self._watcher.status()["identities"]
        (identity,) = identities
        found: dict[str, Any] = identity
        return found

    def _look_at_connections(self) -> None:
        before, self._stats = self._stats, self._emulator.stats
        now = self._stats
        # Each connection authenticates once when it is opened.
        opened = now.connections_opened - before.connections_opened
        again = now.auths - before.auths - opened
        if again > 0:
            say(f"{_number(again, 'connection')} re-authenticated in place")
        if opened > 0:
            say(f"{_number(opened, 'connection')} to Redis opened")
        if refused := now.auths_refused - before.auths_refused:
            say(f"{_number(refused, 'authentication')} refused")
        if closed := now.closed_by_expiry - before.closed_by_expiry:
            say(f"{_number(closed, 'connection')} closed by expiry")


class Rearrangement:
    """Has a cluster's nodes change places and its slots move, in a thread."""

    def __init__(self, emulator: Emulator, stopping: threading.Event) -> None:
        self.errors = 0
        self._emulator = emulator
        self._stopping = stopping
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        """Tell what there is, and begin to change it; without a cluster, nothing."""
        nodes = self._emulator.nodes()
        for node in nodes:
            of = f" of node {node.replica_of}" if node.replica_of else ""
            say(f"node {node.number} of the cluster: {node.address}, {node.role}{of}")
        if nodes:
            self._thread.start()

    def running(self) -> bool:
        """Whether it is not through yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._rearrange()
        except (ServerError, ValueError, redis.RedisError) as error:
            if not self._stopping.is_set():
                self.errors += 1
                say(f"ERROR: the cluster: {error}")

    def _rearrange(self) -> None:
        replicas = [node for node in self._emulator.nodes() if node.role == "replica"]
        for node in replicas:
            self._emulator.failover(node.number)
            say(f"node {node.number} has taken over from node {node.replica_of}")
        giver, taker = (node.number for node in replicas[:2])
        self._emulator.migrate_slots(giver, taker, SLOTS_MOVED)
        say(f"{SLOTS_MOVED} slots moved from node {giver} to node {taker}")


class Demo:
    """The demo's steps, on a running emulator."""

    def __init__(
        self,
        options: argparse.Namespace,
        emulator: Emulator,
        site: SiteProcess,
        stopping: threading.Event,
    ) -> None:
        self.options = options
        self.emulator = emulator
        self.site = site
        self.stopping = stopping
        self.renewals = self.visits = self.errors = 0

    @property
    def passed(self) -> bool:
        """Whether it has shown what it is for."""
        return self.renewals >= self.options.renewals and self.errors == 0

    def closing_line(self) -> str:
        """The result."""
        return (
            f"demo: renewals={self.renewals} visits={self.visits} errors={self.errors}"
        )

    def prepare(self) -> None:
        """Make the database, and have the package's own command look at the cache."""
        for command in ("migrate", "create_demo_user"):
            status, output = self.site.manage(command, "--no-color")
            if status != 0:
                raise SiteError(f"{command} failed:\n{output}")
        say("database migrated, user created; manage.py entra_redis_check:")
        status, output = self.site.manage("entra_redis_check", "--no-color")
        for line in output.splitlines():
            print(f"          {line}".rstrip(), flush=True)
        if status != 0:
            raise SiteError(f"entra_redis_check failed with exit status {status}")

    def run(self) -> None:
        """Serve and visit through the renewals, then stay if asked to."""
        url = self.site.serve(self.options.port)
        say(f"site up at {url}, process {self.site.pid}")
        if self.options.serve:
            self._invite(url)
        watcher = Visitor(url)
        crowd = Crowd([Visitor(url) for _ in range(self.options.visitors)])
        people = [watcher, *crowd.visitors]
        try:
            for person in people:
                person.log_in(USER, self.site.password)
            say(f"{_number(len(people), 'session')} logged in")
            watch = Watch(self.emulator, watcher)
            self._visit(crowd, watch)
            if self.options.serve and not self.stopping.is_set():
                print(self.closing_line(), flush=True)
                self._stay(url, watch)
        finally:
            for person in people:
                person.close()

    def _visit(self, crowd: Crowd, watch: Watch) -> None:
        lifetime = self.emulator.token_lifetime
        deadline = time.monotonic() + 20 + 2 * self.options.renewals * lifetime
        progress = time.monotonic() + PROGRESS_EVERY
        rearrangement = Rearrangement(self.emulator, self.stopping)
        crowd.come()
        try:
            rearrangement.begin()
            while watch.renewals < self.options.renewals or rearrangement.running():
                if self.stopping.wait(LOOK_EVERY) or not self.site.running():
                    break
                if time.monotonic() > deadline:
                    if rearrangement.running():
                        self.errors += 1
                        say("ERROR: the cluster has not come to rest")
                    else:
                        say("the renewals did not come")
                    break
                self._look(watch)
                crowd.report()
                if time.monotonic() >= progress:
                    progress += PROGRESS_EVERY
                    say(
                        f"visits: {crowd.visits} so far, renewals: "
                        f"{watch.renewals} of {self.options.renewals}"
                    )
            if watch.renewals >= self.options.renewals:
                # The last renewal counts when the connections have lived through it.
                self.stopping.wait(2 * LOOK_EVERY)
                self._look(watch)
        finally:
            crowd.leave()
            crowd.report()
        if not self.site.running():
            self.errors += 1
            say("ERROR: the site's process has ended")
        self.renewals = watch.renewals
        self.visits = crowd.visits
        self.errors += crowd.errors + rearrangement.errors
        stats = self.emulator.stats
        say(
            f"Redis saw {stats.connections_opened} connections, {stats.auths} AUTHs; "
            f"{stats.closed_by_expiry_in_use} closed by expiry while in use"
        )

    def _look(self, watch: Watch) -> None:
        try:
            watch.look()
        except (VisitError, requests.RequestException) as error:
            self.errors += 1
            say(f"ERROR: status page: {error}")

    def _stay(self, url: str, watch: Watch) -> None:
        if self.options.token_lifetime is None:
            self.emulator.token_lifetime = WATCHABLE_LIFETIME
            say(f"from here on tokens live for {WATCHABLE_LIFETIME:.0f} s")
        self._invite(url)
        while not self.stopping.wait(1.0) and self.site.running():
            try:
                watch.look()
            except (VisitError, requests.RequestException) as error:
                say(f"status page: {error}")
        if not self.stopping.is_set():
            self.errors += 1
            say("ERROR: the site's process has ended")

    def _invite(self, url: str) -> None:
        say(f"open {url}  user: {USER}  password: {self.site.password}")
        say(f"the token's life is on {url}status/; Ctrl-C stops everything")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    options = parse(arguments)
    stopping = threading.Event()
    # A flag in place of KeyboardInterrupt: a second Ctrl-C, or the SIGTERM that some
    # runners send right after it, must not cut the cleaning up short.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        demo = _run(options, stopping)
    except ServerError as error:
        say(f"ERROR: the emulator does not start: {error}")
        return 1
    if stopping.is_set():
        say("stopped")
        # Ctrl-C is how --serve ends; without it, the demo has been cut short.
        return 1 if demo.errors or not options.serve else 0
    print(demo.closing_line(), flush=True)
    return 0 if demo.passed else 1


def _run(options: argparse.Namespace, stopping: threading.Event) -> Demo:
    """Run the demo in a directory of its own, which then goes."""
    lifetime = options.token_lifetime or 5.0
    with (
        tempfile.TemporaryDirectory(prefix="entra-demo-") as directory,
        Emulator(lifetime, cluster=PRIMARIES if options.cluster else 0) as emulator,
    ):
        say(f"emulator up: authority {emulator.authority_host}")
        say(f"             cache {emulator.redis_url}, tokens live {lifetime:g} s")
        environ = {
            **emulator.environ("service_principal"),
            "ENTRA_REDIS_EMULATOR": "1",
        }
        with SiteProcess(Path(directory), environ, stopping) as site:
            demo = Demo(options, emulator, site, stopping)
            try:
                demo.prepare()
                demo.run()
            except (SiteError, VisitError, requests.RequestException) as error:
                if not stopping.is_set():
                    demo.errors += 1
                    say(f"ERROR: {error}")
            if demo.errors:
                _show_log(site.log)
    return demo


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _show_log(log: Path) -> None:
    if log.exists():
        say("the end of the site's log:")
        for line in log.read_text(errors="replace").splitlines()[-30:]:
            print(f"          {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
