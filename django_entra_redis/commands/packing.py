"""Commands as bytes ("Redis serialization protocol specification").

redis-py packs commands more slowly: it checks each argument, and sends a long pipeline
in small pieces. That is a tenth of the cost of an operation on one key, and half of the
cost with a hundred keys.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

from .replies import INTEGER

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


#: Bytes of a key from which on the beginning of its command is in no table.
_LONG = 512


def beginnings(words: int, *first: str) -> list[str]:
    """Return how a command begins up to its key, by the key's length in bytes.

    To write a number takes longer than to look it up.

    Parameters:
        words: the number of words of the command.
        first: those before the key.
    """
    before = "".join(f"${len(word)}\r\n{word}\r\n" for word in first)
    return [f"*{words}\r\n{before}${size}\r\n" for size in range(_LONG)]


_GET = beginnings(2, "GET")
_DELETE = beginnings(2, "DEL")


def pack_get(key: str) -> bytes:
    """Return GET of a key."""
    # What length() returns: of all commands, this is the one that is sent most.
    size = len(key) if key.isascii() else len(key.encode())
    if size >= _LONG:
        return pack_all([("GET", key)])
    return f"{_GET[size]}{key}\r\n".encode()


def pack_gets(keys: Sequence[str]) -> bytes:
    """Return GET of each key, in one piece."""
    return _pack_each("GET", _GET, keys)


def pack_delete(key: str) -> bytes:
    """Return DEL of a key."""
    return pack_on_key("DEL", key)


def pack_deletes(keys: Sequence[str]) -> bytes:
    """Return DEL of each key, in one piece."""
    return _pack_each("DEL", _DELETE, keys)


def _pack_each(command: str, begin: Sequence[str], keys: Sequence[str]) -> bytes:
    """Return a command of each key, in one piece.

    Parameters:
        command: its name.
        begin: how it begins up to its key, by the key's length.
        keys: the keys.
    """
    try:
        begun = [begin[size] for size in lengths(keys)]
    except IndexError:
        return b"".join([pack_on_key(command, key) for key in keys])
    words = chain.from_iterable(zip(begun, keys, repeat("\r\n")))
    return "".join(words).encode()


def pack_on_key(command: str, key: str, *amount: int) -> bytes:
    """Return a command of a key.

    Parameters:
        command: its name, such as TTL.
        key: the key.
        amount: the command's argument, if it has one.
    """
    count = 2 + len(amount)
    end = "".join([f"${len(str(number))}\r\n{number}\r\n" for number in amount])
    return (
        f"*{count}\r\n${len(command)}\r\n{command}\r\n${length(key)}\r\n{key}\r\n{end}"
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
    begin, end = _SETS.get((timeout, condition)) or _make_set(timeout, condition)
    name = key.encode()
    # As _before() has it, without its call: SET is the command of most writes.
    size = len(name)
    before_name = _BEFORE[size] if size < _LONG else b"\r\n$%d\r\n" % size
    size = len(data)
    before_data = _BEFORE[size] if size < _LONG else b"\r\n$%d\r\n" % size
    return b"".join((begin, before_name, name, before_data, data, end))


def pack_sets(
    keys: Sequence[str], values: Iterable[Any], timeout: int | None
) -> list[bytes]:
    """Return SET of each key; see :func:`pack_set`."""
    if timeout == 0:
        # The values are serialized as they are taken, and one may be none that can be.
        for _ in values:
            pass
        return [*map(pack_delete, keys)]
    return [*map(b"".join, _parts_of_sets(keys, values, timeout))]


def pack_sets_in_one(
    keys: Sequence[str], values: Iterable[Any], timeout: int | None
) -> bytes:
    """Return what :func:`pack_sets` returns, in one piece."""
    if timeout == 0:
        return pack_deletes(keys)
    return b"".join(chain.from_iterable(_parts_of_sets(keys, values, timeout)))


def _parts_of_sets(
    keys: Iterable[str], values: Iterable[Any], timeout: int | None
) -> Iterable[tuple[bytes, ...]]:
    begin, end = _SETS.get((timeout, None)) or _make_set(timeout, None)
    # The values first, which are serialized as they are taken: of two errors, theirs is
    # the one that Django raises.
    data = _encode_each([*values])
    names = [*map(str.encode, keys)]
    before_names, before_data = _before(names), _before(data)
    return zip(repeat(begin), before_names, names, before_data, data, repeat(end))


def _encode_each(values: Sequence[Any]) -> list[bytes]:
    """Return what :func:`encode` returns of each value, in few calls of it."""
    if INTEGER.issuperset(map(type, values)):
        return [b"%d" % value for value in values]
    return [value if type(value) is bytes else encode(value) for value in values]


def _before(words: Sequence[bytes]) -> list[bytes]:
    """Return what stands before each word, from the end of the word before it."""
    try:
        return [_BEFORE[size] for size in map(len, words)]
    except IndexError:
        return [b"\r\n$%d\r\n" % len(word) for word in words]


def pack_get_many(keys: Sequence[str]) -> bytes:
    """Return MGET of several keys."""
    try:
        heads = [_HEADS[size] for size in lengths(keys)]
    except IndexError:
        return pack_all([("MGET", *keys)])
    words = "\r\n".join(chain.from_iterable(zip(heads, keys, strict=True)))
    return f"*{len(keys) + 1}\r\n$4\r\nMGET\r\n{words}\r\n".encode()


#: How a word begins, by its bytes: to write a number takes longer than to look it up.
_HEADS = [f"${size}" for size in range(_LONG)]
#: The same as bytes, with the ends of the word before it and of the number.
_BEFORE = [b"\r\n$%d\r\n" % size for size in range(_LONG)]


def lengths(texts: Sequence[str]) -> Iterable[int]:
    """Return what :func:`length` returns of each text."""
    return map(len if "".join(texts).isascii() else length, texts)


def length(text: str) -> int:
    """Return the number of bytes that a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


#: By timeout and condition: how a SET begins, up to its key, and how it ends after
#: its value. A site has few of them; if there are many, the oldest are removed.
_SETS: dict[tuple[int | None, str | None], tuple[bytes, bytes]] = {}
_MOST_SETS = 256


def _make_set(timeout: int | None, condition: str | None) -> tuple[bytes, bytes]:
    words = [] if condition is None else [condition]
    words += [] if timeout is None else ["EX", str(timeout)]
    begin = b"*%d\r\n$3\r\nSET" % (3 + len(words))
    end = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    found = _SETS[timeout, condition] = begin, b"\r\n" + end.encode()
    if len(_SETS) > _MOST_SETS:
        with suppress(RuntimeError):  # Another thread has added one in between.
            _SETS.pop(next(iter(_SETS)), None)
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
