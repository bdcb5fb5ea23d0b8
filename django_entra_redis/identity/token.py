"""An access token, how one is made of an endpoint's answer, and when it expires."""

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._errors import refuse_pickling
from ..exceptions import TokenRequestError


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks by which a token's expiry is checked, both in seconds.

    ``monotonic`` does not jump when the machine's time is set; ``wall`` goes on while a
    virtual machine is suspended.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


SYSTEM_CLOCK = Clock()

#: Seconds by which two computations of the same expiry may differ.
ROUNDING = 1.0

#: Seconds of life that a token must have at least: a shorter one would expire before it
#: is used, and be requested again without end.
SHORTEST = 0.5
#: Seconds of life that a token is taken to have at most: ten years, so that its expiry
#: is a valid datetime.
LONGEST_LIFE = 10 * 366 * 86400.0

#: The year 2020, in seconds since the epoch: Redis has taken Entra's tokens since 2023,
#: so that an earlier expiry is no date. Whoever states it is at fault, and no clock.
_EARLIEST = 1_577_836_800
_YEAR_9999 = 253_370_764_800

#: A JSON Web Token (RFC 7519): "eyJ" is the base64 of '{"'.
_JWT = re.compile(r"eyJ[\w-]+(\.[\w-]*)*")


class MaskedStr(str):
    """A string whose ``repr`` does not show it.

    Debug pages and error reporters show the ``repr`` of local variables in each frame
    of a traceback, also in the frames of other libraries.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


@dataclass(frozen=True, slots=True)
class Token:
    """An access token for Redis.

    Parameters:
        value: the token itself; hidden from ``repr``, and a :class:`MaskedStr`.
        username: Redis user name to send with it.
        claims: its JWT claims, empty for an opaque token.
        received_at: when it arrived, on the monotonic clock.
        expires_at: when it expires, on the monotonic clock.
        expires_on: when it expires, on the wall clock (seconds since the epoch).
    """

    value: str = field(repr=False)
    username: str
    claims: Mapping[str, Any] = field(repr=False, compare=False)
    received_at: float
    expires_at: float
    expires_on: float

    __reduce_ex__ = refuse_pickling

    @property
    def life(self) -> float:
        """Seconds from its arrival to its expiry."""
        return self.expires_at - self.received_at

    def expired(self, clock: Clock) -> bool:
        """Whether it has expired, by either clock."""
        return clock.monotonic() >= self.expires_at or clock.wall() >= self.expires_on

    def repeats(self, old: "Token | None") -> bool:
        """Whether it is the same token as an old one, with the same expiry.

        It is enough that one clock says so: the other may have been set meanwhile.
        """
        return (
            old is not None
            and self.value == old.value
            and (
                self.expires_at <= old.expires_at + ROUNDING
                or self.expires_on <= old.expires_on + ROUNDING
            )
        )


#: A function that requests a token for an identity.
Fetch = Callable[[], Token]


def receive_token(
    value: object,
    *,
    clock: Clock,
    expires_in: object = None,
    expires_on: object = None,
    username: str | None = None,
    answered_at: object = None,
    giver: str = "The identity endpoint",
) -> Token:
    """Make a :class:`Token` of an identity endpoint's answer.

    The text of an error may quote the answer.

    Parameters:
        value: the access token.
        clock: the clocks.
        expires_in: the seconds of life that the endpoint stated, if it did.
        expires_on: the expiry in seconds since the epoch, if the endpoint stated it.
            The ``exp`` claim counts if it is earlier, or the only one.
        username: the Redis user name; ``None``: the token's ``oid`` claim.
        answered_at: the endpoint's time of the answer, in seconds since the epoch, if
            the answer has it.
        giver: who gave the token, as the errors call it.

    Raises:
        TokenRequestError: there is no token, or it has expired or has no user name.
    """
    # Visible ASCII, as all tokens of RFC 6750 are: others would fail when AUTH is
    # packed, or are torn out of something else.
    if not isinstance(value, str) or not re.fullmatch("[!-~]+", value):
        raise TokenRequestError(
            f"{giver} gave something that is no access token: that is a text of ASCII "
            "characters, without spaces and line breaks.",
            code="token_bad_answer",
        )
    claims = read_claims(value)
    if username is None:
        username = claims.get("oid")
        if not isinstance(username, str) or not (username and username.isprintable()):
            raise TokenRequestError(
                "The token has no usable 'oid' claim to take the Redis user name from. "
                "Set USERNAME in ENTRA_REDIS to the principal's object ID.",
                code="token_without_oid",
            )
    told = map(read_time, (expires_on, claims.get("exp")))
    ends = [end for end in told if end is not None and end >= _EARLIEST]
    until = min(ends, default=None)
    now, today = clock.monotonic(), clock.wall()
    stated = read_time(expires_in)
    if stated is not None and stated <= 0:
        raise TokenRequestError(
            f"{giver} states a life of {stated:.0f} s of the token that it hands out "
            "(expires_in).",
            code="token_expired_already",
        )
    lives = [] if stated is None else [stated]
    # An endpoint that states a life does not hand out an expired token. If the token
    # seems to have expired, this machine's wall clock is wrong, and the stated life
    # alone counts.
    if until is not None and (until >= today + SHORTEST or not lives):
        lives.append(until - today)
    if not lives:
        said = quote_expiry({"expires_on": expires_on, "expires_in": expires_in})
        raise TokenRequestError(
            f"{giver} stated no expiry with its token, or none that can be one"
            f"{said and f' ({said})'}, and the token has no such 'exp' claim.",
            code="token_expiry_unreadable",
        )
    life = min(*lives, LONGEST_LIFE)
    if 0 < life < SHORTEST:
        raise TokenRequestError(
            f"The token handed out is good for {life:.3f} s, too short to be used.",
            code="token_expired_already",
        )
    if life <= 0:
        assert until is not None  # A stated life is longer.
        raise _expired(until, today, read_time(answered_at), ends)
    return Token(
        value=MaskedStr(value),
        username=username,
        claims=claims,
        received_at=now,
        expires_at=now + life,
        expires_on=today + life,
    )


def _expired(
    until: float, today: float, there: float | None, ends: Sequence[float]
) -> TokenRequestError:
    """Return the error to raise for a token that has expired on arrival.

    Parameters:
        until: when it expired.
        today: this machine's time.
        there: the identity endpoint's time, if the answer has it.
        ends: the expiries in the answer and in the token's ``exp`` claim.
    """
    ago = f"The token handed out expired {max(0.0, today - until):.0f} s ago"
    if there is not None and until <= there:
        return TokenRequestError(
            f"{ago} by the identity endpoint's own clock.", code="token_expired_already"
        )
    if there is not None:
        return TokenRequestError(
            f"{ago} by this machine's clock, which is {today - there:.0f} s ahead of "
            "the identity endpoint's. Set the machine's clock right.",
            code="token_clock_off",
        )
    if max(ends, default=until) > today:
        return TokenRequestError(
            f"{ago} by its 'exp' claim, which differs from the stated expiry.",
            code="token_expired_already",
        )
    return TokenRequestError(
        f"{ago} by this machine's clock. Set the machine's clock right.",
        code="token_clock_off",
    )


def read_claims(value: str) -> Mapping[str, Any]:
    """Return the claims of a JWT (RFC 7519), unverified; empty for anything else.

    Redis verifies the token. Here its claims only give the user name and the expiry.
    """
    parts = value.split(".")
    if len(parts) != 3:
        return {}
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(payload)
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def quote_expiry(stated: Mapping[str, object]) -> str:
    """Return the first field that is given of those with an expiry, with its value, as
    an error quotes them; an empty text if none is.

    Parameters:
        stated: the fields' values by their names.
    """
    given = ((name, value) for name, value in stated.items() if value is not None)
    name, value = next(given, ("", None))
    return name and f"{name} is '{text_of(value)}'"


def text_of(value: object) -> str:
    """Return the text of an object that is anybody's, such as an exception of a user's
    credential, whose own method for that may raise."""
    try:
        return str(value)
    except Exception as error:
        return f"(its text can't be had: {type(error).__name__})"


def without_tokens(text: str) -> str:
    """Return a text with stars in place of each JWT, or beginning of one."""
    return _JWT.sub("***", text)


def read_time(value: object) -> float | None:
    """Return a number of seconds that a datetime can represent, also if it is written
    as text; ``None`` for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,20}\s*", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _YEAR_9999 else None
