"""Reads and writes MessagePack with the package that is installed, or chosen."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from ._errors import MissingExtraError

Unpack = Callable[[bytes], Any]


def make_unpack() -> Unpack:
    """Return a reader of MessagePack for the other serializers: of plain data alone.

    Raises:
        MissingExtraError: there is none.
    """
    try:
        # As ormsgpack does it, no extension types: they would be objects of msgpack's.
        return guarded(
            load_msgpack(), ext_hook=_refuse_extension, timestamp=_AS_DATETIME
        )
    except MissingExtraError:
        with suppress(MissingExtraError):
            return partial(unpack_by_ormsgpack, load_ormsgpack())
        raise


def guarded(msgpack: Any, **options: Any) -> Unpack:
    """Return a reader of MessagePack that no keys of one hash hold up.

    Whoever writes a timestamp can choose its hash, so that each is compared with all
    others. Nothing else that has such a hash comes as a key: arrays come as lists.

    Parameters:
        options: more of msgpack's.
    """
    unpack = partial(msgpack.unpackb, strict_map_key=False, **options)
    # What has no extension types is read in half the time without a look at its keys.
    without = partial(unpack, max_ext_len=0)
    looking = partial(unpack, object_pairs_hook=_dict_of_unlike)

    def read(data: bytes) -> Any:
        try:
            return without(data)
        except ValueError:
            return looking(data)

    return read


def _dict_of_unlike(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dictionary, unless too many of its keys have the same hash."""
    # Few values have extension types.
    from .plain_pickles import unlike

    unlike([key for key, _ in pairs])
    return dict(pairs)


#: What msgpack makes of a timestamp, by its own numbers.
_AS_DATETIME = 3


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


#: Put behind the value that is read: ormsgpack ignores what follows a value. Nobody can
#: have written it, since each process has another one.
_END = os.urandom(16)


def unpack_by_ormsgpack(ormsgpack: Any, data: bytes) -> Any:
    """Return the value of MessagePack.

    Raises:
        ValueError: it is none, or something follows it.
    """
    # An array of two: the value, and sixteen bytes.
    pair = b"\x92%b\xc4\x10%b" % (data, _END)
    value, end = ormsgpack.unpackb(pair, option=ormsgpack.OPT_NON_STR_KEYS)
    if end != _END:
        raise ValueError("Something follows the value.")
    return value


def as_plain(value: Any) -> Any:
    """Return what msgpack takes a value of a subclass for.

    Raises:
        TypeError: it is of none of the types that MessagePack knows.
    """
    for kind, plain in _PLAIN.items():
        if isinstance(value, kind):
            return plain(value)
    raise TypeError


#: By type what makes a value of its subclasses plain, whatever these override.
_PLAIN: Mapping[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    tuple: list,
}


def load_ormsgpack() -> Any:
    """Return the package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        # Optional, as msgpack is.
        import ormsgpack
    except ImportError:
        raise MissingExtraError("ormsgpack") from None
    return ormsgpack


def load_msgpack() -> Any:
    """Return the package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        # Optional: imported when it is chosen, or when a value tells of it.
        import msgpack
    except ImportError:
        raise MissingExtraError("msgpack") from None
    return msgpack
