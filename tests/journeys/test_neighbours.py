"""One host, several who could reboot it: locksmithd, whoever asked for no reboot, and we."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from node import Node
from publisher import Site

MakeNode = Callable[..., Node]
SETTINGS = '[reboot]\nstrategy = "reboot"\nwarn = 0\n'
LOCKSMITHD = """
import fcntl, os, sys
os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("NAME=locksmithd\\nSTRATEGY=etcd-lock\\nSTATE=running")
file.flush()
print("ready", flush=True)
sys.stdin.read()
"""


def gate(node: Node, name: str) -> dict[str, Any]:
    done = node.updatectl("explain", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = next(g for g in json.loads(done.stdout)["gates"] if g["name"] == name)
    return found


def reboots(node: Node) -> None:
    deadline = time.monotonic() + 180
    while not node.reboot_requested:
        if time.monotonic() > deadline:
            raise TimeoutError("the host does not reboot")
        node.pause(0.2)


def test_locksmithd_was_first(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node(settings=SETTINGS)
    file = node.run / "update-engine/coordinator.conf"
    assert node.power_on(daemon=False) == "A"
    other = subprocess.Popen(
        [sys.executable, "-c", LOCKSMITHD, str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        node.start_daemon()
        assert node.updatectl("update").returncode == 0
        told = gate(node, "strategy")
        assert told["reason"] == "strategy.locksmith" and told["verdict"] == "block"
        assert "locksmithd reboots this host (strategy etcd-lock, running)." in told["evidence"]
        assert not node.reboot_requested
        node.stop_daemon()
    finally:
        other.communicate()
    node.start_daemon()
    reboots(node)
    assert file.read_text() == "NAME=bascule\nSTRATEGY=reboot\nSTATE=rebooting"


def test_no_reboot_is_remembered_over_a_restart(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node(settings=SETTINGS)
    assert node.power_on() == "A"
    assert node.updatectl("update", "--no-reboot").returncode == 0
    for _ in range(2):
        told = gate(node, "mode")
        assert (told["reason"], told["blocks"], told["verdict"]) == (
            "mode.no-reboot", "reboot", "block",
        )  # fmt: skip
        blocked = node.status()["blocked_by"]
        assert isinstance(blocked, list)
        assert [g["reason"] for g in blocked] == ["mode.no-reboot"]
        assert not node.reboot_requested
        node.stop_daemon()
        node.start_daemon()
    done = node.updatectl("reboot")
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.reboot_requested
