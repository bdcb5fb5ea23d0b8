"""The settings: the one place that reads them.

One parser serves run time, which raises what it finds, and the system checks, which
list it. Nothing here is remembered, so that ``override_settings`` works.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings

from .problems import ConfigurationError, Problem
from .schedule import Policy

PUBLIC_CLOUD = "login.microsoftonline.com"
REDIS_SCOPE = "https://redis.azure.com/.default"

Parse = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One entry of ``ENTRA_REDIS``, checked, with its defaults filled in.

    ``kind`` is one of ``managed_identity``, ``service_principal``,
    ``workload_identity`` and ``credential``; ``environment`` has been resolved to the
    one that the environment asks for.
    """

    alias: str
    kind: str
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    client_certificate: Path | None = None
    client_certificate_password: str | None = field(default=None, repr=False)
    send_certificate_chain: bool = False
    object_id: str | None = None
    resource_id: str | None = None
    token_file: Path | None = None
    credential: Any = field(default=None, repr=False)
    authority_host: str = PUBLIC_CLOUD
    instance_discovery: bool = True
    scope: str = REDIS_SCOPE
    username: str | None = None
    refresh_ratio: float = 0.7
    refresh_margin: float = 180.0
    request_timeout: float = 10.0

    @property
    def policy(self) -> Policy:
        """When to renew."""
        return Policy(
            ratio=self.refresh_ratio,
            margin=self.refresh_margin,
            timeout=self.request_timeout,
        )


class _InvalidValueError(Exception):
    """A value is not what it should be; the message says what that is."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _InvalidValueError("It should be a string.")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise _InvalidValueError("It should be the path of a file.")
    return Path(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _InvalidValueError("It should be True or False.")
    return value


def _tenant(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]+", _text(value)):
        raise _InvalidValueError(
            "It should be the tenant's ID (a GUID) or one of its domains."
        )
    return str(value)


def _host(value: Any) -> str:
    match = re.fullmatch(r"(?:https://)?([A-Za-z0-9.:\[\]-]+)/?", _text(value))
    if match is None:
        raise _InvalidValueError(f"It should be a host such as '{PUBLIC_CLOUD}'.")
    return match[1]


def _scope(value: Any) -> str:
    if not re.fullmatch(r"\S+/\.default", _text(value)):
        raise _InvalidValueError(
            f"It should end in '/.default', as '{REDIS_SCOPE}' does."
        )
    return str(value)


def _credential(value: Any) -> Any:
    if not (isinstance(value, str) or callable(value) or hasattr(value, "get_token")):
        raise _InvalidValueError(
            "It should be an object with get_token(*scopes), a callable that returns "
            "one, or the dotted path of either."
        )
    return value


def number(low: float, high: float, what: str) -> Parse:
    """Return a parser of numbers above ``low`` and up to ``high``."""

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _InvalidValueError(f"It should be {what}.")
        if not low < value <= high:
            raise _InvalidValueError(f"It should be {what}.")
        return float(value)

    return parse


_DAY = 86400.0

#: Every key of an identity, with what parses its value.
KEYS: Mapping[str, Parse] = {
    "KIND": _text,
    "TENANT_ID": _tenant,
    "CLIENT_ID": _text,
    "CLIENT_SECRET": _text,
    "CLIENT_CERTIFICATE": _path,
    "CLIENT_CERTIFICATE_PASSWORD": _text,
    "SEND_CERTIFICATE_CHAIN": _flag,
    "OBJECT_ID": _text,
    "RESOURCE_ID": _text,
    "TOKEN_FILE": _path,
    "CREDENTIAL": _credential,
    "AUTHORITY_HOST": _host,
    "INSTANCE_DISCOVERY": _flag,
    "SCOPE": _scope,
    "USERNAME": _text,
    "REFRESH_RATIO": number(0, 0.99, "a number between 0 and 1, such as 0.7"),
    "REFRESH_MARGIN": number(-1e-9, _DAY, "a number of seconds, such as 180"),
    "REQUEST_TIMEOUT": number(0, _DAY, "a number of seconds above 0, such as 10"),
}

_COMMON = frozenset(
    [
        "KIND",
        "AUTHORITY_HOST",
        "INSTANCE_DISCOVERY",
        "SCOPE",
        "USERNAME",
        "REFRESH_RATIO",
        "REFRESH_MARGIN",
        "REQUEST_TIMEOUT",
    ]
)
_CERTIFICATE = frozenset(
    ["CLIENT_CERTIFICATE", "CLIENT_CERTIFICATE_PASSWORD", "SEND_CERTIFICATE_CHAIN"]
)

#: The keys that each kind knows beside those common to all.
KINDS: Mapping[str, frozenset[str]] = {
    "environment": frozenset({"SEND_CERTIFICATE_CHAIN"}),
    "managed_identity": frozenset({"CLIENT_ID", "OBJECT_ID", "RESOURCE_ID"}),
    "service_principal": _CERTIFICATE | {"TENANT_ID", "CLIENT_ID", "CLIENT_SECRET"},
    "workload_identity": frozenset({"TENANT_ID", "CLIENT_ID", "TOKEN_FILE"}),
}
_KIND_NAMES = ", ".join(f"'{kind}'" for kind in KINDS)

#: What the variables of azure-identity's EnvironmentCredential and
#: WorkloadIdentityCredential mean here.
_VARIABLES: Mapping[str, str] = {
    "TENANT_ID": "AZURE_TENANT_ID",
    "CLIENT_ID": "AZURE_CLIENT_ID",
    "CLIENT_SECRET": "AZURE_CLIENT_SECRET",
    "CLIENT_CERTIFICATE": "AZURE_CLIENT_CERTIFICATE_PATH",
    "CLIENT_CERTIFICATE_PASSWORD": "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "TOKEN_FILE": "AZURE_FEDERATED_TOKEN_FILE",
    "AUTHORITY_HOST": "AZURE_AUTHORITY_HOST",
}


def identity_aliases() -> list[str]:
    """Return the names of the identities in the settings."""
    entries = _entries()
    return [str(alias) for alias in entries] if isinstance(entries, Mapping) else []


def load_identity(alias: str) -> Identity:
    """Return one identity of the settings.

    Raises:
        ConfigurationError: it isn't there, or it can't be used as it is.
    """
    entries = _entries()
    if not isinstance(entries, Mapping):
        raise ConfigurationError([_not_a_dict()])
    if alias not in entries:
        known = ", ".join(f"'{name}'" for name in entries) or "none"
        raise ConfigurationError(
            [
                Problem(
                    "E008",
                    f"ENTRA_REDIS[{alias!r}]",
                    "there is no such identity.",
                    f"The identities there are: {known}. Add it, or name another one.",
                )
            ]
        )
    return parse_identity(alias, entries[alias])


def identity_problems() -> list[Problem]:
    """Return all that is wrong with ``ENTRA_REDIS``."""
    entries = _entries()
    if not isinstance(entries, Mapping):
        return [_not_a_dict()]
    problems: list[Problem] = []
    for alias, entry in entries.items():
        try:
            parse_identity(alias, entry)
        except ConfigurationError as error:
            problems += error.problems
    return problems


def _entries() -> Any:
    return getattr(settings, "ENTRA_REDIS", {"default": {}})


def _not_a_dict() -> Problem:
    return Problem(
        "E001",
        "ENTRA_REDIS",
        "it is not a dictionary.",
        'It should map names to identities, such as {"default": {}}.',
    )


def parse_identity(
    alias: str, entry: Any, environ: Mapping[str, str] = os.environ
) -> Identity:
    """Check one entry of ``ENTRA_REDIS``.

    Parameters:
        alias: its name.
        entry: the dictionary in the settings. An empty string or ``None`` counts as
            not given, since that is what an absent variable gives.
        environ: the environment variables.

    Raises:
        ConfigurationError: with all that is wrong.
    """
    where = f"ENTRA_REDIS[{alias!r}]"
    if not isinstance(entry, Mapping):
        raise ConfigurationError(
            [Problem("E001", where, "it is not a dictionary.", "It should be one: {}.")]
        )
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in KEYS:
            problems.append(_unknown_key(where, key))
        elif value is not None and value != "":
            try:
                values[key] = KEYS[key](value)
            except _InvalidValueError as error:
                message = "its value can't be used."
                problems.append(
                    Problem("E007", f"{where}[{key!r}]", message, str(error))
                )
    if not problems:
        values = _complete(where, values, environ, problems)
    if problems:
        raise ConfigurationError(problems)
    kind = values.pop("KIND")
    fields = {key.lower(): value for key, value in values.items()}
    return Identity(alias=alias, kind=kind, **fields)


def _unknown_key(where: str, key: Any) -> Problem:
    near = difflib.get_close_matches(str(key).upper(), KEYS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(KEYS)}."
    return Problem("E002", where, f"there is no key {key!r}.", hint)


def _complete(
    where: str,
    values: dict[str, Any],
    environ: Mapping[str, str],
    problems: list[Problem],
) -> dict[str, Any]:
    """Return the values with their kind's defaults; add what is wrong with them."""
    kind = values.get("KIND", "environment")
    if kind not in KINDS:
        hint = f"It should be one of {_KIND_NAMES}."
        problems.append(
            Problem("E003", f"{where}['KIND']", f"{kind!r} is no kind.", hint)
        )
        return values
    own = KINDS[kind]
    if "CREDENTIAL" in values:
        if "KIND" in values:
            problems.append(
                Problem(
                    "E005",
                    where,
                    "it has both CREDENTIAL and KIND.",
                    "CREDENTIAL stands in place of KIND: remove one of them.",
                )
            )
        kind, own = "credential", frozenset({"CREDENTIAL"})
    for key in sorted(values.keys() - _COMMON - own):
        problems.append(_unused_key(where, key, kind))
    if problems:
        return values
    if "AUTHORITY_HOST" not in values:
        values |= _from_environment(environ, ("AUTHORITY_HOST",), problems)
    if kind == "environment":
        kind, found = _resolve_environment(environ, problems)
        if "CLIENT_CERTIFICATE" not in found:
            values.pop("SEND_CERTIFICATE_CHAIN", None)
        values |= found
    elif kind == "workload_identity":
        keys = ("TENANT_ID", "CLIENT_ID", "TOKEN_FILE")
        values = _from_environment(environ, keys, problems) | values
    if not problems:
        _check_parts(where, kind, values, problems)
    return {**values, "KIND": kind}


def _unused_key(where: str, key: str, kind: str) -> Problem:
    if kind == "credential":
        hint = "Remove it, or CREDENTIAL."
        return Problem("E006", where, f"{key} is not used with CREDENTIAL.", hint)
    fitting = [name for name, keys in KINDS.items() if key in keys]
    hint = f"Remove it, or set KIND to {' or '.join(map(repr, fitting))}."
    return Problem("E006", where, f"{key} is not used by KIND {kind!r}.", hint)


def _from_environment(
    environ: Mapping[str, str], keys: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in keys:
        value = environ.get(_VARIABLES[key])
        if value:
            try:
                values[key] = KEYS[key](value)
            except _InvalidValueError as error:
                message = "its value can't be used."
                problems.append(
                    Problem("E007", f"${_VARIABLES[key]}", message, str(error))
                )
    return values


def _resolve_environment(
    environ: Mapping[str, str], problems: list[Problem]
) -> tuple[str, dict[str, Any]]:
    """Return the kind that the environment asks for, and its values.

    The order is azure-identity's: secret, certificate, federated token; a managed
    identity where none of these is complete.
    """
    given = {key for key, name in _VARIABLES.items() if environ.get(name)}
    application = ("TENANT_ID", "CLIENT_ID")
    certificate = ("CLIENT_CERTIFICATE", "CLIENT_CERTIFICATE_PASSWORD")
    kinds: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
        ("service_principal", ("CLIENT_SECRET",), ()),
        ("service_principal", certificate[:1], certificate[1:]),
        ("workload_identity", ("TOKEN_FILE",), ()),
    )
    for kind, proof, extra in kinds:
        if given.issuperset(application + proof):
            keys = application + proof + extra
            return kind, _from_environment(environ, keys, problems)
    return "managed_identity", _from_environment(environ, ("CLIENT_ID",), problems)


def _check_parts(
    where: str, kind: str, values: Mapping[str, Any], problems: list[Problem]
) -> None:
    """Add what the parts of an identity lack or have too much."""
    required: tuple[str, ...] = ()
    exclusive: tuple[str, ...] = ()
    if kind == "managed_identity":
        exclusive = ("CLIENT_ID", "OBJECT_ID", "RESOURCE_ID")
    elif kind == "service_principal":
        required = ("TENANT_ID", "CLIENT_ID")
        exclusive = ("CLIENT_SECRET", "CLIENT_CERTIFICATE")
        if not values.keys() & set(exclusive):
            problems.append(
                Problem(
                    "E004",
                    where,
                    "CLIENT_SECRET is missing.",
                    "Set CLIENT_SECRET, or CLIENT_CERTIFICATE to the path of a PEM or "
                    "PFX file.",
                )
            )
        elif "CLIENT_CERTIFICATE" not in values and (
            stray := _CERTIFICATE & values.keys()
        ):
            problems.append(
                Problem(
                    "E005",
                    where,
                    f"it has {' and '.join(sorted(stray))} without CLIENT_CERTIFICATE.",
                    "Remove it, or set CLIENT_CERTIFICATE.",
                )
            )
    elif kind == "workload_identity":
        required = ("TENANT_ID", "CLIENT_ID", "TOKEN_FILE")
    for key in required:
        if key not in values:
            hint = f"Set {key}."
            if kind == "workload_identity":
                hint = (
                    f"Set {key}, or ${_VARIABLES[key]}, which AKS sets in pods with "
                    "the label azure.workload.identity/use."
                )
            problems.append(Problem("E004", where, f"{key} is missing.", hint))
    given = [key for key in exclusive if key in values]
    if len(given) > 1:
        problems.append(
            Problem(
                "E005",
                where,
                f"it has {' and '.join(given)}.",
                "They contradict each other: keep one.",
            )
        )
