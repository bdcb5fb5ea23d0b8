"""The site's own app: it keeps a history of the renewals of its process."""

from django.apps import AppConfig

from django_entra_redis import signals
from testproject import history


class TestProjectConfig(AppConfig):
    """Connects the package's two signals to the history."""

    name = "testproject"

    def ready(self) -> None:
        """Listen; the uid keeps a second ``ready()`` from listening twice."""
        signals.token_renewed.connect(
            history.on_token_renewed, dispatch_uid="testproject"
        )
        signals.token_renewal_failed.connect(
            history.on_token_renewal_failed, dispatch_uid="testproject"
        )
