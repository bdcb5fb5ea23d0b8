"""What a node answers that is not to carry a command out."""

import pytest
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from django_entra_redis.clients.redirects import (
    batch_error,
    cluster_error,
    redirection,
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("MOVED 1234 127.0.0.1:7000", MovedError),
        ("ASK 1234 127.0.0.1:7000", AskError),
        (
            "CROSSSLOT Keys in request don't hash to the same slot",
            ClusterCrossSlotError,
        ),
        ("CLUSTERDOWN The cluster is down", ClusterDownError),
        ("TRYAGAIN Multiple keys request during rehashing of slot", TryAgainError),
        ("WRONGTYPE Operation against a key", ResponseError),
    ],
)
def test_kinds(text: str, kind: type[Exception]) -> None:
    """Errors of redis-py 5 become those of their kind, others stay."""
    assert type(cluster_error(ResponseError(text))) is kind
    made = cluster_error(ResponseError(text))
    assert cluster_error(made) is made
    elsewhere = kind in (MovedError, AskError, ClusterCrossSlotError)
    assert (redirection(ResponseError(text)) is not None) is elsewhere


def test_address() -> None:
    """A redirection tells slot and node; IPv6 addresses have colons of their own."""
    moved = cluster_error(ResponseError("MOVED 1234 2001:db8::1:7000"))
    assert isinstance(moved, MovedError)
    assert (moved.slot_id, moved.host, moved.port) == (1234, "2001:db8::1", 7000)


def test_batch_error() -> None:
    """Most errors among many replies are their own command's alone."""
    wrong = ResponseError("wrong type")
    assert batch_error([b"OK", None, 1, wrong]) is None
    for error in (
        ReadOnlyError("read only"),
        BusyLoadingError("loading"),
        MovedError("1 127.0.0.1:7000"),
    ):
        assert batch_error([b"OK", wrong, error]) is error
