"""The emulator: everything wired together, in a thread of its own."""

import asyncio
import atexit
import contextlib
import dataclasses
import functools
import json
import os
import secrets
import shutil
import socket
import ssl
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from emulator.authority import Authority, Credentials
from emulator.certificates import (
    ClientCertificate,
    cached_client_certificate,
    cached_rsa_key,
)
from emulator.clock import Clock
from emulator.cluster import ADDRESS, Cluster, Member, Node
from emulator.control import PREFIX, ControlEndpoint
from emulator.directory import (
    REDIS,
    Application,
    Directory,
    ManagedIdentity,
    new_id,
)
from emulator.faults import Faults
from emulator.files import write_private
from emulator.gateway import Gateway
from emulator.handshakes import HOST, Handshakes
from emulator.journal import (
    RESET_AT_ACCEPT,
    Authentication,
    Journal,
    Stats,
    TokenRequest,
)
from emulator.managed_identity import (
    AppService,
    AzureArc,
    Endpoint,
    Imds,
    ManagedIdentities,
    ServiceFabric,
)
from emulator.profiles import (
    FULL_ACCESS,
    IMDS_AT_A_TIME,
    IMDS_LATENCY,
    IMDS_LIMIT,
    Profile,
    find_profile,
)
from emulator.server import Server, ServerError
from emulator.sockets import Listener, Serve, reset
from emulator.web import Answer, HttpConnection, Request, Response, Route

KINDS = (
    "service_principal",
    "certificate",
    "workload_identity",
    "managed_identity",
    "user_assigned",
    "app_service",
    "service_fabric",
    "azure_arc",
)
T = TypeVar("T")
_MACHINE = "Microsoft.Compute/virtualMachines/emulator"
_USER_ASSIGNED = "Microsoft.ManagedIdentity/userAssignedIdentities/emulator"
_CALL_TIMEOUT = 30.0
# Seconds: a client on a busy machine may take a while between its connect and the
# first byte.
_FIRST_BYTE = 10.0
# The ports that can fail, with all their endpoints.
_FAULTY = {
    "authority": ("token", "discovery"),
    "imds": ("imds",),
    "app_service": ("app_service",),
    "service_fabric": ("service_fabric",),
    "azure_arc": ("azure_arc",),
}
_FEDERATED_LIFETIME = 3600.0
# Seconds between two looks at which connections are idle.
_IDLE_CHECK = 1.0

_running: "weakref.WeakSet[Emulator]" = weakref.WeakSet()


class Emulator:
    """An Entra authority and an Entra-authenticated Redis, on loopback.

    Ports are ephemeral unless given. With a `directory` its files stay there after
    `stop()`; without one they are in a temporary directory that goes with it.
    `on_event` is called, in the emulator's thread, with a line per event.
    With `cluster` the Redis is a Redis Cluster of so many primaries, from three on with
    a replica each, as under Azure's OSS cluster policy: `redis_url` leads to some node
    that is alive, and the nodes announce addresses that no certificate names.
    With a `profile`, one of `PROFILES`, it refuses what that service of Azure refuses;
    `geo_replication` adds what active geo-replication does. It closes connections that
    are idle for `idle_timeout` seconds, with a profile for ten minutes.
    """

    def __init__(
        self,
        token_lifetime: float = 3600.0,
        *,
        directory: str | Path | None = None,
        redis_server: str | None = None,
        cluster: int = 0,
        profile: str | None = None,
        geo_replication: bool = False,
        idle_timeout: float | None = None,
        port: int = 0,
        plaintext_port: int = 0,
        authority_port: int = 0,
        imds_port: int = 0,
        app_service_port: int = 0,
        control_port: int = 0,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        self.token_lifetime = token_lifetime
        # With a profile as IMDS has it: tokens come again for most of their life, and
        # so many requests are served in a second, and at a time.
        self.repeat_tokens = profile is not None
        self.imds_limit = None if profile is None else IMDS_LIMIT
        self.imds_at_a_time = None if profile is None else IMDS_AT_A_TIME
        self.imds_latency = 0.0 if profile is None else IMDS_LATENCY
        self.system_assigned_enabled = True
        # What an AUTH is refused with, None for Redis's own words. Azure has been seen
        # to say "ERR WRONGPASS invalid username-password pair"
        # (dapr/components-contrib#3554, sonus21/rqueue#253).
        self.refusal: str | None = None
        self.tenant_id = new_id()
        self.application_expired_secret = secrets.token_urlsafe(30)
        self.app_service_header = secrets.token_hex(16).upper()
        self.service_fabric_secret = secrets.token_hex(16).upper()
        self._ports = {
            "gateway": port,
            "plaintext": plaintext_port,
            "authority": authority_port,
            "imds": imds_port,
            "app_service": app_service_port,
            "service_fabric": 0,
            "azure_arc": 0,
            "control": control_port,
        }
        self._redis_server = redis_server
        self.profile: Profile | None = None
        if profile is not None:
            self.profile = find_profile(profile, geo_replicated=geo_replication)
        elif geo_replication:
            raise ValueError("active geo-replication is for a profile")
        self.idle_timeout = idle_timeout
        if self.profile is not None:
            self.refusal = self.profile.auth_refusal
            self.idle_timeout = idle_timeout or self.profile.idle_timeout
        self._primaries = cluster or (self.profile.primaries if self.profile else 0)
        self._cluster: Cluster | None = None
        self._given_directory = None if directory is None else Path(directory)
        self._clock = Clock()
        self._journal = Journal(on_event)
        self.faults = Faults(self._clock)
        self._turn = 0
        self._pid = 0
        self._thread: threading.Thread | None = None
        self._http: set[HttpConnection] = set()
        self._fault_timer: asyncio.TimerHandle | None = None
        self._listeners: dict[str, Listener] = {}
        # Those of the cluster's nodes, by their numbers.
        self._entrances: dict[int, Listener] = {}

    # -- start and stop

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Open the ports, start the server behind, and serve."""
        if self._pid:
            raise RuntimeError("the emulator is running already")
        self._make_directory()
        self._pid = os.getpid()
        self._server, self._cluster = self._choose_server()
        try:
            self._make_principals()
            # It starts while the keys are made.
            access = self.profile.access if self.profile else FULL_ACCESS
            self._server.launch(dict.fromkeys(self._principals(), access))
            self._make_certificates()
            self._listen()
            self._wire()
            self._server.wait()
            self._run()
        except BaseException:
            self.stop()
            raise
        self._write_description()
        _running.add(self)
        atexit.register(self.stop)

    def stop(self) -> None:
        """Close everything; also after a start that failed. Once is enough."""
        if self._pid != os.getpid():
            return
        self._pid = 0
        atexit.unregister(self.stop)
        _running.discard(self)
        thread, self._thread = self._thread, None
        self.faults.on_change(None)
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join()
        for listener in self._listeners.values():
            listener.close()
        self._server.stop()
        if self._given_directory is None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _choose_server(self) -> "tuple[Server | Cluster, Cluster | None]":
        if not self._primaries:
            return Server(self.directory, self._redis_server), None
        cluster = Cluster(self.directory, self._redis_server, self._primaries)
        return cluster, cluster

    def _make_directory(self) -> None:
        if self._given_directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="entra-emulator-"))
        else:
            self.directory = self._given_directory.absolute()
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ca_file = self.directory / "ca.pem"
        self.federated_token_file = self.directory / "federated-token"
        self.arc_keys = self.directory / "arc-keys"
        self.arc_keys.mkdir(mode=0o700, exist_ok=True)

    def _make_principals(self) -> None:
        group = f"/subscriptions/{new_id()}/resourcegroups/emulator/providers"
        system, user = f"{group}/{_MACHINE}", f"{group}/{_USER_ASSIGNED}"
        self.system_assigned = ManagedIdentity(new_id(), new_id(), system)
        self.user_assigned = ManagedIdentity(new_id(), new_id(), user)
        self.application = Application(
            client_id=new_id(),
            object_id=new_id(),
            secret=secrets.token_urlsafe(30),
            certificate_pem=self.directory / "application.pem",
            certificate_pem_encrypted=self.directory / "application-encrypted.pem",
            certificate_pfx=self.directory / "application.pfx",
            certificate_password=cached_client_certificate().password,
        )

    def _principals(self) -> dict[str, str]:
        return {
            principal.object_id: principal.client_id
            for principal in (
                self.application,
                self.system_assigned,
                self.user_assigned,
            )
        }

    def _make_certificates(self) -> None:
        cached_rsa_key("access tokens")
        self._handshakes = Handshakes(self.directory, self.profile)
        self.ca_file.write_bytes(self._handshakes.ca_pem)
        self._tls = self._handshakes.right
        self._write_certificate(cached_client_certificate())

    def _write_certificate(self, certificate: ClientCertificate) -> None:
        application = self.application
        write_private(application.certificate_pem, certificate.pem)
        write_private(application.certificate_pem_encrypted, certificate.pem_encrypted)
        write_private(application.certificate_pfx, certificate.pfx)

    def _listen(self) -> None:
        self._listeners, self._entrances = {}, {}
        identities: dict[str, Serve] = {
            kind.name: functools.partial(self._serve_identity, kind.name)
            for kind in (Imds, AppService, ServiceFabric, AzureArc)
        }
        for name, serve in {
            "gateway": self._serve_gateway,
            "plaintext": self._serve_plaintext,
            "authority": self._serve_authority,
            **identities,
            "control": self._serve_control,
        }.items():
            self._listeners[name] = Listener(self._ports[name], serve)
        if self._cluster is not None:
            for member in self._cluster.members.values():
                self._listen_for(member)
        ports = {name: listener.port for name, listener in self._listeners.items()}
        self.redis_url = f"rediss://{HOST}:{ports['gateway']}"
        self.plaintext_url = f"redis://{HOST}:{ports['plaintext']}"
        self.authority_host = f"https://{HOST}:{ports['authority']}"
        self.control_url = f"https://{HOST}:{ports['control']}"
        self.imds_url = f"http://127.0.0.1:{ports['imds']}"
        self.app_service_endpoint = (
            f"http://127.0.0.1:{ports['app_service']}{AppService.path}"
        )
        self.service_fabric_endpoint = (
            f"https://{HOST}:{ports['service_fabric']}{ServiceFabric.path}"
        )
        self.azure_arc_endpoint = (
            f"http://127.0.0.1:{ports['azure_arc']}{AzureArc.path}"
        )

    def _listen_for(self, member: Member) -> Listener:
        async def serve(sock: socket.socket) -> None:
            await self._serve_redis(sock, member.server)

        listener = Listener(member.port, serve, ADDRESS)
        self._listeners[f"node {member.number}"] = listener
        self._entrances[member.number] = listener
        return listener

    def _wire(self) -> None:
        clock, journal, faults = self._clock, self._journal, self.faults
        issuer = f"{self.authority_host}/{self.tenant_id}/v2.0"
        self._directory = Directory(clock, self.tenant_id, issuer)
        for object_id, client_id in self._principals().items():
            self._directory.add_principal(object_id, client_id)
        self._authority = Authority(
            self.authority_host,
            clock,
            self._directory,
            Credentials(
                self.application.client_id,
                self.application.object_id,
                self.application.secret,
                self.application_expired_secret,
            ),
            cached_client_certificate(),
            faults,
            journal,
            self,
        )
        self._write_federated_token()
        identities = ManagedIdentities(
            clock,
            self._directory,
            self.system_assigned,
            self.user_assigned,
            self,
        )
        header, secret = self.app_service_header, self.service_fabric_secret
        endpoints: tuple[Endpoint, ...] = (
            Imds(clock, identities, faults, journal, self),
            AppService(clock, identities, faults, journal, header),
            ServiceFabric(clock, identities, faults, journal, secret),
            AzureArc(clock, identities, faults, journal, self.arc_keys),
        )
        self._identity_endpoints = {one.name: one for one in endpoints}
        self._control = ControlEndpoint(self)
        self._gateway = Gateway(clock, self._directory, journal, self, self.profile)

    # -- the thread

    def _run(self) -> None:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._main, args=(started,), name="entra-emulator", daemon=True
        )
        self._thread.start()
        started.result(_CALL_TIMEOUT)

    def _main(self, started: "Future[None]") -> None:
        loop = asyncio.new_event_loop()
        # Python's development mode would make the gateway several times slower.
        loop.set_debug(False)
        try:
            loop.run_until_complete(self._serve(started))
        finally:
            loop.close()

    async def _serve(self, started: "Future[None]") -> None:
        loop = asyncio.get_running_loop()
        self._loop = self._gateway.loop = loop
        self._stopping = asyncio.Event()
        for listener in self._listeners.values():
            listener.start()
        self._faults_changed()
        self.faults.on_change(lambda: self._call(self._faults_changed))
        tasks = [loop.create_task(self._rotate_federated_token())]
        if self.idle_timeout is not None:
            tasks.append(loop.create_task(self._close_idle(self.idle_timeout)))
        started.set_result(None)
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        # All at first: new sockets would get the numbers of those that are closed, for
        # which asyncio may still have a transport.
        listeners = list(self._listeners.values())
        for listener in listeners:
            listener.stop()
        for listener in listeners:
            await listener.stopped()
        self._gateway.stop()
        for connection in list(self._http):
            connection.abort()
        # The transports close their sockets in the loop's next rounds.
        for _ in range(10):
            await asyncio.sleep(0)

    async def _rotate_federated_token(self) -> None:
        while True:
            await asyncio.sleep(_FEDERATED_LIFETIME / 2)
            self._write_federated_token()

    async def _close_idle(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(min(seconds / 4, _IDLE_CHECK))
            self._gateway.close_idle(seconds)

    def _write_federated_token(self) -> None:
        token = self._authority.federated_token(_FEDERATED_LIFETIME)
        write_private(self.federated_token_file, token.encode())

    def _call(self, function: Callable[[], T]) -> T:
        """Run `function` in the emulator's thread."""
        if threading.current_thread() is self._thread:
            return function()  # asked for over HTTP
        if self._thread is None:
            raise RuntimeError("the emulator is not running")
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return result.result(_CALL_TIMEOUT)

    # -- what the ports do with a connection

    async def _serve_gateway(self, sock: socket.socket) -> None:
        await self._serve_redis(sock, self._some_server())

    async def _serve_plaintext(self, sock: socket.socket) -> None:
        await self._gateway.serve(sock, None, self._some_server())

    async def _serve_redis(self, sock: socket.socket, server: Server) -> None:
        refusal = self._handshakes.refusal
        if refusal is not None:
            await self._close_at_first_byte(sock, refusal)
        else:
            await self._gateway.serve(sock, self._handshakes.redis, server)

    def _some_server(self) -> Server:
        """Return the server, or in turn those of the nodes that take clients."""
        if isinstance(self._server, Server):
            return self._server
        numbers = [
            number
            for number, entrance in self._entrances.items()
            if not entrance.refusing
        ]
        self._turn += 1
        # Where none is left, the first one's server refuses.
        number = numbers[self._turn % len(numbers)] if numbers else 1
        return self._server.members[number].server

    async def _serve_authority(self, sock: socket.socket) -> None:
        if not await self._reset(sock, "authority"):
            await self._serve_http(sock, self._answer_authority, self._tls)

    async def _serve_identity(self, name: str, sock: socket.socket) -> None:
        if not await self._reset(sock, name):
            handle = self._dated(self._identity_endpoints[name].handle)
            pinned = self._handshakes.pinned if name == ServiceFabric.name else None
            await self._serve_http(sock, handle, pinned)

    async def _serve_control(self, sock: socket.socket) -> None:
        await self._serve_http(sock, self._control.handle, self._tls)

    def _answer_authority(self, request: Request) -> Answer:
        if request.path.startswith(PREFIX):
            return self._control.handle(request)
        return self._dated(self._authority.handle)(request)

    def _dated(self, handle: Route) -> Route:
        """Have answers tell the emulator's time, as every service's do."""

        def dated(response: Response) -> Response:
            date = formatdate(self._clock.wall(), usegmt=True)
            headers = (*response.headers, ("Date", date))
            return dataclasses.replace(response, headers=headers)

        def answer(request: Request) -> Answer:
            made = handle(request)
            if isinstance(made, Response):
                return dated(made)
            later: asyncio.Future[Response] = self._loop.create_future()
            made.add_done_callback(lambda done: later.set_result(dated(done.result())))
            return later

        return answer

    def _faults_changed(self) -> None:
        """Close and open ports, now and when a fault comes to its end."""
        if self._fault_timer is not None:
            self._fault_timer.cancel()
            self._fault_timer = None
        for name, endpoints in _FAULTY.items():
            self._listeners[name].refuse(self.faults.closes_port("refused", endpoints))
        end = self.faults.next_end()
        if end is not None:
            self._fault_timer = self._loop.call_later(end, self._faults_changed)

    async def _reset(self, sock: socket.socket, name: str) -> bool:
        """Reset the connection if all of its port's endpoints are told to."""
        if not self.faults.closes_port("reset", _FAULTY[name]):
            return False
        self._journal.token_request(
            TokenRequest(self._clock.monotonic(), name, None, RESET_AT_ACCEPT)
        )
        await self._close_at_first_byte(sock)
        return True

    async def _close_at_first_byte(
        self, sock: socket.socket, words: bytes = b""
    ) -> None:
        """Send RST, or some last words, but not before the client sends anything.

        A reset that comes while the client still sets its TLS up makes Python's ssl
        leak the socket.
        """
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_FIRST_BYTE):
                await self._loop.sock_recv(sock, 1)
                if words:
                    # All has to be read, or the close sends RST nonetheless.
                    await self._loop.sock_recv(sock, 65536)
                    await self._loop.sock_sendall(sock, words)
        if not words:
            reset(sock)
        sock.close()

    async def _serve_http(
        self, sock: socket.socket, route: Route, context: ssl.SSLContext | None
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: HttpConnection(sock, route, self._http),
                sock,
                ssl=context,
                ssl_shutdown_timeout=None if context is None else 0.1,
            )
        except OSError:  # a handshake that failed: the client's affair
            sock.close()

    # -- reading

    @property
    def backend_url(self) -> str:
        """The administrator's URL of the server behind."""
        return self._server.url

    @property
    def backend(self) -> str:
        """What runs behind: the path of a redis-server, or "fakeredis"."""
        return self._server.kind

    def nodes(self) -> list[Node]:
        """Return the cluster's nodes, the dead ones too; none without a cluster."""
        return [] if self._cluster is None else self._cluster.nodes()

    def node_url(self, number: int) -> str:
        """Return the administrator's URL of a node: past the gateway, in plain text."""
        return self._need_cluster().member(number).server.url

    def _need_cluster(self) -> Cluster:
        if self._cluster is None:
            raise ServerError("this is no cluster; start the emulator with cluster=3")
        return self._cluster

    @property
    def stats(self) -> Stats:
        """A snapshot of the counters."""
        return self._journal.stats

    @property
    def requests(self) -> list[TokenRequest]:
        """The token requests so far."""
        return self._journal.requests

    @property
    def authentications(self) -> list[Authentication]:
        """The AUTHs so far, refused ones included."""
        return self._journal.authentications

    def environ(self, kind: str = "service_principal") -> dict[str, str]:
        """Return the environment variables of a process with that kind of identity."""
        application = self.application
        principal = {
            "AZURE_TENANT_ID": self.tenant_id,
            "AZURE_CLIENT_ID": application.client_id,
        }
        imds = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": self.imds_url}
        kinds = {
            "service_principal": {
                **principal,
                "AZURE_CLIENT_SECRET": application.secret,
            },
            "certificate": {
                **principal,
                "AZURE_CLIENT_CERTIFICATE_PATH": str(application.certificate_pem),
            },
            "workload_identity": {
                **principal,
                "AZURE_FEDERATED_TOKEN_FILE": str(self.federated_token_file),
            },
            "managed_identity": imds,
            "user_assigned": {**imds, "AZURE_CLIENT_ID": self.user_assigned.client_id},
            "app_service": {
                "IDENTITY_ENDPOINT": self.app_service_endpoint,
                "IDENTITY_HEADER": self.app_service_header,
            },
            "service_fabric": {
                "IDENTITY_ENDPOINT": self.service_fabric_endpoint,
                "IDENTITY_HEADER": self.service_fabric_secret,
                "IDENTITY_SERVER_THUMBPRINT": self._handshakes.thumbprint,
            },
            # msal and azure-identity look for the keys in /var/opt/azcmagent/tokens.
            "azure_arc": {
                "IDENTITY_ENDPOINT": self.azure_arc_endpoint,
                "IMDS_ENDPOINT": self.azure_arc_endpoint,
            },
        }
        if kind not in kinds:
            raise ValueError(f"kind is one of {', '.join(kinds)}, not {kind!r}")
        return {
            **kinds[kind],
            "AZURE_AUTHORITY_HOST": self.authority_host,
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
            "REDIS_URL": self.redis_url,
            "REDIS_CA_CERTS": str(self.ca_file),
            **({"REDIS_CLUSTER": "1"} if self._primaries else {}),
        }

    def description(self) -> dict[str, Any]:
        """Return what `emulator.json` says: addresses, ids, environments."""
        return {
            "pid": self._pid,
            "redis_url": self.redis_url,
            "plaintext_url": self.plaintext_url,
            "backend_url": self.backend_url,
            "backend": self.backend,
            "profile": self.profile and self.profile.name,
            "nodes": [dataclasses.asdict(node) for node in self.nodes()],
            "authority_host": self.authority_host,
            "control_url": self.control_url,
            "imds_url": self.imds_url,
            "app_service_endpoint": self.app_service_endpoint,
            "app_service_header": self.app_service_header,
            "service_fabric_endpoint": self.service_fabric_endpoint,
            "service_fabric_secret": self.service_fabric_secret,
            "azure_arc_endpoint": self.azure_arc_endpoint,
            "arc_keys": str(self.arc_keys),
            "ca_file": str(self.ca_file),
            "federated_token_file": str(self.federated_token_file),
            "tenant_id": self.tenant_id,
            "application": {
                name: str(value)
                for name, value in dataclasses.asdict(self.application).items()
            },
            "application_expired_secret": self.application_expired_secret,
            "system_assigned": dataclasses.asdict(self.system_assigned),
            "user_assigned": dataclasses.asdict(self.user_assigned),
            "environ": {kind: self.environ(kind) for kind in KINDS},
        }

    # -- controls

    def federated_token(self, lifetime: float = _FEDERATED_LIFETIME) -> str:
        """Return an assertion that is a federated credential of `application`."""
        return self._authority.federated_token(lifetime)

    def issue_token(
        self,
        object_id: str | None = None,
        lifetime: float | None = None,
        audience: str | None = None,
        **claims: Any,
    ) -> str:
        """Mint a token; `claims` replace its own, those that are None are left out."""
        token = self._directory.issue(
            self.application.object_id if object_id is None else object_id,
            self.token_lifetime if lifetime is None else lifetime,
            REDIS if audience is None else audience,
            claims,
        )
        return token.value

    def revoke(self, object_id: str) -> None:
        """Refuse what has been issued to a principal, and close its connections."""
        self._directory.revoke(object_id)
        self._call(lambda: self._gateway.drop_principal(object_id))

    def set_access(self, object_id: str, rules: str | None) -> None:
        """Set a principal's Redis ACL rules; None ends its assignment."""
        if rules is None:
            self._call(lambda: self._server.delete_user(object_id))
            self._call(lambda: self._gateway.drop_principal(object_id))
        else:
            self._call(lambda: self._server.set_user(object_id, rules))

    def drop_connections(self, idle_only: bool = False, idle_for: float = 0.5) -> int:
        """Close clients' connections with RST; return how many.

        With `idle_only` those that await no reply and have sent nothing for
        `idle_for` seconds.
        """
        return self._call(lambda: self._gateway.drop(idle_for if idle_only else None))

    def freeze(self, frozen: bool = True) -> None:
        """Have the gateway accept and say nothing, or wake it up."""
        self._call(lambda: self._gateway.freeze(frozen))

    def break_tls(self, mode: str | None) -> None:
        """Have the TLS port of Redis receive new connections in a wrong way.

        `mode` is "hostname" (a certificate for another name), "untrusted" (of another
        CA), "expired", "not_yet_valid", "too_old" (TLS 1.1), "plaintext" (no TLS at
        all) or "closed" (within the handshake); None ends it.
        """
        self._handshakes.set_fault(mode)

    def break_redis(self, mode: str | None) -> None:
        """Have the Redis behind be in trouble; needs a real redis-server.

        `mode` is "loading" (it starts anew, and takes long to read its data), "full"
        (out of memory), "read_only" (a replica) or "max_clients"; None ends it. In a
        cluster all nodes are in trouble, and there is no "loading" nor "read_only".
        """
        self._call(lambda: self._server.set_fault(mode))

    def kill_node(self, number: int) -> None:
        """Have a node of the cluster go away, as a machine does.

        Its connections are reset, new ones refused. Where it was a primary and had a
        replica, that takes over within a few seconds: `settle()` waits for it.
        """
        cluster = self._need_cluster()
        member = cluster.member(number)
        self._call(lambda: self._close_entrance(member))
        cluster.kill(number)
        self._journal.event(f"node {number} killed")

    def restart_node(self, number: int) -> None:
        """Have a node come back that was killed, to what is its place by now.

        It comes without data, and takes clients when it is in step with the others:
        as a replica it then has its primary's data. A primary whose place no replica
        has taken yet is empty.
        """
        cluster = self._need_cluster()
        cluster.restart(number)
        self._call(lambda: self._entrances[number].refuse(False))
        self._journal.event(f"node {number} is back")

    def add_node(self) -> Node:
        """Have a new primary join, which has no slots until it is given some."""
        member = self._need_cluster().add()
        self._call(lambda: self._listen_for(member).start())
        self._journal.event(f"node {member.number} added")
        return self.nodes()[member.number - 1]

    def failover(self, number: int) -> None:
        """Have a replica and its primary change places, with nothing lost."""
        self._need_cluster().failover(number)
        self._journal.event(f"node {number} has taken over")

    def migrate_slots(
        self, source: int, target: int, count: int, pause: float = 0.0
    ) -> None:
        """Move the first `count` slots of a primary, with their keys, to another.

        They move one by one, so that clients see ASK, TRYAGAIN and MOVED; each stays
        for `pause` seconds with half of its keys moved.
        """
        self._need_cluster().migrate(source, target, count, pause)
        self._journal.event(f"{count} slots moved from node {source} to node {target}")

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until the nodes that live agree, and serve every slot."""
        self._need_cluster().settle(timeout)

    def _close_entrance(self, member: Member) -> None:
        self._entrances[member.number].refuse(True)
        self._gateway.drop_server(member.server)

    def set_clock(self, ahead: float) -> None:
        """Have Entra, managed identity and the gateway be so many seconds ahead.

        For a client that is the same as a clock of its own that is behind.
        """
        self._clock.ahead = float(ahead)
        self._write_federated_token()

    def rotate_certificate(self, expired: bool = False, issued: bool = False) -> None:
        """Give the application a new certificate; the old one is refused.

        With `expired` it is out of date, and refused, too; with `issued` its files hold
        a chain, root first, as Key Vault writes them.
        """
        certificate = ClientCertificate.generate(
            self.application.certificate_password,
            timedelta(days=-365) if expired else timedelta(),
            issued=issued,
        )
        self._write_certificate(certificate)
        self._authority.certificate = certificate

    def _write_description(self) -> None:
        content = json.dumps(self.description(), indent=2)
        write_private(self.directory / "emulator.json", content.encode())

    def _abandon(self) -> None:
        """Let go of everything in a forked child: it is the parent's.

        A copy of a socket in the child would keep a connection open that the parent
        has closed.
        """
        self._pid = 0
        self._thread = None
        for listener in self._listeners.values():
            listener.close()
        for connection in self._http:
            connection.socket.close()
        self._gateway.close_sockets()
        self._server.forget()


def _after_fork_in_child() -> None:
    for emulator in list(_running):
        emulator._abandon()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
