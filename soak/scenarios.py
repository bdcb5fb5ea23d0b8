"""The rows: faults, and what must show."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from emulator.cluster import check_server
from emulator.server import ServerError, find_server
from soak.chaos import play_chaos
from soak.children import LoadProcess, wait_until
from soak.clusters import play_death, play_resharding
from soak.copies import play_copies
from soak.flatness import measure_flatness
from soak.load import UNCERTAIN
from soak.loss import play_loss
from soak.outcome import Bars, Outcome
from soak.stage import LIFETIME, Stage, wait_for_renewal
from soak.subjects import (
    OURS,
    REQUEST_TIMEOUT,
    SOCKET_TIMEOUT,
    SUBJECTS,
    Subject,
    find_missing,
)
from soak.workers import play_celery, play_gevent

#: Renewals come after 0.63 to 0.7 of a life.
EARLIEST_RENEWAL = 0.63 * LIFETIME
#: How late the measuring itself may be, on a busy machine.
TOLERANCE = 0.5
RECOVERY = 2.0
RETRY_AFTER = 1.0
PRIMARIES = 3
TASKS = 100
FULL_ACCESS = "+@all ~* &*"
WITHOUT_SCRIPTS = "+@all -@scripting ~* &*"
OUTAGES = {
    "500": "500",
    "429": f"429 with Retry-After {RETRY_AFTER:g}",
    "refused": "connection refused",
    "hang": "hanging",
    "html": "answering HTML",
}


@dataclass(frozen=True)
class Scenario:
    """A row of the table.

    Parameters:
        name: what the command line calls it.
        fault: what the table calls it.
        play: runs it.
        subjects: who has to go through it.
        short_subjects: who in the short form; none leaves the row out, unless it is
            asked for by name.
        weight: seconds, more or less, in the full form; the longest begin first.
        cluster: primaries of the Redis Cluster; 0 is a single node.
        modules: what must be installed.
        real: whether it takes a redis-server: one in Python does not keep the users of
            its connections apart.
        commands: those that it sends beside the cache's own, which a service of Azure
            may refuse.
    """

    name: str
    fault: str
    play: Callable[[Stage], Outcome]
    subjects: Sequence[Subject] = (OURS,)
    short_subjects: Sequence[Subject] = (OURS,)
    weight: float = 15.0
    cluster: int = 0
    modules: tuple[str, ...] = ()
    real: bool = False
    commands: frozenset[bytes] = frozenset()

    def hindrance(self, subject: Subject) -> str:
        """Return why the row cannot be run here; empty where it can."""
        if missing := find_missing(*subject.modules, *self.modules):
            return f"not installed: {', '.join(missing)}"
        if self.real and find_server() is None:
            return "no redis-server"
        if self.cluster:
            try:
                check_server(None)
            except ServerError as error:
                return str(error)
        return ""


def play_renewals(stage: Stage, **config: Any) -> Outcome:
    """Nothing but renewals; ``config`` is the load's."""
    wanted = 6 if stage.short else 100
    limit = wanted * 0.7 * LIFETIME
    bars = Bars()
    with stage.load(**config) as (emulator, load):
        began = time.monotonic()

        def over() -> bool:
            gone = time.monotonic() - began
            errors = load.look().errors
            if stage.ours:
                done = emulator.control.stats.token_requests - 1
                stage.say(f"renewal {done} of {wanted}, {errors} errors")
                return done >= wanted
            stage.say(f"{gone:.0f} of {limit:.0f} s, {errors} errors")
            return gone >= limit

        wait_until(over, "the renewals come", 2 * limit + 60)
        # The connections' AUTHs come after it.
        stage.spend(load, 0.3 * LIFETIME)
        tally = load.stop()
        stats = emulator.control.stats
        again: dict[str | None, list[float]] = defaultdict(list)
        pairs: dict[tuple[int, str | None], int] = defaultdict(int)
        for record in emulator.control.authentications:
            pairs[record.connection, record.token_id] += 1
            if record.again:
                again[record.token_id].append(record.at)
        spreads = [max(times) - min(times) for times in again.values()]
        spread = statistics.median(spreads) if spreads else 0.0
        bars.sound(tally)
        bars.equal("errors", tally.errors + tally.uncertain, 0)
        bars.equal("closed in use", stats.closed_by_expiry_in_use, 0)
        # One that has been idle for long may have been closed meanwhile.
        idle = stats.closed_by_expiry - stats.closed_by_expiry_in_use
        # What a cluster looks like is asked of the server in LOCATION.
        room = 8 * stage.cluster + 1 if stage.cluster else 8
        if "tasks" in config:
            # The loop's one, and that of its first operations, in a thread.
            room = 2
        bars.at_most("connections", stats.connections_opened, room + idle)
        bars.equal(
            "token requests", stats.token_requests, tally.facts.get("renewals", 0) + 1
        )
        bars.equal("AUTHs per connection and token", max(pairs.values()), 1)
        note = f"{tally.operations} operations"
        if "tasks" not in config:
            name = "seconds that the AUTHs of a renewal spread over"
            bars.at_least(name, spread, 0.2)
        if stage.ours:
            if "tasks" not in config:
                note += f"; AUTHs of a renewal spread over {spread:.1f} s"
            note += f"; {idle} connections closed while idle" if idle else ""
        return stage.outcome(emulator, tally, bars, note)


def play_drops(stage: Stage) -> Outcome:
    """The server drops every connection, every 2 s."""
    bars = Bars()
    with stage.load() as (emulator, load):
        drops = 5 if stage.short else 30
        for number in range(drops):
            emulator.control.drop_connections()
            stage.spend(load, 2.0, f"drop {number + 1} of {drops}, ")
        tally = load.stop()
        bars.sound(tally)
        bars.equal("errors", tally.errors, 0)
        expected = 2 * drops / (0.7 * LIFETIME)
        renewals = tally.facts.get("renewals", 0)
        bars.at_least("renewals", renewals, int(expected) - 1)
        return stage.outcome(emulator, tally, bars, f"{drops} drops of all")


def play_idle(stage: Stage) -> Outcome:
    """The server closes the connections that are idle."""
    bars, closed = Bars(), 0
    with stage.load() as (emulator, load):
        for number in range(3 if stage.short else 15):
            load.tell("pause")
            stage.spend(load, 1.2, f"pause {number + 1}, ")
            closed += emulator.control.drop_connections(idle_only=True)
            load.tell("resume")
            stage.spend(load, 1.0, f"burst {number + 1}, ")
        tally = load.stop()
        bars.sound(tally)
        bars.equal("errors", tally.errors + tally.uncertain, 0)
        bars.at_least("idle connections closed", closed, 8)
        return stage.outcome(emulator, tally, bars, f"{closed} closed while idle")


def play_outage(mode: str, stage: Stage) -> Outcome:
    """The identity endpoint fails, for less than a token's remaining life."""
    bars = Bars()
    with stage.load() as (emulator, load):
        wait_for_renewal(emulator)
        load.tell("mark")
        emulator.control.fail(mode, retry_after=_retry_after(mode))
        # The next renewal fails, and the token lives on for a fifth of its life.
        stage.spend(load, 0.77 * LIFETIME, "outage, ")
        emulator.control.recover()
        stage.spend(load, 0.75 * LIFETIME, "after it, ")
        tally = load.stop()
        failures = tally.facts.get("failures", 0)
        bars.sound(tally)
        bars.equal("errors", tally.errors + tally.uncertain, 0)
        bars.at_least("requests that failed", failures, 1)
        bars.at_least("renewals", tally.facts.get("renewals", 0), 2)
        note = f"{failures} requests failed" if stage.ours else ""
        return stage.outcome(emulator, tally, bars, note)


def play_long_outage(mode: str, stage: Stage) -> Outcome:
    """The identity endpoint fails, for longer than a token lives."""
    bars = Bars()
    with stage.load() as (emulator, load):
        issued = wait_for_renewal(emulator)
        load.tell("mark")
        emulator.control.fail(mode, retry_after=_retry_after(mode))
        stage.spend(load, LIFETIME + 4.0, "outage, ")
        emulator.control.recover()
        back = time.monotonic()
        stage.spend(load, 0.75 * LIFETIME, "after it, ")
        watched = time.monotonic() - back
        tally = load.stop()
        first = min((failure.at for failure in tally.failures), default=back)
        last = max((failure.at for failure in tally.failures), default=back)
        expiry = issued + LIFETIME
        until = first - expiry
        recovery = max(0.0, last - back)
        pause = {"429": RETRY_AFTER, "hang": REQUEST_TIMEOUT}.get(mode, 0.0)
        kinds = {
            failure.kind
            for failure in tally.failures
            # Until Redis and we agree that it is over, it may say so first.
            if failure.at > expiry + TOLERANCE and failure.kind != UNCERTAIN
        }
        bars.sound(tally)
        bars.at_least("errors", tally.errors, 1)
        bars.equal("errors are", kinds, {"TokenError"})
        bars.at_most("s to the first error", until, REQUEST_TIMEOUT + TOLERANCE)
        bars.at_most("s longest wait", tally.longest, REQUEST_TIMEOUT + TOLERANCE)
        bars.at_most("s to recovery", recovery, max(RECOVERY, 1 + pause) + TOLERANCE)
        return stage.outcome(
            emulator,
            tally,
            bars,
            f"first error {max(0.0, until):.1f} s after expiry" if until > -1 else "",
            f"longest wait {tally.longest:.1f} s",
            _recovered(recovery, watched),
        )


def play_revocation(stage: Stage) -> Outcome:
    """Redis refuses the token that everybody holds; a new one it would take."""
    bars = Bars()
    with stage.load() as (emulator, load):
        wait_for_renewal(emulator)
        load.tell("mark")
        user = emulator.description["application"]["object_id"]
        before = emulator.control.stats
        emulator.control.revoke(user)
        stage.spend(load, 0.4 * LIFETIME, "revoked, ")
        asked = emulator.control.stats.token_requests - before.token_requests
        tally = load.stop()
        bars.sound(tally)
        bars.equal("errors", tally.errors, 0)
        bars.equal("forced renewals", asked, 1)
        return stage.outcome(
            emulator, tally, bars, f"{asked} token requests for the revoked one"
        )


def play_refusal(stage: Stage) -> Outcome:
    """The principal loses its access to the cache, for a while."""
    bars = Bars()
    with stage.load() as (emulator, load):
        wait_for_renewal(emulator)
        load.tell("mark")
        user = emulator.description["application"]["object_id"]
        before = emulator.control.stats
        emulator.control.set_access(user, None)
        seconds = LIFETIME
        stage.spend(load, seconds, "without access, ")
        asked = emulator.control.stats.token_requests - before.token_requests
        emulator.control.set_access(user, FULL_ACCESS)
        back = time.monotonic()
        stage.spend(load, 0.5 * LIFETIME, "with access, ")
        watched = time.monotonic() - back
        tally = load.stop()
        last = max((failure.at for failure in tally.failures), default=back)
        recovery = max(0.0, last - back)
        kinds = {
            failure.kind
            for failure in tally.failures
            if failure.at > back - 1 and failure.kind != UNCERTAIN
        }
        bars.sound(tally)
        bars.at_least("errors", tally.errors, 1)
        bars.equal("errors are", kinds, {"TokenRefusedError"})
        # One a second with tokens of this life, and the scheduled ones.
        bars.at_most("token requests", asked, seconds + 3)
        bars.at_most("s longest wait", tally.longest, REQUEST_TIMEOUT + TOLERANCE)
        bars.at_most("s to recovery", recovery, RECOVERY)
        return stage.outcome(
            emulator,
            tally,
            bars,
            f"{asked} token requests meanwhile",
            _recovered(recovery, watched),
        )


def play_scriptless(stage: Stage) -> Outcome:
    """The access policy lets no scripts run."""
    bars = Bars()
    with stage.emulator() as emulator:
        user = emulator.description["application"]["object_id"]
        emulator.control.set_access(user, WITHOUT_SCRIPTS)
        with LoadProcess(emulator, stage.subject.name) as load:
            stage.spend(load, LIFETIME)
            tally = load.stop()
        bars.sound(tally)
        bars.equal("errors", tally.errors + tally.uncertain, 0)
        return stage.outcome(emulator, tally, bars)


def play_clock_steps(stage: Stage) -> Outcome:
    """Somebody sets the machine's clock, by an hour either way."""
    bars = Bars()
    with stage.load() as (emulator, load):
        before = emulator.control.stats.token_requests
        steps = (3600, -7200, 3600)
        for step in steps:
            stage.spend(load, LIFETIME / 2, f"{step:+d} s next, ")
            load.tell(f"step {step}")
        stage.spend(load, LIFETIME / 2)
        tally = load.stop()
        asked = emulator.control.stats.token_requests - before
        due = (len(steps) + 1) * LIFETIME / 2 / EARLIEST_RENEWAL
        bars.sound(tally)
        bars.equal("errors", tally.errors + tally.uncertain, 0)
        bars.at_most("token requests", asked, due + len(steps) + 1)
        return stage.outcome(emulator, tally, bars)


def play_silence(stage: Stage) -> Outcome:
    """The server accepts connections and says nothing; another cache is well."""
    bars = Bars()
    with stage.load(variant="beside", threads=16) as (emulator, load):
        stage.spend(load, 1.0)
        load.tell("mark")
        emulator.control.freeze()
        stage.spend(load, 5.0, "silent, ")
        emulator.control.freeze(False)
        back = time.monotonic()
        stage.spend(load, 3.0, "awake, ")
        watched = time.monotonic() - back
        tally = load.stop()
        last = max((failure.at for failure in tally.failures), default=back)
        recovery = max(0.0, last - back)
        beside = tally.facts["beside"]
        bars.sound(tally)
        bars.at_least("errors", tally.errors + tally.uncertain, 1)
        bars.at_most("s longest wait", tally.longest, 2 * SOCKET_TIMEOUT + TOLERANCE)
        bars.at_most("s to recovery", recovery, SOCKET_TIMEOUT + RECOVERY)
        bars.equal("errors of the cache beside it", beside["errors"], 0)
        bars.at_most("s longest wait beside it", beside["longest"], 1.0)
        return stage.outcome(
            emulator,
            tally,
            bars,
            f"longest wait {tally.longest:.1f} s",
            _recovered(recovery, watched),
            f"{beside['operations']} operations of another cache unharmed",
        )


def play_variant(variant: str, stage: Stage) -> Outcome:
    """Another kind of pool, or of location, through renewals and a loss."""
    bars = Bars()
    with stage.load(variant=variant) as (emulator, load):
        stage.spend(load, 0.8 * LIFETIME)
        emulator.control.drop_connections()
        stage.spend(load, 0.9 * LIFETIME)
        tally = load.stop()
        bars.sound(tally)
        bars.equal("errors", tally.errors, 0)
        bars.at_least("renewals", tally.facts.get("renewals", 0), 2)
        bars.equal("closed in use", emulator.control.stats.closed_by_expiry_in_use, 0)
        return stage.outcome(emulator, tally, bars)


def play_identities(stage: Stage) -> Outcome:
    """Two caches with one URL and two identities: each is who it is to be."""
    bars = Bars()
    with stage.emulator() as emulator:
        description = emulator.description
        users = {
            "default": description["application"]["object_id"],
            "other": description["user_assigned"]["object_id"],
        }
        with LoadProcess(
            emulator, stage.subject.name, variant="identities", users=users
        ) as load:
            stage.spend(load, 0.8 * LIFETIME)
            emulator.control.drop_connections()
            stage.spend(load, 0.9 * LIFETIME)
            tally = load.stop()
        bars.sound(tally)
        bars.equal("errors", tally.errors, 0)
        bars.equal("errors of the other", tally.facts["beside"]["errors"], 0)
        bars.at_least("renewals", tally.facts.get("renewals", 0), 2)
        return stage.outcome(emulator, tally, bars, "never mixed, by ACL WHOAMI")


def _retry_after(mode: str) -> float | None:
    return RETRY_AFTER if mode == "429" else None


def _recovered(recovery: float, watched: float) -> str:
    if recovery > watched - 0.3:
        return f"not back {watched:.1f} s after its end"
    return f"back {recovery:.1f} s after its end"


def make_scenarios() -> list[Scenario]:
    """Return all rows that loads make, in the table's order."""
    rows = [
        Scenario(
            "renewals",
            "renewals in a row (6 in the short form, else 100)",
            play_renewals,
            SUBJECTS,
            SUBJECTS,
            weight=440,
        ),
        Scenario(
            "drops",
            "all connections dropped, every 2 s",
            play_drops,
            SUBJECTS,
            SUBJECTS,
            weight=65,
        ),
        Scenario(
            "idle", "idle connections closed", play_idle, SUBJECTS, SUBJECTS, weight=40
        ),
    ]
    for mode, title in OUTAGES.items():
        rows.append(
            Scenario(
                f"outage-{mode}",
                f"identity endpoint {title}, for less than the token's remaining life",
                partial(play_outage, mode),
                SUBJECTS,
            )
        )
        rows.append(
            Scenario(
                f"outage-{mode}-long",
                f"identity endpoint {title}, for longer than a token lives",
                partial(play_long_outage, mode),
                SUBJECTS,
                weight=20,
            )
        )
    rows += [
        Scenario(
            "revoked", "token revoked: Redis refuses it", play_revocation, SUBJECTS
        ),
        Scenario("refused", "access taken away for 6 s", play_refusal, SUBJECTS),
        Scenario("scriptless", "access policy without scripting", play_scriptless),
        Scenario(
            "clock", "wall clock stepped by an hour, either way", play_clock_steps
        ),
        Scenario("silence", "server accepts and never answers, 5 s", play_silence),
        Scenario("loss", "network drops every packet, 5 s", play_loss),
        Scenario(
            "chaos",
            "cuts at any byte, silence, drips; threads broken off at any call",
            play_chaos,
            short_subjects=(),
            weight=85,
        ),
        Scenario(
            "async-chaos",
            f"cuts at any byte, silence, drips; {TASKS // 5} tasks, many cancelled",
            partial(play_chaos, tasks=TASKS // 5),
            short_subjects=(),
            weight=85,
        ),
        Scenario(
            "blocking",
            "BlockingConnectionPool, 4 connections; a drop",
            partial(play_variant, "blocking"),
        ),
        Scenario(
            "pool-class",
            "redis-py's own pool as pool_class; a drop",
            partial(play_variant, "pool_class"),
        ),
        Scenario(
            "replicas",
            "a replica in LOCATION; a drop",
            partial(play_variant, "replicas"),
        ),
        Scenario(
            "identities",
            "two caches, one URL, two identities; a drop",
            play_identities,
            real=True,
            commands=frozenset({b"ACL"}),
        ),
        Scenario(
            "threads",
            "10,000 short-lived threads (1,000 in the short form)",
            partial(measure_flatness, "threads"),
            weight=60,
        ),
        Scenario(
            "overrides",
            "1,000 override_settings (100 in the short form)",
            partial(measure_flatness, "overrides"),
            weight=60,
        ),
        Scenario(
            "loops",
            "1,000 event loops (100 in the short form)",
            partial(measure_flatness, "loops"),
            weight=30,
        ),
        Scenario(
            "async-renewals",
            f"{TASKS} tasks on an event loop: renewals in a row"
            " (6 in the short form, else 100)",
            # As often as the threads do.
            partial(play_renewals, tasks=TASKS, pause=0.02 * TASKS / 8),
            weight=440,
        ),
        Scenario(
            "cluster-renewals",
            "cluster: renewals in a row (6 in the short form, else 100)",
            play_renewals,
            weight=440,
            cluster=PRIMARIES,
        ),
        Scenario(
            "cluster-drops",
            "cluster: all connections dropped, every 2 s",
            play_drops,
            short_subjects=(),
            weight=70,
            cluster=PRIMARIES,
        ),
        Scenario(
            "cluster-death",
            "cluster: a primary dies, its replica takes over",
            play_death,
            weight=50,
            cluster=PRIMARIES,
        ),
        Scenario(
            "copies",
            "client-side copies in 8 processes: drops every 2 s, FLUSHDB, forks",
            play_copies,
            short_subjects=(),
            weight=600,
            real=True,
        ),
        Scenario(
            "copies-cluster",
            "client-side copies in 8 processes: a failover every 2 s, FLUSHDB, forks",
            play_copies,
            short_subjects=(),
            weight=600,
            cluster=PRIMARIES,
            real=True,
        ),
        Scenario(
            "cluster-slots",
            "cluster: a node joins, slots migrate to it",
            play_resharding,
            weight=50,
            cluster=PRIMARIES,
        ),
        Scenario(
            "celery",
            "Celery worker, prefork",
            play_celery,
            short_subjects=(),
            weight=60,
            modules=("celery",),
        ),
        Scenario(
            "gevent",
            "gunicorn, gevent worker; Entra hangs, then Redis is silent",
            play_gevent,
            short_subjects=(),
            weight=110,
            modules=("gunicorn", "gevent"),
        ),
    ]
    return rows
