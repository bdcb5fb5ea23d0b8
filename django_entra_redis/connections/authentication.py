"""AUTH, as it goes out on connections on which several commands are under way.

Redis 7.2 and newer, up to 8.0 at least, do not answer an AUTH that they refuse if the
client has yet to get a reply to a command before it (redis/redis#15640). All that
follows would be taken for the answer to something else: one key's value for another's.
Nothing is before the AUTH of a new connection. One in the midst of commands is followed
by a PING of its own, whose answer tells whether there has been one to AUTH.
"""

from typing import Any

from ..commands.packing import pack_all
from ..identity.token import Token

#: What the PING says, and how many replies come to both.
MARK = b"authenticated"
REPLIES = 2


def pack_auth(token: Token) -> bytes:
    """Return the AUTH of a new connection."""
    return pack_all([("AUTH", token.username, token.value)])


def pack_marked_auth(token: Token) -> bytes:
    """Return an AUTH for the midst of commands, and the PING that follows it."""
    return pack_auth(token) + pack_all([("PING", MARK)])


def is_accepted(replies: list[Any]) -> bool:
    """Return whether the replies to the two say that the token is accepted."""
    return not isinstance(replies[0], Exception) and replies[0] != MARK
