"""A fake updater on a real private bus, for every test of the faces."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio

from bascule.faces import bus as new_bus
from bascule.faces import legacy_bus
from bascule.faces.bus import BusFace
from bascule.faces.bus_connection import BusConnection
from bascule.faces.legacy_bus import LegacyBusFace
from bus_fixture import PrivateBus, bus, bus_address
from fake_steering import FakeSteering

__all__ = ["bus", "bus_address", "served"]


@dataclass
class Served:
    """A daemon's bus side in this process, driven by `steering`."""

    bus: PrivateBus
    steering: FakeSteering
    connection: BusConnection
    face: BusFace
    legacy: LegacyBusFace
    clock: list[float]

    @property
    def address(self) -> str:
        return self.bus.address


@pytest_asyncio.fixture
async def served(bus: PrivateBus) -> AsyncIterator[Served]:
    steering = FakeSteering()
    clock = [1000.0]
    connection = BusConnection(bus.address, rng=random.Random(1), first_delay=0.01)
    face = BusFace(steering, connection, progress_interval=0.05)
    legacy = LegacyBusFace(steering, connection, clock=lambda: clock[0])
    await connection.connect([new_bus.NAME, legacy_bus.NAME])
    yield Served(bus, steering, connection, face, legacy, clock)
    face.close()
    legacy.close()
    connection.close()
