"""Values and bytes: the same as Django's, compressed where asked for."""

import json
import pickle
import zlib
from typing import Any

import pytest
from django.core.cache.backends.redis import RedisSerializer
from hypothesis import given, settings
from hypothesis import strategies as st

from django_entra_redis.serializers import (
    CompressingSerializer,
    PickleSerializer,
    Serializer,
    ZlibCompressor,
    make_serializer,
)

LONG = "long " * 1000
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)
fuzz = settings(deadline=None, database=None)


class JsonSerializer:
    """Somebody's own serializer."""

    def dumps(self, obj: Any) -> Any:
        """Return JSON."""
        return json.dumps(obj).encode()

    def loads(self, data: bytes) -> Any:
        """Return what JSON says."""
        return json.loads(data)


class StrictCompressor:
    """Somebody's own compressor, with an error of its own."""

    def compress(self, data: bytes) -> bytes:
        """Return the data behind a mark."""
        return b"strict:" + data[::-1]

    def decompress(self, data: bytes) -> bytes:
        """Return the data without the mark; refuse what has none."""
        if not data.startswith(b"strict:"):
            raise LookupError("no mark")
        return data[7:][::-1]


def stored(data: Any) -> bytes:
    """Return what Redis gives back for what was sent to it."""
    return data if isinstance(data, bytes) else str(data).encode()


@fuzz
@given(values)
def test_bytes_are_those_of_django(value: Any) -> None:
    """Both read each other's values during a rolling deploy."""
    ours, theirs = PickleSerializer(), RedisSerializer()
    assert ours.dumps(value) == theirs.dumps(value)
    assert ours.loads(stored(theirs.dumps(value))) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(protocol: int) -> None:
    """Also those of old Pythons, whose pickles begin otherwise."""
    data = pickle.dumps({"a": [1]}, protocol)
    assert PickleSerializer().loads(data) == {"a": [1]}


def test_numbers_are_for_redis_to_count() -> None:
    """An int stays one, a bool does not become one."""
    serializer = make_serializer(compressor=ZlibCompressor(min_length=0))
    assert serializer.dumps(7) == 7
    assert serializer.loads(b"-7") == -7
    assert serializer.loads(stored(serializer.dumps(True))) is True


def test_nothing_that_is_no_value() -> None:
    """Somebody else's bytes are an error, not a wrong value."""
    with pytest.raises(pickle.UnpicklingError):
        PickleSerializer().loads(b"hello")


@pytest.mark.parametrize(
    "compressor",
    [
        ZlibCompressor,
        ZlibCompressor(9, 0),
        f"{ZlibCompressor.__module__}.ZlibCompressor",
        StrictCompressor,
    ],
)
@pytest.mark.parametrize("value", [LONG, "short", {"a": LONG}, 5, 10**30])
def test_what_is_compressed_comes_back(compressor: Any, value: Any) -> None:
    """A compressor can be a class, an object or a dotted path."""
    serializer = make_serializer(compressor=compressor)
    assert serializer.loads(stored(serializer.dumps(value))) == value


def test_long_values_take_less() -> None:
    """What is long gets shorter, what is short is left as Django writes it."""
    serializer, plain = make_serializer(compressor=ZlibCompressor()), RedisSerializer()
    assert len(serializer.dumps(LONG)) < len(plain.dumps(LONG)) / 10
    assert serializer.dumps("short") == plain.dumps("short")


@pytest.mark.parametrize("compressor", [ZlibCompressor(), StrictCompressor()])
@pytest.mark.parametrize("value", [LONG, "short", 80, 8012345])
def test_what_was_there_before_the_compressor(compressor: Any, value: Any) -> None:
    """Values written without it stay readable."""
    data = stored(RedisSerializer().dumps(value))
    assert make_serializer(compressor=compressor).loads(data) == value


def test_what_only_looks_compressed() -> None:
    """A number that begins as zlib's data does is a number."""
    compressor = ZlibCompressor()
    assert compressor.decompress(b"80") == b"80"
    cut = zlib.compress(LONG.encode())[:-4]
    assert compressor.decompress(cut) == cut


@fuzz
@given(st.binary(), st.integers(0, 20), st.integers(1, 9))
def test_compressing_loses_nothing(data: bytes, min_length: int, level: int) -> None:
    """Whatever the bytes, where they are pickles they come back."""
    compressor = ZlibCompressor(level, min_length)
    pickled = pickle.dumps(data)
    assert compressor.decompress(compressor.compress(pickled)) == pickled


@pytest.mark.parametrize(
    "serializer", [JsonSerializer, JsonSerializer(), f"{__name__}.JsonSerializer"]
)
def test_serializer_of_ones_own(serializer: Any) -> None:
    """It can be a class, an object or a dotted path, with a compressor or without."""
    for compressor in (None, ZlibCompressor(min_length=0)):
        made = make_serializer(serializer, compressor)
        assert made.loads(stored(made.dumps({"a": 1}))) == {"a": 1}
    assert make_serializer(serializer).dumps({"a": 1}) == b'{"a": 1}'


def test_the_default_is_djangos() -> None:
    """Without options there is no compression."""
    assert isinstance(make_serializer(), RedisSerializer)
    wrapped: Serializer = make_serializer(None, ZlibCompressor)
    assert isinstance(wrapped, CompressingSerializer)
