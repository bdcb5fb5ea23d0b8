"""Replies and push messages of RESP 3, as a tracking connection gets them.

hiredis reads them from its version 3 on. Else this does, as far as Redis sends them
there.
"""

from typing import Any

from .resp import (
    Array,
    MakeError,
    PythonReader,
    ReplyReader,
    array_size,
    hiredis_reader,
    safely,
)

try:
    import hiredis
except ImportError:  # pragma: no cover - one of the two is covered in each environment
    hiredis = None  # type: ignore[assignment]

_PUSH, _MAP, _SET, _NULL = b">%~_"


class Push(list[Any]):
    """A message that no command has asked for."""


#: The class of such messages.
PUSH: Any = getattr(hiredis, "PushNotification", Push)


class PushReader(PythonReader):
    """Reads replies and push messages; maps and sets become lists of their items."""

    def other(self, kind: int, line: bytes) -> Any:
        """Return what a line that RESP 2 does not know stands for.

        Raises:
            InvalidResponse: nothing that is expected here.
        """
        if kind == _NULL:
            return None
        if kind == _PUSH:
            return Array(array_size(line), Push)
        if kind == _MAP:
            return Array(2 * array_size(line))
        if kind == _SET:
            return Array(array_size(line))
        return super().other(kind, line)


def make_push_reader(make_error: MakeError) -> ReplyReader:
    """Return a reader of replies and push messages.

    Parameters:
        make_error: makes an exception of an error reply's text. It stands where the
            reply would.
    """
    if PUSH is Push:
        return PushReader(safely(make_error))
    return hiredis_reader(make_error)
