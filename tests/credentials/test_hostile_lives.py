"""Tokens of absurd lives, clocks that are off, and log handlers that raise."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from django_entra_redis.conf.policy import Policy
from django_entra_redis.credentials.provider import get_credential_provider
from django_entra_redis.exceptions import TokenError, TokenRequestError
from django_entra_redis.identity.token import SHORTEST, Clock, Token, receive_token
from django_entra_redis.signals import token_renewal_failed, token_renewed
from tests.credentials.test_renewal import Bench, stop
from tests.support.caches import wait_until

NOW = 1_800_000_000.0


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Give a renewal that has not been started."""
    made = Bench()
    yield made
    made.close()


@pytest.mark.parametrize("life", [SHORTEST, 0.7, 1.2])
def test_requests_are_a_second_apart(bench: Bench, life: float) -> None:
    """However short the tokens' lives, and whatever share of them is asked for."""
    bench.begin(life)
    for _ in range(3):
        asked = bench.asked
        bench.advance(0.99)
        assert bench.asked == asked
        bench.advance(0.02)
        bench.call().answer(bench.token(life))


def test_the_same_token_is_asked_for_a_second_apart(bench: Bench) -> None:
    """Also at the end of its life, which no answer makes longer."""
    token = bench.begin(6.0)
    bench.advance(4.2)
    bench.call().answer(token)
    bench.advance(1.7)
    asked = bench.asked
    bench.call().answer(token)
    bench.advance(0.9)
    assert bench.asked == asked


@pytest.mark.parametrize("life", [1e-6, 0.001, 0.49])
def test_a_life_too_short_is_a_failure(life: float) -> None:
    """It would be over before it is used; a failure has pauses that grow."""
    clock = Clock(lambda: 5.0, lambda: NOW)
    told: list[dict[str, Any]] = [{"expires_in": life}, {"expires_on": NOW + life}]
    for stated in told:
        with pytest.raises(TokenRequestError, match="too short to be used") as info:
            receive_token("x", clock=clock, username="u", **stated)
        assert info.value.code == "token_expired_already"


@pytest.mark.parametrize("ahead", [3599.6, 3600.0, 3600.4, 7200.0])
def test_a_wall_clock_that_is_ahead_by_the_token_s_life(ahead: float) -> None:
    """The life that is stated counts: no token is over as it comes."""
    clock = Clock(lambda: 5.0, lambda: NOW + ahead)
    token = receive_token(
        "x", clock=clock, username="u", expires_in=3600, expires_on=NOW + 3600
    )
    assert token.life == 3600


@pytest.mark.parametrize("stated", [1e10, 253_370_764_799, 1e300, 10**400])
@pytest.mark.parametrize("key", ["expires_in", "expires_on"])
def test_no_life_is_beyond_the_calendar(bench: Bench, key: str, stated: float) -> None:
    """The status tells of any, and so does what is made of it."""
    clock = bench.renewal.clock
    given: dict[str, Any] = {key: stated}
    if stated > 1e12:  # No time at all.
        given = {"expires_in": 3600.0, "expires_on": clock.wall() + 3600.0, **given}
    token = receive_token("x", clock=clock, username="u", **given)
    bench.renewal.start()
    bench.call().answer(token)
    wait_until(lambda: bench.renewal.state.token)
    status = bench.renewal.status()
    assert status.expires_at is not None
    assert status.expires_at.year < 2100


def test_a_clock_beyond_the_calendar(bench: Bench) -> None:
    """Then the status leaves the times out."""
    bench.ahead = 1e15
    bench.begin()
    wait_until(lambda: bench.renewal.state.token)
    status = bench.renewal.status()
    assert (status.expires_at, status.renewed_at) == (None, None)
    assert status.next_renewal_at is None


def test_whose_token_it_is_is_told_in_print(bench: Bench) -> None:
    """With USERNAME its claims may say anything."""
    bench.renewal.start()
    token = bench.token()
    claims = {"oid": "\x1b[2J\nforged"}
    bench.call().answer(
        Token(
            token.value,
            "user",
            claims,
            token.received_at,
            token.expires_at,
            token.expires_on,
        )
    )
    wait_until(lambda: bench.renewal.state.token)
    assert bench.renewal.status().oid == "user"


class Raising(logging.Handler):
    """A handler that raises whatever it is given."""

    raised = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Raise."""
        self.raised += 1
        raise OSError("the disk is full")


@pytest.fixture
def raising() -> Iterator[Raising]:
    """Have the package's log, and Django's of signals, raise."""
    handler = Raising()
    loggers = [logging.getLogger(name) for name in ("django_entra_redis", "django")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_handlers_that_raise(bench: Bench, raising: Raising) -> None:
    """The schedule goes on, while a request hangs and after any that fails."""
    bench.fail(6.0)
    bench.advance(1.0)
    assert isinstance(bench.events[-1][1], TokenRequestError)
    bench.call()  # It hangs.
    bench.advance(10.0)
    bench.advance(10.0)
    bench.call().answer(bench.token())
    wait_until(lambda: isinstance(bench.events[-1][1], Token))
    assert bench.renewal._thread is not None
    assert bench.renewal._thread.is_alive()
    assert raising.raised >= 2


def test_callers_do_not_see_what_handlers_raise(raising: Raising) -> None:
    """Whoever finds that a request hangs gets the error of it, and no other."""
    bench = Bench(policy=Policy(ratio=0.7, margin=180.0, timeout=1.0))
    bench.renewal.start()
    bench.call()
    stop(bench.renewal)
    bench.renewal._stopped = False
    bench.now += 1.1
    try:
        with pytest.raises(TokenError, match="did not answer within 1 s"):
            bench.renewal.current()
    finally:
        bench.close()
    assert raising.raised


class Credential:
    """Gives one token, and none after it."""

    def get_token(self, *scopes: str) -> "Credential":
        """Return a token whose attributes are its own."""
        return self

    token = "opaque"
    expires_on = time.time() + 3600


@pytest.mark.usefixtures("receivers_kept")
def test_receivers_and_handlers_that_raise(raising: Raising) -> None:
    """Those who are told after them are told."""

    def fail(**_: object) -> None:
        raise LookupError

    for signal in (token_renewed, token_renewal_failed):
        signal.connect(fail, weak=False)
    told: list[object] = []
    settings = {"default": {"CREDENTIAL": Credential, "USERNAME": "user"}}
    with override_settings(ENTRA_REDIS=settings):
        provider = get_credential_provider()
        provider.on_next(told.append)
        assert provider.get_credentials() == ("user", "opaque")
        wait_until(lambda: told)
    assert raising.raised
