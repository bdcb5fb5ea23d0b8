"""The renewal policy in an identity's settings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """When to renew a token, and how long to wait for it.

    Parameters:
        ratio: share of a token's life after which it is renewed.
        margin: seconds before expiry by which it is renewed at the latest.
        timeout: seconds that one token request may take.
    """

    ratio: float = 0.7
    margin: float = 180.0
    timeout: float = 10.0
