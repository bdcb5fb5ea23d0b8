"""The exchange of commands for replies on an idle connection of a pool.

This is the part of the straight path (:mod:`..clients.straight`) below the operations.
It is one function, which does itself what has methods elsewhere: with a call for each
of its steps, an operation would cost a fifth more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from .._errors import without_frames
from ..commands.replies import NOTHING, Parse, Types
from .endpoint import Endpoint
from .exchanger import UNSENT
from .pool import ConnectionPool

Exchange = Callable[..., Any]

#: What an exchange returns where it has not sent anything.
MISSED: Any = object()
#: Bytes of commands at most: no server refuses values of that size.
LONGEST_COMMANDS = 512 * 1024
#: Types of the result of any command that has not failed.
_RESULTS = frozenset((bool, bytes, int, list, type(None)))
#: redis-py's own connection classes: a user's class may treat its socket differently.
_ORDINARY = (Connection, SSLConnection, UnixDomainSocketConnection)
#: Options that only redis-py's own methods for sending and receiving support.
_EXTRAS = ("health_check_interval", "parser_class", "redis_connect_func")


@dataclass(slots=True)
class FirstTry:
    """The first try of a request, after which the operation has to go on.

    Parameters:
        endpoint: the server that it was sent to.
        came: the error, or the replies, some of which are errors.
        began: when it began, on the pool's clock.
    """

    endpoint: Endpoint
    came: Any
    began: float

    def take(self) -> Any:
        """Return the error or the replies, and forget them.

        When the error is raised, its frames hold this object. If this object also held
        the error, they would keep each other alive.
        """
        came, self.came = self.came, None
        return without_frames(came) if isinstance(came, Exception) else came


class Seam(Protocol):
    """What tells whether tools observe requests: see
    :class:`~..clients.observation.Instrumentation`."""

    client: Any
    pipeline: Any
    own_command: Any
    own_execute: Any


def exchanges(pool: Any, kind: type[Any] = ConnectionPool, parser: Any = None) -> bool:
    """Whether the connections' class and options allow an exchange.

    Parameters:
        pool: the pool.
        kind: this package's own class for such a pool: a user's may do more.
        parser: the parser of replies that this package itself has set, if any.
    """
    if type(pool) is not kind:
        return False
    kwargs = dict(pool.connection_kwargs)
    if parser is not None and kwargs.get("parser_class") is parser:
        del kwargs["parser_class"]
    return (
        getattr(pool.connection_class, "kind", None) in _ORDINARY
        and str(kwargs.get("protocol", 2)) == "2"
        and not any(kwargs.get(option) for option in _EXTRAS)
    )


def make_exchange(endpoint: Endpoint, seam: Seam) -> Exchange:
    """Return a function that exchanges commands for replies on an idle connection."""
    outages = endpoint.outages
    pool: ConnectionPool = endpoint.pool
    clock = pool.clock

    def exchange(
        key: str, packed: bytes, parse: Parse, plain: Types = NOTHING, count: int = 0
    ) -> Any:
        """Send commands, if there is a connection that needs no connect and no AUTH.

        Parameters:
            key: a key of the commands. It is for exchanges on a cluster, which find the
                node by it.
            packed: the commands.
            parse: parses the reply, or returns the error reply that speaks for all.
            plain: the types of replies that it would return as they are.
            count: 0 for one command, else how many there are, whose replies are parsed
                as a list.

        Returns:
            The parsed reply; of several ``True``. Errors, and replies after which the
            operation has to go on, in a :class:`FirstTry`. :data:`MISSED`: nothing has
            been sent.
        """
        if (
            # Tools observe redis-py, or it has not been found out yet whether they do.
            seam.client.execute_command is not seam.own_command
            or (count and seam.pipeline.execute is not seam.own_execute)
            # The server may be down: the general path decides who may ask it.
            or outages.any
            # The server may close the connection before it has read all of it, and
            # reply with the reason before that.
            or len(packed) > LONGEST_COMMANDS
        ):
            return MISSED
        now = clock()
        if now >= pool.close_idle_at:
            pool.close_idle(now)
        try:
            connection = pool.idle.pop()
        except IndexError:
            return MISSED
        clean = False
        try:
            exchanger = connection.exchanger
            if exchanger is None:
                clean = True
                return MISSED
            try:
                reply = exchanger.exchange(packed, count)
                if type(reply) in plain:
                    clean = True
                    outages.answered_at = now
                    return reply
                if reply is UNSENT:
                    return MISSED
                if type(reply) in _RESULTS or not isinstance(reply, Exception):
                    reply = parse(reply)
            except RedisError as error:
                return FirstTry(endpoint, error, now)
            if type(reply) in _RESULTS:
                clean = True
                if reply is True or not count:
                    outages.answered_at = now
                    return reply
            # The reply has been read in full. The connection is closed all the same
            # after READONLY, since DNS may name another server after a failover, and
            # after errors like LOADING, which redis-py treats as disconnects.
            elif isinstance(reply, ResponseError):
                clean = not isinstance(reply, ReadOnlyError)
            return FirstTry(endpoint, reply, now)
        finally:
            # As take_back() has it, without its call where all is as usual.
            if (
                clean
                and connection.pool_generation == pool.generation
                and connection.pid == pool.pid
            ):
                connection.idle_since = now
                pool.idle.append(connection)
                if pool.queue:
                    pool.serve_queue()
            else:
                if not clean:
                    connection.disconnect()
                pool.take_back(connection, now)

    return exchange
