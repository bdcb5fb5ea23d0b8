"""The services of Azure, by what each refuses that a redis-server does not.

What is not in a public report or in Azure's documentation is as redis-server has it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from redis.crc import key_slot

from emulator.commands import Command

#: Requests that IMDS of a virtual machine serves in a second
#: (Azure's documentation of managed identities, "Rate limits").
IMDS_LIMIT = 20
#: Those that it serves at a time, and the seconds that each may well take.
IMDS_AT_A_TIME = 5
IMDS_LATENCY = 0.02
_Keys = Callable[[Sequence[bytes]], Sequence[bytes]]


def _all(arguments: Sequence[bytes]) -> Sequence[bytes]:
    return arguments


def _every_other(arguments: Sequence[bytes]) -> Sequence[bytes]:
    return arguments[::2]


def _first_two(arguments: Sequence[bytes]) -> Sequence[bytes]:
    return arguments[:2]


def _but_last(arguments: Sequence[bytes]) -> Sequence[bytes]:
    return arguments[:-1]


def _counted(arguments: Sequence[bytes]) -> Sequence[bytes]:
    count = arguments[1] if len(arguments) > 1 else b"0"
    return arguments[2 : 2 + int(count)] if count.isdigit() else ()


#: Where the keys are in the arguments of commands that may have several.
_KEYS: Mapping[bytes, _Keys] = {
    **dict.fromkeys(
        b"DEL UNLINK MGET EXISTS TOUCH WATCH SINTER SUNION SDIFF SINTERSTORE "
        b"SUNIONSTORE SDIFFSTORE PFCOUNT PFMERGE RENAME RENAMENX".split(),
        _all,
    ),
    **dict.fromkeys(b"MSET MSETNX".split(), _every_other),
    **dict.fromkeys(b"SMOVE COPY LMOVE BLMOVE RPOPLPUSH".split(), _first_two),
    **dict.fromkeys(b"BLPOP BRPOP BZPOPMIN BZPOPMAX".split(), _but_last),
    **dict.fromkeys(b"EVAL EVALSHA FCALL".split(), _counted),
}

#: Commands of which no argument is a key.
_KEYLESS = frozenset(
    b"ACL AUTH CLIENT CLUSTER COMMAND CONFIG DBSIZE DISCARD ECHO EXEC FLUSHALL FLUSHDB "
    b"HELLO INFO KEYS MULTI PING PUBLISH RANDOMKEY RESET SCAN SCRIPT SELECT TIME "
    b"UNWATCH".split()
)

_CROSS_SLOT = b"CROSSSLOT Keys in request don't hash to the same slot"
# redis/jedis#2317, RedisGrafana/grafana-redis-datasource#81, among others.
_NOT_ALLOWED = b"ERR command is not allowed"
_NO_DATABASE = b"ERR DB index is out of range"
#: What an administrator's tools do, which Azure does itself.
_ADMINISTRATION = frozenset(
    b"ACL BGREWRITEAOF BGSAVE DEBUG MIGRATE MODULE PSYNC REPLCONF REPLICAOF SAVE "
    b"SHUTDOWN SLAVEOF SYNC".split()
)
#: Access policies: Azure Managed Redis' only one, and two of Azure Cache for Redis.
FULL_ACCESS = "+@all ~* &*"
DATA_CONTRIBUTOR = "+@all -@dangerous +cluster|info +cluster|nodes +cluster|slots ~* &*"
_READS = frozenset(b"EXISTS MGET TOUCH".split())
_WRITES = frozenset(b"DEL MSET UNLINK".split())


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A service of Azure.

    Parameters:
        name: what it is called on the command line.
        blocked: commands that are refused whatever follows them.
        refusal: the error reply to them; ``%s`` is the command's name.
        one_database: whether SELECT of another database than 0 is refused.
        across_slots: the commands whose keys may be in several slots, ``None``: all.
        primaries: of a cluster that clients see; 0 without one.
        access: the ACL rules of the access policy that principals have.
        auth_refusal: the error reply to a refused AUTH, ``None``: redis-server's own.
        idle_timeout: seconds after which an idle connection is closed.
        wildcard: the name that the servers' certificate has beside the emulator's own
            host; its key is an RSA key, as Azure's are.
        ciphers: the suites of TLS 1.2, as OpenSSL names them; ``None``: its own.
    """

    name: str
    blocked: frozenset[bytes]
    refusal: bytes = _NOT_ALLOWED
    one_database: bool = True
    across_slots: frozenset[bytes] | None = None
    primaries: int = 0
    access: str = FULL_ACCESS
    auth_refusal: str | None = None
    idle_timeout: float = 600.0
    wildcard: str = "*.westeurope.redis.azure.net"
    ciphers: str | None = None

    @property
    def looked_at(self) -> frozenset[bytes]:
        """The names of the commands that it may refuse."""
        names = self.blocked | {b"SELECT"}
        if self.across_slots is None:
            return names
        return names.union(_KEYS, (b"MULTI", b"EXEC", b"DISCARD", b"RESET"))

    @property
    def geo_replicated(self) -> "Profile":
        """The same under active geo-replication."""
        blocked = self.blocked | {b"FLUSHALL", b"FLUSHDB"}
        # An OSS cluster takes none across slots anyway.
        across_slots = None if self.primaries else _READS
        return replace(self, blocked=blocked, across_slots=across_slots)

    def refuses(self, command: Command) -> bytes | None:
        """Return the error reply to a command, without its sign; None for its own."""
        name, arguments = command.name, command.arguments[1:]
        if name in self.blocked:
            word = b"%s" in self.refusal
            return self.refusal % name.lower() if word else self.refusal
        if name == b"SELECT":
            other = self.one_database and list(arguments) != [b"0"]
            return _NO_DATABASE if other else None
        if self.across_slots is None or name in self.across_slots:
            return None
        return _CROSS_SLOT if len(slots_of(command)) > 1 else None


def slots_of(command: Command) -> set[int]:
    """Return the slots of a command's keys."""
    name, arguments = command.name, command.arguments[1:]
    if name in _KEYLESS:
        return set()
    keys = _KEYS[name](arguments) if name in _KEYS else arguments[:1]
    return {key_slot(key) for key in keys}


class Transaction:
    """What a connection has said since MULTI: all its keys are to be in one slot."""

    def __init__(self) -> None:
        self._slots: set[int] | None = None

    def refuses(self, command: Command) -> bytes | None:
        """Return the error reply to a command, without its sign; None for its own.

        The server behind then refuses EXEC, since it does not know what it is sent in
        place of the command.
        """
        if command.name in (b"EXEC", b"DISCARD", b"RESET"):
            self._slots = None
        elif self._slots is not None:
            slots = self._slots | slots_of(command)
            if len(slots) > 1:
                return _CROSS_SLOT
            self._slots = slots
        elif command.name == b"MULTI":
            self._slots = set()
        return None


_MANAGED = Profile(
    name="amr-nocluster",
    blocked=_ADMINISTRATION | {b"CLUSTER"},
    ciphers="ECDHE-RSA-AES256-SHA384:ECDHE-RSA-AES128-SHA256",
)
PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        replace(_MANAGED, name="amr-enterprise", across_slots=_READS | _WRITES),
        # Its nodes refuse the rest themselves.
        replace(_MANAGED, name="amr-oss", blocked=_ADMINISTRATION, primaries=3),
        _MANAGED,
        Profile(
            name="acr",
            blocked=_ADMINISTRATION | {b"CONFIG"},
            # patrikx3/redis-ui#26, among others.
            refusal=b"ERR unknown command '%s'",
            one_database=False,
            wildcard="*.redis.cache.windows.net",
            access=DATA_CONTRIBUTOR,
            # dapr/components-contrib#3554, sonus21/rqueue#253.
            auth_refusal="ERR WRONGPASS invalid username-password pair",
        ),
    )
}
_REPLICATED = ("amr-enterprise", "amr-oss")


def find_profile(name: str, *, geo_replicated: bool) -> Profile:
    """Return the profile of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PROFILES:
        raise ValueError(f"profile is one of {', '.join(PROFILES)}, not {name!r}")
    profile = PROFILES[name]
    if geo_replicated:
        if name not in _REPLICATED:
            known = " and ".join(_REPLICATED)
            raise ValueError(f"active geo-replication is for {known}, not {name!r}")
        return profile.geo_replicated
    return profile
