"""A token, and whether it can still be used."""

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
    """The two clocks that a token's life is measured with.

    ``monotonic`` isn't moved when somebody sets the machine's time; ``wall`` goes on
    while a virtual machine is suspended. Both return seconds.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


SYSTEM_CLOCK = Clock()

#: Seconds that an expiry computed anew may differ by, and be the same.
ROUNDING = 1.0

#: Seconds that a token is good for at least; a shorter one would be over before it is
#: used, and asked for without end.
SHORTEST = 0.5
#: Seconds that one is taken to be good for at most: ten years, so that a calendar shows
#: its end.
LONGEST = 10 * 366 * 86400.0

_YEAR_9999 = 253_370_764_800

#: A JSON Web Token, whoever's: what it begins with is '{"' (RFC 7519).
_JWT = re.compile(r"eyJ[\w-]+(\.[\w-]*)*")


class MaskedStr(str):
    """A string whose ``repr`` does not show it.

    Debug pages and error reporters show the local variables of each frame of a
    traceback by their ``repr``, and not all of these frames are this package's.
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
        received_at: when it arrived, by the monotonic clock.
        expires_at: when it expires, by the monotonic clock.
        expires_on: when it expires, by the wall clock (seconds since the epoch).
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
        """Whether either clock says that it has run out."""
        return clock.monotonic() >= self.expires_at or clock.wall() >= self.expires_on

    def repeats(self, old: "Token | None") -> bool:
        """Whether it is an old one once more, which is not good for longer now.

        By one clock alone it may seem so, when somebody has set the other.
        """
        return (
            old is not None
            and self.value == old.value
            and (
                self.expires_at <= old.expires_at + ROUNDING
                or self.expires_on <= old.expires_on + ROUNDING
            )
        )


#: Requests a token: what an identity's settings come to.
Fetch = Callable[[], Token]


def receive_token(
    value: object,
    *,
    clock: Clock,
    expires_in: object = None,
    expires_on: object = None,
    username: str | None = None,
    answered_at: object = None,
) -> Token:
    """Make a :class:`Token` of what an identity endpoint has answered.

    Parameters:
        value: the access token.
        expires_in: seconds of life that the endpoint stated, if it did.
        expires_on: expiry in seconds since the epoch, if stated; the ``exp`` claim
            counts where it is earlier, or the only one.
        username: Redis user name; ``None`` takes the token's ``oid`` claim.
        answered_at: the endpoint's own time as it answered, in seconds since the
            epoch, if it told.

    Raises:
        TokenRequestError: no token, an expired one, or one without a user name.
    """
    # RFC 6749, A.12. A character that can't be encoded would fail much later.
    if not isinstance(value, str) or not value or not value.isascii():
        raise TokenRequestError("The identity endpoint's answer holds no access token.")
    claims = read_claims(value)
    if username is None:
        username = claims.get("oid")
        if not isinstance(username, str) or not (username and username.isprintable()):
            raise TokenRequestError(
                "The token has no usable 'oid' claim to take the Redis user name from. "
                "Set USERNAME in ENTRA_REDIS to the principal's object ID.",
                code="token_without_oid",
            )
    ends = [
        end for end in map(_number, (expires_on, claims.get("exp"))) if end is not None
    ]
    until = min(ends, default=None)
    now, today = clock.monotonic(), clock.wall()
    stated = _number(expires_in)
    lives = [] if stated is None else [stated]
    # An endpoint that says "an hour from now" does not hand out a token that is over:
    # then it is this machine's wall clock that is wrong, and only the stated life is
    # believed.
    if until is not None and (until >= today + SHORTEST or not lives):
        lives.append(until - today)
    if not lives:
        raise TokenRequestError(
            "The identity endpoint stated no expiry with its token, and the token has "
            "no 'exp' claim."
        )
    life = min(*lives, LONGEST)
    if 0 < life < SHORTEST:
        raise TokenRequestError(
            f"The token handed out is good for {life:.3f} s, too short to be used.",
            code="token_expired_already",
        )
    if life <= 0:
        there = _number(answered_at)
        raise _expired(today + life if until is None else until, today, there, ends)
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
    """Return what a token tells of that has expired on arrival.

    Parameters:
        until: when it expired.
        today: this machine's time.
        there: the identity endpoint's time, if it told.
        ends: all that it says of its expiry, and that others say.
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
            f"{ago} by its 'exp' claim, whatever is said beside it.",
            code="token_expired_already",
        )
    return TokenRequestError(
        f"{ago} by this machine's clock. Set the machine's clock right.",
        code="token_clock_off",
    )


def read_claims(value: str) -> Mapping[str, Any]:
    """Return the claims of a JWT, unverified; empty for anything else.

    The token is for Redis to verify; its claims only tell whose it is and how long
    it lasts (RFC 7519).
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


def without_tokens(text: str) -> str:
    """Return text in which nobody quotes a token, nor the beginning of one."""
    return _JWT.sub("***", text)


def _number(value: object) -> float | None:
    """Return a time that a calendar can show; ``None`` for whatever is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _YEAR_9999 else None
