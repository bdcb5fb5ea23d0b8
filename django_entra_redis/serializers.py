"""How values become bytes: Django's way, only faster, and compressors."""

import pickle
import zlib
from typing import Any, Protocol

from django.core.cache.backends.redis import RedisSerializer
from django.utils.module_loading import import_string


class Serializer(Protocol):
    """What ``OPTIONS["serializer"]`` gives."""

    def dumps(self, obj: Any) -> Any:
        """Return bytes, or a number that Redis can count with."""

    def loads(self, data: bytes) -> Any:
        """Return what :meth:`dumps` was given."""


class Compressor(Protocol):
    """What ``OPTIONS["compressor"]`` gives."""

    def compress(self, data: bytes) -> bytes:
        """Return the same in less."""

    def decompress(self, data: bytes) -> bytes:
        """Return what :meth:`compress` was given."""


class PickleSerializer(RedisSerializer):
    """Django's serializer, which reads and writes the same bytes."""

    # The stubs' overloads tell numbers from bytes; what comes from Redis is bytes.
    def loads(self, data: bytes) -> Any:  # type: ignore[override]
        """Return the value of some bytes."""
        # Pickles of protocol 2 and newer begin so; Django tries int() on each.
        if data[:1] == b"\x80":
            return pickle.loads(data)
        try:
            return int(data)
        except ValueError:
            return pickle.loads(data)


class ZlibCompressor:
    """Compresses what is worth it with zlib.

    Parameters:
        level: 1 (fast) to 9 (small).
        min_length: bytes from which on to compress.
    """

    def __init__(self, level: int = 3, min_length: int = 512) -> None:
        self.level = level
        self.min_length = min_length

    def compress(self, data: bytes) -> bytes:
        """Return the data, compressed if it is long enough."""
        return data if len(data) < self.min_length else zlib.compress(data, self.level)

    def decompress(self, data: bytes) -> bytes:
        """Return the data as it was; what was never compressed comes back as it is."""
        try:
            return zlib.decompress(data)
        except zlib.error:
            return data


class CompressingSerializer:
    """A serializer whose bytes are compressed; numbers stay numbers."""

    def __init__(self, serializer: Serializer, compressor: Compressor) -> None:
        self.serializer = serializer
        self.compressor = compressor

    def dumps(self, obj: Any) -> Any:
        """Return compressed bytes, or a number that Redis can count with."""
        data = self.serializer.dumps(obj)
        return self.compressor.compress(data) if isinstance(data, bytes) else data

    def loads(self, data: bytes) -> Any:
        """Return what :meth:`dumps` was given, also where nothing compressed it."""
        try:
            data = self.compressor.decompress(data)
        except Exception:
            # Written before there was a compressor, or a number: no common error
            # tells that of all compressors, so the serializer has the last word.
            return self.serializer.loads(data)
        return self.serializer.loads(data)


def make_serializer(serializer: Any = None, compressor: Any = None) -> Serializer:
    """Return the serializer that OPTIONS ask for.

    Parameters:
        serializer: dotted path, class or object; ``None`` for Django's.
        compressor: dotted path, class or object; ``None`` for none.
    """
    made: Serializer = _make(serializer) if serializer else PickleSerializer()
    return CompressingSerializer(made, _make(compressor)) if compressor else made


def _make(value: Any) -> Any:
    if isinstance(value, str):
        value = import_string(value)
    return value() if callable(value) else value
