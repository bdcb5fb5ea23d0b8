"""Parsers of replies, which refuse a reply that does not fit its command.

A hijacked server may reply anything, and after a fault replies may be out of step with
commands. Neither must make an operation return a wrong type, or raise one of Python's
own errors.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..exceptions import InvalidReplyError

#: A parser: returns the result in a reply, or raises an InvalidReplyError.
Parse = Callable[[Any], Any]

#: Types of replies that a parser returns as they are: it need not be called for one.
Types = frozenset[type[Any]]
NOTHING: Types = frozenset()
INTEGER: Types = frozenset((int,))
VALUE: Types = frozenset((bytes, type(None)))
SUM: Types = frozenset((int, type(None)))

_INTEGER = re.compile(rb"-?[0-9]{1,20}")


def integer(reply: Any) -> int:
    """Return a number."""
    if type(reply) is int:
        return reply
    raise _wrong(reply, "a number")


def value_of(reply: Any) -> bytes | None:
    """Return a value, or ``None`` where there is none."""
    if type(reply) in VALUE:
        found: bytes | None = reply
        return found
    raise _wrong(reply, "a value")


def done(reply: Any) -> bool:
    """Return whether a command with a condition has been carried out."""
    if reply is None or reply == b"OK":
        return reply is not None
    raise _wrong(reply, "OK")


def done_or_integer(reply: Any) -> bool | int:
    """Return a number, or whether a command has been carried out."""
    if reply == b"OK":  # as nearly always
        return True
    return reply if type(reply) is int else done(reply)


def sum_or_nothing(reply: Any) -> int | None:
    """Return a number, which may also come as a value, or ``None``."""
    if reply is None or type(reply) is int:
        return reply
    if type(reply) is bytes and _INTEGER.fullmatch(reply):
        return int(reply)
    raise _wrong(reply, "a number")


def all_done(replies: list[Any]) -> bool:
    """Return whether each of several keys has been set, or deleted."""
    # Those of keys that are set are all the same, which is soon compared.
    return replies.count(b"OK") == len(replies) or all_integers(replies)


def all_integers(replies: list[Any]) -> bool:
    """Return whether each reply is a number."""
    return INTEGER.issuperset(map(type, replies))


#: The types of replies that a parser returns as they are, by the parser.
AS_THEY_ARE: Mapping[Parse, Types] = {integer: INTEGER, value_of: VALUE}


def has_error(replies: Iterable[Any]) -> bool:
    """Return whether one of several replies is an error."""
    # There are few types among them, and to look at these is soon done.
    return any(issubclass(kind, Exception) for kind in set(map(type, replies)))


def values_of(count: int) -> Parse:
    """Return a parser for an array of this number of values."""

    def parse(reply: Any) -> list[bytes | None]:
        if type(reply) is not list or len(reply) != count:
            raise _wrong(reply, f"{count} values")
        if not VALUE.issuperset(map(type, reply)):
            raise _wrong(reply, "values")
        return reply

    return parse


def scanned(reply: Any) -> tuple[int, list[bytes]]:
    """Return the next cursor of a SCAN, and the keys that it has found."""
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


def _wrong(reply: Any, expected: str) -> InvalidReplyError:
    # Only the type is named: the reply may be a user's value.
    return InvalidReplyError(
        f"Redis should have answered with {expected}, not with a reply of type "
        f"{type(reply).__name__}."
    )
