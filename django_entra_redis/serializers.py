"""Serializers: values to bytes, and the bytes of any of these formats to values.

A change of serializer leaves what has been written before readable: the first bytes
tell the format. So does a compressor that is added, and one that is taken away or
changed if it is named among the fallbacks. Reading a pickle may run whatever its writer
pleases, though, so that the safe serializers read those of plain data alone.
"""

import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from django.core.cache.backends.redis import RedisSerializer
from django.core.serializers.json import DjangoJSONEncoder
from django.utils.module_loading import import_string

from ._errors import (
    ConfigurationError,
    EntraRedisError,
    MissingExtraError,
    Problem,
    UnreadableValueError,
    option_error,
)
from .compressors import (
    MAX_VALUE_BYTES,
    Compressor,
    compressed_with,
    read_bounded,
)

Unpickle = Callable[[bytes], Any]
Unpack = Callable[[bytes], Any]

#: A number as it is sent to Redis, and as Redis counts: what ``repr`` makes of it.
_NUMBER = re.compile(rb"-?(\d+(\.\d+)?(e[-+]?\d+)?|inf)|nan")


class Serializer(Protocol):
    """The interface of an object for ``OPTIONS["serializer"]``."""

    def dumps(self, obj: Any) -> Any:
        """Return bytes, or a number that Redis can count with."""

    def loads(self, data: bytes) -> Any:
        """Return what :meth:`dumps` was given."""


class PickleSerializer(RedisSerializer):
    """Django's serializer, which reads and writes the same bytes."""

    # The stubs' overloads tell numbers from bytes; what comes from Redis is bytes.
    def loads(self, data: bytes) -> Any:  # type: ignore[override]
        """Return the value of some bytes."""
        # Pickles of protocol 2 and newer are between these: they begin with the first
        # one. Django tries int() on each.
        if b"\x80" < data < b"\x81":
            return pickle.loads(data)
        try:
            return int(data)
        except ValueError:
            return _read(data, pickle.loads)


class JSONSerializer:
    """Writes JSON, as Django's encoder makes it of dates, decimals and UUIDs too.

    Whoever can write to the cache can run no code by it. Tuples come back as lists,
    keys as strings, dates as text.

    >>> serializer = JSONSerializer()
    >>> serializer.dumps({"menu": ("home", "about")})
    b'{"menu":["home","about"]}'
    >>> serializer.loads(serializer.dumps({"menu": ("home", "about")}))
    {'menu': ['home', 'about']}
    """

    def dumps(self, obj: Any) -> Any:
        """Return JSON, or a number that Redis can count with.

        Raises:
            TypeError: it is nothing that JSON knows.
        """
        if type(obj) is int:
            return obj
        return json.dumps(obj, cls=DjangoJSONEncoder, separators=(",", ":")).encode()

    def loads(self, data: bytes) -> Any:
        """Return the value of some bytes: JSON, or what was written before it.

        Raises:
            UnreadableValueError: it is neither.
        """
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return _read(data, _unpickle_plain)


class MsgPackSerializer:
    """Writes MessagePack: as safe as JSON, smaller, and it knows bytes (extra
    ``msgpack``)."""

    def __init__(self) -> None:
        # Imported where it is chosen, or where a value tells of it.
        from .messagepack import guarded, load_msgpack

        msgpack = load_msgpack()
        self._pack = msgpack.packb
        self._unpack: Unpack = guarded(msgpack)

    def dumps(self, obj: Any) -> Any:
        """Return MessagePack, or a number that Redis can count with.

        Raises:
            TypeError: it is nothing that MessagePack knows.
        """
        if isinstance(obj, int) and not isinstance(obj, bool):
            # Also of an enumeration: packed it would be read as text.
            return int(obj)
        return self._pack(obj)

    def loads(self, data: bytes) -> Any:
        """Return the value of some bytes: MessagePack, or what was written before it.

        Raises:
            UnreadableValueError: it is neither.
        """
        return _read(data, _unpickle_plain, self._unpack)


class OrMsgPackSerializer(MsgPackSerializer):
    """Writes the same as :class:`MsgPackSerializer`, and reads it in half the time
    (extra ``ormsgpack``).

    Dates and UUIDs as keys of a dictionary come back as text.
    """

    def __init__(self) -> None:
        from .messagepack import as_plain, load_ormsgpack, unpack_by_ormsgpack

        ormsgpack = load_ormsgpack()
        # Of what it would make text, it asks as_plain() instead.
        options = (
            ormsgpack.OPT_NON_STR_KEYS
            | ormsgpack.OPT_PASSTHROUGH_DATACLASS
            | ormsgpack.OPT_PASSTHROUGH_DATETIME
            | ormsgpack.OPT_PASSTHROUGH_ENUM
            | ormsgpack.OPT_PASSTHROUGH_UUID
        )
        self._pack = partial(ormsgpack.packb, default=as_plain, option=options)
        self._unpack = partial(unpack_by_ormsgpack, ormsgpack)


class _CompressedValueError(UnreadableValueError):
    """A value is compressed that comes to a serializer.

    Parameters:
        length: its bytes.
        compressor: the class of the compressor by which it is, as it seems.
    """

    def __init__(self, length: int, compressor: str) -> None:
        # Both are arguments, so that the error can be pickled.
        super().__init__(length, compressor)
        self.length = length
        self.compressor = compressor

    def __str__(self) -> str:
        return (
            f"A value of {self.length} bytes is compressed, by the looks of it with "
            f"{self.compressor}, which OPTIONS do not have for this cache. Name it in "
            "OPTIONS['compressor_fallbacks'] if it was 'compressor' before, or delete "
            "the value."
        )


class CompressingSerializer:
    """Compresses what a serializer gives, and reads what was never compressed, too.

    Numbers, as such or as text, stay as they are, so that Redis can count with them.
    They are recognised before anything is decompressed: a compressor may take any
    bytes for its own. One layer is taken off, no more.

    Parameters:
        serializer: turns values into bytes, or into numbers.
        compressor: makes less of the bytes; ``None`` leaves them as they are.
        fallbacks: compressors by which values may have been written before.
        max_value_bytes: bytes of a value before it is compressed, at most.
    """

    def __init__(
        self,
        serializer: Serializer,
        compressor: Compressor | None,
        fallbacks: Sequence[Compressor] = (),
        max_value_bytes: int = MAX_VALUE_BYTES,
    ) -> None:
        self.serializer = serializer
        self.compressor = compressor
        self.max_value_bytes = max_value_bytes
        own = () if compressor is None else (compressor,)
        self._compressors = (*own, *fallbacks)

    def dumps(self, obj: Any) -> Any:
        """Return compressed bytes, or a number that Redis can count with.

        Raises:
            ValueError: the compressor makes what reads as a number of what is none,
                or the value is so large that it would not be read again.
        """
        data = _as_sent(self.serializer.dumps(obj))
        if (
            self.compressor is None
            or not isinstance(data, bytes)
            or _NUMBER.fullmatch(data)
        ):
            return data
        if len(data) > self.max_value_bytes:
            raise ValueError(
                f"A value of {len(data)} bytes is too large to be compressed: "
                f"OPTIONS['max_value_bytes'] is {self.max_value_bytes}."
            )
        compressed = _as_sent(self.compressor.compress(data))
        if _NUMBER.fullmatch(compressed):
            raise ValueError(
                f"OPTIONS['compressor'] ({type(self.compressor).__name__}) made a "
                "number's digits of what is no number, which would be read as that "
                "number: it should begin its data with bytes that no number has."
            )
        return compressed

    def loads(self, data: bytes) -> Any:
        """Return what :meth:`dumps` was given, also where nothing compressed it.

        Raises:
            UnreadableValueError: it is larger than ``max_value_bytes``, or nothing
                that was written here.
        """
        found = data
        if not _NUMBER.fullmatch(data):
            for compressor in self._compressors:
                found = self._decompress(compressor, data)
                if found is not data:
                    break
        try:
            return self.serializer.loads(found)
        except _CompressedValueError as error:
            fault = _compression_fault(
                error.compressor, self._compressors, unpacked=found is not data
            )
            if fault is None:
                raise
        raise UnreadableValueError(f"A value of {len(data)} bytes {fault}. Delete it.")

    def _decompress(self, compressor: Compressor, data: bytes) -> bytes:
        """Return what a compressor makes of the bytes, or just them."""
        try:
            read = read_bounded(compressor, data, self.max_value_bytes)
            found: bytes = _as_sent(read)
        except UnreadableValueError:
            raise
        except Exception:
            # Written before there was this compressor: no common error tells that of
            # all compressors, so the serializer has the last word.
            return data
        return found


def _compression_fault(
    name: str, compressors: Sequence[Compressor], *, unpacked: bool
) -> str | None:
    """Return what is wrong with a value that is compressed where it should not be.

    Parameters:
        name: the class of the compressor by which it is, as it seems.
        compressors: those of the settings.
        unpacked: whether one of them has taken a layer off.

    Returns:
        ``None`` if the settings lack that compressor.
    """
    if unpacked:
        return f"is compressed twice, by the looks of it (within: {name})"
    if any(name == kind.__name__ for one in compressors for kind in type(one).__mro__):
        return (
            f"begins as what {name} writes, which OPTIONS have, but can't be "
            "decompressed: it breaks off, is damaged, takes too much memory, or "
            "something follows it"
        )
    return None


def make_serializer(
    serializer: Any = None,
    compressor: Any = None,
    where: str = "CACHES[...]",
    *,
    fallbacks: Sequence[Any] = (),
    max_value_bytes: int = MAX_VALUE_BYTES,
) -> Serializer:
    """Return the serializer that OPTIONS ask for.

    Parameters:
        serializer: dotted path, class or object; ``None`` for Django's.
        compressor: dotted path, class or object; ``None`` for none.
        where: what to call the cache in a message.
        fallbacks: compressors of values that were written before, each as above.
        max_value_bytes: bytes of a value before it is compressed, at most.

    Raises:
        ConfigurationError: one of them is nothing of the kind.
        MissingExtraError: one of them needs a package that is not installed.
    """
    made: Serializer = PickleSerializer()
    if serializer not in (None, ""):
        made = _make("serializer", serializer, where)
    if compressor in (None, "") and not fallbacks:
        return made
    return CompressingSerializer(
        made,
        None if compressor in (None, "") else _make("compressor", compressor, where),
        [_make("compressor_fallbacks", one, where) for one in fallbacks],
        max_value_bytes,
    )


def serializer_problems(
    serializer: Any, compressor: Any, where: str, *, fallbacks: Sequence[Any] = ()
) -> list[Problem]:
    """Return the problems of these options of a cache, see :func:`make_serializer`."""
    try:
        make_serializer(serializer, compressor, where, fallbacks=fallbacks)
    except ConfigurationError as error:
        return list(error.problems)
    except MissingExtraError as error:
        message = f"it needs {error.extra}, which is not installed."
        hint = f'python -m pip install "django-entra-redis[{error.extra}]".'
        return [Problem("E023", f"{where}['OPTIONS']", message, hint)]
    return []


_METHODS: Mapping[str, tuple[str, str]] = {
    "serializer": ("dumps", "loads"),
    "compressor": ("compress", "decompress"),
    "compressor_fallbacks": ("compress", "decompress"),
}


def _make(key: str, value: Any, where: str) -> Any:
    """Return the object that an option asks for."""
    needed = _METHODS[key]
    try:
        made = import_string(value) if isinstance(value, str) else value
        # An object may be callable, too; a function makes one.
        if isinstance(made, type) or (callable(made) and not _has(made, needed)):
            made = made()
    except MissingExtraError:
        raise
    # Whatever the code behind the path raises.
    except Exception as error:
        message = f"it can't be used ({type(error).__name__}: {error})."
    else:
        if _has(made, needed):
            return made
        message = "it can't be used."
    methods = " and ".join(needed)
    hint = f"It should be a class or an object with {methods}, or its dotted path."
    raise option_error(key, message, hint, where)


def _as_sent(data: Any) -> Any:
    """Return text and the like as the bytes that are sent; anything else as it is."""
    if isinstance(data, str):
        return data.encode()  # The json module gives text.
    return bytes(data) if isinstance(data, bytearray | memoryview) else data


def _has(value: Any, methods: tuple[str, ...]) -> bool:
    return all(callable(getattr(value, name, None)) for name in methods)


def _read(data: bytes, unpickle: Unpickle, unpack: Unpack | None = None) -> Any:
    """Return the value of bytes that any of these serializers has written.

    Parameters:
        unpickle: reads a pickle.
        unpack: reads MessagePack; ``None``: with the package that is installed.

    Raises:
        UnreadableValueError: none of them has.
        MissingExtraError: it takes a package that is not installed.
    """
    first = data[:1]
    # No compressor's data begins as MessagePack does, but for numbers, which are never
    # packed: they begin as low as text, or higher than this.
    packed = b"\x80" < first < b"\xe0"
    if not packed and (compressor := compressed_with(data)):
        # Not undone here: a few bytes may become gigabytes.
        raise _CompressedValueError(len(data), compressor)
    try:
        if first < b"\x80":
            try:
                return json.loads(data)
            except ValueError:
                return unpickle(data)  # those of protocol 0 and 1
        if first == b"\x80" and len(data) > 1:
            return unpickle(data)
        return (unpack or _make_unpack())(data)
    except EntraRedisError:
        raise
    except Exception as error:
        failure = type(error).__name__
    raise UnreadableValueError(
        f"A value of {len(data)} bytes can't be read ({failure}): something else than "
        "OPTIONS['serializer'] has written it. Delete it, or give the cache another "
        "KEY_PREFIX or VERSION."
    )


def _make_unpack() -> Unpack:
    from .messagepack import make_unpack

    return make_unpack()


def _unpickle_plain(data: bytes) -> Any:
    # Imported where a value tells of it: few caches have such old ones.
    from .plain_pickles import loads

    return loads(data)
