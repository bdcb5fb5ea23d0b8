"""A token: what is made of an endpoint's answer, and how long it counts as valid."""

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_entra_redis.exceptions import TokenRequestError
from django_entra_redis.identity.token import Clock, read_claims, receive_token

OID = "11111111-2222-3333-4444-555555555555"
#: What the wall clock shows unless a test says otherwise.
TODAY = 1_800_000_000.0
#: Whatever JSON can hold, and what Python's parser takes beyond it.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)


class Hands:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.monotonic, self.wall = 1000.0, TODAY
        self.clock = Clock(lambda: self.monotonic, lambda: self.wall)


@pytest.fixture
def hands() -> Hands:
    """Return a clock that stands still until it is set."""
    return Hands()


def make_jwt(claims: Any) -> str:
    """Return an unsigned JWT, as Entra writes them: without padding."""
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
    return f"e30.{payload.rstrip('=')}.c2ln"


def test_life_is_the_stated_one(hands: Hands) -> None:
    """What the endpoint says of the life counts by both clocks."""
    value = make_jwt({"oid": OID})
    token = receive_token(value, clock=hands.clock, expires_in=60)
    assert (token.value, token.username) == (value, OID)
    assert (token.received_at, token.expires_at) == (1000, 1060)
    assert (token.life, token.expires_on) == (60, TODAY + 60)


@pytest.mark.parametrize(
    ("expires_in", "expires_on", "exp", "life"),
    [
        (60, None, None, 60),
        (None, TODAY + 50, None, 50),
        (None, None, TODAY + 40, 40),
        (60, TODAY + 50, None, 50),
        (60, TODAY + 70, None, 60),
        (60, None, TODAY + 40, 40),
        # A JWT says itself when it expires, whatever is said beside it.
        (None, TODAY + 50, TODAY + 40, 40),
        (None, TODAY + 30, TODAY + 40, 30),
        # Written as text, as older endpoints do.
        ("60", None, None, 60),
        (None, f" {TODAY + 50:.0f}\n", None, 50),
        # Not a time: the next best is taken.
        (None, "soon", TODAY + 40, 40),
        ("soon", None, TODAY + 40, 40),
        (True, None, TODAY + 40, 40),
        (60, 10**400, None, 60),
        (60, math.nan, None, 60),
        # A machine whose clock is an hour fast: the stated life alone is right.
        (60, TODAY - 3600, None, 60),
        (60, None, TODAY - 3600, 60),
    ],
)
def test_whichever_comes_first(
    hands: Hands, expires_in: object, expires_on: object, exp: object, life: float
) -> None:
    """The earliest of the stated expiries counts, the claim among them."""
    token = receive_token(
        make_jwt({"oid": OID, "exp": exp}),
        clock=hands.clock,
        expires_in=expires_in,
        expires_on=expires_on,
    )
    assert token.life == life
    assert token.expires_on == TODAY + life


@pytest.mark.parametrize(
    ("monotonic", "wall", "expired"),
    [
        (0, 0, False),
        (59.9, 59.9, False),
        (60, 0, True),
        (0, 60, True),
        (61, 3600, True),
        (59.9, -3600, False),
    ],
)
def test_expired_by_either_clock(
    hands: Hands, monotonic: float, wall: float, expired: bool
) -> None:
    """A clock that is set back makes no token live longer, nor one set forward."""
    token = receive_token(make_jwt({"oid": OID}), clock=hands.clock, expires_in=60)
    hands.monotonic += monotonic
    hands.wall += wall
    assert token.expired(hands.clock) is expired


@pytest.mark.parametrize(
    ("value", "monotonic", "wall", "expires_in", "repeats"),
    [
        # Constant, as IMDS has it, and computed anew with what a network adds.
        ("one", 600, 600, 3000, True),
        ("one", 600, 600.5, 3000.4, True),
        ("one", 600, 600, 2000, True),
        # Good for longer, as a token without an expiry of its own is.
        ("one", 600, 600, 3600, False),
        ("one", 600, 600, 3002, False),
        # Somebody has set a clock.
        ("one", 600, 4200, 3000, True),
        ("one", 600, -3000, 6600, True),
        ("two", 600, 600, 3000, False),
    ],
)
def test_the_same_token_once_more(
    hands: Hands,
    value: str,
    monotonic: float,
    wall: float,
    expires_in: float,
    repeats: bool,
) -> None:
    """The same value with a later expiry is a new token."""
    old = receive_token("one", clock=hands.clock, expires_in=3600, username="u")
    hands.monotonic += monotonic
    hands.wall += wall
    token = receive_token(value, clock=hands.clock, expires_in=expires_in, username="u")
    assert token.repeats(old) is repeats
    assert not token.repeats(None)


def test_user_name_of_the_settings(hands: Hands) -> None:
    """With one the token may be anything, and its claim does not count."""
    opaque = receive_token("opaque", clock=hands.clock, expires_in=9, username="me")
    assert (opaque.username, opaque.claims) == ("me", {})
    jwt = make_jwt({"oid": OID})
    token = receive_token(jwt, clock=hands.clock, expires_in=9, username="me")
    assert (token.username, token.claims["oid"]) == ("me", OID)


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", b"bytes", 5, ["list"], "tökèn", "\ud800"),
        *("a b", " a", "a\n", "a\r\nb", "a\tb", "a\0b", "a\x7f", "\ufeffa", " "),
    ],
)
def test_no_token_in_the_answer(hands: Hands, value: object) -> None:
    """Something that no token can be is told, with its giver, and not sent to Redis."""
    for giver in ("The identity endpoint", "CREDENTIAL"):
        said = f"^{giver} gave something that is no access token"
        with pytest.raises(TokenRequestError, match=said) as caught:
            receive_token(
                value,
                clock=hands.clock,
                expires_in=60,
                username="me",
                giver=giver,
            )
        assert caught.value.code == "token_bad_answer"


@pytest.mark.parametrize(
    "claims", [{}, {"oid": None}, {"oid": ""}, {"oid": 5}, {"oid": "\ud800"}, [OID]]
)
def test_no_user_name(hands: Hands, claims: object) -> None:
    """A token without a usable oid says which setting helps."""
    with pytest.raises(TokenRequestError, match=r"'oid' claim.*Set USERNAME"):
        receive_token(make_jwt(claims), clock=hands.clock, expires_in=60)


def test_no_expiry(hands: Hands) -> None:
    """A token of which nobody says how long it lasts is refused."""
    with pytest.raises(TokenRequestError, match="no expiry"):
        receive_token(make_jwt({"oid": OID, "exp": "soon"}), clock=hands.clock)


def test_expired_on_arrival(hands: Hands) -> None:
    """A token that has run out already tells of the clock."""
    with pytest.raises(TokenRequestError, match=r"expired 7 s ago.*clock right"):
        receive_token(make_jwt({"oid": OID}), clock=hands.clock, expires_on=TODAY - 7)


@pytest.mark.parametrize("expires_in", [0, -1, "-1", -3600, -0.5])
@pytest.mark.parametrize("expires_on", [None, -1, TODAY - 7, TODAY + 3600])
@pytest.mark.parametrize("there", [None, TODAY, TODAY - 600, TODAY + 600])
def test_life_that_is_none(
    hands: Hands, expires_in: Any, expires_on: Any, there: Any
) -> None:
    """No clock makes a stated life negative: that is the endpoint's doing."""
    with pytest.raises(TokenRequestError, match=r"states a life of -?\d+ s") as caught:
        receive_token(
            make_jwt({"oid": OID}),
            clock=hands.clock,
            expires_in=expires_in,
            expires_on=expires_on,
            answered_at=there,
        )
    assert caught.value.code == "token_expired_already"


@pytest.mark.parametrize("date", [-1, "-1", 0, 1.5, "3600", -3600, 86400, 10**9])
@pytest.mark.parametrize("there", [None, TODAY, TODAY - 600])
def test_date_that_is_none(hands: Hands, date: Any, there: Any) -> None:
    """What is no date of an expiry is not told as a clock's fault; the next counts."""
    for stated, exp in ((date, None), (None, date), (date, date)):
        with pytest.raises(TokenRequestError, match="none that can be one") as caught:
            receive_token(
                make_jwt({"oid": OID, "exp": exp}),
                clock=hands.clock,
                expires_on=stated,
                answered_at=there,
            )
        assert caught.value.code == "token_expiry_unreadable"
        assert (stated is None) is ("expires_on" not in str(caught.value))
    told = make_jwt({"oid": OID, "exp": TODAY + 40})
    assert receive_token(told, clock=hands.clock, expires_on=date).life == 40


def test_date_in_words(hands: Hands) -> None:
    """The field that can't be read is told with its value, by whoever gave it."""
    with pytest.raises(TokenRequestError) as caught:
        receive_token("t", clock=hands.clock, username="me", expires_in="noon")
    assert str(caught.value).startswith("The identity endpoint stated no expiry")
    assert "(expires_in is 'noon')" in str(caught.value)
    with pytest.raises(TokenRequestError) as caught:
        receive_token("t", clock=hands.clock, username="me", giver="CREDENTIAL")
    assert str(caught.value).startswith("CREDENTIAL stated no expiry with its token, ")
    assert "or none that can be one, and" in str(caught.value)


@pytest.mark.parametrize(
    ("expires_on", "exp", "there", "code", "says"),
    [
        # The endpoint's clock says so, too.
        (TODAY - 7, None, TODAY, "token_expired_already", "endpoint's own clock"),
        (None, TODAY - 7, TODAY - 7, "token_expired_already", "endpoint's own clock"),
        (None, TODAY - 7, TODAY + 60, "token_expired_already", "endpoint's own clock"),
        # It does not: this machine's is ahead.
        (TODAY - 7, None, TODAY - 600, "token_clock_off", "which is 600 s ahead"),
        (None, TODAY - 7, TODAY - 8, "token_clock_off", "which is 8 s ahead"),
        # Nobody tells the time.
        (TODAY - 7, TODAY - 7, None, "token_clock_off", "this machine's clock"),
        (TODAY - 7, None, "noon", "token_clock_off", "this machine's clock"),
        # Two expiries, of which one is not past: no clock can make that so.
        (TODAY + 50, TODAY - 7, None, "token_expired_already", "'exp' claim"),
    ],
)
def test_whose_clock_it_is(
    hands: Hands, expires_on: Any, exp: Any, there: Any, code: str, says: str
) -> None:
    """The endpoint's time tells a clock that is off from a token that is old."""
    with pytest.raises(TokenRequestError, match="expired 7 s ago") as caught:
        receive_token(
            make_jwt({"oid": OID, "exp": exp}),
            clock=hands.clock,
            expires_on=expires_on,
            answered_at=there,
        )
    assert caught.value.code == code
    assert says in str(caught.value)


def test_value_is_not_shown(hands: Hands) -> None:
    """Neither repr nor str hold the token or a claim."""
    value = make_jwt({"oid": OID, "name": "Ada"})
    token = receive_token(value, clock=hands.clock, expires_in=60)
    assert value not in f"{token!r} {token}"
    assert "Ada" not in repr(token)
    assert OID in repr(token)


def test_a_token_stays_as_it_is(hands: Hands) -> None:
    """It can be compared and be in a set, whatever its claims are."""
    first, second = (
        receive_token(make_jwt({"oid": OID, "a": []}), clock=hands.clock, expires_in=9)
        for _ in range(2)
    )
    assert {first, second} == {first}
    with pytest.raises(AttributeError):
        first.username = "other"  # type: ignore[misc]


def test_system_clock_goes() -> None:
    """Without another one the machine's clocks are read."""
    token = receive_token("t", clock=Clock(), expires_in=3600, username="me")
    assert not token.expired(Clock())


@pytest.mark.parametrize(
    "value",
    [
        "no.dots",
        "one.two.three.four",
        "a.b.c",
        "a.é.c",
        "a.!!!!.c",
        "a..c",
        make_jwt([1]),
        make_jwt("text"),
        "a." + base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode() + ".c",
        "a." + base64.urlsafe_b64encode(b"[" * 100_000).decode() + ".c",
        "a." + base64.urlsafe_b64encode(b"1" * 5_000).decode() + ".c",
    ],
)
def test_what_is_no_jwt_has_no_claims(value: str) -> None:
    """An opaque token is not an error."""
    assert read_claims(value) == {}


@settings(deadline=None, database=None)
@given(st.dictionaries(st.text(), JSON))
def test_claims_are_read_as_written(claims: dict[str, Any]) -> None:
    """Whatever a JWT's payload holds comes out of it."""
    assert json.dumps(read_claims(make_jwt(claims))) == json.dumps(claims)


claims = st.fixed_dictionaries(
    {}, optional={"oid": st.text() | JSON, "exp": st.floats(0, 4e9) | JSON}
)
times = st.none() | st.floats(0, 4e9) | JSON


@settings(deadline=None, database=None)
@given(
    value=claims.map(make_jwt) | st.text().map("a.{}.b".format) | st.text() | JSON,
    expires_in=times,
    expires_on=times,
    username=st.none() | st.just("me"),
)
@example(make_jwt({"oid": OID, "exp": TODAY + 1}), None, None, None)
@example(make_jwt({"oid": OID, "exp": TODAY}), None, None, None)
def test_whatever_an_endpoint_answers(
    value: object, expires_in: object, expires_on: object, username: str | None
) -> None:
    """It becomes a token that can be sent and expires, or the package's own error."""
    hands = Hands()
    try:
        token = receive_token(
            value,
            clock=hands.clock,
            expires_in=expires_in,
            expires_on=expires_on,
            username=username,
        )
    except TokenRequestError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
    else:
        assert token.value.encode()
        assert token.username.encode()
        # A clock can't tell a moment from the next one that is too near.
        assert token.expired(hands.clock) is (token.expires_at == hands.monotonic)
        hands.monotonic = token.expires_at
        assert token.expired(hands.clock)
