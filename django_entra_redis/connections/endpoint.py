"""An endpoint: one server, with the identity and the options of the caches that use it.

It owns the pool that threads use, the connection of each event loop, the tracking
connections, and what has been found out about the server.
"""

import socket
import ssl
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from redis.exceptions import RedisError, ResponseError

from .._errors import hidden
from ..commands.drivers import clear_frames
from ..commands.server_facts import ServerFacts
from ..conf.options import CacheOptions
from ..credentials.provider import EntraCredentialProvider
from .defaults import with_defaults
from .event_loops import close_everywhere, retire_everywhere
from .multiplexed import Target
from .outage import Outages
from .pool import ConnectionPool, pool_settings
from .registry import get_or_make
from .tls import SharedTls, as_os_error

if TYPE_CHECKING:
    from .copies import Copies
    from .tracking import Tracker

#: Options of redis-py's that an event loop's connection does not support: with one of
#: them, the operations of a cache are carried out in threads.
_SYNC_ONLY = (
    "connection_class",
    "health_check_interval",
    "redis_connect_func",
    "retry",
    "socket_type",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
)


class Endpoint:
    """One server, and the connections of this process to it.

    Parameters:
        pool: the pool of connections to it.
    """

    #: Exchanges commands for replies on an idle connection to it, if it is a node of a
    #: cluster whose connections allow that.
    exchange: Callable[..., Any] | None = None

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.facts = ServerFacts()
        self.outages = Outages(self.name)
        #: Its tracking connections, for caches that keep copies of values.
        self.trackers: WeakSet[Tracker] = WeakSet()
        #: The copies of its values in this process, by the settings that ask for them.
        self.local_copies: dict[Any, Any] = {}

    @property
    def host(self) -> str:
        """The host name or address of the server."""
        host: str = self.pool.connection_kwargs["host"]
        return host

    @property
    def name(self) -> str:
        """The server's name in messages: its host and port, or its path."""
        where = self.pool.connection_kwargs
        if "path" in where:
            return str(where["path"])
        return f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"

    def answers(self, timeout: float) -> bool:
        """Return whether the server answers on a new connection.

        Parameters:
            timeout: seconds to wait for each of its replies.
        """
        kwargs = dict(self.pool.connection_kwargs)
        for key in ("socket_timeout", "socket_connect_timeout"):
            kwargs[key] = min(timeout, kwargs.get(key) or timeout)
        connection = self.pool.connection_class(**kwargs)
        try:
            connection.connect()
            connection.send_command("PING")
            connection.read_response()
        except (RedisError, OSError) as error:
            # A frame of redis-py's may keep the error alive, and this the connection.
            clear_frames(error)
            # PING may be forbidden to this user, but then the server answers.
            return isinstance(error, ResponseError)
        finally:
            connection.disconnect()
        return True

    @cached_property
    def multiplexes(self) -> bool:
        """Whether an event loop's connection supports all of the pool's options."""
        kwargs: Mapping[str, Any] = self.pool.connection_kwargs
        provider = kwargs.get("credential_provider")
        return (
            isinstance(provider, EntraCredentialProvider | None)
            and str(kwargs.get("protocol", 2)) == "2"
            and not any(kwargs.get(option) for option in _SYNC_ONLY)
        )

    @property
    def target(self) -> Target:
        """The address and the options for an event loop's connection."""
        return hidden(lambda: _make_target(self.pool))

    def track(self, copies: "Copies", max_staleness: float) -> "Tracker":
        """Return a tracking connection, on which Redis invalidates copies of values.

        Parameters:
            copies: the copies.
            max_staleness: seconds for which copies are used without a sign of life of
                the connection.
        """
        from .tracking import Tracker

        tracker = Tracker(
            lambda: self.target, copies, max_staleness, lambda: self.outages.known_down
        )
        self.trackers.add(tracker)
        return tracker

    def disconnect(self) -> None:
        """Close all connections; new ones are made with the settings of that time."""
        self._close_trackers("the settings have changed")
        if isinstance(self.pool, ConnectionPool):
            self.pool.close_connections()
        else:
            self.pool.disconnect()
        close_everywhere(self)

    def retire(self) -> None:
        """Close all connections once they are idle: the node has left the cluster."""
        self._close_trackers("the server has left the cluster")
        retire_everywhere(self)
        if isinstance(self.pool, ConnectionPool):
            self.pool.close_connections()
        else:
            # By default redis-py's pool would close connections in use, too, from here.
            self.pool.disconnect(inuse_connections=False)

    def _close_trackers(self, reason: str) -> None:
        for tracker in list(self.trackers):
            tracker.close(reason)


def get_endpoint(server: str, options: CacheOptions) -> Endpoint:
    """Return the process's endpoint for a server and a cache's options.

    Parameters:
        server: its URL.
        options: the cache's settings.
    """
    options = with_defaults(server, options)

    def make() -> Endpoint:
        pool_class, kwargs = pool_settings(server, options, ConnectionPool)
        return Endpoint(pool_class.from_url(server, **kwargs))

    found: Endpoint = get_or_make("endpoint", [server], options, make)
    return found


def _make_target(pool: Any) -> Target:
    """Return the address and the options of a pool's connections."""
    kwargs = pool.connection_kwargs
    # A connection that is never connected, from which redis-py's interpretation of the
    # options is read: defaults and precedence differ between its versions.
    sample = pool.connection_class(**kwargs)
    info = getattr(sample, "driver_info", None)
    names = {
        "LIB-NAME": info.formatted_name if info else getattr(sample, "lib_name", None),
        "LIB-VER": info.lib_version if info else getattr(sample, "lib_version", None),
    }
    greeting: list[tuple[Any, ...]] = [
        ("CLIENT", "SETINFO", key, name) for key, name in names.items() if name
    ]
    if sample.client_name:
        greeting.append(("CLIENT", "SETNAME", sample.client_name))
    if sample.db:
        greeting.append(("SELECT", sample.db))
    options = []
    where = {"path": kwargs["path"]} if "path" in kwargs else {}
    if not where:
        where = {"host": sample.host, "port": sample.port}
        if sample.socket_keepalive:
            options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
            options += [
                (socket.IPPROTO_TCP, option, value)
                for option, value in sample.socket_keepalive_options.items()
            ]
    provider = kwargs.get("credential_provider")
    user, password = sample.username, sample.password
    credentials = (user, password or "") if user else (password,) if password else ()
    tls = kwargs.get("tls")
    return Target(
        where=where,
        credentials=credentials,
        greeting=greeting,
        provide=None if provider is None else lambda: provider.renewal,
        connect_timeout=sample.socket_connect_timeout,
        timeout=sample.socket_timeout,
        wait_timeout=getattr(pool, "pool_timeout", 5.0),
        socket_options=options,
        make_ssl=None if tls is None else lambda: _ssl_context(tls, sample),
        server_hostname=tls.name_of(where["host"]) if tls else None,
        tls=tls,
    )


def _ssl_context(tls: SharedTls, connection: Any) -> ssl.SSLContext:
    """Return the SSL context that a pool's connections share."""
    if tls.context is None:
        # redis-py makes the context from its options, which takes no connection.
        try:
            with (
                socket.socket() as sock,
                connection._wrap_socket_with_ssl(sock) as wrapped,
            ):
                made: ssl.SSLContext = wrapped.context
        except UnicodeError as error:
            raise as_os_error(error) from None
        return made
    return tls.context
