"""The tenant: its principals, and the tokens issued to them."""

import math
import secrets
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from emulator.certificates import cached_rsa_key
from emulator.clock import Clock

REDIS = "https://redis.azure.com"
# What tokens can be asked for: Redis under its two names, and another service, so
# that one can try what a token for the wrong audience does.
RESOURCES: Mapping[str, str] = {
    REDIS: REDIS,
    "acca5fbb-b7e4-4009-81f1-37e38fd66d78": REDIS,
    "https://management.azure.com": "https://management.azure.com",
}
EXCHANGE_AUDIENCE = "api://AzureADTokenExchange"
SIGNING_KEY_ID = "emulator-signing-key"
ISSUER_KEY_ID = "emulator-oidc-key"


@dataclass(frozen=True)
class Application:
    """A service principal with its credentials."""

    client_id: str
    object_id: str
    secret: str = field(repr=False)
    certificate_pem: Path
    certificate_pem_encrypted: Path
    certificate_pfx: Path
    certificate_password: str = field(repr=False)


@dataclass(frozen=True)
class ManagedIdentity:
    """A managed identity with the three names that it goes by."""

    client_id: str
    object_id: str
    resource_id: str


@dataclass(frozen=True)
class IssuedToken:
    """A token with its exact end, of which the `exp` claim holds whole seconds."""

    value: str = field(repr=False)
    token_id: str
    object_id: str
    audience: str
    issued_at: float
    expires_at: float
    lifetime: float

    @property
    def expires_on(self) -> int:
        """The `exp` claim."""
        return math.ceil(self.expires_at)


class TokenRefusedError(Exception):
    """A token that Redis does not accept; the text tells why."""


@dataclass
class _Entry:
    object_id: str
    expires_at: float
    revoked: bool = False


class Directory:
    """Issues access tokens and judges them; any thread may call."""

    def __init__(self, clock: Clock, tenant_id: str, issuer: str) -> None:
        self.tenant_id = tenant_id
        self.issuer = issuer
        self._clock = clock
        self._lock = threading.Lock()
        self._client_ids: dict[str, str] = {}
        self._entries: dict[str, _Entry] = {}

    @property
    def signing_key(self) -> rsa.RSAPrivateKey:
        """The key that signs access tokens."""
        return cached_rsa_key("access tokens")

    def add_principal(self, object_id: str, client_id: str) -> None:
        """Register a principal."""
        self._client_ids[object_id] = client_id

    def issue(
        self,
        object_id: str,
        lifetime: float,
        audience: str = REDIS,
        claims: Mapping[str, Any] | None = None,
    ) -> IssuedToken:
        """Mint a token; a claim given as None is left out."""
        now = self._clock.wall()
        expires_at = now + lifetime
        client_id = self._client_ids.get(object_id, object_id)
        content: dict[str, Any] = {
            "aud": audience,
            "iss": self.issuer,
            "iat": math.floor(now),
            "nbf": math.floor(now),
            "exp": math.ceil(expires_at),
            "appid": client_id,
            "azp": client_id,
            "idtyp": "app",
            "jti": secrets.token_urlsafe(16),
            "oid": object_id,
            "sub": object_id,
            "tid": self.tenant_id,
            "ver": "1.0",
        }
        content.update(claims or {})
        if claims and isinstance(claims.get("exp"), int | float):
            expires_at = float(claims["exp"])
        content = {name: value for name, value in content.items() if value is not None}
        value = jwt.encode(
            content, self.signing_key, "RS256", headers={"kid": SIGNING_KEY_ID}
        )
        token_id = str(content.get("jti", ""))
        with self._lock:
            if len(self._entries) > 10_000:
                self._entries = {
                    name: entry
                    for name, entry in self._entries.items()
                    if entry.expires_at > now
                }
            self._entries[token_id] = _Entry(object_id, expires_at)
        return IssuedToken(
            value, token_id, object_id, audience, now, expires_at, expires_at - now
        )

    def verify(self, token: str, username: str) -> IssuedToken:
        """Return what is known of `token`, or raise `TokenRefusedError`."""
        try:
            claims = jwt.decode(
                token,
                self.signing_key.public_key(),
                ["RS256"],
                # The times are compared below, by this emulator's clock.
                options={
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                },
            )
        except jwt.InvalidTokenError as error:
            raise TokenRefusedError(
                f"not a token of this authority ({error})"
            ) from None
        if claims.get("iss") != self.issuer or claims.get("tid") != self.tenant_id:
            raise TokenRefusedError("a token of another tenant")
        audience = claims.get("aud")
        if not isinstance(audience, str) or RESOURCES.get(audience.rstrip("/")) != (
            REDIS
        ):
            raise TokenRefusedError(f"a token for {audience}")
        object_id = claims.get("oid")
        if object_id is None:
            raise TokenRefusedError("a token without oid")
        if object_id != username:
            raise TokenRefusedError(f"the user name is not the token's oid {object_id}")
        token_id = str(claims.get("jti", ""))
        with self._lock:
            entry = self._entries.get(token_id)
        if entry is None:
            raise TokenRefusedError("a token that this authority has not issued")
        if entry.revoked:
            raise TokenRefusedError("a revoked token")
        now = self._clock.wall()
        if entry.expires_at <= now:
            raise TokenRefusedError("an expired token")
        if float(claims.get("nbf", 0)) > now:
            raise TokenRefusedError("a token that is not valid yet")
        return IssuedToken(
            token,
            token_id,
            object_id,
            audience,
            float(claims.get("iat", now)),
            entry.expires_at,
            entry.expires_at - now,
        )

    def revoke(self, object_id: str) -> None:
        """Refuse from now on what has been issued to `object_id` so far."""
        with self._lock:
            for entry in self._entries.values():
                if entry.object_id == object_id:
                    entry.revoked = True


def new_id() -> str:
    """Return a new GUID."""
    return str(uuid.uuid4())
