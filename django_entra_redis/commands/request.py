"""Requests: commands that a client is to carry out, and where."""

from collections.abc import Sequence
from typing import Any

from .packing import pack_all
from .replies import Parse

#: Commands that change nothing, though they go to the server that is written to.
_READING = frozenset({"EXISTS", "GET", "MGET", "PTTL", "SCAN", "TTL"})


class Request:
    """Commands to carry out.

    Parameters:
        command: one command's words, or any number of commands packed.
        count: 0 for one command, whose reply is wanted; else how many commands there
            are, whose replies are wanted as a list. Error replies stand in there.
        key: the key that decides which node of a cluster it is for.
        keys: the keys of several commands.
        write: whether it must be the server that is written to.
        once: whether it must not be applied twice.
        parse: returns what a reply that is no error says, or raises that it is none.
    """

    __slots__ = ("command", "count", "key", "keys", "once", "parse", "write")

    @property
    def changes(self) -> Sequence[str | bytes] | None:
        """The keys that it may change; ``None``: any of them."""
        packed = isinstance(self.command, bytes)
        if not self.write or (not packed and self.command[0] in _READING):
            return ()
        if self.key is not None:
            return (self.key,)
        return self.keys or None

    @property
    def name(self) -> str:
        """The command's name; of several, packed already, what they are."""
        return "commands" if isinstance(self.command, bytes) else str(self.command[0])

    @property
    def verb(self) -> str:
        """The name of the command, or of the first of them."""
        if isinstance(self.command, bytes):
            # After its array's header and its own length.
            return self.command.split(b"\r\n", 3)[2].decode()
        return str(self.command[0])

    @property
    def packed(self) -> bytes:
        """The commands as they are sent.

        Raises:
            TypeError, ValueError: an argument can't be sent.
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
        """Return what the reply, or the replies, say.

        Raises:
            InvalidReplyError: that is no reply to such a command.
        """
        parse = self.parse
        if parse is None:
            return replies
        if not self.count:
            return parse(replies)
        return [
            reply if isinstance(reply, Exception) else parse(reply) for reply in replies
        ]


class Batch(Request):
    """Commands with a key each, whose replies are wanted in the same order.

    Error replies stand in there.
    """

    __slots__ = ("commands",)

    def __init__(
        self,
        commands: Sequence[bytes],
        keys: Sequence[str | bytes],
        *,
        write: bool = True,
        parse: Parse | None = None,
    ) -> None:
        super().__init__(b"", len(commands), keys=keys, write=write, parse=parse)
        self.commands = commands

    @property
    def verb(self) -> str:
        """The name of the first command."""
        return self.single(0).verb

    def part(self, places: Sequence[int]) -> Request:
        """Return the request for the commands in some places."""
        commands = [self.commands[place] for place in places]
        packed = b"".join(commands)
        return Request(packed, len(commands), write=self.write, parse=self.parse)

    def single(self, place: int) -> Request:
        """Return the request for the command in one place."""
        return Request(
            self.commands[place],
            key=self.keys[place],
            write=self.write,
            parse=self.parse,
        )


class Broadcast(Request):
    """A command for each primary; the replies are wanted by its address."""

    __slots__ = ()

    def to(self, address: str) -> "Visit":
        """Return the request for one of them."""
        return Visit(self.command, address, self.parse)


class Visit(Request):
    """A command for one primary, of that address."""

    __slots__ = ("address",)

    def __init__(
        self,
        command: tuple[Any, ...] | bytes,
        address: str,
        parse: Parse | None = None,
    ) -> None:
        super().__init__(command, parse=parse)
        self.address = address
