"""The content of the page in Django's admin."""

import os
from dataclasses import dataclass
from typing import Any

from ...cache.backend import entra_caches
from ...diagnostics.overview import overview
from ...diagnostics.runner import Step
from ...diagnostics.steps import diagnose_each

#: Seconds that a check may take: servers end a request after some 30 s, and the caches
#: are asked for the overview besides.
CHECK_TIMEOUT = 15.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a check of a cache has found.

    Parameters:
        cache: the cache's alias.
        steps: the steps, up to the first that failed.
    """

    cache: str
    steps: tuple[Step, ...]

    @property
    def ok(self) -> bool:
        """Whether all steps passed."""
        return all(step.ok for step in self.steps)


def content(*, check: bool) -> dict[str, Any]:
    """Return the variables of the page's template.

    Parameters:
        check: whether to check the caches as ``entra_redis_check`` does.
    """
    reports = check_caches(CHECK_TIMEOUT) if check else None
    return {"overview": overview(), "reports": reports, "pid": os.getpid()}


def check_caches(timeout: float) -> list[Report]:
    """Check all caches, within so many seconds."""
    return [
        Report(alias, tuple(steps))
        for alias, _, steps in diagnose_each(entra_caches(), timeout)
    ]
