"""Drivers of the generators that yield requests: operations, and routes.

Each yields what it wants, and is sent the result or thrown the error.
"""

from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

from redis.exceptions import RedisError

Want = TypeVar("Want")
Got = TypeVar("Got")
T = TypeVar("T")


def _same(error: RedisError) -> RedisError:
    return error


def drive(
    generator: Generator[Want, Got, T],
    carry_out: Callable[[Want], Got],
    explain: Callable[[RedisError], RedisError] = _same,
) -> T:
    """Drive a generator to its end; return what it returns.

    Parameters:
        generator: says what is to be done.
        carry_out: does it.
        explain: returns what to throw for an error of Redis'.
    """
    try:
        want = next(generator)
        while True:
            try:
                got = carry_out(want)
            except RedisError as error:
                want = generator.throw(explain(error))
            else:
                want = generator.send(got)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def adrive(
    generator: Generator[Want, Got, T],
    carry_out: Callable[[Want], Awaitable[Got]],
    explain: Callable[[RedisError], RedisError] = _same,
) -> T:
    """Do as :func:`drive` does, where it takes an event loop to do it."""
    try:
        want = next(generator)
        while True:
            try:
                got = await carry_out(want)
            except RedisError as error:
                want = generator.throw(explain(error))
            else:
                want = generator.send(got)
    except StopIteration as stop:
        result: T = stop.value
        return result
