"""The HTTP session that msal makes its requests with.

The server may be hostile, or a proxy in between. Its answers are bounded in time and in
bytes, their declared encoding is ignored, and redirects are not followed.
"""

import http.client
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

# requests is a dependency of msal, whose ManagedIdentityClient takes one of its
# sessions; urllib3 is a dependency of requests.
import requests
import urllib3
from requests.adapters import HTTPAdapter

from ..exceptions import TokenRequestError

#: Bytes of all answers for one token at most; usually they have a few thousand.
MAX_BYTES = 2**20
#: Names of headers and form fields whose values are secrets.
_SECRET_NAMES = (
    "authorization",
    "client_assertion",
    "client_secret",
    "secret",
    "x-identity-header",
)


def _add_nothing(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Return a request unchanged: it needs no authentication."""
    return request


class BoundedSession(requests.Session):
    """A session with one timeout for all requests of a token, and without keep-alive.

    Parameters:
        timeout: seconds for all requests of one token.
        trust_env: whether to use the environment's proxies and certificates.
        local: whether the endpoint is on this machine: then it may send a challenge.
        monotonic: the clock, in seconds.

    ``answer`` is the last response, ``None`` before the first one; ``failure`` is what
    the last request raised, if it did; ``secrets`` are the secrets in the requests.
    """

    def __init__(
        self,
        timeout: float,
        *,
        trust_env: bool,
        local: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.trust_env = trust_env
        self.max_redirects = 0
        # Otherwise requests would add the credentials in ~/.netrc for the host.
        self.auth = _add_nothing
        self.answer: requests.Response | None = None
        self.failure: Exception | None = None
        self.secrets: set[str] = set()
        self._timeout = timeout
        self._local = local
        self._bounds = _Bounds(monotonic)
        for prefix in ("https://", "http://"):
            self.mount(prefix, _BoundedAdapter(self._bounds))

    def pin(self, thumbprint: str) -> None:
        """Accept one server certificate alone over HTTPS, even if it is self-signed.

        Parameters:
            thumbprint: the certificate's SHA-1 thumbprint, in hexadecimal digits.
        """
        self.verify = False
        self.mount(
            "https://", _BoundedAdapter(self._bounds, assert_fingerprint=thumbprint)
        )

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None, so that requests does not even prepare a redirected request."""

    def begin(self) -> None:
        """Start the time for one token's requests."""
        self._bounds.begin(self._timeout)
        self.answer = self.failure = None
        self.secrets.clear()
        self.cookies.clear()

    def end(self) -> None:
        """Close what is open, and let go of a failure, whose frames hold secrets."""
        self.failure = None
        self.close()

    def request(  # type: ignore[override] # msal passes all else by keyword
        self, method: str, url: str, **kwargs: Any
    ) -> requests.Response:
        """Make a request within the time that is left.

        Raises:
            requests.Timeout: no time is left, or the answer took too long.
            TokenRequestError: the answer is too long, or is a redirect.
            ValueError: the answer is not JSON.
        """
        try:
            return self._request(method, url, **kwargs)
        except Exception as error:
            self.failure = error
            raise

    def _request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        self._note_secrets(kwargs)
        headers = {
            **(kwargs.pop("headers", None) or {}),
            # Renewals are too rare for keep-alive, and a child process must not inherit
            # an open connection.
            "Connection": "close",
            # A compressed answer may be a thousand times as large when decompressed.
            "Accept-Encoding": "identity",
        }
        kwargs |= {"headers": headers, "allow_redirects": False, "stream": True}
        kwargs["timeout"] = self._bounds.seconds()
        try:
            self.answer = answer = _whole(super().request(method, url, **kwargs))
        finally:
            # If the server closes the connection without a "Connection: close" of its
            # own, requests would use it again, and the next request would fail.
            self.close()
        if 300 <= answer.status_code < 400:
            raise _redirected(answer)
        if (
            self._local
            and answer.status_code == 401
            and "WWW-Authenticate" in answer.headers
        ):
            # Azure Arc's challenge, of which msal reads only the headers.
            return _Answer(answer, b"")
        # Checked here, since msal would log the whole answer at ERROR, secrets and all,
        # if it is not JSON.
        try:
            json.loads(answer.text)
        except RecursionError:
            raise ValueError("the JSON is nested without end") from None
        return answer

    def answered_at(self) -> float | None:
        """Return the server's time of the answer, in seconds since the epoch."""
        value = "" if self.answer is None else self.answer.headers.get("Date", "")
        try:
            return _parse_date(value).timestamp()
        except (ValueError, OverflowError):
            return None

    def _note_secrets(self, given: dict[str, Any]) -> None:
        """Remember the secrets in a request, so that they can be redacted."""
        carried = [
            value
            for part in (given.get("headers"), given.get("data"))
            for name, value in (part or {}).items()
            if name.lower() in _SECRET_NAMES
        ]
        for value in carried:
            text = value.decode() if isinstance(value, bytes) else str(value)
            # Without the scheme before it, such as "Basic".
            self.secrets.add(text.rpartition(" ")[2])

    def retry_after(self) -> float | None:
        """Return the seconds in the last answer's Retry-After header, if it has one."""
        # Compared with None, since a Response with an error status is falsy.
        value = None if self.answer is None else self.answer.headers.get("Retry-After")
        return None if value is None else parse_retry_after(value, datetime.now(UTC))


def _redirected(answer: requests.Response) -> TokenRequestError:
    try:
        host = urlsplit(answer.headers.get("Location", "")).hostname
    except ValueError:
        host = None
    return TokenRequestError(
        f"the identity endpoint answered HTTP {answer.status_code}, a redirect to "
        f"{host or 'itself'}. Redirects are not followed, since secrets would be sent "
        "there.",
        code="token_redirected",
    )


def _whole(response: requests.Response) -> requests.Response:
    """Return a response with its body, which is read and not decompressed.

    Raises:
        requests.RequestException: the body could not be read.
    """
    try:
        body: bytes = response.raw.read(decode_content=False)
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.ReadTimeout(str(error)) from None
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(str(error)) from None
    return _Answer(response, body)


class _Answer(requests.Response):
    """A copy of a response with a given body, in one of JSON's encodings.

    To decode it by the declared encoding, or to guess the encoding, may take hours.
    """

    def __init__(self, like: requests.Response, body: bytes) -> None:
        super().__init__()
        self.status_code, self.reason = like.status_code, like.reason
        self.headers, self.url = like.headers, like.url
        self.encoding = json.detect_encoding(body)
        self.raw = io.BytesIO(body)


@dataclass(slots=True)
class _Bounds:
    """The seconds and bytes that are left for the requests of one token."""

    monotonic: Callable[[], float]
    deadline: float = 0.0
    bytes_left: int = 0

    def begin(self, timeout: float) -> None:
        """Begin with this number of seconds and ``MAX_BYTES`` bytes."""
        self.deadline = self.monotonic() + timeout
        self.bytes_left = MAX_BYTES

    def seconds(self) -> float:
        """Return the seconds that are left.

        Raises:
            requests.Timeout: no time is left.
        """
        left = self.deadline - self.monotonic()
        if left <= 0:
            raise requests.Timeout("no time left for a further request")
        return left

    def count(self, size: int) -> None:
        """Count received bytes.

        Raises:
            TokenRequestError: they are too many.
        """
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise TokenRequestError(
                f"the identity endpoint answered with more than {MAX_BYTES} bytes.",
                code="token_bad_answer",
            )


class _BoundedReader(io.RawIOBase):
    """Reads a socket, with the time that is left for all requests as its timeout.

    A constant timeout bounds one read: a server that sends a byte now and then would
    keep the reader for ever.
    """

    def __init__(self, sock: Any, bounds: _Bounds) -> None:
        self._sock, self._bounds = sock, bounds
        # The socket stays open until this file is closed, too.
        self._file = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Return True, as a readable file does."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read available bytes into a buffer.

        Raises:
            TimeoutError: no bytes came in time.
            TokenRequestError: the answers are too long.
        """
        try:
            self._sock.settimeout(self._bounds.seconds())
        except requests.Timeout:
            raise TimeoutError("timed out") from None
        size: int = self._file.readinto(buffer) or 0
        self._bounds.count(size)
        return size

    def close(self) -> None:
        """Close the file of the socket."""
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class _BoundedSocket:
    """The part of a socket that :class:`http.client.HTTPResponse` uses."""

    sock: Any
    bounds: _Bounds

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the bounded file that the response is read from."""
        return io.BufferedReader(_BoundedReader(self.sock, self.bounds))


class _BoundedResponse(http.client.HTTPResponse):
    """A response that is read within bounds, and whose headers must be well-formed."""

    def __init__(self, bounds: _Bounds, sock: Any, *args: Any, **kwargs: Any) -> None:
        bounded: Any = _BoundedSocket(sock, bounds)
        super().__init__(bounded, *args, **kwargs)

    def begin(self) -> None:
        """Read status and headers.

        Raises:
            TokenRequestError: a header is malformed, or there are two lengths.
        """
        super().begin()
        two_lengths = {"content-length", "transfer-encoding"} <= {
            name.lower() for name in self.msg
        }
        if self.msg.defects or self.msg.get_payload() or two_lengths:
            # Raised here, since urllib3 would log the malformed headers.
            raise TokenRequestError(
                "the identity endpoint's answer has malformed headers.",
                code="token_bad_answer",
            )


class _BoundedAdapter(HTTPAdapter):
    """An adapter whose urllib3 connections read their responses within bounds.

    Parameters:
        bounds: the bounds.
        pools: further arguments for urllib3's pools.
    """

    def __init__(self, bounds: _Bounds, **pools: Any) -> None:
        self._respond = staticmethod(partial(_BoundedResponse, bounds))
        self._pools = pools
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make urllib3's pools, with bounded connections."""
        kwargs |= self._pools
        super().init_poolmanager(*args, **kwargs)
        self._bound(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make urllib3's pools for a proxy, with bounded connections."""
        manager = super().proxy_manager_for(*args, **kwargs)
        self._bound(manager)
        return manager

    def _bound(self, manager: Any) -> None:
        manager.pool_classes_by_scheme = {
            scheme: _subclass(
                pool,
                ConnectionCls=_subclass(
                    pool.ConnectionCls, response_class=self._respond
                ),
            )
            for scheme, pool in manager.pool_classes_by_scheme.items()
        }


def _subclass(kind: type, **attributes: Any) -> type:
    return type(kind.__name__, (kind,), attributes)


def _parse_date(value: str) -> datetime:
    """Return an HTTP date, which is in UTC unless it has a zone (RFC 9110, 5.6.7)."""
    date = parsedate_to_datetime(value)
    return date.replace(tzinfo=date.tzinfo or UTC)


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds in a Retry-After header (RFC 9110, 10.2.3).

    Parameters:
        value: seconds or an HTTP date; anything else gives ``None``.
        now: the current time, as an aware datetime.

    The result is an hour at most, as in msal.
    """
    seconds: float
    try:
        seconds = int(value)
    except ValueError:
        try:
            seconds = (_parse_date(value) - now).total_seconds()
        except (ValueError, OverflowError):
            return None
    return float(min(max(seconds, 0), 3600))
