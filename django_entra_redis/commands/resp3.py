"""A reader of replies and push messages in RESP 3, for tracking connections.

hiredis 3 and newer reads them. Without it this module does, as far as Redis sends such
replies there.
"""

from typing import Any

from .resp import (
    Array,
    MakeError,
    PythonReader,
    ReplyReader,
    array_size,
    hiredis_reader,
    safe_error_maker,
)

try:
    import hiredis
except ImportError:  # pragma: no cover - one of the two is covered in each environment
    hiredis = None  # type: ignore[assignment]  # a module otherwise

_PUSH, _MAP, _SET, _NULL = b">%~_"


class Push(list[Any]):
    """A push message: the server sends it without a command."""


#: The class of push messages.
PUSH: Any = getattr(hiredis, "PushNotification", Push)


class PushReader(PythonReader):
    """Reads replies and push messages; maps and sets become lists of their items."""

    def other(self, kind: int, line: bytes) -> Any:
        """Return the item of a line that RESP 2 does not have.

        Raises:
            InvalidResponse: it is not one of the types that Redis sends here.
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
        make_error: makes an exception of an error reply's text; it is returned, not
            raised.
    """
    if PUSH is Push:
        return PushReader(safe_error_maker(make_error))
    return hiredis_reader(make_error)
