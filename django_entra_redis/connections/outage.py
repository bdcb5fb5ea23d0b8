"""Outages of a server: what is known of them, which request may probe, what is logged.

This is a circuit breaker. While a server is known to be down, one request at a time
probes it. All others fail at once: otherwise each would wait for the same timeout. A
server that only takes no writes is down for those: reads go on.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
)

from .._fork import ForkSafeLock
from ..exceptions import EntraRedisError, ServerDownError, UncertainResultError
from ..identity.redaction import one_line
from .protocol import ConnectionClosedError

logger = logging.getLogger(__name__)

#: Errors of a server that is down, full or failing over. All other errors, such as a
#: refused command, are mistakes that ``ignore_exceptions`` must not hide.
OUTAGE_ERRORS = (ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError)

#: Seconds after a failed request without a probe, at most. The pause is half as long as
#: the request took, so that a page of many operations waits once; the bound is how much
#: later the end of an outage is noticed.
LONGEST_PAUSE = 0.5
#: Seconds after which another request may probe while one still waits for its reply: it
#: may wait on a broken connection, while new ones work again.
PROBE_INTERVAL = 1.0
#: Seconds to wait for an answer on a new connection after a timeout, at least and at
#: most: half of what the request took, within these bounds. A healthy server answers
#: within some milliseconds, with TLS too; this machine may be busy, though.
SECOND_OPINION = (0.25, 0.5)
#: Seconds that a single failed try has to take before the server is asked once more. A
#: try that fails sooner delays no request.
COSTLY = 0.1
#: Seconds after an outage in which a new one counts as the same: a server that comes
#: and goes is logged once.
RELAPSE = 10.0


class Kind(Enum):
    """The kinds of outage. Each has a kind of reply that shows that it is over."""

    #: The server does not answer, or does not authenticate. Any reply ends it.
    SERVER = "can't be used"
    #: The server takes no writes, being a replica, for one. A successful write ends it.
    WRITES = "takes no writes"
    #: The server has no memory left. The success of a command that failed ends it.
    MEMORY = "is full"


class Verdict(Enum):
    """The conclusion from a failed request about its server."""

    UP = "the server answers, or the failure has another cause"
    ASK = "the server is down, or only one of its connections is broken"
    DOWN = "the server is down, or does not do what was requested"


def judge(error: Exception, *, tries: int, took: float, silent: float) -> Verdict:
    """Return whether a failed request shows that its server is down, or as good as
    that for requests of its kind.

    Parameters:
        error: the error of the last try.
        tries: the number of tries; all but the first were on new connections.
        took: seconds since the request began.
        silent: seconds since the server's last reply to any request.
    """
    if isinstance(error, ReadOnlyError | OutOfMemoryError):
        # The server answers, so that only retries cost time.
        return Verdict.DOWN if tries > 1 else Verdict.UP
    own = isinstance(error, EntraRedisError) and not isinstance(
        error, UncertainResultError
    )
    # There was no token, or the server refused it at once, or this process closed the
    # connection: no request waits for a server that is down.
    if own or isinstance(error, AuthenticationError | ConnectionClosedError):
        return Verdict.UP
    if not isinstance(error, ConnectionError | TimeoutError) or silent < took / 2:
        return Verdict.UP
    if tries > 1:
        return Verdict.DOWN
    return Verdict.ASK if took >= COSTLY else Verdict.UP


@dataclass(frozen=True, slots=True)
class CurrentOutage:
    """The public facts of an outage.

    Parameters:
        server: the server's name.
        what: what it can't do.
        since: seconds since it began.
        failures: operations that have failed.
        error: the kind of the last failure.
    """

    server: str
    what: str
    since: float
    failures: int
    error: str


@dataclass(slots=True)
class _Outage:
    """One outage."""

    since: float
    error: Exception
    #: The words of the error, which may be a server's: bounded and printable.
    said: str = ""
    failures: int = 0
    failed_at: float = 0.0
    #: When the next request may probe; ``None``: any request may go to the server.
    ask_at: float | None = None
    #: Whether the server is being asked once more, on a new connection.
    suspected: bool = False
    #: Names of the commands that failed.
    commands: set[str] = field(default_factory=set)
    logged: bool = False
    relapsed: bool = False
    #: Whether it has ended, and is kept since it may come again.
    over: bool = False


class Outages:
    """The outages of one server, for all its clients in this process.

    Parameters:
        name: the server's name in messages.
        clock: the clock, in seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self.clock = clock
        #: When the server's last reply came, or up to an exchange before that: where
        #: speed matters, a thread sets it to when its own exchange began.
        self.answered_at = clock()
        # Guards the two dictionaries and their values. ``any`` is read without it.
        self._lock = ForkSafeLock()
        self._outages: dict[Kind, _Outage] = {}
        #: Whether there is an outage, or was one that may come again.
        self.any = False
        self._former: dict[Kind, tuple[float, _Outage]] = {}

    def enter(self, *, write: bool = False, command: str = "") -> float:
        """Begin a request; return the time.

        Parameters:
            write: whether it is a write.
            command: the name of its command.

        Raises:
            ServerDownError: the server is down, or does not do what this request asks
                for, and this request may not probe it.
        """
        now = self.clock()
        if not self.any:
            return now
        with self._lock.current:
            concerned = self._concerned(write, command)
            for kind, outage in concerned:
                if outage.ask_at is None or now >= outage.ask_at:
                    continue
                outage.failures += 1
                state = "is down" if kind is Kind.SERVER else kind.value
                raise ServerDownError(
                    f"Redis at {self._name} {state}, and will be asked again in "
                    f"{outage.ask_at - now:.1f} s. It failed with: {outage.said}"
                )
            for _, outage in concerned:
                if outage.ask_at is not None:
                    outage.ask_at = now + PROBE_INTERVAL
        return now

    @property
    def known_down(self) -> bool:
        """Whether the server is known to be down, and sent no more than probes."""
        outage = self._outages.get(Kind.SERVER)
        return outage is not None and outage.ask_at is not None

    def current(self) -> list[CurrentOutage]:
        """Return the outages that there are now; an outage that is over, and may come
        again, is none."""
        now = self.clock()
        with self._lock.current:
            return [
                CurrentOutage(
                    self._name,
                    kind.value,
                    now - outage.since,
                    outage.failures,
                    type(outage.error).__name__,
                )
                for kind, outage in self._outages.items()
                if outage.logged and not outage.over
            ]

    def heard(self, at: float) -> None:
        """Note that a reply came at this time or later; there is no outage.

        Another task may have noted a later one.
        """
        if self.answered_at < at:
            self.answered_at = at

    def answered(self, *, write: bool, command: str = "") -> None:
        """Note that the server has replied.

        Parameters:
            write: whether it has carried out a write.
            command: the name of the command that it has carried out.
        """
        self.answered_at = now = self.clock()
        if not self.any:
            return
        with self._lock.current:
            for kind, outage in self._concerned(write, command):
                outage.ask_at, outage.suspected, outage.over = None, False, True
                if outage.relapsed and now - outage.failed_at < RELAPSE:
                    continue  # It may come again.
                self._end(kind, outage, now)

    def refused(self, *, write: bool, command: str) -> None:
        """Note an error reply to a request that may have been a probe.

        It shows that the server answers, and nothing of whether it takes writes: the
        next request probes again.

        Parameters:
            write, command: see :meth:`enter`.
        """
        self.answered(write=False)
        if not self.any:
            return
        now = self.clock()
        with self._lock.current:
            for _, outage in self._concerned(write, command):
                if outage.ask_at is not None:
                    outage.ask_at = now

    def failed(
        self,
        error: Exception,
        *,
        began: float,
        tries: int,
        command: str,
        covered: bool,
    ) -> bool:
        """Note that the last try of a request has failed.

        Returns whether the caller should ask the server once more, on a new connection:
        if it answers, the caller calls :meth:`well`, else :meth:`down`. Meanwhile the
        server counts as down.

        Parameters:
            error: the error of the last try.
            began: what :meth:`enter` returned.
            tries: the number of tries.
            command: the name of the command.
            covered: whether ``ignore_exceptions`` hides the error: then the outage is
                logged in any case.
        """
        now = self.clock()
        took = now - began
        verdict = judge(error, tries=tries, took=took, silent=now - self.answered_at)
        if verdict is Verdict.UP and not covered:
            return False
        kind = Kind.SERVER
        if isinstance(error, ReadOnlyError):
            kind = Kind.WRITES
        elif isinstance(error, OutOfMemoryError):
            kind = Kind.MEMORY
        with self._lock.current:
            outage = self._outages.get(kind) or self._begin(kind, error, began)
            outage.failures += 1
            outage.over = False
            outage.failed_at = now
            outage.error, outage.said = error, one_line(str(error))
            outage.commands.add(command)
            ask = verdict is Verdict.ASK and outage.ask_at is None
            if ask:
                outage.ask_at = now + PROBE_INTERVAL
                outage.suspected = True
            elif verdict is not Verdict.UP and not outage.suspected:
                outage.ask_at = now + min(took / 2, LONGEST_PAUSE)
            if covered or not outage.suspected:
                self._log(kind, outage)
        return ask

    def well(self) -> None:
        """Note that the server has answered on a new connection."""
        with self._lock.current:
            outage = self._outages.get(Kind.SERVER)
            if outage is not None and not outage.logged:
                del self._outages[Kind.SERVER]
                self.any = bool(self._outages)
        self.answered(write=False)

    def down(self, began: float) -> None:
        """Note that the server has not answered on a new connection either."""
        now = self.clock()
        with self._lock.current:
            outage = self._outages.get(Kind.SERVER)
            if outage is not None:
                outage.suspected = False
                outage.ask_at = now + min((now - began) / 2, LONGEST_PAUSE)
                self._log(Kind.SERVER, outage)

    def _concerned(self, write: bool, command: str) -> list[tuple[Kind, _Outage]]:
        """Return the outages in which a request fails."""
        return [
            (kind, outage)
            for kind, outage in self._outages.items()
            if kind is Kind.SERVER
            or (kind is Kind.WRITES and write)
            or (kind is Kind.MEMORY and command in outage.commands)
        ]

    def _begin(self, kind: Kind, error: Exception, began: float) -> _Outage:
        ended, former = self._former.pop(kind, (began - RELAPSE, None))
        if former is None or began - ended >= RELAPSE:
            former = _Outage(began, error)
        else:
            former.relapsed = True
        self._outages[kind] = former
        self.any = True
        return former

    def _log(self, kind: Kind, outage: _Outage) -> None:
        if not outage.logged:
            outage.logged = True
            logger.warning(
                "Redis at %s %s. Until that is over a cache with "
                "OPTIONS['ignore_exceptions'] answers like an empty one: %s",
                self._name,
                kind.value,
                outage.said,
            )

    def _end(self, kind: Kind, outage: _Outage, now: float) -> None:
        del self._outages[kind]
        self.any = bool(self._outages)
        self._former[kind] = now, outage
        logger.info(
            "The cache is back. That Redis at %s %s has cost %d operations within "
            "%.1f s.",
            self._name,
            kind.value,
            outage.failures,
            now - outage.since,
        )
