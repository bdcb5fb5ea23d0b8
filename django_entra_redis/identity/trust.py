"""Files and directories of trusted certificates, and why they can't be used."""

import os
import re
import ssl
import stat

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
