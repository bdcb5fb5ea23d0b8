"""Renewal: when a token is asked for, who waits, and what failures do.

Each test holds the clock and the endpoint in its hands; no test sleeps.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from django_entra_redis.conf.policy import Policy
from django_entra_redis.credentials.renewal import (
    CLOCK_CHECK,
    HANGING_PAUSE,
    MAX_HANGING,
    Renewal,
)
from django_entra_redis.credentials.state import LATENESS
from django_entra_redis.exceptions import TokenError, TokenRequestError
from django_entra_redis.identity.token import Clock, Fetch, Token
from django_entra_redis.status import Status
from tests.support.caches import wait_until

#: Seconds that a test waits for what has to come.
PATIENCE = 30.0
HOUR = 3600.0
RENEWER = "entra-redis-renewal:"
REQUESTER = "entra-redis-token-request:"


def nothing() -> None:
    """Do nothing."""


class Call:
    """One request at the endpoint; it hangs until it is answered."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.reply: Future[Token] = Future()

    def answer(self, reply: Token | BaseException) -> None:
        """Give a token or raise an error, and wait until that has had its effect."""
        if isinstance(reply, Token):
            self.reply.set_result(reply)
        else:
            self.reply.set_exception(reply)
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def stop(renewal: Renewal) -> None:
    """Stop a renewal, and wait for its thread's end."""
    thread = renewal._thread
    renewal.stop()
    if thread is not None:
        thread.join(PATIENCE)
        assert not thread.is_alive()


class Bench:
    """A renewal whose clock, jitter and endpoint are held by a test."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.ahead = 1_800_000_000.0
        self.jitter = 0.0
        self.made = 0
        self.events: list[tuple[Status, Token | Exception]] = []
        self.at_monotonic = nothing
        self._issued = 0
        self._calls: queue.Queue[Call] = queue.Queue()
        self._all: list[Call] = []
        self._came = threading.Condition()
        self._looked = threading.Semaphore(0)
        options.setdefault("policy", Policy(ratio=0.7, margin=180.0, timeout=10.0))
        self.renewal = Renewal(
            "bench",
            "credential",
            options.pop("make_fetch", self.make_fetch),
            clock=Clock(self.monotonic, self.wall),
            jitter=lambda: self.jitter,
            on_renewed=lambda *event: self.events.append(event),
            on_failed=lambda *event: self.events.append(event),
            **options,
        )

    def monotonic(self) -> float:
        """Return the time; note that the renewal's thread has looked at it."""
        self.at_monotonic()
        if threading.current_thread().name.startswith(RENEWER):
            self._looked.release()
        return self.now

    def wall(self) -> float:
        """Return the wall clock's time."""
        return self.now + self.ahead

    def make_fetch(self) -> Fetch:
        """Return the function that asks the endpoint."""
        self.made += 1
        return self._fetch

    def _fetch(self) -> Token:
        call = Call()
        with self._came:
            self._all.append(call)
            self._came.notify_all()
        self._calls.put(call)
        return call.reply.result(PATIENCE)

    @property
    def asked(self) -> int:
        """How many requests there were, one that is about to come in included."""
        own = f"{REQUESTER}{self.renewal.identity}"

        def all_in() -> bool:
            running = {t for t in threading.enumerate() if t.name == own}
            return running <= {call.thread for call in self._all}

        with self._came:
            assert self._came.wait_for(all_in, PATIENCE)
            return len(self._all)

    def call(self) -> Call:
        """Return the next request that comes in."""
        return self._calls.get(timeout=PATIENCE)

    def token(self, life: float = HOUR, value: str | None = None) -> Token:
        """Return a new token."""
        self._issued += 1
        return Token(
            value=value or f"secret-token-{self._issued}",
            username="user",
            claims={"oid": "object-id"},
            received_at=self.now,
            expires_at=self.now + life,
            expires_on=self.wall() + life,
        )

    def advance(self, seconds: float) -> None:
        """Move the time on, and wait until the thread has acted on it."""
        self.now += seconds
        # It can't see an injected clock move while it sleeps. Of three looks at least
        # the last is one at the schedule, after everything that came before it.
        for _ in range(3):
            while self._looked.acquire(blocking=False):
                pass
            # Told again: it may be between a look at the clock and its sleep.
            wait_until(self._looks)
        # Takes the lock, which the thread lets go of when it sleeps.
        self.renewal.start()

    def _looks(self) -> bool:
        with self.renewal._changed:
            self.renewal._changed.notify_all()
        return self._looked.acquire(timeout=0.2)

    def begin(self, life: float = HOUR) -> Token:
        """Start, and answer the first request."""
        self.renewal.start()
        token = self.token(life)
        self.call().answer(token)
        return token

    def fail(self, life: float = HOUR) -> Token:
        """Start, answer the first request, and let the renewal fail."""
        token = self.begin(life)
        self.advance(life)
        self.call().answer(TokenRequestError("it is down."))
        return token

    def close(self) -> None:
        """Stop, and let no thread hang."""
        self.at_monotonic = nothing
        stop(self.renewal)
        for call in self._all[: self.asked]:
            if not call.reply.done():
                call.answer(TokenRequestError("the test is over."))


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Give a renewal that has not been started."""
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    """Give threads that call."""
    with ThreadPoolExecutor(16) as executor:
        yield executor


def fork(check: Callable[[], None]) -> None:
    """Run a check in a forked child; fail if it does."""
    child = multiprocessing.get_context("fork").Process(target=check)
    child.start()
    child.join(PATIENCE)
    code = child.exitcode
    child.kill()
    child.join()
    child.close()
    assert code == 0


def threads(prefix: str) -> list[str]:
    """Return the names of the threads that run."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(prefix)]


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that lets no thread start whose name begins so."""
    real = threading.Thread.start

    def refuse(*prefixes: str) -> None:
        def start(self: threading.Thread) -> None:
            if self.name.startswith(prefixes):
                raise RuntimeError("can't start new thread")
            real(self)

        monkeypatch.setattr(threading.Thread, "start", start if prefixes else real)

    return refuse


# -- when


@pytest.mark.parametrize(
    ("policy", "jitter", "life", "delay"),
    [
        (Policy(ratio=0.7, margin=180.0), 0.0, HOUR, 2520.0),
        (Policy(ratio=0.7, margin=180.0), 1.0, HOUR, 2268.0),
        (Policy(ratio=0.99, margin=180.0), 0.0, HOUR, 3420.0),
        (Policy(ratio=0.9, margin=180.0), 0.0, 300.0, 270.0),
    ],
)
def test_due(policy: Policy, jitter: float, life: float, delay: float) -> None:
    """A token is renewed at its time, and not before."""
    bench = Bench(policy=policy)
    bench.jitter = jitter
    token = bench.begin(life)
    due = bench.renewal.status().next_renewal_at
    assert due == datetime.fromtimestamp(bench.wall() + delay, UTC)
    bench.advance(delay - 0.01)
    assert bench.asked == 1
    assert bench.renewal.current() is token
    bench.advance(0.02)
    new = bench.token(life)
    bench.call().answer(new)
    assert bench.renewal.current() is new
    assert bench.made == 1
    bench.close()


def test_start_waits(bench: Bench) -> None:
    """The first request begins after the delay where nobody asks sooner."""
    bench.renewal.start(1.0)
    bench.advance(0.9)
    assert bench.asked == 0
    bench.advance(0.2)
    bench.call().answer(bench.token())
    assert bench.asked == 1


def test_demand_comes_before_the_delay(
    bench: Bench, callers: ThreadPoolExecutor
) -> None:
    """The first request begins at the first demand."""
    bench.renewal.start(1.0)
    waiting = callers.submit(bench.renewal.current)
    token = bench.token()
    bench.call().answer(token)
    assert waiting.result(PATIENCE) is token


def test_start_twice(bench: Bench) -> None:
    """Starting once more changes nothing."""
    token = bench.begin()
    bench.renewal.start()
    bench.advance(0.0)
    assert bench.asked == 1
    assert bench.renewal.current() is token
    assert threads(RENEWER) == [f"{RENEWER}bench"]


def test_not_started(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """A process that starts nothing gets its token, and renews it."""
    waiting = callers.submit(bench.renewal.current)
    bench.call().answer(bench.token())
    waiting.result(PATIENCE)
    bench.advance(2520.0)
    bench.call().answer(bench.token())
    assert bench.renewal.status().renewals == 1


def test_without_callbacks(callers: ThreadPoolExecutor) -> None:
    """Nobody needs to listen."""
    idle = Bench()
    clock = Clock(lambda: idle.now, idle.wall)
    renewal = Renewal(
        "quiet",
        "credential",
        idle.make_fetch,
        policy=Policy(),
        clock=clock,
        jitter=lambda: 0.0,
    )
    waiting = callers.submit(renewal.current)
    idle.call().answer(TokenRequestError("it is down."))
    with pytest.raises(TokenError, match="it is down"):
        waiting.result(PATIENCE)
    token = idle.token()
    idle.call().answer(token)
    assert renewal.current() is token
    stop(renewal)


# -- who waits


def test_one_request_for_all(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """However many callers find no token, one request is made."""
    waiting = [callers.submit(bench.renewal.current) for _ in range(16)]
    token = bench.token()
    bench.call().answer(token)
    assert [future.result(PATIENCE) for future in waiting] == [token] * 16
    assert bench.asked == 1


def test_error_for_all(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """Callers that wait for a request get its error."""
    bench.jitter = 1.0
    waiting = [callers.submit(bench.renewal.current) for _ in range(16)]
    bench.call().answer(TokenRequestError("the secret is wrong.", code="some_code"))
    for future in waiting:
        with pytest.raises(TokenError, match=r"'bench': the secret is wrong\.") as info:
            future.result(PATIENCE)
        assert info.value.code == "some_code"
        assert (info.value.__cause__, info.value.__context__) == (None, None)
    assert bench.asked == 1


def test_between_tries(bench: Bench) -> None:
    """Between two tries a caller fails at once, with the last error."""
    bench.jitter = 1.0
    bench.fail()
    for _ in range(100):
        with pytest.raises(TokenError, match="it is down"):
            bench.renewal.current()
    assert bench.asked == 2
    bench.advance(0.5)
    token = bench.token()
    bench.call().answer(token)
    assert bench.renewal.current() is token


def test_waiting_is_bounded(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """Whoever waits for a request that hangs is told when its time is over."""
    waiting = callers.submit(bench.renewal.current)
    bench.call()
    bench.advance(9.9)
    assert not waiting.done()
    bench.advance(0.2)
    text = r"did not answer within 10 s \(REQUEST_TIMEOUT\)"
    with pytest.raises(TokenError, match=text) as info:
        waiting.result(PATIENCE)
    assert info.value.code == "token_timeout"


def test_waiting_is_bounded_without_a_thread(
    no_threads: Callable[..., None],
) -> None:
    """The bound holds by the caller's own clock, too."""
    answer: Future[Token] = Future()
    renewal = Renewal(
        "real", "credential", lambda: answer.result, policy=Policy(timeout=0.05)
    )
    no_threads(RENEWER)
    with pytest.raises(TokenError, match=r"within 0\.05 s"):
        renewal.current()
    with pytest.raises(TokenError, match=r"within 0\.05 s"):
        asyncio.run(renewal.acurrent())
    answer.set_exception(TokenRequestError("the test is over."))
    wait_until(lambda: threads(REQUESTER) == [])


def test_a_renewal_makes_nobody_wait(bench: Bench) -> None:
    """While a request is under way, callers get the token that there is."""
    token = bench.begin()
    bench.advance(2520.0)
    bench.call()
    bench.advance(9.0)
    assert bench.renewal.current() is token
    assert asyncio.run(bench.renewal.acurrent()) is token
    bench.advance(2.0)
    assert bench.renewal.current() is token


def test_hanging_request_is_replaced(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """After a request that hangs the next one begins, with a fetch of its own."""
    bench.renewal.start()
    bench.call()
    bench.advance(10.0)
    bench.advance(0.0)
    token = bench.token()
    bench.call().answer(token)
    assert bench.renewal.current() is token
    assert bench.made == 2


def test_hanging_construction_is_not_shared() -> None:
    """A fetch whose making took too long serves no other request."""
    built: queue.Queue[Future[Fetch]] = queue.Queue()

    def make_fetch() -> Fetch:
        ready: Future[Fetch] = Future()
        built.put(ready)
        return ready.result(PATIENCE)

    def late() -> Token:
        raise TokenRequestError("late.")

    slow = Bench(make_fetch=make_fetch)
    slow.renewal.start()
    first = built.get(timeout=PATIENCE)
    slow.advance(10.0)
    slow.advance(0.0)
    built.get(timeout=PATIENCE).set_result(slow._fetch)
    slow.call().answer(slow.token())
    first.set_result(late)
    wait_until(lambda: threads(REQUESTER) == [])
    slow.advance(2520.0)
    slow.call().answer(slow.token())
    slow.close()


def test_late_answer(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """The answer to an abandoned request serves those who wait for the next one."""
    bench.renewal.start()
    late = bench.call()
    bench.advance(10.0)
    bench.advance(0.0)
    next_ = bench.call()
    waiting = callers.submit(bench.renewal.current)
    asynchronous = callers.submit(asyncio.run, bench.renewal.acurrent())
    token = bench.token()
    late.answer(token)
    assert waiting.result(PATIENCE) is token
    assert asynchronous.result(PATIENCE) is token
    status = bench.renewal.status()
    assert (status.failures, status.last_error) == (1, None)
    next_.answer(TokenRequestError("it is down."))
    assert bench.renewal.current() is token


def test_answer_in_the_last_moment(
    bench: Bench, callers: ThreadPoolExecutor, no_threads: Callable[..., None]
) -> None:
    """An answer that comes in while its request is given up is taken."""
    no_threads(RENEWER)
    waiting = callers.submit(bench.renewal.current)
    call, token = bench.call(), bench.token()

    def answer() -> None:
        bench.at_monotonic = nothing
        call.answer(token)

    bench.now += 10.0
    bench.at_monotonic = answer
    assert bench.renewal.current() is token
    assert waiting.result(PATIENCE) is token
    assert bench.renewal.status().failures == 0


def test_late_failure(bench: Bench) -> None:
    """The failure of an abandoned request is no news."""
    bench.renewal.start()
    late = bench.call()
    bench.advance(10.0)
    before = bench.renewal.status()
    bench.jitter = 1.0
    late.answer(TokenRequestError("late."))
    assert bench.renewal.status() == before
    assert "within 10 s" in str(before.last_error)


@pytest.mark.parametrize("caller", [False, True])
def test_callback_that_blocks(
    caller: bool, callers: ThreadPoolExecutor, no_threads: Callable[..., None]
) -> None:
    """Neither the schedule nor a caller waits for what is told of a hanging request."""
    bench = Bench()
    blocked, over = threading.Event(), threading.Event()

    def block(status: Status, error: Exception) -> None:
        blocked.set()
        over.wait(PATIENCE)

    bench.renewal._on_failed = block
    if caller:
        no_threads(RENEWER)
        first = callers.submit(bench.renewal.current)
        bench.call()
        bench.now += 10.0
    else:
        bench.renewal.start()
        bench.call()
        bench.advance(10.0)
    # Without jitter the next request begins at once.
    waiting = callers.submit(bench.renewal.current)
    call = bench.call()
    assert blocked.wait(PATIENCE)
    if caller:
        # Before the answer, which it would return if it came to look at it so late.
        assert isinstance(first.exception(PATIENCE), TokenError)
    token = bench.token()
    call.answer(token)
    assert waiting.result(PATIENCE) is token
    over.set()
    bench.close()


def test_many_hanging_requests(bench: Bench) -> None:
    """Where requests never come back, further ones begin seldom, yet they begin."""
    bench.jitter = 1.0
    bench.renewal.start()
    for number in range(1, MAX_HANGING + 1):
        bench.call()
        bench.advance(10.0)
        assert bench.asked == number
        bench.advance(10.0 if number < MAX_HANGING else HANGING_PAUSE - 0.1)
    assert bench.asked == MAX_HANGING
    bench.advance(0.2)
    token = bench.token()
    bench.call().answer(token)
    assert bench.renewal.current() is token


def test_many_hanging_requests_come_back(bench: Bench) -> None:
    """Once they have ended, the next one is as near as after any failure."""
    bench.jitter = 1.0
    bench.renewal.start()
    hanging = []
    for _ in range(MAX_HANGING):
        hanging.append(bench.call())
        bench.advance(10.0)
        bench.advance(10.0)
    # Also while others still hang.
    hanging[0].answer(TokenRequestError("the name server is down."))
    bench.advance(1.9)
    assert bench.asked == MAX_HANGING
    bench.advance(0.2)
    assert bench.asked == MAX_HANGING + 1
    token = bench.token()
    bench.call().answer(token)
    due_at = bench.renewal.state.due_at
    for call in hanging[1:]:
        call.answer(TokenRequestError("the name server is down."))
    assert bench.renewal.current() is token
    assert bench.renewal.state.due_at == due_at


def test_many_hanging_requests_and_a_wait_asked_for(bench: Bench) -> None:
    """What the last answer asks for is kept, up to the pause that there is anyway."""
    bench.renewal.start()
    hanging = []
    for _ in range(MAX_HANGING):
        hanging.append(bench.call())
        bench.advance(10.0)
        bench.advance(0.0)
    hanging[0].answer(TokenRequestError("busy.", retry_after=60.0))
    bench.advance(59.0)
    assert bench.asked == MAX_HANGING
    bench.advance(1.1)
    assert bench.asked == MAX_HANGING + 1


def test_many_hanging_requests_and_a_refusal(bench: Bench) -> None:
    """A refused token begins no request where too many hang."""
    token = bench.begin(86_400.0)
    bench.advance(86_400.0 * 0.7)
    for _ in range(MAX_HANGING):
        bench.call()
        bench.advance(10.0)
        bench.advance(0.0)
    assert bench.renewal.replace(token) is None
    assert bench.asked == 1 + MAX_HANGING


def test_asynchronous_callers(bench: Bench) -> None:
    """Coroutines wait without blocking their loop, and share the request."""

    async def main() -> None:
        waiting = [asyncio.create_task(bench.renewal.acurrent()) for _ in range(5)]
        call = await asyncio.to_thread(bench.call)
        token = bench.token()
        await asyncio.to_thread(call.answer, token)
        assert await asyncio.gather(*waiting) == [token] * 5
        assert await bench.renewal.acurrent() is token

    asyncio.run(main())
    assert bench.asked == 1


def test_asynchronous_error(bench: Bench) -> None:
    """Coroutines get the request's error, and the last one between tries."""
    bench.jitter = 1.0

    async def main() -> None:
        waiting = asyncio.create_task(bench.renewal.acurrent())
        call = await asyncio.to_thread(bench.call)
        await asyncio.to_thread(call.answer, TokenRequestError("it is down."))
        for awaited in (waiting, bench.renewal.acurrent()):
            with pytest.raises(TokenError, match="it is down"):
                await awaited

    asyncio.run(main())
    assert bench.asked == 1


def test_cancelled_caller(bench: Bench) -> None:
    """A coroutine that is cancelled leaves the request to the others."""

    async def main() -> None:
        cancelled = asyncio.create_task(bench.renewal.acurrent())
        call = await asyncio.to_thread(bench.call)
        other = asyncio.create_task(bench.renewal.acurrent())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        token = bench.token()
        await asyncio.to_thread(call.answer, token)
        assert await other is token

    asyncio.run(main())
    assert bench.asked == 1


def test_loop_that_ends_before_the_answer(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer for a loop that is closed by now disturbs nobody."""

    async def main() -> Call:
        waiting = asyncio.create_task(bench.renewal.acurrent())
        call = await asyncio.to_thread(bench.call)
        waiting.cancel()
        return call

    call = asyncio.run(main())
    token = bench.token()
    call.answer(token)
    assert bench.renewal.current() is token
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


# -- failures


def test_failure_keeps_the_token(bench: Bench) -> None:
    """A renewal that fails is tried again while the token lasts."""
    token = bench.begin()
    bench.advance(2520.0)
    for _ in range(5):
        bench.call().answer(TokenRequestError("it is down."))
        assert bench.renewal.current() is token
        bench.advance(0.0)
    new = bench.token()
    bench.call().answer(new)
    assert bench.renewal.current() is new
    status = bench.renewal.status()
    assert (status.failures, status.renewals, status.last_error) == (5, 1, None)


@pytest.mark.parametrize(
    ("life", "delays"),
    [(6.0, [0.5, 1.0, 1.0]), (HOUR, [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0])],
)
def test_retries(bench: Bench, life: float, delays: list[float]) -> None:
    """Retries come ever later, up to a bound by the token's life."""
    bench.begin(life)
    bench.jitter = 1.0
    bench.advance(life)
    for delay in delays:
        bench.call().answer(TokenRequestError("it is down."))
        asked = bench.asked
        bench.advance(delay - 0.01)
        assert bench.asked == asked
        bench.advance(0.02)
    bench.call()


def test_retries_in_a_long_outage(bench: Bench) -> None:
    """While the token lives on they come ever later, so that a fleet spreads out."""
    token = bench.begin()
    bench.jitter = 1.0
    bench.advance(2520.0)
    began = bench.now
    while (age := bench.now - began) < 600.0:
        bench.call().answer(TokenRequestError("it is down."))
        asked = bench.asked
        left = token.expires_at - bench.now
        pause = max(10.0, min(age / 6, left / 6))
        if age > 60.0:
            bench.advance(pause - 0.01)
            assert bench.asked == asked
        bench.advance(pause + 0.02 - (bench.now - began - age))
    assert pause > 60.0
    assert bench.renewal.current() is token
    bench.call()


def test_retry_after(bench: Bench) -> None:
    """What the endpoint asks for is kept, and callers fail at once meanwhile."""
    bench.renewal.start()
    bench.call().answer(TokenRequestError("too many.", retry_after=60.0))
    bench.advance(59.9)
    with pytest.raises(TokenError, match="too many"):
        bench.renewal.current()
    assert bench.asked == 1
    bench.advance(0.2)
    bench.call()


@pytest.mark.parametrize("error", [ValueError("secret text"), SystemExit("secret")])
def test_foreign_error(bench: Bench, error: BaseException) -> None:
    """Whatever a fetch raises is an error of ours, named by its type alone."""
    bench.jitter = 1.0
    bench.renewal.start()
    bench.call().answer(error)
    with pytest.raises(TokenError) as info:
        bench.renewal.current()
    assert f"failed with {type(error).__name__}." in str(info.value)
    assert "secret" not in str(info.value)


def test_fetch_that_cannot_be_made(bench: Bench) -> None:
    """What goes wrong before the first request is an error of it, and is retried."""
    made: list[Fetch] = [bench._fetch]

    def make_fetch() -> Fetch:
        if broken:
            raise TokenRequestError(broken.pop())
        return made[0]

    broken = ["no such module."]
    other = Bench(make_fetch=make_fetch)
    with pytest.raises(TokenError, match="no such module"):
        other.renewal.current()
    other.advance(0.0)
    token = bench.token()
    bench.call().answer(token)
    assert other.renewal.current() is token
    other.close()


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the levels of what has been logged, and forget it."""
    found = [record.levelname for record in caplog.records]
    caplog.clear()
    return found


def test_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An outage is told once, and its end; no renewal is worth a word."""
    caplog.set_level(logging.DEBUG)
    bench.begin()
    assert levels(caplog) == ["INFO"]
    for _ in range(2):
        bench.advance(2520.0)
        bench.call().answer(bench.token())
        assert levels(caplog) == []
        bench.advance(2520.0)
        for level in ("WARNING", "DEBUG", "DEBUG"):
            bench.call().answer(TokenRequestError("it is down."))
            assert "'bench' got no token" in caplog.text
            assert "it is down." in caplog.text
            assert levels(caplog) == [level]
            bench.advance(0.0)
        bench.call().answer(bench.token())
        assert "has a token again after 3 failed requests" in caplog.text
        assert levels(caplog) == ["INFO"]


def test_log_before_anybody_asks(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """In a build step without a network nothing is said until somebody asks."""
    caplog.set_level(logging.DEBUG)
    bench.renewal.start()
    for _ in range(3):
        bench.call().answer(TokenRequestError("no network."))
        assert levels(caplog) == ["DEBUG"]
        bench.advance(0.0)
    bench.jitter = 1.0
    bench.call().answer(TokenRequestError("no network."))
    caplog.clear()
    with pytest.raises(TokenError, match="no network"):
        bench.renewal.current()
    for level in ("WARNING", "DEBUG"):
        bench.advance(10.0)
        bench.call().answer(TokenRequestError("no network."))
        assert levels(caplog) == [level]
    bench.advance(10.0)
    bench.call().answer(bench.token())
    assert "after 6 failed requests" in caplog.text
    assert levels(caplog) == ["INFO"]


def test_log_of_a_failure_nobody_noticed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of what was not worth a warning is the first token, no more."""
    caplog.set_level(logging.INFO)
    bench.renewal.start()
    bench.call().answer(TokenRequestError("no network."))
    bench.advance(0.0)
    bench.call().answer(bench.token())
    assert [record.getMessage() for record in caplog.records] == [
        "Identity 'bench' has a token."
    ]


# -- the same token again


def test_same_token(bench: Bench) -> None:
    """An endpoint that hands out one token until it ends is not asked in a spin."""
    token = bench.begin()
    asked = []
    while bench.now < token.expires_at - 10.0:
        due = bench.renewal.status().next_renewal_at
        assert due is not None
        wait = due.timestamp() - bench.wall()
        assert wait >= 9.99
        asked.append(wait)
        bench.advance(wait + 0.01)
        left = token.expires_at - bench.now
        bench.call().answer(bench.token(left, value=token.value))
        assert bench.renewal.current() is token
    assert asked[:2] == pytest.approx([2520.0, 756.0], abs=0.1)
    assert len(asked) < 30
    status = bench.renewal.status()
    assert (status.renewals, status.renewed_at) == (
        0,
        datetime.fromtimestamp(token.expires_on - HOUR, UTC),
    )
    assert len(bench.events) == 1
    bench.advance(10.0)
    bench.call().answer(bench.token())
    assert bench.renewal.status().renewals == 1


def test_same_token_that_is_good_for_longer(bench: Bench) -> None:
    """A fixed token whose expiry moves on is renewed: counted, told, and used."""
    old = bench.begin()
    bench.advance(2520.0)
    longer = bench.token(value=old.value)
    bench.call().answer(longer)
    assert bench.renewal.current() is longer
    status = bench.renewal.status()
    assert status.renewals == 1
    assert status.renewed_at == datetime.fromtimestamp(bench.wall(), UTC)
    assert status.expires_at == datetime.fromtimestamp(longer.expires_on, UTC)
    assert [event for _, event in bench.events] == [old, longer]
    bench.advance(2519.0)
    assert bench.asked == 2


def test_same_token_after_its_end_by_the_wall_clock(bench: Bench) -> None:
    """The same token is taken anew where its old expiry no longer counts."""
    token = bench.begin()
    bench.ahead += 2 * HOUR
    bench.advance(CLOCK_CHECK)
    again = bench.token(3000.0, value=token.value)
    bench.call().answer(again)
    assert bench.renewal.current() is again
    bench.advance(2099.0)
    assert bench.asked == 2
    assert bench.renewal.status().renewals == 0


# -- clocks


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_stepped_wall_clock(bench: Bench, step: float) -> None:
    """A step of the wall clock costs no error and one request at most."""
    bench.begin()
    bench.ahead += step
    bench.advance(CLOCK_CHECK)
    asked = bench.asked
    assert asked == (2 if step > 0 else 1)
    for _ in range(asked - 1):
        bench.call().answer(bench.token())
    for _ in range(10):
        bench.advance(CLOCK_CHECK)
        bench.renewal.current()
    assert bench.asked == asked


@pytest.mark.parametrize("caller", [False, True])
def test_stepped_wall_clock_in_an_outage(bench: Bench, caller: bool) -> None:
    """No pause is sat out that was for a token which a step has ended."""
    bench.begin(24 * HOUR)
    bench.jitter = 1.0
    with bench.renewal._changed:
        bench.renewal.state = replace(
            bench.renewal.state.due(bench.now + 120.0),
            outage=10,
            failing_since=bench.now - HOUR,
            last_error=TokenRequestError("it is down."),
        )
    bench.ahead += 24 * HOUR
    if caller:
        with pytest.raises(TokenError, match="it is down"):
            bench.renewal.current()
    else:
        bench.advance(0.0)
    assert bench.renewal.state.due_at == bench.now + 10.0
    for reply in (TokenRequestError("it is down."), bench.token()):
        bench.advance(9.9)
        asked = bench.asked
        bench.advance(0.2)
        bench.call().answer(reply)
        assert bench.asked == asked + 1
    assert bench.renewal.current() is reply


def test_stepped_wall_clock_and_a_wait_asked_for(bench: Bench) -> None:
    """What the endpoint asks for is kept all the same."""
    bench.begin()
    bench.advance(2520.0)
    bench.call().answer(TokenRequestError("too many.", retry_after=60.0))
    bench.ahead += HOUR
    with pytest.raises(TokenError, match="too many"):
        bench.renewal.current()
    bench.advance(59.9)
    assert bench.asked == 2
    bench.advance(0.2)
    bench.call().answer(bench.token())


def test_caller_notices_the_step(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """A caller does not get a token that has run out by the wall clock alone."""
    old = bench.begin()
    bench.ahead += HOUR
    waiting = callers.submit(bench.renewal.current)
    new = bench.token()
    bench.call().answer(new)
    assert waiting.result(PATIENCE) is new is not old


def test_step_back_prolongs_nothing(bench: Bench) -> None:
    """A wall clock that is set back leaves the token's end where it was."""
    bench.jitter = 1.0
    bench.begin()
    bench.ahead -= 2 * HOUR
    bench.advance(HOUR)
    bench.call().answer(TokenRequestError("it is down."))
    with pytest.raises(TokenError, match="it is down"):
        bench.renewal.current()


# -- refused tokens


def test_refused_token(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """A token that Redis refuses is replaced, once for all who ask."""
    refused = bench.begin()
    waiting = [callers.submit(bench.renewal.replace, refused) for _ in range(8)]
    new = bench.token()
    bench.call().answer(new)
    assert [future.result(PATIENCE) for future in waiting] == [new] * 8
    assert bench.renewal.replace(refused) is new
    assert bench.asked == 2


def test_refused_token_and_coroutines(bench: Bench) -> None:
    """Coroutines that were refused share a new token, too."""
    refused = bench.begin()

    async def main() -> None:
        replacing = [
            asyncio.create_task(bench.renewal.areplace(refused)) for _ in range(5)
        ]
        call = await asyncio.to_thread(bench.call)
        new = bench.token()
        await asyncio.to_thread(call.answer, new)
        assert await asyncio.gather(*replacing) == [new] * 5
        assert await bench.renewal.areplace(refused) is new
        assert await bench.renewal.areplace(new) is None

    asyncio.run(main())
    assert bench.asked == 2


def test_refused_tokens_are_replaced_seldom(
    bench: Bench, callers: ThreadPoolExecutor
) -> None:
    """Requests forced by a refusal keep a distance."""
    first = bench.begin()
    waiting = callers.submit(bench.renewal.replace, first)
    second = bench.token()
    bench.call().answer(second)
    assert waiting.result(PATIENCE) is second
    bench.advance(59.0)
    assert bench.renewal.replace(second) is None
    assert bench.asked == 2
    bench.advance(1.0)
    waiting = callers.submit(bench.renewal.replace, second)
    bench.call().answer(TokenRequestError("it is down."))
    assert waiting.result(PATIENCE) is None
    assert bench.renewal.current() is second


def test_refused_token_that_comes_again(
    bench: Bench, callers: ThreadPoolExecutor
) -> None:
    """The token that was refused is no replacement for itself."""
    refused = bench.begin()
    waiting = callers.submit(bench.renewal.replace, refused)
    bench.call().answer(bench.token(value=refused.value))
    assert waiting.result(PATIENCE) is None
    bench.advance(2520.0)
    bench.call().answer(bench.token(value=refused.value))
    bench.advance(30.0)
    waiting = callers.submit(bench.renewal.replace, refused)
    bench.call().answer(bench.token(value=refused.value))
    assert waiting.result(PATIENCE) is None


def test_refused_old_token_while_a_request_hangs(bench: Bench) -> None:
    """Where another token is there already, nobody waits for a third one."""
    refused = bench.begin()
    bench.advance(2520.0)
    new = bench.token()
    bench.call().answer(new)
    bench.advance(2520.0)
    bench.call()
    assert bench.renewal.replace(refused) is new
    assert bench.asked == 3


def test_refused_old_token_and_an_expired_one(
    bench: Bench, callers: ThreadPoolExecutor
) -> None:
    """Where the other token has run out, the one under way is waited for."""
    refused = bench.begin()
    bench.advance(2520.0)
    bench.call().answer(bench.token(1.0))
    bench.advance(2.0)
    call = bench.call()
    waiting = callers.submit(bench.renewal.replace, refused)
    new = bench.token()
    call.answer(new)
    assert waiting.result(PATIENCE) is new


# -- what can be told


@pytest.mark.parametrize("claim", [None, 5, ["a", "list"], {"a": "mapping"}])
def test_status_of_a_token_of_nobody(bench: Bench, claim: object) -> None:
    """With a user name in the settings a token's ``oid`` may be anything."""
    bench.renewal.start()
    bench.call().answer(replace(bench.token(), claims={"oid": claim}))
    assert bench.renewal.current().username == bench.renewal.status().oid == "user"


def test_status(bench: Bench) -> None:
    """The status tells everything but the token."""
    status = bench.renewal.status()
    assert status == Status("bench", "credential", None, None, None, None, 0, 0, None)
    token = bench.begin()
    bench.jitter = 1.0
    bench.advance(2520.0)
    bench.call().answer(TokenRequestError("it is down."))
    status = bench.renewal.status()
    at = bench.wall() - 2520.0
    assert status == Status(
        identity="bench",
        kind="credential",
        oid="object-id",
        expires_at=datetime.fromtimestamp(at + HOUR, UTC),
        renewed_at=datetime.fromtimestamp(at, UTC),
        next_renewal_at=datetime.fromtimestamp(bench.wall() + 0.5, UTC),
        renewals=0,
        failures=1,
        last_error="it is down.",
    )
    assert token.value not in repr(status) + repr(bench.renewal.state)
    with pytest.raises(AttributeError):
        status.failures = 0  # type: ignore[misc]


def test_callbacks(bench: Bench) -> None:
    """Each new token and each failure is told, with the status after it."""
    token = bench.begin()
    bench.advance(2520.0)
    error = TokenRequestError("it is down.")
    bench.call().answer(error)
    assert [told for _, told in bench.events] == [token, error]
    assert [status.failures for status, _ in bench.events] == [0, 1]


# -- stopping


def test_stop(bench: Bench) -> None:
    """After stop() the thread ends, and nothing is renewed."""
    token = bench.begin()
    stop(bench.renewal)
    bench.renewal.start()
    assert threads(f"{RENEWER}bench") == []
    assert bench.renewal.current() is token


def test_caller_after_stop(bench: Bench, callers: ThreadPoolExecutor) -> None:
    """A caller after stop() still gets a token; one request that hangs is not all."""
    bench.renewal.stop()
    waiting = callers.submit(bench.renewal.current)
    hanging = bench.call()
    bench.now += 11.0
    bench.jitter = 1.0
    for ask in (bench.renewal.current, waiting.result):
        with pytest.raises(TokenError, match="within 10 s"):
            ask()
    bench.now += 1.0
    again = callers.submit(bench.renewal.current)
    token = bench.token()
    bench.call().answer(token)
    assert again.result(PATIENCE) is token
    assert hanging.thread.is_alive()


@pytest.mark.parametrize("answer", ["token", "error"])
def test_answer_after_stop(
    bench: Bench, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes in after stop() is told to nobody: other settings count by then."""
    caplog.set_level(logging.DEBUG)
    bench.renewal.start()
    call = bench.call()
    bench.renewal.stop()
    call.answer(bench.token() if answer == "token" else TokenRequestError("down."))
    assert bench.events == []
    assert caplog.records == []


SHUTDOWN = """
import contextlib, sys, threading
from django_entra_redis.exceptions import TokenError
from django_entra_redis.credentials.renewal import Renewal
from django_entra_redis.conf.policy import Policy
from django_entra_redis.identity.token import receive_token, SYSTEM_CLOCK

begun = threading.Event()

def fetch():
    begun.set()
    if sys.argv[1] == "request":
        threading.Event().wait()
    return receive_token("t", clock=SYSTEM_CLOCK, expires_in=float(sys.argv[2]),
                         username="user")

renewal = Renewal("exit", "credential", lambda: fetch, policy=Policy(timeout=60.0))
renewal.start()
begun.wait()
if sys.argv[1] != "request":
    # A token of so short a life may be over before it is handed out.
    with contextlib.suppress(TokenError):
        renewal.current()
"""


@pytest.mark.parametrize(
    "arguments", [("request", "3600"), ("asleep", "3600"), ("busy", "2")]
)
def test_interpreter_shutdown(arguments: tuple[str, ...]) -> None:
    """A process ends at once, silently, whatever its threads are about."""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", SHUTDOWN, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# -- where no thread runs


def test_no_thread_for_a_request(
    bench: Bench, no_threads: Callable[..., None], callers: ThreadPoolExecutor
) -> None:
    """At the process's limit of threads that is the error; it is tried again."""
    no_threads(REQUESTER)
    for _ in range(2):
        with pytest.raises(TokenError, match="can't start new thread"):
            bench.renewal.current()
    no_threads()
    bench.advance(10.0)
    token = bench.token()
    bench.call().answer(token)
    assert bench.renewal.current() is token


def test_interpreter_without_daemon_threads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subinterpreter with its own GIL refuses them when they are made."""

    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("daemon threads are disabled in this (sub)interpreter")

    monkeypatch.setattr(threading.Thread, "__init__", refuse)
    bench.renewal.start()
    with pytest.raises(TokenError, match="daemon threads are disabled"):
        bench.renewal.current()


def test_no_thread_for_a_request_of_an_expired_token(
    bench: Bench, no_threads: Callable[..., None]
) -> None:
    """A thread that can't start is no reason for a busy loop."""
    bench.begin()
    no_threads(REQUESTER)
    bench.ahead += 2 * HOUR
    bench.advance(CLOCK_CHECK)
    failures = bench.renewal.status().failures
    bench.advance(1.0)
    assert bench.renewal.status().failures == failures == 1
    bench.advance(10.0)
    assert bench.renewal.status().failures == 2


def test_no_background_thread(
    bench: Bench, no_threads: Callable[..., None], callers: ThreadPoolExecutor
) -> None:
    """Where the thread can't run, callers renew in time, and wait for nothing."""
    no_threads(RENEWER)
    waiting = callers.submit(bench.renewal.current)
    first = bench.token()
    bench.call().answer(first)
    assert waiting.result(PATIENCE) is first
    bench.now += 2520.0 + LATENESS
    assert bench.renewal.current() is first
    hanging = bench.call()
    bench.now += 10.0 + LATENESS
    assert bench.renewal.current() is first
    second = bench.token()
    assert bench.renewal.status().failures == 1
    bench.now += LATENESS
    assert bench.renewal.current() is first
    bench.call().answer(second)
    assert bench.renewal.current() is second
    assert hanging.thread.is_alive()
    no_threads()
    bench.now += 2520.0 + LATENESS
    bench.renewal.current()
    assert threads(RENEWER) == [f"{RENEWER}bench"]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no signals on Windows")
def test_signal_handler_inside(
    bench: Bench, callers: ThreadPoolExecutor, no_threads: Callable[..., None]
) -> None:
    """A signal handler may ask for a token while the same thread is asking."""
    given: list[Token] = []

    def handler(*_: object) -> None:
        given.append(bench.renewal.current())

    def interrupt() -> None:
        bench.at_monotonic = nothing
        signal.raise_signal(signal.SIGUSR1)

    no_threads(RENEWER)  # the only one to look at the clock is this one
    waiting = callers.submit(bench.renewal.current)
    token = bench.token()
    bench.call().answer(token)
    waiting.result(PATIENCE)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        bench.now += 2520.0 + LATENESS
        bench.at_monotonic = interrupt
        given.append(bench.renewal.current())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert given == [token, token]
    bench.call()
    assert bench.asked == 2


# -- forks


def test_child_inherits_the_token(bench: Bench) -> None:
    """A child goes on with the parent's token, and renews it by itself."""
    token = bench.begin()

    def check() -> None:
        assert bench.renewal.current() is token
        assert asyncio.run(bench.renewal.acurrent()) is token
        bench.advance(2500.0)
        assert bench.asked == 1
        bench.advance(20.0)
        new = bench.token()
        bench.call().answer(new)
        assert bench.renewal.current() is new
        assert (bench.made, bench.asked) == (2, 2)

    fork(check)
    fork(check)
    assert bench.renewal.current() is token
    assert bench.asked == 1


def test_child_of_a_request_under_way(bench: Bench) -> None:
    """A child does not wait for a request that is its parent's."""
    bench.renewal.start()
    bench.call()

    def check() -> None:
        new = bench.token()
        bench.call().answer(new)
        assert bench.renewal.current() is new

    fork(check)


def test_child_of_a_renewal_under_way(bench: Bench) -> None:
    """A child makes a request of its own, not in the same moment as its siblings."""
    token = bench.begin()
    bench.advance(2520.0)
    bench.call()
    bench.jitter = 0.5

    def check() -> None:
        assert bench.renewal.current() is token
        bench.advance(4.9)
        assert bench.asked == 2
        bench.advance(0.2)
        new = bench.token()
        bench.call().answer(new)
        assert bench.renewal.current() is new

    fork(check)


def test_child_of_an_outage(bench: Bench) -> None:
    """A child in an outage keeps to the next try, and gets its token then."""
    bench.jitter = 1.0
    bench.fail()

    def check() -> None:
        with pytest.raises(TokenError, match="it is down"):
            bench.renewal.current()
        assert bench.asked == 2
        bench.advance(0.5)
        new = bench.token()
        bench.call().answer(new)
        assert bench.renewal.current() is new

    fork(check)


def test_child_of_a_renewal_not_started(
    bench: Bench, callers: ThreadPoolExecutor
) -> None:
    """A child begins nothing that its parent has not begun, and can begin it."""

    def check() -> None:
        assert threads(f"{RENEWER}bench") == []
        with ThreadPoolExecutor(1) as others:
            waiting = others.submit(bench.renewal.current)
            token = bench.token()
            bench.call().answer(token)
            assert waiting.result(PATIENCE) is token

    fork(check)
    assert bench.asked == 0


def test_child_of_a_stopped_renewal(bench: Bench) -> None:
    """What has been stopped stays so in a child."""
    token = bench.begin()
    bench.renewal.stop()

    def check() -> None:
        assert bench.renewal.current() is token
        assert threads(f"{RENEWER}bench") == []

    fork(check)


def test_signal_handler_that_raises_before_a_fork(
    bench: Bench,
    callers: ThreadPoolExecutor,
    no_threads: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python forks all the same, and no lock stays locked."""
    reported: list[type[BaseException]] = []
    hook = lambda unraisable: reported.append(unraisable.exc_type)  # noqa: E731
    monkeypatch.setattr(sys, "unraisablehook", hook)
    others = [Bench(), Bench()]

    def interrupt() -> None:
        bench.at_monotonic = nothing
        raise KeyboardInterrupt

    def free(renewal: Renewal) -> bool:
        acquired = renewal._changed.acquire(timeout=PATIENCE)
        with contextlib.suppress(RuntimeError):
            renewal._changed.release()
        return acquired

    no_threads(RENEWER)  # the only one to look at the clock is this one
    bench.renewal._attempt_to_await()
    call = bench.call()
    bench.at_monotonic = interrupt
    fork(nothing)
    assert reported == [KeyboardInterrupt]
    for made in (bench, *others):
        assert callers.submit(free, made.renewal).result(PATIENCE)
    token = bench.token()
    call.answer(token)
    assert bench.renewal.current() is token


def test_fork_while_the_lock_is_held(bench: Bench) -> None:
    """A lock that another thread of the parent holds is free in the child."""
    held, go_on = threading.Event(), threading.Event()
    name = f"{REQUESTER}bench"

    def hold() -> None:
        # Inside of the lock: a request's answer is being noted.
        if threading.current_thread().name == name and not held.is_set():
            held.set()
            go_on.wait(PATIENCE)

    bench.renewal.start()
    call = bench.call()
    bench.at_monotonic = hold
    first = bench.token()
    call.reply.set_result(first)
    assert held.wait(PATIENCE)

    def check() -> None:
        bench.at_monotonic = nothing
        new = bench.token()
        bench.call().answer(new)
        assert bench.renewal.current() is new

    fork(check)
    go_on.set()
    call.thread.join(PATIENCE)
    assert bench.renewal.current() is first
