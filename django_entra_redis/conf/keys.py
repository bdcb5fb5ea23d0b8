"""The keys of an identity, and what their values may be."""

import os
import re
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

PUBLIC_CLOUD = "login.microsoftonline.com"
REDIS_SCOPE = "https://redis.azure.com/.default"

Parse = Callable[[Any], Any]


class InvalidValueError(Exception):
    """A value is not what it should be; the message says what that is."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValueError("It should be a string.")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise InvalidValueError("It should be the path of a file.")
    return Path(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError("It should be True or False.")
    return value


def _tenant(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]+", _text(value)):
        raise InvalidValueError(
            "It should be the tenant's ID (a GUID) or one of its domains."
        )
    return str(value)


def _host(value: Any) -> str:
    match = re.fullmatch(r"(?:https://)?([A-Za-z0-9.:\[\]-]+)/?", _text(value))
    if match is None:
        raise InvalidValueError(f"It should be a host such as '{PUBLIC_CLOUD}'.")
    return match[1]


def _scope(value: Any) -> str:
    if not re.fullmatch(r"\S+/\.default", _text(value)):
        raise InvalidValueError(
            f"It should end in '/.default', as '{REDIS_SCOPE}' does."
        )
    return str(value)


def _credential(value: Any) -> Any:
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


def _number(low: float, high: float, what: str) -> Parse:
    """Return a parser of numbers above ``low`` and up to ``high``."""

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidValueError(f"It should be {what}.")
        if not low < value <= high:
            raise InvalidValueError(f"It should be {what}.")
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
    "REFRESH_RATIO": _number(0, 0.99, "a number above 0 and up to 0.99, such as 0.7"),
    "REFRESH_MARGIN": _number(-1e-9, _DAY, "a number of seconds, such as 180"),
    "REQUEST_TIMEOUT": _number(0, _DAY, "a number of seconds above 0, such as 10"),
}

#: The keys that every identity knows.
COMMON = frozenset(
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
#: ``CLIENT_CERTIFICATE``, and the keys that mean nothing without it.
CERTIFICATE = frozenset(
    ["CLIENT_CERTIFICATE", "CLIENT_CERTIFICATE_PASSWORD", "SEND_CERTIFICATE_CHAIN"]
)

#: The keys that each kind knows beside those common to all.
KINDS: Mapping[str, frozenset[str]] = {
    "environment": frozenset({"SEND_CERTIFICATE_CHAIN"}),
    "managed_identity": frozenset({"CLIENT_ID", "OBJECT_ID", "RESOURCE_ID"}),
    "service_principal": CERTIFICATE | {"TENANT_ID", "CLIENT_ID", "CLIENT_SECRET"},
    "workload_identity": frozenset({"TENANT_ID", "CLIENT_ID", "TOKEN_FILE"}),
}

#: The keys that a kind can't do without.
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "service_principal": ("TENANT_ID", "CLIENT_ID"),
    "workload_identity": ("TENANT_ID", "CLIENT_ID", "TOKEN_FILE"),
}
#: The keys of which a kind takes one alone.
EXCLUSIVE: Mapping[str, tuple[str, ...]] = {
    "managed_identity": ("CLIENT_ID", "OBJECT_ID", "RESOURCE_ID"),
    "service_principal": ("CLIENT_SECRET", "CLIENT_CERTIFICATE"),
}

#: What the variables of azure-identity's EnvironmentCredential and
#: WorkloadIdentityCredential mean here.
VARIABLES: Mapping[str, str] = {
    "TENANT_ID": "AZURE_TENANT_ID",
    "CLIENT_ID": "AZURE_CLIENT_ID",
    "CLIENT_SECRET": "AZURE_CLIENT_SECRET",
    "CLIENT_CERTIFICATE": "AZURE_CLIENT_CERTIFICATE_PATH",
    "CLIENT_CERTIFICATE_PASSWORD": "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "SEND_CERTIFICATE_CHAIN": "AZURE_CLIENT_SEND_CERTIFICATE_CHAIN",
    "TOKEN_FILE": "AZURE_FEDERATED_TOKEN_FILE",
    "AUTHORITY_HOST": "AZURE_AUTHORITY_HOST",
}
#: What a variable holds that asks for nothing. azure-identity takes any text for yes in
#: Python, and for other languages "true" and "1" alone.
NO = frozenset({"0", "false", "no", "off"})

#: What the variables may ask for, in azure-identity's order (secret, certificate,
#: federated token): the kind, the keys that it takes, and those that may be there, too.
FROM_ENVIRONMENT: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("service_principal", ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET"), ()),
    (
        "service_principal",
        ("TENANT_ID", "CLIENT_ID", "CLIENT_CERTIFICATE"),
        ("CLIENT_CERTIFICATE_PASSWORD", "SEND_CERTIFICATE_CHAIN"),
    ),
    ("workload_identity", ("TENANT_ID", "CLIENT_ID", "TOKEN_FILE"), ()),
)
