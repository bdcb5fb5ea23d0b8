"""Calls on a tracking connection: fetches of values, and AUTH, with their replies."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

from redis.exceptions import (
    AskError,
    ClusterDownError,
    InvalidResponse,
    NoPermissionError,
    ReadOnlyError,
    TryAgainError,
)

from ..commands.packing import pack_all
from ..identity.token import Token
from .authentication import REPLIES, is_accepted
from .copies import Fill

#: Commands that check whether the connection lives, and whether it leads to a replica.
CHECK = pack_all([("PING",), ("HELLO", "3")])
CHECKS = 2

_NEVER = float("inf")
#: The types of values, and of the times that keys have left.
_VALUES = frozenset((bytes, type(None)))
_LIVES = frozenset((int,))


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class Call:
    """Commands under way.

    Parameters:
        count: the number of their replies.
        size: their bytes.
    """

    __slots__ = ("count", "done", "replies", "size", "turn")

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.replies: list[Any] = []
        self.done = False
        #: The lock on which a thread waits for this call; ``None``: none waits. It
        #: is released when the call is done, or when it is the thread's turn to wait
        #: for bytes.
        self.turn: threading.Lock | None = None

    @property
    def keys(self) -> Sequence[str]:
        """The keys whose values are fetched."""
        return ()

    def want_turn(self) -> None:
        """Make the lock, unless the call is done."""
        if self.turn is None and not self.done:
            self.turn = _taken_lock()

    def renounce_turn(self) -> None:
        """Forget the lock: no thread waits for the call any more."""
        self.turn = None

    def finish(self, connection: Any, *, lost: bool) -> None:
        """Process the replies, or the loss of the connection, whose gate is held."""
        self.done = True
        if self.turn is not None:
            with contextlib.suppress(RuntimeError):  # released already
                self.turn.release()


class Fetch(Call):
    """A fetch of values, each with the time until its key expires.

    Parameters:
        fills: the copies to make.
        lead: the number of replies before the values.
        sent_at: when the commands were sent.
        size: their bytes.
        future: a future whose result is set when the values are there.
    """

    __slots__ = ("fills", "future", "lead", "sent_at", "values")

    def __init__(
        self,
        fills: Sequence[Fill],
        lead: int,
        sent_at: float,
        size: int,
        future: "asyncio.Future[None] | None",
    ) -> None:
        super().__init__(lead + 2 * len(fills), size)
        self.fills = fills
        self.lead = lead
        self.sent_at = sent_at
        #: The values as bytes; ``None``: they must be read on another connection.
        self.values: list[bytes | None] | None = None
        self.future = future

    @property
    def keys(self) -> Sequence[str]:
        """See :attr:`Call.keys`."""
        return [fill.key for fill in self.fills]

    def finish(self, connection: Any, *, lost: bool) -> None:
        """Make the copies."""
        lead, replies = self.lead, self.replies
        values, lives = replies[lead::2], replies[lead + 1 :: 2]
        failures: Sequence[Exception] = ()
        if not lost and (lead or not _are_plain(values, lives)):
            failures = _failures(replies[:lead], values, lives)
        if lost or failures:
            for fill in self.fills:
                connection.copies.end(fill, None, 0.0)
        else:
            for fill, data, left in zip(self.fills, values, lives, strict=True):
                _end(connection, fill, data, left, self.sent_at)
            self.values = values
            connection.confirm(self.sent_at, checked=bool(lead))
        _lose_access(connection, failures)
        self.done = True
        if self.turn is not None:
            super().finish(connection, lost=lost)
        if self.future is not None:
            _set_done(self.future)


class Ask(Fill):
    """A :class:`Fetch` of one value, by a thread that waits for bytes itself.

    For speed it is one object in place of two, and has no slots, for the same reason as
    a copy.

    Parameters:
        key: the key.
        owner: the connection.
        sent_at: when the commands were sent.
        size: their bytes.
    """

    count = 2
    turn = None
    missed = 1

    def __init__(self, key: str, owner: Any, sent_at: float, size: int) -> None:
        self.key = key
        self.owner = owner
        self.tainted = False
        self.sent_at = sent_at
        self.size = size
        self.replies: list[Any] = []
        self.values: list[bytes | None] | None = None
        self.done = False

    @property
    def keys(self) -> Sequence[str]:
        """See :attr:`Call.keys`."""
        return [self.key]

    def finish(self, connection: Any, *, lost: bool) -> None:
        """Make the copy."""
        if lost:
            connection.copies.end(self, None, 0.0)
            self.done = True
            return
        data, left = self.replies
        if type(left) is int and (type(data) is bytes or data is None):
            self.values = [data]
            sent_at = self.sent_at
            if sent_at > connection.confirmed_at:
                connection.confirm(sent_at)
            if left == -1:  # As _end() does, in a call less.
                connection.copies.end(self, data, _NEVER)
            else:
                _end(connection, self, data, left, sent_at)
        else:
            connection.copies.end(self, None, 0.0)
            _lose_access(connection, _failures((), [data], [left]))
        self.done = True


def _end(
    connection: Any, fill: Fill, data: bytes | None, left: int, sent_at: float
) -> None:
    """Make a copy of a value.

    Parameters:
        connection: the connection.
        fill: the copy to make.
        data: the value.
        left: the milliseconds until its key expires.
        sent_at: when the commands were sent.
    """
    # Counted from then, so that no copy outlives its key. -1 means that the key does
    # not expire, -2 that it does not exist.
    expires_at = sent_at + left / 1000 if left >= 0 else _NEVER
    gone = left == 0 or left == -2
    connection.copies.end(fill, None if gone else data, expires_at)


def _lose_access(connection: Any, failures: Sequence[Exception]) -> None:
    """Close a connection whose user may not read any more."""
    for failure in failures:
        if _tells_of_lost_access(failure):
            connection.lose(failure)


def _set_done(future: "asyncio.Future[None]") -> None:
    """Set the result of a future of any event loop."""

    def done() -> None:
        if not future.done():
            future.set_result(None)

    loop = future.get_loop()
    if _running_loop() is loop:
        done()
        return
    with contextlib.suppress(RuntimeError):  # a loop that is closed
        loop.call_soon_threadsafe(done)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Authentication(Call):
    """AUTH with a newer token, in the same stream.

    Parameters:
        token: the token.
    """

    __slots__ = ("token",)

    def __init__(self, token: Token) -> None:
        # Its bytes do not count: there is never more than one.
        super().__init__(REPLIES, 0)
        self.token = token

    def finish(self, connection: Any, *, lost: bool) -> None:
        """Note the reply."""
        if not lost:
            connection.authenticated(self.token if is_accepted(self.replies) else None)
        super().finish(connection, lost=lost)


def pack_fetch(key: str) -> bytes:
    """Return GET and PTTL of a key, packed."""
    size = len(key) if key.isascii() else len(key.encode())
    name = f"${size}\r\n{key}\r\n"
    return f"*2\r\n$3\r\nGET\r\n{name}*2\r\n$4\r\nPTTL\r\n{name}".encode()


def fitting(keys: Sequence[str], most: int) -> int:
    """Return how many keys, from the first one on, can be fetched with so many bytes
    of commands at most."""
    size = 0
    for number, key in enumerate(keys):
        size += len(pack_fetch(key))
        if size > most:
            return number
    return len(keys)


def is_replica(greeting: Any) -> bool:
    """Whether a reply to HELLO comes from a replica."""
    if isinstance(greeting, dict):
        return greeting.get(b"role") == b"replica"
    fields = greeting if isinstance(greeting, list) else []
    return (b"role", b"replica") in zip(fields[::2], fields[1::2], strict=False)


def _are_plain(values: Sequence[Any], lives: Sequence[Any]) -> bool:
    """Whether replies have the types of values and of times."""
    return _VALUES.issuperset(map(type, values)) and _LIVES.issuperset(map(type, lives))


def _failures(
    lead: Sequence[Any], values: Sequence[Any], lives: Sequence[Any]
) -> Sequence[Exception]:
    """Return the errors in replies, or an error for replies of wrong types."""
    replies = [*lead, *values, *lives]
    if lead and isinstance(lead[0], NoPermissionError):
        # PING may be forbidden to this user, but then the server answers.
        del replies[0]
    failures = [reply for reply in replies if isinstance(reply, Exception)]
    if failures:
        return failures
    if lead and is_replica(lead[1]):
        return [ReadOnlyError("The server has become a replica.")]
    if _are_plain(values, lives):
        return ()
    return [InvalidResponse("Replies of another kind than asked for.")]


def _tells_of_lost_access(failure: Exception) -> bool:
    """Whether an error reply is about more than its own key."""
    if isinstance(failure, AskError | ClusterDownError | TryAgainError):
        return False
    # redis-py 5 has classes for these in its cluster client alone.
    word = str(failure).partition(" ")[0]
    return word not in ("ASK", "CLUSTERDOWN", "MOVED", "TRYAGAIN", "WRONGTYPE")
