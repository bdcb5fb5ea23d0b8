"""Drivers of the generators that yield requests: operations, and routes.

Each yields what it wants, and is sent the result or thrown the error.
"""

import traceback
from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

from redis.exceptions import RedisError

Want = TypeVar("Want")
Got = TypeVar("Got")
T = TypeVar("T")
Failure = TypeVar("Failure", bound=BaseException)


def _same(error: RedisError) -> RedisError:
    return error


def clear_frames(error: BaseException) -> None:
    """Clear the local variables of the frames that an error has come through.

    An error that is one of them, or in one of them, would keep itself, and with the
    frames whatever else they hold, such as a connection, until the next full garbage
    collection. Frames that still run, as the callers' do, are left alone.
    """
    traceback.clear_frames(error.__traceback__)


def without_frames(error: Failure) -> Failure:
    """Return an error that is kept as a value, without what led to it.

    The frames of its traceback, and of its context's, would keep whatever keeps it.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def drive(
    generator: Generator[Want, Got, T],
    carry_out: Callable[[Want], Got],
    translate: Callable[[RedisError], RedisError] = _same,
) -> T:
    """Drive a generator to its end; return what it returns.

    Parameters:
        generator: says what is to be done.
        carry_out: does it.
        translate: returns what to throw for an error of Redis'.
    """
    try:
        want = next(generator)
        while True:
            try:
                got = carry_out(want)
            except RedisError as error:
                want = generator.throw(translate(error))
            else:
                want = generator.send(got)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def adrive(
    generator: Generator[Want, Got, T],
    carry_out: Callable[[Want], Awaitable[Got]],
    translate: Callable[[RedisError], RedisError] = _same,
) -> T:
    """Do as :func:`drive` does, where it takes an event loop to do it."""
    try:
        want = next(generator)
        while True:
            try:
                got = await carry_out(want)
            except RedisError as error:
                want = generator.throw(translate(error))
            else:
                want = generator.send(got)
    except StopIteration as stop:
        result: T = stop.value
        return result
