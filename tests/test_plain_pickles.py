"""Plain data out of old pickles, and nothing else out of hostile ones."""

import collections
import contextlib
import datetime
import decimal
import pickle
import struct
import tracemalloc
import uuid
from typing import Any

import pytest
from django.utils.html import conditional_escape
from django.utils.safestring import SafeString, mark_safe

from django_entra_redis import plain_pickles
from django_entra_redis._errors import UnreadableValueError
from django_entra_redis.plain_pickles import MAX_DEPTH
from django_entra_redis.serializers import JSONSerializer

MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
ROW = {"created_at": MOMENT, "user_name": "somebody", "amount": decimal.Decimal("9.9")}


def text(value: str) -> bytes:
    """Return the opcode of short text."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    """Return the opcodes of a type."""
    return text(module) + text(name) + b"\x93"


DATETIME = named("datetime", "datetime")
NEW_UUID = named("uuid", "UUID") + b")\x81"
INT = text("int")
SAFE = named("django.utils.safestring", "SafeString")
read = JSONSerializer().loads


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1, 255, 65535, 2**31, -(2**31), 2**63, 10**600),
        *(0.0, 1.5, float("inf"), 1j, "", "text", "ä\u20ac\U0001f600\n\\", "\udc80"),
        *(b"", b"bytes", b"\x00\xff" * 200, bytearray(), bytearray(b"xy")),
        *((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [[], {}], {}),
        *({"a": 1}, {(1, "x"): [2]}, {"a": 1, "b": {"c": 2}}, set(), {1}, {1, 2}),
        *(frozenset(), frozenset({2}), collections.OrderedDict(b=1, a=2)),
        *(MOMENT, MOMENT.replace(tzinfo=None, fold=1), MOMENT.date()),
        *(MOMENT.time(), MOMENT.timetz().replace(fold=1), datetime.time.max),
        *(datetime.timedelta(1, 2, 3), datetime.timedelta.min),
        datetime.timezone(datetime.timedelta(hours=-5), "EST"),
        datetime.datetime.max.replace(tzinfo=datetime.timezone.min),
        *(decimal.Decimal("NaN"), decimal.Decimal("-1.50"), uuid.UUID(int=2**127)),
        *([ROW] * 3, {"rows": [dict(ROW) for _ in range(3)]}, list(range(3000))),
        *("long" * 5_000, b"long" * 5_000, {str(n): n for n in range(3000)}),
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, int) else None,
)
def test_plain_data(value: Any, protocol: int) -> None:
    """All of it comes back equal and of the same type, whatever the protocol."""
    data = pickle.dumps(value, protocol)
    if protocol < 2 and isinstance(value, uuid.UUID):
        with pytest.raises(UnreadableValueError, match=r"copy_reg\._reconstructor"):
            read(data)
        return
    found = read(data)
    assert type(found) is type(value)
    # Older protocols leave out which of two equal times of the clock it is.
    assert repr(found) == repr(pickle.loads(data))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_safe_to_print(protocol: int) -> None:
    """Whoever writes to the cache may mark anything safe: it is text, and escaped."""
    found = read(pickle.dumps(mark_safe("<script>"), protocol))
    assert type(found) is str
    assert conditional_escape(found) == "&lt;script&gt;"


ATTRIBUTES = b"}" + text("__html__") + text("<script>") + b"s"


@pytest.mark.parametrize(
    "attack",
    [
        SAFE + b"N" + ATTRIBUTES + b"\x86b.",
        SAFE + ATTRIBUTES + b"b.",
        SAFE + b"0" + text("x") + b".",
        SAFE + b".",
        b"]" + SAFE + b"a.",
        SAFE + text("<b>") + b"\x85\x81N" + ATTRIBUTES + b"\x86b.",
        named("uuid", "UUID") + b"N" + ATTRIBUTES + b"\x86b.",
        named("uuid", "UUID") + b")\x81N" + ATTRIBUTES + b"\x86b.",
        named("datetime", "datetime") + b"N" + ATTRIBUTES + b"\x86b.",
    ],
)
def test_no_class_is_changed(attack: bytes) -> None:
    """None is handed out, and none gets an attribute."""
    before = [dict(vars(kind)) for kind in (SafeString, uuid.UUID)]
    with pytest.raises(UnreadableValueError):
        read(b"\x80\x04" + attack)
    assert before == [dict(vars(kind)) for kind in (SafeString, uuid.UUID)]


#: A tuple that has the one before it twice, and so on; with the opcodes that take what
#: is remembered, and with the one that repeats.
DAG = b"N\x94" + b"".join(b"h%c\x86\x94" % n for n in range(60))
DUP = b"N" + b"2\x86" * 60
#: Each list gets what is in it when it is in another already.
LATE = b"]\x94" * 60 + b"".join(b"h%ch%ca" % (n, n + 1) * 2 for n in range(59))


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (b"}" + b")" + b"\x85" * 300_000 + b"Ns.", "out of all proportion"),
        (b"}" + b"N" + b"\x85" * 300_000 + b"Ns.", "out of all proportion"),
        (b"\x8f(" + b"N" + b"\x85" * 300_000 + b"\x90.", "out of all proportion"),
        (b"]" * 300_000 + b"a" * 299_999 + b".", "out of all proportion"),
        (b"}" + DAG + b"Ns.", "out of all proportion"),
        (b"(" + DAG + b"\x91.", "out of all proportion"),
        (DAG + b".", "out of all proportion"),
        (b"}" + DUP + b"Ns.", "ValueError"),
        (LATE + b"h\x00.", "can't be read|out of all proportion"),
        (b"]" + b"Na" * 500_000 + b".", "out of all proportion"),
        (b"]\x94h\x00a.", "out of all proportion"),
        (b"}\x94Nh\x00s.", "out of all proportion"),
        (b"](" + text("x" * 200) + b"\x94" + b"h\x00" * 5000 + b"e.", "out of all pro"),
        (b"](" + b"]" * 9000 + b"e" + b"a.", "IndexError|ValueError"),
        (b"Nr\xff\xff\xff\x7f\x30.", "ValueError"),
        (b"j\xff\xff\xff\x7f.", "KeyError"),
        (b"X\xff\xff\xff\xff.", "ValueError"),
        (b"\x8d" + b"\xff" * 8 + b".", "ValueError"),
        (b"\x8e" + b"\xff" * 7 + b"\x0f.", "ValueError"),
        (b"\x8b\xff\xff\xff\x7f.", "ValueError"),
        (named("builtins", "bytearray") + b"J\x00\x00\x00\x7f\x85R.", "TypeError"),
        (named("builtins", "bytes") + b"J\x00\x00\x00\x7f\x85R.", "TypeError"),
    ],
)
def test_nothing_grows_without_end(attack: bytes, says: str) -> None:
    """Neither depth nor hashing nor memory: it is refused at once."""
    with pytest.raises(UnreadableValueError, match=says):
        read(b"\x80\x04" + attack)


def taken(attack: bytes) -> int:
    """Return the bytes of memory that it takes at most to read or refuse a pickle."""
    tracemalloc.start()
    try:
        with contextlib.suppress(UnreadableValueError):
            read(attack)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def called(name: str, arguments: bytes, call: bytes) -> bytes:
    """Return a pickle that remembers a type and its arguments, and calls it often."""
    start = b"\x80\x02(" + named(*name.rsplit(".", 1)) + b"q\x00" + arguments + b"q\x01"
    return start + (b"h\x00h\x01" + call) * 500 + b"l."


@pytest.mark.parametrize("call", [b"R", b"\x81"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("datetime.timedelta", b"(" + b"N" * 5000 + b"t"),
        ("builtins.set", b"](" + b"N" * 5000 + b"e\x85"),
        ("builtins.frozenset", b"(" + b"N" * 5000 + b"l\x85"),
        ("builtins.frozenset", b"(" + b"N" * 5000 + b"t\x85"),
    ],
)
def test_arguments_are_not_copied(name: str, arguments: bytes, call: bytes) -> None:
    """A call takes as much memory as its opcodes, however many arguments it has."""
    assert taken(called(name, arguments, call)) < 5_000_000
    # It is refused for what it makes, or breaks off; either way it had to be read.
    assert taken(called(name, arguments, call)[:-2]) < 5_000_000


@pytest.mark.parametrize(
    "item",
    [
        *(b"]", b"}", b"\x8f", b"]Na", b"}NNs", b"\x8f(K\x01K\x02K\x03K\x04K\x05\x90"),
        *(b"(\x91", named("collections", "OrderedDict") + b")R"),
        *(named("builtins", "bytearray") + b")R", NEW_UUID + b"}" + INT + b"K\x01sb"),
        named("decimal", "Decimal") + text("1") + b"\x85R",
    ],
)
def test_shared_values_take_no_more_memory_than_others(item: bytes) -> None:
    """A shared container is built anew each time, at two bytes each."""
    lists = b"](" + item + b"q\x00" + b"h\x00" * 999 + b"eq\x01"
    attack = b"\x80\x02](" + lists + b"h\x01" * 60 + b"X\x10\x27\0\0" + b"a" * 10_000
    with pytest.raises(UnreadableValueError, match="out of all proportion"):
        read(attack + b"e.")


def test_padding_buys_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text makes room for text, but not for more values than there may be opcodes."""
    monkeypatch.setattr(plain_pickles, "MAX_OPCODES", 10_000)
    padding = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20)
    lists = b"](" + b"}" + b"q\x00" + b"h\x00" * 999 + b"eq\x01"
    attack = b"\x80\x02](" + lists + b"h\x01" * 30 + padding + b"e."
    with pytest.raises(UnreadableValueError, match="out of all proportion"):
        read(attack)


@pytest.mark.parametrize(
    "literal",
    [b"\x8f", b"}", b"]", b")", b"N", b"(\x91", b"K\x01", b"}(NNu", b"C\x01x"],
)
def test_what_shares_nothing_is_read(literal: bytes) -> None:
    """Many small values are in proportion, whatever they are."""
    count = 20_000 // len(literal)
    assert len(read(b"\x80\x04](" + literal * count + b"e.")) == count


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        list(range(50_000)),
        [{} for _ in range(2_000)],
        [{"id": n, "name": f"row {n}", "tags": [], "at": MOMENT} for n in range(2_000)],
        [(n, MOMENT, decimal.Decimal(n), MOMENT.date()) for n in range(2_000)],
        [[MOMENT] * 5_000, [MOMENT.date()] * 5_000, [MOMENT.time()] * 5_000],
        [[decimal.Decimal("0.00")] * 5_000, [(0, 1)] * 5_000, ["x" * 30] * 5_000],
        {n: {n} for n in range(5_000)},
        "x" * 3_000_000,
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) else None,
)
def test_large_values(value: Any, protocol: int) -> None:
    """What a site caches is in proportion, also where it repeats what it has."""
    assert read(pickle.dumps(value, protocol)) == value


def test_memory_is_not_asked_for_by_an_index() -> None:
    """A large one costs no more than a small one."""
    assert read(b"\x80\x04Nr\xff\xff\xff\x7f.") is None


@pytest.mark.parametrize("opcode", [b"\x90", b"\x91"])
def test_many_keys_of_one_hash(opcode: bytes) -> None:
    """They would be compared each with all others, for hours."""
    prime = 2**61 - 1
    numbers = [
        struct.pack("<BB10s", 0x8A, 10, (n * prime).to_bytes(10, "little"))
        for n in range(5000)
    ]
    start = b"\x80\x04" + (b"\x8f(" if opcode == b"\x90" else b"(")
    for attack in (
        start + b"".join(numbers) + opcode + b".",
        b"\x80\x04}(" + b"".join(number + b"N" for number in numbers) + b"u.",
        b"\x80\x04}(" + b"".join(number + b"\x85N" for number in numbers) + b"u.",
    ):
        with pytest.raises(UnreadableValueError, match="many keys of the same hash"):
            read(attack)


def test_depth() -> None:
    """What is nested as deep as data may be is read."""
    value: list[Any] = []
    for _ in range(MAX_DEPTH):
        value = [value]
    assert read(pickle.dumps(value)) == value
    with pytest.raises(UnreadableValueError, match=f"more than {MAX_DEPTH} deep"):
        read(pickle.dumps([value]))


@pytest.mark.parametrize(
    "attack",
    [
        named("datetime", "date") + b"C\x04\x00\x00\x01\x01\x85R.",
        named("datetime", "date") + b"C\x04\x07\xea\x01\xff\x85R.",
        named("datetime", "date") + b"C\x03\x07\xea\x01\x85R.",
        DATETIME + b"C\x0a\x07\xea\x01\x01\x18\x00\x00\x00\x00\x00\x85R.",
        DATETIME + b"C\x0a\x07\xea\x01\x01\x00\x00\x00\xff\xff\xff\x85R.",
        DATETIME + b"C\x0a\x07\xea\x01\x01" + bytes(6) + b"K\x01\x86R.",
        named("datetime", "time") + b"C\x06\x7f\x00\x00\x00\x00\x00\x85R.",
        named("datetime", "time") + b"C\x05\x00\x00\x00\x00\x00\x85R.",
        named("datetime", "timezone") + b"K\x01\x85R.",
        named("decimal", "Decimal") + b"K\x01\x85R.",
        NEW_UUID + b".",
        NEW_UUID + b"}" + text("int") + b"G?\xf0" + bytes(6) + b"sb.",
        NEW_UUID + b"}" + text("int") + b"J\xff\xff\xff\xffsb.",
        named("_codecs", "encode") + text("x") + text("rot13") + b"\x86R.",
        named("collections", "OrderedDict") + b"K\x01\x85R.",
        b"K\x01K\x01\x93.",
        b"K\x01)R.",
        b"]K\x01K\x01s.",
        b"(K\x01d.",
        b"NN.",
        b"(.",
    ],
)
def test_nonsense(attack: bytes) -> None:
    """What no pickler has written makes no value that should not be."""
    with pytest.raises(UnreadableValueError):
        read(b"\x80\x04" + attack)


def test_the_name_that_is_refused_is_told() -> None:
    """In print, whoever has made it up."""
    attack = b"\x80\x04" + named("os\n\x1b[2J", "system") + b"."
    with pytest.raises(UnreadableValueError, match="needs 'os") as info:
        read(attack)
    assert str(info.value).isprintable()
