"""Faults that the identity endpoints can be told to have."""

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from emulator.clock import Clock
from emulator.web import Response

Refuse = Callable[[int, str], Mapping[str, Any]]
MODES = (
    "500",
    "429",
    "refused",
    "hang",
    "html",
    "reset",
    "dribble",
    "garbage",
    "invalid_client",
)
ENDPOINTS = (
    "token",
    "imds",
    "app_service",
    "service_fabric",
    "azure_arc",
    "discovery",
)

# What the endpoints of managed identities say as they fail
# (Azure/azure-sdk-for-net#28568 and #40848).
_WORDS = {
    410: "The requested resource is no longer available at the server",
    500: "An unexpected error occured while fetching the AAD Token.",
}
_LOGIN_PAGE = b"""<!DOCTYPE html>
<html><head><title>Sign in to the network</title></head>
<body><form action="/login"><input name="user"></form></body></html>
"""


@dataclass(frozen=True)
class Fault:
    """One fault of one endpoint; `until` is monotonic, None stands for no end."""

    mode: str
    until: float | None
    retry_after: float | None
    body: str | None = None

    def response(self, refuse: Refuse | None = None) -> Response:
        """Return what the endpoint answers in place of its own answer.

        `refuse` makes the JSON of an error; without it, it is Entra's.
        """
        if self.mode == "html":
            return Response(200, _LOGIN_PAGE, "text/html; charset=utf-8")
        if self.mode in ("refused", "reset"):
            return Response(200, b"", delivery="reset")
        if self.mode == "hang":
            return Response(200, b"", delivery="hang")
        if self.mode in ("garbage", "dribble"):
            delivery = "dribble" if self.mode == "dribble" else "whole"
            return Response.json(
                200, {"status": "ok", "items": [1, 2, 3]}, delivery=delivery
            )
        headers: tuple[tuple[str, str], ...] = ()
        if self.retry_after is not None:
            headers = (("Retry-After", f"{self.retry_after:g}"),)
        if self.body is not None:
            kind = "text/plain; charset=utf-8"
            return Response(int(self.mode), self.body.encode(), kind, headers=headers)
        if refuse is not None and self.mode.isdigit():
            status = int(self.mode)
            content = refuse(status, _WORDS.get(status, HTTPStatus(status).phrase))
            return replace(Response.json(status, content), headers=headers)
        if self.mode == "invalid_client":
            code, status, error = 7000215, 401, "invalid_client"
            text = "Invalid client secret provided."
        elif self.mode.startswith("AADSTS"):
            code, status, error = int(self.mode[6:]), 400, "invalid_request"
            text = "Refused, as the emulator was told to."
        elif self.mode.isdigit() and self.mode not in MODES:
            code, status, error = 90033, int(self.mode), "invalid_request"
            text = "Refused, as the emulator was told to."
        elif self.mode == "429":
            code, status, error = 90055, 429, "temporarily_unavailable"
            text = "The server has terminated the request: too many requests."
        else:
            code, status, error = 90033, 500, "temporarily_unavailable"
            text = "A transient error has occurred. Please try again."
        body = {
            "error": error,
            "error_description": f"AADSTS{code}: {text}",
            "error_codes": [code],
        }
        return Response(
            status, json.dumps(body).encode(), "application/json", headers=headers
        )


class Faults:
    """The faults in force; any thread may set them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._faults: dict[str, Fault] = {}
        self._on_change: Callable[[], None] = _nothing

    def on_change(self, function: Callable[[], None] | None) -> None:
        """Have `function` called after each change; None ends that."""
        self._on_change = _nothing if function is None else function

    def fail(
        self,
        mode: str,
        seconds: float | None = None,
        retry_after: float | None = None,
        endpoint: str = "all",
        body: str | None = None,
    ) -> None:
        """Make `endpoint` fail in `mode`, for `seconds` or until `recover()`.

        Beside `MODES`, `mode` may be one of Entra's error codes, as "AADSTS53003", or
        an HTTP status from 300 on, as "410", of which `body` is the text in place of
        the endpoint's usual words.
        """
        if mode not in MODES and not re.fullmatch(r"AADSTS\d+|[345]\d\d", mode):
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
        if body is not None and not mode.isdigit():
            raise ValueError("a body is for a mode that is a status")
        if endpoint not in (*ENDPOINTS, "all"):
            raise ValueError(
                f"endpoint is one of {', '.join(ENDPOINTS)}, all; not {endpoint!r}"
            )
        until = None if seconds is None else self._clock.monotonic() + seconds
        fault = Fault(mode, until, retry_after, body)
        with self._lock:
            for name in ENDPOINTS if endpoint == "all" else (endpoint,):
                self._faults[name] = fault
        self._on_change()

    def recover(self) -> None:
        """End every fault; what hangs already goes on hanging."""
        with self._lock:
            self._faults.clear()
        self._on_change()

    def active(self, endpoint: str) -> Fault | None:
        """Return the fault that `endpoint` has now."""
        with self._lock:
            fault = self._faults.get(endpoint)
            if (
                fault is not None
                and fault.until is not None
                and fault.until <= self._clock.monotonic()
            ):
                del self._faults[endpoint]
                return None
            return fault

    def closes_port(self, mode: str, endpoints: Iterable[str]) -> bool:
        """Tell whether all of a port's endpoints fail in `mode`."""
        return all(
            (fault := self.active(name)) is not None and fault.mode == mode
            for name in endpoints
        )

    def next_end(self) -> float | None:
        """Return in how many seconds the next fault ends, None for not at all."""
        with self._lock:
            ends = [f.until for f in self._faults.values() if f.until is not None]
        return max(0.0, min(ends) - self._clock.monotonic()) if ends else None


def _nothing() -> None:
    pass
