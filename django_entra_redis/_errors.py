"""Problems with the settings, and the errors that tell of them.

Apart from the other exceptions, since those need redis-py, which costs more start-up
time than ``manage.py check`` should.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from django.core.exceptions import ImproperlyConfigured

T = TypeVar("T")


class EntraRedisError(Exception):
    """Base of everything that this package raises on its own account."""


class MissingExtraError(EntraRedisError, ImportError):
    """A package that is optional is not installed.

    Parameters:
        extra: the extra that brings it.
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
    """A value in the cache is in no format that the cache's serializer reads."""


class ConfigurationError(EntraRedisError, ImproperlyConfigured):
    """``ENTRA_REDIS`` or a cache's settings can't be used as they are.

    Parameters:
        problems: all that is wrong with them.
    """

    def __init__(self, problems: Sequence["Problem"]) -> None:
        # As the only argument, so that it survives pickling (multiprocessing, Celery).
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return " ".join(str(problem) for problem in self.problems)


def refuse_pickling(self: object, protocol: object) -> NoReturn:
    """Stand in for ``__reduce_ex__`` of what holds a secret.

    Raises:
        TypeError: always; it would be written to wherever the pickle goes.
    """
    raise TypeError(f"{type(self).__name__} holds a secret: it can't be pickled.")


def hidden(action: Callable[[], T]) -> T:
    """Return what an action returns; raise what it raises, without its frames.

    Parameters:
        action: whatever has a secret among its local variables, or below; its own
            ``repr`` is to be without it, since this frame stays.
    """
    try:
        return action()
    except BaseException as error:
        failure = without_frames(error)
    raise failure


def without_frames(error: BaseException) -> BaseException:
    """Return an error without those frames, its cause's and its context's included.

    Its text names the original error.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the settings.

    Parameters:
        id: number of the system check, such as ``E001``.
        where: the setting, as one would write it.
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
    """Return the error of an option of a cache.

    Parameters:
        key: its name in ``OPTIONS``.
        message, hint: as a :class:`Problem` has them.
        where: what to call the cache.
    """
    at = f"{where}['OPTIONS'][{key!r}]"
    return ConfigurationError([Problem("E023", at, message, hint)])
