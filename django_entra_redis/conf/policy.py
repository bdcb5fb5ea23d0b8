"""The renewal policy that an identity's settings ask for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """When to renew and how long to wait.

    Parameters:
        ratio: share of a token's life after which it is renewed.
        margin: seconds before expiry by which it is renewed at the latest.
        timeout: seconds that one token request may take.
    """

    ratio: float = 0.7
    margin: float = 180.0
    timeout: float = 10.0
