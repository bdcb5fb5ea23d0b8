"""The attempts at a request, from which outages of the servers are noted."""

from collections.abc import Mapping
from typing import Any

from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from ..commands.replies import has_error
from ..commands.request import Request
from ..connections.endpoint import Endpoint
from ..connections.outage import OUTAGE_ERRORS, SECOND_OPINION, Outages
from ..exceptions import ServerDownError


class Attempts:
    """The attempts at one request, on one server or, in a cluster, on several.

    Parameters:
        request: the request.
        covered: whether ``ignore_exceptions`` hides the error from the caller.
    """

    def __init__(self, request: Request, *, covered: bool) -> None:
        self.request = request
        self._covered = covered
        #: The server of the last attempt.
        self.endpoint: Endpoint | None = None
        self._began = 0.0
        self._count = 0

    def begin(self, endpoint: Endpoint) -> None:
        """Begin an attempt on a server.

        Raises:
            ServerDownError: the server is down, or takes no writes and the request is
                one, and another request is probing it.
        """
        if endpoint is not self.endpoint:
            self._began = endpoint.outages.enter(**self._about(endpoint.outages))
            self.endpoint = endpoint
            self._count = 0
        self._count += 1

    def begun(self, endpoint: Endpoint, at: float) -> None:
        """Note the first attempt, which the caller has made already.

        Parameters:
            endpoint: the server.
            at: when the attempt began, on the clock of :class:`Outages`.
        """
        self._began, self.endpoint, self._count = at, endpoint, 1

    def succeeded(self, reply: Any) -> None:
        """Note the reply of the last attempt."""
        assert self.endpoint is not None
        outages, request = self.endpoint.outages, self.request
        if request.count and has_error(reply):
            for one in reply:
                if isinstance(one, OutOfMemoryError):
                    self._failed(outages, one, covered=True)
                    return
                if isinstance(one, ReadOnlyError):
                    return  # A part of a batch, whose commands are retried one by one.
        outages.answered(**self._about(outages))

    def gave_up(self, error: Exception) -> Endpoint | None:
        """Note the error of the last attempt, after which the request fails.

        Returns the server if it should be asked once more, see :meth:`Outages.failed`.
        """
        if self.endpoint is None or isinstance(error, ServerDownError):
            return None
        outages = self.endpoint.outages
        if isinstance(error, ResponseError):
            outages.refused(**self._about(outages))
        if not isinstance(error, OUTAGE_ERRORS):
            return None
        doubtful = self._failed(outages, error, covered=self._covered)
        return self.endpoint if doubtful else None

    @property
    def second_opinion_timeout(self) -> float:
        """Seconds to wait for the server's answer on a new connection."""
        assert self.endpoint is not None
        least, most = SECOND_OPINION
        took = self.endpoint.outages.clock() - self._began
        return min(max(took / 2, least), most)

    def second_opinion(self, well: bool) -> None:
        """Note whether the server has answered on a new connection.

        Parameters:
            well: whether it has.
        """
        assert self.endpoint is not None
        if well:
            self.endpoint.outages.well()
        else:
            self.endpoint.outages.down(self._began)

    def _about(self, outages: Outages) -> Mapping[str, Any]:
        """Return what decides whether an outage concerns the request.

        Without an outage it does not matter.
        """
        if not outages.any:
            return {"write": False, "command": ""}
        return {"write": self.request.modifies, "command": self.request.verb}

    def _failed(self, outages: Outages, error: Exception, *, covered: bool) -> bool:
        return outages.failed(
            error,
            began=self._began,
            tries=self._count,
            command=self.request.verb,
            covered=covered,
        )
