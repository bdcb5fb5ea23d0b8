"""Commands as bytes ("Redis serialization protocol specification").

redis-py packs commands more slowly: it checks each argument, and sends a long pipeline
in small pieces. That is a tenth of the cost of an operation on one key, and half of the
cost with a hundred keys.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

#: Bits of an integer that Python writes in decimals, however low its limit is set.
_SHORT = 2000


def refuse_long_integers(arguments: Iterable[Any]) -> None:
    """Look for what ends the process in hiredis' packer, which redis-py's clients use.

    Raises:
        ValueError: one of the arguments is an integer that is too long for ``str()``.
    """
    for argument in arguments:
        if isinstance(argument, int) and argument.bit_length() > _SHORT:
            str(argument)


def pack_all(commands: Iterable[Sequence[Any]]) -> bytes:
    """Return several commands, packed."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = encode(argument)
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def pack_get(key: str) -> bytes:
    """Return GET of a key."""
    # What length() returns: of all commands, this is the one that is sent most.
    size = len(key) if key.isascii() else len(key.encode())
    return f"*2\r\n$3\r\nGET\r\n${size}\r\n{key}\r\n".encode()


def pack_delete(key: str) -> bytes:
    """Return DEL of a key."""
    return f"*2\r\n$3\r\nDEL\r\n${length(key)}\r\n{key}\r\n".encode()


def pack_exists(key: str) -> bytes:
    """Return EXISTS of a key."""
    return f"*2\r\n$6\r\nEXISTS\r\n${length(key)}\r\n{key}\r\n".encode()


def pack_expire(key: str, timeout: int) -> bytes:
    """Return EXPIRE of a key."""
    return (
        f"*3\r\n$6\r\nEXPIRE\r\n${length(key)}\r\n{key}\r\n"
        f"${len(str(timeout))}\r\n{timeout}\r\n"
    ).encode()


def pack_set(
    key: str, value: Any, timeout: int | None, condition: str | None = None
) -> bytes:
    """Return SET of a key; with a timeout of 0 and no condition DEL.

    Parameters:
        timeout: seconds until it expires; ``None``: never.
        condition: NX, XX or ``None``.
    """
    if timeout == 0 and condition is None:
        return pack_delete(key)
    data = value if type(value) is bytes else encode(value)
    count, end = _END_OF_SET.get((timeout, condition)) or _end_of_set(
        timeout, condition
    )
    head = f"*{count}\r\n$3\r\nSET\r\n${length(key)}\r\n{key}\r\n${len(data)}\r\n"
    return b"%b%b%b" % (head.encode(), data, end)


def pack_sets(
    keys: Iterable[str], values: Iterable[Any], timeout: int | None
) -> list[bytes]:
    """Return SET of each key; see :func:`pack_set`."""
    if timeout == 0:
        return [pack_delete(key) for key, _ in zip(keys, values, strict=True)]
    count, end = _END_OF_SET.get((timeout, None)) or _end_of_set(timeout, None)
    # With places for a key, a value, and how long each is.
    form = b"*%d\r\n$3\r\nSET\r\n$%%d\r\n%%b\r\n$%%d\r\n%%b%b" % (count, end)
    commands = []
    for key, value in zip(keys, values, strict=True):
        name = key.encode()
        data = value if type(value) is bytes else encode(value)
        commands.append(form % (len(name), name, len(data), data))
    return commands


def pack_get_many(keys: Sequence[str]) -> bytes:
    """Return MGET of several keys."""
    sizes: Iterable[int] = map(len, keys)
    if not "".join(keys).isascii():
        sizes = map(length, keys)
    try:
        heads = [_HEADS[size] for size in sizes]
    except IndexError:
        return pack_all([("MGET", *keys)])
    words = "\r\n".join(chain.from_iterable(zip(heads, keys, strict=True)))
    return f"*{len(keys) + 1}\r\n$4\r\nMGET\r\n{words}\r\n".encode()


#: How a word begins, by its bytes: to write a number takes longer than to look it up.
_HEADS = [f"${size}" for size in range(512)]


def length(text: str) -> int:
    """Return the number of bytes that a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


#: By timeout and condition: the number of words of a SET, and its end. A site has few
#: of them; if there are many, the oldest are removed.
_END_OF_SET: dict[tuple[int | None, str | None], tuple[int, bytes]] = {}
_ENDS = 256


def _end_of_set(timeout: int | None, condition: str | None) -> tuple[int, bytes]:
    words = [] if condition is None else [condition]
    words += [] if timeout is None else ["EX", str(timeout)]
    end = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    found = _END_OF_SET[timeout, condition] = 3 + len(words), b"\r\n" + end.encode()
    if len(_END_OF_SET) > _ENDS:
        _END_OF_SET.pop(next(iter(_END_OF_SET)), None)
    return found


def encode(value: Any) -> bytes:
    """Return an argument as bytes, the same ones as redis-py's."""
    # First the usual types, with the least work.
    kind = type(value)
    if kind is str:
        return str.encode(value)
    if kind is bytes:
        return bytes(value)
    if kind is int:
        return b"%d" % value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"A serializer should return bytes, str, int or float, not "
            f"{type(value).__name__}."
        )
    return repr(value).encode()
