"""Masking of the token in the tracebacks of users' own redis-py clients.

Debug pages and error reporters show the local variables of each frame. The password
that redis-py gets has a ``repr`` that masks it (:class:`~..identity.token.MaskedStr`).
The packed bytes of AUTH or HELLO have not: when the connection breaks as they are sent,
they are local variables of frames of redis-py, of Python's ssl and of the event loop.
"""

import functools
import inspect
from typing import Any
from weakref import ref

from .._errors import without_frames

#: The commands that a token is sent with.
_AUTHENTICATING = frozenset({"AUTH", "HELLO"})


def mask_authentication(connection: Any) -> None:
    """Remove the frames that hold the token from errors of a connection's AUTH.

    Parameters:
        connection: a connection of redis-py, synchronous or asyncio, whose
            ``send_command()`` is replaced.
    """
    asynchronous = inspect.iscoroutinefunction(type(connection).send_command)
    # A weak reference, so that a dropped connection closes its socket at once.
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
    try:
        raise failure
    finally:
        del failure  # Otherwise this frame would keep it alive.


async def _asend(known: ref[Any], *args: Any, **kwargs: Any) -> Any:
    connection: Any = known()
    try:
        return await type(connection).send_command(connection, *args, **kwargs)
    except BaseException as error:
        if args[0] not in _AUTHENTICATING:
            raise
        failure = without_frames(error)
    try:
        raise failure
    finally:
        del failure  # Otherwise this frame would keep it alive.
