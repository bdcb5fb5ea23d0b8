"""Error replies in other words, in their places among the replies of a server."""

import secrets
from collections import deque
from dataclasses import dataclass

from emulator.commands import Command

# Each release of Redis quotes the command's name in its own way.
_BEFORE = (b"-ERR unknown command '", b"-ERR unknown command `")


@dataclass(frozen=True)
class _Refusal:
    name: bytes
    error: bytes

    @property
    def beginnings(self) -> tuple[bytes, ...]:
        return tuple(before + self.name for before in _BEFORE)


class Refusals:
    """The commands that a server does not know and has not answered yet."""

    def __init__(self) -> None:
        self._pending: deque[_Refusal] = deque()
        self._rest = b""

    def ask(self, error: bytes) -> bytes:
        """Return a command whose reply will be that error."""
        name = b"emulated-" + secrets.token_hex(8).encode()
        self._pending.append(_Refusal(name, error))
        return Command((name,)).encoded()

    def put_into(self, data: bytes) -> bytes:
        """Return what the server has sent, with the errors in the words asked for.

        What may be the beginning of such an error waits for the rest of it.
        """
        data, self._rest = self._rest + data, b""
        done = b""
        while self._pending:
            refusal = self._pending[0]
            start = max(data.find(beginning) for beginning in refusal.beginnings)
            end = data.find(b"\r\n", start) if start >= 0 else -1
            if end < 0:
                start = _beginning(data, refusal) if start < 0 else start
                data, self._rest = data[:start], data[start:]
                break
            done += data[:start] + b"-" + refusal.error
            data = data[end:]
            self._pending.popleft()
        return done + data


def _beginning(data: bytes, refusal: _Refusal) -> int:
    """Return where data ends with a part of a refusal; its length where it does not."""
    return min(
        len(data) - length
        for beginning in refusal.beginnings
        for length in range(len(beginning))
        if data.endswith(beginning[:length])
    )
