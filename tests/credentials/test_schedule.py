"""When a token is renewed, and how long a failed request waits: pure decisions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_entra_redis.conf.policy import Policy
from django_entra_redis.credentials.schedule import (
    forced_interval,
    renewal_delay,
    repeat_delay,
    retry_cap,
    retry_delay,
)

HOUR, DAY = 3600.0, 86400.0
POLICY = Policy()
lives = st.floats(0.1, DAY)
jitters = st.floats(0, 1)
policies = st.builds(Policy, ratio=st.floats(0.01, 0.99), margin=st.floats(0, HOUR))
fuzz = settings(deadline=None, database=None)


@pytest.mark.parametrize(
    ("life", "policy", "delay"),
    [
        # The ratio decides, until the margin does.
        (HOUR, POLICY, 2520),
        (DAY, POLICY, 60480),
        (HOUR, Policy(ratio=0.99), HOUR - 180),
        (400, POLICY, 220),
        (360, POLICY, 180),
        # A life of less than two margins is too short for the margin.
        (359.9, POLICY, 0.7 * 359.9),
        (6, POLICY, 4.2),
        (6, Policy(margin=0), 4.2),
        (6, Policy(ratio=0.9, margin=2), 4),
    ],
)
def test_when_a_token_is_renewed(life: float, policy: Policy, delay: float) -> None:
    """After its share of the life, at the latest the margin before expiry."""
    assert renewal_delay(life, policy, jitter=0) == pytest.approx(delay)


@fuzz
@given(lives, policies, jitters)
def test_jitter_only_makes_it_earlier(
    life: float, policy: Policy, jitter: float
) -> None:
    """Jittered, a renewal comes up to a tenth earlier and never at once."""
    latest = renewal_delay(life, policy, jitter=0)
    assert 0.9 * latest <= renewal_delay(life, policy, jitter) * 1.000001
    assert 0 < renewal_delay(life, policy, jitter) <= latest <= policy.ratio * life
    if life >= 2 * policy.margin:
        assert latest <= life - policy.margin


@pytest.mark.parametrize(
    ("life", "cap"), [(None, 10), (6, 1), (360, 1), (1800, 5), (HOUR, 10), (DAY, 10)]
)
def test_longest_pause_between_tries(life: float | None, cap: float) -> None:
    """A short-lived token is back within 2 s of an outage's end, a fleet in 10."""
    assert retry_cap(life) == cap


@pytest.mark.parametrize(
    ("left", "age", "cap"),
    [
        # An outage of a minute ends within 10 s, as one without a token does.
        (1000, 0, 10),
        (1000, 60, 10),
        # Then nobody is in a hurry, until the token comes to its end.
        (1000, 300, 50),
        (1000, 600, 100),
        (10_000, 6000, 120),
        (300, 600, 50),
        (60, 6000, 10),
        (-5, 6000, 10),
    ],
)
def test_pauses_in_a_long_outage(left: float, age: float, cap: float) -> None:
    """They grow with its age, while there is a token that lives on."""
    assert retry_cap(HOUR, left, age) == cap


@fuzz
@given(lives, st.floats(0, 1), st.floats(0, DAY))
def test_no_pause_outlasts_the_token(life: float, share: float, age: float) -> None:
    """There is time for several tries before it runs out."""
    left = share * life
    assert retry_cap(life, left, age) <= max(retry_cap(life), left / 6)


def test_pauses_grow() -> None:
    """The pause doubles from half a second up to the cap."""
    pauses = [retry_delay(failures, 10, None, 1) for failures in range(1, 8)]
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]
    assert retry_delay(10**6, 1, None, 1) == 1


def test_pauses_are_jittered_in_full() -> None:
    """Processes that fail together do not come back together."""
    assert retry_delay(9, 10, None, 0) == 0
    assert retry_delay(9, 10, None, 0.25) == 2.5


def test_retry_after_wins() -> None:
    """What the endpoint asks for is kept, and jitter comes on top."""
    assert retry_delay(1, 1, 120, 0) == 120
    assert retry_delay(5, 10, 120, 0.5) == 124


@pytest.mark.parametrize(
    ("life", "interval"), [(6, 1), (60, 1), (HOUR, 60), (DAY, 60), (600, 10)]
)
def test_forced_renewals_are_rare(life: float, interval: float) -> None:
    """A token that Redis refuses is not replaced again and again."""
    assert forced_interval(life) == interval


@pytest.mark.parametrize(
    ("left", "life", "delay"),
    [
        (HOUR, DAY, 2520),
        (400, DAY, 220),
        (185, DAY, 10),
        (100, DAY, 10),
        (4, 6, 2.8),
        (1.2, 6, 1),
        # Not later than its expiry.
        (3, DAY, 3),
        (0.5, 6, 0.5),
    ],
)
def test_the_same_token_again(left: float, life: float, delay: float) -> None:
    """It is asked for again in good time, and not in a spin."""
    assert repeat_delay(left, life, POLICY, jitter=0) == pytest.approx(delay)


@fuzz
@given(st.floats(0, 1), lives, policies, jitters)
def test_asking_again_is_no_spin(
    share: float, life: float, policy: Policy, jitter: float
) -> None:
    """However little is left: a pause as after a failure, or until it expires."""
    left = share * life
    delay = repeat_delay(left, life, policy, jitter)
    assert min(retry_cap(life), left) <= delay <= max(left, 0)
