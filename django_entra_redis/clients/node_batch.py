"""The part of a batch that goes to one node of a cluster."""

from types import TracebackType
from typing import Any, Self

from redis.exceptions import ConnectionError, ReadOnlyError, TimeoutError

from .._errors import without_frames
from ..commands.request import Request
from ..connections.endpoint import Endpoint
from ..connections.exchanger import Exchanger
from ..connections.idle_exchange import LONGEST_COMMANDS
from ..connections.pool import check_out
from .redirects import batch_error
from .sync import read_many, send_packed


class NodeBatch:
    """The part of a batch that goes to one node.

    To send its commands and to read its replies are two steps, so that all nodes work
    at the same time.

    Parameters:
        endpoint: the node.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._pool = endpoint.pool
        # Whether the connections' options allow an exchanger.
        self._exchanges = endpoint.exchange is not None
        self._exchanger: Exchanger | None = None
        self._connection: Any = None
        # The replies, or the error for all of them, once one of the two is known.
        self._outcome: list[Any] | Exception | None = None
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
            # A reply may still arrive, which the next command would take for its own.
            if not self._clean:
                self._connection.disconnect()
            self._pool.release(self._connection)

    def send(self, request: Request) -> None:
        """Check out a connection and send the commands on it."""
        self._request, packed = request, request.packed
        try:
            connection = self._connection = check_out(self._pool)
            if self._exchanges and len(packed) <= LONGEST_COMMANDS:
                self._exchanger = connection.exchanger
            if self._exchanger is not None:
                self._exchanger.send(packed)
            else:
                self._outcome = send_packed(connection, packed, request)
        except (ConnectionError, TimeoutError) as error:
            self._outcome = without_frames(error)

    def receive(self, *, wait: bool = True) -> list[Any] | Exception:
        """Return the parsed replies, or the error that stands for all of them.

        Parameters:
            wait: whether to wait for the first reply, if it has not arrived yet.
        """
        if self._outcome is None:
            try:
                replies = self._read(wait)
            except (ConnectionError, TimeoutError) as error:
                self._outcome = without_frames(error)
            else:
                # READONLY: as carry_out() has it.
                self._clean = not (
                    self._request.write
                    and isinstance(batch_error(replies), ReadOnlyError)
                )
                return replies
        return self._outcome

    def _read(self, wait: bool) -> list[Any]:
        request = self._request
        if self._exchanger is not None:
            replies = self._exchanger.receive(request.count, wait=wait)
            found: list[Any] = request.read(replies)
            return found
        if not (wait or self._connection.can_read(timeout=0)):
            raise TimeoutError("Timeout reading from socket")
        return read_many(self._connection, request)
