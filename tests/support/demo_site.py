"""The demo site in a process of its own, and those who visit it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emulator import Emulator
from testproject.siteprocess import SiteProcess
from testproject.visitor import Visitor


@contextmanager
def running_site(
    emulator: Emulator, directory: Path, **environ: str
) -> Iterator[SiteProcess]:
    """Serve the site with a fresh database, on an emulator."""
    variables = {
        **emulator.environ("service_principal"),
        "ENTRA_REDIS_EMULATOR": "1",
        **environ,
    }
    with SiteProcess(directory, variables) as site:
        for command in ("migrate", "create_demo_user"):
            status, output = site.manage(command)
            assert status == 0, output
        site.serve()
        yield site


@contextmanager
def visiting(
    site: SiteProcess, user: str = "demo", password: str | None = None
) -> Iterator[Visitor]:
    """Log somebody in."""
    visitor = Visitor(site.url)
    try:
        visitor.log_in(user, password or site.password)
        yield visitor
    finally:
        visitor.close()
