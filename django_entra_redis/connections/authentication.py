"""AUTH on connections on which several commands are under way.

Redis 7.2 and newer, up to 8.0 at least, sends no reply to an AUTH that it refuses while
the client still waits for the reply to an earlier command (redis/redis#15640). Each
later reply would then be taken for the reply to the command before: one key's value for
another's. On a new connection there is no earlier command. Otherwise AUTH is followed
by a PING of its own, whose reply shows whether AUTH has had one.
"""

from typing import Any

from ..commands.packing import pack_all
from ..identity.token import Token

#: The text of the PING, and the number of replies to both commands.
MARK = b"authenticated"
REPLIES = 2


def pack_auth(token: Token) -> bytes:
    """Return the AUTH of a new connection, packed."""
    return pack_all([("AUTH", token.username, token.value)])


def pack_marked_auth(token: Token) -> bytes:
    """Return an AUTH among other commands and the PING after it, packed."""
    return pack_auth(token) + pack_all([("PING", MARK)])


def is_accepted(replies: list[Any]) -> bool:
    """Return whether the replies to both commands mean that the token is accepted."""
    return not isinstance(replies[0], Exception) and replies[0] != MARK
