"""What is done around a fork, where processes can fork."""

import os
from collections.abc import Callable


def at_fork(**hooks: Callable[[], None]) -> None:
    """Have functions called around each fork from now on.

    Parameters:
        hooks: ``before``, ``after_in_parent`` and ``after_in_child``, as
            :func:`os.register_at_fork` has them.
    """
    if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
        os.register_at_fork(**hooks)
