"""What can be changed while the emulator runs."""

from typing import Protocol


class Settings(Protocol):
    """The emulator's settings, read at each use."""

    token_lifetime: float
    repeat_tokens: bool
    imds_limit: int | None
    imds_at_a_time: int | None
    imds_latency: float
    system_assigned_enabled: bool
    refusal: str | None
