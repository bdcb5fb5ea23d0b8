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
    TENANT_ID: str | None
    CLIENT_ID: str | None
    CLIENT_SECRET: str | None
    CLIENT_CERTIFICATE: str | PathLike[str] | None
    CLIENT_CERTIFICATE_PASSWORD: str | None
    SEND_CERTIFICATE_CHAIN: bool | None
    OBJECT_ID: str | None
    RESOURCE_ID: str | None
    TOKEN_FILE: str | PathLike[str] | None
    CREDENTIAL: str | TokenCredential | Callable[[], TokenCredential] | None
    AUTHORITY_HOST: str | None
    INSTANCE_DISCOVERY: bool | None
    SCOPE: str | None
    USERNAME: str | None
    REFRESH_RATIO: float | None
    REFRESH_MARGIN: float | None
    REQUEST_TIMEOUT: float | None


class ClientSideCacheSettings(TypedDict, total=False):
    """``OPTIONS["client_side_cache"]``."""

    max_bytes: int
    max_value_bytes: int
    max_staleness: float
    prefixes: Sequence[str] | None


class StampedeSettings(TypedDict, total=False):
    """``OPTIONS["stampede"]``."""

    beta: float


class OwnOptions(TypedDict, total=False):
    """What the backend itself reads of ``OPTIONS``."""

    identity: str | None
    allow_plaintext_token: bool
    ignore_exceptions: bool
    clear_by_scan: bool
    pool_timeout: float
    compressor: Any
    compressor_fallbacks: Sequence[Any]
    max_value_bytes: int
    node_domain: str | None
    serializer: Any
    pool_class: Any
    parser_class: Any
    client_side_cache: ClientSideCacheSettings | bool | None
    stampede: StampedeSettings | bool | None


class EntraRedisOptions(OwnOptions, total=False):
    """``OPTIONS`` of a cache: the backend's own, and redis-py's that fit a cache.

    The backend hands on any other that redis-py knows, too.
    """

    address_remap: Callable[[tuple[str, int]], tuple[str, int]]
    client_name: str | None
    connection_class: type[Any]
    credential_provider: Any
    db: int
    driver_info: Any
    health_check_interval: float
    lib_name: str | None
    lib_version: str | None
    max_connections: int | None
    password: str | None
    protocol: Literal[2, 3]
    retry: Any
    socket_connect_timeout: float | None
    socket_keepalive: bool
    socket_keepalive_options: Mapping[int, int | bytes]
    socket_read_size: int
    socket_timeout: float | None
    socket_type: int
    ssl_ca_certs: str | None
    ssl_ca_data: str | bytes | None
    ssl_ca_path: str | None
    ssl_cert_reqs: Any
    ssl_certfile: str | None
    ssl_check_hostname: bool
    ssl_ciphers: str | None
    ssl_keyfile: str | None
    ssl_min_version: Any
    ssl_password: str | None
    username: str | None


class CacheSettings(TypedDict, total=False):
    """An entry of ``CACHES``."""

    BACKEND: Required[str]
    LOCATION: Required[str | Sequence[str]]
    KEY_FUNCTION: str | Callable[[str, str, int], str]
    KEY_PREFIX: str
    OPTIONS: EntraRedisOptions
    TIMEOUT: int | None
    VERSION: int


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
