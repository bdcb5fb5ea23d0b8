"""Redaction of texts that somebody else has written, such as an endpoint's errors.

An endpoint's words end up in logs, exceptions, the status and a terminal. They may
quote what was sent to it, as it was or in another form, or a token; and they may hold
line breaks and escape sequences.
"""

import base64
import html
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from urllib.parse import unquote_plus

from .token import without_tokens

#: Characters that are told.
TOLD = 500
#: Characters that are looked at; some of what is left out may be half a secret.
_LOOKED_AT = 4 * TOLD
#: Secrets as short as these are only looked for as they are.
_SHORT = 4

_WITHHELD = "(its words are withheld: they quote a secret in another form)"
_ESCAPES = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))")
_BASE64 = re.compile(r"[\w+/-]{4,}", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")
#: Runs of characters that a token may be made of, and those that identify something.
_RUNS = re.compile(r"[\w+/=~.%-]{20,}", re.ASCII)
_GUIDS = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def redact(text: str, secrets: Iterable[str | None] = ()) -> str:
    """Return a text on one line, in print, with neither a secret nor a token in it.

    Parameters:
        text: what somebody says.
        secrets: those that it may quote.
    """
    cut = text[:_LOOKED_AT]
    # The longest first: one may be part of another.
    known = sorted(filter(None, secrets), key=len, reverse=True)
    for secret in known:
        cut = cut.replace(secret, "***")
    cut = without_tokens(cut)
    long = [secret for secret in known if len(secret) > _SHORT]
    if long and any(secret in form for form in _forms(cut, 2) for secret in long):
        return _WITHHELD
    cut = _RUNS.sub(_without_random, cut)
    shown = "".join(one if one.isprintable() else " " for one in cut).strip()
    return shown if len(shown) <= TOLD else f"{shown[:TOLD]}..."


def _without_random(run: re.Match[str]) -> str:
    """Return a run of characters, or stars if it looks like an opaque token."""
    text = _GUIDS.sub("", run[0])
    kinds = [
        "digit" if one.isdigit() else "upper" if one.isupper() else "lower"
        for one in text
        if one.isalnum()
    ]
    changes = sum(one != other for one, other in pairwise(kinds))
    digits = kinds.count("digit")
    # Words of several words change seldom, and identifiers end in digits.
    random = changes > len(kinds) / 3 or (0 < digits < len(kinds) and _is_hex(text))
    return "***" if random and len(text) >= 20 else run[0]


def _is_hex(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", text) is not None


def _forms(text: str, depth: int) -> Iterator[str]:
    """Yield what a text may be the encoded form of, also of such a form."""
    forms = {
        unquote_plus(text),
        html.unescape(text),
        _ESCAPES.sub(_unescape, text),
        *_decoded(text),
    } - {text}
    for form in forms:
        yield form
        if depth > 1:
            yield from _forms(form, depth - 1)


def _unescape(escape: re.Match[str]) -> str:
    """Return the character of an escape in JSON or the like."""
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else escape[3]


def _decoded(text: str) -> Iterator[str]:
    """Yield what stands in base64 and in hexadecimal digits."""
    for found in _HEX.findall(text):
        yield bytes.fromhex(found).decode("latin-1")
    # Its end does not tell where the secret begins: at any of four characters.
    for found in _BASE64.findall(text.replace("\\/", "/")):
        run = found.replace("-", "+").replace("_", "/")
        for start in range(4):
            part = run[start:]
            part = part[: len(part) // 4 * 4]
            yield base64.b64decode(part).decode("latin-1")
