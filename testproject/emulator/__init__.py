"""An Entra authority and an Entra-authenticated Redis on loopback, for tests."""

from testproject.emulator.cluster import Node
from testproject.emulator.control import EmulatorControl
from testproject.emulator.emulator import KINDS, Emulator
from testproject.emulator.journal import Authentication, Stats, TokenRequest

__all__ = [
    "KINDS",
    "Authentication",
    "Emulator",
    "EmulatorControl",
    "Node",
    "Stats",
    "TokenRequest",
]
