"""Files and directories of certificates for TLS, and why they can't be used."""

import os
import re
import ssl
import stat
from collections.abc import Mapping
from typing import Any

#: The name of a certificate's file in a directory, where OpenSSL finds a certificate by
#: the hash of its subject.
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")


def is_special(path: str) -> bool:
    """Whether a path leads to a pipe, a device or a socket, whose reading might never
    end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def unusable_file(path: str) -> str | None:
    """Return why a file of trusted certificates can't be used, if it can't."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "it is not a regular file"
        with open(path, "rb"):  # OpenSSL does not say that a file may not be read.
            ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        return "it holds no certificate in PEM form"
    except OSError as error:
        return error.strerror
    return None


def unusable_directory(path: str) -> str | None:
    """Return why a directory of trusted certificates can't be used, if it can't."""
    try:
        names = os.listdir(path)
    except OSError as error:
        return error.strerror
    if any(map(_HASHED.fullmatch, names)):
        return None
    return "no certificate in it is named by its hash (openssl rehash)"


#: redis-py's options that name a file for TLS.
FILE_OPTIONS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


def unusable_tls_file(options: Mapping[str, Any]) -> str | None:
    """Return which of the files for TLS can't be used, and why, if one can't.

    Parameters:
        options: the options of a connection, or of its pool.
    """
    checks = (unusable_file, unusable_directory, _no_certificate, _no_key)
    named = {
        f"OPTIONS['{name}']": (options.get(name), unusable)
        for name, unusable in zip(FILE_OPTIONS, checks, strict=True)
    }
    if not options.keys() & {"ssl_ca_certs", "ssl_ca_path"}:
        # OpenSSL ignores these variables if it can't use what they name.
        file, directory = map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR"))
        named["$SSL_CERT_FILE"] = file, unusable_file
        named["$SSL_CERT_DIR"] = None if file else directory, unusable_directory
    for name, (path, unusable) in named.items():
        why = None if path is None else unusable(path)
        if why is not None:
            return f"{name} names '{path}', which can't be used: {why}."
    return None


def _no_certificate(path: str) -> str | None:
    """Return why a file holds no client's certificate, if it does not."""
    return _no_pem(path, b"CERTIFICATE-----", "certificate")


def _no_key(path: str) -> str | None:
    """Return why a file holds no client's key, if it does not."""
    return _no_pem(path, b"PRIVATE KEY-----", "private key")


def _no_pem(path: str, label: bytes, what: str) -> str | None:
    if is_special(path):
        return "it is not a regular file"
    try:
        with open(path, "rb") as file:
            return None if label in file.read() else f"it holds no {what} in PEM form"
    except OSError as error:
        return error.strerror
