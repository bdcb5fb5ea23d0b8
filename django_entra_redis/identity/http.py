"""The HTTP session that msal makes its requests with."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

# requests comes with msal, whose ManagedIdentityClient asks for one of its sessions.
import requests


def _add_nothing(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave a request as it is."""
    return request


class BoundedSession(requests.Session):
    """A session whose requests end in time together, and that keeps no connection.

    Parameters:
        timeout: seconds for all the requests that one token takes.
        trust_env: whether the environment's proxies and certificates count.
        monotonic: clock to measure the timeout with.

    ``answer`` is the last response, ``None`` before there is one.
    """

    def __init__(
        self,
        timeout: float,
        *,
        trust_env: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.trust_env = trust_env
        # Without it requests adds what ~/.netrc has for the host.
        self.auth = _add_nothing
        self.answer: requests.Response | None = None
        self._timeout = timeout
        self._monotonic = monotonic
        self._deadline = 0.0

    def begin(self) -> None:
        """Start the time for one token's requests."""
        self._deadline = self._monotonic() + self._timeout
        self.answer = None

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Make a request within the time that is left.

        Raises:
            requests.Timeout: there is none left, or it was not enough.
            ValueError: the answer is not JSON.
        """
        left = self._deadline - self._monotonic()
        if left <= 0:
            raise requests.Timeout("no time left for a further request")
        kwargs["timeout"] = left
        # Renewals are too far apart to keep a connection for, and an open one must
        # not be shared with a child process.
        kwargs["headers"] = {**(kwargs.get("headers") or {}), "Connection": "close"}
        self.answer = answer = super().request(*args, **kwargs)
        # A server may heed the header without repeating it; then the connection would
        # be taken for one that stays open, and the next request be lost on it.
        self.close()
        # msal logs the whole of an answer that is not JSON, at ERROR and at each try,
        # whatever it holds. Of Azure Arc's challenge it reads the headers alone.
        if "WWW-Authenticate" not in answer.headers:
            json.loads(answer.text)
        return answer

    def answered_at(self) -> float | None:
        """Return the server's own time as it answered, in seconds since the epoch."""
        value = "" if self.answer is None else self.answer.headers.get("Date", "")
        try:
            return parsedate_to_datetime(value).timestamp()
        except (ValueError, OverflowError):
            return None

    def retry_after(self) -> float | None:
        """Return the seconds that the last answer asks to wait, if it does."""
        # A Response with an error status is false.
        value = None if self.answer is None else self.answer.headers.get("Retry-After")
        return None if value is None else parse_retry_after(value, datetime.now(UTC))


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds in a Retry-After header (RFC 9110, 10.2.3).

    Parameters:
        value: seconds or an HTTP date; anything else gives ``None``.
        now: an aware datetime. A wait is an hour at most, as msal has it.
    """
    seconds: float
    try:
        seconds = int(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
        except (ValueError, OverflowError):
            return None
    return float(min(max(seconds, 0), 3600))
