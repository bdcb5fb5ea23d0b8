"""The re-authentication rule: a pure function that tells when to send AUTH again."""

import enum

from ..identity.token import Clock, Token

#: Share of the time between a renewal and the old token's expiry over which the
#: connections of a process spread their AUTHs. Azure asks for both: spread them, and
#: send them at least 3 minutes before expiry.
SPREAD = 0.5


class Action(enum.Enum):
    """What a connection does before the next command."""

    #: Nothing: its token is good, and its moment has not come.
    KEEP = enum.auto()
    #: Take note that its token is good for longer now: the server has it already.
    ADOPT = enum.auto()
    AUTHENTICATE = enum.auto()
    #: Connect anew: the server is about to close the connection, or has.
    RECONNECT = enum.auto()


def next_action(held: Token, current: Token, offset: float, clock: Clock) -> Action:
    """Return what a connection does.

    Parameters:
        held: the token that it has authenticated with.
        current: the one that is there now.
        offset: 0 to 1, different for each connection.
        clock: what to tell the time by.
    """
    if held.value == current.value:
        return Action.ADOPT
    if held.expired(clock):
        return Action.RECONNECT
    due = reauthentication_time(held, current, offset)
    return Action.AUTHENTICATE if clock.monotonic() >= due else Action.KEEP


def reauthentication_time(held: Token, current: Token, offset: float) -> float:
    """Return when a connection sends AUTH with a newer token (monotonic clock)."""
    window = max(0.0, held.expires_at - current.received_at)
    return current.received_at + offset * SPREAD * window
