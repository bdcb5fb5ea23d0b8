"""Checks of a server by the network: its name, its port, its TLS."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError

from ..identity.trust import unusable_tls_file
from .runner import StepError

#: Failure codes by OpenSSL's errors of certificates (X509_V_ERR_..., "x509_vfy.h").
_CERTIFICATE_CODES: Mapping[int, str] = {
    9: "tls_not_yet_valid",
    10: "tls_expired",
    62: "tls_hostname",
    63: "tls_hostname",
    64: "tls_hostname",
}


@dataclass(frozen=True, slots=True)
class ProbedServer:
    """A server of a cache, under examination.

    Parameters:
        pool: the cache's pool to it.
        left: returns the seconds that are left for the check.
    """

    pool: Any
    left: Callable[[], float]

    @property
    def is_unix(self) -> bool:
        """Whether it is reached through a Unix socket."""
        return issubclass(self.pool.connection_class, UnixDomainSocketConnection)

    @property
    def address(self) -> tuple[str, int]:
        """Its host and port."""
        where = self.pool.connection_kwargs
        return where.get("host", "localhost"), int(where.get("port", 6379))

    @property
    def name(self) -> str:
        """The server's name in messages."""
        if self.is_unix:
            return str(self.pool.connection_kwargs.get("path", ""))
        return "{}:{}".format(*self.address)

    def connection(self) -> Any:
        """Return a new connection like those of the pool, outside the pool."""
        return self.pool.connection_class(**self.pool.connection_kwargs)

    def resolve(self) -> str:
        """Resolve its host name; return the addresses.

        Raises:
            StepError: the name can't be resolved.
        """
        if self.is_unix:
            return "not used: a Unix socket"
        host, port = self.address
        try:
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        # UnicodeError: it is not a host name.
        except (OSError, UnicodeError) as error:
            text = getattr(error, "strerror", None) or error
            again = error.args[0] == socket.EAI_AGAIN
            code = "dns_timeout" if again else "dns_not_found"
            raise StepError(code, f"{host}: {text}.") from None
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        return f"{host} is {', '.join(addresses)}"

    def reach(self) -> str:
        """Connect to its port; return the address.

        Raises:
            StepError: the port can't be reached.
        """
        with self._open(*self._hosts) as sock:
            peer = sock.getpeername()
        return f"connected to {self.name if self.is_unix else peer[0]}"

    def shake_hands(self) -> str:
        """Make the TLS handshake, or check that the server speaks plain text.

        Raises:
            StepError: the handshake fails, or server and settings differ about TLS.
        """
        if not issubclass(self.pool.connection_class, SSLConnection):
            self._expect_plain_text()
            return "not used: redis://"
        failure = self._try_handshake()
        if isinstance(failure, str):
            return failure
        if failure.code == "port_silent":
            # A Redis without TLS takes the handshake for the beginning of a line, and
            # waits for the rest.
            with contextlib.suppress(StepError):
                self._expect_plain_text()
                failure = StepError("tls_plaintext_server", f"{self.name} speaks none.")
        try:
            raise failure
        finally:
            del failure  # Otherwise this frame would keep it alive.

    @property
    def _hosts(self) -> tuple[str, ...]:
        """The hosts to try, as the cache tries them."""
        host, _ = self.address
        tls = self.pool.connection_kwargs.get("tls")
        return (host,) if tls is None else tuple(tls.hosts_of(host))

    def _open(self, *hosts: str) -> socket.socket:
        """Connect to the first of these hosts that answers.

        Raises:
            StepError: none does.
        """
        where = self.pool.connection_kwargs
        seconds = min(self.left(), where.get("socket_connect_timeout") or 60)
        try:
            if self.is_unix:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    sock.settimeout(seconds)
                    sock.connect(where.get("path", ""))
                except OSError:
                    sock.close()
                    raise
                return sock
            return self._connect(hosts, seconds)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            code, text = "tcp_refused", error.strerror
        except TimeoutError:
            code, text = "tcp_timeout", f"no answer within {seconds:.0f} s"
        # UnicodeError: a node announces what is not a host name.
        except (OSError, UnicodeError) as error:
            code = "tcp_unreachable"
            text = getattr(error, "strerror", None) or str(error)
        raise StepError(code, f"{self.name}: {text}.")

    def _connect(self, hosts: Sequence[str], seconds: float) -> socket.socket:
        _, port = self.address
        for host in hosts[:-1]:
            with contextlib.suppress(OSError, UnicodeError):
                return socket.create_connection((host, port), seconds / 2)
        return socket.create_connection((hosts[-1], port), seconds)

    def _timeout_left(self) -> float:
        # Half of what is left, since a silent server is asked twice.
        limit = self.pool.connection_kwargs.get("socket_timeout") or 60
        return float(min(self.left() / 2, limit))

    def _expect_plain_text(self) -> None:
        """Check that the server answers to plain text as Redis does.

        A TLS server would answer with an alert record (RFC 8446, 5.1), or close the
        connection.
        """
        with self._open(*self._hosts) as sock:
            sock.settimeout(self._timeout_left())
            try:
                # As an array: not all that speak RESP know "inline commands".
                sock.sendall(b"*1\r\n$4\r\nPING\r\n")
                first = sock.recv(64)[:1]
            except TimeoutError:
                raise StepError("port_silent", f"{self.name} says nothing.") from None
            except OSError:
                first = b""
        if first in (b"", b"\x15"):
            raise StepError("tls_expected", f"{self.name} takes no plain text.")
        if first not in (b"+", b"-"):
            raise StepError("not_redis", f"{self.name} does not talk as Redis does.")

    def _try_handshake(self) -> StepError | str:
        """Make the handshake with the first host that makes it; return what it is, or
        the error, which is the first of those with a host that could be reached."""
        failure: StepError | None = None
        for host in self._hosts:
            try:
                outcome = self._try_handshake_with(host)
            except StepError as error:
                outcome = error.with_traceback(None)
            if isinstance(outcome, str):
                return outcome
            if failure is None or failure.code.startswith("tcp_"):
                failure = outcome
        assert failure is not None
        return failure

    def _try_handshake_with(self, host: str) -> StepError | str:
        # By redis-py's own method, with the ssl_ entries in OPTIONS.
        connection = self.connection()
        with self._open(host) as sock:
            sock.settimeout(self._timeout_left())
            try:
                with connection._wrap_socket_with_ssl(sock) as wrapped:
                    return _describe(wrapped)
            except (OSError, ValueError, RedisError) as error:
                return self._explain(error)

    def _explain(self, error: Exception) -> StepError:
        text = f"{self.name}: {error}"
        reason = str(getattr(error, "reason", ""))
        number = getattr(error, "verify_code", None)
        if number:
            code = _CERTIFICATE_CODES.get(number, "tls_untrusted")
        elif isinstance(error, TimeoutError):
            code, text = "port_silent", f"{self.name} says nothing."
        elif reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG"):
            code, text = "tls_plaintext_server", f"{self.name} speaks none."
        elif "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
            code = "tls_too_old"
        elif isinstance(error, ConnectionError | ssl.SSLEOFError):
            code = "tls_closed"
        else:
            code = "tls_failed"
        if code in ("tls_untrusted", "tls_failed"):
            unusable = unusable_tls_file(self.pool.connection_kwargs)
            if unusable is not None:
                code, text = "tls_file_unreadable", unusable
        return StepError(code, text)


def _describe(sock: ssl.SSLSocket) -> str:
    certificate = sock.getpeercert()
    if not certificate:
        return f"{sock.version()}, certificate NOT verified (ssl_cert_reqs)"
    expiry = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (expiry - time.time()) / 86400
    date = datetime.fromtimestamp(expiry, UTC).date()
    return f"{sock.version()}, certificate good until {date} ({days:.0f} days)"
