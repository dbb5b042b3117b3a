"""One real daemon, one real update, and everybody's clients: busctl, gdbus, pydbus through the
system's GLib, Flatcar's client and ours see the same; who waits for the reboot as locksmith and FLUO
do is told when the new slot is the next boot, not a moment earlier."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.message import Message

from bus_fixture import private_bus
from node import BIN, Node, tool
from publisher import IMAGE_MIB, Site

ROOT = Path(__file__).resolve().parents[2]
NAME, PATH = "com.coreos.update1", "/com/coreos/update1"
INTERFACE = "com.coreos.update1.Manager"
RULE = f"type='signal',interface='{INTERFACE}',member='StatusUpdate'"
SYSTEM_PYTHON = "/usr/bin/python3"
PYDBUS = """
import json, sys, pydbus
manager = pydbus.connect(sys.argv[1]).get("com.coreos.update1", "/com/coreos/update1")
print(json.dumps(list(manager["com.coreos.update1.Manager"].GetStatus())))
"""

Seen = tuple[int, float, str, str, int]


def run(*words: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def by_busctl(node: Node) -> Seen:
    out = run(tool("busctl"), f"--address={node.bus}", "call", NAME, PATH, INTERFACE, "GetStatus")
    signature, *words = out.split()
    assert signature == "xdssx"
    return int(words[0]), float(words[1]), words[2].strip('"'), words[3].strip('"'), int(words[4])


def by_gdbus(node: Node) -> Seen:
    out = run(
        tool("gdbus"), "call", "--address", node.bus, "--dest", NAME, "--object-path", PATH,
        "--method", f"{INTERFACE}.GetStatus",
    )  # fmt: skip
    found = re.fullmatch(r"\(int64 (\d+), ([\d.]+), '(\w+)', '([\w.]+)', int64 (\d+)\)", out)
    assert found, out
    return int(found[1]), float(found[2]), found[3], found[4], int(found[5])


def by_pydbus(node: Node) -> Seen:
    home = ROOT / "build" / "pydbus"
    if not (home / "pydbus").is_dir():
        pytest.skip("pydbus is not in build/pydbus (`make setup` fetches it)")
    env = {"PYTHONPATH": str(home), "PATH": "/usr/bin:/bin"}
    values = json.loads(run(SYSTEM_PYTHON, "-c", PYDBUS, node.bus, env=env))
    return values[0], values[1], values[2], values[3], values[4]


def by_flatcars_client(node: Node) -> Seen:
    out = run(str(BIN / "update_engine_client"), "-status", env=node._env())
    facts = dict(line.split("=", 1) for line in out.splitlines())
    return (
        int(facts["LAST_CHECKED_TIME"]),
        float(facts["PROGRESS"]),
        facts["CURRENT_OP"],
        facts["NEW_VERSION"],
        int(facts["NEW_SIZE"]),
    )


def by_updatectl(node: Node) -> Seen:
    status: dict[str, Any] = node.status()
    return (
        int(status["last_checked"] or 0),
        0.0,
        f"UPDATE_STATUS_{status['state']}",
        status["new_version"] or "0.0.0",
        int(status["new_size"] or 0),
    )


CLIENTS = (by_busctl, by_gdbus, by_pydbus, by_flatcars_client, by_updatectl)


class Waiting:
    """What locksmith and FLUO see, and what the disk says at that very moment."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.told: list[tuple[str, str]] = []
        self.at_reboot: list[tuple[tuple[int, int, int], dict[str, Any] | None, bool]] = []
        self.rebooting = asyncio.Event()

    def hear(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL or message.member != "StatusUpdate":
            return
        assert message.signature == "xdssx"
        _, _, operation, version, _ = message.body
        operation = operation.removeprefix("UPDATE_STATUS_")
        if not self.told or self.told[-1][0] != operation:
            self.told.append((operation, version))
        if operation == "UPDATED_NEED_REBOOT" and not self.at_reboot:
            intent = self.node.ledger()["intent"]
            assert intent is None or isinstance(intent, dict)
            marker = (self.node.run / "reboot-required").exists()
            self.at_reboot.append((self.node.flags("B"), intent, marker))
            self.rebooting.set()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    site = await asyncio.to_thread(Site, tmp_path / "publisher")
    await asyncio.to_thread(site.publish, "2.0.0")
    await asyncio.to_thread(site.start)
    with private_bus() as bus:
        node = Node(tmp_path / "node", site.url, bus.address, site.keys, slot_mib=IMAGE_MIB + 2)
        await asyncio.to_thread(node.make, site.image("1.0.0"))
        await asyncio.to_thread(node.power_on)
        try:
            yield node
        finally:
            await asyncio.to_thread(node.power_off)
            site.stop()


async def test_all_clients_see_the_same_and_who_waits_acts_in_time(node: Node) -> None:
    async def ask_all() -> Seen:
        answers = [await asyncio.to_thread(client, node) for client in CLIENTS]
        assert len(set(answers)) == 1, answers
        return answers[0]

    assert await ask_all() == (0, 0.0, "UPDATE_STATUS_IDLE", "0.0.0", 0)
    waiting = Waiting(node)
    listener = await MessageBus(node.bus).connect()
    listener.add_message_handler(waiting.hear)
    await listener.call(
        Message(
            destination="org.freedesktop.DBus", path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus", member="AddMatch", signature="s", body=[RULE],
        )
    )  # fmt: skip
    began = await asyncio.to_thread(
        run, tool("busctl"), f"--address={node.bus}", "call", NAME, PATH, INTERFACE, "AttemptUpdate"
    )
    assert began == ""
    async with asyncio.timeout(60):
        await waiting.rebooting.wait()
    # FLUO publishes the version that a signal carries: it must be right at each change.
    assert waiting.told == [
        ("CHECKING_FOR_UPDATE", "0.0.0"),
        ("UPDATE_AVAILABLE", "2.0.0"),
        ("DOWNLOADING", "2.0.0"),
        ("FINALIZING", "2.0.0"),
        ("UPDATED_NEED_REBOOT", "2.0.0"),
    ]
    # locksmith may reboot at once: everything that the next boot needs is on the disk by then.
    ((flags, intent, marker),) = waiting.at_reboot
    assert flags == (2, 1, 0)
    assert intent and intent["version"] == "2.0.0"
    assert marker
    seen = await ask_all()
    assert seen[2:4] == ("UPDATE_STATUS_UPDATED_NEED_REBOOT", "2.0.0") and seen[4] > 0
    # Whoever comes later finds the same, and AttemptUpdate is still answered with success.
    assert (
        await asyncio.to_thread(
            run, tool("gdbus"), "call", "--address", node.bus, "--dest", NAME,
            "--object-path", PATH, "--method", f"{INTERFACE}.AttemptUpdate",
        )
        == "()"
    )  # fmt: skip
    assert await ask_all() == seen
    listener.disconnect()
    await listener.wait_for_disconnect()
    assert await asyncio.to_thread(node.reboot) == "B"
