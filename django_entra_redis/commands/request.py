"""Requests: commands for a client to carry out, and where to do so."""

from collections.abc import Callable, Sequence
from typing import Any

from .packing import pack_all
from .replies import AS_THEY_ARE, NOTHING, Parse

#: Commands that change nothing, even in a request for the server that takes the writes.
_READING = frozenset({"EXISTS", "GET", "MGET", "PTTL", "SCAN", "TTL"})


class Request:
    """Commands to carry out.

    Parameters:
        command: the words of one command, or any number of packed commands.
        count: 0 for one command, with one reply; otherwise the number of commands, with
            a list of replies, in which error replies are exceptions.
        key: the key of one command, which decides the node of a cluster.
        keys: the keys of several commands.
        write: whether it must go to the server that takes the writes.
        once: whether it must not be carried out twice.
        parse: parses each reply that is not an error.
    """

    __slots__ = ("command", "count", "key", "keys", "once", "parse", "write")

    @property
    def changes(self) -> Sequence[str | bytes] | None:
        """The keys that the commands may change; ``None``: any key."""
        packed = isinstance(self.command, bytes)
        if not self.write or (not packed and self.command[0] in _READING):
            return ()
        if self.key is not None:
            return (self.key,)
        return self.keys or None

    @property
    def modifies(self) -> bool:
        """Whether the commands may change a key: a replica would refuse them."""
        return self.changes != ()

    @property
    def name(self) -> str:
        """The command's name in messages; "commands" if they are packed."""
        return "commands" if isinstance(self.command, bytes) else str(self.command[0])

    @property
    def verb(self) -> str:
        """The name of the command, or of the first of them."""
        if isinstance(self.command, bytes):
            # After its array's header and its own length.
            return self.packed.split(b"\r\n", 3)[2].decode()
        return str(self.command[0])

    @property
    def packed(self) -> bytes:
        """The commands as bytes.

        Raises:
            TypeError, ValueError: an argument can't be encoded.
        """
        command = self.command
        return command if isinstance(command, bytes) else pack_all([command])

    def __init__(
        self,
        command: tuple[Any, ...] | bytes,
        count: int = 0,
        *,
        key: str | bytes | None = None,
        keys: Sequence[str | bytes] = (),
        write: bool = True,
        once: bool = False,
        parse: Parse | None = None,
    ) -> None:
        self.command = command
        self.count = count
        self.key = key
        self.keys = keys
        self.write = write
        self.once = once
        self.parse = parse

    def read(self, replies: Any) -> Any:
        """Return the parsed reply, or replies.

        Raises:
            InvalidReplyError: a reply does not fit its command.
        """
        parse = self.parse
        if parse is None:
            return replies
        if not self.count:
            return parse(replies)
        if AS_THEY_ARE.get(parse, NOTHING).issuperset(map(type, replies)):
            return replies
        return [
            reply if isinstance(reply, Exception) else parse(reply) for reply in replies
        ]


class Batch(Request):
    """Commands with one key each, whose nodes may differ.

    The replies come in the order of the keys, error replies as exceptions.

    Parameters:
        pack: packs the commands of the keys at some indexes.
        keys: the keys.
        write, parse: see :class:`Request`.
    """

    __slots__ = ("pack",)

    def __init__(
        self,
        pack: Callable[[Sequence[int]], bytes],
        keys: Sequence[str | bytes],
        *,
        write: bool = True,
        parse: Parse | None = None,
    ) -> None:
        super().__init__(b"", len(keys), keys=keys, write=write, parse=parse)
        self.pack = pack

    @property
    def packed(self) -> bytes:
        """All commands as bytes."""
        return self.pack(range(len(self.keys)))

    def part(self, indexes: Sequence[int]) -> Request:
        """Return the request for the commands of the keys at some indexes."""
        packed = self.pack(indexes)
        return Request(packed, len(indexes), write=self.write, parse=self.parse)

    def single(self, index: int) -> Request:
        """Return the request for the command of one key."""
        key, packed = self.keys[index], self.pack([index])
        return Request(packed, key=key, write=self.write, parse=self.parse)


class Broadcast(Request):
    """A command for all primaries; the replies come by the primaries' addresses."""

    __slots__ = ()

    def to(self, address: str) -> "Visit":
        """Return the request for one primary."""
        return Visit(self.command, address, self.parse)


class Visit(Request):
    """A command for the primary at an address."""

    __slots__ = ("address",)

    def __init__(
        self,
        command: tuple[Any, ...] | bytes,
        address: str,
        parse: Parse | None = None,
    ) -> None:
        super().__init__(command, parse=parse)
        self.address = address
