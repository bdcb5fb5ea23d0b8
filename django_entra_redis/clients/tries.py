"""The tries of a request, and what they tell of the servers that were tried."""

from typing import Any

from redis.exceptions import OutOfMemoryError, ResponseError

from ..commands.request import Request
from ..connections.endpoint import Endpoint
from ..connections.outage import OUTAGE_ERRORS, SECOND_OPINION, Outages
from ..exceptions import ServerDownError


class Tries:
    """The tries of one request: at one server, or in a cluster maybe at several.

    Parameters:
        request: the request.
        covered: whether nobody sees the error if it fails.
    """

    def __init__(self, request: Request, *, covered: bool) -> None:
        self.request = request
        self._covered = covered
        #: The server that was tried last.
        self.endpoint: Endpoint | None = None
        self._began = 0.0
        self._count = 0

    def begin(self, endpoint: Endpoint) -> None:
        """Begin a try at a server.

        Raises:
            ServerDownError: it is down, and somebody else is asking already.
        """
        if endpoint is not self.endpoint:
            self._began = endpoint.outages.enter()
            self.endpoint = endpoint
            self._count = 0
        self._count += 1

    def begun(self, endpoint: Endpoint, at: float) -> None:
        """Note a try at a server that began then, of a request without others."""
        self._began, self.endpoint, self._count = at, endpoint, 1

    def succeeded(self, reply: Any) -> None:
        """Note the reply to the last try."""
        assert self.endpoint is not None
        outages, request = self.endpoint.outages, self.request
        if request.count:
            for one in reply:
                if isinstance(one, OutOfMemoryError):
                    self._failed(outages, one, covered=True)
                    return
        if outages.any:
            outages.answered(write=request.write, command=request.verb)
        else:
            outages.answered(write=request.write)

    def gave_up(self, error: Exception) -> Endpoint | None:
        """Note the error of the last try, after which there is none.

        Returns the server if it is to be asked once more, see :meth:`Outages.failed`.
        """
        if self.endpoint is None or isinstance(error, ServerDownError):
            return None
        outages = self.endpoint.outages
        if isinstance(error, ResponseError):
            outages.answered(write=False)
        if not isinstance(error, OUTAGE_ERRORS):
            return None
        doubtful = self._failed(outages, error, covered=self._covered)
        return self.endpoint if doubtful else None

    @property
    def patience(self) -> float:
        """Seconds to wait for a second opinion."""
        assert self.endpoint is not None
        least, most = SECOND_OPINION
        took = self.endpoint.outages.clock() - self._began
        return min(max(took / 2, least), most)

    def second_opinion(self, well: bool) -> None:
        """Note whether the server has answered on a new connection."""
        assert self.endpoint is not None
        if well:
            self.endpoint.outages.well()
        else:
            self.endpoint.outages.down(self._began)

    def _failed(self, outages: Outages, error: Exception, *, covered: bool) -> bool:
        return outages.failed(
            error,
            began=self._began,
            tries=self._count,
            command=self.request.verb,
            covered=covered,
        )
