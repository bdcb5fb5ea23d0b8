"""The part of a batch that goes to one node while other nodes carry out theirs."""

from types import TracebackType
from typing import Any, Self

from redis.exceptions import ConnectionError, TimeoutError

from ..commands.drivers import bare
from ..commands.request import Request
from ..connections.pool import check_out
from .sync import read_many


class Part:
    """A connection that is sent commands now and asked for the replies later."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._connection: Any = None
        self._failure: Exception | None = None
        self._clean = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            # A reply may be on its way that the next command would take for its own.
            if not self._clean:
                self._connection.disconnect()
            self._pool.release(self._connection)

    def send(self, request: Request) -> None:
        """Check the connection out and send commands."""
        self._request = request
        try:
            self._connection = check_out(self._pool)
            self._connection.send_packed_command([request.packed])
        except (ConnectionError, TimeoutError) as error:
            self._failure = bare(error)

    def receive(self, *, wait: bool = True) -> list[Any] | Exception:
        """Return the replies, or what has gone wrong.

        Parameters:
            wait: whether to wait for the first of them.
        """
        if self._failure is None:
            try:
                if not (wait or self._connection.can_read(timeout=0)):
                    raise TimeoutError("Timeout reading from socket")
                replies = read_many(self._connection, self._request)
            except (ConnectionError, TimeoutError) as error:
                self._failure = bare(error)
            else:
                self._clean = True
                return replies
        return self._failure
