"""A credential whose requests a test can hold up."""

import os
import threading
import time

from emulator import EmulatorControl


class AccessToken:
    """What azure-identity's credentials return."""

    def __init__(self, token: str, expires_on: float) -> None:
        self.token = token
        self.expires_on = expires_on


class HeldCredential:
    """Answers at once, except while it is held, in the process that holds it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.released = threading.Event()
        self.released.set()
        self._holder = os.getpid()
        self._control = EmulatorControl.from_file(os.environ["TEST_EMULATOR"])
        self._life = float(os.environ["TEST_LIFE"])

    def hold(self) -> None:
        """Answer no more, until ``released`` is set."""
        self.asked.clear()
        self.released.clear()

    def get_token(self, *scopes: str) -> AccessToken:
        """Return a token."""
        if os.getpid() == self._holder:
            self.asked.set()
            self.released.wait()
        token = self._control.issue_token(lifetime=self._life)
        return AccessToken(token, time.time() + self._life)


held = HeldCredential()
