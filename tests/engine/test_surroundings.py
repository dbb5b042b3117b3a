"""Facts about the host: fake trees for /sys and /proc, real D-Bus with services of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from dbus_fast import PropertyAccess
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusSignature
from dbus_fast.service import ServiceInterface, dbus_method, dbus_property

from bascule.engine.surroundings import (
    Battery,
    Inhibitor,
    Pressure,
    Session,
    Surroundings,
    free_space,
    look,
    read_battery,
    read_inhibitors,
    read_metered,
    read_pressure,
    read_sessions,
)
from bus_fixture import bus, bus_address

__all__ = ["bus", "bus_address"]


def supplies(root: Path, **found: dict[str, str]) -> Path:
    for name, values in found.items():
        folder = root / "class" / "power_supply" / name
        folder.mkdir(parents=True)
        for key, value in values.items():
            (folder / key).write_text(value + "\n")
    return root


BAT = {"type": "Battery", "capacity": "47", "status": "Discharging", "present": "1"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, (False, None)),
        ({"AC": {"type": "Mains", "online": "1"}}, (False, None)),
        ({"BAT0": BAT, "AC": {"type": "Mains", "online": "0"}}, (True, Battery(47, False))),
        ({"BAT0": BAT, "AC": {"type": "Mains", "online": "1"}}, (True, Battery(47, True))),
        ({"BAT0": BAT, "C": {"type": "USB", "online": "1"}}, (True, Battery(47, True))),
        ({"BAT0": {**BAT, "status": "Charging"}}, (True, Battery(47, True))),
        ({"BAT0": {**BAT, "capacity": "5"}, "BAT1": BAT}, (True, Battery(47, False))),
        ({"mouse": {**BAT, "scope": "Device"}}, (False, None)),
        ({"BAT0": {**BAT, "present": "0"}}, (False, None)),
        ({"BAT0": {"type": "Battery"}}, (True, None)),
        ({"BAT0": {**BAT, "capacity": "-7"}}, (True, None)),
        ({"BAT0": {**BAT, "capacity": "104"}}, (True, Battery(100, False))),
    ],
)
def test_batteries(
    tmp_path: Path, found: dict[str, dict[str, str]], expected: tuple[bool, Battery | None]
) -> None:
    assert read_battery(supplies(tmp_path, **found)) == expected


def pressure(root: Path, cpu: str, memory: str, io: str) -> Path:
    (root / "pressure").mkdir()
    for name, value in (("cpu", cpu), ("memory", memory), ("io", io)):
        (root / "pressure" / name).write_text(
            f"some avg10=99.00 avg60={value} avg300=0.00 total=12\n"
            "full avg10=0.00 avg60=77.00 avg300=0.00 total=0\n"
        )
    return root


def test_pressure(tmp_path: Path) -> None:
    found = read_pressure(pressure(tmp_path, "0.00", "12.34", "100.00"))
    assert found == Pressure(0.0, 12.34, 100.0)
    assert found.worst == ("I/O", 100.0)


def test_a_kernel_without_pressure(tmp_path: Path) -> None:
    assert read_pressure(tmp_path) is None
    pressure(tmp_path, "1.00", "1.00", "x")
    assert read_pressure(tmp_path) is None


def test_free_space_of_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    here = free_space(tmp_path)
    assert here is not None and here > 0
    assert free_space(tmp_path / "not" / "yet") is not None


async def test_without_a_bus_its_facts_are_unknown(tmp_path: Path) -> None:
    sys, proc = tmp_path / "sys", tmp_path / "proc"
    proc.mkdir()
    found = await look(
        sys=supplies(sys, BAT0=BAT), proc=pressure(proc, "1.00", "2.00", "3.00"), bus=None
    )
    assert found == Surroundings(True, Battery(47, False), Pressure(1, 2, 3), None, None, None)
    assert await look(sys=tmp_path / "a", proc=tmp_path / "b") == Surroundings()


# ── on a bus

ROWS: list[list[Any]] = [
    ["1", 1000, "alice", "seat0", "/s/1"],
    ["2", 0, "root", "", "/s/2"],
    ["3", 99, "gdm", "seat0", "/s/3"],
    ["4", 1001, "bob", "", "/s/4"],
    ["5", 1002, "gone", "", "/s/5"],
]
LOCKS: list[list[Any]] = [
    ["shutdown:sleep", "dnf", "installing\x1b[31m", "block", 0, 11],
    ["shutdown", "NetworkManager", "saves state", "delay", 0, 12],
    ["sleep:idle", "player", "music", "block", 1000, 13],
    ["idle:shutdown", "backup", "runs", "block-weak", 1000, 14],
]


class Manager(ServiceInterface):
    def __init__(self) -> None:
        super().__init__("org.freedesktop.login1.Manager")
        self.slow = False

    @dbus_method()
    async def ListSessions(self) -> Annotated[list, DBusSignature("a(susso)")]:  # type: ignore[type-arg]
        if self.slow:
            await asyncio.sleep(30)
        return ROWS

    @dbus_method()
    def ListInhibitors(self) -> Annotated[list, DBusSignature("a(ssssuu)")]:  # type: ignore[type-arg]
        return LOCKS


class LoginSession(ServiceInterface):
    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__("org.freedesktop.login1.Session")
        self._values = values

    def _get(self, key: str) -> Any:
        return self._values[key]

    @dbus_property(access=PropertyAccess.READ)
    def Class(self) -> Annotated[str, DBusSignature("s")]:
        return str(self._get("Class"))

    @dbus_property(access=PropertyAccess.READ)
    def State(self) -> Annotated[str, DBusSignature("s")]:
        return str(self._get("State"))

    @dbus_property(access=PropertyAccess.READ)
    def Remote(self) -> Annotated[bool, DBusSignature("b")]:
        return bool(self._get("Remote"))

    @dbus_property(access=PropertyAccess.READ)
    def RemoteHost(self) -> Annotated[str, DBusSignature("s")]:
        return str(self._get("RemoteHost"))

    @dbus_property(access=PropertyAccess.READ)
    def TTY(self) -> Annotated[str, DBusSignature("s")]:
        return str(self._get("TTY"))


class Network(ServiceInterface):
    def __init__(self) -> None:
        super().__init__("org.freedesktop.NetworkManager")
        self.metered = 2

    @dbus_property(access=PropertyAccess.READ)
    def Metered(self) -> Annotated[int, DBusSignature("u")]:
        return self.metered


class Services:
    def __init__(self, connection: MessageBus) -> None:
        self.bus = connection
        self.manager = Manager()
        self.network = Network()


@pytest.fixture
async def services(bus_address: str) -> AsyncIterator[Services]:
    connection = await MessageBus(bus_address=bus_address).connect()
    client = await MessageBus(bus_address=bus_address).connect()
    found = Services(client)
    connection.export("/org/freedesktop/login1", found.manager)
    connection.export("/org/freedesktop/NetworkManager", found.network)
    plain = {"State": "active", "Remote": False, "RemoteHost": "", "TTY": ""}
    for path, more in (
        ("/s/1", {"Class": "user", "TTY": "tty2"}),
        ("/s/2", {"Class": "user", "Remote": True, "RemoteHost": "10.0.0.7"}),
        ("/s/3", {"Class": "greeter"}),
        ("/s/4", {"Class": "user", "State": "closing"}),
    ):
        connection.export(path, LoginSession({**plain, **more}))
    await connection.request_name("org.freedesktop.login1")
    await connection.request_name("org.freedesktop.NetworkManager")
    yield found
    connection.disconnect()
    client.disconnect()
    await connection.wait_for_disconnect()


async def test_peoples_sessions_are_found(services: Services) -> None:
    assert await read_sessions(services.bus) == (
        Session("1", "alice", 1000, "tty2"),
        Session("2", "root", 0, "from 10.0.0.7"),
        Session("5", "gone", 1002, ""),
    )


async def test_only_locks_that_block_a_shutdown_count(services: Services) -> None:
    assert await read_inhibitors(services.bus) == (
        Inhibitor("dnf", "installing [31m", 0, 11),
        Inhibitor("backup", "runs", 1000, 14),
    )


@pytest.mark.parametrize(
    ("value", "metered"), [(0, None), (1, True), (2, False), (3, True), (4, False), (99, None)]
)
async def test_metered_links(services: Services, value: int, metered: bool | None) -> None:
    services.network.metered = value
    assert await read_metered(services.bus) is metered


async def test_everything_at_once(services: Services, tmp_path: Path) -> None:
    found = await look(sys=tmp_path, proc=tmp_path, bus=services.bus)
    assert found.metered is False
    assert found.sessions is not None and len(found.sessions) == 3
    assert found.inhibitors is not None and len(found.inhibitors) == 2
    assert found.battery is None and found.pressure is None


async def test_a_service_that_hangs_is_unknown_and_the_others_are_not(
    services: Services, tmp_path: Path
) -> None:
    services.manager.slow = True
    found = await look(sys=tmp_path, proc=tmp_path, bus=services.bus, timeout=0.3)
    assert found.sessions is None
    assert found.metered is False


async def test_a_bus_without_these_services(bus_address: str, tmp_path: Path) -> None:
    client = await MessageBus(bus_address=bus_address).connect()
    found = await look(sys=tmp_path, proc=tmp_path, bus=client)
    assert found == Surroundings()
    client.disconnect()
    assert (await look(sys=tmp_path, proc=tmp_path, bus=client, timeout=0.3)).sessions is None
