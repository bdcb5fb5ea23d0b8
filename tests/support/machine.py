"""What a machine may lack that tests need."""

import os
from typing import NoReturn

import pytest


def lacks(what: str) -> NoReturn:
    """Skip a test that needs what the machine lacks.

    Under ``CI=true`` it fails: there, nothing may be left out unnoticed.
    """
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
