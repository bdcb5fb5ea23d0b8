"""The store of copies of values that this process has read.

It has no socket and no clock; :mod:`.tracking` fetches and invalidates values.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from sys import getsizeof
from weakref import ref

#: A key is cold after this number of copies that were dropped without a hit: it changes
#: more often than it is read, so that copies only cost.
COLD_AFTER = 4
COLD_READS = 256
#: Keys to remember the coldness of, at most; each takes so many bytes, and all of them
#: at most a twentieth of what copies may take.
MOST_COLD = 10_000
COLD_BYTES = 160
#: Bytes that a copy takes beside its key and its value: the objects that hold them and
#: their place in the dictionary, as measured with tracemalloc.
OVERHEAD = 400


class Copy:
    """The copy of a value.

    It has no slots: Python 3.13 calls ``__init__`` in fewer steps then.

    Parameters:
        data: the value as bytes; ``None``: it is too large for a copy.
        expires_at: when its key expires, on the caller's clock.
        owner: the connection on which it is invalidated.
        size: the bytes that it takes, with all that belongs to it.
    """

    def __init__(
        self, data: bytes | None, expires_at: float, owner: Hashable, size: int
    ) -> None:
        self.data = data
        self.expires_at = expires_at
        self.owner = owner
        self.size = size
        self.used = False


class Fill:
    """A value that is being fetched, and will become a copy.

    ``tainted`` is set if the key may have changed since the fetch was sent.

    Parameters:
        key: the key.
        owner: the connection on which it is fetched.
    """

    #: Misses to count when it ends.
    missed = 0
    #: Where it is the first one of its key: those that began later.
    later: frozenset["Fill"] = frozenset()

    def __init__(self, key: str, owner: Hashable) -> None:
        self.key = key
        self.owner = owner
        self.tainted = False


class Copies:
    """The copies of a process; if there are too many, the least recently used go.

    Parameters:
        max_bytes: bytes that all copies take at most.
        max_value_bytes: bytes of a value of which a copy is kept at most.
    """

    def __init__(self, max_bytes: int, max_value_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.max_value_bytes = max_value_bytes
        self.hits = 0
        self.misses = 0
        self.invalidations = 0
        self.flushes = 0
        #: The other stores of this process with values of the same servers. They drop
        #: what this process writes, too.
        self.others: tuple[ref[Copies], ...] = ()
        # The least recently used one first.
        self._copies: OrderedDict[str, Copy] = OrderedDict()
        # The first fill of each key.
        self._fills: dict[str, Fill] = {}
        # The copies of a key that were dropped without a hit; below 0: the reads until
        # the next copy. By the key's hash, which takes less memory: it does no harm if
        # two keys count as one.
        self._unused: OrderedDict[int, int] = OrderedDict()
        self._most_cold = min(MOST_COLD, max_bytes // 20 // COLD_BYTES)
        #: Returns a key's copy, even an expired one; ``None``: there is none.
        self.peek = self._copies.get
        self._move_to_end = self._copies.move_to_end
        self.reset()

    def reset(self) -> None:
        """Forget all copies, as a child process must."""
        # Guards all attributes; use(), is_cold(), add() and drop_one() say why they do
        # without it. Reentrant, since a signal handler may use the cache in the midst
        # of any method. Python lets it run at the beginning of a function, after a
        # call and at the end of a loop's round: what belongs together is done by
        # operators alone.
        self._lock = threading.RLock()
        self.bytes = 0
        self._copies.clear()
        self._fills.clear()
        self._unused.clear()

    def __len__(self) -> int:
        return len(self._copies)

    def owner(self, key: str) -> Hashable:
        """Return the connection on which a key's copy is invalidated; ``None``: it has
        no copy."""
        copy = self._copies.get(key)
        return None if copy is None else copy.owner

    def use(self, key: str, copy: Copy, now: float) -> bool:
        """Return whether a copy is still valid; if so, count a hit, or a miss where the
        value is too large for a copy.

        Parameters:
            key: the key.
            copy: the copy.
            now: the time on the caller's clock.
        """
        # Without the lock, which would cost a tenth of a hit: each step is atomic, and
        # it is enough that the copy was valid at any moment since the call.
        if self.peek(key) is not copy:
            return False
        if copy.expires_at <= now:
            with self._lock:
                self._remove(key)
            return False
        try:
            self._move_to_end(key)
        except KeyError:
            return False
        if not copy.used:
            copy.used = True
            self._unused.pop(hash(key), None)
        if copy.data is not None:
            self.hits += 1
        else:
            self.misses += 1
        return True

    def is_cold(self, key: str) -> bool:
        """Return whether a key without a copy is cold; if so, count a miss."""
        # Without the lock: it does no harm if two threads count as one.
        hashed = hash(key)
        count = self._unused.get(hashed, 0)
        if count >= 0:
            return False
        self.misses += 1
        self._unused[hashed] = count + 1 if count < -1 else COLD_AFTER - 1
        return True

    def cool(self, keys: Iterable[str]) -> None:
        """Have keys be cold, however often they have been read."""
        with self._lock:
            for key in keys:
                self._unused[hash(key)] = COLD_AFTER - 1
                self._count_unused(key)

    def miss(self, count: int) -> None:
        """Count values that were read without a copy."""
        with self._lock:
            self.misses += count

    def begin(self, key: str, owner: Hashable) -> Fill:
        """Note the beginning of a value's fetch."""
        fill = Fill(key, owner)
        self.add(fill)
        return fill

    def add(self, fill: Fill) -> None:
        """Note a value that is being fetched."""
        # Without the lock where there is no other fill of the key: setdefault() is
        # atomic, and what is fetched is sent after it.
        if self._fills.setdefault(fill.key, fill) is not fill:
            with self._lock:
                # Again, where a signal handler has ended the first one meanwhile.
                while fill not in self._under_way(fill.key):
                    first = self._fills.setdefault(fill.key, fill)
                    if first is not fill:
                        first.later |= {fill}

    def end(self, fill: Fill, data: bytes | None, expires_at: float) -> None:
        """Keep a fetched value, unless its key has changed meanwhile.

        Parameters:
            fill: the value, which :meth:`add` has noted.
            data: the value; ``None``: there is none to keep.
            expires_at: when its key expires.
        """
        key = fill.key
        with self._lock:
            self.misses += fill.missed
            if data is not None:
                # A letter takes up to four bytes; to ask for that costs, and is rarely
                # needed.
                size = (len(key) if key.isascii() else getsizeof(key)) + OVERHEAD
                length = len(data)
                if length <= self.max_value_bytes:
                    size += length
                else:
                    data = None
                copy = Copy(data, expires_at, fill.owner, size)
                # Not before: a signal handler may change the key.
                if not fill.tainted:
                    if key in self._copies:  # As _remove() does, without a call.
                        self.bytes -= self._copies[key].size
                        del self._copies[key]
                    if size <= self.max_bytes:
                        self._copies[key] = copy
                        self.bytes += size
                        if self.bytes > self.max_bytes:
                            self._make_room()
            # In this order: drop_one() always finds the key in one of the two.
            if self._fills[key] is fill and not fill.later:
                del self._fills[key]
            else:
                self._leave(fill)

    def _make_room(self) -> None:
        while self.bytes > self.max_bytes:
            # In one step: use() may move an item meanwhile, which ends an iteration.
            _, oldest = self._copies.popitem(last=False)
            self.bytes -= oldest.size

    def _leave(self, fill: Fill) -> None:
        """Forget a fill, which need not be the only one of its key."""
        first = self._fills[fill.key]
        if first is not fill:
            first.later -= {fill}
        elif fill.later:
            first, *_ = fill.later
            first.later = fill.later - {first}
            self._fills[fill.key] = first
        else:
            # A signal handler has ended the others a moment ago.
            del self._fills[fill.key]

    def relate(self, others: Iterable["Copies"]) -> None:
        """Note the other stores of this process with values of the same servers."""
        self.others = tuple(map(ref, others))

    def drop_one(self, key: str) -> None:
        """Do as :meth:`drop_written` does, for one key, which usually has no copy."""
        # Without the lock, and therefore in this order: end() adds the copy before it
        # removes the fill.
        if key in self._fills or key in self._copies:
            self.drop((key,))
        for other in self.others:
            if (store := other()) is not None:
                store.drop((key,))

    def drop_written(self, keys: Sequence[str]) -> None:
        """Drop the copies of keys that this process has written, in all stores."""
        self.drop(keys)
        for other in self.others:
            if (store := other()) is not None:
                store.drop(keys)

    def flush_written(self) -> None:
        """Drop all copies, in all stores: this process has written any keys."""
        self.flush()
        for other in self.others:
            if (store := other()) is not None:
                store.flush()

    def drop(self, keys: Iterable[str]) -> None:
        """Drop the copies of keys that have changed, also while they are fetched."""
        with self._lock:
            for key in keys:
                # Before the copy: a signal handler may make it of one of these.
                for fill in self._under_way(key):
                    if not fill.tainted:
                        fill.tainted = True
                        self._count_unused(key)
                copy = self._remove(key)
                if copy is not None and not copy.used:
                    self._count_unused(key)

    def invalidate(self, keys: Iterable[str]) -> None:
        """Do as :meth:`drop` does, for keys that the server has invalidated."""
        keys = list(keys)
        with self._lock:
            self.invalidations += len(keys)
            self.drop(keys)

    def flush(self, owner: Hashable = None) -> None:
        """Drop all copies, also those that are being fetched.

        Parameters:
            owner: drop only the copies of this connection; ``None``: of all.
        """
        with self._lock:
            self.flushes += 1
            # A list, which is made in one step: add() may change the dictionary.
            for key in list(self._fills):
                for fill in self._under_way(key):
                    fill.tainted = fill.tainted or owner in (None, fill.owner)
            if owner is None:
                self.bytes = 0
                self._copies.clear()
                return
            # A list, for the same reason as in _make_room().
            for key, copy in list(self._copies.items()):
                if copy.owner == owner:
                    self._remove(key)

    def _under_way(self, key: str) -> Sequence[Fill]:
        """Return the fills of a key."""
        first = self._fills.get(key)
        return () if first is None else (first, *first.later)

    def _count_unused(self, key: str) -> None:
        hashed = hash(key)
        count = self._unused.pop(hashed, 0) + 1
        self._unused[hashed] = count if count < COLD_AFTER else -COLD_READS
        if len(self._unused) > self._most_cold:
            self._unused.popitem(last=False)

    def _remove(self, key: str) -> Copy | None:
        copies = self._copies
        if key not in copies:
            return None
        copy = copies[key]
        del copies[key]
        self.bytes -= copy.size
        return copy
