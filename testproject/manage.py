"""Django's command line for the site: ``python testproject/manage.py COMMAND``."""

import os
import sys
from pathlib import Path

from django.core.management import execute_from_command_line


def main() -> None:
    """Run the command that the command line names, with the site's settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    # Appended, not inserted: where the package is installed, that one is used.
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
