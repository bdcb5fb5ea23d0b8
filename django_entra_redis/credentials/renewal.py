"""The renewal: it keeps one identity's token fresh.

A :class:`Renewal` owns a daemon thread that sleeps until a renewal is due. Each token
request runs in a short-lived thread of its own: even if an endpoint or a user's
credential hangs, the schedule goes on, and no caller waits longer than the timeout.
This module knows neither Django nor Redis; the fetch, the clock and the jitter are
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
#: Seconds between two checks of the wall clock, which jumps when a suspended machine
#: resumes.
CLOCK_CHECK = 30.0
#: Requests that hang at the same time, from which on the pauses between requests are
#: ``HANGING_PAUSE`` seconds: each of them may occupy a thread for ever.
MAX_HANGING = 3
HANGING_PAUSE = 300.0
#: Seconds that a fork waits for a request, counted from the request's beginning.
FORK_PATIENCE = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """One token request under way; ``done`` is set once its result is in the state."""

    deadline: float
    done: Future[None] = field(default_factory=Future)

    def wake(self) -> None:
        """Wake the callers that wait for this request; they read the state then."""
        if not self.done.done():
            self.done.set_result(None)


def _log(level: int, message: str, *args: object) -> None:
    """Log; ignore errors of the site's log handlers, so that the renewal goes on."""
    with contextlib.suppress(Exception):
        logger.log(level, message, *args)


def _ignore(status: Status, token: Token) -> None:
    """Do nothing: the default of ``on_renewed``."""


def _ignore_error(status: Status, error: Exception) -> None:
    """Do nothing: the default of ``on_failed``."""


class Renewal:
    """Gets a token, renews it as long as the process lives, and hands it to callers.

    Parameters:
        identity: the identity's name in ``ENTRA_REDIS``, for the log and the status.
        kind: the identity's kind, for the status.
        make_fetch: called once in each process; returns the function that requests a
            token, which raises :class:`TokenRequestError` when it gets none.
        policy: when to renew, and the timeout of a request.
        clock: the clocks.
        jitter: returns a number from 0 to 1.
        on_renewed: called with the status and each new token, in the request's thread.
        on_failed: called with the status and each error, in the request's thread; for
            a request that hangs, in another one.
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
        """Set the attributes that a child process must not inherit."""
        self._fetch: Fetch | None = None
        self._thread: threading.Thread | None = None
        self._attempt: _Attempt | None = None
        self._hanging = 0
        self._forced_at: float | None = None
        # Guards every attribute above, and each replacement of ``state``; the thread
        # sleeps on it. Reentrant, since a signal handler may use the cache while its
        # thread holds the lock.
        self._changed = threading.Condition(threading.RLock())

    # -- for callers -----------------------------------------------------------------

    def current(self) -> Token:
        """Return a valid token; if there is none, wait for a request.

        Raises:
            TokenError: there is no valid token; the text has the reason.
        """
        token = self.fresh()
        if token is not None:
            return token
        attempt = self._attempt_to_await()
        if attempt is not None:
            wait([attempt.done], timeout=attempt.deadline - self._monotonic())
        return self._result()

    async def acurrent(self) -> Token:
        """Do as :meth:`current` does, without blocking the event loop."""
        token = self.fresh()
        if token is not None:
            return token
        attempt = self._attempt_to_await()
        if attempt is not None:
            await self._await(attempt)
        return self._result()

    def replace(self, refused: Token) -> Token | None:
        """Return another token than one that Redis refused; ``None``: there is none.

        It requests one if need be, at most once per :func:`forced_interval`.
        """
        attempt = self._attempt_for_another(refused)
        if attempt is not None:
            wait([attempt.done], timeout=attempt.deadline - self._monotonic())
        return self._other(refused)

    async def areplace(self, refused: Token) -> Token | None:
        """Do as :meth:`replace` does, without blocking the event loop."""
        attempt = self._attempt_for_another(refused)
        if attempt is not None:
            await self._await(attempt)
        return self._other(refused)

    def status(self) -> Status:
        """Return a snapshot of the status, without the token."""
        return self.state.status(self.identity, self.kind, self.clock)

    def start(self, delay: float = 0.0) -> None:
        """Start the thread; the first request begins ``delay`` seconds from now."""
        with self._changed:
            if self.state.due_at is None:
                self.state = self.state.due(self._monotonic() + delay)
            self._start_thread()

    def stop(self) -> None:
        """End the thread. Later callers still get a token, which is not renewed."""
        with self._changed:
            self._stopped = True
            self._thread = None
            self._changed.notify_all()

    # -- seeking a token -------------------------------------------------------------

    def fresh(self) -> Token | None:
        """Return the token if it is valid and its renewal is not late, else None."""
        state = self.state
        token = state.token
        if (
            token is not None
            and self._monotonic() < state.trusted_until
            and self._wall() < token.expires_on
        ):
            return token
        return None

    def _attempt_to_await(self) -> _Attempt | None:
        """Return the request to wait for; ``None``: the state has the answer."""
        # Usually the thread does this, but it may not run (see LATENESS).
        self._abandon()
        with self._changed:
            self._wanted = True
            self._start_thread()
            self._shorten_pause()
            state, now = self.state, self._monotonic()
            valid = state.token is not None and not state.token.expired(self.clock)
            due = state.due_at is None or now >= state.due_at
            # Between two requests the last error is the answer: callers that waited for
            # the next request would pile up in an outage.
            if self._attempt is None and (due or not (valid or state.last_error)):
                self._begin()
            return None if valid else self._attempt

    def _attempt_for_another(self, refused: Token) -> _Attempt | None:
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
        # Compared by value: the same token with a later expiry would be refused, too.
        if token is None or token.value == refused.value or token.expired(self.clock):
            return None
        return token

    def _result(self) -> Token:
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
        """Begin a request in a thread of its own. The caller holds the lock."""
        now, state = self._monotonic(), self.state
        deadline = now + self.policy.timeout
        attempt = self._attempt = _Attempt(deadline)
        # A running future can't be cancelled, not even by a waiter that is cancelled.
        attempt.done.set_running_or_notify_cancel()
        try:
            threading.Thread(
                target=self._request,
                args=(attempt,),
                name=f"entra-redis-token-request:{self.identity}",
                daemon=True,
            ).start()
        except RuntimeError as error:
            # No thread starts at the process's limit or at interpreter shutdown, and a
            # subinterpreter with its own GIL has no daemon threads at all.
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
                # An abandoned request still uses its fetch, which must not be shared.
                if attempt is self._attempt:
                    self._fetch = fetch
            outcome = fetch()
        except TokenRequestError as failure:
            outcome = failure.with_traceback(None)
        except BaseException as failure:
            # A user's credential may raise even SystemExit, and the callers must get an
            # error. Only the type is named, since the text may hold a secret.
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
                # IMDS repeats a token until it has nearly expired. Connections need not
                # authenticate again, and requests must not follow one another at once.
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
                # A late answer to an abandoned request also serves callers that wait
                # for the request after it.
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
                self._fetch = None  # the hanging request still uses it
                self._hanging += 1
                if self._hanging >= MAX_HANGING:
                    delay = HANGING_PAUSE
            self.state = state.due(now + delay)
            self._end(attempt)
            # Without a caller it is no outage: a build step may have no network.
            warn = not self._warned and (self._wanted or state.token is not None)
            self._warned = self._warned or warn
            status = self.status()
        if self._stopped:
            return
        _log(
            logging.WARNING if warn else logging.DEBUG,
            "Identity '%s' got no token (the request is retried until it does): %s",
            self.identity,
            text,
        )
        if not hangs:
            self._on_failed(status, error)
            return
        # In a thread of its own: this may be the schedule's thread, a caller's or an
        # event loop's, which must not wait for the callback.
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

    def _shorten_pause(self) -> None:
        """Shorten a long pause if a jump of the wall clock has ended the token's life.

        The caller holds the lock. Pauses that the endpoint asked for, and those because
        of hanging requests, are not shortened.
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
        """Return to normal pauses once one of too many hanging requests has ended.

        The caller holds the lock.
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
        """Note that a request has ended, and wake its waiters.

        The caller holds the lock.
        """
        if attempt is self._attempt:
            self._attempt = None
        else:
            self._hanging -= 1
        attempt.wake()
        self._changed.notify_all()

    def _abandon(self) -> None:
        """Count a request that has passed its deadline as hanging and as failed."""
        attempt = self._attempt
        if attempt is not None and self._monotonic() >= attempt.deadline:
            self._fail(attempt, self._no_answer(), hangs=True)

    # -- the thread ------------------------------------------------------------------

    def _start_thread(self) -> None:
        """Start the thread unless it runs. The caller holds the lock."""
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
        """Sleep, or begin a request. The caller holds the lock."""
        self._shorten_pause()
        now, attempt, state = self._monotonic(), self._attempt, self.state
        if attempt is not None:
            self._changed.wait(max(0.0, attempt.deadline - now))
            return
        pause = CLOCK_CHECK if state.due_at is None else state.due_at - now
        token = state.token
        # The wall clock was set, or the machine was suspended.
        stepped = (
            token is not None
            and self._wall() >= token.expires_on
            and now < token.expires_at - ROUNDING
        )
        if pause <= 0 or (stepped and not state.outage):
            self._begin()
        else:
            self._changed.wait(min(pause, CLOCK_CHECK))

    # -- forks -----------------------------------------------------------------------

    def before_fork(self) -> bool:
        """Wait briefly for the request under way; let no other begin before the fork.

        Returns whether :meth:`after_fork_in_parent` has to be called.

        Locks that the request's thread holds would stay locked in the child, and not
        all of them can be released there, such as OpenSSL's. Besides, the child
        inherits the token.
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
            # A signal handler has raised. Python reports it, and forks all the same.
            self._changed.release()
            raise
        return True

    def after_fork_in_parent(self) -> None:
        """Let requests begin again."""
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Continue in a child process: with the parent's token, and a new thread."""
        running, requesting = self._thread is not None, self._attempt is not None
        self._reset_process()
        if not running:
            return
        state, now = self.state, self._monotonic()
        # A request under way belongs to the parent, whose ``due_at`` is its deadline.
        due_at = now if state.due_at is None or requesting else state.due_at
        if state.token is not None:
            life = state.token.life
            if not state.outage:
                delay = renewal_delay(life, self.policy, self._jitter())
                due_at = state.token.received_at + delay
            if requesting or due_at < now:
                # Spread, so that children forked at one time do not ask at one time.
                due_at = now + self._jitter() * retry_cap(life)
        self.state = state.due(due_at)
        with self._changed:
            self._start_thread()
