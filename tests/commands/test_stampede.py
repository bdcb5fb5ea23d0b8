"""When a value is computed before it expires, and what is known of it."""

import math
import random
from typing import Any

import pytest

from django_entra_redis.commands.operations import Operations
from django_entra_redis.commands.server_facts import ServerFacts
from django_entra_redis.commands.stampede import (
    Facts,
    Names,
    Stampedes,
    State,
    is_due,
)
from django_entra_redis.serializers import PickleSerializer

NAMES = Names("k", "cost", "lock")


@pytest.mark.parametrize("left", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_probability_grows(beta: float, left: float) -> None:
    """As the paper has it: exp(-left / (cost * beta))."""
    dice = random.Random(5)
    facts, count = Facts(cost=1.0, left=left), 20_000
    due = sum(is_due(facts, beta, 1.0 - dice.random()) for _ in range(count))
    assert due / count == pytest.approx(math.exp(-left / beta), abs=0.02)


@pytest.mark.parametrize(
    ("facts", "beta", "draw"),
    [
        (Facts(0.0, 0.0), 1.0, 0.5),
        (Facts(1.0, 0.0), 0.0, 0.5),
        (Facts(1.0, 0.0), 1.0, 1.0),
        (Facts(1.0, math.inf), 1e4, 1e-16),
    ],
)
def test_never(facts: Facts, beta: float, draw: float) -> None:
    """Nothing that has cost nothing, nor what lives for ever, nor with a beta of 0."""
    assert not is_due(facts, beta, draw)


@pytest.mark.parametrize(
    ("replies", "facts"),
    [
        ([5000, b"0.25"], Facts(0.25, 5.0)),
        ([-1, b"0.25"], Facts(0.25, math.inf)),
        ([-2, None], Facts(0.0, 0.0)),
        ([5000, b"something else's"], Facts(0.0, 5.0)),
        ([5000, b"-1"], Facts(0.0, 5.0)),
    ],
)
def test_facts(replies: list[Any], facts: Facts) -> None:
    """They come in one round trip; a cost that is none counts as unknown."""
    asking = Stampedes(Operations(PickleSerializer(), ServerFacts())).facts(NAMES)
    assert next(asking).count == 2
    with pytest.raises(StopIteration) as caught:
        asking.send(replies)
    assert caught.value.value == facts


@pytest.mark.parametrize(
    ("before", "after", "still"),
    [
        # Ten seconds have passed, or eleven; the round trips took half a second each.
        (100.0, 90.0, True),
        (100.0, 89.0, True),
        (100.0, 90.05, True),
        (100.0, 88.95, True),
        (100.0, 90.2, False),
        (100.0, 88.8, False),
        (100.0, 5.0, False),
        (100.0, math.inf, False),
        (math.inf, math.inf, True),
        (math.inf, 90.0, False),
    ],
)
def test_whether_an_expiry_was_changed(
    before: float, after: float, still: bool
) -> None:
    """Time that passes changes it, by as much as has passed."""
    first = State(b"data", before, 1000.0, 1000.5)
    assert State(b"data", after, 1010.5, 1011.0).is_still(first) is still
    assert not State(b"other", after, 1010.5, 1011.0).is_still(first)


def test_state() -> None:
    """It knows when it was asked for."""
    times = iter([1.0, 2.5])
    operations = Operations(PickleSerializer(), ServerFacts())
    asking = Stampedes(operations, lambda: next(times)).state(NAMES)
    next(asking)
    with pytest.raises(StopIteration) as caught:
        asking.send([5000, b"data"])
    assert caught.value.value == State(b"data", 5.0, 1.0, 2.5)
