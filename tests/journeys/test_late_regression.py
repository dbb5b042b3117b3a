"""A release that fails after it was confirmed: the agent returns to the old slot while it is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node import Node, well
from publisher import Site

MakeNode = Callable[..., Node]
SETTINGS = '[reboot]\nlate_window = "1h"\nlate_units = ["web.service"]\n'


class Systemd:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.process: subprocess.Popen[str] | None = None
        self.say("active", 0)

    def say(self, active: str, restarts: int) -> None:
        aside = self.file.with_suffix(".new")
        aside.write_text(json.dumps({"web.service": [active, restarts]}))
        aside.replace(self.file)

    def start(self, address: str) -> None:
        script = Path(__file__).resolve().parents[1] / "fake_systemd.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), address, str(self.file)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path / "units.json")
    yield systemd
    if systemd.process is not None:
        systemd.process.terminate()
        systemd.process.wait(20)
        assert systemd.process.stdout is not None
        systemd.process.stdout.close()


def confirmed(site: Site, make_node: MakeNode, systemd: Systemd) -> Node:
    site.publish("2.0.0")
    node = make_node(settings=SETTINGS)
    systemd.start(node.bus)
    node.power_on()
    well(node.updatectl("update"))
    assert node.reboot() == "B"
    assert node.finish_boot()
    assert node.status()["verdict"] == "UPDATED"
    return node


def test_a_crash_loop_returns_to_the_old_slot(
    site: Site, make_node: MakeNode, systemd: Systemd
) -> None:
    node = confirmed(site, make_node, systemd)
    # The old slot is kept: nothing newer is written over it.
    site.publish("3.0.0")
    assert node.updatectl("update").returncode == 13
    for restarts in range(1, 3):
        systemd.say("active", restarts)
        node.pause(0.5)
    assert not node.reboot_requested
    systemd.say("activating", 40)
    node.until(lambda: node.reboot_requested)
    status = node.status()
    assert status["verdict"] == "ROLLED_BACK"
    assert "web.service keeps failing" in str(status["sentence"])
    assert "1.0.0 starts with the next reboot" in str(status["sentence"])
    systemd.say("active", 0)
    assert node.reboot() == "A"
    assert node.release() == "1.0.0"
    status = node.status()
    assert "back on 1.0.0" in str(status["sentence"])
    assert status["quarantine"] == 1
    assert node.ledger()["late"] == {}
    assert node.flags("A")[1:] == (0, 1)
    well(node.updatectl("check"))
    assert any(e.get("errorcode") == "44" for e in site.events())
    kinds = [e["kind"] for e in json.loads(well(node.updatectl("history", "--json")))["history"]]
    assert "verdict" in kinds


def test_no_way_back_is_said_and_nothing_is_rebooted(
    site: Site, make_node: MakeNode, systemd: Systemd
) -> None:
    node = confirmed(site, make_node, systemd)
    node.cgpt("A", priority=0, tries=0, successful=0)
    systemd.say("failed", 0)
    node.until(lambda: "late-trouble" in node.log.read_text())
    node.pause(1.0)
    assert not node.reboot_requested
    assert node.status()["verdict"] == "UPDATED"
    assert node.reboot() == "B"


def test_rollback_by_hand_in_the_window_is_told_to_the_server(
    site: Site, make_node: MakeNode, systemd: Systemd
) -> None:
    node = confirmed(site, make_node, systemd)
    well(node.updatectl("rollback"))
    assert not node.reboot_requested
    well(node.updatectl("reboot"))
    assert node.reboot_requested
    assert node.reboot() == "A"
    assert node.updatectl("update").returncode == 14
    assert any(e.get("errorcode") == "44" for e in site.events())
