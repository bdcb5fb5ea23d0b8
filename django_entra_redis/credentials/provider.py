"""The credential provider for redis-py, and the renewals of a process.

However many providers are made, an identity has one token and one renewal thread in
a process.
"""

import atexit
import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from django.core.signals import setting_changed
from django.dispatch import Signal
from redis.auth.token import TokenInterface
from redis.credentials import StreamingCredentialProvider

from .._fork import ForkSafeLock, Order, import_module, in_child
from ..conf.app_installed import warn_if_missing
from ..conf.identities import Identity, load_identity
from ..identity.token import Fetch, Token
from ..signals import token_renewal_failed, token_renewed
from ..status import Status
from .client_callbacks import Subscriptions
from .renewal import Renewal

# Guards the first dictionary below.
_lock = ForkSafeLock()
_renewals: dict[str, Renewal] = {}
_subscriptions: dict[str, tuple[Subscriptions, Subscriptions]] = {}

#: Seconds for which a process that is about to exit waits for callbacks under way.
EXIT_PATIENCE = 1.0

TokenObserver = Callable[[str, str], contextlib.AbstractContextManager[None]]
_observer: TokenObserver | None = None


class RedisToken(TokenInterface):
    """A token in the form in which redis-py's callbacks take it.

    redis-py uses the claim ``oid`` as the Redis user name.
    """

    def __init__(self, renewal: Renewal, token: Token) -> None:
        self.token = token
        self._renewal = renewal
        self._clock = renewal.clock

    @property
    def _token(self) -> Token:
        # redis-py may send it long after its callback was called.
        return self._renewal.fresh() or self.token

    def is_expired(self) -> bool:
        """Whether it has expired."""
        return self._token.expired(self._clock)

    def ttl(self) -> float:
        """Return the milliseconds until it expires."""
        return (self._token.expires_on - self._clock.wall()) * 1000

    def try_get(self, key: str) -> Any:
        """Return a claim, or the Redis user name for ``oid``."""
        return self._token.username if key == "oid" else self._token.claims.get(key)

    def get_value(self) -> str:
        """Return the token itself."""
        return self._token.value

    def get_expires_at_ms(self) -> float:
        """Return its expiry in milliseconds since the epoch."""
        return self._token.expires_on * 1000

    def get_received_at_ms(self) -> float:
        """Return its arrival in milliseconds since the epoch."""
        return (self._token.expires_on - self._token.life) * 1000


class EntraCredentialProvider(StreamingCredentialProvider):
    """A credential provider for redis-py: an identity's Redis user name and token.

    However many are made, an identity has one token and one renewal thread in a
    process.

    >>> EntraCredentialProvider("reports")
    EntraCredentialProvider('reports')

    Parameters:
        identity: entry of ``ENTRA_REDIS``. It is read at first use, and anew when the
            settings change.
    """

    def __init__(self, identity: str = "default") -> None:
        self.identity = identity

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity!r})"

    @property
    def renewal(self) -> Renewal:
        """The renewal of the identity's token, of which a process has one.

        Raises:
            ConfigurationError: the identity's settings are missing or wrong.
        """
        try:
            return _renewals[self.identity]
        except KeyError:
            return _get_renewal(self.identity)

    def get_credentials(self) -> tuple[str, str]:
        """Return user name and token; wait for a token request if need be.

        Raises:
            TokenError: there is no valid token; the text has the reason.
        """
        token = self.renewal.current()
        _get_subscriptions(self.identity)[0].remember(sys._getframe(1), token)
        return token.username, token.value

    async def get_credentials_async(self) -> tuple[str, str]:
        """Do as :meth:`get_credentials` does, without blocking the event loop."""
        token = await self.renewal.acurrent()
        _get_subscriptions(self.identity)[0].remember(sys._getframe(1), token)
        return token.username, token.value

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        """Call a callback with each new token; a coroutine function in its event loop.

        A bound method is called only as long as its object lives.
        """
        _get_subscriptions(self.identity)[0].add(callback)

    def on_error(self, callback: Callable[[Exception], Any]) -> None:
        """Call a callback with the error of each failed token request."""
        _get_subscriptions(self.identity)[1].add(callback)

    def is_streaming(self) -> bool:
        """Whether tokens are renewed in the background: they always are."""
        return True

    def status(self) -> Status:
        """Return a snapshot of the identity's status, without the token."""
        return self.renewal.status()


def get_credential_provider(identity: str = "default") -> EntraCredentialProvider:
    """Return a provider for an identity.

    Parameters:
        identity: entry of ``ENTRA_REDIS``.

    Raises:
        ConfigurationError: the identity's settings are missing or wrong.
    """
    provider = EntraCredentialProvider(identity)
    _ = provider.renewal
    return provider


def start_renewal(identity: str) -> None:
    """Start an identity's renewal thread; its first request begins at once.

    Raises:
        ConfigurationError: the identity's settings are missing or wrong.
    """
    EntraCredentialProvider(identity).renewal.start()


def started_identities() -> set[str]:
    """Return the identities whose tokens are being renewed in this process."""
    # A copy, since other threads may add to it.
    renewals = list(_renewals.items())
    return {alias for alias, renewal in renewals if renewal.state.due_at is not None}


def _get_renewal(alias: str) -> Renewal:
    with _lock.current:
        # Another thread may have made it meanwhile.
        renewal = _renewals.get(alias) or _make_renewal(load_identity(alias))
        _renewals[alias] = renewal
    warn_if_missing()
    return renewal


def _make_renewal(identity: Identity) -> Renewal:
    def make_fetch() -> Fetch:
        # Imported at the first request, in its thread: msal costs start-up time.
        identities = import_module("..identity.kinds", __package__)
        return functools.partial(_fetch, identity, identities.make_fetch(identity))

    def renewed(status: Status, token: Token) -> None:
        _send(token_renewed, identity.alias, status=status)
        _get_subscriptions(identity.alias)[0].notify(RedisToken(renewal, token))

    def failed(status: Status, error: Exception) -> None:
        _send(token_renewal_failed, identity.alias, status=status, error=str(error))
        _get_subscriptions(identity.alias)[1].notify(error)

    renewal = Renewal(
        identity.alias,
        identity.kind,
        make_fetch,
        policy=identity.policy,
        on_renewed=renewed,
        on_failed=failed,
    )
    return renewal


def _send(signal: Signal, alias: str, **kwargs: Any) -> None:
    """Send a signal; ignore all errors, so that callbacks are called after it."""
    # Django logs the error of a receiver, and a log handler of the site may raise.
    with contextlib.suppress(Exception):
        signal.send_robust(sender=alias, identity=alias, **kwargs)


def observe_token_requests(observer: TokenObserver | None) -> None:
    """Enter an observer's context manager around each token request from now on.

    Parameters:
        observer: makes the context manager from the identity's alias and kind;
            ``None`` ends the observation.
    """
    global _observer
    _observer = observer


def _fetch(identity: Identity, fetch: Fetch) -> Token:
    observer = _observer
    if observer is None:
        return fetch()
    with observer(identity.alias, identity.kind):
        return fetch()


def _get_subscriptions(alias: str) -> tuple[Subscriptions, Subscriptions]:
    """Return the callbacks for an identity's new tokens, and those for its errors."""
    # setdefault() is atomic and takes no lock, which a fork could leave locked.
    return _subscriptions.setdefault(alias, (Subscriptions(), Subscriptions()))


def reset() -> None:
    """Stop all renewals and forget them; the settings are read anew at next use."""
    with _lock.current:
        stopped = list(_renewals.values())
        _renewals.clear()
    for renewal in stopped:
        renewal.stop()


def _on_setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting == "ENTRA_REDIS":
        reset()


setting_changed.connect(_on_setting_changed)


def _after_fork_in_child() -> None:
    for signal in (token_renewed, token_renewal_failed):
        # A thread of the parent may have held the lock, while it sent the signal.
        signal.lock = threading.Lock()
    for subscriptions in _subscriptions.values():
        for kind in subscriptions:
            kind.after_fork()


in_child(_after_fork_in_child, Order.LOCKS)


def _before_exit() -> None:
    deadline = time.monotonic() + EXIT_PATIENCE
    # All of them are called, even where a signal handler raises meanwhile.
    with contextlib.ExitStack() as stack:
        for subscriptions in list(_subscriptions.values()):
            for kind in subscriptions:
                stack.callback(kind.before_exit, deadline)


atexit.register(_before_exit)
