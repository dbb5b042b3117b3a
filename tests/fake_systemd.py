"""As much of systemd's bus interface as tells how a unit fares: ``fake_systemd.py ADDRESS FILE``.

FILE is JSON, unit → [ActiveState, NRestarts], read anew at every question. Prints ``ready``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

from dbus_fast import DBusError, PropertyAccess
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusSignature, DBusStr
from dbus_fast.service import ServiceInterface, dbus_method, dbus_property

NAME = "org.freedesktop.systemd1"


def path_of(unit: str) -> str:
    return "/org/freedesktop/systemd1/unit/" + "".join(
        c if c.isalnum() else f"_{ord(c):02x}" for c in unit
    )


class Manager(ServiceInterface):
    def __init__(self, bus: MessageBus, file: Path) -> None:
        super().__init__(f"{NAME}.Manager")
        self._bus, self._file = bus, file
        self._known: set[str] = set()

    @dbus_method()
    def LoadUnit(self, name: DBusStr) -> Annotated[str, DBusSignature("o")]:
        if name not in json.loads(self._file.read_text()):
            raise DBusError(f"{NAME}.NoSuchUnit", name)
        path = path_of(name)
        if path not in self._known:
            self._known.add(path)
            self._bus.export(path, Unit(name, self._file))
            self._bus.export(path, Service(name, self._file))
        return path


class Unit(ServiceInterface):
    def __init__(self, unit: str, file: Path) -> None:
        super().__init__(f"{NAME}.Unit")
        self._unit, self._file = unit, file

    @dbus_property(access=PropertyAccess.READ)
    def ActiveState(self) -> DBusStr:
        return json.loads(self._file.read_text())[self._unit][0]


class Service(ServiceInterface):
    def __init__(self, unit: str, file: Path) -> None:
        super().__init__(f"{NAME}.Service")
        self._unit, self._file = unit, file

    @dbus_property(access=PropertyAccess.READ)
    def NRestarts(self) -> Annotated[int, DBusSignature("u")]:
        return json.loads(self._file.read_text())[self._unit][1]


async def main(address: str, file: str) -> None:
    bus = await MessageBus(bus_address=address).connect()
    bus.export("/org/freedesktop/systemd1", Manager(bus, Path(file)))
    await bus.request_name(NAME)
    print("ready", flush=True)
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
