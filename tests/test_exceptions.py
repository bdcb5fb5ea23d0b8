"""The errors of this package outlive the process that they are raised in."""

import copy
import importlib
import multiprocessing
import pickle
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from django_entra_redis._errors import ConfigurationError, MissingExtraError, Problem
from django_entra_redis.conf.identities import parse_identity
from django_entra_redis.connections.protocol import ConnectionLostError
from django_entra_redis.diagnostics.runner import StepError
from django_entra_redis.exceptions import TokenError, TokenRequestError
from django_entra_redis.identity.token import SYSTEM_CLOCK, receive_token
from django_entra_redis.serializers import _CompressedValueError
from tests.project.test_house import PACKAGE, modules

#: Modules that need what may not be installed; they define no errors.
OPTIONAL = ("contrib", "health_check", "opentelemetry")
#: Those that take more than a text.
MADE: dict[type[Exception], Callable[[], Exception]] = {
    ConnectionLostError: lambda: ConnectionLostError("it broke", sent=False),
    ConfigurationError: lambda: ConfigurationError([Problem("E1", "here", "x", "y")]),
    MissingExtraError: lambda: MissingExtraError("lz4"),
    StepError: lambda: StepError("auth_refused", "no", "Do something."),
    _CompressedValueError: lambda: _CompressedValueError(5, "ZlibCompressor"),
    TokenError: lambda: TokenError("no", code="token_timeout"),
    TokenRequestError: lambda: TokenRequestError("no", code="x", retry_after=2.5),
}


def errors() -> Iterator[type[Exception]]:
    """Yield each class of errors that a module of the package defines."""
    for name in modules():
        if not name.startswith(OPTIONAL):
            module = importlib.import_module(f"{PACKAGE}.{name}")
            for value in vars(module).values():
                if (
                    isinstance(value, type)
                    and issubclass(value, Exception)
                    and value.__module__ == module.__name__
                ):
                    yield value


def make(kind: type[Exception]) -> Exception:
    """Return an error, with an attribute that somebody has set besides."""
    error = MADE.get(kind, lambda: kind("text"))()
    error.add_note("seen by a test")
    return error


def told(error: BaseException) -> Any:
    """Return what is known of an error."""
    return type(error), str(error), error.args, vars(error)


def copies(error: Exception) -> Iterator[Exception]:
    """Yield an error as it comes back from wherever errors go."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(error, protocol))
    yield copy.copy(error)
    yield copy.deepcopy(error)


@pytest.mark.parametrize("kind", list(errors()), ids=lambda kind: kind.__name__)
def test_errors_survive(kind: type[Exception]) -> None:
    """Pickled, copied, and told by their traceback."""
    error = make(kind)
    for other in copies(error):
        assert told(other) == told(error)
    lines = "".join(traceback.TracebackException.from_exception(error).format())
    assert str(error) in lines


def test_all_are_looked_at() -> None:
    """The test above knows them all, those that take more than a text too."""
    found = set(errors())
    assert found >= MADE.keys()
    assert len(found) > 12


def fail(kind: type[Exception]) -> None:
    """Raise an error in another process."""
    raise make(kind)


def test_errors_of_a_process_pool() -> None:
    """One that can't be read back would break the pool for all that is in it."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for kind in MADE:
            error = pool.submit(fail, kind).exception(30)
            assert error is not None
            error.__cause__ = None
            assert told(error) == told(make(kind))


def test_what_holds_a_secret_is_not_pickled() -> None:
    """Nor copied: neither ends up in a cache, a queue or a file."""
    token = receive_token("opaque", clock=SYSTEM_CLOCK, expires_in=60, username="x")
    identity = parse_identity(
        "default",
        {
            "KIND": "service_principal",
            "TENANT_ID": "contoso.onmicrosoft.com",
            "CLIENT_ID": "00000000-0000-0000-0000-000000000001",
            "CLIENT_SECRET": "S3cret",
        },
    )
    for value in (token, identity):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="holds a secret: it can't be pickled"):
                pickle.dumps({"value": value}, protocol)
        with pytest.raises(TypeError, match="holds a secret"):
            copy.deepcopy(value)
