"""The runner of the diagnostic steps of one cache.

Each step runs in a thread of its own, so that the check ends in time even if one hangs.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..cache.backend import EntraRedisCache
from ..conf.identities import Identity
from ..identity.token import Token
from .advice import ADVICE

#: Failure codes of steps that do not end in time; for others it is "server_timeout".
_TIMEOUT_CODES: Mapping[str, str] = {
    "dns": "dns_timeout",
    "tcp": "tcp_timeout",
    "tls": "port_silent",
    "token": "token_timeout",
}
#: Characters of a finding at most: other software's messages are as long as they like.
_MAX_SHOWN = 2000


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of one step.

    Parameters:
        name: the step.
        ok: whether it passed.
        ms: milliseconds that it took.
        detail: the finding, or what is wrong.
        code: identifier of the failure, ``None`` if it passed.
        hint: why that usually happens and what to do, ``None`` if it passed.
    """

    name: str
    ok: bool
    ms: float
    detail: str
    code: str | None = None
    hint: str | None = None


class StepError(Exception):
    """A step failed.

    Parameters:
        code: its entry in :mod:`.advice`.
        detail: what is wrong.
        hint: what to do, if that is not what the entry says.
    """

    def __init__(self, code: str, detail: str, hint: str | None = None) -> None:
        # All arguments, so that the error can be pickled.
        super().__init__(code, detail, hint)
        self.code = code
        self.detail = detail
        self.hint = hint or str(ADVICE[code])

    def __str__(self) -> str:
        return self.detail


@dataclass(slots=True)
class Diagnosis:
    """A cache under diagnosis, and what the steps have found out so far.

    Parameters:
        alias: its name in ``CACHES``.
        cache: the backend.
        timeout: seconds that all steps may take together.

    ``servers`` and ``sessions`` are those of :mod:`.network` and
    :mod:`.redis_session`, one for each server in ``LOCATION``; then come those of
    ``nodes``, the primaries of a cluster, by address.
    """

    alias: str
    cache: EntraRedisCache
    timeout: float
    deadline: float = field(init=False)
    identity: Identity | None = None
    token: Token | None = None
    servers: list[Any] = field(default_factory=list)
    sessions: list[Any] = field(default_factory=list)
    nodes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout

    def left(self) -> float:
        """Return the seconds that are left."""
        return max(0.01, self.deadline - time.monotonic())

    def take(self, takes: Mapping[str, Callable[["Diagnosis"], str]]) -> Iterator[Step]:
        """Take one step after another, up to the first that fails.

        Parameters:
            takes: the steps by name: functions that return their finding, or raise
                :class:`StepError`.
        """
        try:
            for name, take in takes.items():
                step = self._take(name, take)
                yield step
                if not step.ok:
                    return
        finally:
            for session in self.sessions:
                session.end()

    def _take(self, name: str, take: Callable[["Diagnosis"], str]) -> Step:
        outcome: list[tuple[str, str | None, str | None]] = []
        begun = time.perf_counter()

        def run() -> None:
            try:
                outcome.append((take(self), None, None))
            except StepError as error:
                outcome.append((str(error), error.code, error.hint))
            except Exception as error:
                detail = f"{type(error).__name__}: {error}"
                outcome.append((detail, "unexpected", str(ADVICE["unexpected"])))

        thread = threading.Thread(target=run, name=f"entra-redis-check-{name}")
        thread.daemon = True
        thread.start()
        thread.join(self.left())
        if outcome:
            detail, code, hint = outcome[0]
        else:
            seconds = time.perf_counter() - begun
            code = _TIMEOUT_CODES.get(name, "server_timeout")
            detail, hint = f"no answer within {seconds:.1f} s.", str(ADVICE[code])
        ms = (time.perf_counter() - begun) * 1000
        return Step(name, code is None, ms, self._presentable(detail), code, hint)

    def _presentable(self, text: str) -> str:
        """Return a text on one line, without secrets and without control characters.

        It may contain any message of other software, also of one that is hijacked.
        """
        secrets: list[str | None] = []
        if self.token is not None:
            secrets.append(self.token.value)
        if self.identity is not None:
            secrets.append(self.identity.client_secret)
            secrets.append(self.identity.client_certificate_password)
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        shown = "".join(one if one.isprintable() else " " for one in text)
        text = " ".join(shown.split())
        # Another software's message may already end with a full stop.
        text = text.removesuffix(".") if text.endswith("..") else text
        return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
