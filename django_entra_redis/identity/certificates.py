"""Client certificates: a file's private key, its certificate, and that one's chain."""

import base64
import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509 import Certificate, load_pem_x509_certificates

_BASE64 = re.compile(rb"[A-Za-z0-9+/\s]+[=\s]*")
_PEM_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----")
_PEM_KEY = re.compile(
    rb"-----BEGIN (?P<name>[A-Z ]*PRIVATE KEY)-----.*?-----END (?P=name)-----",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A private key, its certificate, and the chain, which begins with that one."""

    key: RSAPrivateKey = field(repr=False)
    certificate: Certificate
    chain: Sequence[Certificate]

    def has_expired(self) -> bool:
        """Whether the certificate has expired."""
        return self.certificate.not_valid_after_utc < datetime.now(UTC)

    def for_msal(self, *, send_chain: bool) -> dict[str, Any]:
        """Return the certificate in the form in which msal takes it.

        Parameters:
            send_chain: whether requests contain the chain (x5c).
        """
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        thumbprint = self.certificate.fingerprint(hashes.SHA1())
        return {
            "private_key": key.decode(),
            # Given a thumbprint, msal sends the chain only if it gets one here.
            "thumbprint": thumbprint.hex(),
            "public_certificate": _pem(self.chain) if send_chain else None,
        }


def read_certificate(content: bytes, password: str | None) -> ClientCertificate:
    """Return the client certificate in a file.

    Parameters:
        content: the content of a PEM or PFX file.
        password: the password of its private key, or of the file.

    Raises:
        ValueError: the file can't be used; the text has the reason.
    """
    keys, certificates = _load(content, password.encode() if password else None)
    if not keys or not certificates:
        raise ValueError("it holds no private key with its certificate")
    fitting = [key for key in keys if isinstance(key, RSAPrivateKey)]
    if not fitting:
        kind = type(keys[0]).__name__.removeprefix("_").removesuffix("PrivateKey")
        raise ValueError(
            f"its key is of another kind ({kind}): it should be an RSA key"
        )
    # Several, if one was renewed, perhaps with the same key.
    own = {one: key for key in fitting for one in certificates if _is_of(one, key)}
    if not own:
        raise ValueError("none of its certificates is the private key's")
    certificate = _in_force(own, datetime.now(UTC))
    chain = tuple(_chain(certificate, certificates))
    return ClientCertificate(own[certificate], certificate, chain)


def _in_force(certificates: Iterable[Certificate], now: datetime) -> Certificate:
    """Return the certificate to use: one that is valid now, and for longest."""

    def rank(one: Certificate) -> tuple[bool, datetime]:
        end = one.not_valid_after_utc
        return one.not_valid_before_utc <= now <= end, end

    return max(certificates, key=rank)


def _load(
    content: bytes, password: bytes | None
) -> tuple[Sequence[Any], Sequence[Certificate]]:
    """Return the private keys and all certificates of a file.

    Raises:
        ValueError: the file, or its only key, can't be read.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(
            "it is text in UTF-16, as PowerShell's '>' writes it: write it as ASCII"
        )
    if not content.strip():
        raise ValueError("it is empty")
    try:
        if _BASE64.fullmatch(content):
            # Key Vault returns a PFX file as the base64 text of a secret
            # (AzureAD/microsoft-authentication-library-for-python#248).
            content = base64.b64decode(content)
        if b"-----BEGIN" not in content:
            key, certificate, others = pkcs12.load_key_and_certificates(
                content, password
            )
            certificates = [*filter(None, [certificate]), *others]
            return [*filter(None, [key])], certificates
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(
            f"it is no PEM file, and can't be read as a PFX file ({error})"
        ) from None
    keys, failures = [], []
    for found in _PEM_KEY.finditer(content):
        try:
            keys.append(_load_key(found, password))
        except (TypeError, ValueError, UnsupportedAlgorithm) as error:
            # TypeError: a password without an encrypted key, or the reverse.
            failures.append(str(error))
    if failures and not keys:
        raise ValueError(failures[0])
    if not _PEM_CERTIFICATE.search(content):
        return keys, []
    try:
        return keys, load_pem_x509_certificates(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"a certificate in it can't be read ({error})") from None


def _load_key(found: re.Match[bytes], password: bytes | None) -> Any:
    """Return a private key of a PEM file.

    Only the key is handed on: some releases of cryptography fail on other parts of the
    file, such as the parameters of an elliptic curve.
    """
    if found["name"] == b"OPENSSH PRIVATE KEY":
        raise ValueError(
            "its private key is in OpenSSH's own format: 'ssh-keygen -p -m PKCS8 -f "
            "KEY' converts a file with the key alone"
        )
    return load_pem_private_key(found[0], password)


def _chain(
    leaf: Certificate, certificates: Sequence[Certificate]
) -> Iterable[Certificate]:
    """Yield a certificate, its issuer's, and so on, as far as they are in the file.

    The order in the file does not count: Key Vault writes the root first
    (Azure/secrets-store-csi-driver-provider-azure#156), and others in any order.
    """
    rest = [certificate for certificate in certificates if certificate != leaf]
    above: Certificate | None = leaf
    while above is not None:
        yield above
        below = above
        above = next((other for other in rest if _issued(other, below)), None)
        rest = [other for other in rest if other != above]


def _issued(issuer: Certificate, certificate: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # cryptography and its backends raise several classes
        return False
    return True


def _is_of(certificate: Certificate, key: RSAPrivateKey) -> bool:
    """Whether a certificate belongs to a private key."""
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):
        # cryptography does not support the certificate's kind of key.
        return False


def _pem(certificates: Iterable[Certificate]) -> str:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates).decode()
