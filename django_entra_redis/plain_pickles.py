"""Reads plain data from pickles that anybody may have written.

Python's own unpickler is not fit for hostile bytes, even with a list of allowed
classes: it sets attributes on classes (``BUILD``), hashes values that are nested
without end, and allocates as much memory as an index asks for. Here the opcodes are
read one by one (:mod:`pickletools`) into a description, from which the value is then
built: a tree of JSON's types and a few others. A value that a pickle refers to several
times is built anew each time, and counts each time.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from operator import index
from typing import Any
from uuid import UUID

from ._errors import UnreadableValueError

#: Opcodes that a pickle may have: they take a second or two to read.
MAX_OPCODES = 1_000_000
#: Levels of lists, dictionaries and other containers in one another.
MAX_DEPTH = 100
#: Characters and bytes that a pickle may make, and places (see ``_PLACES``): for each
#: of its bytes, since values may be shared (a list of rows repeats their keys); and in
#: any case.
GROWTH = 16
HEADROOM = 100_000
#: Keys of one dictionary or set that may have the same hash as another one: each is
#: compared with all others of that hash.
MAX_COLLISIONS = 100


@dataclass(slots=True, eq=False)
class _Made:
    """The description of a value that is not built yet.

    Parameters:
        name: its type's name, with the module.
        items: arguments for the type; the items of a list, tuple or set.
        pairs: a dictionary's keys and values.
        state: the argument of ``BUILD``.
    """

    name: str
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None


@dataclass(frozen=True, slots=True)
class _Name:
    """The name of a type in a pickle."""

    name: str


class _Mark:
    """Marks on the stack where the items of a container begin."""


_MARK = _Mark()


def loads(data: bytes) -> Any:
    """Return the plain data in a pickle.

    Parameters:
        data: the pickle, of any protocol.

    Raises:
        UnreadableValueError: the pickle names a type that is no plain data, or makes
            far more than its size tells.
        Exception: the bytes are no pickle, or one that no pickler writes.
    """
    made = _Reader().read(data)
    # No opcode takes more places than this, unless the value that it makes is shared.
    places = GROWTH * min(len(data), MAX_OPCODES) + HEADROOM
    return _Builder(places, GROWTH * len(data) + HEADROOM).build(made, 0)


def _out_of_proportion() -> UnreadableValueError:
    return UnreadableValueError(
        f"A value in the cache was pickled and is out of all proportion: more than "
        f"{MAX_DEPTH} deep, of more than {MAX_OPCODES} parts, or much larger than its "
        "bytes tell. Delete it."
    )


# -- reading the opcodes


class _Reader:
    """Carries out a pickle's opcodes, on descriptions in place of values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """Return the description of a pickle's value.

        Raises:
            Exception: as :func:`loads`.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                raise _out_of_proportion()
            name = opcode.name
            if name in _ATOMS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name not in _IGNORED:
                raise ValueError(f"a pickle of plain data has no {name}")
        (value,) = self.stack
        return value

    def mark(self, _: Any) -> None:
        """Put a mark on the stack."""
        self.stack.append(_MARK)

    def marked(self) -> list[Any]:
        """Pop the mark and return the items above it."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def memoize(self, index: int | None) -> None:
        """Store the top of the stack in the memo."""
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Push an item of the memo."""
        self.stack.append(self.memo[index])

    def append(self, _: Any) -> None:
        """Add an item to a list."""
        item = self.stack.pop()
        self.top("list").items.append(item)

    def appends(self, _: Any) -> None:
        """Add items to a list."""
        items = self.marked()
        self.top("list").items.extend(items)

    def add_items(self, _: Any) -> None:
        """Add items to a set."""
        items = self.marked()
        self.top("builtins.set").items.extend(items)

    def set_item(self, _: Any) -> None:
        """Add a pair to a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self.top("dict", "collections.OrderedDict").pairs.append((key, value))

    def set_items(self, _: Any) -> None:
        """Add pairs to a dictionary."""
        pairs = _pairs(self.marked())
        self.top("dict", "collections.OrderedDict").pairs.extend(pairs)

    def top(self, *names: str) -> _Made:
        """Return the top of the stack, which must be of one of these types."""
        made = self.stack[-1]
        if not isinstance(made, _Made) or made.name not in names:
            raise ValueError(f"there is no {names[0]} to add to")
        return made

    def dict(self, _: Any) -> None:
        """Push a dictionary of the items above the mark."""
        self.stack.append(_Made("dict", pairs=_pairs(self.marked())))

    def global_(self, argument: str) -> None:
        """Push the type that the argument names."""
        self.name(*argument.split(" ", 1))

    def stack_global(self, _: Any) -> None:
        """Push the type that the two topmost items name."""
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a type's name is text")
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        """Push a type, if it is one of plain data."""
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in _TYPES:
            raise UnreadableValueError(
                f"A value in the cache was pickled and needs {full[:100]!a}, which "
                "OPTIONS['serializer'] does not read, since a pickle may run any code. "
                "Delete it, or give the cache another KEY_PREFIX or VERSION."
            )
        self.stack.append(_Name(full))

    def call(self, _: Any) -> None:
        """Push the value that a type makes of its arguments."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Name) or arguments.name != "tuple":
            raise ValueError("there is nothing to call")
        # Nothing is copied: two bytes may call a type with thousands of arguments anew.
        items: list[Any] = arguments.items
        if kind.name in ("builtins.frozenset", "builtins.set"):
            # Protocols without an opcode for sets make them of a list.
            (listed,) = items
            items = listed.items
        self.stack.append(_Made(kind.name, items))

    def build(self, _: Any) -> None:
        """Set a value's state; of plain data, UUIDs alone have one."""
        state = self.stack.pop()
        self.top("uuid.UUID").state = state


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _empty(name: str) -> Callable[[_Reader, Any], None]:
    """Return the action that pushes an empty container."""
    return lambda reader, _: reader.stack.append(_Made(name))


def _of_marked(name: str) -> Callable[[_Reader, Any], None]:
    """Return the action that pushes a container of the items above the mark."""
    return lambda reader, _: reader.stack.append(_Made(name, reader.marked()))


def _tuple(length: int) -> Callable[[_Reader, Any], None]:
    """Return the action that pushes a tuple of the topmost items."""

    def make(reader: _Reader, _: Any) -> None:
        items = [reader.stack.pop() for _ in range(length)]
        reader.stack.append(_Made("tuple", items[::-1]))

    return make


_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = {"PROTO", "FRAME", "STOP"}
#: Opcodes whose argument is the value.
_ATOMS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
#: The actions of all other opcodes. Those that are missing make no plain data.
_ACTIONS: Mapping[str, Callable[[_Reader, Any], None]] = {
    "MARK": _Reader.mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Reader.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Reader.get),
    "EMPTY_LIST": _empty("list"),
    "EMPTY_DICT": _empty("dict"),
    "EMPTY_SET": _empty("builtins.set"),
    "EMPTY_TUPLE": _empty("tuple"),
    "LIST": _of_marked("list"),
    "TUPLE": _of_marked("tuple"),
    "FROZENSET": _of_marked("builtins.frozenset"),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "DICT": _Reader.dict,
    "APPEND": _Reader.append,
    "APPENDS": _Reader.appends,
    "ADDITEMS": _Reader.add_items,
    "SETITEM": _Reader.set_item,
    "SETITEMS": _Reader.set_items,
    "GLOBAL": _Reader.global_,
    "STACK_GLOBAL": _Reader.stack_global,
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "BUILD": _Reader.build,
}


# -- building what they describe


class _Builder:
    """Builds values from their descriptions.

    Parameters:
        places: how many may still be taken, see ``_PLACES``.
        characters: characters and bytes that may still be built.
    """

    def __init__(self, places: int, characters: int) -> None:
        self.places = places
        self.characters = characters

    def build(self, made: Any, depth: int) -> Any:
        """Return the value that is described.

        Parameters:
            made: the description.
            depth: the number of containers around it.
        """
        if depth > MAX_DEPTH:
            raise _out_of_proportion()
        if not isinstance(made, _Made):
            if isinstance(made, str | bytes | bytearray):
                self.characters -= len(made)
                if self.characters < 0:
                    raise _out_of_proportion()
            elif isinstance(made, _Name | _Mark):
                raise ValueError("a type is no plain data")
            return made
        self.places -= _PLACES.get(made.name, 4) + len(made.items) + 2 * len(made.pairs)
        if self.places < 0:
            raise _out_of_proportion()
        items = [self.build(item, depth + 1) for item in made.items]
        if made.name in ("dict", "collections.OrderedDict"):
            keys = unlike([self.build(key, depth + 1) for key, _ in made.pairs])
            values = [self.build(value, depth + 1) for _, value in made.pairs]
            kind: Any = dict if made.name == "dict" else OrderedDict
            return kind(*items, zip(keys, values, strict=True))
        if made.name == "uuid.UUID":
            return UUID(int=index(self.build(made.state, depth + 1)["int"]))
        return _TYPES[made.name](items)


def unlike(keys: list[Any]) -> list[Any]:
    """Return the keys, unless too many have the same hash.

    An attacker can choose numbers so that they do, and tuples and dates of them.

    Raises:
        UnreadableValueError: too many have.
    """
    if len(keys) - len({hash(key) for key in keys}) > MAX_COLLISIONS:
        raise UnreadableValueError(
            "A value in the cache has many keys of the same hash. Delete it."
        )
    return keys


def _bytes_of_text(items: list[Any]) -> bytes:
    """Return bytes from the form of older protocols: Latin-1 text."""
    text, encoding = items
    if encoding != "latin1":
        raise ValueError("bytes are pickled as Latin-1")
    encoded: bytes = text.encode("latin-1")
    return encoded


def _bytearray(items: list[Any]) -> bytearray:
    # bytearray(number) would allocate that many bytes.
    return bytearray(b"".join(items))


def _text(items: list[Any]) -> str:
    """Return a plain ``str``: its writer may have marked any text as safe."""
    return "".join(items)


def _decimal(items: list[Any]) -> Decimal:
    return Decimal(_text(items))


def _complex(items: list[Any]) -> complex:
    real, imaginary = items
    return complex(float(real), float(imaginary))


def _date(items: list[Any]) -> date:
    # These types do not check a pickled state of bytes; they do check numbers.
    (state,) = items
    high, low, month, day = state
    return date(high << 8 | low, month, day)


def _time(items: list[Any]) -> time:
    state, *zone = items
    hour, *rest = state
    return time(hour & 0x7F, *_clock(*rest), *_zone(*zone), fold=hour >> 7)


def _datetime(items: list[Any]) -> datetime:
    state, *zone = items
    high, low, month, day, hour, *rest = state
    year, fold = high << 8 | low, month >> 7
    return datetime(
        year, month & 0x7F, day, hour, *_clock(*rest), *_zone(*zone), fold=fold
    )


def _clock(minute: int, second: int, *micro: int) -> tuple[int, int, int]:
    high, middle, low = micro
    return minute, second, high << 16 | middle << 8 | low


def _zone(*zone: Any) -> tuple[tzinfo, ...]:
    return zone


#: The types of plain data by their names in pickles, with the function that makes one
#: of its arguments. ``_Builder`` makes dictionaries and UUIDs itself.
_TYPES: Mapping[str, Callable[[list[Any]], Any]] = {
    "list": lambda items: items,
    "tuple": tuple,
    "_codecs.encode": _bytes_of_text,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": lambda items: b"".join(items),
    "builtins.complex": _complex,
    "builtins.frozenset": lambda items: frozenset(unlike(items)),
    "builtins.set": lambda items: set(unlike(items)),
    "collections.OrderedDict": lambda items: None,
    "datetime.date": _date,
    "datetime.datetime": _datetime,
    "datetime.time": _time,
    "datetime.timedelta": lambda items: timedelta(*items),
    "datetime.timezone": lambda items: timezone(*items),
    "decimal.Decimal": _decimal,
    "django.utils.safestring.SafeString": _text,
    "uuid.UUID": lambda items: None,
}
#: Places that a value takes beside one for each of its items: of 16 bytes, the size of
#: most other containers being 4. A place less than ``GROWTH`` at most, since the value
#: is an item, too.
_PLACES: Mapping[str, int] = {
    "builtins.frozenset": 15,
    "builtins.set": 15,
    "collections.OrderedDict": 15,
    "decimal.Decimal": 7,
    "dict": 12,
}
_RENAMED = {"__builtin__": "builtins"}
