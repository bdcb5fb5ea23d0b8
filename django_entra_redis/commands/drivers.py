"""Drivers of the generators that yield requests, such as operations and routes.

A driver carries out what a generator yields, and sends it the result or throws it the
error: one driver for threads, one for event loops.
"""

import traceback
from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

from redis.exceptions import RedisError

Want = TypeVar("Want")
Got = TypeVar("Got")
T = TypeVar("T")


def _same(error: RedisError) -> RedisError:
    return error


def clear_frames(error: BaseException) -> None:
    """Clear the local variables of the frames in an error's traceback.

    A variable that refers to the error makes a reference cycle, which would keep all
    objects in these frames, such as connections, until the next full garbage
    collection. The callers' frames, which still run, are not cleared.
    """
    traceback.clear_frames(error.__traceback__)


def drive(
    generator: Generator[Want, Got, T],
    carry_out: Callable[[Want], Got],
    translate: Callable[[RedisError], RedisError] = _same,
) -> T:
    """Drive a generator to its end; return its return value.

    Parameters:
        generator: yields requests, or other things to do.
        carry_out: carries out what the generator has yielded.
        translate: translates an error before it is thrown into the generator.
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
    want: Want | None = None,
) -> T:
    """Do as :func:`drive` does, with a function that is awaited.

    Parameters:
        want: what the generator has yielded already; ``None``: nothing.
    """
    try:
        if want is None:
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
