# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Receivers of the signals, that know what is sent."""

from typing import TYPE_CHECKING, Any, Unpack, assert_type

from django.dispatch import receiver

from django_entra_redis.signals import token_renewal_failed, token_renewed
from django_entra_redis.status import Status
from django_entra_redis.types import TokenRenewalFailed, TokenRenewed

RECEIVED: list[tuple[str, str]] = []


@receiver(token_renewed)
def all_of_it(sender: str, **kwargs: Unpack[TokenRenewed]) -> None:
    """Take the arguments as they come."""
    assert_type(kwargs["status"], Status)
    RECEIVED.append((sender, kwargs["identity"]))


@receiver(token_renewal_failed)
def failed(sender: str, **kwargs: Unpack[TokenRenewalFailed]) -> None:
    """Take the error beside the others."""
    RECEIVED.append((kwargs["identity"], kwargs["error"]))


@receiver(token_renewed)
def part_of_it(*, identity: str, status: Status, **kwargs: Any) -> None:
    """Name what is needed, as Django's documentation does."""
    RECEIVED.append((identity, str(status.renewals)))


if TYPE_CHECKING:

    @receiver(token_renewed)
    def wrong(sender: str, **kwargs: Unpack[TokenRenewed]) -> None:
        """Look for what is not sent with this signal."""
        kwargs["error"]  # type: ignore[typeddict-item]
        kwargs["status"].failed  # type: ignore[attr-defined]  # noqa: B018
