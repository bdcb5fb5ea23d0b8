"""A Redis Cluster behind the gateway: its nodes, and what can become of them.

The nodes speak with each other on 127.0.0.1. To clients they announce, as their host
name, the address where the gateway listens for each of them, at the node's own port:
so CLUSTER SLOTS, MOVED and ASK lead there in Redis's own words.
"""

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis

from emulator.server import (
    ADMIN,
    Accounts,
    Server,
    ServerError,
    find_servers,
)
from emulator.sockets import hold

#: What the nodes announce. No certificate names it, as none names Azure's.
ADDRESS = "127.0.0.2"
SLOTS = 16_384
# Two primaries could not elect a replica: that takes most of them.
_ELECTABLE = 3
_HOST = "127.0.0.1"
# A node listens on the port this far above its own for the other nodes.
_BUS = 10_000
# A node that is silent this long is taken for dead, and its replica takes over within
# some 3 s. Shorter, and a busy machine would have nodes replaced that are not.
_NODE_TIMEOUT = 2000
_LOOK_EVERY = 0.02
# The release that announces host names.
_OLDEST = 7
_KEYS_AT_ONCE = 100
_MIGRATED_WITHIN = 10_000
_CONFIGURATION = (
    "cluster-enabled yes",
    f"cluster-node-timeout {_NODE_TIMEOUT}",
    # Redis's own default, and the harder one for clients: while a part of the slots
    # has no primary, all nodes refuse.
    "cluster-require-full-coverage yes",
    # Each replica stays with its primary, for tests to know which takes over.
    "cluster-allow-replica-migration no",
    # A replica is never too old to be elected.
    "cluster-replica-validity-factor 0",
    f"cluster-announce-ip {_HOST}",
    f"cluster-announce-hostname {ADDRESS}",
    "cluster-preferred-endpoint-type hostname",
    # Replicas follow at once; nodes name those to clients that they know to do so.
    "repl-diskless-sync-delay 0",
    "repl-ping-replica-period 1",
    f"masteruser {ADMIN}",
)
#: The troubles that all nodes of a cluster can have at once.
FAULTS = ("full", "max_clients")


@dataclass(frozen=True)
class Node:
    """One of the cluster's nodes, as it sees itself; a dead one, as others see it.

    `role` is "primary" or "replica"; `replica_of` is the number of its primary.
    """

    number: int
    address: str
    role: str
    alive: bool
    replica_of: int | None
    slots: int


@dataclass(frozen=True)
class _Seen:
    """A line of CLUSTER NODES."""

    node_id: str
    port: int
    role: str
    failing: bool
    primary_id: str
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, line: str) -> "_Seen":
        node_id, address, flags, primary_id, *rest = line.split()
        words = flags.split(",")
        ranges = []
        for word in rest[4:]:
            if not word.startswith("["):  # a slot on its way
                first, _, last = word.partition("-")
                ranges.append((int(first), int(last or first)))
        return cls(
            node_id,
            int(address.partition("@")[0].rpartition(":")[2]),
            "replica" if "slave" in words else "primary",
            not {"fail", "fail?", "handshake", "noaddr"}.isdisjoint(words),
            primary_id,
            tuple(ranges),
        )

    @property
    def slots(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    @property
    def gist(self) -> tuple[object, ...]:
        """What all nodes have to agree upon."""
        return self.node_id, self.role, self.failing, self.primary_id, self.ranges


class Member:
    """A node's server and its ports, which are its own as long as the cluster is."""

    def __init__(
        self, number: int, directory: Path, executable: str, accounts: Accounts
    ) -> None:
        self._held = _hold_ports()
        self.port: int = self._held[0].getsockname()[1]
        self.node_id = ""
        directory /= f"node-{number}"
        directory.mkdir(mode=0o700, exist_ok=True)
        # A cluster that was in this directory before is another one.
        (directory / "nodes.conf").unlink(missing_ok=True)
        self.server = Server(
            directory,
            executable,
            accounts=accounts,
            port=self.port,
            node=number,
            configuration=(*_CONFIGURATION, f"masterauth {accounts.admin_password}"),
        )
        self.last = Node(number, f"{ADDRESS}:{self.port}", "primary", False, None, 0)

    @property
    def number(self) -> int:
        """Which it is, from 1."""
        return self.last.number

    @property
    def alive(self) -> bool:
        """Whether its server runs."""
        return self.server.running

    def ask(self, *words: str | bytes | int) -> Any:
        """Run one of the administrator's commands.

        CLUSTER is a word of its own here, so that redis-py does not parse the reply.
        """
        return self.server.execute(*words)

    def view(self) -> list[_Seen]:
        """Return all nodes as this one sees them, itself first."""
        lines = self.ask("CLUSTER", "NODES").decode().splitlines()
        lines.sort(key=lambda line: "myself" not in line)
        return [_Seen.parse(line) for line in lines]

    def serves(self) -> bool:
        """Tell whether it takes the cluster for whole."""
        return b"cluster_state:ok" in self.ask("CLUSTER", "INFO")

    def follows(self) -> bool:
        """Tell whether it has all that its primary has; a primary has."""
        info = self.ask("INFO", "replication")
        return bool(info.get("master_link_status", "up") == "up")

    def endpoints(self) -> set[tuple[str, int]]:
        """Return where it sends clients to."""
        return {
            (host.decode(), port)
            for _, _, *nodes in self.ask("CLUSTER", "SLOTS")
            for host, port, *_ in nodes
        }

    def free(self) -> None:
        """Give the ports back."""
        for sock in self._held:
            sock.close()


def _hold_ports() -> list[socket.socket]:
    """Keep a port that is free at both addresses, and so is the one of its bus."""
    while True:
        held = [hold(_HOST, 0)]
        port = held[0].getsockname()[1]
        try:
            # Of a port that it is not free to choose, hold() takes no notice of who
            # else holds it: another cluster, for a node that is about to start.
            with socket.socket() as probe:
                probe.bind((_HOST, port + _BUS))
            held.append(hold(_HOST, port + _BUS))
            held.append(hold(ADDRESS, port))
        except (OSError, OverflowError):  # taken, or beyond the last port
            for sock in held:
                sock.close()
        else:
            return held


def check_server(executable: str | None) -> str:
    """Return the redis-server, or else the first that there is, for such a cluster."""
    needed = "a cluster needs Linux and a redis-server of version 7.0 or later"
    if sys.platform != "linux":
        raise ServerError(f"{needed}; this is {sys.platform}")
    lacking = "there is none on PATH"
    for candidate in find_servers() if executable is None else [executable]:
        said = subprocess.run(
            [candidate, "--version"], capture_output=True, text=True, check=False
        ).stdout
        version = re.search(r"v=(\d+)\.", said)
        if version is not None and int(version[1]) >= _OLDEST:
            return candidate
        lacking = f"{candidate} says {said.strip()!r} of itself"
    raise ServerError(f"{needed}; {lacking}")


class Cluster:
    """A Redis Cluster of so many primaries, each with a replica from three on.

    Its methods wait for the nodes, some of them for seconds: they are not for the
    thread through which the clients' traffic goes.
    """

    def __init__(self, directory: Path, executable: str | None, primaries: int) -> None:
        self.members: dict[int, Member] = {}
        self._directory = directory
        self._executable = executable
        self._primaries = primaries
        self._accounts = Accounts()
        self._starting = threading.Lock()
        self._stopped = False
        self._changing = threading.Lock()

    @property
    def kind(self) -> str:
        """What runs: the path of a redis-server."""
        return str(self._executable)

    @property
    def url(self) -> str:
        """The administrator's URL of the first node that lives."""
        return next(iter([*self._live(), self.members[1]])).server.url

    # -- start and stop

    def launch(self, users: dict[str, str]) -> None:
        """Start the nodes' processes with `users` and their ACL rules."""
        if not 0 < self._primaries <= SLOTS:
            raise ServerError(
                f"a cluster has 1 to {SLOTS} primaries, not {self._primaries}"
            )
        self._executable = check_server(self._executable)
        self._accounts.fill(users)
        replicas = self._primaries if self._primaries >= _ELECTABLE else 0
        for _ in range(self._primaries + replicas):
            self._make().server.launch()

    def wait(self) -> None:
        """Return when the nodes make up a cluster that serves every slot."""
        members = list(self.members.values())
        for member in members:
            self._greet(member)
        primaries = members[: self._primaries]
        for number, member in enumerate(members):
            # Or they would have to find out who is the newer one, step by step.
            member.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, primary in enumerate(primaries):
            first, end = (
                SLOTS * place // self._primaries for place in (number, number + 1)
            )
            primary.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for number, member in enumerate(members):
            # Each meets each: hearsay would take a second more.
            for other in members[:number]:
                member.ask("CLUSTER", "MEET", _HOST, other.port)
        replicas = members[self._primaries :]
        self._until(
            lambda: all(map(_knows, replicas, primaries)), "the nodes do not meet"
        )
        for replica, primary in zip(replicas, primaries, strict=False):
            replica.ask("CLUSTER", "REPLICATE", primary.node_id)
        self.settle()

    def stop(self) -> None:
        """End all processes."""
        with self._starting:
            self._stopped = True
            for member in self.members.values():
                member.server.stop()
                member.free()

    def forget(self) -> None:
        """Let go of everything in a forked child: it is the parent's."""
        for member in self.members.values():
            member.server.forget()
            member.free()

    def _make(self) -> Member:
        number = len(self.members) + 1
        member = Member(number, self._directory, self.kind, self._accounts)
        self.members[number] = member
        return member

    def _start(self, member: Member) -> None:
        # No server starts after all have been stopped.
        with self._starting:
            if self._stopped:
                raise ServerError("the cluster has been stopped")
            member.server.launch()
            self._greet(member)

    def _greet(self, member: Member) -> None:
        member.server.wait()
        member.node_id = member.ask("CLUSTER", "MYID").decode()

    # -- looking

    def member(self, number: int) -> Member:
        """Return a node."""
        if number not in self.members:
            raise ValueError(f"node is one of 1 to {len(self.members)}, not {number!r}")
        return self.members[number]

    def nodes(self) -> list[Node]:
        """Return all nodes, the dead ones too."""
        members = list(self.members.values())
        numbers = {member.node_id: member.number for member in members}
        views = {}
        for member in members:
            with contextlib.suppress(redis.RedisError, ServerError):
                views[member.number] = member.view()
        for member in members:
            views_of_it = [
                seen
                for view in (views.get(member.number, []), *views.values())
                for seen in view
                if seen.node_id == member.node_id
            ]
            member.last = replace(member.last, alive=member.number in views)
            if views_of_it:
                seen = views_of_it[0]
                member.last = replace(
                    member.last,
                    role=seen.role,
                    replica_of=numbers.get(seen.primary_id),
                    slots=len(list(seen.slots)),
                )
        return [member.last for member in members]

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until the nodes that live agree, and serve every slot."""
        self._until(self._settled, "the nodes do not come to agree", timeout)

    def _settled(self) -> bool:
        live = self._live()
        views = [member.view() for member in live]
        themselves = {view[0].node_id: view[0].gist for view in views}
        for view in views:
            seen = {line.node_id: line.gist for line in view}
            if not themselves.items() <= seen.items():
                return False
        owners = {view[0].node_id for view in views if view[0].ranges}
        endpoints = {
            (ADDRESS, view[0].port)
            for view in views
            if not owners.isdisjoint((view[0].node_id, view[0].primary_id))
        }
        return sum(len(list(view[0].slots)) for view in views) == SLOTS and all(
            member.serves() and member.follows() and member.endpoints() == endpoints
            for member in live
        )

    def _in_step(self, member: Member) -> bool:
        """Tell whether a node that came (back) and the others are of one mind."""
        others = self._live()
        others.remove(member)
        itself = member.view()[0]
        return (
            all(itself.gist in [line.gist for line in other.view()] for other in others)
            and member.follows()
            and (member.serves() or not all(other.serves() for other in others))
        )

    def _until(
        self, condition: Callable[[], bool], trouble: str, timeout: float = 30.0
    ) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                if condition():
                    return
            except redis.RedisError:
                pass  # a node that has just died
            if self._stopped or time.monotonic() > deadline:
                raise ServerError(f"{trouble}: {self.nodes()}")
            time.sleep(_LOOK_EVERY)

    # -- changing

    def set_user(self, object_id: str, rules: str) -> None:
        """Create or change a user, on all nodes."""
        account = self._accounts.draft(object_id, rules)
        for member in self._live():
            member.server.grant(object_id, account)
        self._accounts.keep(object_id, account)

    def delete_user(self, object_id: str) -> None:
        """Delete a user, on all nodes."""
        for member in self._live():
            member.server.delete_user(object_id)

    def set_fault(self, mode: str | None) -> None:
        """Have all nodes be in trouble, or no longer."""
        if mode not in (None, *FAULTS):
            raise ValueError(
                f"a cluster's mode is one of {', '.join(FAULTS)}, not {mode!r}"
            )
        for member in self._live():
            member.server.set_fault(mode)

    def kill(self, number: int) -> None:
        """Have a node's server end at once, with SIGKILL."""
        self.member(number).server.stop()

    def restart(self, number: int) -> None:
        """Start a node anew that was killed: who it was, but without its data."""
        member = self.member(number)
        if member.alive:
            raise ValueError(f"node {number} is running")
        self._start(member)
        self._until(lambda: self._in_step(member), f"node {number} does not come back")

    def add(self) -> Member:
        """Have a new primary join, without slots."""
        with self._changing:
            member = self._make()
            self._start(member)
            for other in self._live():
                if other is not member:
                    member.ask("CLUSTER", "MEET", _HOST, other.port)
            self._until(lambda: self._in_step(member), "the new node does not join")
            return member

    def failover(self, number: int) -> None:
        """Have a replica and its primary change places, and lose nothing."""
        member = self.member(number)
        with self._changing:
            if not member.alive or member.view()[0].role != "replica":
                raise ValueError(f"node {number} is no running replica")
            ask_at = 0.0

            def over() -> bool:
                nonlocal ask_at
                if member.view()[0].role == "primary":
                    return self._settled()
                if time.monotonic() >= ask_at:
                    # Redis gives it up after 5 s, without a word.
                    member.ask("CLUSTER", "FAILOVER")
                    ask_at = time.monotonic() + 5.5
                return False

            self._until(over, f"node {number} does not take over")

    def migrate(self, source: int, target: int, count: int, pause: float = 0.0) -> None:
        """Move the first `count` of one primary's slots to another, one by one.

        Each slot stays for `pause` seconds with the first half of its keys moved.
        """
        giver, taker = self.member(source), self.member(target)
        with self._changing:
            for member in (giver, taker):
                if not member.alive or member.view()[0].role != "primary":
                    raise ValueError(f"node {member.number} is no running primary")
            slots = list(giver.view()[0].slots)
            if giver is taker or not 0 < count <= len(slots):
                raise ValueError(
                    f"node {source} has {len(slots)} slots to give to another node"
                )
            others = [
                member
                for member in self._live()
                if member not in (giver, taker) and member.view()[0].role == "primary"
            ]
            for slot in slots[:count]:
                self._move(slot, giver, taker, pause)
                for member in others:
                    # One that has changed meanwhile hears of it from the others.
                    with contextlib.suppress(redis.RedisError, ServerError):
                        member.ask("CLUSTER", "SETSLOT", slot, "NODE", taker.node_id)

    def _move(self, slot: int, giver: Member, taker: Member, pause: float) -> None:
        taker.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", giver.node_id)
        giver.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", taker.node_id)
        if pause:
            half = (giver.ask("CLUSTER", "COUNTKEYSINSLOT", slot) + 1) // 2
            self._move_keys(slot, half, giver, taker)
            time.sleep(pause)
        while self._move_keys(slot, _KEYS_AT_ONCE, giver, taker):
            pass
        # The new owner first: it must know before anybody is sent there.
        for member in (taker, giver):
            member.ask("CLUSTER", "SETSLOT", slot, "NODE", taker.node_id)

    def _move_keys(self, slot: int, count: int, giver: Member, taker: Member) -> bool:
        keys = giver.ask("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            giver.ask(
                *("MIGRATE", _HOST, taker.port, "", 0, _MIGRATED_WITHIN),
                *("AUTH2", ADMIN, self._accounts.admin_password, "KEYS", *keys),
            )
        return bool(keys)

    def _live(self) -> list[Member]:
        return [member for member in list(self.members.values()) if member.alive]


def _knows(member: Member, other: Member) -> bool:
    return any(
        seen.node_id == other.node_id and not seen.failing for seen in member.view()
    )
