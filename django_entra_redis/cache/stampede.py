"""``get_or_set()`` and ``aget_or_set()`` without stampedes.

When a key that many callers read expires, all of them would compute its value. Here one
thread or task of a process does, and the callers that come meanwhile get its result.
With ``OPTIONS["stampede"]`` processes take turns, too, and one of them computes a value
anew before it expires.

Each way to the value is a generator that yields what is to be done next; see
:mod:`.drivers`.
"""

import copy
import logging
import random
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from operator import methodcaller
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..commands.packing import encode
from ..commands.stampede import Facts, Names, Stampedes, is_due
from ..conf.options import Stampede
from ..exceptions import UncertainResultError
from .computations import (
    Computation,
    Key,
    Validity,
    computations,
    ledger,
    running_loop,
    waiting_loop,
)
from .computations import own as own_computations
from .drivers import Steps, StoppedError
from .ended import ended

if TYPE_CHECKING:
    from ..commands.operations import Operations

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a caller waits for another caller's computation in the same process.
#: Longer than ``LOCK``, so that a computation which waits for another process is not
#: given up before that wait has ended.
WAIT = 30.0
#: How many times as long it goes on waiting, if computations are given up meanwhile.
ROUNDS = 2
#: Seconds that the lock between processes is held at most, and waited for.
LOCK = 10.0
#: Seconds between two checks whether another process is done: at random between these.
POLL = (0.02, 0.1)
#: The result of ``get()`` for a key that does not exist.
MISSING: Any = object()
#: The result of a computation that was given up: a waiting caller begins anew.
GIVEN_UP: Any = object()
#: The result of a computation whose value can't be shared: each computes its own.
UNSHARED: Any = object()


#: The result of an attempt to acquire the lock whose reply is lost.
UNKNOWN: Any = object()
#: The kinds of errors that have been logged as warnings, each with its server. Each
#: access is atomic.
_told: set[tuple[Hashable, type[Exception]]] = set()


@dataclass(frozen=True, slots=True)
class Unshared:
    """The result of an early computation that is its caller's alone.

    The caller found a value. Those who wait have missed the key, which was removed or
    has expired since then: for them that value is over, and so is what was made before.
    """

    value: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lock:
    """The lock between processes, held by this one.

    Parameters:
        since: the monotonic time since when it may be held.
        token: what tells this holder from all others.
        certain: whether it is held; otherwise the reply to the attempt is lost.
    """

    since: float
    token: str
    certain: bool = True

    @property
    def lasts(self) -> bool:
        """Whether it has not ended by itself; after that it may be another one's."""
        return time.monotonic() - self.since < LOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of ``get_or_set()``.

    Parameters:
        operations: those of the cache.
        options: ``OPTIONS["stampede"]``.
        names: the keys of the value, of its cost and of its lock.
        default: the value, or a function that computes it.
        seconds: the value's timeout; ``None``: it does not expire.
        ended: how many computations had ended before the key was asked for.
        native: whether it runs in an event loop, which it must not block.
    """

    operations: "Operations"
    options: Stampede | None
    names: Names
    default: Any = field(repr=False)
    seconds: int | None
    ended: int
    native: bool

    @property
    def key(self) -> Key:
        """What tells the value from all others of the process."""
        return self.operations.server, self.names.value

    @property
    def beside(self) -> Stampedes:
        """The operations on the keys beside the value's."""
        return Stampedes(self.operations)

    # -- the ways --------------------------------------------------------------------

    def missed(self) -> Steps[Any]:
        """Return a value that is not in the cache."""
        if not callable(self.default):
            return (yield from self._set(self.default, None))
        blocked = None if self.native else waiting_loop()
        deadline = time.monotonic() + ROUNDS * WAIT
        while time.monotonic() < deadline:
            leading = self._begin_or_none(self._in_turn)
            if leading is not None:
                return (yield from leading)
            own = own_computations.get()
            computation = computations.join(self.key, own, blocked)
            if computation is None:
                break
            try:
                yield methodcaller("wait", computation.future, WAIT)
            finally:
                computations.leave(own, computation)
            if not computation.future.done():
                computations.end(self.key, computation)
                continue
            share = computation.future.result()
            # Otherwise this frame would keep its error alive.
            del computation
            if share is UNSHARED:
                break
            if share is not GIVEN_UP:
                try:
                    return share()
                finally:
                    del share
        return (yield from self._compute(Validity()))

    def found(self, value: Any) -> Steps[Any]:
        """Return a value that is in the cache, or a new one if it is time for that."""
        if self.options is None or not callable(self.default) or self.seconds == 0:
            return value
        draw = 1.0 - random.random()
        beta = self.options.beta

        def due() -> Steps[bool]:
            facts = yield from self._unless_it_fails(self._learn(), Facts())
            return is_due(facts, beta, draw)

        known = ledger.get(self.key)
        # The facts that this process knows may be outdated: another process may have
        # computed the value meanwhile. Therefore they are fetched again.
        if not ((known is None or is_due(known, beta, draw)) and (yield from due())):
            return value
        leading = self._begin_or_none(lambda valid: self._early(value, due, valid))
        return value if leading is None else (yield from leading)

    def _early(
        self, found: Any, due: Callable[[], Steps[bool]], validity: Validity
    ) -> Steps[Any]:
        """Return a new value, computed before the one that is there expires."""
        lock = yield from self._locked()
        if lock is None:
            return Unshared(found)
        replaced = self._replaced(found, due, validity)
        try:
            return (yield from self._unlocking(lock, replaced))
        except Exception:
            logger.warning(
                "A value could not be computed before it expires; the old one is "
                "used until then.",
                exc_info=True,
            )
            return Unshared(found)

    def _replaced(
        self, found: Any, due: Callable[[], Steps[bool]], validity: Validity
    ) -> Steps[Any]:
        # Another process may have computed it until just now.
        if not (yield from due()):
            return Unshared(found)
        before = yield from self._run(self.beside.state, self.names)
        value, cost = yield from self._measured()
        after = yield from self._run(self.beside.state, self.names)
        # What has been written meanwhile is newer than what this value was made of.
        # "replace", so that a key which has been deleted meanwhile stays deleted.
        may_replace = not validity.removed and after.is_still(before)
        if may_replace and (yield methodcaller("replace", value)):
            yield from self._note(cost)
            return (yield methodcaller("get", value))
        return Unshared((yield methodcaller("get", value)))

    def _in_turn(self, validity: Validity) -> Steps[Any]:
        """Return a value computed here, or by another process that was first."""
        if self.options is None or self.seconds == 0:
            if self.ended == ended[0]:
                return (yield from self._compute(validity))
            return (yield from self._once_more(validity))
        deadline = time.monotonic() + LOCK
        while (lock := (yield from self._locked())) is None:
            held = computations.locks.get(self._lock_key)
            if held is not None and held.lasts:
                # By a computation of this process, which would have been joined if the
                # key had not been removed meanwhile.
                return (yield from self._once_more(validity))
            yield methodcaller("sleep", random.uniform(*POLL))
            found = yield methodcaller("get", MISSING)
            if found is not MISSING:
                return found
            if time.monotonic() >= deadline:
                return (yield from self._compute(validity))
        return (yield from self._unlocking(lock, self._once_more(validity)))

    def _once_more(self, validity: Validity) -> Steps[Any]:
        # Another thread or process may have been at it until just now.
        found = yield methodcaller("get", MISSING)
        if found is not MISSING:
            return found
        return (yield from self._compute(validity))

    def _compute(self, validity: Validity) -> Steps[Any]:
        """Compute the value; set it as Django does, unless the key has been removed
        meanwhile."""
        value, cost = yield from self._measured()
        if validity.removed:
            return (yield methodcaller("get", value))
        return (yield from self._set(value, cost))

    def _set(self, value: Any, cost: float | None) -> Steps[Any]:
        added = False
        # Whether it has been added if its reply is lost, the read below tells.
        with suppress(UncertainResultError):
            added = yield methodcaller("add", value)
        if added and cost is not None and self.options is not None:
            yield from self._note(cost)
        # Read once more, since another caller may have added its value first.
        return (yield methodcaller("get", value))

    def _lead(self, computation: Computation, way: Steps[Any]) -> Steps[Any]:
        """Take the steps of a computation whose result others may wait for."""
        future = computation.future
        before = own_computations.set((*own_computations.get(), computation))
        share: Any = GIVEN_UP
        try:
            value = yield from way
            joined = computations.end(self.key, computation)
            if isinstance(value, Unshared):
                return value.value
            if joined:
                share = self._copies(value)
            return value
        except Exception as error:
            if computations.end(self.key, computation):
                share = raising(error)
            raise
        finally:
            # The coroutine of a task that its loop has dropped is closed in any
            # context.
            with suppress(ValueError):
                own_computations.reset(before)
            computations.end(self.key, computation)
            future.set_result(share)
            # Otherwise this frame would keep alive an error that it has raised.
            del computation, future, share

    def _begin_or_none(
        self, way: Callable[[Validity], Steps[Any]]
    ) -> Steps[Any] | None:
        """Return the steps of a computation; ``None``: one is under way already."""
        loop = running_loop() if self.native else None
        self.operations.server.before_removals(computations.detach)
        computation = computations.lead(self.key, loop)
        if computation is None:
            return None
        return self._lead(computation, way(computation.validity))

    def _copies(self, value: Any) -> Any:
        """Return a function that makes copies of a value, one for each waiting caller:
        each may change its copy."""
        try:
            data = encode(self.operations.dumps(value))
        except Exception:
            # Such as one that needs the database to be pickled, in an event loop, and
            # has not been stored.
            return UNSHARED
        return partial(self.operations.loads, data)

    # -- its parts -------------------------------------------------------------------

    def _measured(self) -> Steps[tuple[Any, float]]:
        began = time.perf_counter()
        value = yield methodcaller("compute", self.default)
        return value, time.perf_counter() - began

    def _note(self, cost: float) -> Steps[None]:
        """Store the cost of a value, for all processes."""
        if self.seconds:
            ledger.put(self.key, Facts(cost, self.seconds))
            note = self.beside.note
            storing = self._run(note, self.names, cost, self.seconds)
            yield from self._unless_it_fails(storing, None)

    def _learn(self) -> Steps[Facts]:
        facts: Facts = yield from self._run(self.beside.facts, self.names)
        ledger.put(self.key, facts)
        return facts

    def _locked(self) -> Steps[Lock | None]:
        """Acquire the lock between processes; return it, ``None`` if another one has
        it."""
        lock = Lock(time.monotonic(), token_hex(8))
        acquiring = self._run(self.beside.lock, self.names, lock.token, LOCK)
        try:
            taken = yield from self._unless_it_fails(acquiring, UNKNOWN)
        except GeneratorExit:
            raise
        except BaseException:
            # The task is cancelled, maybe after the lock has been acquired.
            yield from self._unlock(replace(lock, certain=False))
            raise
        if taken is UNKNOWN:
            # It may be held or not; not to wait for oneself is what matters.
            return replace(lock, certain=False)
        return lock if taken else None

    def _unlocking(self, lock: Lock, way: Steps[T]) -> Steps[T]:
        """Take the steps of a way, and then release the lock between processes."""
        computations.locks[self._lock_key] = lock
        try:
            result = yield from way
        except GeneratorExit:
            # The loop has dropped the task, which can't wait for a reply any more. The
            # lock is released after ``LOCK``.
            self._let_go(lock)
            raise
        except BaseException:
            yield from self._unlock(lock)
            raise
        yield from self._unlock(lock)
        return result

    @property
    def _lock_key(self) -> Key:
        """What tells the lock from all others of the process."""
        return self.operations.server, self.names.lock

    def _let_go(self, lock: Lock) -> None:
        if computations.locks.get(self._lock_key) is lock:
            computations.locks.pop(self._lock_key, None)

    def _unlock(self, lock: Lock) -> Steps[None]:
        self._let_go(lock)
        if lock.lasts:
            if lock.certain:
                releasing = self._run(self.beside.unlock, self.names)
            else:
                releasing = self._run(self.beside.unlock_if_own, self.names, lock.token)
            yield from self._unless_it_fails(releasing, None)

    def _run(self, operation: Callable[..., Any], *args: Any) -> Steps[Any]:
        """Carry out an operation on the keys beside the value."""
        return (yield methodcaller("run", operation, *args))

    def _unless_it_fails(self, way: Steps[T], instead: T) -> Steps[T]:
        """Take the steps of a way that the value does not depend on."""
        try:
            return (yield from way)
        except Exception as error:
            told = self.operations.server, type(error)
            level = logging.DEBUG if told in _told else logging.WARNING
            _told.add(told)
            logger.log(
                level,
                "Processes may compute the same value at once: Redis can't be used to "
                "tell each other: %s",
                error,
            )
            return instead


def raising(error: BaseException) -> Callable[[], Any]:
    """Return a function that raises an error, for each waiting caller one of its own.

    Each begins with the traceback that the error has now. The traceback of one error
    for all would grow by the frames of each caller that raises it.
    """
    if isinstance(error, StoppedError):
        inner = error.error
        return partial(_raise, inner, inner.__traceback__, StoppedError)
    return partial(_raise, error, error.__traceback__, None)


def _raise(
    error: BaseException,
    trace: TracebackType | None,
    wrapped: Callable[[Any], BaseException] | None,
) -> Any:
    own = another(error).with_traceback(trace)
    try:
        raise own if wrapped is None else wrapped(own)
    finally:
        # Otherwise this frame would keep the error alive.
        del error, trace, own


def another(error: BaseException) -> BaseException:
    """Return a copy of an error; the error itself, if it can't be copied as it is."""
    try:
        made: BaseException = copy.copy(error)
        if type(made) is not type(error) or made.args != error.args:
            return error
        made.__cause__, made.__context__ = error.__cause__, error.__context__
        made.__suppress_context__ = error.__suppress_context__
        if hasattr(error, "__notes__"):
            made.__notes__ = [*error.__notes__]
    except Exception:
        return error
    return made


def make_names(cache: Any, key: str, version: int | None) -> Names:
    """Return the keys of a value, of its cost and of its lock.

    All begin with the KEY_PREFIX, since an access policy may allow no others. The last
    two have a version of their own, so that ``keys()`` does not find them.
    """
    made = cache.make_and_validate_key(key, version=version)
    shown = cache.version if version is None else version
    beside = []
    for purpose in ("cost", "lock"):
        try:
            other: Any = f"stampede-{purpose}:{shown}"
            beside.append(str(cache.make_key(key, version=other)))
        except Exception:
            break  # A KEY_FUNCTION that takes a number alone.
    if len({made, *beside}) < 3:
        # Or one that has no use for a version.
        beside = [f"{made}:stampede-cost", f"{made}:stampede-lock"]
    return Names(made, *beside)
