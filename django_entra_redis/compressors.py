"""Compressors for ``OPTIONS["compressor"]``, and the reading of what any has written.

What they write begins with the format's own magic number, so that a value is read
whatever the compressor is now. No pickle, JSON text or MessagePack begins so.
"""

import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from ._errors import MissingExtraError


class Compressor(Protocol):
    """What ``OPTIONS["compressor"]`` gives."""

    def compress(self, data: bytes) -> bytes:
        """Return the same in less."""
        ...

    def decompress(self, data: bytes) -> bytes:
        """Return what :meth:`compress` was given."""
        ...


class _MagicCompressor(ABC):
    """Compresses what is worth it.

    Parameters:
        level: as the format has it; ``None`` for its default.
        min_length: bytes from which on to compress.
    """

    #: What the format's data begins with.
    magic: ClassVar[bytes]

    def __init__(self, level: int | None = None, min_length: int = 512) -> None:
        self.level = level
        self.min_length = min_length
        self._pack, self._unpack = self._load()

    @abstractmethod
    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        """Return the functions that compress and decompress."""

    def compress(self, data: bytes) -> bytes:
        """Return the data, compressed if it is long enough, or looks compressed."""
        short = len(data) < self.min_length and not data.startswith(self.magic)
        return data if short else self._pack(data)

    def decompress(self, data: bytes) -> bytes:
        """Return the data as it was; what was never compressed comes back as it is."""
        if not data.startswith(self.magic):
            return data
        try:
            return self._unpack(data)
        except Exception:
            # Another's bytes that happen to begin so: no common error tells that.
            return data


class ZlibCompressor(_MagicCompressor):
    """Compresses with zlib: everywhere, at a moderate pace."""

    magic = b"\x78"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        level = 3 if self.level is None else self.level
        return lambda data: zlib.compress(data, level), zlib.decompress


class GzipCompressor(_MagicCompressor):
    """Compresses with gzip: zlib's data, with more around it."""

    magic = b"\x1f\x8b"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        # Imported when it is chosen, as the next one: few need them.
        import gzip

        level = 3 if self.level is None else self.level
        return lambda data: gzip.compress(data, level), gzip.decompress


class LzmaCompressor(_MagicCompressor):
    """Compresses with LZMA: the smallest, and slow."""

    magic = b"\xfd7zXZ\x00"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        import lzma

        return lambda data: lzma.compress(data, preset=self.level), lzma.decompress


class ZstdCompressor(_MagicCompressor):
    """Compresses with Zstandard: small and fast (extra ``zstd`` before Python 3.14)."""

    magic = b"\x28\xb5\x2f\xfd"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        module = _zstd()
        return lambda data: module.compress(data, self.level), module.decompress


class Lz4Compressor(_MagicCompressor):
    """Compresses with LZ4: the fastest (extra ``lz4``)."""

    magic = b"\x04\x22\x4d\x18"

    def _load(self) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        module = _lz4()
        level = 0 if self.level is None else self.level
        return (
            lambda data: module.compress(data, compression_level=level),
            module.decompress,
        )


def decompress(data: bytes) -> bytes:
    """Return data without the compression that its first bytes tell of, if any.

    Raises:
        MissingExtraError: the package for it is not installed.
    """
    for magic, make in _READERS.items():
        if data.startswith(magic):
            return make().decompress(data)
    return data


_READERS: Mapping[bytes, type[_MagicCompressor]] = {
    kind.magic: kind
    for kind in (
        ZlibCompressor,
        GzipCompressor,
        LzmaCompressor,
        ZstdCompressor,
        Lz4Compressor,
    )
}


# Imported when they are chosen, or when a value tells of them: both are optional.
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
