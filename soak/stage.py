"""What a row is played on: the processes, the time, and the progress to tell."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from soak.children import (
    LOOK_EVERY,
    EmulatorProcess,
    LoadProcess,
    pause,
)
from soak.outcome import Bars, Outcome, make_outcome
from soak.subjects import OURS, Subject
from soak.tally import Tally

LIFETIME = 6.0


@dataclass(frozen=True)
class Stage:
    """One row's.

    Parameters:
        subject: what is under load.
        short: whether there is little time.
        say: tells how far the row is.
        cluster: primaries of the Redis Cluster; 0 is a single node.
        profile: the service of Azure that the emulator is like.
    """

    subject: Subject
    short: bool
    say: Callable[[str], None]
    cluster: int = 0
    profile: str | None = None

    @property
    def ours(self) -> bool:
        """Whether the subject has bars to meet."""
        return self.subject is OURS

    @contextlib.contextmanager
    def emulator(self) -> Iterator[EmulatorProcess]:
        """Run an emulator with short-lived tokens."""
        with EmulatorProcess(LIFETIME, self.cluster, self.profile) as emulator:
            yield emulator

    @contextlib.contextmanager
    def load(self, **config: Any) -> Iterator[tuple[EmulatorProcess, LoadProcess]]:
        """Run an emulator, and a load on it."""
        if self.cluster:
            config["variant"] = "cluster"
        with (
            self.emulator() as emulator,
            LoadProcess(emulator, self.subject.name, **config) as load,
        ):
            yield emulator, load

    @contextlib.contextmanager
    def load_on(
        self, emulator: EmulatorProcess, **config: Any
    ) -> Iterator[LoadProcess]:
        """Run a load on an emulator that runs already."""
        with LoadProcess(emulator, self.subject.name, **config) as load:
            yield load

    def spend(self, load: LoadProcess, seconds: float, what: str = "") -> None:
        """Let time go by."""
        began = time.monotonic()
        while (gone := time.monotonic() - began) < seconds:
            errors = load.look().errors
            self.say(f"{what}{gone:.0f} of {seconds:.0f} s, {errors} errors")
            pause(min(LOOK_EVERY * 4, seconds - gone))

    def outcome(
        self, emulator: EmulatorProcess, tally: Tally, bars: Bars, *note: str
    ) -> Outcome:
        """Return the row."""
        stats = emulator.control.stats
        own = bars if self.ours else None
        return make_outcome(tally, stats, [text for text in note if text], own)


def wait_for_renewal(emulator: EmulatorProcess, patience: float = 15.0) -> float:
    """Wait until a token has just been issued; return when that was."""
    control = emulator.control
    before = control.stats
    served = before.token_requests - before.token_failures
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        now = control.stats
        if now.token_requests - now.token_failures > served:
            break
        pause(LOOK_EVERY)
    return time.monotonic()
