"""How the TLS port of Redis receives its clients, and the faults it can have there."""

import secrets
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from emulator.certificates import CertificateAuthority
from emulator.files import write_private
from emulator.profiles import Profile

HOST = "localhost"
MODES = (
    "hostname",
    "untrusted",
    "expired",
    "not_yet_valid",
    "too_old",
    "plaintext",
    "closed",
)
# The alert of a server that knows no TLS that the client offers (RFC 8446, 6.2).
_PROTOCOL_VERSION = bytes.fromhex("15 0301 0002 02 46")
_YEAR = timedelta(days=365)


class Handshakes:
    """The TLS contexts of the emulator's servers.

    `redis` is what the gateway receives clients with, None for plain text; `refusal`
    is what it says, if anything, as it closes the connection at the first byte, None
    for not closing it.
    """

    def __init__(self, directory: Path, profile: Profile | None = None) -> None:
        self._directory = directory
        self._wildcard = None if profile is None else profile.wildcard
        self._ciphers = None if profile is None else profile.ciphers
        self._ca = CertificateAuthority()
        self.ca_pem = self._ca.pem
        self.right = self._context(self._right_pem())
        self.redis: ssl.SSLContext | None = self.right
        self.refusal: bytes | None = None
        # Service Fabric's, of no authority that anybody trusts: its thumbprint is told.
        pinned = CertificateAuthority().server_pem(HOST)
        self.pinned = self._context(pinned)
        certificate = x509.load_pem_x509_certificate(pinned)
        self.thumbprint = certificate.fingerprint(hashes.SHA1()).hex().upper()

    def set_fault(self, mode: str | None) -> None:
        """Have the gateway receive new connections in a wrong way; None ends that."""
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
        made: dict[str, Callable[[], bytes]] = {
            "hostname": lambda: self._ca.server_pem("other.example"),
            "untrusted": lambda: CertificateAuthority().server_pem(HOST),
            "expired": lambda: self._right_pem(-_YEAR),
            "not_yet_valid": lambda: self._right_pem(_YEAR),
        }
        if mode == "plaintext":
            self.redis = None
        elif mode in made:
            self.redis = self._context(made[mode]())
        else:
            self.redis = self.right
        self.refusal = {"too_old": _PROTOCOL_VERSION, "closed": b""}.get(mode or "")

    def _right_pem(self, shift: timedelta = timedelta()) -> bytes:
        return self._ca.server_pem(HOST, shift, wildcard=self._wildcard)

    def _context(self, pem: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        path = self._directory / f"server-{secrets.token_hex(4)}.pem"
        write_private(path, pem)
        context.load_cert_chain(path)
        if self._ciphers is not None:
            context.set_ciphers(self._ciphers)
        return context
