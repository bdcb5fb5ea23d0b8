"""The emulator's controls over HTTP: the endpoint and its client."""

import asyncio
import contextlib
import dataclasses
import json
import ssl
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from emulator.cluster import Node
from emulator.faults import Faults
from emulator.journal import Authentication, Stats, TokenRequest
from emulator.server import ServerError
from emulator.web import Answer, Request, Response, decode_json

PREFIX = "/_emulator/"
_TIMEOUT = 30.0
# Slots by the thousand take their time.
_LONG_TIMEOUT = 600.0
_LONG = ("failover", "migrate_slots", "restart_node", "add_node", "settle")


class Controllable(Protocol):
    """What the endpoint asks of the emulator."""

    token_lifetime: float
    repeat_tokens: bool
    system_assigned_enabled: bool
    refusal: str | None

    @property
    def faults(self) -> Faults: ...
    @property
    def stats(self) -> Stats: ...
    @property
    def requests(self) -> list[TokenRequest]: ...
    @property
    def authentications(self) -> list[Authentication]: ...
    def description(self) -> dict[str, Any]: ...
    def revoke(self, object_id: str) -> None: ...
    def set_access(self, object_id: str, rules: str | None) -> None: ...
    def drop_connections(
        self, idle_only: bool = False, idle_for: float = 0.5
    ) -> int: ...
    def freeze(self, frozen: bool = True) -> None: ...
    def break_tls(self, mode: str | None) -> None: ...
    def break_redis(self, mode: str | None) -> None: ...
    def nodes(self) -> list[Node]: ...
    def kill_node(self, number: int) -> None: ...
    def restart_node(self, number: int) -> None: ...
    def add_node(self) -> Node: ...
    def failover(self, number: int) -> None: ...
    def migrate_slots(
        self, source: int, target: int, count: int, pause: float = 0.0
    ) -> None: ...
    def settle(self, timeout: float = 30.0) -> None: ...
    def set_clock(self, ahead: float) -> None: ...
    def rotate_certificate(
        self, expired: bool = False, issued: bool = False
    ) -> None: ...
    def federated_token(self, lifetime: float = 3600.0) -> str: ...
    def issue_token(
        self,
        object_id: str | None = None,
        lifetime: float | None = None,
        audience: str | None = None,
        **claims: Any,
    ) -> str: ...


class ControlEndpoint:
    """Answers under `/_emulator/`: GET to read, POST to change."""

    def __init__(self, emulator: Controllable) -> None:
        self._emulator = emulator
        self._readers: dict[str, Callable[[], object]] = {
            "stats": lambda: dataclasses.asdict(emulator.stats),
            "requests": lambda: [dataclasses.asdict(r) for r in emulator.requests],
            "authentications": lambda: [
                dataclasses.asdict(record) for record in emulator.authentications
            ],
            "description": emulator.description,
        }
        self._writers: dict[str, Callable[..., object]] = {
            "fail": emulator.faults.fail,
            "recover": emulator.faults.recover,
            "settings": self._settings,
            "revoke": emulator.revoke,
            "set_access": emulator.set_access,
            "drop_connections": emulator.drop_connections,
            "freeze": emulator.freeze,
            "break_tls": emulator.break_tls,
            "break_redis": emulator.break_redis,
            "set_clock": emulator.set_clock,
            "rotate_certificate": emulator.rotate_certificate,
            "federated_token": emulator.federated_token,
            "issue_token": emulator.issue_token,
        }
        # These wait for the nodes, to which the loop has to bring clients meanwhile.
        self._waiters: dict[str, Callable[..., object]] = {
            "nodes": lambda: [dataclasses.asdict(node) for node in emulator.nodes()],
            "kill_node": emulator.kill_node,
            "restart_node": emulator.restart_node,
            "add_node": lambda: dataclasses.asdict(emulator.add_node()),
            "failover": emulator.failover,
            "migrate_slots": emulator.migrate_slots,
            "settle": emulator.settle,
        }

    def handle(self, request: Request) -> Answer:
        """Answer one request."""
        name = request.path.removeprefix(PREFIX)
        if not request.path.startswith(PREFIX):
            return Response(404, b"")
        if request.method == "GET" and name in self._readers:
            return Response.json(200, self._readers[name]())
        if request.method == "POST" and name in self._writers:
            return _answer(self._writers[name], request)
        if request.method == "POST" and name in self._waiters:
            return _answer_later(self._waiters[name], request)
        return Response.json(404, {"error": f"no control {request.method} {name}"})

    def _settings(
        self,
        token_lifetime: float | None = None,
        repeat_tokens: bool | None = None,
        system_assigned_enabled: bool | None = None,
        refusal: str | None = None,
    ) -> None:
        if token_lifetime is not None:
            self._emulator.token_lifetime = float(token_lifetime)
        if repeat_tokens is not None:
            self._emulator.repeat_tokens = repeat_tokens
        if system_assigned_enabled is not None:
            self._emulator.system_assigned_enabled = system_assigned_enabled
        if refusal is not None:
            # An empty one brings Redis's own words back.
            self._emulator.refusal = refusal or None


def _answer(control: Callable[..., object], request: Request) -> Response:
    try:
        result = control(**decode_json(request))
    except (TypeError, ValueError, ServerError) as error:
        return Response.json(400, {"error": str(error)})
    return Response.json(200, {"result": result})


def _answer_later(
    control: Callable[..., object], request: Request
) -> asyncio.Future[Response]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Response] = loop.create_future()

    def work() -> None:
        done: Future[Response] = Future()
        try:
            done.set_result(_answer(control, request))
        except Exception as error:
            done.set_exception(error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, done)

    def deliver(done: "Future[Response]") -> None:
        try:
            answer.set_result(done.result())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="entra-emulator-control", daemon=True).start()
    return answer


class EmulatorControl:
    """Controls an emulator from another process."""

    def __init__(self, url: str, ca_file: str | Path) -> None:
        self._url = url.rstrip("/") + PREFIX
        context = ssl.create_default_context(cafile=str(ca_file))
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=context),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "EmulatorControl":
        """Return the control of the emulator that wrote this `emulator.json`."""
        content = json.loads(Path(path).read_text())
        return cls(content["control_url"], content["ca_file"])

    @property
    def stats(self) -> Stats:
        """A snapshot of the counters."""
        return Stats(**self._get("stats"))

    @property
    def requests(self) -> list[TokenRequest]:
        """The token requests so far."""
        return [TokenRequest(**record) for record in self._get("requests")]

    @property
    def authentications(self) -> list[Authentication]:
        """The authentications so far."""
        return [Authentication(**record) for record in self._get("authentications")]

    def description(self) -> dict[str, Any]:
        """Return what `emulator.json` says."""
        content: dict[str, Any] = self._get("description")
        return content

    def fail(
        self,
        mode: str,
        seconds: float | None = None,
        retry_after: float | None = None,
        endpoint: str = "all",
        body: str | None = None,
    ) -> None:
        """Make an endpoint fail."""
        self._post(
            "fail",
            mode=mode,
            seconds=seconds,
            retry_after=retry_after,
            endpoint=endpoint,
            body=body,
        )

    def recover(self) -> None:
        """End every fault."""
        self._post("recover")

    def set(
        self,
        token_lifetime: float | None = None,
        repeat_tokens: bool | None = None,
        system_assigned_enabled: bool | None = None,
        refusal: str | None = None,
    ) -> None:
        """Change a setting."""
        self._post(
            "settings",
            token_lifetime=token_lifetime,
            repeat_tokens=repeat_tokens,
            system_assigned_enabled=system_assigned_enabled,
            refusal=refusal,
        )

    def revoke(self, object_id: str) -> None:
        """Revoke what has been issued to a principal."""
        self._post("revoke", object_id=object_id)

    def set_access(self, object_id: str, rules: str | None) -> None:
        """Change or remove a principal's access policy assignment."""
        self._post("set_access", object_id=object_id, rules=rules)

    def drop_connections(self, idle_only: bool = False, idle_for: float = 0.5) -> int:
        """Close connections with RST."""
        return int(
            self._post("drop_connections", idle_only=idle_only, idle_for=idle_for)
        )

    def freeze(self, frozen: bool = True) -> None:
        """Make the gateway silent, or wake it up."""
        self._post("freeze", frozen=frozen)

    def break_tls(self, mode: str | None) -> None:
        """Have the TLS port of Redis misbehave; None ends it."""
        self._post("break_tls", mode=mode)

    def break_redis(self, mode: str | None) -> None:
        """Have the Redis behind be in trouble; None ends it."""
        self._post("break_redis", mode=mode)

    def nodes(self) -> list[Node]:
        """Return the cluster's nodes, the dead ones too."""
        return [Node(**record) for record in self._post("nodes")]

    def kill_node(self, number: int) -> None:
        """Have a node of the cluster go away, as a machine does."""
        self._post("kill_node", number=number)

    def restart_node(self, number: int) -> None:
        """Have a node come back that was killed."""
        self._post("restart_node", number=number)

    def add_node(self) -> Node:
        """Have a new primary join, without slots."""
        return Node(**self._post("add_node"))

    def failover(self, number: int) -> None:
        """Have a replica and its primary change places."""
        self._post("failover", number=number)

    def migrate_slots(
        self, source: int, target: int, count: int, pause: float = 0.0
    ) -> None:
        """Move slots, with their keys, from one primary to another."""
        self._post(
            "migrate_slots", source=source, target=target, count=count, pause=pause
        )

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until the nodes that live agree, and serve every slot."""
        self._post("settle", timeout=timeout)

    def set_clock(self, ahead: float) -> None:
        """Have the emulator's clock be ahead of this machine's."""
        self._post("set_clock", ahead=ahead)

    def rotate_certificate(self, expired: bool = False, issued: bool = False) -> None:
        """Give the application a new certificate."""
        self._post("rotate_certificate", expired=expired, issued=issued)

    def federated_token(self, lifetime: float = 3600.0) -> str:
        """Return a federated assertion."""
        return str(self._post("federated_token", lifetime=lifetime))

    def issue_token(
        self,
        object_id: str | None = None,
        lifetime: float | None = None,
        audience: str | None = None,
        **claims: Any,
    ) -> str:
        """Mint a token."""
        return str(
            self._post(
                "issue_token",
                object_id=object_id,
                lifetime=lifetime,
                audience=audience,
                **claims,
            )
        )

    def _post(self, name: str, **arguments: Any) -> Any:
        return self._open(name, json.dumps(arguments).encode())["result"]

    def _get(self, name: str) -> Any:
        return self._open(name, None)

    def _open(self, name: str, data: bytes | None) -> Any:
        request = urllib.request.Request(self._url + name, data)
        timeout = _LONG_TIMEOUT if name in _LONG else _TIMEOUT
        with self._opener.open(request, timeout=timeout) as response:
            return json.load(response)
