"""The settings and the signals' arguments, for editors and type checkers.

Nothing in the package needs them to run, and they import nothing that does.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Protocol, Required, TypedDict

if TYPE_CHECKING:
    from django.dispatch import Signal

    from .status import Status


class AccessToken(Protocol):
    """What a credential returns, such as azure-identity's ``AccessToken``."""

    @property
    def token(self) -> str:
        """The token itself."""
        ...

    @property
    def expires_on(self) -> int | float:
        """When it expires, in seconds since the epoch."""
        ...


class TokenCredential(Protocol):
    """An object for ``CREDENTIAL``, such as any of azure-identity's."""

    def get_token(self, *scopes: str) -> AccessToken:
        """Return a token for the scopes."""
        ...


class IdentitySettings(TypedDict, total=False):
    """An entry of ``ENTRA_REDIS``: ``ENTRA_REDIS: dict[str, IdentitySettings]``."""

    KIND: (
        Literal[
            "environment", "managed_identity", "service_principal", "workload_identity"
        ]
        | None
    )
    """The kind of identity. "environment" takes what the variables of
    azure-identity ask for, and otherwise a managed identity."""
    TENANT_ID: str | None
    """The tenant's ID, or one of its domains."""
    CLIENT_ID: str | None
    """The application's client ID. For a managed identity, the client ID of a
    user-assigned one."""
    CLIENT_SECRET: str | None
    """The application's client secret: its value, not its ID."""
    CLIENT_CERTIFICATE: str | PathLike[str] | None
    """The path of a PEM or PFX file that holds an RSA key and its certificates, in
    any order; also in base64, as Key Vault gives it. It stands in place of the
    secret. It is read again when it has changed."""
    CLIENT_CERTIFICATE_PASSWORD: str | None
    """The password of the file in ``CLIENT_CERTIFICATE``."""
    SEND_CERTIFICATE_CHAIN: bool | None
    """Whether the certificate chain is sent along (x5c), for subject name and
    issuer authentication."""
    OBJECT_ID: str | None
    """The object ID of a user-assigned managed identity, in place of
    ``CLIENT_ID``."""
    RESOURCE_ID: str | None
    """The resource ID of a user-assigned managed identity, in place of
    ``CLIENT_ID``."""
    TOKEN_FILE: str | PathLike[str] | None
    """The path of the file with the federated token. It is read again at every
    renewal, because Kubernetes rotates it."""
    CREDENTIAL: str | TokenCredential | Callable[[], TokenCredential] | None
    """In place of ``KIND``: an object with ``get_token(*scopes)``, such as one of
    azure-identity's credentials; a callable that returns one; or the dotted path of
    either."""
    AUTHORITY_HOST: str | None
    """The host name of Entra in your cloud, for sovereign and private clouds."""
    INSTANCE_DISCOVERY: bool | None
    """Whether the authority's host name is checked with the public cloud. Set it to
    ``False`` in a cloud that has no connection to the public one."""
    SCOPE: str | None
    """What the token is for. Every cloud that has Redis with Entra has the
    default."""
    USERNAME: str | None
    """The Redis user name. The default is the object ID in the token (its ``oid``
    claim)."""
    REFRESH_RATIO: float | None
    """The share of the token's life after which it is renewed."""
    REFRESH_MARGIN: float | None
    """Seconds before expiry at which it is renewed at the latest; Azure asks for
    three minutes. For a token that lives for less than twice the margin,
    ``REFRESH_RATIO`` alone decides."""
    REQUEST_TIMEOUT: float | None
    """Seconds that one token request may take, and that a caller waits for one."""


class ClientSideCacheSettings(TypedDict, total=False):
    """``OPTIONS["client_side_cache"]``."""

    max_bytes: int
    """Bytes that the copies of a process may take. The least recently used are
    removed first."""
    max_value_bytes: int
    """Bytes of a value above which no copy of it is kept."""
    max_staleness: float
    """Seconds that a copy is used without proof that Redis would tell of a
    change."""
    prefixes: Sequence[str] | None
    """What the names of the keys begin with, as you give them to ``get()``. The
    default is all keys."""


class StampedeSettings(TypedDict, total=False):
    """``OPTIONS["stampede"]``."""

    beta: float
    """How early a value is computed anew. 1.0 is best on average, more is earlier,
    and 0 is never early."""


class OwnOptions(TypedDict, total=False):
    """What the backend itself reads of ``OPTIONS``."""

    identity: str | None
    """The entry of ``ENTRA_REDIS`` that the cache authenticates with. ``None`` is a
    cache without Entra."""
    allow_plaintext_token: bool
    """Whether a token may be sent over ``redis://``, without TLS, to a host that is
    not this machine."""
    ignore_exceptions: bool
    """Whether a cache that is down answers like an empty one. An outage of a
    server, of its writes or of its memory is logged once; at its end the log says
    how long it lasted and how many operations it cost."""
    clear_by_scan: bool
    """Whether ``clear()`` removes this cache's own keys with SCAN and UNLINK, in
    all versions, in place of FLUSHDB. The policy "Data Contributor" and active
    geo-replication refuse FLUSHDB. A ``KEY_FUNCTION`` that hides names or versions
    is a ``ValueError``. Where one cache has the prefix ``a:b`` and another ``a``,
    the latter leaves the keys of the former whose versions are numbers, if
    ``CACHES`` has both with the same ``LOCATION``. If not, such keys may also be its
    own, of a version ``b``: it leaves them, removes all others, and raises a
    ``ValueError``."""
    pool_timeout: float
    """Seconds that an operation waits for a free connection."""
    idle_timeout: float | None
    """Seconds after which an idle connection is closed, by the next operation of
    the process: those that a burst has opened do not stay. ``None`` is never."""
    compressor: Any
    """A dotted path, a class or an object with ``compress`` and ``decompress``.
    ``django_entra_redis.compressors`` has ``ZlibCompressor``, ``GzipCompressor``,
    ``LzmaCompressor``, ``ZstdCompressor`` (extra ``zstd``) and ``Lz4Compressor``
    (extra ``lz4``)."""
    compressor_fallbacks: Sequence[Any]
    """Compressors that values may have been written with before. They are used to
    read, never to write. Those of your own have to raise an error for bytes that are
    not theirs, such as those of a value that is too short to be compressed."""
    max_value_bytes: int
    """Bytes that a value may have before it is compressed. A compressed value that
    becomes larger is an ``UnreadableValueError``. The default is as much as Redis
    takes; set it lower where others can write to the cache."""
    node_domain: str | None
    """For an OSS cluster that announces its nodes by names, each with a certificate
    of its own: the domain below which these names are, such as
    ``"nodes.contoso.com"``."""
    serializer: Any
    """A dotted path, a class or an object with ``dumps`` and ``loads``. The default
    is Django's, which is pickle. ``django_entra_redis.serializers`` has
    ``JSONSerializer``, ``MsgPackSerializer`` (extra ``msgpack``) and the faster
    ``OrMsgPackSerializer`` (extra ``ormsgpack``)."""
    pool_class: Any
    """A connection pool of redis-py's in place of this package's, as Django's
    ``RedisCache`` has it: a dotted path or a class."""
    parser_class: Any
    """A parser of redis-py's, as Django's ``RedisCache`` has it: a dotted path or a
    class. ``get_async_client()`` does without."""
    client_side_cache: ClientSideCacheSettings | bool | None
    """``True``, or a dict of settings: the process keeps copies of what it has
    read, until Redis says that it has changed."""
    stampede: StampedeSettings | bool | None
    """``True``, or a dict of settings: ``get_or_set()`` computes a value before it
    expires, and in one process at a time."""


class EntraRedisOptions(OwnOptions, total=False):
    """``OPTIONS`` of a cache: the backend's own, and redis-py's that fit a cache.

    The backend hands on any other that redis-py knows, too.
    """

    address_remap: Callable[[tuple[str, int]], tuple[str, int]]
    """redis-py's: a function from an announced ``(host, port)`` of a cluster's node
    to where you reach it."""
    client_name: str | None
    """The name of the connections in ``CLIENT LIST``."""
    connection_class: type[Any]
    """A class of connections in place of the one that the URL's scheme asks for."""
    credential_provider: Any
    """A credential provider of redis-py's, for a cache without an identity."""
    db: int
    """The number of the database. Azure Managed Redis and clusters have database 0
    alone."""
    driver_info: Any
    """How connections introduce themselves to the server. The default names
    Django."""
    health_check_interval: float
    """Seconds after which an idle connection is tried with PING before it is
    used."""
    lib_name: str | None
    """How connections introduce themselves to the server, before redis-py 7."""
    lib_version: str | None
    """The version that belongs to ``lib_name``."""
    maint_notifications_config: Any
    """Which notifications of maintenance redis-py 8 asks the server for. The default
    is none."""
    max_connections: int | None
    """Connections that a process opens to a server at most, because Azure limits
    their sum. Caches whose settings are the same share them."""
    password: str | None
    """A password, for a cache without an identity."""
    protocol: Literal[2, 3]
    """The version of Redis' protocol. RESP 3 brings a cache nothing but push
    messages between its replies; redis-py is kept from asking for those of
    maintenance."""
    retry: Any
    """redis-py's retry policy, for commands that are safe to repeat. The default is
    3 retries, 20 ms to 0.5 s apart: a failover closes all connections, and not all
    should come back at once."""
    socket_connect_timeout: float | None
    """Seconds that connecting may take. A firewall, or a node that a failover took
    away, answers nothing."""
    socket_keepalive: bool
    """Whether the kernel probes idle connections."""
    socket_keepalive_options: Mapping[int, int | bytes]
    """TCP options of the probes. The default notices a dead peer in about 15 s: a
    probe after 30 s of silence, then every 5 s, and ``TCP_USER_TIMEOUT`` of 15 s
    where there is one."""
    socket_read_size: int
    """Bytes that are read from a socket at a time."""
    socket_timeout: float | None
    """Seconds that a reply may take. It bounds what one command can cost a request.
    A large reply has a second more for each 64 KiB, so that it gets through slow
    networks."""
    socket_type: int
    """The type of the sockets."""
    ssl_ca_certs: str | None
    """The path of a PEM file with the certificates to trust. The default is those
    of the machine."""
    ssl_ca_data: str | bytes | None
    """The same certificates as text or bytes."""
    ssl_ca_path: str | None
    """The path of a folder with such certificates."""
    ssl_cert_reqs: Any
    """Whether the server's certificate is verified. Never switch it off."""
    ssl_certfile: str | None
    """The path of a client certificate."""
    ssl_check_hostname: bool
    """Whether the certificate must be for the host name. Never switch it off."""
    ssl_ciphers: str | None
    """The cipher suites, as OpenSSL writes them."""
    ssl_keyfile: str | None
    """The path of the client certificate's key."""
    ssl_min_version: Any
    """The oldest version of TLS that is used. Azure takes 1.2 and newer."""
    ssl_password: str | None
    """The password of the client certificate's key."""
    username: str | None
    """A user name, for a cache without an identity."""


class CacheSettings(TypedDict, total=False):
    """An entry of ``CACHES``."""

    BACKEND: Required[str]
    """``"django_entra_redis.cache.EntraRedisCache"``, or ``EntraRedisClusterCache``
    for the OSS cluster policy."""
    LOCATION: Required[str | Sequence[str]]
    """The server's URL, such as
    ``"rediss://contoso.westeurope.redis.azure.net:10000"``. Of several, the first
    is written to and the others are read; with `client_side_cache`, all reads are of
    the first, too."""
    KEY_FUNCTION: str | Callable[[str, str, int], str]
    """As Django has it."""
    KEY_PREFIX: str
    """As Django has it. It tells apart the caches that share a database."""
    OPTIONS: EntraRedisOptions
    """The options below."""
    TIMEOUT: int | None
    """As Django has it: seconds that a value lives, 300 by default; ``None`` is for
    ever."""
    VERSION: int
    """As Django has it."""


class TokenRenewed(TypedDict):
    """What comes with ``signals.token_renewed``, beside its ``sender``.

    ``def on_renewed(sender: str, **kwargs: Unpack[TokenRenewed]) -> None``
    """

    signal: "Signal"
    identity: str
    status: "Status"


class TokenRenewalFailed(TokenRenewed):
    """What comes with ``signals.token_renewal_failed``, beside its ``sender``."""

    error: str
