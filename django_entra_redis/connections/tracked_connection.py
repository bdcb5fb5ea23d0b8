"""One connection to a server that tracks what is read on it.

Nobody reads in the background. Whoever needs a copy takes in first what has come;
whoever waits for a value takes in what comes, for all.
"""

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import finalize

from redis.exceptions import InvalidResponse

from ..commands.resp import INCOMPLETE, UNREADABLE
from ..commands.resp3 import PUSH, make_push_reader
from ..credentials.reauthentication import Action, next_action
from ..credentials.renewal import Renewal
from ..identity.token import Token
from .authentication import pack_marked_auth
from .copies import Copies
from .refusals import read_error
from .tracked_calls import (
    CHECK,
    CHECKS,
    Ask,
    Authentication,
    Call,
    Fetch,
    pack_fetch,
)

logger = logging.getLogger(__name__)

#: What tells of a connection that is of no use any more.
BROKEN: tuple[type[Exception], ...] = (OSError, *UNREADABLE)
#: Bytes to take in at a time, and how many times in a row at most.
PIECE = 64 * 1024
_MOST_PIECES = 64
#: Seconds after which a thread that can't be woken looks itself.
_NAP = 0.05
#: Commands that may be under way; whoever comes then reads without a copy.
_MOST_UNDER_WAY = 1024


class TrackedConnection:
    """One connection to a server that tracks what is read on it.

    Parameters:
        sock: the socket, authenticated and tracking.
        copies: what is told of changes.
        timeout: seconds to wait for a reply.
        max_staleness: seconds after the last proof of the connection's health in which
            copies may be used.
        now: when that proof was asked for.
        held: the token that the server knows the connection by.
        provide: gives the renewal of that.
    """

    def __init__(
        self,
        sock: Any,
        copies: Copies,
        *,
        timeout: float,
        max_staleness: float,
        now: float,
        held: Token | None = None,
        provide: Callable[[], Renewal] | None = None,
    ) -> None:
        self.copies = copies
        self._max_staleness = max_staleness
        self._hold(held)
        self._provide = provide
        self._authenticating = False
        self.closed = False
        self.confirmed_at = now
        self.ask_at = now + self._interval
        self.timeout = timeout
        # Guards the socket, the reader and all below: whoever sends or takes in holds
        # it, and waits for nothing meanwhile. Reentrant for the sake of signal
        # handlers that use the cache; these find ``_busy``.
        self._gate = threading.RLock()
        self._busy = False
        self._sock = sock
        self._pending = getattr(sock, "pending", None)
        self._reader = make_push_reader(read_error)
        self._under_way: deque[Call | Ask] = deque()
        self._asking: Fetch | None = None
        # The thread that waits for bytes to come, on behalf of all; whether it sleeps;
        # and whether it has been woken.
        self._poller: int | None = None
        self._sleeping = False
        self._woken = False
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
        self._epoll: Any = None
        # gevent takes epoll away, and other systems have none. There it is tried.
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self.has_come: Callable[[], Any] = partial(self._epoll.poll, 0, 1)
        else:
            self.has_come = lambda: True

    # -- health ----------------------------------------------------------------------

    def is_fresh(self, key: str) -> bool:
        """Take in what has come; return whether copies may be used now.

        Parameters:
            key: whose copy is to be used.
        """
        if self.has_come():
            self.take_in()
        now = time.monotonic()
        return now < self.ask_at or self.is_confirmed(key, now)

    def confirm(self, asked_at: float) -> None:
        """Take note that the server has answered what was asked then."""
        if asked_at > self.confirmed_at:
            self.confirmed_at = asked_at
            self.ask_at = asked_at + self._interval

    def _hold(self, held: Token | None) -> None:
        """Take note of the token that the server knows the connection by."""
        self.held = held
        # Seconds after which to ask for another proof: early enough for the reply, and
        # for a token that does not live for long to be replaced in time.
        self._interval = self._max_staleness / 2
        if held is not None:
            life = held.expires_at - held.received_at
            self._interval = min(self._interval, life / 12)

    def is_confirmed(self, key: str, now: float) -> bool:
        """Return whether copies may be used; ask early, so that nobody has to wait."""
        if now >= self.confirmed_at + self._max_staleness:
            return False
        self.keep_up()
        if self._asking is None or self._asking.done:
            self._asking = self.fetch([key], waited=False)
        return not self.closed

    # -- sending ---------------------------------------------------------------------

    def fetch(
        self,
        keys: Sequence[str],
        future: "asyncio.Future[None] | None" = None,
        *,
        waited: bool = True,
    ) -> Fetch | None:
        """Ask for values; ``None`` if that can't be done here.

        Parameters:
            keys: whose.
            future: what is done then.
            waited: whether this thread will :meth:`wait` for it.
        """
        now = time.monotonic()
        silent = now >= self.ask_at
        # The values tell whether they may still be read, too.
        packed = (CHECK if silent else b"") + b"".join(map(pack_fetch, keys))
        with self._gate:
            if self._busy or self.closed or len(self._under_way) >= _MOST_UNDER_WAY:
                return None
            fills = [self.copies.begin(key, self) for key in keys]
            call = Fetch(fills, CHECKS * silent, now, future=future, waited=waited)
            self._send(packed, call)
            return call

    def ask(self, key: str) -> Ask | None:
        """Do as :meth:`fetch` and :meth:`wait` do, for one key, if nobody else waits.

        Returns:
            What has been asked for, done; ``None`` where that takes more.
        """
        packed = pack_fetch(key)
        now = time.monotonic()
        polls = False
        try:
            with self._gate:
                if (
                    self._under_way
                    or self._poller is not None
                    or self._busy
                    or self.closed
                    or now >= self.ask_at
                ):
                    return None
                call = Ask(key, self, now)
                self.copies.add(call, missed=1)
                self._poller, polls = threading.get_ident(), True
                self._send(packed, call)
            left = self.timeout
            while left > 0:
                self._sleep(call, left)
                with self._gate:
                    self._take_in()
                    if call.done:
                        polls = False
                        self._pass_on()
                        return call
                left = now + self.timeout - time.monotonic()
            self.lose("it does not answer")
            return call
        finally:
            if polls:
                self._hand_over()

    def keep_up(self) -> None:
        """Authenticate anew if the token has moved on."""
        held = self.held
        if held is None or self._provide is None:
            return
        renewal = self._provide()
        current = renewal.fresh()
        if current is held:
            return
        clock = renewal.clock
        if current is None:
            if held.expired(clock):
                self.lose("its token has expired")
            return
        # At once: it is one connection of a process, and processes renew in turn.
        action = next_action(held, current, 0.0, clock)
        if action is Action.ADOPT:
            self._hold(current)
        elif action is Action.RECONNECT:
            self.lose("its token has expired")
        else:
            with self._gate:
                if not (self._busy or self.closed or self._authenticating):
                    self._authenticating = True
                    self._send(pack_marked_auth(current), Authentication(current))

    def authenticated(self, token: Token | None) -> None:
        """Take note of the answer to AUTH.

        Parameters:
            token: what the server knows the connection by now; ``None`` if it has
                refused it.
        """
        self._authenticating = False
        if token is None:
            self.lose("the newer token was refused")
        else:
            self._hold(token)

    def _send(self, packed: bytes, call: Call | Ask) -> None:
        self._under_way.append(call)
        self._busy = True
        try:
            # What does not fit goes to a server that takes nothing in any more.
            if self._sock.send(packed) != len(packed):
                raise BlockingIOError(errno.EAGAIN, "the server takes nothing in")
        except OSError as error:
            self.lose(error)
        except BaseException:
            # A signal handler's: part of it may have been sent.
            self.lose("interrupted")
            raise
        finally:
            self._busy = False

    # -- taking in -------------------------------------------------------------------

    def take_in(self) -> None:
        """Take in what has come, without waiting."""
        with self._gate:
            self._take_in()

    def _take_in(self) -> None:
        if self._busy or self.closed:
            return
        self._busy = True
        try:
            self._receive()
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except BROKEN as error:
            self.lose(error)
        except BaseException:
            # A signal handler's: something may be lost.
            self.lose("interrupted")
            raise
        finally:
            self._busy = False
            if self._sleeping:
                self._wake()

    def _wake(self) -> None:
        """Wake the thread that waits for bytes: these have been taken in by another."""
        if self._epoll is not None and not self.closed and not self._woken:
            self._woken = True
            self._epoll.modify(self._sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _receive(self) -> None:
        for _ in range(_MOST_PIECES):
            data = self._sock.recv(PIECE)
            if not data:
                raise ConnectionError("the server has closed it")
            self._reader.feed(data)
            self._dispatch()
            # What TLS has decrypted already does not show in the socket.
            if self.closed or (
                len(data) < PIECE and not (self._pending and self._pending())
            ):
                return

    def _dispatch(self) -> None:
        reader, under_way = self._reader, self._under_way
        while not self.closed and (reply := reader.gets()) is not INCOMPLETE:
            if isinstance(reply, PUSH):
                self._invalidate(reply)
                continue
            if not under_way:
                raise InvalidResponse(f"It said what nothing had asked for: {reply!r}")
            call = under_way[0]
            call.replies.append(reply)
            if len(call.replies) == call.count:
                under_way.popleft()
                call.finish(self, lost=False)

    def _invalidate(self, push: Any) -> None:
        if push[0] != b"invalidate":
            return
        if push[1] is None:
            self.copies.flush(self)
        else:
            self.copies.invalidate([key.decode(errors="replace") for key in push[1]])

    # -- waiting ---------------------------------------------------------------------

    def wait(self, call: Call) -> None:
        """Wait until a call of this thread's is done."""
        assert call.turn is not None
        deadline = time.monotonic() + self.timeout
        me = threading.get_ident()
        while not call.done:
            left = deadline - time.monotonic()
            if left <= 0:
                self.lose("it does not answer")
                return
            with self._gate:
                # A signal handler may come while its own thread waits for bytes.
                nested = self._poller == me
                polls = self._poller is None or nested
                if polls:
                    self._poller = me
            if not polls:
                call.turn.acquire(timeout=left)
                continue
            try:
                self._sleep(call, left)
                self.take_in()
            finally:
                if not nested:
                    self._hand_over()

    def _sleep(self, call: Call | Ask, seconds: float) -> None:
        """Wait for bytes, unless another thread has taken in what a call waits for."""
        before = self._sleeping
        # In this order: who takes in finishes calls first, and looks at this then.
        self._sleeping = True
        try:
            if not call.done:
                self._wait_for_bytes(seconds)
        finally:
            self._sleeping = before
        if self._woken:
            with self._gate:
                self._woken = False
                # Open even if the connection is lost: who waits for bytes closes it.
                self._epoll.modify(self._sock.fileno(), select.EPOLLIN)

    def _wait_for_bytes(self, seconds: float) -> None:
        if self._epoll is not None:
            self._epoll.poll(seconds, 1)
            return
        # Nothing wakes these when another thread has taken in what they wait for.
        seconds = min(seconds, _NAP)
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._sock.fileno(), select.POLLIN)
            poll.poll(seconds * 1000)
        else:
            select.select([self._sock], [], [], seconds)

    def _hand_over(self) -> None:
        """Have another thread wait for bytes that a reply of its own is among."""
        with self._gate:
            self._pass_on()

    def _pass_on(self) -> None:
        self._poller = None
        if self.closed:
            self._close()
        for call in self._under_way:
            if call.turn is not None:
                with contextlib.suppress(RuntimeError):  # released already
                    call.turn.release()
                return

    def watch(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Have an event loop take in what comes; return whether it can."""
        if loop in self._watches:
            return True
        for other in [other for other in list(self._watches) if other.is_closed()]:
            self._watches.pop(other, None)
        try:
            self._watches[loop] = _Watch(loop, self, self._sock.fileno())
        except (NotImplementedError, OSError, ValueError):
            return False  # such as Windows' default event loop
        return True

    # -- the end ---------------------------------------------------------------------

    def lose(self, reason: object) -> None:
        """Close the connection; drop all copies that it heard of."""
        with self._gate:
            if self.closed:
                return
            self.closed = True
            self.confirmed_at = self.ask_at = float("-inf")
            logger.debug("A tracking connection was closed: %s", reason)
            self.copies.flush(self)
            # Wakes whoever waits for bytes; that one closes it.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            under_way = list(self._under_way)
            self._under_way.clear()
            for call in under_way:
                call.finish(self, lost=True)
            for watch in list(self._watches.values()):
                watch.end()
            if self._poller is None:
                self._close()

    def _close(self) -> None:
        # The epoll object is left to be collected: another thread may be asking it.
        self._sock.close()


class _Watch:
    """Has an event loop take in what comes on a connection.

    It does so through a file descriptor of its own: nobody can close that one, and have
    its number given to something else, while the loop still knows it.

    Parameters:
        loop: the event loop, in which this is made.
        wire: the connection.
        fileno: its file descriptor.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, wire: TrackedConnection, fileno: int
    ) -> None:
        self._loop = loop
        self._wire = wire
        self._fileno = os.dup(fileno)
        # Also of a loop that has been collected.
        self._close = finalize(self, os.close, self._fileno)
        self._close.atexit = False
        try:
            loop.add_reader(self._fileno, self._take_in)
        except BaseException:
            self._close()
            raise

    def end(self) -> None:
        """Watch no longer."""
        with contextlib.suppress(RuntimeError):  # a loop that is closed
            self._loop.call_soon_threadsafe(self._end)

    def _take_in(self) -> None:
        self._wire.take_in()
        if self._wire.closed:
            self._end()

    def _end(self) -> None:
        if self._close.alive:
            self._loop.remove_reader(self._fileno)
            self._close()
