"""TLS: the SSL context and the session that connections to one server share."""

import asyncio
import errno
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from redis.connection import SSLConnection

from ..identity.trust import FILE_OPTIONS, is_special, unusable_tls_file

if TYPE_CHECKING:
    import socket

T = TypeVar("T")


class SharedTls:
    """What the TLS connections to one server, or to all nodes of a cluster, share.

    Parameters:
        names: in a cluster, the hosts in ``LOCATION``. A node's certificate must be
            for the first of them, whatever name the node announces: otherwise, whoever
            can forge one node's replies could redirect the token to any host that they
            have a certificate for. Empty: a certificate must be for the connected host.
        domain: a node whose name is below this domain is verified for its own name.
    """

    context: ssl.SSLContext | None = None

    def __init__(self, names: Sequence[str] = (), domain: str | None = None) -> None:
        self._names = {_normal(name): name for name in names}
        self._domain = domain and _normal(domain)
        # By host and port, the session that shortens handshakes (RFC 8446, 2.2). All
        # connections use the same one: to fetch each new one costs what it saves.
        self.sessions: dict[tuple[str, int], ssl.SSLSession] = {}
        #: The host at which a node was reached, by the host that it announces.
        self.routes: dict[str, str] = {}

    def hosts_of(self, host: str) -> tuple[str, ...]:
        """Return the hosts to try for a server, in this order.

        Behind a private endpoint, the nodes of a cluster may announce an address that
        can't be reached from here; they are reached at the host in ``LOCATION`` and
        the announced port.
        """
        if host in self.routes:
            return (self.routes[host],)
        if not self._names or host in self._names.values():
            return (host,)
        return host, next(iter(self._names.values()))

    def name_of(self, host: str) -> str:
        """Return the name that a host's certificate must be for."""
        name = _normal(host)
        if not self._names:
            return host
        if self._domain and f".{name}".endswith(f".{self._domain}"):
            return name
        return self._names.get(name) or next(iter(self._names.values()))


class SharedTlsConnection(SSLConnection):
    """A TLS connection that shares its pool's SSL context and session.

    Parameters:
        tls: what the connections of a pool share.
    """

    def __init__(self, *, tls: SharedTls, **kwargs: Any) -> None:
        self._tls = tls
        self._socket: ssl.SSLSocket | None = None
        self._files = {key: kwargs[key] for key in FILE_OPTIONS if kwargs.get(key)}
        super().__init__(**kwargs)

    def _connect(self) -> Any:
        announced = self.host
        failure: Exception | None = None
        for host in self._tls.hosts_of(announced):
            self.host = host
            try:
                connected = super()._connect()
            except _UNREACHED as error:
                failure = _more_telling(failure, error)
            else:
                self._tls.routes[announced] = host
                failure = None  # Otherwise this frame would keep it alive.
                return connected
            finally:
                self.host = announced
        assert failure is not None
        try:
            raise failure
        finally:
            del failure

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect from the server."""
        wrapped, self._socket = self._socket, None
        # Not each time: CPython leaks about 6 KB at each access to ``session``.
        if wrapped and (server := (self.host, self.port)) not in self._tls.sessions:
            # In TLS 1.3 the session comes with the first reply, after the handshake.
            session = wrapped.session
            if session is not None and session.has_ticket:
                self._tls.sessions[server] = session
        super().disconnect(*args, **kwargs)

    # redis-py has no public way to give a connection an SSL context: it builds one for
    # each connection, which is nine tenths of the cost of a TLS connect. A test fails
    # when this method disappears.
    def _wrap_socket_with_ssl(self, sock: "socket.socket") -> ssl.SSLSocket:
        checks_more = self.ssl_validate_ocsp or self.ssl_validate_ocsp_stapled
        tls, name = self._tls, self._tls.name_of(self.host)
        if tls.context is not None and not checks_more:
            server = (self.host, self.port)
            session = tls.sessions.get(server)
            self._socket = tls.context.wrap_socket(
                sock, server_hostname=name, session=session
            )
            if session is not None and not self._socket.session_reused:
                # The server does not know the session: the next one is kept instead.
                tls.sessions.pop(server, None)
            return self._socket
        # For the first connection, redis-py builds the context from the options.
        address, self.host = self.host, name
        try:
            if any(map(is_special, self._files.values())):
                # OpenSSL waits for a pipe's writer, beyond all timeouts.
                raise OSError(errno.EINVAL, "it is not a regular file")
            wrapped: ssl.SSLSocket = super()._wrap_socket_with_ssl(sock)
        except OSError as error:
            # OpenSSL does not say which file it can't use.
            network = isinstance(error, ConnectionError | TimeoutError)
            why = None if network else unusable_tls_file(self._files)
            if why is None:
                raise
            raise OSError(error.errno, why) from error
        finally:
            self.host = address
        # Atomic: the first thread's context stays. Sessions belong to one context.
        vars(tls).setdefault("context", wrapped.context)
        return wrapped


async def reach(
    tls: SharedTls | None,
    announced: str,
    timeout: float | None,
    connect: Callable[[str], Awaitable[T]],
) -> T:
    """Connect to the first host of a server that answers; return the connection.

    Parameters:
        tls: what the TLS connections to the server share; ``None``: no TLS.
        announced: the host that the server announces.
        timeout: seconds that the caller allows for all hosts; ``None``: without bound.
        connect: connects to a host.

    Raises:
        OSError: no host answers, or none with the right certificate.
    """
    failure: Exception | None = None
    *others, last = (announced,) if tls is None else tls.hosts_of(announced)
    for host in (*others, last):
        # Half of the time for this host, so that some is left for the last one; and not
        # all of that for the last one, if there is an error of another one to raise.
        seconds = None
        if host != last or failure is not None:
            seconds = (timeout or 10.0) * (0.5 if host != last else 0.4)
        try:
            async with asyncio.timeout(seconds):
                made = await connect(host)
        except _UNREACHED as error:
            failure = _more_telling(failure, as_os_error(error))
            continue
        if tls is not None:
            tls.routes[announced] = host
        failure = None  # Otherwise this frame would keep it alive.
        return made
    assert failure is not None
    try:
        raise failure
    finally:
        del failure


#: What a host fails with where there is no node: no server, a name that is none, or a
#: server with another certificate or without TLS, which has the same address in another
#: network.
_UNREACHED = (OSError, UnicodeError)


def as_os_error(error: Exception) -> Exception:
    """Return an error of a connect as whoever connects expects it.

    For a name that can't be looked up at all, such as ``a..b``, Python raises a
    ``UnicodeError``, which redis-py lets through.
    """
    return OSError(f"{error}") if isinstance(error, UnicodeError) else error


def _more_telling(first: Exception | None, error: Exception) -> Exception:
    """Return which of two errors to raise: a server that answers tells more than one
    that does not, and the announced host more than another."""
    answered = isinstance(error, ssl.SSLError) and not isinstance(first, ssl.SSLError)
    return error if first is None or answered else first


def _normal(name: str) -> str:
    """Return a host's name in the form in which names are compared."""
    return name.lower().rstrip(".")
