"""Chaos: a network that fails at any byte, tasks and threads that are broken off.

A proxy stands before the server. Each connection has a fate, drawn as it begins: to be
cut after so many bytes, to fall silent, or to give a byte now and then.
"""

import asyncio
import contextlib
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self
from urllib.parse import urlsplit

from soak.outcome import Bars, Outcome
from soak.stage import Stage
from soak.subjects import SOCKET_TIMEOUT

#: Seconds of chaos in the full form and in the short one, and of peace after it.
LONG, SHORT, PEACE = 60.0, 8.0, 5.0
#: Seconds for which a connection drips or is silent, and between two bytes of a drip.
HELD, DRIP = 6.0, 0.2
#: Bytes after which a fate comes at most: some come within the TLS handshake.
FURTHEST = 60_000
#: Seconds that an operation may take: tries on several connections, each of which is
#: silent just as its timeout would be over.
LONGEST_WAIT = 8 * SOCKET_TIMEOUT
CHUNK = 16 * 1024
#: Of functions that an operation calls, how many there are at most before it is broken
#: off. Signals are handled there, too: a lock that is held is released after that.
CALLS = 150
PACKAGES = ("django_entra_redis", "redis")


class Injected(Exception):  # noqa: N818 - not an error of anything here
    """Stands for what a signal handler, or a debugger, raises anywhere."""


class Chaos:
    """A proxy that spoils connections, in a thread of its own.

    Parameters:
        port: where the server listens, on loopback.
        seed: of the fates.
        spared: the share of connections that have no fate.
    """

    def __init__(
        self, port: int, seed: int | None = None, *, spared: float = 0.2
    ) -> None:
        self._upstream = port
        self._spared = spared
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        #: Whether connections that begin now have a fate.
        self.raging = True
        #: How many connections were cut, fell silent, dripped.
        self.fates = dict.fromkeys(("cut", "silence", "drip"), 0)
        self.port = 0

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        begun = asyncio.run_coroutine_threadsafe(self._begin(), self._loop)
        self.port = begun.result(10.0)
        return self

    def __exit__(self, *_: object) -> None:
        """Cut everything, and end."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _begin(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            server = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        fate, after, requests = self._draw()
        # What is held back of a request may not reach the server later: nobody could
        # tell then whether a command that was sent again has been carried out before.
        pumps = [
            asyncio.ensure_future(self._pump(*ends))
            for ends in (
                (reader, server[1], fate if requests else "", after),
                (server[0], writer, "" if requests else fate, after),
            )
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # First, since the wait for the pumps may be cancelled.
            writer.transport.abort()
            server[1].transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _draw(self) -> tuple[str, int, bool]:
        """Return a fate, after how many bytes, and whether of requests."""
        if not self.raging or self._random.random() < self._spared:
            return "", 0, False
        after = int(FURTHEST ** self._random.random())
        fate = self._random.choice(("cut", "cut", "silence", "drip"))
        return fate, after, fate == "cut" and self._random.random() < 0.5

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fate: str,
        after: int,
    ) -> None:
        while data := await reader.read(CHUNK):
            if fate and len(data) >= after:
                self.fates[fate] += 1
                writer.write(data[:after])
                await self._meet(fate, data[after:], writer)
                return
            after -= len(data)
            writer.write(data)
            await writer.drain()

    async def _meet(self, fate: str, rest: bytes, writer: asyncio.StreamWriter) -> None:
        if fate == "silence":
            await asyncio.sleep(HELD)
        elif fate == "drip":
            for number in range(min(len(rest), int(HELD / DRIP))):
                writer.write(rest[number : number + 1])
                await asyncio.sleep(DRIP)


class Injector:
    """Breaks a thread's operations off as a function of ours or of redis-py begins.

    Parameters:
        seed: of the places.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._left = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Raise :exc:`Injected` after some calls, unless the context ends before."""
        self._left = self._random.randrange(1, CALLS)
        # Not its trace function: that is a debugger's, or measures coverage.
        sys.setprofile(self._enter)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> None:
        ours = set(PACKAGES) & set(Path(frame.f_code.co_filename).parts)
        if event == "call" and ours:
            self._left -= 1
            if not self._left:
                sys.setprofile(None)
                raise Injected(f"{frame.f_code.co_qualname}:{frame.f_lineno}")


def play_chaos(stage: Stage, **config: Any) -> Outcome:
    """Nothing but faults, then none: no answer is wrong, and nobody is stuck."""
    bars = Bars()
    # An event loop has one connection: were it spared, nothing would happen to anybody.
    with (
        stage.emulator() as emulator,
        Chaos(
            urlsplit(emulator.description["redis_url"]).port or 0,
            spared=0.0 if "tasks" in config else 0.2,
        ) as chaos,
        stage.load_on(emulator, through=chaos.port, **config) as load,
    ):
        stage.spend(load, SHORT if stage.short else LONG, "chaos, ")
        chaos.raging = False
        peace = time.monotonic() + 2 * HELD
        load.tell("calm")
        stage.spend(load, 2 * HELD + PEACE, "peace, ")
        tally = load.stop()
        bars.sound(tally)
        late = [failure for failure in tally.failures if failure.at > peace]
        bars.equal("errors after it", len(late), 0)
        dry = [one for one in tally.failures if one.kind == "ConnectionPoolTimeout"]
        bars.equal("pools run dry", len(dry), 0)
        bars.at_most("s longest wait", tally.longest, LONGEST_WAIT)
        bars.at_least("fates met", sum(chaos.fates.values()), 5)
        met = ", ".join(f"{times} × {fate}" for fate, times in chaos.fates.items())  # noqa: RUF001 - a multiplication sign
        broken = tally.facts.get("broken off", 0)
        bars.at_least("operations broken off", broken, 10)
        return stage.outcome(
            emulator,
            tally,
            bars,
            f"{met}; {broken} operations broken off",
            f"longest wait {tally.longest:.1f} s",
        )
