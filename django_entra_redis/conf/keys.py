"""Keys of an identity: how one is declared, and the parsers of their values."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

PUBLIC_CLOUD = "login.microsoftonline.com"
REDIS_SCOPE = "https://redis.azure.com/.default"

Parse = Callable[[Any], Any]


class InvalidValueError(Exception):
    """A value is not what it should be; the message says what that is."""


#: What text from files and pipelines brings along, unseen: line breaks, spaces, the
#: mark of UTF-8 that Windows' editors write, and the like.
_UNSEEN = r"\s\x00\u200b\u200e\u200f\u2060\ufeff"
_LINE_BREAKS = r"\r\n\x00\ufeff"


def _check_ends(value: Any, unseen: str) -> None:
    if isinstance(value, str) and re.search(rf"\A[{unseen}]|[{unseen}]\Z", value):
        raise InvalidValueError(
            "It should not begin or end with a line break or a space, as what is read "
            "from a file or comes out of a pipeline may: strip it."
        )


def parse_text(value: Any) -> str:
    """Return text.

    Raises:
        InvalidValueError: it is none, or has an end that nobody sees.
    """
    if not isinstance(value, str):
        raise InvalidValueError("It should be a string.")
    _check_ends(value, _UNSEEN)
    return value


def parse_password(value: Any) -> str:
    """Return a password, which a space may be a part of.

    Raises:
        InvalidValueError: it is none, or has a line break at an end.
    """
    if not isinstance(value, str):
        raise InvalidValueError("It should be a string.")
    _check_ends(value, _LINE_BREAKS)
    return value


def parse_path(value: Any) -> Path:
    """Return the path of a file.

    Raises:
        InvalidValueError: it is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise InvalidValueError("It should be the path of a file.")
    _check_ends(value, _LINE_BREAKS)
    return Path(value)


def parse_flag(value: Any) -> bool:
    """Return True or False.

    Raises:
        InvalidValueError: it is none.
    """
    if not isinstance(value, bool):
        raise InvalidValueError("It should be True or False.")
    return value


def parse_tenant(value: Any) -> str:
    """Return a tenant's ID or domain.

    Raises:
        InvalidValueError: it is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9.-]+", parse_text(value)):
        raise InvalidValueError(
            "It should be the tenant's ID (a GUID) or one of its domains."
        )
    return str(value)


def parse_host(value: Any) -> str:
    """Return a host without scheme and slash.

    Raises:
        InvalidValueError: it is none.
    """
    match = re.fullmatch(r"(?:https://)?([A-Za-z0-9.:\[\]-]+)/?", parse_text(value))
    if match is None:
        raise InvalidValueError(f"It should be a host such as '{PUBLIC_CLOUD}'.")
    return match[1]


def parse_scope(value: Any) -> str:
    """Return a scope.

    Raises:
        InvalidValueError: it is none.
    """
    if not re.fullmatch(r"\S+/\.default", parse_text(value)):
        raise InvalidValueError(
            f"It should end in '/.default', as '{REDIS_SCOPE}' does."
        )
    return str(value)


def parse_credential(value: Any) -> Any:
    """Return a credential, or what leads to one.

    Raises:
        InvalidValueError: it is none.
    """
    if not (isinstance(value, str) or callable(value) or hasattr(value, "get_token")):
        raise InvalidValueError(
            "It should be an object with get_token(*scopes), a callable that returns "
            "one, or the dotted path of either."
        )
    path = value if isinstance(value, str) else ""
    get_token = getattr(value, "get_token", None)
    if path.startswith("azure.identity.aio.") or iscoroutinefunction(get_token):
        raise InvalidValueError(
            "It should not be asynchronous: take the class of the same name from "
            "azure.identity, not azure.identity.aio."
        )
    return value


def parse_number(low: float, high: float, what: str) -> Parse:
    """Return a parser of numbers above ``low`` and up to ``high``."""

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
        parse: returns its value, checked.
        kinds: the kinds that know it; none: all of them.
        required: the kinds that can't do without it.
        exclusive: the kinds that take one alone of all keys so marked.
        variable: the environment variable of azure-identity's EnvironmentCredential or
            WorkloadIdentityCredential that means the same.
    """

    parse: Parse
    kinds: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    exclusive: tuple[str, ...] = ()
    variable: str | None = None


def declare(parse: Parse, **facts: Any) -> dict[str, Key]:
    """Return the metadata of a dataclass' field that declares a key.

    Parameters:
        parse: returns its value, checked.
        facts: what :class:`Key` has besides.
    """
    return {"key": Key(parse, **facts)}
