"""The simulation of a fleet: small ones, whose load can be told beforehand."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fleet import HOUR, Fleet, draw, main, report, simulate, worst_moment

SMALL = Fleet(
    processes=200,
    connections=2,
    nodes=4,
    hours=6,
    rollout=1,
    outage_at=11_800,  # within the fifth wave of renewals
    outage=600,
)


def test_each_renewal_is_one_request() -> None:
    """Without an outage: one request per life's share, one AUTH per connection."""
    load = simulate(replace(SMALL, outage=0))
    requests = sum(load.requests)
    # 6 hours are 8.6 to 9.5 times the time to a renewal; the first comes at once.
    assert 200 * 9 <= requests <= 200 * 10
    # Those of the last renewal may come after the end.
    assert 2 * (requests - 200) <= load.auths_sum <= 2 * requests
    assert load.expired == 0


def test_without_jitter_all_come_at_once() -> None:
    """The deploy's synchrony stays; with jitter it does not."""
    jittered, plain = (simulate(replace(SMALL, jittered=on)) for on in (True, False))
    hours = (HOUR, 3 * HOUR)
    assert plain.peak("requests", *hours) > 10 * jittered.peak("requests", *hours)
    assert plain.peak("auths", *hours) > jittered.peak("auths", *hours)


def test_an_outage_is_survived() -> None:
    """Requests are tried again until it ends, and no token runs out meanwhile."""
    load = simulate(SMALL)
    calm = simulate(replace(SMALL, outage=0))
    during = (SMALL.outage_at, SMALL.back)
    assert load.mean(*during) > calm.mean(*during)
    assert load.expired == 0


def test_tokens_run_out_in_a_longer_one() -> None:
    """An outage of more than a life: each process has a time without a token."""
    load = simulate(replace(SMALL, processes=20, outage=1.5 * HOUR))
    assert load.expired == 20


def test_report_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a table, and draws what is well-formed SVG."""
    plot = tmp_path / "fleet.svg"
    arguments = ["--processes=20", "--hours=4", "--nodes=2", f"--plot={plot}"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "20 processes with 2 connections each to 2 nodes" in printed
    assert "| during the outage |" in printed
    assert len([*ET.parse(plot).iter("{http://www.w3.org/2000/svg}polyline")]) == 4


def test_the_worst_moment() -> None:
    """In the middle of the outage all would renew that know no jitter."""
    assert worst_moment(2600, 600, HOUR) == pytest.approx(2 * 2520.2 - 300)


def test_progress_is_told() -> None:
    """Whoever waits hears of it."""
    told: list[int] = []
    load = simulate(replace(SMALL, processes=3, hours=1, outage_at=HOUR), told.append)
    assert told == [0]
    assert "0 tokens ran out" in report([load, load])
    assert draw([load, load]).endswith("</svg>\n")
