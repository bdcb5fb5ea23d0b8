"""Keys and certificates: the emulator's CA, its servers' and its application's."""

import functools
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALIDITY = timedelta(days=30)
_BACKDATED = timedelta(days=1)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Entra emulator (test only)"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    shift: timedelta = timedelta(),
) -> x509.CertificateBuilder:
    now = datetime.now(UTC) + shift
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALIDITY)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False
        )
    )


class CertificateAuthority:
    """A CA that signs the certificates of the emulator's TLS servers.

    Its keys are elliptic: making them is cheap enough for a new CA at every start.
    """

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Emulator root")
        self._certificate = (
            _builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The CA's certificate."""
        return self._certificate.public_bytes(Encoding.PEM)

    def server_pem(
        self,
        host: str,
        shift: timedelta = timedelta(),
        *,
        wildcard: str | None = None,
    ) -> bytes:
        """Return a private key and the certificate for `host` and no other.

        `shift` moves the days from which and up to which it is valid. With a `wildcard`
        it is for these names, too, and has an RSA key, as Azure's have.
        """
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        if wildcard is None:
            names, key = [host], ec.generate_private_key(ec.SECP256R1())
        else:
            names, key = [wildcard, host], cached_rsa_key("server")
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(
            self._key.public_key()
        )
        certificate = (
            _builder(
                _name(names[0]), self._certificate.subject, key.public_key(), shift
            )
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            )
            .add_extension(
                x509.SubjectAlternativeName(list(map(x509.DNSName, names))),
                critical=False,
            )
            .add_extension(authority_key, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private + certificate.public_bytes(Encoding.PEM)


def _issuers() -> tuple[x509.Name, rsa.RSAPrivateKey, list[x509.Certificate]]:
    """Return who issues certificates, with which key, and the chain from its root."""
    root, below = _name("Emulated root"), _name("Emulated intermediate")
    key, root_key = cached_rsa_key("intermediate"), cached_rsa_key("root")
    chain = [
        _builder(subject, root, public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(root_key, hashes.SHA256())
        for subject, public in (
            (root, root_key.public_key()),
            (below, key.public_key()),
        )
    ]
    return below, key, chain


def generate_rsa_key() -> rsa.RSAPrivateKey:
    """Return a new RSA key of the size that Entra works with."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@functools.cache
def cached_rsa_key(purpose: str) -> rsa.RSAPrivateKey:
    """Return this process's RSA key for `purpose`: making one takes a while."""
    return generate_rsa_key()


@dataclass(frozen=True, repr=False)
class ClientCertificate:
    """An application's self-signed certificate with its key, in each file format."""

    certificate: x509.Certificate
    password: str
    pem: bytes
    pem_encrypted: bytes
    pfx: bytes

    @classmethod
    def generate(
        cls, password: str, shift: timedelta = timedelta(), *, issued: bool = False
    ) -> "ClientCertificate":
        """Make a new key and certificate; `password` encrypts what can be.

        `shift` moves the days from which and up to which it is valid. With `issued` it
        is not self-signed, and its files hold the certificates of those who have issued
        it before its own, as Key Vault writes them
        (Azure/secrets-store-csi-driver-provider-azure#156).
        """
        key = generate_rsa_key()
        name = _name("emulated application")
        issuer, issuer_key, above = name, key, list[x509.Certificate]()
        if issued:
            issuer, issuer_key, above = _issuers()
        builder = _builder(name, issuer, key.public_key(), shift)
        certificate = builder.sign(issuer_key, hashes.SHA256())
        certificate_pem = b"".join(
            each.public_bytes(Encoding.PEM) for each in (*above, certificate)
        )
        encryption = BestAvailableEncryption(password.encode())
        return cls(
            certificate=certificate,
            password=password,
            pem=certificate_pem
            + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            pem_encrypted=certificate_pem
            + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption),
            pfx=pkcs12.serialize_key_and_certificates(
                b"emulated application", key, certificate, above or None, encryption
            ),
        )

    def thumbprint(self, algorithm: hashes.HashAlgorithm) -> bytes:
        """Return the certificate's digest, as `x5t` and `x5t#S256` carry it."""
        return self.certificate.fingerprint(algorithm)


@functools.cache
def cached_client_certificate() -> ClientCertificate:
    """Return this process's first client certificate."""
    return ClientCertificate.generate(secrets.token_urlsafe(16))
