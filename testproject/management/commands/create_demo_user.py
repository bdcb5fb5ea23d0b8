"""``manage.py create_demo_user``: somebody to log in as."""

import os
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """Creates the user, or gives an existing one the new password."""

    help = (
        "Create the staff user 'demo' (or give it a new password). The password "
        "comes from the variable DEMO_PASSWORD: a command line is seen by everybody "
        "on the machine."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Create or update the user."""
        password = os.environ.get("DEMO_PASSWORD")
        if not password:
            raise CommandError("Set DEMO_PASSWORD to the password of the user 'demo'.")
        users = get_user_model().objects
        user, created = users.get_or_create(
            username="demo", defaults={"is_staff": True}
        )
        user.set_password(password)
        user.save()
        verb = "created" if created else "given its new password"
        self.stdout.write(f"user 'demo' {verb}")
