"""Plain data out of a pickle that anybody may have written.

Python's own unpickler is not fit for hostile bytes, whatever classes it is allowed: it
sets attributes on classes (``BUILD``), hashes what is nested without end, and allocates
what an index asks for. Here the opcodes are read one by one (:mod:`pickletools`), into
a description that is then built: a tree of values as JSON could say it, and a few
types besides. What a pickle shares is built once for each place where it stands, and
counts each time.
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

#: Steps that a pickle may take, a second or two of them.
MAX_OPCODES = 1_000_000
#: Lists, dictionaries and their like that may lie in one another.
MAX_DEPTH = 100
#: Characters, bytes and values that may come out of each byte, for the sake of what is
#: shared (a list of rows has the same keys in each), and out of any pickle.
GROWTH = 16
HEADROOM = 100_000
#: Keys of one dictionary or set that may have the same hash: each is compared with all
#: others.
MAX_COLLISIONS = 100


@dataclass(slots=True, eq=False)
class _Made:
    """A value to be built.

    Parameters:
        name: its type.
        items: arguments of the type; of a list, tuple or set what is in it.
        pairs: keys and values.
        state: what ``BUILD`` sets.
    """

    name: str
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None


@dataclass(frozen=True, slots=True)
class _Name:
    """A type that a pickle names."""

    name: str


class _Mark:
    """Stands on the stack where the items of a list or its like begin."""


_MARK = _Mark()


def loads(data: bytes) -> Any:
    """Return the plain data in a pickle.

    Parameters:
        data: the pickle, of any protocol.

    Raises:
        UnreadableValueError: it names what is no plain data, or is out of proportion.
        Exception: it is no pickle, or one that nothing has written.
    """
    return _Builder(GROWTH * len(data) + HEADROOM).build(_Reader().read(data), 0)


def _out_of_proportion() -> UnreadableValueError:
    return UnreadableValueError(
        f"A value in the cache was pickled and is out of all proportion: more than "
        f"{MAX_DEPTH} deep, of more than {MAX_OPCODES} parts, or much larger than its "
        "bytes tell. Delete it."
    )


# -- reading the opcodes


class _Reader:
    """Carries out a pickle's opcodes; what they make is described, not made."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """Return the description of what a pickle holds.

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
        """Begin the items of something."""
        self.stack.append(_MARK)

    def marked(self) -> list[Any]:
        """Take what lies above the last mark."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def memoize(self, index: int | None) -> None:
        """Remember what lies on top."""
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Lay what is remembered on top."""
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
        """Return what lies on top, which has to be of a type."""
        made = self.stack[-1]
        if not isinstance(made, _Made) or made.name not in names:
            raise ValueError(f"there is no {names[0]} to add to")
        return made

    def dict(self, _: Any) -> None:
        """Make a dictionary of what lies above the mark."""
        self.stack.append(_Made("dict", pairs=_pairs(self.marked())))

    def global_(self, argument: str) -> None:
        """Name a type."""
        self.name(*argument.split(" ", 1))

    def stack_global(self, _: Any) -> None:
        """Name a type by what lies on top."""
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a type's name is text")
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        """Lay a type on top, if it is one of plain data."""
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in _TYPES:
            raise UnreadableValueError(
                f"A value in the cache was pickled and needs {full[:100]!a}, which "
                "OPTIONS['serializer'] does not read, since a pickle may run any code. "
                "Delete it, or give the cache another KEY_PREFIX or VERSION."
            )
        self.stack.append(_Name(full))

    def call(self, _: Any) -> None:
        """Make something of a type and its arguments."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Name) or arguments.name != "tuple":
            raise ValueError("there is nothing to call")
        made = _Made(kind.name, list(arguments.items))
        if kind.name in ("builtins.frozenset", "builtins.set"):
            # Of protocols that have no opcode for it: of a list.
            (items,) = made.items
            made.items = list(items.items)
        self.stack.append(made)

    def build(self, _: Any) -> None:
        """Set the state of something, which UUIDs alone have."""
        state = self.stack.pop()
        self.top("uuid.UUID").state = state


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _empty(name: str) -> Callable[[_Reader, Any], None]:
    """Return what makes something with nothing in it."""
    return lambda reader, _: reader.stack.append(_Made(name))


def _of_marked(name: str) -> Callable[[_Reader, Any], None]:
    """Return what makes something of what lies above the mark."""
    return lambda reader, _: reader.stack.append(_Made(name, reader.marked()))


def _tuple(length: int) -> Callable[[_Reader, Any], None]:
    """Return what makes a tuple of the topmost items."""

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
#: What the other opcodes do. Those that are missing make what is no plain data.
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
    """Makes values of their description.

    Parameters:
        left: characters, bytes and values that they may have altogether.
    """

    def __init__(self, left: int) -> None:
        self.left = left

    def build(self, made: Any, depth: int) -> Any:
        """Return the value that is described.

        Parameters:
            made: the description.
            depth: how many it lies in.
        """
        self.left -= 1 + (len(made) if isinstance(made, str | bytes | bytearray) else 0)
        if self.left < 0 or depth > MAX_DEPTH:
            raise _out_of_proportion()
        if not isinstance(made, _Made):
            if isinstance(made, _Name | _Mark):
                raise ValueError("a type is no plain data")
            return made
        items = [self.build(item, depth + 1) for item in made.items]
        if made.name in ("dict", "collections.OrderedDict"):
            keys = _unlike([self.build(key, depth + 1) for key, _ in made.pairs])
            values = [self.build(value, depth + 1) for _, value in made.pairs]
            kind: Any = dict if made.name == "dict" else OrderedDict
            return kind(*items, zip(keys, values, strict=True))
        if made.name == "uuid.UUID":
            return UUID(int=index(self.build(made.state, depth + 1)["int"]))
        return _TYPES[made.name](items)


def _unlike(keys: list[Any]) -> list[Any]:
    """Return keys of which not too many have the same hash.

    Numbers, and what is made of them, can be chosen so that they do.
    """
    if len(keys) - len({hash(key) for key in keys}) > MAX_COLLISIONS:
        raise UnreadableValueError(
            "A value in the cache was pickled and has many keys of the same hash. "
            "Delete it."
        )
    return keys


def _bytes_of_text(items: list[Any]) -> bytes:
    """Return bytes as older protocols have them."""
    text, encoding = items
    if encoding != "latin1":
        raise ValueError("bytes are pickled as Latin-1")
    encoded: bytes = text.encode("latin-1")
    return encoded


def _bytearray(items: list[Any]) -> bytearray:
    # Of a number it would be that long.
    return bytearray(b"".join(items))


def _text(items: list[Any]) -> str:
    """Return the text alone: whoever has written it may have marked anything safe."""
    return "".join(items)


def _decimal(items: list[Any]) -> Decimal:
    return Decimal(_text(items))


def _complex(items: list[Any]) -> complex:
    real, imaginary = items
    return complex(float(real), float(imaginary))


def _date(items: list[Any]) -> date:
    # Given bytes, these types would believe them; given numbers, they look.
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


#: The types of plain data by the names that pickles have for them, and what makes one
#: of its arguments; dictionaries and UUIDs are made above.
_TYPES: Mapping[str, Callable[[list[Any]], Any]] = {
    "list": lambda items: items,
    "tuple": tuple,
    "_codecs.encode": _bytes_of_text,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": lambda items: b"".join(items),
    "builtins.complex": _complex,
    "builtins.frozenset": lambda items: frozenset(_unlike(items)),
    "builtins.set": lambda items: set(_unlike(items)),
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
_RENAMED = {"__builtin__": "builtins"}
