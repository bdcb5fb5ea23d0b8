"""Compressors for ``OPTIONS["compressor"]``.

Compressed values begin with the format's magic number, by which they are told apart
from values that were written without a compressor: no pickle, JSON text or MessagePack
begins so. A few hostile bytes may decompress to gigabytes, so that the result is
bounded.
"""

import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from ._errors import MissingExtraError, UnreadableValueError

#: Bytes of a value at most: what a value of Redis has.
MAX_VALUE_BYTES = 512 * 2**20
#: Bytes of memory that LZMA may take beside the value; its level 9 takes 65 MiB.
_LZMA_MEMORY = 100 * 2**20


class Compressor(Protocol):
    """The interface of an object for ``OPTIONS["compressor"]``."""

    def compress(self, data: bytes) -> bytes:
        """Return data, compressed."""
        ...

    def decompress(self, data: bytes) -> bytes:
        """Return the data that :meth:`compress` was given."""
        ...


class _MagicCompressor(ABC):
    """Base of the compressors: compresses values from a length on.

    Parameters:
        level: the format's compression level; ``None``: its default.
        min_length: bytes of a value from which on it is compressed.
    """

    #: The bytes that the format's data begins with.
    magic: ClassVar[bytes]

    def __init__(self, level: int | None = None, min_length: int = 512) -> None:
        self.level = level
        self.min_length = min_length
        self._pack, self._unpacker = self._load()

    @abstractmethod
    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[], Any]]:
        """Return what compresses, and what makes an object that decompresses a piece
        at a time: its ``decompress(data, max_length)``, ``eof`` and ``unused_data``."""

    def compress(self, data: bytes) -> bytes:
        """Return the data, compressed if it is long enough, or looks compressed."""
        short = len(data) < self.min_length and not data.startswith(self.magic)
        return data if short else self._pack(data)

    def decompress(self, data: bytes, max_bytes: int = MAX_VALUE_BYTES) -> bytes:
        """Return the data as it was; what was never compressed comes back as it is.

        Parameters:
            data: the bytes.
            max_bytes: bytes that may come of them.

        Raises:
            UnreadableValueError: more would.
        """
        if not data.startswith(self.magic):
            return data
        try:
            unpacker = self._unpacker()
            found: bytes = unpacker.decompress(data, self._reserve(data, max_bytes))
        except Exception:
            # Uncompressed bytes that happen to begin so. The formats' errors have no
            # common class.
            return data
        if unpacker.eof:
            return data if unpacker.unused_data else found
        if len(found) < max_bytes:
            return data  # It is truncated: not compressed data.
        raise _too_large(data, max_bytes)

    def _reserve(self, data: bytes, max_bytes: int) -> int:
        """Return how many bytes to ask for, of ``max_bytes``."""
        return max_bytes


class ZlibCompressor(_MagicCompressor):
    """Compresses with zlib: everywhere, at a moderate pace.

    >>> compressor = ZlibCompressor()
    >>> len(compressor.compress(b"a" * 1000))
    19
    >>> compressor.decompress(compressor.compress(b"a" * 1000)) == b"a" * 1000
    True
    """

    magic = b"\x78"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[], Any]]:
        level = 3 if self.level is None else self.level
        return lambda data: zlib.compress(data, level), zlib.decompressobj


class GzipCompressor(_MagicCompressor):
    """Compresses with gzip: zlib's data, with more around it."""

    magic = b"\x1f\x8b"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[], Any]]:
        # Imported when it is chosen, as the next one: few need them.
        import gzip

        level = 3 if self.level is None else self.level
        wbits = 16 + zlib.MAX_WBITS  # gzip's frame alone
        return (
            lambda data: gzip.compress(data, level),
            lambda: zlib.decompressobj(wbits),
        )


class LzmaCompressor(_MagicCompressor):
    """Compresses with LZMA: the smallest, and slow."""

    magic = b"\xfd7zXZ\x00"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[], Any]]:
        import lzma

        return (
            lambda data: lzma.compress(data, preset=self.level),
            lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _LZMA_MEMORY),
        )


class ZstdCompressor(_MagicCompressor):
    """Compresses with Zstandard: small and fast (extra ``zstd`` before Python 3.14)."""

    magic = b"\x28\xb5\x2f\xfd"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[], Any]]:
        module = _zstd()
        return (
            lambda data: module.compress(data, self.level),
            module.ZstdDecompressor,
        )


class Lz4Compressor(_MagicCompressor):
    """Compresses with LZ4: the fastest (extra ``lz4``)."""

    magic = b"\x04\x22\x4d\x18"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[], Any]]:
        module = _lz4()
        level = 0 if self.level is None else self.level
        return (
            lambda data: module.compress(data, compression_level=level),
            module.LZ4FrameDecompressor,
        )

    def _reserve(self, data: bytes, max_bytes: int) -> int:
        # It reserves the memory at once, and no more than 255 bytes come out of one.
        return min(max_bytes, 255 * len(data))


def read_bounded(compressor: Compressor, data: bytes, max_bytes: int) -> bytes:
    """Return what a compressor of whatever kind makes of data.

    Raises:
        UnreadableValueError: it is more than ``max_bytes``.
        Exception: what a compressor of one's own raises.
    """
    if isinstance(compressor, _MagicCompressor):
        return compressor.decompress(data, max_bytes)
    found = compressor.decompress(data)
    # Nothing else can be done about one that knows no bound.
    if len(found) > max_bytes:
        raise _too_large(data, max_bytes)
    return found


def _too_large(data: bytes, max_bytes: int) -> UnreadableValueError:
    return UnreadableValueError(
        f"A value of {len(data)} bytes is more than {max_bytes} once it is "
        "decompressed, the most that OPTIONS['max_value_bytes'] allows. Delete it, or "
        "set that higher if it is yours."
    )


def compressed_with(data: bytes) -> str | None:
    """Return the compressor whose data begins as these bytes do, if any."""
    for kind in _KINDS:
        if data.startswith(kind.magic):
            # Zlib's first two bytes are a multiple of 31; some text begins with an x.
            weak = kind is ZlibCompressor and int.from_bytes(data[:2]) % 31
            return None if weak else kind.__name__
    return None


_KINDS: Sequence[type[_MagicCompressor]] = (
    ZlibCompressor,
    GzipCompressor,
    LzmaCompressor,
    ZstdCompressor,
    Lz4Compressor,
)


# Imported when they are chosen: both are optional.
def _zstd() -> Any:
    try:
        if sys.version_info >= (3, 14):  # pragma: no cover - in its own environment
            from compression import zstd
        else:  # pragma: no cover - likewise
            from backports import zstd
    except ImportError:
        raise MissingExtraError("zstd") from None
    return zstd


def _lz4() -> Any:
    try:
        import lz4.frame
    except ImportError:
        raise MissingExtraError("lz4") from None
    return lz4.frame
