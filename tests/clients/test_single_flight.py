"""One call at a time, for all who want its outcome."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis.exceptions import ConnectionError

from django_entra_redis.clients.single_flight import SingleFlight
from tests.support.caches import wait_until


class Calls:
    """A function that is slow when it is told to be, and counts its calls."""

    def __init__(self) -> None:
        self.count = 0
        self.error: BaseException | None = None
        self.free = threading.Event()
        self.free.set()

    def __call__(self) -> None:
        """Be called."""
        self.count += 1
        self.free.wait(30)
        if self.error is not None:
            raise self.error


@pytest.fixture
def calls() -> Calls:
    """Give a function."""
    return Calls()


def test_all_wait_for_one_call(calls: Calls) -> None:
    """Whoever comes while it is under way shares its outcome."""
    calls.free.clear()
    flight = SingleFlight(calls, pause=60.0)
    with ThreadPoolExecutor(4) as executor:
        futures = [executor.submit(flight.join) for _ in range(4)]
        wait_until(lambda: calls.count)
        calls.free.set()
        for future in futures:
            future.result(30)
    assert calls.count <= 4
    before = calls.count
    flight.join()
    assert calls.count == before + 1


def test_error(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    """All who wait are told what went wrong; the next call is a new one."""
    calls.error = ValueError("wrong")
    flight = SingleFlight(calls, pause=60.0)
    with pytest.raises(ValueError, match="wrong"):
        flight.join()
    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(flight.ajoin())
    gc.collect()
    assert caplog.messages == []
    calls.error = None
    asyncio.run(flight.ajoin())
    assert calls.count == 3


def test_hints(calls: Calls) -> None:
    """A hint makes a call, unless there has just been one."""
    now = [100.0]
    flight = SingleFlight(calls, pause=5.0, monotonic=lambda: now[0])
    flight.join()
    flight.hint()
    now[0] += 4.9
    flight.hint()
    assert calls.count == 1
    now[0] += 0.1
    flight.hint()
    wait_until(lambda: calls.count == 2)
    flight.join()


def test_a_loop_goes_on(calls: Calls) -> None:
    """A task that waits blocks no other, and may be cancelled."""
    calls.free.clear()
    flight = SingleFlight(calls, pause=60.0)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await flight.ajoin()
        waiting = asyncio.create_task(flight.ajoin())
        await asyncio.sleep(0)
        calls.free.set()
        await waiting

    asyncio.run(main())
    assert calls.count == 1


def test_no_thread_starts(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the process's limit whoever asks makes the call."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    SingleFlight(calls, pause=60.0).join()
    assert calls.count == 1


def test_reset(calls: Calls) -> None:
    """A child process does not wait for a call of its parent's."""
    calls.free.clear()
    flight = SingleFlight(calls, pause=60.0)
    flight.hint()
    wait_until(lambda: calls.count == 1)
    flight.reset()
    calls.free.set()
    flight.join()
    assert calls.count == 2


def test_catching_up(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever catches up waits out the pause, and for the call, whatever it raises."""
    calls.error = ValueError("wrong")
    flight = SingleFlight(calls, pause=0.05)
    with pytest.raises(ValueError, match="wrong"):
        flight.join()
    flight.catch_up(30)
    assert calls.count == 2
    asyncio.run(flight.acatch_up(30))
    assert calls.count == 3
    gc.collect()
    assert caplog.messages == []
    calls.free.clear()
    flight.catch_up(0.01)
    # Not over yet: the next one joins it.
    asyncio.run(flight.acatch_up(0.01))
    assert calls.count == 4
    calls.free.set()
    flight.catch_up(30)


@pytest.mark.parametrize("started", [True, False])
def test_interrupted(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    """A signal handler's exception leaves nobody waiting for ever."""
    start = threading.Thread.start

    def interrupt(thread: threading.Thread) -> None:
        if started:
            start(thread)
        raise KeyboardInterrupt

    flight = SingleFlight(calls, pause=0.0)
    calls.free.clear()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            flight.hint()
    calls.free.set()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(flight.join).result(30)
    assert calls.count == 1 + started


def test_broken_off(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a call that wants to end the process is told, and does not end."""
    ended: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: ended.append(args[1]))
    calls.error = SystemExit("enough")
    flight = SingleFlight(calls, pause=0.0)
    with pytest.raises(ConnectionError, match="enough"):
        asyncio.run(asyncio.wait_for(flight.ajoin(), 30))
    wait_until(lambda: ended == [calls.error])
    calls.error = None
    flight.join()
