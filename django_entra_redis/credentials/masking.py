"""Masking of the token in the tracebacks of users' own redis-py clients.

Debug pages and error reporters show the local variables of each frame. The password
that redis-py is handed masks itself (:class:`~..identity.token.MaskedStr`), but the
bytes of the AUTH or HELLO that redis-py packs it into do not: they are local variables
of redis-py's frames, and of Python's own TLS and event loop below, where the connection
breaks as they are sent.
"""

import functools
import inspect
from typing import Any
from weakref import ref

from .._errors import without_frames

#: The commands that a token is sent with.
_AUTHENTICATING = frozenset({"AUTH", "HELLO"})


def mask_authentication(connection: Any) -> None:
    """Have a connection's AUTH and HELLO fail without the frames that hold the token.

    Parameters:
        connection: redis-py's, synchronous or asyncio; from now on for as long as it
            lives.
    """
    asynchronous = inspect.iscoroutinefunction(type(connection).send_command)
    # Weakly: a connection that is dropped closes its socket at once.
    send = functools.partial(_asend if asynchronous else _send, ref(connection))
    connection.send_command = send


def _send(known: ref[Any], *args: Any, **kwargs: Any) -> Any:
    connection: Any = known()
    try:
        return type(connection).send_command(connection, *args, **kwargs)
    except BaseException as error:
        if args[0] not in _AUTHENTICATING:
            raise
        failure = without_frames(error)
    raise failure


async def _asend(known: ref[Any], *args: Any, **kwargs: Any) -> Any:
    connection: Any = known()
    try:
        return await type(connection).send_command(connection, *args, **kwargs)
    except BaseException as error:
        if args[0] not in _AUTHENTICATING:
            raise
        failure = without_frames(error)
    raise failure
