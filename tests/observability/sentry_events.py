"""Prints what Sentry sends of clients that can't authenticate."""

import json
import os
from typing import Any

import django
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()

from tests.support.failing_clients import (  # noqa: E402 - it needs the settings
    FAULTS,
    failure,
    failure_to_authenticate_anew,
)


class Kept(Transport):
    """Keeps what would be sent."""

    events: list[Any] = []  # noqa: RUF012 - Sentry makes the one object of this class

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep an event."""
        self.events.append(envelope.get_event())


sentry_sdk.init(dsn="http://key@localhost/1", transport=Kept)
for fault in FAULTS:
    for asynchronous in (False, True):
        for protocol in (2, 3):
            error = failure(fault, asynchronous=asynchronous, protocol=protocol)
            sentry_sdk.capture_exception(error)
sentry_sdk.capture_exception(failure_to_authenticate_anew())
print(json.dumps(Kept.events, default=repr))
