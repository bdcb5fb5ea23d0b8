"""Arguments of the cache's methods, converted to what Redis takes."""

import operator
from datetime import datetime, timedelta
from typing import Any, SupportsInt

_SECOND = timedelta(seconds=1)


def whole(delta: Any) -> int:
    """Return the number to add, as an integer; text is parsed, as Redis parses it.

    Raises:
        TypeError, ValueError: it is not an integer.
    """
    kind: type[Exception] = TypeError
    try:
        return int(delta) if isinstance(delta, str | bytes) else operator.index(delta)
    except ValueError:
        kind = ValueError
    except TypeError:
        pass
    raise kind(f"delta should be an integer, not {delta!r}.")


def plain_text(key: Any) -> str:
    """Return a key that a KEY_FUNCTION has made as a plain string.

    Commands are put together as text: a subclass of ``str``, such as an enumeration's
    member, may be formatted as another text than the one whose length is sent with it.

    Raises:
        TypeError: it is not text.
    """
    if type(key) is str:
        return key
    try:
        return str.__str__(key)
    except TypeError:
        pass
    raise TypeError(f"KEY_FUNCTION should return a str, not {type(key).__name__}.")


def duration(timeout: Any, per_second: int) -> int:
    """Return a duration as a number.

    Parameters:
        timeout: a timedelta, or a number, which is returned as an integer.
        per_second: 1 for seconds, 1000 for milliseconds.

    Raises:
        TypeError, ValueError: it is not a duration.
    """
    if isinstance(timeout, timedelta):
        # Not multiplied: the longest ones would overflow.
        return timeout // (_SECOND / per_second)
    hint = "; persist() removes a key's timeout" if timeout is None else ""
    unit = "seconds" if per_second == 1 else "milliseconds"
    return _number(timeout, f"timeout should be {unit} or a timedelta", hint)


def moment(when: Any, per_second: int) -> int:
    """Return a moment as a number since the epoch.

    Parameters:
        when: a datetime, or a number, which is returned as an integer.
        per_second: 1 for seconds, 1000 for milliseconds.

    Raises:
        TypeError, ValueError: it is not a moment.
    """
    if isinstance(when, datetime):
        return int(when.timestamp() * per_second)
    unit = "seconds" if per_second == 1 else "milliseconds"
    return _number(when, f"when should be {unit} since the epoch or a datetime")


def _number(value: Any, should: str, hint: str = "") -> int:
    """Return a number as an integer, as Django does with timeouts."""
    if not isinstance(value, SupportsInt):
        raise TypeError(f"{should}, not {type(value).__name__}{hint}.")
    try:
        return int(value)
    except (OverflowError, ValueError):
        raise ValueError(f"{should}, not {value}.") from None
