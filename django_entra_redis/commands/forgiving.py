"""A cache that is down answers like an empty one: ``OPTIONS["ignore_exceptions"]``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
)

from .operations import Operation, Operations
from .patterns import KeyPattern

T = TypeVar("T")

#: What a server does that is down, full or failing over. Anything else, a refused
#: command or a value that can't be pickled, is a mistake that must be seen.
OUTAGE = (ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError)


class ForgivingOperations(Operations):
    """Operations that answer as from an empty cache while Redis can't be used.

    The first failure of an outage is logged, and its end.
    """

    def add(self, key: str, value: Any, timeout: int | None) -> Operation[bool]:
        """Return ``False`` while Redis can't be used."""
        return self.forgive(super().add(key, value, timeout), False)

    def get(self, key: str, default: Any) -> Operation[Any]:
        """Return the default while Redis can't be used."""
        return self.forgive(super().get(key, default), default)

    def set(self, key: str, value: Any, timeout: int | None) -> Operation[None]:
        """Do nothing while Redis can't be used."""
        return self.forgive(super().set(key, value, timeout), None)

    def touch(self, key: str, timeout: int | None) -> Operation[bool]:
        """Return ``False`` while Redis can't be used."""
        return self.forgive(super().touch(key, timeout), False)

    def delete(self, key: str) -> Operation[bool]:
        """Return ``False`` while Redis can't be used."""
        return self.forgive(super().delete(key), False)

    def get_many(
        self, keys: Sequence[str], names: Iterable[Any]
    ) -> Operation[dict[Any, Any]]:
        """Return nothing while Redis can't be used."""
        return self.forgive(super().get_many(keys, names), {})

    def has_key(self, key: str) -> Operation[bool]:
        """Return ``False`` while Redis can't be used."""
        return self.forgive(super().has_key(key), False)

    def incr(self, key: str, delta: int) -> Operation[int]:
        """Find no key while Redis can't be used.

        Raises:
            ValueError: the key is not there.
        """
        missing = ValueError(f"Key '{key}' not found.")
        return self.forgive(super().incr(key, delta), missing)

    def set_many(
        self, keys: Sequence[str], data: Mapping[Any, Any], timeout: int | None
    ) -> Operation[list[Any]]:
        """Return all names while Redis can't be used: none of them is set."""
        return self.forgive(super().set_many(keys, data, timeout), list(data))

    def delete_many(self, keys: Sequence[str]) -> Operation[None]:
        """Do nothing while Redis can't be used."""
        return self.forgive(super().delete_many(keys), None)

    def clear(self) -> Operation[bool]:
        """Return ``False`` while Redis can't be used."""
        return self.forgive(super().clear(), False)

    def clear_matching(self, pattern: KeyPattern) -> Operation[bool]:
        """Return ``False`` while Redis can't be used."""
        return self.forgive(super().clear_matching(pattern), False)

    def forgive(self, operation: Operation[T], empty: Any) -> Operation[T]:
        """Return an operation that answers as from an empty cache in an outage."""
        try:
            result = yield from operation
        except OUTAGE as error:
            self.server.fail(error)
            if isinstance(empty, Exception):
                raise empty from None
            return empty  # type: ignore[no-any-return]
        self.server.succeed()
        return result
