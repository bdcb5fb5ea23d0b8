"""TLS: the SSL context and the session that connections to one server share."""

import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redis.connection import SSLConnection

if TYPE_CHECKING:
    import socket


class SharedTls:
    """What the TLS connections to one server, or to all nodes of a cluster, share.

    Parameters:
        names: of a cluster the hosts in ``LOCATION``. A node's certificate is to be for
            the first of them, wherever it is and whatever it is called: who answers
            for one node could send the token to any name that they have a certificate
            for. None: each server's is to be for the name that is connected to.
        domain: nodes with names below it are verified for these.
    """

    context: ssl.SSLContext | None = None

    def __init__(self, names: Sequence[str] = (), domain: str | None = None) -> None:
        self._names = {_normal(name): name for name in names}
        self._domain = domain and _normal(domain)
        # By host and port, what a handshake is shortened with (RFC 8446, 2.2): one for
        # all connections, since to take each new one would cost what it saves.
        self.sessions: dict[tuple[str, int], ssl.SSLSession] = {}
        #: By the host that a node announces, the one that it has been reached at.
        self.routes: dict[str, str] = {}

    def hosts_of(self, host: str) -> tuple[str, ...]:
        """Return where a server may be, in the order to try.

        Behind a private endpoint, the nodes of a cluster may announce an address that
        cannot be reached from here, and be at the host in ``LOCATION``, at their ports.
        """
        if host in self.routes:
            return (self.routes[host],)
        if not self._names or host in self._names.values():
            return (host,)
        return host, next(iter(self._names.values()))

    def name_of(self, host: str) -> str:
        """Return the name that a host's certificate is to be for."""
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
        super().__init__(**kwargs)

    def _connect(self) -> Any:
        announced, failure = self.host, None
        for host in self._tls.hosts_of(announced):
            self.host = host
            try:
                connected = super()._connect()
            except ssl.SSLError:
                raise  # There is somebody, but not who it should be.
            except OSError as error:
                failure = failure or error
            else:
                self._tls.routes[announced] = host
                return connected
            finally:
                self.host = announced
        assert failure is not None
        raise failure

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Disconnect from the server."""
        wrapped, self._socket = self._socket, None
        # Not each time: CPython leaks each session that it is asked for, some 6 KB.
        if wrapped and (server := (self.host, self.port)) not in self._tls.sessions:
            # In TLS 1.3 it has come with the first reply, not with the handshake.
            session = wrapped.session
            if session is not None and session.has_ticket:
                self._tls.sessions[server] = session
        super().disconnect(*args, **kwargs)

    # redis-py has no public way to give a connection its SSL context: it builds one
    # for each connection, which is nine tenths of what a TLS connect costs. A test
    # fails when this method goes.
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
                # The server has been replaced, or has forgotten: the next one counts.
                tls.sessions.pop(server, None)
            return self._socket
        # The first connection has redis-py build the context, from all its options.
        address, self.host = self.host, name
        try:
            wrapped: ssl.SSLSocket = super()._wrap_socket_with_ssl(sock)
        finally:
            self.host = address
        # Atomic: that of the quickest thread stays, for sessions are good for their own
        # context alone.
        vars(tls).setdefault("context", wrapped.context)
        return wrapped


def _normal(name: str) -> str:
    """Return a host's name as it is compared with others."""
    return name.lower().rstrip(".")
