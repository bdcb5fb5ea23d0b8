"""The soak itself: that it runs, sees what goes wrong, and tells of it."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emulator import PROFILES
from emulator.journal import Stats
from emulator.sockets import free_port
from soak import __main__ as soak
from soak.children import (
    ROOT,
    EmulatorProcess,
    LoadProcess,
    SoakError,
    wait_until,
)
from soak.load import Worker
from soak.outcome import Bars, Outcome, make_outcome
from soak.processes import TESTS, ProcessRows, read_report
from soak.progress import Progress
from soak.scenarios import Scenario, make_scenarios
from soak.stage import Stage
from soak.subjects import OURS, SUBJECTS, Subject
from soak.table import Row, render, summarize
from soak.tally import Counter, Failure, Tally
from soak.workers import Accounts, serving, visiting

FAILURE = Failure(1.0, "get", "TokenError", "no token")


def assert_sound(tally: Tally) -> None:
    """Assert that nothing went wrong."""
    counts = (tally.errors, tally.wrong, tally.lost, tally.twice)
    assert (*counts, tally.facts["stuck"]) == (0,) * 5


def test_a_load_under_way(redis_server: str) -> None:
    """It keeps the cache busy, pauses, and reports; and Redis is authenticated to."""
    with EmulatorProcess(60.0) as emulator, LoadProcess(emulator, "ours") as load:
        load.tell("pause")
        load.tell("mark")
        load.tell("step 3600")
        load.tell("resume")
        tally = load.stop()
        stats = emulator.control.stats
    assert tally.operations > 0
    assert_sound(tally)
    assert stats.auths >= stats.connections_opened >= 1


@pytest.mark.parametrize(
    ("value", "wrong", "lost"),
    [(None, 0, 1), ("w-0:older", 0, 1), ("w-1:another's", 1, 0)],
)
def test_wrong_answers(value: str | None, wrong: int, lost: int) -> None:
    """Another key's value is told from one that has been lost."""
    counter = Counter()
    cache = SimpleNamespace(set=lambda *args: None, get=lambda key: value)
    worker = Worker("w", cache, counter, changes=False)
    worker.step(0)
    worker.step(1)
    tally = counter.tally(whole=True)
    assert (tally.operations, tally.wrong, tally.lost) == (2, wrong, lost)


def test_keys_that_were_not_set() -> None:
    """What set_many() tells of is an error, and not expected to be there."""
    counter = Counter()
    cache = SimpleNamespace(
        set_many=lambda data, timeout: list(data)[:1], get_many=lambda keys: {}
    )
    worker = Worker("w", cache, counter, changes=False)
    worker.step(4)
    worker.step(5)
    tally = counter.tally(whole=True)
    assert (tally.errors, tally.wrong, tally.lost) == (1, 0, 0)
    assert tally.failures[0].kind == "FailedKeysError"


def test_lost_writes() -> None:
    """Where the server may lose them they are no fault of ours."""
    tally = Tally(lost=1, facts={"stuck": 0})
    bars, lenient = Bars(), Bars()
    bars.sound(tally)
    lenient.sound(tally, may_lose=True)
    assert (bars.problems, lenient.problems) == (["lost writes: 1, not 0"], [])


def test_a_load_of_tasks(redis_server: str) -> None:
    """So do tasks on an event loop, which have one connection."""
    with (
        EmulatorProcess(60.0) as emulator,
        LoadProcess(emulator, "ours", tasks=20) as load,
    ):
        load.tell("pause")
        load.tell("resume")
        tally = load.stop()
        stats = emulator.control.stats
    assert tally.operations > 0
    assert_sound(tally)
    # The other one is that of the loop's first operations, in a thread.
    assert stats.connections_opened == 2


def test_a_load_on_a_cluster(cluster_server: str) -> None:
    """So does it where the nodes share the keys; what was counted is found there."""
    with (
        EmulatorProcess(60.0, cluster=3) as emulator,
        LoadProcess(emulator, "ours", variant="cluster") as load,
    ):
        tally = load.stop()
        nodes = {record.node for record in emulator.control.authentications}
    assert_sound(tally)
    assert len(nodes) >= 3


def test_a_load_that_ends_is_told_of(redis_server: str) -> None:
    """With what it had to say on standard error."""
    with (
        EmulatorProcess(60.0) as emulator,
        pytest.raises(SoakError, match="the load has ended"),
        LoadProcess(emulator, "ours", users="none"),
    ):
        pass  # pragma: no cover


def test_a_server_under_visitors(redis_server: str) -> None:
    """Each process tells what it has done, and the figures are put together."""
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    accounts = Accounts()
    port = free_port()
    with (
        EmulatorProcess(60.0) as emulator,
        serving(
            emulator,
            *("gunicorn", "--threads=8", "--workers=2", f"--bind=127.0.0.1:{port}"),
            "soak.wsgi:application",
        ) as server,
    ):
        wait_until(lambda: "Booting worker" in server.said(), "it starts")
        with visiting(f"http://127.0.0.1:{port}/use/", accounts) as visitors:
            wait_until(lambda: len(accounts.renewals()) == 2, "both workers answer")
        tally = accounts.tally(emulator)
        assert not any(visitor.is_alive() for visitor in visitors)
        with visiting(f"http://127.0.0.1:{port}/none/", accounts):
            wait_until(lambda: accounts.tally(emulator).errors > 0, "some fail")
        failure = accounts.tally(emulator).failures[0]
    assert tally.operations > 0
    assert tally.failures == ()
    assert_sound(tally)
    assert (failure.operation, failure.kind) == ("visit", "HTTPError")


def test_a_server_that_ends_is_told_of(redis_server: str) -> None:
    """With what it had to say."""
    with (
        EmulatorProcess(60.0) as emulator,
        pytest.raises(SoakError, match="No module named"),
        serving(emulator, "no_such_module") as server,
    ):
        wait_until(lambda: "listening" in server.said(), "it starts")


def test_accounts() -> None:
    """The latest of each process counts, in whatever order they come in."""
    accounts = Accounts()
    for operations, renewals in ((5, 1), (20, 3), (10, 2)):
        accounts.add(
            {
                "pid": 1,
                "renewals": renewals,
                "tally": {"operations": operations},
                "counted": ["key", operations],
                "late": [(1.0, 0.5), (2.0, 0.1 * renewals)],
            }
        )
    assert accounts.renewals() == {1: 3}
    assert accounts.held_up(2.0) == pytest.approx(0.3)
    assert accounts.held_up(0.0) == 0.5
    assert accounts.held_up(3.0) == 0.0


def test_bars() -> None:
    """A bar that is missed is told with both figures."""
    bars = Bars()
    bars.equal("a", 1, 1)
    bars.at_most("b", 1, 1)
    bars.at_least("c", 1, 1)
    bars.sound(Tally(facts={"stuck": 0}))
    assert bars.problems == []
    bars.equal("a", 1, 2)
    bars.at_most("b", 2, 1)
    bars.at_least("c", 1, 2)
    assert bars.problems == ["a: 1, not 2", "b: 2, over 1", "c: 1, under 2"]


def test_a_missed_bar_shows_what_was_raised() -> None:
    """Ours only: the alternatives have no bars."""
    tally = Tally(errors=1, uncertain=2, failures=(FAILURE,))
    outcome = make_outcome(tally, Stats(), ["note"], Bars(["errors: 1, not 0"]))
    assert outcome.note == "note; 2 uncertain"
    assert any("get: TokenError: no token" in text for text in outcome.problems)
    assert make_outcome(tally, Stats(), [], None).problems == ()


def test_tally_survives_json() -> None:
    """What a load process sends is what arrives."""
    counter = Counter()
    counter.count("wrong")
    counter.took(2.0)
    counter.mark()
    counter.took(1.0)
    counter.failed(FAILURE, "errors")
    counter.facts["renewals"] = 3
    tally = counter.tally(whole=True)
    assert Tally.from_json(tally.to_json()) == tally
    assert (tally.operations, tally.longest, tally.errors) == (2, 1.0, 1)
    assert counter.tally(whole=False).failures == ()


def test_table() -> None:
    """Ours meets or misses a bar, the others have none, some rows are skipped."""
    rows = [
        Row("a", "ours", Outcome(errors=0), ours=True),
        Row("b", "ours", Outcome(errors=1, note="n", problems=("p",)), ours=True),
        Row("c", "other", Outcome(errors=9), ours=False),
        Row("d", "ours", Outcome(skipped="why"), ours=True),
    ]
    lines = render(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [row.failed for row in rows] == [False, True, False, False]
    for line, words in zip(
        lines[2:], (["met"], ["MISSED", "n; p"], ["9"], ["skipped", "why"]), strict=True
    ):
        assert all(word in line for word in words)


def test_summary() -> None:
    """One line a fault: our figures, and how many errors the others raise."""
    rows = [
        Row("a", "ours", Outcome(errors=0, auths=3), ours=True),
        Row("a", "X", Outcome(errors=9), ours=False),
        Row("b", "ours", Outcome(errors=1), ours=True),
    ]
    head, _, *lines = summarize(rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert head.split("|")[-2].strip() == "errors: X"
    assert cells == [
        ["a", "0", "", "3", "", "", "met", "9"],
        ["b", "1", "", "", "", "", "met", ""],
    ]


def test_rows_of_processes(tmp_path: Path) -> None:
    """A test is a row, with the figures that it has left."""
    report = tmp_path / "junit.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase name="one"><properties><property name="fault" value="forks"/>'
        '<property name="connections" value="4"/></properties></testcase>'
        '<testcase name="two"><failure message="assert 1 == 2"/></testcase>'
        '<testcase name="three"><skipped message="no fork"/></testcase>'
        "</testsuite></testsuites>"
    )
    one, two, three = read_report(report, "")
    assert (one.fault, one.outcome) == ("forks", Outcome(errors=0, connections=4))
    assert (two.failed, two.outcome.problems) == (True, ("assert 1 == 2",))
    assert (three.failed, three.outcome.skipped) == (False, "no fork")
    (missing,) = read_report(tmp_path / "none.xml", "the end")
    assert missing.failed


def run(*arguments: str) -> Any:
    """Read a command line."""
    return soak.parse(arguments)


def test_rows_are_chosen() -> None:
    """All of them, the short form's, ours alone, or one by name."""
    everything, short = (len(soak.choose(run(*a))) for a in ([], ["--short"]))
    assert everything > len(make_scenarios())
    assert everything > short
    assert len(soak.choose(run("--ours"))) == len(make_scenarios())
    left_out = [s.name for s in make_scenarios() if not s.short_subjects]
    chosen = {scenario.name for scenario, _ in soak.choose(run("--short"))}
    assert left_out
    assert chosen.isdisjoint(left_out)
    assert len(soak.choose(run("--short", f"--only={left_out[0]}"))) == 1
    assert [
        (scenario.name, subject.name)
        for scenario, subject in soak.choose(run("--only=drops"))
    ] == [("drops", subject.name) for subject in SUBJECTS]


def test_a_row_that_cannot_run_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told of in the table; what is not installed is skipped."""

    def play(stage: Stage) -> Outcome:
        stage.say("begins")
        raise SoakError("no emulator")

    scenario = Scenario("row", "a fault", play)
    with Progress(2) as progress:
        outcome = soak.play(scenario, OURS, progress, short=True)
        absent = Subject("x", "X", ("no_such_module",))
        other = soak.play(scenario, absent, progress, short=True)
    assert outcome.problems == ("SoakError: no emulator",)
    assert other.skipped == "not installed: no_such_module"
    assert "2 of 2  row/x: not installed" in capsys.readouterr().err


def test_no_cluster_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows are skipped, with the reason, where no server can make one up."""
    monkeypatch.setattr("emulator.cluster.find_servers", lambda: iter(()))
    assert soak.main(["--only=cluster-death"]) == 0
    assert "there is none on PATH" in capsys.readouterr().out


def test_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """1 when a row of ours misses its bar; the table goes to a file as well."""
    outcomes = [Outcome(errors=0), Outcome(errors=1, problems=("p",))]
    scenario = Scenario("drops", "drops", lambda stage: outcomes.pop(0))
    monkeypatch.setattr(soak, "make_scenarios", lambda: [scenario])
    output = tmp_path / "table.md"
    arguments = ["--ours", "--only=drops", f"--output={output}"]
    assert soak.main(arguments) == 0
    assert soak.main(arguments) == 1
    assert "MISSED" in capsys.readouterr().out
    assert "MISSED" in output.read_text()


def test_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that misses its bar is played once more, if that is asked for."""
    missed, met = Outcome(errors=1, problems=("p",)), Outcome(errors=0)
    outcomes = [missed, met, missed, missed, met]
    scenario = Scenario("drops", "drops", lambda stage: outcomes.pop(0))
    monkeypatch.setattr(soak, "make_scenarios", lambda: [scenario])
    arguments = ["--ours", "--only=drops", "--again"]
    assert soak.main(arguments) == 0
    assert "at the second try" in capsys.readouterr().out
    assert soak.main(arguments) == 1
    assert soak.main(arguments) == 0
    assert "at the second try" not in capsys.readouterr().out.partition("met")[2]


def test_processes_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So are the tests of processes."""
    missed = Row("forks", OURS.title, Outcome(problems=("p",)), ours=True)
    met = Row("forks", OURS.title, Outcome(errors=0), ours=True)
    outcomes = [[missed], [met], [missed]]
    monkeypatch.setattr(ProcessRows, "play", lambda rows, progress: outcomes.pop(0))
    assert soak.main(["--only=processes", "--again"]) == 0
    assert soak.main(["--only=processes"]) == 1
    # In both tables.
    assert capsys.readouterr().out.count("MISSED") == 2


def test_waiting_has_an_end() -> None:
    """What does not come about fails the row."""
    began = time.monotonic()
    with pytest.raises(SoakError, match="it: not within 0 s"):
        wait_until(lambda: False, "it", timeout=0.01)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("profile", PROFILES)
def test_rows_of_a_profile(profile: str) -> None:
    """A service has the rows of a cluster, or those of a single server."""
    options = soak.parse(["--short", f"--profile={profile}"])
    chosen = soak.choose(options)
    clustered = bool(PROFILES[profile].primaries)
    assert chosen
    assert all(bool(scenario.cluster) == clustered for scenario, _ in chosen)
    # ACL is blocked on each of them.
    assert "identities" not in [scenario.name for scenario, _ in chosen]
    assert ProcessRows(options).count == 0


def test_emulator_of_a_profile() -> None:
    """A row's emulator is like the service."""
    with EmulatorProcess(60.0, profile="acr") as emulator:
        assert emulator.description["profile"] == "acr"


def test_the_tests_of_processes_are_there() -> None:
    """Without them the soak would have no row of forks, and say so nowhere."""
    assert (ROOT / TESTS).is_file()
