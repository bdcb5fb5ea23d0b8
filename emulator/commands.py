"""A client's stream of Redis commands, cut where it authenticates."""

from dataclasses import dataclass

# Longer than any command name; a longer one is not looked at.
_MAX_NAME = 64
_MAX_HELD = 1024 * 1024
AUTHENTICATING = frozenset((b"AUTH", b"HELLO"))
SUBSCRIBING = frozenset((b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"))
UNSUBSCRIBING = frozenset((b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE", b"RESET"))
_NOTED = SUBSCRIBING | UNSUBSCRIBING
_ENDING = frozenset((b"EXEC", b"DISCARD", b"RESET"))


@dataclass(frozen=True, repr=False)
class Command:
    """A whole command that the gateway has to see."""

    arguments: tuple[bytes, ...]

    @property
    def name(self) -> bytes:
        """The command's name in upper case."""
        return self.arguments[0].upper()

    def encoded(self) -> bytes:
        """Return the command as it goes over the wire."""
        return b"*%d\r\n" % len(self.arguments) + b"".join(
            b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in self.arguments
        )


class CommandStream:
    """Splits a stream into bytes to pass on and AUTH, HELLO or other `held` commands.

    Values are not collected: only a command's name and the lengths that follow are
    looked at, so a large value passes through piece by piece. What is not RESP is
    passed on as it is, for Redis to complain about. Where MULTI is held, so is all that
    follows, to the end of the transaction.
    """

    def __init__(self, held: frozenset[bytes] = frozenset()) -> None:
        self.commands = 0
        self._names = AUTHENTICATING | held
        self._in_transaction = False
        # The last (un)subscribing command's name, None when there was none.
        self.noted: bytes | None = None
        self._rest = b""
        self._skip = 0
        self._bulks = 0
        self._broken = False

    def feed(self, data: bytes) -> list[bytes | Command]:
        """Return what `data` completes, in order."""
        if self._broken:
            return [data]
        if self._rest:
            data = self._rest + data
        pieces: list[bytes | Command] = []
        try:
            start, end = self._split(data, pieces)
        except ValueError:
            self._broken = True
            self._rest = b""
            pieces.append(data)
            return pieces
        if end > start:
            pieces.append(data[start:end] if (start or end < len(data)) else data)
        self._rest = data[end:]
        if len(self._rest) > _MAX_HELD:
            self._broken = True
            pieces.append(self._rest)
            self._rest = b""
        return pieces

    def _split(self, data: bytes, pieces: list[bytes | Command]) -> tuple[int, int]:
        """Append to `pieces`; return the bounds of what may follow them."""
        start = position = 0
        length = len(data)
        while True:
            if self._skip:
                step = min(self._skip, length - position)
                position += step
                self._skip -= step
                if self._skip:
                    return start, position
            if self._bulks:
                line = data.find(b"\r\n", position)
                if line < 0:
                    return start, position
                self._skip = _length(data, position, line, b"$") + 2
                position = line + 2
                self._bulks -= 1
                continue
            if position >= length:
                return start, position
            command, after = self._begin(data, position)
            if after < 0:
                return start, position
            if command is not None:
                if position > start:
                    pieces.append(data[start:position])
                pieces.append(command)
                start = after
            position = after

    def _begin(self, data: bytes, position: int) -> tuple[Command | None, int]:
        """Read a command's beginning; return it, if it is held, and where it ends.

        A negative end means that more is needed.
        """
        line = data.find(b"\r\n", position)
        if data[position] != 0x2A:  # "*": what is not an array is an inline command
            return self._inline(data, position)
        if line < 0:
            return None, -1
        number = _length(data, position, line, b"*")
        if number <= 0:
            return None, line + 2
        size_line = data.find(b"\r\n", line + 2)
        if size_line < 0:
            return None, -1
        size = _length(data, line + 2, size_line, b"$")
        begin = size_line + 2
        if size > _MAX_NAME:
            self.commands += 1
            self._bulks = number - 1
            self._skip = size + 2
            return None, begin
        if len(data) < begin + size + 2:
            return None, -1
        name = data[begin : begin + size].upper()
        begin += size + 2
        if name in _NOTED:
            self.noted = name
        if not (self._in_transaction or name in self._names):
            self.commands += 1
            self._bulks = number - 1
            return None, begin
        arguments = [name]
        for _ in range(number - 1):
            line = data.find(b"\r\n", begin)
            if line < 0:
                return None, -1
            size = _length(data, begin, line, b"$")
            begin = line + 2
            if len(data) < begin + size + 2:
                return None, -1
            arguments.append(data[begin : begin + size])
            begin += size + 2
        self.commands += 1
        if name == b"MULTI":
            self._in_transaction = True
        elif name in _ENDING:
            self._in_transaction = False
        return Command(tuple(arguments)), begin

    def _inline(self, data: bytes, position: int) -> tuple[Command | None, int]:
        line = data.find(b"\n", position)
        if line < 0:
            return None, -1
        words = data[position:line].split()
        if not words:
            return None, line + 1
        self.commands += 1
        if words[0].upper() in self._names:
            return Command(tuple(words)), line + 1
        return None, line + 1


def _length(data: bytes, position: int, line: int, kind: bytes) -> int:
    if data[position : position + 1] != kind:
        raise ValueError("not RESP")
    number = int(data[position + 1 : line])
    if number < 0 and kind == b"$":
        raise ValueError("not RESP")
    return number
