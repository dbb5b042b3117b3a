"""Who may do what: the shipped bus policies on a system bus, and polkit."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from xml.etree import ElementTree

import pytest
from dbus_fast import Variant
from dbus_fast.annotations import DBusSignature, DBusStr, DBusUInt32
from dbus_fast.service import ServiceInterface, dbus_method

from bascule.faces import authority, bus, legacy_bus
from bascule.faces.bus import BusFace, introspection_xml
from bascule.faces.bus_connection import BusConnection
from bascule.faces.legacy_bus import LegacyBusFace
from bus_fixture import private_bus
from fake_steering import FakeSteering
from polkit_server import (
    NOBODY,
    POLICIES,
    POLKIT_BUS_POLICY,
    POLKITD,
    SHIPPED,
    name_appears,
    real_polkit,
)
from private_bus import CLOSED, PrivateBus

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("busctl") is None,
    reason="needs root, to call as another user, and busctl",
)


def test_every_action_is_in_the_policy_file() -> None:
    tree = ElementTree.parse(SHIPPED / "polkit-1" / "actions" / "org.bascule.Update1.policy")
    listed = {action.get("id") for action in tree.getroot().iter("action")}
    assert listed == {authority.ACTION_PREFIX + action for action in authority.ACTIONS}


def test_the_shipped_interface_description_is_the_present_one() -> None:
    shipped = SHIPPED / "dbus-1" / "interfaces" / "org.bascule.Update1.xml"
    assert shipped.read_text() == introspection_xml(), (
        "write it anew: python -c 'from bascule.faces.bus import *; print(introspection_xml())'"
    )


@asynccontextmanager
async def daemon_on(running: PrivateBus) -> AsyncIterator[FakeSteering]:
    steering = FakeSteering()
    connection = BusConnection(running.address)
    face = BusFace(steering, connection)
    legacy = LegacyBusFace(steering, connection)
    await connection.connect([bus.NAME, legacy_bus.NAME])
    try:
        yield steering
    finally:
        face.close()
        legacy.close()
        connection.close()


async def call_as(uid: int, address: str, name: str, path: str, *rest: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "busctl", f"--address={address}", "call", name, path, *rest,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, user=uid, group=uid,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode().strip()


async def legacy_as(uid: int, address: str, member: str) -> tuple[int, str]:
    return await call_as(
        uid, address, legacy_bus.NAME, legacy_bus.PATH, legacy_bus.INTERFACE, member
    )


async def update1_as(uid: int, address: str, *rest: str) -> tuple[int, str]:
    return await call_as(uid, address, bus.NAME, bus.PATH, bus.INTERFACE, *rest)


@needs_root
async def test_the_shipped_bus_policies() -> None:
    with private_bus("system", CLOSED, POLICIES) as running:
        async with daemon_on(running) as steering:
            for member in ("GetStatus", "ResetStatus", "AttemptUpdate"):
                code, out = await legacy_as(0, running.address, member)
                assert code == 0, out
            assert len(steering.asked) == 2
            code, out = await legacy_as(NOBODY, running.address, "GetStatus")
            assert (code, out.split()[0]) == (0, "xdssx")
            for member in ("ResetStatus", "AttemptUpdate"):
                code, out = await legacy_as(NOBODY, running.address, member)
                assert code != 0
                assert "denied" in out
            assert len(steering.asked) == 2, "the bus kept them away from us"

            code, out = await call_as(
                NOBODY, running.address, bus.NAME, bus.PATH,
                "org.freedesktop.DBus.Properties", "GetAll", "s", bus.INTERFACE,
            )  # fmt: skip
            assert code == 0, out
            code, out = await update1_as(
                NOBODY, running.address, "Document", "sa{sv}", "history", "0"
            )
            assert code == 0, out
            code, out = await update1_as(NOBODY, running.address, "Cancel")
            assert code != 0
            assert "You may not do this" in out
            assert "org.bascule.Update1.cancel" in out
            assert not any(verb == "cancel" for verb, _, _ in steering.asked)

            stranger = await asyncio.create_subprocess_exec(
                "busctl", f"--address={running.address}", "call", "org.freedesktop.DBus",
                "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName", "su",
                "org.bascule.Update1.Fake", "4",
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=NOBODY, group=NOBODY,
            )  # fmt: skip
            assert await stranger.wait() != 0


@needs_root
@pytest.mark.skipif(not POLKITD.exists(), reason="polkitd is not installed")
async def test_polkitd_decides_for_everybody_but_root() -> None:
    rules = """polkit.addRule(function(action, subject) {
        if (action.id == "org.bascule.Update1.check" && subject.user == "nobody")
            return polkit.Result.YES;
    });"""
    include = [*POLICIES, POLKIT_BUS_POLICY]
    with private_bus("system", CLOSED, include) as running, real_polkit(running, rules):
        if not await name_appears(running.address, authority.POLKIT):
            pytest.skip("polkitd did not start here (needs a mount namespace)")
        async with daemon_on(running) as steering:
            code, out = await update1_as(NOBODY, running.address, "Update", "a{sv}", "0")
            assert code != 0
            assert "needs authentication" in out
            assert not steering.asked
            code, out = await update1_as(NOBODY, running.address, "Check")
            assert code == 0, out
            verb, _, actor = steering.asked[-1]
            assert (verb, actor.uid) == ("check", NOBODY)
            code, out = await update1_as(0, running.address, "Cancel")
            assert code == 0, out


class StandIn(ServiceInterface):
    """A polkit that says yes to whom it likes, and notes what it was asked."""

    def __init__(self, yes: set[str]) -> None:
        super().__init__(authority.POLKIT_INTERFACE)
        self.yes = yes
        self.asked: list[tuple[str, int]] = []

    @dbus_method()
    def CheckAuthorization(
        self,
        subject: Annotated[tuple[str, dict[str, Variant]], DBusSignature("(sa{sv})")],
        action: DBusStr,
        details: Annotated[dict[str, str], DBusSignature("a{ss}")],
        flags: DBusUInt32,
        cancellation: DBusStr,
    ) -> Annotated[list[Any], DBusSignature("(bba{ss})")]:
        assert subject[0] == "system-bus-name"
        self.asked.append((action, flags))
        return [action in self.yes, False, {}]


async def test_what_polkit_is_asked_for_each_verb(bus_address: str) -> None:
    from dbus_fast import MessageFlag, MessageType
    from dbus_fast.message import Message

    from bus_listener import Listener

    stand_in = StandIn({"org.bascule.Update1.update", "org.bascule.Update1.configure"})
    polkit = BusConnection(bus_address)
    polkit.export(authority.POLKIT_PATH, stand_in)
    await polkit.connect([authority.POLKIT])
    steering = FakeSteering()
    connection = BusConnection(bus_address)
    face = BusFace(steering, connection)
    face.authority._trusted = frozenset()  # so that our own user is like everybody else
    await connection.connect([bus.NAME])
    listener = await Listener.open(bus_address)
    assert listener.bus is not None

    async def ask(member: str, signature: str = "", *body: Any, interactive: bool = False) -> str:
        assert listener.bus is not None
        reply = await listener.bus.call(
            Message(
                destination=bus.NAME,
                path=bus.PATH,
                interface=bus.INTERFACE,
                member=member,
                signature=signature,
                body=list(body),
                flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
                if interactive
                else MessageFlag.NONE,
            )
        )
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            return str(reply.error_name).rpartition(".")[2]
        return "yes"

    yes = Variant("b", True)
    assert await ask("Update", "a{sv}", {}) == "yes"
    steering.move(type(steering.status.state).IDLE)
    assert await ask("Update", "a{sv}", {"now": Variant("b", False)}, interactive=True) == "yes"
    assert await ask("Update", "a{sv}", {"allow_downgrade": yes}) == "NotPermitted"
    assert await ask("Update", "a{sv}", {"now": yes}) == "NotPermitted"
    assert await ask("Check") == "NotPermitted"
    assert await ask("Cancel") == "NotPermitted"
    assert await ask("Reset") == "NotPermitted"
    assert await ask("Reboot") == "NotPermitted"
    assert await ask("Rollback", "a{sv}", {}) == "NotPermitted"
    assert await ask("Act", "sa{sv}", "hold", {}) == "yes"
    assert await ask("Act", "sa{sv}", "doctor-repair", {}) == "NotPermitted"
    assert await ask("Act", "sa{sv}", "quarantine-clear", {}) == "NotPermitted"
    assert await ask("Document", "sa{sv}", "history", {}) == "yes"
    assert [(a.removeprefix("org.bascule.Update1."), flags) for a, flags in stand_in.asked] == [
        ("update", 0),
        ("update", 1),
        ("override", 0),
        ("override", 0),
        ("check", 0),
        ("cancel", 0),
        ("cancel", 0),
        ("reboot", 0),
        ("rollback", 0),
        ("configure", 0),
        ("repair", 0),
        ("override", 0),
    ]
    for c in (connection, polkit):
        c.close()
    listener.close()
