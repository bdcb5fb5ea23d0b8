"""One tracking connection: the server tracks the keys that are read on it.

No thread reads it in the background. A thread that needs a copy first processes all
received bytes, such as invalidations; a thread that waits for a value processes the
bytes for all threads.
"""

import asyncio
import contextlib
import errno
import logging
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from time import monotonic
from typing import Any

from redis.exceptions import InvalidResponse

from ..commands.resp import INCOMPLETE, UNREADABLE
from ..commands.resp3 import PUSH, make_push_reader
from ..credentials.reauthentication import Action, next_action
from ..credentials.renewal import Renewal
from ..identity.token import Token
from .authentication import pack_marked_auth
from .copies import Copies
from .loop_watch import LoopWatch
from .refusals import read_error
from .tracked_calls import CHECK, CHECKS, Ask, Authentication, Call, Fetch, pack_fetch

logger = logging.getLogger(__name__)

#: Errors after which the connection can't be used any more.
BROKEN: tuple[type[Exception], ...] = (OSError, *UNREADABLE)
#: Bytes to receive at a time, and how many times in a row at most.
PIECE = 64 * 1024
_MOST_PIECES = 64
#: Seconds after which a thread that can't be woken checks its call by itself.
_NAP = 0.05
#: Bytes of commands that may be unanswered; while there are more, values are read
#: without a copy. A new connection's send buffer holds twice as many (87 KB on Linux).
MOST_UNANSWERED = 32 * 1024
#: Bytes of the commands of one fetch, before which a check may be due.
MOST_FETCHED = MOST_UNANSWERED - len(CHECK)


class TrackedConnection:
    """One tracking connection.

    Parameters:
        sock: the socket, authenticated, with tracking switched on.
        copies: the copies that are invalidated on it.
        timeout: seconds to wait for a reply.
        max_staleness: seconds after the last sign of life in which copies may be used.
        now: when the last sign of life was asked for.
        held: the token that the connection last authenticated with.
        provide: returns the renewal of that token.
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
        # When to check the connection again: values confirm that it lives, but not that
        # the server is still no replica.
        self.check_at = self.ask_at
        self.timeout = timeout
        # Guards the socket, the reader and all attributes below. A thread holds it to
        # send or to receive, never to wait. It is reentrant, since a signal handler may
        # use the cache: that finds ``_busy`` set.
        self._gate = threading.RLock()
        self._busy = False
        #: Whether a thread is processing bytes, which it has taken off the socket.
        self.taking_in = False
        self._sock = sock
        self._pending = getattr(sock, "pending", None)
        self._reader = make_push_reader(read_error)
        self._under_way: deque[Call | Ask] = deque()
        self._unanswered = 0
        self._asking: Fetch | None = None
        # The thread that waits for bytes, on behalf of all threads; whether it sleeps;
        # and whether it has been woken.
        self._poller: int | None = None
        self._sleeping = False
        self._woken = False
        #: Whether the connection was lost since no reply came in time.
        self.silent = False
        self._watches: dict[asyncio.AbstractEventLoop, LoopWatch] = {}
        self._epoll: Any = None
        self._wait_for_bytes: Callable[[float], Any] = self._wait_without_epoll
        # gevent removes epoll, and other systems have none: there every check tries to
        # receive.
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self.has_come: Callable[[], Any] = partial(self._epoll.poll, 0, 1)
            self._wait_for_bytes = self._epoll.poll
        else:
            self.has_come = lambda: True

    # -- health ----------------------------------------------------------------------

    def is_fresh(self, key: str) -> bool:
        """Process received bytes; return whether copies may be used now.

        Parameters:
            key: the key whose copy is to be used.
        """
        if self.has_come() or self.taking_in:
            self.take_in()
        now = monotonic()
        return now < self.ask_at or self.is_confirmed(key, now)

    def confirm(self, asked_at: float, checked: bool = False) -> None:
        """Note a sign of life: the reply to a command.

        Parameters:
            asked_at: when the command was sent.
            checked: whether the reply shows that the server is no replica, too.
        """
        if asked_at > self.confirmed_at:
            self.confirmed_at = asked_at
            self.ask_at = asked_at + self._interval
        if checked:
            self.check_at = max(self.check_at, asked_at + self._interval)

    def _hold(self, held: Token | None) -> None:
        """Note the token that the connection has authenticated with."""
        self.held = held
        # Seconds after which to ask for another sign of life: early enough for the
        # reply, and for AUTH in time where the token's life is short.
        self._interval = self._max_staleness / 2
        if held is not None:
            life = held.expires_at - held.received_at
            self._interval = min(self._interval, life / 12)

    def is_confirmed(self, key: str, now: float) -> bool:
        """Return whether copies may be used; ask for a sign of life early, without
        waiting for it."""
        if now >= self.confirmed_at + self._max_staleness:
            return False
        self.keep_up()
        if self._asking is None or self._asking.done:
            self._asking = self.fetch([key])
        return not self.closed

    # -- sending ---------------------------------------------------------------------

    def fetch(
        self,
        keys: Sequence[str],
        future: "asyncio.Future[None] | None" = None,
    ) -> Fetch | None:
        """Send a fetch of values; ``None``: this connection can't do it now.

        Parameters:
            keys: the keys.
            future: a future whose result is set when the values are there. Without one,
                a thread may :meth:`wait` for the call.
        """
        now = monotonic()
        due = now >= self.check_at
        # With a check of the connection first, if there was none for a while.
        packed = (CHECK if due else b"") + b"".join(map(pack_fetch, keys))
        with self._gate:
            if (
                self._busy
                or self.closed
                or self._unanswered + len(packed) > MOST_UNANSWERED
            ):
                return None
            fills = [self.copies.begin(key, self) for key in keys]
            call = Fetch(fills, CHECKS * due, now, len(packed), future)
            self._send(packed, call)
            return call

    def ask(self, key: str) -> Ask | None:
        """Fetch the value of one key and wait for it, if no other call is under way.

        Returns:
            The call, which is done; ``None``: use :meth:`fetch` and :meth:`wait`.
        """
        packed = pack_fetch(key)
        now = monotonic()
        polls = False
        try:
            with self._gate:
                if (
                    self._under_way
                    or self._poller is not None
                    or self._busy
                    or self.closed
                    or now >= self.check_at
                    or len(packed) > MOST_UNANSWERED
                ):
                    return None
                call = Ask(key, self, now, len(packed))
                self.copies.add(call)
                self._poller, polls = get_ident(), True
                self._send(packed, call)
            left = self.timeout
            while left > 0:
                self._sleep(call, left)
                with self._gate:
                    self._take_in()
                    if call.done:
                        polls = False
                        self._poller = None
                        if self._under_way or self.closed:
                            self._pass_on()
                        return call
                left = now + self.timeout - monotonic()
            self.give_up()
            return call
        finally:
            if polls:
                self._hand_over()

    def keep_up(self) -> None:
        """Authenticate again if there is a newer token."""
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
        # Without an offset: a process has one such connection for each server, and
        # processes do not renew at the same time.
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
        """Note the reply to AUTH.

        Parameters:
            token: the token; ``None``: the server has refused it.
        """
        self._authenticating = False
        if token is None:
            self.lose("the newer token was refused")
        else:
            self._hold(token)

    def _send(self, packed: bytes, call: Call | Ask) -> None:
        self._under_way.append(call)
        self._unanswered += call.size
        self._busy = True
        try:
            # A full send buffer means that the server does not read any more.
            if self._sock.send(packed) != len(packed):
                raise BlockingIOError(errno.EAGAIN, "the server does not read")
        except OSError as error:
            self.lose(error)
        except BaseException:
            # A signal handler has raised: a part may have been sent.
            self.lose("interrupted")
            raise
        finally:
            self._busy = False

    # -- receiving -------------------------------------------------------------------

    def take_in(self) -> None:
        """Process all received bytes, without waiting for more."""
        with self._gate:
            self._take_in(drain=True)

    def _take_in(self, *, drain: bool = False) -> None:
        if self._busy or self.closed:
            return
        self._busy = self.taking_in = True
        pending = self._pending
        try:
            for _ in range(_MOST_PIECES):
                data = self._sock.recv(PIECE)
                if not data:
                    raise ConnectionError("the server has closed it")
                self._reader.feed(data)
                alive = self._dispatch()
                # What TLS has decrypted already does not make the socket readable. And
                # only another look shows that the server has closed the connection.
                if not alive or not (
                    len(data) == PIECE
                    or (pending and pending())
                    or (drain and self.has_come())
                ):
                    break
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except BROKEN as error:
            self.lose(error)
        except BaseException:
            # A signal handler has raised: bytes may be lost.
            self.lose("interrupted")
            raise
        finally:
            self._busy = self.taking_in = False
            if self._sleeping:
                self._wake()

    def _wake(self) -> None:
        """Wake the thread that waits for bytes, which another thread has processed."""
        if self._epoll is not None and not self.closed and not self._woken:
            self._woken = True
            self._epoll.modify(self._sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _dispatch(self) -> bool:
        """Process what has been received; return whether the connection is open."""
        gets, under_way = self._reader.gets, self._under_way
        while (reply := gets()) is not INCOMPLETE:
            if type(reply) is PUSH:
                self._invalidate(reply)
                continue
            try:
                call = under_way[0]
            except IndexError:
                raise InvalidResponse("A reply came without a command.") from None
            replies = call.replies
            replies.append(reply)
            if len(replies) == call.count:
                under_way.popleft()
                self._unanswered -= call.size
                call.finish(self, lost=False)
                if self.closed:
                    return False
        return True

    def _invalidate(self, push: Any) -> None:
        if push[0] != b"invalidate":
            return
        if push[1] is None:
            self.copies.flush(self)
        else:
            self.copies.invalidate([key.decode(errors="replace") for key in push[1]])

    # -- waiting ---------------------------------------------------------------------

    def wait(self, call: Call) -> None:
        """Wait until a call of this thread is done."""
        me = get_ident()
        # A signal handler may come while its own thread waits for bytes.
        nested = self._poller == me
        try:
            self._wait(call, me, nested)
        except BaseException:
            # A signal handler has raised: the turn goes to a thread that still waits.
            with self._gate:
                call.renounce_turn()
                if not nested and self._poller in (None, me):
                    self._pass_on()
            raise

    def _wait(self, call: Call, me: int, nested: bool) -> None:
        deadline = monotonic() + self.timeout
        while not call.done:
            left = deadline - monotonic()
            if left <= 0:
                self.give_up()
                return
            with self._gate:
                polls = nested or self._poller is None
                if polls:
                    self._poller = me
                else:
                    call.want_turn()
                turn = call.turn
            if not polls:
                if turn is not None:
                    turn.acquire(timeout=left)
                continue
            try:
                self._sleep(call, left)
                with self._gate:
                    self._take_in()
            finally:
                if not nested:
                    self._hand_over()

    def _sleep(self, call: Call | Ask, seconds: float) -> None:
        """Wait for bytes, unless another thread has finished the call already."""
        before = self._sleeping
        # In this order: a receiving thread first finishes calls, then reads this flag.
        self._sleeping = True
        try:
            if not call.done:
                self._wait_for_bytes(seconds)
        finally:
            self._sleeping = before
        if self._woken:
            with self._gate:
                self._woken = False
                # The socket is open even after a loss: the polling thread closes it.
                self._epoll.modify(self._sock.fileno(), select.EPOLLIN)

    def _wait_without_epoll(self, seconds: float) -> None:
        # No other thread can wake this one.
        seconds = min(seconds, _NAP)
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._sock.fileno(), select.POLLIN)
            poll.poll(seconds * 1000)
        else:
            select.select([self._sock], [], [], seconds)

    def _hand_over(self) -> None:
        """Let another thread that waits for a reply wait for bytes."""
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
        """Let an event loop process received bytes; return whether it can."""
        if loop in self._watches:
            return True
        for other in [other for other in list(self._watches) if other.is_closed()]:
            self._watches.pop(other, None)
        try:
            self._watches[loop] = LoopWatch(loop, self, self._sock.fileno())
        except (NotImplementedError, OSError, ValueError):
            return False  # such as Windows' default event loop
        return True

    # -- the end ---------------------------------------------------------------------

    def give_up(self) -> None:
        """Close the connection, on which no reply has come in time."""
        with self._gate:
            self.silent = self.silent or not self.closed
            # To fetch again what has come in part would cost all this once more.
            if self._under_way and self._reader.has_data():
                self.copies.cool(self._under_way[0].keys)
            self.lose("it does not answer")

    def lose(self, reason: object) -> None:
        """Close the connection; drop all copies that it would have invalidated."""
        with self._gate:
            if self.closed:
                return
            self.closed = True
            self.confirmed_at = self.ask_at = float("-inf")
            logger.debug("A tracking connection was closed: %s", reason)
            self.copies.flush(self)
            # Wakes the thread that waits for bytes, which then closes the socket.
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
        # The epoll object is not closed, since another thread may be polling it.
        self._sock.close()
