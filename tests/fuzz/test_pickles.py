"""Pickles that anybody may have written, for the serializers that are safe."""

import contextlib
import datetime
import decimal
import pickle
import uuid
from collections import OrderedDict
from typing import Any

from django.utils.safestring import SafeString
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_entra_redis._errors import MissingExtraError, UnreadableValueError
from django_entra_redis.plain_pickles import GROWTH, HEADROOM, MAX_DEPTH, loads
from django_entra_redis.serializers import JSONSerializer, _read

KINDS = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(tuple, list, dict, OrderedDict, set, frozenset, decimal.Decimal, uuid.UUID),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta),
    datetime.timezone,
)
hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.dates()
    | st.datetimes(timezones=st.just(datetime.UTC))
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids(),
    lambda inner: (
        st.tuples(inner) | st.tuples(inner, inner) | st.frozensets(inner, max_size=3)
    ),
    max_leaves=4,
)
plain = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4).map(OrderedDict)
        | st.sets(hashable, max_size=3)
        # The same object several times, as a pickle can say it.
        | st.builds(lambda shared, times: [shared] * times, inner, st.integers(2, 5))
    ),
    max_leaves=10,
)
#: Names that are allowed, and some that are not.
names = st.sampled_from(
    [
        *("datetime datetime", "datetime date", "datetime time", "datetime timedelta"),
        *(
            "datetime timezone",
            "uuid UUID",
            "decimal Decimal",
            "collections OrderedDict",
        ),
        *("builtins set", "builtins frozenset", "builtins complex", "builtins bytes"),
        *("builtins bytearray", "_codecs encode", "builtins getattr", "os system"),
        "django.utils.safestring SafeString",
    ]
)
opcodes = st.one_of(
    st.sampled_from(b"()[]{}lduteasNb0122\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94RQob\x81")
    .map(lambda code: bytes([code])),
    st.builds(b"K%c".__mod__, st.integers(0, 255)),
    st.builds(lambda code, index: b"%c%c" % (code, index),
              st.sampled_from(b"hq"), st.integers(0, 8)),
    st.builds(lambda code, index: b"%c%b" % (code, index.to_bytes(4, "little")),
              st.sampled_from(b"jrJ"), st.integers(0, 2**32 - 1)),
    st.binary(max_size=12).map(lambda data: b"C%c%b" % (len(data), data)),
    st.binary(max_size=12).map(lambda data: b"\x8a%c%b" % (len(data), data)),
    st.sampled_from([b"int", b"x", b"latin1", b""]).map(
        lambda data: b"\x8c%c%b" % (len(data), data)
    ),
    names.map(lambda name: b"c%b\n" % name.encode().replace(b" ", b"\n")),
    st.binary(max_size=2),
)  # fmt: skip
programs = st.lists(opcodes, max_size=40).map(b"".join)


def look(value: Any, depth: int = 0) -> int:
    """Return how many values there are; fail on what is no plain data."""
    assert type(value) in KINDS
    assert depth <= MAX_DEPTH
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    return 1 + sum(look(item, depth + 1) for item in inner)


@settings(deadline=None)
@given(plain, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(value: Any, protocol: int) -> None:
    """Whatever it is, and whatever is shared in it."""
    data = pickle.dumps(value, protocol)
    found = JSONSerializer().loads(data)
    assert found == pickle.loads(data)
    look(found)


@settings(deadline=None)
@given(st.sampled_from([b"", b"\x80\x02", b"\x80\x04"]), programs)
def test_any_opcodes(start: bytes, program: bytes) -> None:
    """Plain data comes of them, or an error of ours; no class changes."""
    before = dict(vars(SafeString))
    data = start + program + b"."
    with contextlib.suppress(UnreadableValueError, MissingExtraError):
        assert look(JSONSerializer().loads(data)) <= GROWTH * len(data) + HEADROOM
    assert before == dict(vars(SafeString))


@settings(deadline=None)
@given(plain, st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1))
# As MessagePack, it begins as an extension type.
@example(value=(None, 256), changes=[(0, 0xD8)])
def test_changed_pickles(value: Any, changes: list[tuple[int, int]]) -> None:
    """A pickle with other bytes in some places is no worse."""
    data = bytearray(pickle.dumps(value))
    for place, byte in changes:
        data[place % len(data)] = byte
    with contextlib.suppress(UnreadableValueError, MissingExtraError):
        look(_read(bytes(data), loads))
