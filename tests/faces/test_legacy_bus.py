"""``com.coreos.update1``: what Flatcar's clients see must be what the original shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from dbus_fast import MessageType

from bascule.errors import BusNameTaken, BusUnreachable
from bascule.faces.bus_connection import BusConnection
from bascule.faces.legacy_bus import INTERFACE, NAME, PATH, LegacyBusFace
from bascule.updater.status import State
from bus_fixture import PrivateBus
from bus_listener import Listener
from fake_daemon import SIZE, tell
from fake_steering import FakeSteering

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "omaha"
LOCKSMITH_RULE = f"type='signal',interface='{INTERFACE}',member='StatusUpdate'"


async def manager(listener: Listener, member: str) -> Any:
    return await listener.call(NAME, PATH, INTERFACE, member)


def described(xml: str) -> Any:
    """The Manager interface of introspection data as comparable values."""
    node = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", xml))
    (interface,) = [i for i in node if i.get("name") == INTERFACE]
    return [
        (member.tag, member.get("name"), [dict(arg.attrib) for arg in member])
        for member in interface
    ]


async def test_introspection_equals_the_originals(served: Any) -> None:
    recorded = VECTORS / "com.coreos.update1.introspect.xml"
    if not recorded.exists():
        pytest.skip("the recorded vectors are not here")
    listener = await Listener.open(served.address)
    reply = await listener.call(NAME, PATH, "org.freedesktop.DBus.Introspectable", "Introspect")
    assert described(reply.body[0]) == described(recorded.read_text())
    listener.close()


async def test_get_status_has_the_types_of_the_original(served: Any) -> None:
    listener = await Listener.open(served.address)
    reply = await manager(listener, "GetStatus")
    assert reply.signature == "xdssx"
    assert reply.body == [0, 0.0, "UPDATE_STATUS_IDLE", "0.0.0", 0]
    listener.close()


async def test_signals_of_a_whole_update_come_as_recorded(served: Any) -> None:
    listener = await Listener.open(served.address, LOCKSMITH_RULE)
    reply = await manager(listener, "AttemptUpdate")
    assert reply.message_type is MessageType.METHOD_RETURN
    assert reply.body == []
    # update_engine_client polls after this: an IDLE here would end it.
    assert (await manager(listener, "GetStatus")).body[2] == "UPDATE_STATUS_CHECKING_FOR_UPDATE"
    await tell(served.steering, served.steering.jobs[0])
    await listener.until(
        lambda: any("NEED_REBOOT" in body[2] for body in listener.named("StatusUpdate"))
    )
    heard = listener.named("StatusUpdate")
    operations = [body[2].removeprefix("UPDATE_STATUS_") for body in heard]
    assert list(dict.fromkeys(operations)) == [
        "CHECKING_FOR_UPDATE",
        "UPDATE_AVAILABLE",
        "DOWNLOADING",
        "FINALIZING",
        "UPDATED_NEED_REBOOT",
    ]
    downloading = [body[1] for body in heard if body[2] == "UPDATE_STATUS_DOWNLOADING"]
    assert downloading == sorted(downloading)
    assert downloading[-1] == 1.0
    assert 95 <= len(downloading) <= 101
    assert [body[1] for body in heard if "DOWNLOADING" not in body[2]] == [0.0] * 4
    assert heard[0][3:] == ["0.0.0", 0]
    assert all(body[3:] == ["3602.1.5", SIZE] for body in heard[1:])
    listener.close()


async def test_progress_signals_come_at_one_percent_or_ten_seconds(served: Any) -> None:
    listener = await Listener.open(served.address, LOCKSMITH_RULE)
    served.steering.move(State.DOWNLOADING, bytes_total=10_000)

    async def heard_after(done: int, seconds: float) -> int:
        served.clock[0] += seconds
        served.steering.move(bytes_done=done)
        # An answer on the same connection comes after the signals; one of the bus itself may not.
        await manager(listener, "GetStatus")
        return len(listener.named("StatusUpdate"))

    assert await heard_after(0, 0) == 1
    assert await heard_after(99, 1) == 1, "less than a hundredth"
    assert await heard_after(100, 1) == 2
    assert await heard_after(150, 9.9) == 2
    assert await heard_after(151, 0.1) == 3, "ten seconds since the last"
    assert await heard_after(151, 60) == 3, "nothing new"
    assert await heard_after(10_000, 0) == 4, "completion"
    listener.close()


async def test_the_status_is_announced_at_the_start(bus: PrivateBus) -> None:
    listener = await Listener.open(bus.address, LOCKSMITH_RULE)
    connection = BusConnection(bus.address)
    LegacyBusFace(FakeSteering(), connection)
    await connection.connect([NAME])
    await listener.until(lambda: len(listener.named("StatusUpdate")) == 1)
    assert listener.named("StatusUpdate")[0][2] == "UPDATE_STATUS_IDLE"
    listener.close()
    connection.close()


async def test_attempt_update_while_busy_succeeds_and_does_nothing(served: Any) -> None:
    listener = await Listener.open(served.address)
    for state in (State.DOWNLOADING, State.UPDATED_NEED_REBOOT):
        served.steering.move(state)
        reply = await manager(listener, "AttemptUpdate")
        assert reply.message_type is MessageType.METHOD_RETURN
        assert served.steering.status.state is state
    assert not served.steering.jobs
    listener.close()


async def test_reset_status(served: Any) -> None:
    listener = await Listener.open(served.address, LOCKSMITH_RULE)
    assert (await manager(listener, "ResetStatus")).message_type is MessageType.METHOD_RETURN

    served.steering.move(State.DOWNLOADING)
    reply = await manager(listener, "ResetStatus")
    assert reply.message_type is MessageType.ERROR
    assert reply.error_name == "org.freedesktop.DBus.GLib.ErrorError"
    assert served.steering.status.state is State.DOWNLOADING

    served.steering.move(State.UPDATED_NEED_REBOOT, new_version="3602.1.5")
    assert (await manager(listener, "ResetStatus")).message_type is MessageType.METHOD_RETURN
    await listener.settle()
    assert listener.named("StatusUpdate")[-1][2:4] == ["UPDATE_STATUS_IDLE", "0.0.0"], (
        "a reset is signalled, unlike the original's"
    )
    assert [actor.via for _, _, actor in served.steering.asked] == ["legacy-bus"] * 3
    listener.close()


async def test_the_object_answers_before_any_name_is_owned(bus: PrivateBus) -> None:
    connection = BusConnection(bus.address)
    LegacyBusFace(FakeSteering(), connection)
    await connection.connect()
    listener = await Listener.open(bus.address)
    reply = await listener.call(connection.unique_name, PATH, INTERFACE, "GetStatus")
    assert reply.body[2] == "UPDATE_STATUS_IDLE"
    await connection.connect([NAME])
    assert (await manager(listener, "GetStatus")).body[2] == "UPDATE_STATUS_IDLE"
    listener.close()
    connection.close()


async def test_a_name_that_is_taken_is_told_with_its_holder(bus: PrivateBus) -> None:
    other = await Listener.open(bus.address)
    await other.driver("RequestName", "su", [NAME, 0])
    connection = BusConnection(bus.address)
    with pytest.raises(BusNameTaken, match=r"com\.coreos\.update1 belongs to .* \(process \d+\)"):
        await connection.connect([NAME])
    assert not connection.connected
    other.close()


async def test_a_bus_that_is_not_there_is_told() -> None:
    with pytest.raises(BusUnreachable, match="nowhere"):
        await BusConnection("unix:path=/nowhere/bus").connect([NAME])


# ── clients ──────────────────────────────────────────────────────────────────────────────────


class Locksmith:
    """What locksmithd does (reference 4.3): match without sender or path, act on NEED_REBOOT
    from GetStatus or from the first signal that says so, then never look again."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.initial = ""

    @classmethod
    async def start(cls, address: str) -> Locksmith:
        listener = await Listener.open(address, LOCKSMITH_RULE)
        self = cls(listener)
        reply = await manager(listener, "GetStatus")
        assert [type(value) for value in reply.body] == [int, float, str, str, int]
        self.initial = reply.body[2]
        return self

    def reboots(self) -> int:
        """How many signals it had heard when it went for the reboot, or -1."""
        if self.initial == "UPDATE_STATUS_UPDATED_NEED_REBOOT":
            return 0
        for number, body in enumerate(self._listener.named("StatusUpdate"), 1):
            assert len(body) >= 5
            if body[2] == "UPDATE_STATUS_UPDATED_NEED_REBOOT":
                return number
        return -1


def fluo_annotations(signals: list[list[Any]]) -> list[tuple[str, str]]:
    """What FLUO publishes (reference 4.3): (operation, new version) at each change of operation."""
    published, old = [], ""
    for _checked, _progress, operation, version, _size in signals:
        if operation != old:
            published.append((operation.removeprefix("UPDATE_STATUS_"), version))
            old = operation
    return published


async def test_locksmith_and_fluo_act_at_the_right_moment(served: Any) -> None:
    early = await Locksmith.start(served.address)
    fluo = await Listener.open(served.address, LOCKSMITH_RULE)
    driver = await Listener.open(served.address)
    await manager(driver, "AttemptUpdate")
    await fluo.settle()
    assert early.reboots() == -1
    await tell(served.steering, served.steering.jobs[0])
    await fluo.until(lambda: fluo.named("StatusUpdate")[-1][2].endswith("NEED_REBOOT"))
    await early._listener.settle()
    assert early.reboots() == len(fluo.named("StatusUpdate")), "the last signal, not an earlier"
    assert fluo_annotations(fluo.named("StatusUpdate")) == [
        ("CHECKING_FOR_UPDATE", "0.0.0"),
        ("UPDATE_AVAILABLE", "3602.1.5"),
        ("DOWNLOADING", "3602.1.5"),
        ("FINALIZING", "3602.1.5"),
        ("UPDATED_NEED_REBOOT", "3602.1.5"),
    ]
    late = await Locksmith.start(served.address)
    assert late.reboots() == 0
    for listener in (early._listener, late._listener, fluo, driver):
        listener.close()


def test_the_recorded_signals_of_the_original_suit_the_same_clients() -> None:
    """The stand-ins above are right only if they act the same on what the original sent."""
    recorded = VECTORS / "full_kernel" / "signals.txt"
    if not recorded.exists():
        pytest.skip("the recorded vectors are not here")
    values = re.findall(
        r"member=StatusUpdate\n\s+int64 (\d+)\n\s+double (\S+)\n\s+string \"(.*)\"\n"
        r"\s+string \"(.*)\"\n\s+int64 (\d+)",
        recorded.read_text(),
    )
    signals = [[int(a), float(b), c, d, int(e)] for a, b, c, d, e in values]
    assert [operation for operation, _ in fluo_annotations(signals)] == [
        "IDLE",
        "CHECKING_FOR_UPDATE",
        "UPDATE_AVAILABLE",
        "DOWNLOADING",
        "FINALIZING",
        "UPDATED_NEED_REBOOT",
    ]


async def _output(*command: str) -> str:
    import asyncio

    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode().strip()


async def test_busctl_and_gdbus_agree(served: Any) -> None:
    import shutil

    for tool in ("busctl", "gdbus"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    served.steering.move(
        State.UPDATED_NEED_REBOOT, last_checked=1795257440, new_version="3602.1.5", new_size=5
    )
    bus = f"--address={served.address}"
    assert (
        await _output("busctl", bus, "call", NAME, PATH, INTERFACE, "GetStatus")
        == 'xdssx 1795257440 0 "UPDATE_STATUS_UPDATED_NEED_REBOOT" "3602.1.5" 5'
    )
    where = ("--address", served.address, "--dest", NAME, "--object-path", PATH)
    assert (
        await _output("gdbus", "call", *where, "--method", f"{INTERFACE}.GetStatus")
        == "(int64 1795257440, 0.0, 'UPDATE_STATUS_UPDATED_NEED_REBOOT', '3602.1.5', int64 5)"
    )
    new = ("--address", served.address, "--dest", "org.bascule.Update1")
    new += ("--object-path", "/org/bascule/Update1")
    shown = await _output("gdbus", "introspect", *new, "--only-properties")
    assert "NewVersion = '3602.1.5'" in shown
    assert (
        await _output(
            "busctl", bus, "get-property", "org.bascule.Update1", "/org/bascule/Update1",
            "org.bascule.Update1", "State",
        )
        == 's "UPDATED_NEED_REBOOT"'
    )  # fmt: skip
