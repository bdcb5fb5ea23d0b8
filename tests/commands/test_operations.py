"""The operations as generators."""

import inspect

import pytest

from django_entra_redis.commands.cluster import ClusterOperations
from django_entra_redis.commands.operations import Operations
from django_entra_redis.commands.stampede import Stampedes

#: Steps of other operations, which no client is given to carry out.
STEPS = {"by_name", "dumps_each", "each", "each_key", "flush", "unlink"}


@pytest.mark.parametrize("kind", [Operations, ClusterOperations, Stampedes])
def test_each_operation_has_an_empty_answer(kind: type[Operations | Stampedes]) -> None:
    """With the arguments of the operation itself."""
    methods = {
        name: method
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and name not in STEPS
    }
    assert methods.keys() == kind.empty_answers.keys()
    for name, method in methods.items():
        _, *taken = inspect.signature(method).parameters
        assert [*inspect.signature(kind.empty_answers[name]).parameters] == taken
