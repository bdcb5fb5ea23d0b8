"""Checks of replies: a command has answers that fit it, and all else is refused.

A server that has been hijacked, or one whose replies have got out of step, must not
have an operation return what it can't, nor fail with one of Python's own errors.
"""

import re
from collections.abc import Callable
from typing import Any

from ..exceptions import InvalidReplyError

#: Returns what a reply says.
#:
#: Raises:
#:     InvalidReplyError: it is no reply to that command.
Parse = Callable[[Any], Any]

_INTEGER = re.compile(rb"-?[0-9]{1,20}")


def integer(reply: Any) -> int:
    """Return a number."""
    if type(reply) is int:
        return reply
    raise _wrong(reply, "a number")


def value_of(reply: Any) -> bytes | None:
    """Return a value, or ``None`` where there is none."""
    if reply is None or type(reply) is bytes:
        return reply
    raise _wrong(reply, "a value")


def done(reply: Any) -> bool:
    """Return whether a condition let something be done."""
    if reply is None or reply == b"OK":
        return reply is not None
    raise _wrong(reply, "OK")


def done_or_integer(reply: Any) -> bool | int:
    """Return either."""
    return reply if type(reply) is int else done(reply)


def sum_or_nothing(reply: Any) -> int | None:
    """Return a number, which may be written as a value, or ``None``."""
    if reply is None or type(reply) is int:
        return reply
    if type(reply) is bytes and _INTEGER.fullmatch(reply):
        return int(reply)
    raise _wrong(reply, "a number")


def all_done(replies: list[Any]) -> bool:
    """Return whether each of several keys has been set, or deleted."""
    # Those of keys that are set are all the same, which is soon compared.
    return replies.count(b"OK") == len(replies) or {int}.issuperset(map(type, replies))


def values_of(count: int) -> Parse:
    """Return what parses an array of so many values."""

    def parse(reply: Any) -> list[bytes | None]:
        if type(reply) is not list or len(reply) != count:
            raise _wrong(reply, f"{count} values")
        if not _VALUES.issuperset(map(type, reply)):
            raise _wrong(reply, "values")
        return reply

    return parse


def scanned(reply: Any) -> tuple[int, list[bytes]]:
    """Return where a SCAN goes on, and the keys that it has found."""
    if type(reply) is list and len(reply) == 2:
        cursor, keys = reply
        if (
            type(cursor) is bytes
            and cursor.isdigit()
            and len(cursor) <= 20
            and type(keys) is list
            and all(type(key) is bytes for key in keys)
        ):
            return int(cursor), keys
    raise _wrong(reply, "a cursor and keys")


_VALUES = frozenset((bytes, type(None)))


def _wrong(reply: Any, expected: str) -> InvalidReplyError:
    # Not what it is: it may be somebody's value.
    return InvalidReplyError(
        f"Redis should have answered {expected}, and not something else "
        f"({type(reply).__name__})."
    )
