"""The HTTP session that msal makes its requests with.

Whatever answers may be hostile: it is given so much time and so many bytes, is believed
no encoding, and can't send a request elsewhere.
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

# requests comes with msal, whose ManagedIdentityClient asks for one of its sessions;
# urllib3 comes with requests.
import requests
import urllib3
from requests.adapters import HTTPAdapter

from ..exceptions import TokenRequestError

#: Bytes of all the answers that one token takes; they are a few thousand.
MAX_BYTES = 2**20
#: Headers, and fields of a form, whose value is a secret.
_SECRET_NAMES = (
    "authorization",
    "client_assertion",
    "client_secret",
    "secret",
    "x-identity-header",
)


def _add_nothing(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave a request as it is."""
    return request


class BoundedSession(requests.Session):
    """A session whose requests end in time together, and that keeps no connection.

    Parameters:
        timeout: seconds for all the requests that one token takes.
        trust_env: whether the environment's proxies and certificates count.
        local: whether the endpoint is the machine's own, which may answer with a
            challenge.
        monotonic: clock to measure the timeout with.

    ``answer`` is the last response, ``None`` before there is one; ``secrets`` are those
    that the requests have carried.
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
        # Without it requests adds what ~/.netrc has for the host.
        self.auth = _add_nothing
        self.answer: requests.Response | None = None
        self.secrets: set[str] = set()
        self._timeout = timeout
        self._local = local
        self._bounds = _Bounds(monotonic)
        for prefix in ("https://", "http://"):
            self.mount(prefix, _BoundedAdapter(self._bounds))

    def pin(self, thumbprint: str) -> None:
        """Have HTTPS reach the server with that certificate alone, whoever signed it.

        Parameters:
            thumbprint: of the certificate (SHA-1), in hexadecimal digits.
        """
        self.verify = False
        self.mount(
            "https://", _BoundedAdapter(self._bounds, assert_fingerprint=thumbprint)
        )

    def get_redirect_target(self, resp: requests.Response) -> None:
        """See no redirect anywhere: not even the next request is made ready."""

    def begin(self) -> None:
        """Start the time for one token's requests."""
        self._bounds.begin(self._timeout)
        self.answer = None
        self.secrets.clear()
        self.cookies.clear()

    def request(  # type: ignore[override] # msal names what it gives
        self, method: str, url: str, **kwargs: Any
    ) -> requests.Response:
        """Make a request within the time that is left.

        Raises:
            requests.Timeout: there is none left, or it was not enough.
            TokenRequestError: the answer is too long, or sends the request elsewhere.
            ValueError: the answer is not JSON.
        """
        self._note_secrets(kwargs)
        headers = {
            **(kwargs.pop("headers", None) or {}),
            # Renewals are too far apart to keep a connection for, and an open one must
            # not be shared with a child process.
            "Connection": "close",
            # What is compressed may become a thousand times as much.
            "Accept-Encoding": "identity",
        }
        kwargs |= {"headers": headers, "allow_redirects": False, "stream": True}
        kwargs["timeout"] = self._bounds.seconds()
        try:
            self.answer = answer = _whole(super().request(method, url, **kwargs))
        finally:
            # A server may heed the header without repeating it; then the connection
            # would be taken for one that stays open, and the next request be lost on
            # it.
            self.close()
        if 300 <= answer.status_code < 400:
            raise _redirected(answer)
        if (
            self._local
            and answer.status_code == 401
            and "WWW-Authenticate" in answer.headers
        ):
            # Azure Arc's challenge, of which msal reads the headers alone.
            return _Answer(answer, b"")
        # msal logs the whole of an answer that is not JSON, at ERROR and at each try,
        # whatever it holds.
        try:
            json.loads(answer.text)
        except RecursionError:
            raise ValueError("the JSON is nested without end") from None
        return answer

    def answered_at(self) -> float | None:
        """Return the server's own time as it answered, in seconds since the epoch."""
        value = "" if self.answer is None else self.answer.headers.get("Date", "")
        try:
            return parsedate_to_datetime(value).timestamp()
        except (ValueError, OverflowError):
            return None

    def _note_secrets(self, given: dict[str, Any]) -> None:
        """Remember what a request carries that nobody is to see."""
        carried = [
            value
            for part in (given.get("headers"), given.get("data"))
            for name, value in (part or {}).items()
            if name.lower() in _SECRET_NAMES
        ]
        for value in carried:
            text = value.decode() if isinstance(value, bytes) else str(value)
            # The scheme before it, Basic or the like, is none.
            self.secrets.add(text.rpartition(" ")[2])

    def retry_after(self) -> float | None:
        """Return the seconds that the last answer asks to wait, if it does."""
        # A Response with an error status is false.
        value = None if self.answer is None else self.answer.headers.get("Retry-After")
        return None if value is None else parse_retry_after(value, datetime.now(UTC))


def _redirected(answer: requests.Response) -> TokenRequestError:
    try:
        host = urlsplit(answer.headers.get("Location", "")).hostname
    except ValueError:
        host = None
    return TokenRequestError(
        f"the identity endpoint answered HTTP {answer.status_code}, a redirect to "
        f"{host or 'itself'}. None is followed: secrets would go there.",
        code="token_redirected",
    )


def _whole(response: requests.Response) -> requests.Response:
    """Return a response with its body read, as it came.

    Raises:
        requests.RequestException: it could not be read.
    """
    try:
        body: bytes = response.raw.read(decode_content=False)
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.ReadTimeout(str(error)) from None
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(str(error)) from None
    return _Answer(response, body)


class _Answer(requests.Response):
    """A response with another body, in an encoding that JSON may have.

    One that the endpoint names, or that is guessed, may take hours to decode.
    """

    def __init__(self, like: requests.Response, body: bytes) -> None:
        super().__init__()
        self.status_code, self.reason = like.status_code, like.reason
        self.headers, self.url = like.headers, like.url
        self.encoding = json.detect_encoding(body)
        self.raw = io.BytesIO(body)


@dataclass(slots=True)
class _Bounds:
    """What is left for one token's requests together, in seconds and in bytes."""

    monotonic: Callable[[], float]
    deadline: float = 0.0
    bytes_left: int = 0

    def begin(self, timeout: float) -> None:
        """Give so many seconds, and as many bytes as there may be."""
        self.deadline = self.monotonic() + timeout
        self.bytes_left = MAX_BYTES

    def seconds(self) -> float:
        """Return the seconds that are left.

        Raises:
            requests.Timeout: there are none.
        """
        left = self.deadline - self.monotonic()
        if left <= 0:
            raise requests.Timeout("no time left for a further request")
        return left

    def count(self, size: int) -> None:
        """Take bytes that have come.

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
    """Reads a socket, each time for as long as the whole exchange may still take.

    A socket's own timeout is that of one read: a byte now and then would hold it for
    ever.
    """

    def __init__(self, sock: Any, bounds: _Bounds) -> None:
        self._sock, self._bounds = sock, bounds
        # A connection that is closed stays open until this is closed, too.
        self._file = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is.

        Raises:
            TimeoutError: nothing in time.
            TokenRequestError: more than there may be.
        """
        try:
            self._sock.settimeout(self._bounds.seconds())
        except requests.Timeout:
            raise TimeoutError("timed out") from None
        size: int = self._file.readinto(buffer) or 0
        self._bounds.count(size)
        return size

    def close(self) -> None:
        """Close the socket's file, too."""
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class _BoundedSocket:
    """What :class:`http.client.HTTPResponse` takes for a socket."""

    sock: Any
    bounds: _Bounds

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the file that the response is read from."""
        return io.BufferedReader(_BoundedReader(self.sock, self.bounds))


class _BoundedResponse(http.client.HTTPResponse):
    """A response that is read within bounds, and whose headers have to be some."""

    def __init__(self, bounds: _Bounds, sock: Any, *args: Any, **kwargs: Any) -> None:
        bounded: Any = _BoundedSocket(sock, bounds)
        super().__init__(bounded, *args, **kwargs)

    def begin(self) -> None:
        """Read status and headers.

        Raises:
            TokenRequestError: what should be headers is none.
        """
        super().begin()
        two_lengths = {"content-length", "transfer-encoding"} <= {
            name.lower() for name in self.msg
        }
        if self.msg.defects or self.msg.get_payload() or two_lengths:
            # urllib3 would log them, whatever they hold.
            raise TokenRequestError(
                "the identity endpoint's answer has headers that are none.",
                code="token_bad_answer",
            )


class _BoundedAdapter(HTTPAdapter):
    """Has urllib3's connections read their responses within bounds.

    Parameters:
        bounds: what one token's requests may take.
        pools: arguments for urllib3's pools besides.
    """

    def __init__(self, bounds: _Bounds, **pools: Any) -> None:
        self._respond = staticmethod(partial(_BoundedResponse, bounds))
        self._pools = pools
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools, and bound their connections."""
        kwargs |= self._pools
        super().init_poolmanager(*args, **kwargs)
        self._bound(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make a proxy's pools, and bound their connections."""
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
