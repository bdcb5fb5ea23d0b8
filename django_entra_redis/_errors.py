"""Problems with the settings, and the errors that report them.

They are not in :mod:`.exceptions`, which imports redis-py: that costs more start-up
time than ``manage.py check`` should take.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from django.core.exceptions import ImproperlyConfigured

T = TypeVar("T")
Error = TypeVar("Error", bound=BaseException)


class EntraRedisError(Exception):
    """Base of all exceptions of this package."""


class MissingExtraError(EntraRedisError, ImportError):
    """An optional package is not installed.

    Parameters:
        extra: the extra of this package that installs it.
    """

    def __init__(self, extra: str) -> None:
        super().__init__(extra)
        self.extra = extra

    def __str__(self) -> str:
        return (
            "OPTIONS['serializer'], OPTIONS['compressor'] or a value in the cache "
            f"needs {self.extra}, which is not installed: python -m pip install "
            f'"django-entra-redis[{self.extra}]".'
        )


class UnreadableValueError(EntraRedisError, ValueError):
    """A value in the cache has a format that the cache's serializer can't read."""


class ConfigurationError(EntraRedisError, ImproperlyConfigured):
    """``ENTRA_REDIS`` or a cache's settings can't be used as they are.

    Parameters:
        problems: all problems with them.
    """

    def __init__(self, problems: Sequence["Problem"]) -> None:
        # The only argument, so that the error can be pickled (multiprocessing, Celery).
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return " ".join(str(problem) for problem in self.problems)


def refuse_pickling(self: object, protocol: object) -> NoReturn:
    """Replace ``__reduce_ex__`` of an object that holds a secret.

    Raises:
        TypeError: always, since the secret would be written into the pickle.
    """
    raise TypeError(f"{type(self).__name__} holds a secret: it can't be pickled.")


def hidden(action: Callable[[], T]) -> T:
    """Call a function; raise its error without the frames, which may hold a secret.

    Parameters:
        action: the function. Its own ``repr`` must not show the secret, since this
            frame is not removed.
    """
    try:
        return action()
    except BaseException as error:
        failure = without_frames(error)
    try:
        raise failure
    finally:
        del failure  # Otherwise this frame would keep it alive.


def without_frames(error: Error) -> Error:
    """Remove traceback, cause and context from an error; return it.

    Their frames may hold a secret; and where an error is kept as a value, they would
    keep whatever keeps it.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with the settings.

    Parameters:
        id: number of the system check, such as ``E001``.
        where: the setting, as it is written in the settings file.
        message: what is wrong.
        hint: what it should be.
    """

    id: str
    where: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} {self.hint}"


def option_error(
    key: str, message: str, hint: str, where: str = "CACHES[...]"
) -> ConfigurationError:
    """Return the error to raise for an option of a cache.

    Parameters:
        key: the option's name in ``OPTIONS``.
        message, hint: see :class:`Problem`.
        where: what to call the cache in the message.
    """
    at = f"{where}['OPTIONS'][{key!r}]"
    return ConfigurationError([Problem("E023", at, message, hint)])
