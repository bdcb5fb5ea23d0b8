"""The re-authentication rule: a pure function that decides when to send AUTH again."""

import enum

from ..identity.token import Clock, Token

#: Share of the time from a renewal to the old token's expiry over which the connections
#: of a process spread their AUTHs. Azure recommends to spread them, and to send them at
#: least 3 minutes before expiry.
SPREAD = 0.5


class Action(enum.Enum):
    """The action of a connection before the next command."""

    #: Do nothing: its token is valid, and its time to send AUTH has not come.
    KEEP = enum.auto()
    #: Note the token's new expiry: it is the same token, which is valid for longer now.
    ADOPT = enum.auto()
    #: Send AUTH with the newer token.
    AUTHENTICATE = enum.auto()
    #: Reconnect: the server closes the connection, since its token has expired.
    RECONNECT = enum.auto()


def next_action(held: Token, current: Token, offset: float, clock: Clock) -> Action:
    """Return the action of a connection.

    Parameters:
        held: the token that it last authenticated with.
        current: the identity's current token.
        offset: from 0 to 1, different for each connection.
        clock: the clocks.
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
