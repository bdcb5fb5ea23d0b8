"""Commands as bytes ("Redis serialization protocol specification").

redis-py looks at each argument of each command, and sends a long pipeline in small
pieces. For a hundred keys that costs as much as all the rest, and a tenth for one.
"""

from collections.abc import Iterable, Sequence
from typing import Any


def pack_all(commands: Iterable[Sequence[Any]]) -> bytes:
    """Return commands as one piece."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = encode(argument)
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def pack_get(key: str) -> bytes:
    """Return GET of a key."""
    name = key.encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)


def pack_set(key: str, value: Any, timeout: int | None) -> bytes:
    """Return SET of a key; with a timeout of 0 DEL."""
    if timeout == 0:
        return pack_all([("DEL", key)])
    name, data = key.encode(), encode(value)
    if timeout is None:
        form = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
        return form % (len(name), name, len(data), data)
    seconds = b"%d" % timeout
    form = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nEX\r\n$%d\r\n%b\r\n"
    return form % (len(name), name, len(data), data, len(seconds), seconds)


def encode(value: Any) -> bytes:
    """Return an argument as redis-py encodes it."""
    if type(value) is bytes:
        return value
    if type(value) is int:
        return b"%d" % value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"A serializer is to give bytes, str, int or float, not "
            f"{type(value).__name__}."
        )
    return repr(value).encode()
