"""Keys of an identity: how a key is declared, and the parsers of values."""

import ipaddress
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

PUBLIC_CLOUD = "login.microsoftonline.com"
REDIS_SCOPE = "https://redis.azure.com/.default"

_LAST_PORT = 65535

Parse = Callable[[Any], Any]


class InvalidValueError(Exception):
    """A value has the wrong form; the message says what it should be."""


#: Unicode's categories of invisible characters in text from files and pipelines: line
#: breaks, the byte order mark of Windows' editors, marks of a direction, and the like.
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp"})
#: White space that may be a part of a password or a path.
_SPACES = " \t\v\f"


def _check_ends(value: Any, *, spaces: bool = False) -> None:
    """Raise InvalidValueError for text with an invisible first or last character.

    Parameters:
        value: the text.
        spaces: whether white space may be a part of it.
    """
    for end in (value[:1], value[-1:]) if isinstance(value, str) else ():
        invisible = end != "" and unicodedata.category(end) in _INVISIBLE
        if (invisible and end not in _SPACES) or (end.isspace() and not spaces):
            raise InvalidValueError(
                "It should not begin or end with a line break or a space, nor with "
                "another character that can't be seen, as text from a file or a "
                "pipeline may: strip it."
            )


def parse_text(value: Any) -> str:
    """Return text.

    Raises:
        InvalidValueError: it is no text, or begins or ends with an invisible character.
    """
    if not isinstance(value, str):
        raise InvalidValueError("It should be a string.")
    _check_ends(value)
    return value


def parse_password(value: Any) -> str:
    """Return a password, which may begin or end with a space.

    Raises:
        InvalidValueError: it is no text, or begins or ends with a line break.
    """
    if not isinstance(value, str):
        raise InvalidValueError("It should be a string.")
    _check_ends(value, spaces=True)
    return value


def parse_path(value: Any) -> Path:
    """Return the path of a file.

    Raises:
        InvalidValueError: it is not a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise InvalidValueError("It should be the path of a file.")
    _check_ends(value, spaces=True)
    return Path(value)


def parse_flag(value: Any) -> bool:
    """Return True or False.

    Raises:
        InvalidValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise InvalidValueError("It should be True or False.")
    return value


def parse_tenant(value: Any) -> str:
    """Return a tenant's ID or domain.

    Raises:
        InvalidValueError: it is neither.
    """
    if not re.fullmatch(r"[A-Za-z0-9.-]+", parse_text(value)):
        raise InvalidValueError(
            "It should be the tenant's ID (a GUID) or one of its domains."
        )
    return str(value)


#: A host with an optional port, as in a URL: a name or an IPv4 address, of labels as in
#: RFC 1123, 2.1, or an IPv6 address in brackets.
_LABEL = "[A-Za-z0-9-]{1,63}"
_HOST = re.compile(
    rf"(?:https://)?((?:{_LABEL}(?:\.{_LABEL})*\.?|\[([0-9A-Fa-f:.]+)\])"
    r"(?::([0-9]{1,5}))?)/?"
)


def parse_host(value: Any) -> str:
    """Return a host, without the scheme and the trailing slash.

    Raises:
        InvalidValueError: it is not a host.
    """
    match = _HOST.fullmatch(parse_text(value))
    if (
        match is None
        or int(match[3] or 0) > _LAST_PORT
        or not (match[2] is None or _is_ipv6(match[2]))
    ):
        raise InvalidValueError(f"It should be a host such as '{PUBLIC_CLOUD}'.")
    return match[1]


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def parse_scope(value: Any) -> str:
    """Return a scope.

    Raises:
        InvalidValueError: it does not end in "/.default".
    """
    if not re.fullmatch(r"\S+/\.default", parse_text(value)):
        raise InvalidValueError(
            f"It should end in '/.default', as '{REDIS_SCOPE}' does."
        )
    return str(value)


#: What to do about an asynchronous credential.
ASYNCHRONOUS = (
    "It should not be asynchronous: take the class of the same name from "
    "azure.identity, not azure.identity.aio."
)


def parse_credential(value: Any) -> Any:
    """Return a credential, a callable that makes one, or a dotted path.

    Raises:
        InvalidValueError: it is none of these, or is asynchronous.
    """
    if not (isinstance(value, str) or callable(value) or hasattr(value, "get_token")):
        raise InvalidValueError(
            "It should be an object with get_token(*scopes), a callable that returns "
            "one, or the dotted path of either."
        )
    path = value if isinstance(value, str) else ""
    get_token = getattr(value, "get_token", None)
    if path.startswith("azure.identity.aio.") or any(
        map(iscoroutinefunction, (value, get_token))
    ):
        raise InvalidValueError(ASYNCHRONOUS)
    return value


def parse_number(low: float, high: float, what: str) -> Parse:
    """Return a parser of numbers above ``low`` and up to ``high``.

    Parameters:
        low, high: the bounds.
        what: the number in the error's message.
    """

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidValueError(f"It should be {what}.")
        if not low < value <= high:
            raise InvalidValueError(f"It should be {what}.")
        return float(value)

    return parse


DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Key:
    """A key of an entry of ``ENTRA_REDIS``.

    Parameters:
        parse: checks its value and returns it parsed.
        kinds: the kinds that have it; empty: all kinds.
        required: the kinds that require it.
        exclusive: the kinds that take only one of the keys marked with that kind.
        variable: the environment variable with the same meaning, of azure-identity's
            EnvironmentCredential or WorkloadIdentityCredential.
    """

    parse: Parse
    kinds: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    exclusive: tuple[str, ...] = ()
    variable: str | None = None


def declare(parse: Parse, **facts: Any) -> dict[str, Key]:
    """Return the metadata by which a dataclass' field declares a key.

    Parameters:
        parse: checks the key's value and returns it parsed.
        facts: the other arguments of :class:`Key`.
    """
    return {"key": Key(parse, **facts)}
