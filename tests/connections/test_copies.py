"""The store of copies: pure, with a clock of the test's."""

import itertools
import os
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import ref

import pytest

from django_entra_redis.connections import copies as copies_module
from django_entra_redis.connections.copies import (
    COLD_AFTER,
    COLD_READS,
    MOST_COLD,
    OVERHEAD,
    Copies,
    Copy,
    Fill,
)

NEVER = float("inf")
#: Bytes that count for an empty value of a key of one letter.
ONE = 1 + OVERHEAD


def keep(
    copies: Copies, key: str, data: bytes = b"", until: float = NEVER, owner: str = "o"
) -> None:
    """Have a value come."""
    copies.end(copies.begin(key, owner), data, until)


def good(copies: Copies, key: str, now: float) -> Copy | None:
    """Return a copy that is good, and use it."""
    copy = copies.peek(key)
    return copy if copy is not None and copies.use(key, copy, now) else None


def held(copies: Copies) -> set[str]:
    """Return the keys that there are copies of."""
    return {key for key in "abcdefgh" if copies.owner(key) is not None}


def test_a_copy_lives_as_long_as_its_key() -> None:
    """Not a moment longer, on the clock that it is asked with."""
    copies = Copies(10_000, 1000)
    keep(copies, "a", b"1", until=5.0)
    copy = good(copies, "a", 4.999)
    assert copy is not None
    assert copy.data == b"1"
    assert good(copies, "a", 5.0) is None
    assert (len(copies), copies.bytes, copies.hits) == (0, 0, 1)
    assert good(copies, "never there", 0.0) is None


def test_a_copy_that_goes_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have dropped it, or put another one in its place."""
    copies = Copies(10_000, 1000)
    keep(copies, "a", b"old")
    old = copies.peek("a")
    assert old is not None
    keep(copies, "a", b"new")
    assert not copies.use("a", old, 0.0)
    copies.drop(["a"])
    # As it was a moment before.
    monkeypatch.setattr(copies, "peek", lambda key: old)
    assert not copies.use("a", old, 0.0)
    assert copies.hits == 0


def test_what_is_not_there_is_not_kept() -> None:
    """A key without a value gets no copy, and leaves none of before."""
    copies = Copies(10_000, 1000)
    copies.end(copies.begin("a", "o"), None, NEVER)
    assert len(copies) == 0


@pytest.mark.parametrize("how", ["drop", "invalidate", "flush", "flush all"])
def test_a_change_on_the_way_keeps_it_out(how: str) -> None:
    """What was asked for before its key changed may be what it was before."""
    copies = Copies(10_000, 1000)
    keep(copies, "a", b"old")
    fills = [copies.begin("a", "o") for _ in range(2)]
    other = copies.begin("b", "p")
    if how == "drop":
        copies.drop(["a"])
    elif how == "invalidate":
        copies.invalidate(iter(["a"]))
    else:
        copies.flush("o" if how == "flush" else None)
    after = copies.begin("a", "o")
    for fill in fills:
        copies.end(fill, b"old", NEVER)
    assert held(copies) == set()
    copies.end(other, b"other", NEVER)
    copies.end(after, b"new", NEVER)
    assert held(copies) == ({"a"} if how == "flush all" else {"a", "b"})
    assert copies.invalidations == (how == "invalidate")
    assert copies.flushes == how.startswith("flush")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_several_on_the_way(order: tuple[int, ...]) -> None:
    """Several threads may ask for one key; a change concerns those that have asked."""
    copies = Copies(10_000, 1000)
    fills = [copies.begin("a", "o") for _ in range(2)]
    copies.drop(["a"])
    fills.append(copies.begin("a", "o"))
    for number in order:
        copies.end(fills[number], str(number).encode(), NEVER)
    copy = good(copies, "a", 0.0)
    assert copy is not None
    assert copy.data == b"2"
    assert not copies._fills


class Ending:
    """A lock for which another thread's fetch ends just before it is taken."""

    def __init__(self, copies: Copies, fill: Fill) -> None:
        self.copies, self.fill = copies, fill
        self.lock = copies._lock

    def __enter__(self) -> None:
        self.copies._lock = self.lock
        self.copies.end(self.fill, b"first", NEVER)
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def test_one_ends_while_another_begins() -> None:
    """The other is then the only one on its way."""
    copies = Copies(10_000, 1000)
    first = copies.begin("a", "o")
    copies._lock = Ending(copies, first)  # type: ignore[assignment]
    second = copies.begin("a", "o")
    copies.drop(["a"])
    copies.end(second, b"second", NEVER)
    assert held(copies) == set()
    assert not copies._fills


class Interrupting(dict[str, Fill]):
    """The fills of a store; after each call comes the next signal handler."""

    def __init__(self) -> None:
        self.handlers: list[Callable[[], object]] = []

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Do as a dictionary does, then have the handler come."""
        found = super().setdefault(key, default)
        if self.handlers:
            self.handlers.pop(0)()
        return found


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("before", [[], [int]])
def test_a_handler_ends_another_while_one_begins(
    count: int, before: list[Callable[[], object]]
) -> None:
    """The one that begins is under way all the same."""
    copies = Copies(10_000, 1000)
    copies._fills = fills = Interrupting()
    others = [copies.begin("a", "o") for _ in range(count)]
    last = Fill("a", "o")
    fills.handlers = [*before, lambda: copies.end(others[0], b"", NEVER)]
    copies.add(last)
    assert not fills.handlers
    copies.drop(["a"])
    assert last.tainted
    for fill in (*others[1:], last):
        copies.end(fill, b"", NEVER)
    assert not copies._fills
    assert held(copies) == set()


def test_a_handler_ends_the_others_while_one_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None stays."""
    copies = Copies(10_000, 1000)
    first, second = (copies.begin("a", "o") for _ in range(2))
    leave = copies._leave

    def interrupted(fill: Fill) -> None:
        monkeypatch.setattr(copies, "_leave", leave)
        copies.end(second, None, 0.0)
        leave(fill)

    monkeypatch.setattr(copies, "_leave", interrupted)
    copies.end(first, b"", NEVER)
    assert not copies._fills
    assert held(copies) == {"a"}


HANDLERS = """
import dis, itertools, sys
from django_entra_redis.connections import copies as module

NEVER = float("inf")
# After these Python lets a signal handler run.
POINTS = ("RESUME", "CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")

def interrupt(call, handler, number):
    last, left, came = {}, number, False

    def trace(frame, event, argument):
        nonlocal left, came
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            before = last.get(frame, "RESUME")
            last[frame] = name
            if before.startswith(POINTS) and not before.endswith("NO_INTERRUPT"):
                left -= 1
                if left == 0:
                    came = True
                    sys.settrace(None)
                    handler()
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return came

def check(act, comes, others, kept, number):
    copies = module.Copies(4000, 2000)
    for key in kept:
        copies.end(copies.begin(key, "o"), b"old" * 500, NEVER)
    fills = [copies.begin("a", "o") for _ in range(others)]
    mine = fills.pop() if act == "end" and fills else copies.begin("a", "o")
    if act != "end":
        fills.append(mine)
    acts = {
        "begin": lambda: fills.append(copies.begin("a", "o")),
        "end": lambda: copies.end(mine, b"old", NEVER),
        "drop": lambda: copies.drop(["a", "b"]),
        "drop one": lambda: copies.drop_one("a"),
        "flush": copies.flush,
        "flush o": lambda: copies.flush("o"),
    }
    handlers = {
        "begin": lambda: fills.append(copies.begin("a", "p")),
        "keep": lambda: copies.end(copies.begin("a", "p"), b"new", NEVER),
        "keep another": lambda: copies.end(copies.begin("b", "p"), b"new", NEVER),
        "end": lambda: fills and copies.end(fills.pop(0), b"old", NEVER),
        "lose": lambda: [
            copies.end(fills.pop(), None, 0.0) for _ in range(len(fills))
        ],
        "drop": lambda: copies.drop(["a"]),
        "flush": copies.flush,
    }
    came = interrupt(acts[act], handlers[comes], number)
    copy = copies.peek("a")
    changed = act not in ("begin", "end") or (act, comes) == ("end", "drop")
    if came and changed and comes != "keep":
        assert copy is None or copy.data == b"new", copy.data
    copies.drop(["a"])
    assert all(fill.tainted for fill in fills)
    for fill in fills:
        copies.end(fill, b"old", NEVER)
    assert not copies._fills
    assert copies.bytes == sum(copy.size for copy in copies._copies.values())
    return came

count = 0
for case in itertools.product(
    ("begin", "end", "drop", "drop one", "flush", "flush o"),
    ("begin", "keep", "keep another", "end", "lose", "drop", "flush"),
    range(3),
    ("", "a", "ab"),
):
    try:
        numbers = itertools.count(1)
        while check(*case, next(numbers)):
            count += 1
    except Exception as error:
        raise AssertionError(case) from error
print(count)
"""


def test_handlers() -> None:
    """A signal handler may use the store while the same thread is in any method.

    In a process of its own and without coverage, since a trace function sends it.
    """
    command = [sys.executable, "-W", "error", "-c", HANDLERS]
    names = [name for name in os.environ if not name.startswith("COVERAGE_")]
    done = subprocess.run(
        command,
        capture_output=True,
        env={name: os.environ[name] for name in names},
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 1000


def test_threads() -> None:
    """No fetch is lost, and none stays, whatever other threads do meanwhile."""
    copies, rounds = Copies(10_000, 1000), 5000
    tainted: list[bool] = []

    def fetch() -> None:
        for number in range(rounds):
            fill = copies.begin("ab"[number % 2], "o")
            copies.drop([fill.key])
            tainted.append(fill.tainted)
            copies.end(fill, b"", NEVER)

    def flush() -> None:
        for _ in range(rounds):
            copies.flush("o")

    with ThreadPoolExecutor(4) as threads:
        for done in [*(threads.submit(fetch) for _ in range(3)), threads.submit(flush)]:
            done.result()
    assert all(tainted)
    assert not copies._fills
    assert (len(copies), copies.bytes) == (0, 0)


def test_what_this_process_writes() -> None:
    """It is dropped from all stores of the same servers; the server's messages are for
    one of them."""
    stores = [Copies(10_000, 1000) for _ in range(3)]
    first, second = stores[:2]
    gone = ref(stores.pop())
    first.others = (gone, ref(second))
    acts: list[Callable[[], None]] = [
        lambda: first.drop_one("a"),
        lambda: first.drop_written(["a"]),
        first.flush_written,
    ]
    for act in acts:
        for store in stores:
            keep(store, "a")
        act()
        assert [held(store) for store in stores] == [set(), set()]
    fill = second.begin("a", "o")
    first.drop_one("a")
    second.end(fill, b"old", NEVER)
    assert held(second) == set()
    keep(second, "a")
    first.invalidate(["a"])
    first.flush("o")
    assert held(second) == {"a"}


def test_the_least_recently_used_goes_first() -> None:
    """However often it was used before, and whatever was put in first."""
    copies = Copies(3 * (ONE + 10), 1000)
    for key in "abc":
        keep(copies, key, b"0123456789")
    for key in "cab":
        assert good(copies, key, 0.0) is not None
    keep(copies, "d", b"0123456789")
    assert held(copies) == {"a", "b", "d"}
    assert copies.bytes <= copies.max_bytes
    keep(copies, "e", b"0" * 600)
    assert held(copies) == {"e"}
    keep(copies, "e", b"")
    assert copies.bytes == ONE
    keep(Copies(10, 1000), "f", b"")


def test_a_value_that_is_too_large() -> None:
    """Has a copy that says so; it is no hit, and goes as others do."""
    copies = Copies(10_000, 10)
    keep(copies, "a", b"0" * 11)
    copy = good(copies, "a", 0.0)
    assert copy is not None
    assert copy.data is None
    assert (copies.hits, copies.misses) == (0, 1)
    assert copies.bytes == ONE
    copies.drop(["a"])
    assert held(copies) == set()
    small = Copies(100, 10)
    keep(small, "a", b"1")
    assert len(small) == 0


def test_the_copies_of_one_server() -> None:
    """Go without the others'."""
    copies = Copies(10_000, 1000)
    keep(copies, "a", owner="o")
    keep(copies, "b", owner="p")
    copies.flush("o")
    assert held(copies) == {"b"}
    assert copies.bytes == ONE


@pytest.mark.parametrize(
    ("name", "size"),
    [("n", 10), ("n", 2000), ("n" * 230, 10), ("\U0001f600" * 230, 10)],
)
def test_they_take_what_they_count(name: str, size: int) -> None:
    """Bounded by bytes means by those of the process: within a tenth, whatever the
    keys are made of, and also after all of them have changed."""
    tracemalloc.start()
    try:
        copies = Copies(2_000_000, 10_000)
        # Another thread of the tests' may import something meanwhile.
        own = [
            tracemalloc.Filter(True, name)
            for name in (__file__, copies_module.__file__)
        ]

        def taken() -> int:
            found = tracemalloc.take_snapshot().filter_traces(own)
            return sum(trace.size for trace in found.traces)

        for number in range(6000):
            keep(copies, f":1:{name}-{number}", bytes(size))
        assert taken() <= 2_200_000
        assert copies.bytes >= 1_900_000
        for number in range(6000):
            key = f":1:{name}-{number}"
            keep(copies, key, bytes(size))
            copies.drop([key])
        assert len(copies) == 0
        # The dictionary keeps its size.
        assert taken() <= 1_000_000
        # Now both.
        for number in range(6000):
            keep(copies, f":1:{name}-{number}", bytes(size))
        assert taken() <= 2_200_000
    finally:
        tracemalloc.stop()


def test_a_child_begins_with_nothing() -> None:
    """Of what the parent has the child does not hear when it changes."""
    copies = Copies(10_000, 1000)
    keep(copies, "a")
    copies.reset()
    assert (len(copies), copies.bytes) == (0, 0)


def test_keys_that_change_more_than_they_are_read() -> None:
    """Get a copy now and then only, until one is of use."""
    copies = Copies(10_000, 1000)

    def rounds(count: int) -> int:
        made = 0
        for _ in range(count):
            if not copies.is_cold("a"):
                keep(copies, "a")
                made += 1
            copies.drop(["a"])
        return made

    assert rounds(COLD_AFTER) == COLD_AFTER
    assert copies.misses == 0  # Who fetches counts.
    assert rounds(COLD_READS) == 0
    assert copies.misses == COLD_READS
    assert rounds(1 + COLD_READS) == 1
    assert not copies.is_cold("b")
    assert rounds(1) == 1
    assert rounds(COLD_READS) == 0
    keep(copies, "a")
    assert good(copies, "a", 0.0) is not None
    copies.drop(["a"])
    assert rounds(COLD_AFTER) == COLD_AFTER
    # What changes on its way is no better.
    copies.reset()
    for _ in range(COLD_AFTER):
        fill = copies.begin("a", "o")
        copies.drop(["a"])
        copies.drop(["a"])
        copies.end(fill, b"", NEVER)
    assert copies.is_cold("a")
    # It is a flush that says nothing of a key.
    copies.reset()
    for _ in range(2 * COLD_AFTER):
        keep(copies, "a")
        copies.flush("o")
    assert not copies.is_cold("a")


def test_keys_that_take_too_long() -> None:
    """A key can be cold at once, even one whose copies are used."""
    copies = Copies(100_000, 100)
    copies.cool(["a", "b", "a"])
    for key, cold in [("a", True), ("b", True), ("c", False)]:
        assert copies.is_cold(key) == cold


def test_so_many_are_remembered() -> None:
    """The memory of such keys is bounded, too."""
    for max_bytes, most in ((32 * 2**20, MOST_COLD), (320_000, 100)):
        copies = Copies(max_bytes, 1000)
        for number in range(most + 5):
            keep(copies, str(number))
            copies.drop([str(number)])
        assert len(copies._unused) == most


class Used(OrderedDict[str, Copy]):
    """Copies, of which another thread uses one while this one looks through them."""

    # A use ends an iteration; nothing iterates any more.
    def __iter__(self) -> Iterator[str]:  # pragma: no cover
        found = super().__iter__()
        self.move_to_end("a")
        return found


def test_copies_that_are_used_while_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A use moves a copy, without the lock; the oldest goes all the same."""
    copies = Copies(3 * ONE, 1000)
    monkeypatch.setattr(copies, "_copies", Used())
    for key in "abcd":
        keep(copies, key)
    assert len(copies) == 3
    assert copies.bytes == 3 * ONE


def test_copies_that_are_used_while_others_are_flushed() -> None:
    """A lost connection takes its own copies with it, whoever uses the others."""
    copies = Copies(10_000, 1000)

    class Lost(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            # What another thread may do at any time.
            assert good(copies, "a", 0.0)
            return str.__eq__(self, other)

    for key, owner in ("a", "other"), ("b", "lost"), ("c", "lost"):
        keep(copies, key, owner=owner)
    copies.flush(Lost("lost"))
    assert held(copies) == {"a"}
