"""Values and bytes: the same as Django's, compressed where asked for."""

import contextlib
import dataclasses
import datetime
import decimal
import enum
import gzip
import json
import lzma
import pickle
import re
import struct
import sys
import tracemalloc
import uuid
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import pytest
from django.core.cache.backends.redis import RedisSerializer
from django.utils.safestring import mark_safe
from hypothesis import given, settings
from hypothesis import strategies as st

from django_entra_redis._errors import (
    ConfigurationError,
    MissingExtraError,
    UnreadableValueError,
)
from django_entra_redis.compressors import (
    GzipCompressor,
    Lz4Compressor,
    LzmaCompressor,
    ZlibCompressor,
    ZstdCompressor,
)
from django_entra_redis.serializers import (
    CompressingSerializer,
    JSONSerializer,
    MsgPackSerializer,
    OrMsgPackSerializer,
    PickleSerializer,
    Serializer,
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


class Level(enum.IntEnum):
    """Numbers that are no ``int``, packed as what is a number's text, or nothing."""

    ONE = ord("1")
    BELL = 7
    ZLIB = ord("x")
    LARGE = 200


@pytest.mark.parametrize("value", Level)
def test_numbers_of_an_enumeration(value: Level) -> None:
    """MessagePack does not know them; they come back as numbers."""
    for compressor in ("none", "zlib"):
        for name in FORMATS:
            serializer = make(name, compressor)
            assert serializer.loads(stored(serializer.dumps(value))) == value


def test_nothing_that_is_no_value() -> None:
    """Somebody else's bytes are an error, not a wrong value."""
    for serializer in (PickleSerializer(), JSONSerializer()):
        with pytest.raises(UnreadableValueError, match=r"OPTIONS\['serializer'\]"):
            serializer.loads(b"hello")


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


class ReversingCompressor:
    """Somebody's own compressor, which takes any bytes for its own."""

    def compress(self, data: bytes) -> bytes:
        """Return the bytes in reverse order."""
        return data[::-1]

    def decompress(self, data: bytes) -> bytes:
        """Return the bytes in reverse order."""
        return data[::-1]


class FlippingCompressor(ReversingCompressor):
    """The same with every byte changed, which makes digits of what were none."""

    def compress(self, data: bytes) -> bytes:
        """Return other bytes."""
        return bytes(byte ^ 0x55 for byte in data)

    decompress = compress


class FloatSerializer(JsonSerializer):
    """Somebody's own serializer, which leaves numbers to redis-py."""

    def dumps(self, obj: Any) -> Any:
        """Return JSON, or a number."""
        return obj if isinstance(obj, float) else super().dumps(obj)


@pytest.mark.parametrize("compressor", [ReversingCompressor, FlippingCompressor])
@pytest.mark.parametrize(
    "serializer",
    [
        None,
        JSONSerializer,
        "django_entra_redis.serializers.MsgPackSerializer",
        "django_entra_redis.serializers.OrMsgPackSerializer",
        JsonSerializer,
        FloatSerializer,
        json,
    ],
)
@pytest.mark.parametrize(
    "value",
    [0, 3, 12, -40, 10**30, 1.5, 120.0, -1e300, 1e-7, "12", "text", [12, "x"], None],
)
def test_numbers_are_not_decompressed(
    compressor: Any, serializer: Any, value: Any
) -> None:
    """Nothing compresses them, and so nothing may decompress them."""
    if isinstance(serializer, str) and not installed("ormsgpack"):
        pytest.skip("MessagePack is not installed")  # pragma: no cover
    made = make_serializer(serializer, compressor)
    assert made.loads(stored(made.dumps(value))) == value


@fuzz
@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_with_a_compressor(value: float) -> None:
    """It comes back as it was, whatever the compressor makes of its digits."""
    for compressor in (ReversingCompressor(), FlippingCompressor(), ZlibCompressor(0)):
        for serializer in (None, JSONSerializer(), JsonSerializer(), FloatSerializer()):
            made = make_serializer(serializer, compressor)
            assert made.loads(stored(made.dumps(value))) == value


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_kinds_of_bytes(kind: Any) -> None:
    """What is written as bytes is compressed as bytes, and so comes back."""

    class Packing(JsonSerializer):
        def dumps(self, obj: Any) -> Any:
            return kind(super().dumps(obj))

    made = make_serializer(Packing, ReversingCompressor)
    assert made.loads(made.dumps({"a": 1})) == {"a": 1}


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_kinds_of_bytes_from_a_compressor(kind: Any) -> None:
    """What it gives, packed or unpacked, is taken as bytes, too."""

    class Giving(ReversingCompressor):
        def compress(self, data: bytes) -> Any:
            return kind(super().compress(data))

        def decompress(self, data: bytes) -> Any:
            return kind(super().decompress(data))

    for serializer in (None, JSONSerializer):
        made = make_serializer(serializer, Giving)
        assert made.loads(made.dumps({"a": 1})) == {"a": 1}


def test_what_a_compressor_makes_a_number_of() -> None:
    """It is refused when it is written: read back it would be another value."""

    class Counting(FlippingCompressor):
        def compress(self, data: bytes) -> bytes:
            return b"%d" % len(data)

    made = make_serializer(compressor=Counting)
    with pytest.raises(ValueError, match=r"OPTIONS\['compressor'\]"):
        made.dumps("text")


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
    # What a serializer of one's own gives may itself be zlib's.
    for packed in (zlib.compress(b"short"), zlib.compress(LONG.encode())):
        assert compressor.decompress(compressor.compress(packed)) == packed


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


def test_text_is_compressed() -> None:
    """What dumps returns may be text, as that of Python's json module."""
    made = make_serializer(json, ZlibCompressor)
    data = made.dumps({"a": LONG})
    assert isinstance(data, bytes)
    assert len(data) < len(LONG) / 10
    assert made.loads(data) == {"a": LONG}


class Unfit:
    """Nothing that serializes, nor can be made without more ado."""

    def __init__(self, level: int) -> None:
        self.level = level


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "it can't be used. "),
        (object, "it can't be used. "),
        (lambda: None, "it can't be used. "),
        (Unfit, r"it can't be used \(TypeError: .*'level'\)\. "),
        (Unfit(1), "it can't be used. "),
        ("json", r"it can't be used \(ImportError: json "),
        ("nowhere.Class", r"it can't be used \(ModuleNotFoundError: No module "),
        (f"{__name__}.Nothing", r"it can't be used \(ImportError: Module "),
    ],
)
@pytest.mark.parametrize(
    ("key", "methods"),
    [("serializer", "dumps and loads"), ("compressor", "compress and decompress")],
)
def test_what_can_not_be_used(value: Any, says: str, key: str, methods: str) -> None:
    """It is told at once: which option, why, and what it should be."""
    with pytest.raises(ConfigurationError) as caught:
        make_serializer(**{key: value}, where="CACHES['x']")
    (problem,) = caught.value.problems
    assert problem.where == f"CACHES['x']['OPTIONS']['{key}']"
    assert problem.id == "E023"
    assert re.match(says, f"{problem.message} ")
    assert problem.hint == (
        f"It should be a class or an object with {methods}, or its dotted path."
    )


class CallableSerializer(JsonSerializer):
    """Somebody's serializer whose objects are functions, too, and empty."""

    def __call__(self) -> None:
        """Be no factory."""
        raise AssertionError  # pragma: no cover - it is to be left alone

    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize(
    "serializer", [CallableSerializer, CallableSerializer(), lambda: JsonSerializer()]
)
def test_what_can_be_called(serializer: Any) -> None:
    """An object that can do what it should is used as it is; a function makes one."""
    assert not CallableSerializer()
    made = make_serializer(serializer)
    assert isinstance(made, JsonSerializer)
    assert made is serializer or not isinstance(serializer, JsonSerializer)


@pytest.mark.parametrize("nothing", [None, ""])
def test_what_an_absent_variable_gives(nothing: Any) -> None:
    """It counts as not given."""
    assert isinstance(make_serializer(nothing, nothing), PickleSerializer)


def test_the_default_is_djangos() -> None:
    """Without options there is no compression."""
    assert isinstance(make_serializer(), RedisSerializer)
    wrapped: Serializer = make_serializer(None, ZlibCompressor)
    assert isinstance(wrapped, CompressingSerializer)


# -- after a change of serializer or compressor

PLAIN = {"a": [1, 2.5, None, True, "text" * 300], "b": {"c": []}}


def installed(name: str) -> bool:
    """Return whether an extra is there; one tox environment has them all."""
    try:
        return find_spec({"zstd": "backports.zstd"}.get(name, name)) is not None
    except ModuleNotFoundError:
        return False


FORMATS = ["pickle", "json", "msgpack", "ormsgpack"]
OPTIONAL = ("msgpack", "ormsgpack", "zstd", "lz4")
PACKERS = ["none", "zlib", "gzip", "lzma", "zstd", "lz4"]


def make(serializer: str, compressor: str, fallback: str = "none") -> Serializer:
    """Return a combination; skip the test if it is not installed."""
    for extra in (serializer, compressor, fallback):
        if extra in OPTIONAL and not installed(extra):
            pytest.skip(f"{extra} is not installed")  # pragma: no cover
    serializers = {
        "json": JSONSerializer,
        "msgpack": MsgPackSerializer,
        "ormsgpack": OrMsgPackSerializer,
    }
    compressors = {
        "zlib": ZlibCompressor,
        "gzip": GzipCompressor,
        "lzma": LzmaCompressor,
        "zstd": ZstdCompressor,
        "lz4": Lz4Compressor,
    }
    return make_serializer(
        serializers.get(serializer),
        compressors.get(compressor),
        fallbacks=[compressors[fallback]] if fallback in compressors else [],
    )


@pytest.mark.parametrize("now", [f"{s}-{c}" for s in FORMATS for c in PACKERS])
@pytest.mark.parametrize("before", [f"{s}-{c}" for s in FORMATS for c in PACKERS])
def test_what_was_written_before_a_change(before: str, now: str) -> None:
    """It stays readable, whatever the change, of a compressor that is named."""
    serializer, compressor = before.split("-")
    then = now.split("-")
    old, new = make(serializer, compressor), make(then[0], then[1], compressor)
    kinds: list[Any] = [
        PLAIN,
        [],
        {},
        "",
        "short",
        True,
        None,
        0,
        120,
        -40,
        2.5,
        10**20,
    ]
    for value in kinds:
        assert new.loads(stored(old.dumps(value))) == value


@pytest.mark.parametrize(
    "compress",
    [zlib.compress, gzip.compress, lzma.compress],
    ids=lambda f: f.__module__,
)
def test_what_django_redis_compressed(compress: Callable[[bytes], bytes]) -> None:
    """Its compressors of Python's own formats write nothing around the data."""
    data = compress(pickle.dumps(PLAIN))
    kinds = [ZlibCompressor, GzipCompressor, LzmaCompressor]
    for serializer in (None, JSONSerializer):
        assert make_serializer(serializer, fallbacks=kinds).loads(data) == PLAIN


BOMBS = ["zlib", "gzip", "lzma", "zstd", "lz4"]


def compressed(name: str, data: bytes, times: int = 1) -> bytes:
    """Return data as a compressor leaves it, or skip the test if it is not there."""
    made = make("json", name)
    assert isinstance(made, CompressingSerializer)
    assert made.compressor is not None
    for _ in range(times):
        data = made.compressor.compress(data)
    return data


@pytest.mark.parametrize("name", BOMBS)
def test_what_the_settings_do_not_write_is_not_decompressed(name: str) -> None:
    """Whatever it begins with: the error says what it looks like."""
    bomb = compressed(name, json.dumps("x" * 1000).encode())
    others = [other for other in BOMBS if other != name and other != "lz4"]
    for serializer in FORMATS:
        for known in ("none", others[0]):
            if serializer in OPTIONAL and not installed(serializer):
                continue  # pragma: no cover - one environment has it
            with pytest.raises(UnreadableValueError, match="compressor_fallbacks") as e:
                make(serializer, known).loads(bomb)
            assert type(make_compressor(name)).__name__ in str(e.value)


def make_compressor(name: str) -> Any:
    """Return a compressor."""
    return make("json", name).compressor  # type: ignore[attr-defined] # it has one


@pytest.mark.parametrize("name", BOMBS)
def test_one_layer_is_taken_off(name: str) -> None:
    """What was compressed twice is nothing that this package has written."""
    twice = compressed(name, json.dumps("x" * 10_000).encode(), times=2)
    with pytest.raises(UnreadableValueError, match=r"twice.+\(within: ") as info:
        make("json", name).loads(twice)
    assert "OPTIONS" not in str(info.value)


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("serializer", FORMATS)
def test_what_is_wrong_with_compressed_data_is_told(serializer: str, name: str) -> None:
    """That of a compressor that the settings have is not told as another's."""
    if serializer in OPTIONAL and not installed(serializer):
        pytest.skip(f"{serializer} is not installed")  # pragma: no cover
    data = compressed(name, json.dumps("x" * 10_000).encode())
    says = rf"{type(make_compressor(name)).__name__} writes, which OPTIONS have"
    for made in (make(serializer, name), make(serializer, "none", name)):
        for other in (data[:-1], data[: len(data) // 2], data + data):
            with pytest.raises(UnreadableValueError, match=says):
                made.loads(other)


def test_an_error_of_compressed_data_survives_pickling() -> None:
    """As errors do on their way out of a worker process."""
    with pytest.raises(UnreadableValueError) as info:
        JSONSerializer().loads(zlib.compress(b"x"))
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("role", ["compressor", "fallback"])
def test_bombs(name: str, role: str) -> None:
    """A few bytes that become many do so up to the bound, and take no more memory."""
    bomb = compressed(name, b'"' + bytes(50_000_000))
    kind = make_compressor(name)
    roles = {"compressor": kind} if role == "compressor" else {"fallbacks": [kind]}
    bounded = make_serializer(JSONSerializer, **roles, max_value_bytes=100_000)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableValueError, match="more than 100000 once it is"):
            bounded.loads(bomb)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", BOMBS)
def test_values_up_to_the_bound(name: str) -> None:
    """What is exactly as large is written and read; what is larger is not written."""
    kind = make_compressor(name)
    for bound in (1000, 2000):
        made = make_serializer(JSONSerializer, kind, max_value_bytes=bound)
        value = "x" * (bound - 2)
        assert made.loads(made.dumps(value)) == value
        with pytest.raises(ValueError, match=rf"{bound + 1} bytes is too large to be"):
            made.dumps(value + "x")


class Boundless(StrictCompressor):
    """Somebody's own, which knows no bound."""

    def decompress(self, data: bytes) -> bytes:
        """Return a lot."""
        return b"1" * 2000


def test_bombs_of_ones_own() -> None:
    """A compressor that can't stop is not believed at the end."""
    made = make_serializer(JSONSerializer, Boundless, max_value_bytes=1000)
    with pytest.raises(UnreadableValueError, match=r"OPTIONS\['max_value_bytes'\]"):
        made.loads(b"x")


def test_lzma_that_asks_for_memory() -> None:
    """Its header may ask for gigabytes, however little there is to read."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**27 + 2**26}]
    data = lzma.compress(b'"text"', filters=filters)
    made = make_serializer(JSONSerializer, LzmaCompressor)
    with pytest.raises(UnreadableValueError, match="LzmaCompressor"):
        made.loads(data)


@pytest.mark.parametrize("name", BOMBS)
def test_what_breaks_off_or_goes_on(name: str) -> None:
    """Neither is what a compressor has written, and comes back as it is."""
    data, kind = compressed(name, b"text" * 1000), make_compressor(name)
    for other in (data[:-1], data[: len(data) // 2], data + b"more", kind.magic):
        assert kind.decompress(other) is other


def test_text_that_begins_as_zlib_does() -> None:
    """It is told as what it is: nothing that can be read."""
    with pytest.raises(UnreadableValueError, match="something else"):
        PickleSerializer().loads(b"xyz")


def test_plain_data_of_old_pickles() -> None:
    """What sessions and fragments hold is read out of pickles, and safely."""
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    value: dict[str, Any] = {
        "when": [moment, moment.date(), moment.time(), datetime.timedelta(1)],
        "number": [decimal.Decimal("1.5"), 1j],
        "sets": [{1}, frozenset({2}), (3,), b"4"],
        "id": uuid.UUID(int=5),
        "html": mark_safe("<b>"),
    }
    # Older protocols have functions make bytes and sets.
    for protocol in range(4, pickle.HIGHEST_PROTOCOL + 1):
        found = JSONSerializer().loads(pickle.dumps(value, protocol))
        assert found == value
        assert type(found["html"]) is str


class Exploit:
    """What somebody would write into a cache."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Exploit, "ran", True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_code_runs(protocol: int) -> None:
    """A pickle that would run something is refused, by name of what it needs."""
    data = pickle.dumps(Exploit(), protocol)
    made = make_serializer(JSONSerializer, fallbacks=[ZlibCompressor])
    for hidden in (data, zlib.compress(data)):
        with pytest.raises(UnreadableValueError, match="setattr"):
            made.loads(hidden)
    assert not Exploit.ran
    PickleSerializer().loads(data)
    assert Exploit.ran
    Exploit.ran = False


def test_json_is_djangos() -> None:
    """Dates and their like become text; what it does not know is an error at once."""
    serializer = JSONSerializer()
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    data = serializer.dumps({"when": moment, "n": decimal.Decimal("1.5")})
    assert serializer.loads(data) == {"when": "2026-01-02T00:00:00Z", "n": "1.5"}
    assert (serializer.dumps(7), serializer.dumps(True)) == (7, b"true")
    with pytest.raises(TypeError, match="Exploit"):
        serializer.dumps(Exploit())


@fuzz
@given(st.binary())
def test_anything_is_read_or_refused(data: bytes) -> None:
    """Whatever the bytes, a safe serializer has a value or an error of ours."""
    with contextlib.suppress(UnreadableValueError, MissingExtraError):
        JSONSerializer().loads(data)


def test_nesting_without_end() -> None:
    """It is refused like anything else that can't be read."""
    with pytest.raises(UnreadableValueError, match="RecursionError"):
        JSONSerializer().loads(b"[" * 200_000)


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ("zstd", ZstdCompressor),
        ("lz4", Lz4Compressor),
        ("msgpack", MsgPackSerializer),
        ("ormsgpack", OrMsgPackSerializer),
    ],
)
def test_extra_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, extra: str, kind: Callable[[], Any]
) -> None:
    """Choosing it tells which one, and a value of MessagePack does."""
    for module in ("backports", "compression", "lz4", "msgpack", "ormsgpack"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"django-entra-redis\[{extra}\]"):
        kind()
    with pytest.raises(MissingExtraError, match="not installed"):
        PickleSerializer().loads(b"\x81\xa1a\x01")


class Shouting(enum.StrEnum):
    """Text that is no ``str``, and that answers ``str()`` otherwise."""

    YES = "yes"

    __str__ = enum.Enum.__str__


class Point(NamedTuple):
    """A tuple that is none."""

    x: int


class Celsius(float):
    """A number that is no ``float``."""


class Blob(bytes):
    """Bytes that are no ``bytes``."""


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(
        [*Level, Shouting.YES, Point(1), Celsius(1.5), Blob(b"x"), mark_safe("<b>")]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text() | st.integers(0, 9) | st.binary(), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@fuzz
@given(plain_values)
def test_both_packages_write_the_same(value: Any) -> None:
    """So one can be changed for the other, also in a rolling deploy."""
    one, other = make("msgpack", "none"), make("ormsgpack", "none")
    data = one.dumps(value)
    assert other.dumps(value) == data
    assert repr(other.loads(stored(data))) == repr(one.loads(stored(data)))


class Colour(enum.Enum):
    """What stands for a value, and is none."""

    RED = "red"


@dataclasses.dataclass
class Record:
    """Fields with a name each."""

    field: int = 1


@pytest.mark.parametrize("name", ["msgpack", "ormsgpack"])
@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1},
        Colour.RED,
        Record(),
        decimal.Decimal(1),
        datetime.datetime(2026, 1, 1),
        datetime.date(2026, 1, 1),
        uuid.UUID(int=1),
        Exploit(),
    ],
)
def test_what_messagepack_does_not_know(name: str, value: Any) -> None:
    """It is refused where it is written, not read as something else."""
    serializer = make(name, "none")
    for what in (value, [value], {"a": value}):
        with pytest.raises(TypeError, match=type(value).__name__):
            serializer.dumps(what)


@pytest.mark.parametrize("value", [[2**64], {"a": -(2**63) - 1}, "\ud800"])
def test_what_ormsgpack_has_no_bytes_for(value: Any) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(TypeError, match=r"64-bit|surrogates"):
        make("ormsgpack", "none").dumps(value)


@pytest.mark.parametrize("name", FORMATS[1:])
@pytest.mark.parametrize(
    "data",
    [
        *(
            b"\xc0\xc0",
            b"\xa1aX",
            b"\x92\x01\x02\xa3end ",
            b"\x80\xc0",
            b"\xc1",
            b"\xa2a",
        ),
        *(b"\xdd\xff\xff\xff\xff", b"\xa1\xff", b"\x91" * 5000 + b"\xc0"),
    ],
)
def test_what_is_not_one_value_of_messagepack(name: str, data: bytes) -> None:
    """Not even the first of several values is taken for it."""
    if not installed("ormsgpack"):
        pytest.skip("MessagePack is not installed")  # pragma: no cover
    with pytest.raises(UnreadableValueError):
        make(name, "none").loads(data)


@pytest.mark.parametrize("name", ["pickle", "json"])
@pytest.mark.parametrize(
    "data", [b"\xd4\x04x", b"\xc7\x03\x04abc", b"\x91\xd8\x04" + b"x" * 16]
)
def test_other_serializers_read_no_extension_types(name: str, data: bytes) -> None:
    """They would be objects of msgpack's; one changed byte makes one of a pickle."""
    if not installed("msgpack"):
        pytest.skip("msgpack is not installed")  # pragma: no cover
    with pytest.raises(UnreadableValueError):
        make(name, "none").loads(data)


def test_extension_types_of_ones_own() -> None:
    """msgpack knows them, and timestamps; of these, another serializer has dates."""
    msgpack = pytest.importorskip("msgpack")
    serializer = make("msgpack", "none")
    for value in (msgpack.ExtType(4, b"x"), msgpack.Timestamp(5, 6000)):
        assert serializer.loads(serializer.dumps(value)) == value
    found = make("json", "none").loads(serializer.dumps(msgpack.Timestamp(5, 6000)))
    assert found == datetime.datetime.fromtimestamp(5.000006, datetime.UTC)


def timestamps_of_one_hash(count: int) -> list[tuple[int, int]]:
    """Return seconds and nanoseconds whose tuples have the same hash.

    That of a tuple is a chain of reversible steps of 64 bits, one for each item.
    """
    bits, first, second, start = 2**64, *HASH_PRIMES
    undo_first, undo_second = pow(first, -1, bits), pow(second, -1, bits)

    def turned(number: int) -> int:
        number = number * undo_first % bits
        return (number >> 31 | number << 33) % bits

    found: list[tuple[int, int]] = []
    for nano in range(10 * count):
        seconds = (turned(turned(1) - nano * second) - start) * undo_second % bits
        seconds -= bits if seconds >= bits // 2 else 0
        # Integers up to this are their own hash.
        if abs(seconds) < 2**61 - 1:
            found.append((seconds, nano))
    return found[:count]


HASH_PRIMES = (11400714785074694791, 14029467366897019727, 2870177450012600261)


def test_many_timestamps_of_one_hash() -> None:
    """As keys they would be compared each with all others, for hours."""
    msgpack = pytest.importorskip("msgpack")
    chosen = timestamps_of_one_hash(1000)
    assert len(chosen) == 1000
    assert len({hash(one) for one in chosen}) == 1
    for count in (100, 1000):
        data = b"\xde" + struct.pack(">H", count)
        for seconds, nano in chosen[:count]:
            data += b"\xc7\x0c\xff" + struct.pack(">Iq", nano, seconds) + b"\xc0"
        serializer = make("msgpack", "none")
        if count == 100:
            keys = [msgpack.Timestamp(*one) for one in chosen[:count]]
            assert serializer.loads(data) == dict.fromkeys(keys)
            continue
        for hidden in (data, b"\x91" + data):
            with pytest.raises(UnreadableValueError, match="many keys of the same"):
                serializer.loads(hidden)


def test_messagepack_is_read_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a change back to pickles, of a site that has but one of the packages."""
    for missing in ("msgpack", "ormsgpack"):
        data = make("ormsgpack", "none").dumps({1: ["a"]})
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            assert PickleSerializer().loads(data) == {1: ["a"]}


def test_errors_survive_pickling() -> None:
    """As they do on their way out of a worker process."""
    error = pickle.loads(pickle.dumps(MissingExtraError("lz4")))
    assert (error.extra, str(error)) == ("lz4", str(MissingExtraError("lz4")))
