"""The renewal: it keeps one identity's token fresh.

A :class:`Renewal` owns a daemon thread that sleeps until the token is due, and makes
each request in a short-lived thread of its own: whatever an endpoint or a foreign
credential does, the schedule goes on and no caller waits longer than the timeout.
Neither Django nor Redis is known here; the fetch, the clock and the jitter are
injected.
"""

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from .._fork import Order, register
from ..conf.policy import Policy
from ..exceptions import TokenError, TokenRequestError
from ..identity.token import ROUNDING, SYSTEM_CLOCK, Clock, Fetch, Token
from ..status import Status
from .schedule import (
    forced_interval,
    renewal_delay,
    repeat_delay,
    retry_cap,
    retry_delay,
)
from .state import State

logger = logging.getLogger(__name__)

#: Seconds from a token's arrival to the next request at least, however short its life.
SHORTEST_PAUSE = 1.0
#: Seconds between two looks at the wall clock, which a suspended machine steps.
LOOK = 30.0
#: Requests that hang at one time from which on further ones are begun seldom, and the
#: seconds between those: each may be a thread that never comes back.
MAX_HANGING = 3
HANGING_PAUSE = 300.0
#: Seconds that a request may be old for a fork to wait for it.
FORK_PATIENCE = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """One token request under way; ``done`` says that its outcome is in the state."""

    deadline: float
    done: Future[None] = field(default_factory=Future)

    def wake(self) -> None:
        """Have those who wait for it look at the state."""
        if not self.done.done():
            self.done.set_result(None)


def _log(level: int, message: str, *args: object) -> None:
    """Log, whatever a site's handlers raise: the next request is due all the same."""
    with contextlib.suppress(Exception):
        logger.log(level, message, *args)


def _ignore(status: Status, token: Token) -> None:
    """Stand in for a callback that nobody gave."""


def _ignore_error(status: Status, error: Exception) -> None:
    """Stand in for a callback that nobody gave."""


class Renewal:
    """Gets a token, renews it for as long as the process lives, and hands it out.

    Parameters:
        identity: name of the identity, for the log and the status.
        kind: what sort of identity it is, for the status.
        make_fetch: called once in each process; returns the function that requests a
            token, which raises :class:`TokenRequestError` when it gets none.
        policy: when to renew.
        clock: what to tell the time by.
        jitter: returns a number from 0 to 1.
        on_renewed: called with the status and each new token, in the request's thread.
        on_failed: called with the status and each error, likewise; of a request that
            hangs, in a thread of its own.
    """

    def __init__(
        self,
        identity: str,
        kind: str,
        make_fetch: Callable[[], Fetch],
        *,
        policy: Policy,
        clock: Clock = SYSTEM_CLOCK,
        jitter: Callable[[], float] = random.random,
        on_renewed: Callable[[Status, Token], None] = _ignore,
        on_failed: Callable[[Status, Exception], None] = _ignore_error,
    ) -> None:
        self.identity = identity
        self.kind = kind
        self.clock = clock
        self.policy = policy
        self.state = State()
        self._make_fetch = make_fetch
        self._jitter = jitter
        self._on_renewed = on_renewed
        self._on_failed = on_failed
        self._monotonic = clock.monotonic
        self._wall = clock.wall
        self._stopped = False
        self._wanted = False
        self._warned = False
        self._reset_process()
        register(self, Order.TOKENS)

    def _reset_process(self) -> None:
        """Set what belongs to one process alone, at birth and after a fork."""
        self._fetch: Fetch | None = None
        self._thread: threading.Thread | None = None
        self._attempt: _Attempt | None = None
        self._hanging = 0
        self._forced_at: float | None = None
        # Guards every attribute above, and each replacement of ``state``; the thread
        # sleeps on it. Reentrant, since a signal handler may use the cache while the
        # thread that it interrupts is in here.
        self._changed = threading.Condition(threading.RLock())

    # -- what callers use ------------------------------------------------------------

    def current(self) -> Token:
        """Return a valid token; wait for the request under way if there is none.

        Raises:
            TokenError: none could be had, and why.
        """
        token = self.fresh()
        if token is not None:
            return token
        attempt = self._seek()
        if attempt is not None:
            wait([attempt.done], timeout=attempt.deadline - self._monotonic())
        return self._settled()

    async def acurrent(self) -> Token:
        """Do as :meth:`current` does, without blocking the event loop."""
        token = self.fresh()
        if token is not None:
            return token
        attempt = self._seek()
        if attempt is not None:
            await self._await(attempt)
        return self._settled()

    def replace(self, refused: Token) -> Token | None:
        """Return another token than one that Redis refused, or ``None``.

        Requests a new one if need be, but not again and again.
        """
        attempt = self._seek_other(refused)
        if attempt is not None:
            wait([attempt.done], timeout=attempt.deadline - self._monotonic())
        return self._other(refused)

    async def areplace(self, refused: Token) -> Token | None:
        """Do as :meth:`replace` does, without blocking the event loop."""
        attempt = self._seek_other(refused)
        if attempt is not None:
            await self._await(attempt)
        return self._other(refused)

    def status(self) -> Status:
        """Return a snapshot of what can be told."""
        return self.state.status(self.identity, self.kind, self.clock)

    def start(self, delay: float = 0.0) -> None:
        """Start the thread; its first request begins ``delay`` seconds from now."""
        with self._changed:
            if self.state.due_at is None:
                self.state = self.state.due(self._monotonic() + delay)
            self._start_thread()

    def stop(self) -> None:
        """End the thread. A later caller still gets a token, but none is renewed."""
        with self._changed:
            self._stopped = True
            self._thread = None
            self._changed.notify_all()

    # -- seeking a token -------------------------------------------------------------

    def fresh(self) -> Token | None:
        """Return the token if it may be taken without a further look."""
        state = self.state
        token = state.token
        if (
            token is not None
            and self._monotonic() < state.trusted_until
            and self._wall() < token.expires_on
        ):
            return token
        return None

    def _seek(self) -> _Attempt | None:
        """Return the request to wait for; ``None`` when the state has the answer."""
        # The thread does it, where there is one.
        self._abandon()
        with self._changed:
            self._wanted = True
            self._start_thread()
            self._hasten()
            state, now = self.state, self._monotonic()
            valid = state.token is not None and not state.token.expired(self.clock)
            due = state.due_at is None or now >= state.due_at
            # Between two tries the last error is the answer: whoever waited for the
            # next one would queue behind an outage.
            if self._attempt is None and (due or not (valid or state.last_error)):
                self._begin()
            return None if valid else self._attempt

    def _seek_other(self, refused: Token) -> _Attempt | None:
        with self._changed:
            now, token = self._monotonic(), self.state.token
            if token is not None and token.value != refused.value:
                return None if not token.expired(self.clock) else self._attempt
            if self._attempt is None and self._hanging < MAX_HANGING:
                interval = forced_interval(refused.life)
                if self._forced_at is None or now >= self._forced_at + interval:
                    self._forced_at = now
                    self._begin()
            return self._attempt

    async def _await(self, attempt: _Attempt) -> None:
        await asyncio.wait(
            [asyncio.wrap_future(attempt.done)],
            timeout=max(0.0, attempt.deadline - self._monotonic()),
        )

    def _other(self, refused: Token) -> Token | None:
        token = self.state.token
        # By value: one that is good for longer now is refused all the same.
        if token is None or token.value == refused.value or token.expired(self.clock):
            return None
        return token

    def _settled(self) -> Token:
        token = self.state.token
        if token is not None and not token.expired(self.clock):
            return token
        error = self.state.last_error or self._no_answer()
        raise TokenError(
            f"No valid token for identity '{self.identity}': {error}", code=error.code
        )

    def _no_answer(self) -> TokenRequestError:
        return TokenRequestError(
            "the identity endpoint did not answer within "
            f"{self.policy.timeout:g} s (REQUEST_TIMEOUT).",
            code="token_timeout",
        )

    # -- requesting it ---------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a request in a thread of its own. The lock is held."""
        now, state = self._monotonic(), self.state
        deadline = now + self.policy.timeout
        attempt = self._attempt = _Attempt(deadline)
        # Then no waiter that is cancelled cancels it for the others.
        attempt.done.set_running_or_notify_cancel()
        try:
            threading.Thread(
                target=self._request,
                args=(attempt,),
                name=f"entra-redis-token-request:{self.identity}",
                daemon=True,
            ).start()
        except RuntimeError as error:
            # No thread starts at the process's limit, nor at interpreter shutdown; a
            # subinterpreter of its own GIL has no daemon threads at all.
            failure = TokenRequestError(
                f"no thread could be started for the request: {error}."
            )
            self.state = state.failed(failure, now).due(now + retry_cap(None))
            self._end(attempt)
            return
        self.state = state.due(deadline)
        self._changed.notify_all()

    def _request(self, attempt: _Attempt) -> None:
        outcome: Token | TokenRequestError
        try:
            fetch = self._fetch or self._make_fetch()
            with self._changed:
                # An abandoned one is still in use in here, and not to be shared.
                if attempt is self._attempt:
                    self._fetch = fetch
            outcome = fetch()
        except TokenRequestError as failure:
            outcome = failure.with_traceback(None)
        except BaseException as failure:
            # Somebody's credential may raise even SystemExit, and whoever waits is to
            # hear of it. The text may hold anything; the type tells where to look.
            outcome = TokenRequestError(
                f"the request failed with {type(failure).__name__}."
            )
        if isinstance(outcome, TokenRequestError):
            self._fail(attempt, outcome)
        else:
            self._succeed(attempt, outcome)

    def _succeed(self, attempt: _Attempt, token: Token) -> None:
        with self._changed:
            now, state = self._monotonic(), self.state
            old = state.token
            same = token.repeats(old)
            if old is not None and same and not old.expired(self.clock):
                # IMDS hands out one token until it is nearly over. Its holders need
                # not authenticate anew, and asking again must not become a spin.
                token = old
                left = old.expires_at - now
                due_at = now + repeat_delay(left, old.life, self.policy, self._jitter())
            else:
                delay = renewal_delay(token.life, self.policy, self._jitter())
                due_at = token.received_at + delay
            outage = state.outage if self._warned else 0
            self._warned = False
            due_at = max(due_at, now + SHORTEST_PAUSE)
            self.state = state.succeeded(token, self._wall()).due(due_at)
            self._end(attempt)
            if self._attempt is not None:
                # The late answer to an abandoned request serves those who wait for
                # the next one.
                self._attempt.wake()
            status = self.status()
        if self._stopped:
            return
        if outage:
            _log(
                logging.INFO,
                "Identity '%s' has a token again after %d failed requests.",
                self.identity,
                outage,
            )
        elif old is None:
            _log(logging.INFO, "Identity '%s' has a token.", self.identity)
        if not same:
            self._on_renewed(status, token)

    def _fail(
        self, attempt: _Attempt, error: TokenRequestError, *, hangs: bool = False
    ) -> None:
        with self._changed:
            if attempt is not self._attempt:
                if not hangs:
                    self._end(attempt)
                    self._resume(error)
                return
            now, text = self._monotonic(), str(error)
            state = self.state.failed(error, now)
            delay = self._retry_delay(state, error)
            if hangs:
                self._fetch = None  # it is still in use over there
                self._hanging += 1
                if self._hanging >= MAX_HANGING:
                    delay = HANGING_PAUSE
            self.state = state.due(now + delay)
            self._end(attempt)
            # A build step without a network is no outage: nobody has asked.
            warn = not self._warned and (self._wanted or state.token is not None)
            self._warned = self._warned or warn
            status = self.status()
        if self._stopped:
            return
        _log(
            logging.WARNING if warn else logging.DEBUG,
            "Identity '%s' got no token (retried until it does): %s",
            self.identity,
            text,
        )
        if not hangs:
            self._on_failed(status, error)
            return
        # Whoever has noticed may be the schedule's thread, a request or an event loop:
        # what the callback does, is not for these to wait for.
        with contextlib.suppress(RuntimeError):  # as in _begin()
            threading.Thread(
                target=self._on_failed,
                args=(status, error),
                name=f"entra-redis-token-failure:{self.identity}",
                daemon=True,
            ).start()

    def _retry_delay(self, state: State, error: TokenRequestError) -> float:
        """Return the seconds from a failure to the next request."""
        cap = state.retry_cap(self.clock)
        return retry_delay(state.outage, cap, error.retry_after, self._jitter())

    def _hasten(self) -> None:
        """Cut a pause short whose token a step of the wall clock has ended.

        The lock is held. One that the endpoint asked for is kept, and so is one for the
        sake of hanging requests.
        """
        state = self.state
        error, token, due_at = state.last_error, state.token, state.due_at
        if (
            error is not None
            and error.retry_after is None
            and self._hanging < MAX_HANGING
            and due_at is not None
            and token is not None
            and token.expired(self.clock)
        ):
            latest = self._monotonic() + retry_cap(token.life)
            self.state = state.due(min(due_at, latest))

    def _resume(self, error: TokenRequestError) -> None:
        """Go on as after any failure where one of too many hanging requests has ended.

        The lock is held.
        """
        state = self.state
        if (
            self._hanging == MAX_HANGING - 1
            and self._attempt is None
            and state.outage
            and state.due_at is not None
        ):
            delay = self._retry_delay(state, error)
            self.state = state.due(min(state.due_at, self._monotonic() + delay))
            self._changed.notify_all()

    def _end(self, attempt: _Attempt) -> None:
        """Let go of a request that is over. The lock is held."""
        if attempt is self._attempt:
            self._attempt = None
        else:
            self._hanging -= 1
        attempt.wake()
        self._changed.notify_all()

    def _abandon(self) -> None:
        """Let go of a request that has hung for too long."""
        attempt = self._attempt
        if attempt is not None and self._monotonic() >= attempt.deadline:
            self._fail(attempt, self._no_answer(), hangs=True)

    # -- the thread ------------------------------------------------------------------

    def _start_thread(self) -> None:
        """Start the thread unless it lives. The lock is held."""
        if self._stopped or (self._thread is not None and self._thread.is_alive()):
            return
        with contextlib.suppress(RuntimeError):  # as in _begin()
            thread = threading.Thread(
                target=self._run,
                name=f"entra-redis-renewal:{self.identity}",
                daemon=True,
            )
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while True:
            self._abandon()
            with self._changed:
                if self._thread is not threading.current_thread():
                    return
                self._step()

    def _step(self) -> None:
        """Sleep, or begin a request. The lock is held."""
        self._hasten()
        now, attempt, state = self._monotonic(), self._attempt, self.state
        if attempt is not None:
            self._changed.wait(max(0.0, attempt.deadline - now))
            return
        pause = LOOK if state.due_at is None else state.due_at - now
        token = state.token
        # Somebody has set the wall clock, or the machine was suspended.
        stepped = (
            token is not None
            and self._wall() >= token.expires_on
            and now < token.expires_at - ROUNDING
        )
        if pause <= 0 or (stepped and not state.outage):
            self._begin()
        else:
            self._changed.wait(min(pause, LOOK))

    # -- forks -----------------------------------------------------------------------

    def before_fork(self) -> bool:
        """Let a request under way come to its end, but not for long; begin no other.

        Returns whether :meth:`after_fork_in_parent` is to be called.

        What its thread has locked would stay locked in the child, and not everything
        can be unlocked there: OpenSSL's own locks can't. Besides, the child inherits
        the token.
        """
        if not self._changed.acquire(timeout=FORK_PATIENCE):
            return False
        try:
            while (attempt := self._attempt) is not None:
                begun = attempt.deadline - self.policy.timeout
                left = begun + FORK_PATIENCE - self._monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
        except BaseException:
            # A signal handler's. Python reports it, and forks all the same.
            self._changed.release()
            raise
        return True

    def after_fork_in_parent(self) -> None:
        """Go on: requests may begin again."""
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Go on in a child process: with the parent's token, without its thread."""
        running, requesting = self._thread is not None, self._attempt is not None
        self._reset_process()
        if not running:
            return
        state, now = self.state, self._monotonic()
        # The request under way is the parent's, and so is the time that it has.
        due_at = now if state.due_at is None or requesting else state.due_at
        if state.token is not None:
            life = state.token.life
            if not state.outage:
                delay = renewal_delay(life, self.policy, self._jitter())
                due_at = state.token.received_at + delay
            if requesting or due_at < now:
                # Siblings forked in the same moment do not ask in the same moment.
                due_at = now + self._jitter() * retry_cap(life)
        self.state = state.due(due_at)
        with self._changed:
            self._start_thread()
