"""An Entra authority and an Entra-authenticated Redis on loopback, for tests."""

from emulator.cluster import Node
from emulator.control import EmulatorControl
from emulator.emulator import KINDS, Emulator
from emulator.journal import Authentication, Stats, TokenRequest
from emulator.profiles import PROFILES

__all__ = [
    "KINDS",
    "PROFILES",
    "Authentication",
    "Emulator",
    "EmulatorControl",
    "Node",
    "Stats",
    "TokenRequest",
]
