"""Redaction of texts from outside this package, such as an endpoint's errors.

Such texts end up in logs, exceptions, the status and a terminal. They may quote a
secret that was sent to the endpoint, as it is or encoded, or a token, and they may
contain line breaks and escape sequences.
"""

import base64
import html
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from urllib.parse import unquote_plus

from .token import without_tokens

#: Characters of a text that are shown at most.
MAX_SHOWN = 500
#: Characters that are searched, and those that are for each character of the longest
#: secret. More than are shown, so that a secret, or an encoded form of it, which is cut
#: off at the end of the search is not in the shown part; and not many more, since
#: whoever wrote the text may want the search to take long.
_MAX_READ = 4 * MAX_SHOWN
_READ_FOR_EACH = 3
_MOST_READ = 16 * MAX_SHOWN
#: Characters of a secret that is so short that it would be found by accident, in other
#: words and in encoded forms.
_SHORT = 4

_WITHHELD = "(its words are withheld: they quote a secret in another form)"
_ESCAPES = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))")
_BASE64 = re.compile(r"[\w+/-]{4,}", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")
#: Runs of characters that may be a token, and GUIDs, which are not.
_RUNS = re.compile(r"[\w+/=~.%-]{20,}", re.ASCII)
#: The words of which a name such as "ClientId/ResourceId" consists, and the number of
#: letters that they have at least, on average.
_WORDS = re.compile("[A-Z]?[a-z]+|[A-Z]+")
_WORD = 4
_GUIDS = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def redact(text: str, secrets: Iterable[str | None] = ()) -> str:
    """Return a text on one line, printable, without secrets and tokens.

    Parameters:
        text: the text.
        secrets: the secrets that it may quote.
    """
    # The longest first: one may be part of another. No more of one than is searched:
    # what is longer can't be found, but would take seconds to look for.
    given = (secret[:_MOST_READ] for secret in secrets if secret)
    known = sorted(given, key=len, reverse=True)
    length = max(map(len, known), default=0)
    cut = text[: min(_MAX_READ + _READ_FOR_EACH * length, _MOST_READ)]
    if known:
        cut = re.sub("|".join(map(_pattern, known)), "***", cut)
    cut = without_tokens(cut)
    long = [secret.casefold() for secret in known if len(secret) > _SHORT]
    forms = (form.casefold() for form in _forms(cut, 2))
    if long and any(secret in form for form in forms for secret in long):
        return _WITHHELD
    return _shown(_RUNS.sub(_without_random, cut))


def one_line(text: str) -> str:
    """Return a text on one line, printable, without JWTs.

    It is for the words of others, in which no known secret is expected.

    Parameters:
        text: the text.
    """
    return _shown(without_tokens(text[:_MAX_READ]))


def _shown(text: str) -> str:
    """Return the beginning of a text, with a space for each unprintable character."""
    if not text.isprintable():
        text = "".join(one if one.isprintable() else " " for one in text)
    text = text.strip()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _pattern(secret: str) -> str:
    """Return the pattern of a secret in a text, in capitals, too; of a short one, as it
    is and where it stands alone.

    Every "a" would become stars otherwise, where that is the secret.
    """
    pattern = re.escape(secret)
    short = len(secret) <= _SHORT
    return rf"(?<!\w){pattern}(?!\w)" if short else f"(?i:{pattern})"


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
    words = _WORDS.findall(text)
    if not digits and len(kinds) >= _WORD * len(words):
        return run[0]
    # Compound words have few changes of case, and identifiers have digits at the end.
    random = changes > len(kinds) / 3 or (0 < digits < len(kinds) and _is_hex(text))
    return "***" if random and len(text) >= 20 else run[0]


def _is_hex(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", text) is not None


def _forms(text: str, depth: int) -> Iterator[str]:
    """Yield the decoded forms of a text, and the decoded forms of these."""
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
    """Return the character that an escape sequence, as in JSON, stands for."""
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else escape[3]


def _decoded(text: str) -> Iterator[str]:
    """Yield the texts that stand in a text as base64 or as hexadecimal digits."""
    for found in _HEX.findall(text):
        yield bytes.fromhex(found).decode("latin-1")
    # Base64 has groups of four characters, and a group may begin at any of the first
    # four of a run.
    for found in _BASE64.findall(text.replace("\\/", "/")):
        run = found.replace("-", "+").replace("_", "/")
        for start in range(4):
            part = run[start:]
            part = part[: len(part) // 4 * 4]
            yield base64.b64decode(part).decode("latin-1")
