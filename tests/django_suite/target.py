"""The cache that a run of the tests is pointed at."""

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Self

VARIABLE = "DJANGO_SUITE_TARGET"
#: Backends that Django's tests name where ours, or the control's, is to stand.
REPLACED = (
    "django.core.cache.backends.locmem.LocMemCache",
    "django.core.cache.backends.redis.RedisCache",
)


@dataclass(frozen=True)
class Target:
    """A backend, where its Redis is, and where the run is to be reported.

    Handed to the process that runs the tests in an environment variable.
    """

    backend: str
    location: str
    report: str
    options: dict[str, object] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    databases: bool = True

    def dump(self) -> str:
        """Return what :meth:`from_environment` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> Self:
        """Return the target that this process was started for."""
        return cls(**json.loads(os.environ[VARIABLE]))

    def applied_to(
        self, caches: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Return ``CACHES`` with this target wherever a backend is to be replaced.

        Memory caches of different ``LOCATION`` share nothing: each becomes a database.
        """
        databases: dict[str, int] = {}
        applied = {}
        for alias, params in caches.items():
            applied[alias] = params
            if params["BACKEND"] in REPLACED:
                options = self.options | params.get("OPTIONS", {})
                if params["BACKEND"].endswith("LocMemCache"):
                    location = params.get("LOCATION", "")
                    number = databases.setdefault(location, len(databases))
                    if self.databases and "Cluster" not in self.backend:
                        options["db"] = number
                applied[alias] = params | {
                    "BACKEND": self.backend,
                    "LOCATION": self.location,
                    "OPTIONS": options,
                }
        return applied
