"""The servers that are measured against: a Redis, and Entra with a Redis behind it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from emulator import EmulatorControl
from emulator.certificates import CertificateAuthority
from emulator.sockets import free_port

START_TIMEOUT = 30.0
SLOTS = 16384


class ServerError(Exception):
    """A server does not start."""


class _Process:
    """A process with a directory of its own; stopped, by its id, at the end.

    Parameters:
        cpus: those that it may run on; none for any.
    """

    def __init__(self, cpus: Sequence[int] = ()) -> None:
        self.cpus = cpus
        self.directory = Path(tempfile.mkdtemp(prefix="benchmarks-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start."""
        try:
            with (self.directory / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    self.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C is for the measuring process, which then stops its own.
                    process_group=0,
                )
            if self.cpus:
                os.sched_setaffinity(self._process.pid, self.cpus)
            deadline = time.monotonic() + START_TIMEOUT
            while not self.ready():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log_text = (self.directory / "log").read_text(errors="replace")
                    raise ServerError(f"{self.command()[0]}: {log_text[-2000:]}")
                time.sleep(0.01)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def command(self) -> list[str]:
        """Return what to run."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it serves."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the process; remove its directory."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self.directory, ignore_errors=True)


class RedisServer(_Process):
    """A redis-server on a free port.

    Parameters:
        executable: its path.
        cpus: those that it may run on; none for any.
        options: further words of its command line.
    """

    def __init__(
        self, executable: str, cpus: Sequence[int] = (), *options: str
    ) -> None:
        super().__init__(cpus)
        self.executable = executable
        self._options = options
        #: The authority of its TLS certificate; it has none.
        self.ca_file: Path | None = None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._looks = 0

    def command(self) -> list[str]:
        """Return what to run."""
        return [
            self.executable,
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(self.directory)),
            *self._options,
        ]

    def ready(self) -> bool:
        """Whether it serves."""
        try:
            with self.client() as client:
                client.ping()
        except redis.ConnectionError:
            return False
        self._looks += 1
        return True

    def another(self) -> "RedisServer":
        """Return a further one of the same kind, to be started."""
        return RedisServer(self.executable, self.cpus)

    def connections_opened(self) -> int:
        """Return how many connections clients have opened since it serves."""
        opened: int = self.info("stats")["total_connections_received"]
        # Each look takes one, and so did each try whether it serves yet.
        self._looks += 1
        return opened - self._looks

    def info(self, section: str) -> dict[str, Any]:
        """Return what Redis tells of itself."""
        with self.client() as client:
            told: dict[str, Any] = client.info(section)
            return told

    def client(self) -> redis.Redis:
        """Return a client of it."""
        return redis.Redis.from_url(self.url)


class TlsServer(RedisServer):
    """A redis-server that speaks TLS, its own.

    ``ca_file`` has the authority that its certificate is of.
    """

    def __init__(self, executable: str, cpus: Sequence[int] = ()) -> None:
        super().__init__(executable, cpus)
        authority = CertificateAuthority()
        self.ca_file = self.directory / "ca.pem"
        self.ca_file.write_bytes(authority.pem)
        own = self.directory / "server.pem"
        own.write_bytes(authority.server_pem("localhost"))
        self._options = (
            *("--tls-port", str(self.port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(own), "--tls-key-file", str(own)),
        )
        self.url = f"rediss://localhost:{self.port}"

    def command(self) -> list[str]:
        """Return what to run."""
        return [*super().command(), "--port", "0"]

    def client(self) -> redis.Redis:
        """Return a client of it."""
        return redis.Redis.from_url(self.url, ssl_ca_certs=str(self.ca_file))

    def another(self) -> "TlsServer":
        """Return a further one of the same kind, to be started."""
        return TlsServer(self.executable, self.cpus)


class ClusterServers:
    """A Redis Cluster of primaries alone, with nothing before it.

    Parameters:
        executable: path of redis-server.
        cpus: those that it may run on; none for any.
        primaries: how many there are.
    """

    def __init__(
        self, executable: str, cpus: Sequence[int] = (), primaries: int = 3
    ) -> None:
        self._nodes = []
        for _ in range(primaries):
            # The port of the cluster's bus is free to choose.
            bus = str(free_port())
            words = ("--cluster-enabled", "yes", "--cluster-port", bus)
            self._nodes.append((RedisServer(executable, cpus, *words), bus))
        self._stack = ExitStack()
        self.url = self._nodes[0][0].url

    def __enter__(self) -> Self:
        """Start the nodes, have them meet and share the slots."""
        with ExitStack() as stack:
            first, bus = self._nodes[0]
            share = -(-SLOTS // len(self._nodes))
            clients = []
            for number, (node, _) in enumerate(self._nodes):
                stack.enter_context(node)
                client: Any = stack.enter_context(redis.Redis.from_url(node.url))
                begin, end = share * number, min(share * (number + 1), SLOTS) - 1
                client.execute_command("CLUSTER ADDSLOTSRANGE", begin, end)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                clients.append(client)
            for client in clients[1:]:
                client.execute_command("CLUSTER MEET", "127.0.0.1", first.port, bus)
            deadline = time.monotonic() + START_TIMEOUT
            while not all(map(self._agrees, clients)):
                if time.monotonic() > deadline:
                    raise ServerError("the nodes of a cluster do not agree")
                time.sleep(0.05)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self._stack.close()

    def _agrees(self, client: Any) -> bool:
        told = str(client.execute_command("CLUSTER INFO"))
        nodes = f"cluster_known_nodes': '{len(self._nodes)}'"
        return "cluster_state': 'ok'" in told and nodes in told


class EmulatorProcess(_Process):
    """The emulator, in a process of its own: its CPU time is not the client's."""

    def command(self) -> list[str]:
        """Return what to run."""
        module = [sys.executable, "-m", "emulator"]
        return [*module, "--directory", str(self.directory)]

    def ready(self) -> bool:
        """Whether it serves."""
        return "Ready." in (self.directory / "log").read_text(errors="replace")

    @property
    def control(self) -> EmulatorControl:
        """Its controls."""
        return EmulatorControl.from_file(self.directory / "emulator.json")

    @property
    def description(self) -> dict[str, Any]:
        """What it says of itself: addresses, identities, environments."""
        told: dict[str, Any] = json.loads(
            (self.directory / "emulator.json").read_text()
        )
        return told
