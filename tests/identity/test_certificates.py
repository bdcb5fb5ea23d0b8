"""Client certificates: any file that holds an RSA key and the certificate of it."""

import base64
import functools
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from django_entra_redis.identity.certificates import read_certificate

PASSWORD = "open sesame"
ENCRYPTED = BestAvailableEncryption(PASSWORD.encode())


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """Return a key of that name."""
    return rsa.generate_private_key(65537, 2048)


def certify(
    subject: str,
    key: Any,
    issuer: str,
    issuer_key: Any,
    days: float = 1,
    start: float = -100,
) -> x509.Certificate:
    """Return a certificate that is valid for so many days, from a day on."""
    now = datetime.now(UTC)
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in (subject, issuer)
    ]
    elliptic = isinstance(issuer_key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=start))
        .not_valid_after(now + timedelta(days=days))
        .sign(issuer_key, None if elliptic else hashes.SHA256())
    )


@functools.cache
def chain() -> list[x509.Certificate]:
    """Return a certificate, those of its issuers, and a stranger's."""
    return [
        certify("leaf", rsa_key("leaf"), "middle", rsa_key("middle")),
        certify("middle", rsa_key("middle"), "root", rsa_key("root")),
        certify("root", rsa_key("root"), "root", rsa_key("root")),
        # Of the same name as the issuer, and not the issuer.
        certify("middle", rsa_key("other"), "root", rsa_key("root")),
    ]


def pem(*parts: Any, encryption: KeySerializationEncryption, form: Any) -> bytes:
    """Return a PEM file of keys and certificates."""
    return b"Bag Attributes: none\n".join(
        part.public_bytes(Encoding.PEM)
        if isinstance(part, x509.Certificate)
        else part.private_bytes(Encoding.PEM, form, encryption)
        for part in parts
    )


def certificates_of(text: str | None) -> list[x509.Certificate]:
    """Return the certificates that msal is given."""
    assert text is not None
    return x509.load_pem_x509_certificates(text.encode())


# To read a key takes its time.
@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(5)),
    form=st.sampled_from([PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL]),
    encrypted=st.booleans(),
)
def test_pem_in_any_order(order: list[int], form: Any, encrypted: bool) -> None:
    """The key's own certificate is found, and the chain sent from it upwards."""
    parts = [rsa_key("leaf"), *chain()]
    content = pem(
        *(parts[number] for number in order),
        encryption=ENCRYPTED if encrypted else NoEncryption(),
        form=form,
    )
    password = PASSWORD if encrypted else None
    read = read_certificate(content, password).for_msal(send_chain=True)
    leaf = chain()[0]
    assert read["thumbprint"] == leaf.fingerprint(hashes.SHA1()).hex()
    assert certificates_of(read["public_certificate"]) == chain()[:3]
    key = load_pem_private_key(read["private_key"].encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.private_numbers() == rsa_key("leaf").private_numbers()
    read = read_certificate(content, password).for_msal(send_chain=False)
    assert read["public_certificate"] is None


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_certificate_that_was_renewed_with_the_same_key(newest: int) -> None:
    """The one that is valid for longest counts, wherever it stands."""
    days = [-10.0, -5.0, -1.0]
    days[newest] = 10.0
    key, issuer = rsa_key("leaf"), rsa_key("middle")
    renewed = [certify("leaf", key, "middle", issuer, left) for left in days]
    content = pem(
        chain()[1], *renewed, key, encryption=NoEncryption(), form=PrivateFormat.PKCS8
    )
    read = read_certificate(content, None)
    assert read.certificate == renewed[newest]
    assert not read.has_expired()
    assert list(read.chain) == [renewed[newest], chain()[1]]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("valid", "other"),
    [
        # Not valid yet, or no longer; of two that are valid, the one for longest.
        ((-100, 1), (1, 400)),
        ((-100, 1), (-400, -100)),
        ((-100, 9), (-1, 1)),
        # None is: it may become so, by a clock that is set right.
        ((1, 400), (-400, -1)),
    ],
)
def test_certificate_that_is_valid_now(
    valid: tuple[float, float], other: tuple[float, float], swapped: bool
) -> None:
    """It is taken, and none that will be only later."""
    key = rsa_key("leaf")
    right, wrong = (
        certify("leaf", key, "leaf", key, end, start) for start, end in (valid, other)
    )
    content = pem(
        *((wrong, right) if swapped else (right, wrong)),
        key,
        encryption=NoEncryption(),
        form=PrivateFormat.PKCS8,
    )
    assert read_certificate(content, None).certificate == right


@pytest.mark.parametrize("first", ["other RSA key", "elliptic key", "OpenSSH's"])
def test_any_of_several_keys(first: str) -> None:
    """The one counts whose certificate is there, wherever it stands."""
    own: dict[str, Any] = {"encryption": NoEncryption(), "form": PrivateFormat.PKCS8}
    others = {
        "other RSA key": pem(rsa_key("other one"), **own),
        "elliptic key": pem(KEYS["P-256"](), **own),
        "OpenSSH's": pem(
            rsa_key("leaf"), encryption=NoEncryption(), form=PrivateFormat.OpenSSH
        ),
    }
    content = others[first] + pem(rsa_key("leaf"), chain()[0], **own)
    read = read_certificate(content, None)
    assert read.certificate == chain()[0]
    assert read.key.private_numbers() == rsa_key("leaf").private_numbers()


def whole(form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    """Return a PEM file of a key and its certificate."""
    parts = rsa_key("leaf"), chain()[0]
    return pem(*parts, encryption=NoEncryption(), form=form)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: whole(PrivateFormat.OpenSSH), "'ssh-keygen -p -m PKCS8 -f KEY'"),
        (lambda: whole().decode().encode("utf-16"), "text in UTF-16"),
        (lambda: b"\xfe\xff" + whole().decode().encode("utf-16-be"), "in UTF-16"),
        (lambda: b"", "it is empty"),
        (lambda: b"\xef\xbb\xbf\r\n", "it is empty"),
        (lambda: b"a\0b", "it is no PEM file, and can't be read as a PFX file"),
        (lambda: b"AAAAA", "it is no PEM file, and can't be read as a PFX file"),
        (
            lambda: pem(
                rsa_key("leaf"), encryption=NoEncryption(), form=PrivateFormat.PKCS8
            ),
            "no private key with its certificate",
        ),
        (lambda: whole().replace(b"PRIVATE KEY", b"KEY"), "no private key with"),
        (
            lambda: whole().replace(b"CERTIFICATE-----\nMII", b"CERTIFICATE-----\nAAA"),
            "a certificate in it can't be read",
        ),
        (
            lambda: whole().replace(b"CERTIFICATE", b"CERTIFICATE REQUEST"),
            "no private key with its certificate",
        ),
    ],
)
def test_file_of_another_kind(content: Callable[[], bytes], said: str) -> None:
    """It is told what it is."""
    with pytest.raises(ValueError, match=re.escape(said)):
        read_certificate(content(), None)


@pytest.mark.parametrize("encryption", [NoEncryption(), ENCRYPTED])
@pytest.mark.parametrize("above", [0, 1, 3])
def test_pfx(above: int, encryption: KeySerializationEncryption) -> None:
    """A PFX file's chain is sent, too, in whatever order it has it."""
    leaf, *others = chain()
    others = random.sample(others[:above], above)
    content = pkcs12.serialize_key_and_certificates(
        b"name", rsa_key("leaf"), leaf, others, encryption
    )
    password = PASSWORD if encryption is ENCRYPTED else None
    read = read_certificate(content, password).for_msal(send_chain=True)
    sent = certificates_of(read["public_certificate"])
    assert sent == chain()[: 1 + min(above, 2)]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])
def test_pfx_as_text(encode: Any, ending: bytes) -> None:
    """Key Vault gives a PFX file as a secret in base64."""
    leaf, *others = chain()
    content = pkcs12.serialize_key_and_certificates(
        b"name", rsa_key("leaf"), leaf, others, NoEncryption()
    )
    for mark in (b"", b"\xef\xbb\xbf"):
        text = mark + encode(content) + ending
        assert read_certificate(text, None).certificate == leaf


def test_neighbour_of_an_unknown_kind() -> None:
    """A certificate whose key nobody understands is nobody's."""
    leaf = chain()[0]
    key = ec.generate_private_key(ec.SECP256R1())
    other = certify("other", key, "other", key).public_bytes(Encoding.DER)
    # The curve's number becomes one that there is not.
    known, unknown = (bytes.fromhex(f"06082a8648ce3d0301{n}") for n in ("07", "7f"))
    der = other.replace(known, unknown)
    assert der != other
    text = base64.encodebytes(der).decode()
    stranger = f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"
    content = stranger.encode() + pem(
        *(rsa_key("leaf"), leaf), encryption=NoEncryption(), form=PrivateFormat.PKCS8
    )
    found = read_certificate(content, None)
    assert (found.certificate, list(found.chain)) == (leaf, [leaf])


def test_gap_in_the_chain() -> None:
    """What leads nowhere is not sent."""
    leaf, _, root, _ = chain()
    content = pem(
        *(root, rsa_key("leaf"), leaf),
        encryption=NoEncryption(),
        form=PrivateFormat.PKCS8,
    )
    read = read_certificate(content, None).for_msal(send_chain=True)
    assert certificates_of(read["public_certificate"]) == [leaf]


KEYS: dict[str, Any] = {
    "P-256": functools.partial(ec.generate_private_key, ec.SECP256R1()),
    "P-384": functools.partial(ec.generate_private_key, ec.SECP384R1()),
    "P-521": functools.partial(ec.generate_private_key, ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "DSA": functools.partial(dsa.generate_private_key, 2048),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("form", ["pem", "pem with parameters", "pfx"])
def test_other_kinds_of_key(kind: str, form: str) -> None:
    """Entra takes RSA keys alone, and it is said before anybody is asked."""
    key = KEYS[kind]()
    certificate = certify("leaf", key, "leaf", key)
    if form == "pfx":
        content = pkcs12.serialize_key_and_certificates(
            b"name", key, certificate, None, NoEncryption()
        )
    else:
        content = pem(
            *(key, certificate), encryption=NoEncryption(), form=PrivateFormat.PKCS8
        )
    if form == "pem with parameters":
        # As "openssl ecparam -genkey" writes them.
        begin, end = (f"-----{word} EC PARAMETERS-----\n" for word in ("BEGIN", "END"))
        content = f"{begin}BggqhkjOPQMBBw==\n{end}".encode() + content
    with pytest.raises(ValueError, match="it should be an RSA key"):
        read_certificate(content, None)


@pytest.mark.parametrize("form", ["pem", "pfx"])
def test_key_of_another_certificate(form: str) -> None:
    """A key whose certificate is not there."""
    content = pem(
        *(rsa_key("other one"), *chain()),
        encryption=NoEncryption(),
        form=PrivateFormat.PKCS8,
    )
    if form == "pfx":
        content = pkcs12.serialize_key_and_certificates(
            b"name", rsa_key("other one"), None, chain(), NoEncryption()
        )
    with pytest.raises(
        ValueError, match="none of its certificates is the private key's"
    ):
        read_certificate(content, None)
