"""Daemon, errand, CLI, bus, server, disk and firmware as separate processes: whole stories."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from node import BIN, Node, tool
from publisher import Site

MakeNode = Callable[..., Node]


def healthy_table(node: Node) -> None:
    """Other people's programs find the table whole."""
    done = subprocess.run([tool("sgdisk"), "-v", str(node.disk)], capture_output=True, text=True)
    assert done.returncode == 0 and "No problems found" in done.stdout, done.stdout


def test_good_then_bad_then_better(site: Site, make_node: MakeNode, tmp_path: Path) -> None:
    kernels = {}
    for version in ("1", "2"):
        kernels[version] = tmp_path / f"vmlinuz-{version}"
        kernels[version].write_bytes(version.encode() * 70_001)
    two = site.publish("2.0.0", kernel=kernels["2"])
    node = make_node(kernel=kernels["1"])
    assert node.power_on() == "A"
    a_before = node.slot_bytes("A", 6 << 20)

    done = node.updatectl("update")
    assert done.returncode == 0, done.stdout + done.stderr
    status = node.status()
    assert status["state"] == "UPDATED_NEED_REBOOT"
    assert status["verdict"] == "WAITING"
    assert status["new_version"] == "2.0.0"
    assert node.flags("B") == (2, 1, 0)
    assert node.flags("A") == (1, 0, 1)
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
    assert node.slot_bytes("A", 6 << 20) == a_before
    assert node.kernel("B").read_bytes() == kernels["2"].read_bytes()
    assert (node.run / "reboot-required").exists()
    healthy_table(node)

    assert node.reboot() == "B"
    assert node.release() == "2.0.0"
    assert node.status()["verdict"] == "ON_TRIAL"
    assert node.updatectl("update").returncode == 13
    assert node.finish_boot()
    status = node.status()
    assert status["verdict"] == "UPDATED"
    assert "Updated from 1.0.0 to 2.0.0" in str(status["sentence"])
    assert node.flags("B") == (2, 0, 1)

    site.publish("3.0.0", "broken")
    assert node.updatectl("update").returncode == 0
    assert node.reboot() == "A"
    assert node.release() == "3.0.0"
    assert not node.finish_boot()
    assert node.reboot() == "B"
    assert node.release() == "2.0.0"
    status = node.status()
    assert status["verdict"] == "ROLLED_BACK"
    assert "10-application" in str(status["sentence"])
    assert "3.0.0 will not be tried again" in str(status["sentence"])
    assert status["quarantine"] == 1

    refused = node.updatectl("update", "--json")
    assert refused.returncode == 14
    assert json.loads(refused.stdout)["error"]["id"] == "quarantined"
    assert node.flags("B")[2] == 1

    site.publish("4.0.0")
    assert node.updatectl("update").returncode == 0
    assert node.reboot() == "A"
    assert node.finish_boot()
    assert node.status()["verdict"] == "UPDATED"
    assert node.release() == "4.0.0"
    healthy_table(node)
    events = [
        (e["eventtype"], e["eventresult"], e.get("errorcode"), e.get("previousversion"))
        for e in site.events()
    ]
    # The story as Nebraska would read it: the original's own sequence (reference 2.3).
    install = [("13", "1", None, None), ("14", "1", None, None), ("3", "1", None, None)]
    assert events[:4] == [("3", "2", None, "0.0.0.0"), *install]
    assert events[4] == ("3", "2", None, "1.0.0")
    assert events[5:8] == install
    assert events[8] == ("3", "0", "44", None)
    assert ("3", "9", str(35 | 1 << 28), None) in events
    assert events[-3:] == install


def test_nothing_newer(site: Site, make_node: MakeNode) -> None:
    site.publish("1.0.0")
    node = make_node()
    node.power_on()
    done = node.updatectl("update")
    assert done.returncode == 6, done.stderr
    status = node.status()
    assert status["state"] == "IDLE"
    assert status["last_checked"]
    assert status["last_error"] is None


def test_cancel_gives_the_next_boot_back(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    assert node.updatectl("update").returncode == 0
    assert node.updatectl("cancel").returncode == 0
    assert node.status()["state"] == "IDLE"
    assert not (node.run / "reboot-required").exists()
    assert node.reboot() == "A"
    assert node.status()["verdict"] == "NOTHING_PENDING"
    # No false report of a rollback (the original's flaw, reference 3.3).
    assert node.updatectl("check").returncode == 0
    assert all(e.get("errorcode") != "44" for e in site.events())


def test_rollback_by_hand_and_it_sticks(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    assert node.updatectl("rollback").returncode == 13  # slot B is empty
    assert node.updatectl("update").returncode == 0
    node.reboot()
    assert node.finish_boot()
    assert node.updatectl("rollback").returncode == 0
    assert node.reboot() == "A"
    assert node.release() == "1.0.0"
    assert node.updatectl("update").returncode == 14  # 2.0.0 was given up by hand


def test_release_that_never_reaches_us(site: Site, make_node: MakeNode) -> None:
    """A panic before systemd: nobody of ours runs in the trial boot, the firmware goes back."""
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    assert node.updatectl("update").returncode == 0
    node.stop_daemon()
    assert node.power_on(daemon=False) == "B"
    assert node.power_on() == "A"
    status = node.status()
    assert status["verdict"] == "ROLLED_BACK"
    assert status["quarantine"] == 1


def test_restart_while_waiting_keeps_the_version(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    assert node.updatectl("update").returncode == 0
    node.stop_daemon(signal.SIGKILL)
    node.start_daemon()
    status = node.status()
    assert (status["state"], status["new_version"]) == ("UPDATED_NEED_REBOOT", "2.0.0")


@pytest.mark.parametrize("after", [0.15, 0.4, 0.8])
@pytest.mark.parametrize("victim", ["daemon", "errand", "both"])
def test_kills_at_odd_moments(site: Site, make_node: MakeNode, victim: str, after: float) -> None:
    """SIGKILL anywhere: the booted slot stays bootable, and trying again ends UPDATED."""
    two = site.publish("2.0.0")
    site.fault("slow", rate=300_000)
    node = make_node()
    node.power_on()
    client = subprocess.Popen(
        [str(BIN / "updatectl"), "update"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=node._env(),
    )
    node.wait_for_errand()
    node.pause(after)
    if victim in ("errand", "both"):
        for pid in node.errands():
            os.kill(pid, signal.SIGKILL)
    if victim in ("daemon", "both"):
        node.stop_daemon(signal.SIGKILL)
    client.wait(60)
    healthy_table(node)
    assert node.flags("A") == (1, 0, 1)
    site.no_faults()
    if victim != "errand":
        assert node.power_on() in ("A", "B")
    assert node.slot == "A"
    done = node.updatectl("update")
    if node.status()["state"] != "UPDATED_NEED_REBOOT":
        assert done.returncode == 0, done.stdout + done.stderr
    assert node.reboot() == "B"
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
    assert node.finish_boot()
    assert node.status()["verdict"] == "UPDATED"


def test_delta_and_the_full_payload_instead(site: Site, make_node: MakeNode) -> None:
    """A delta where it fits; where the booted slot is not its source, the full payload, and it says so."""
    one, two = site.image("1.0.0"), site.publish("2.0.0")
    delta = site.folder / "delta.bin"
    site.mock(
        "pack", "--major", "2", "--image", f"usr={two}", "--old", f"usr={one}",
        "--key", str(site.key), "-o", str(delta),
    )  # fmt: skip
    site.mock(
        "publish", str(site.served), "--payload", str(delta), "--version", "2.0.0",
        "--from", "1.0.0", "--disable-backoff",
    )  # fmt: skip
    for spoilt in (False, True):
        node = make_node(settings="[download]\ndeltas = true\n")
        if spoilt:
            with node.disk.open("r+b") as file:
                file.seek(node.offset("A") + 3 * 4096)
                file.write(b"changed by hand")
        node.power_on()
        before = len(site.requests())
        done = node.updatectl("update")
        assert done.returncode == 0, done.stdout + done.stderr
        assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
        asked = [r for r in site.requests()[before:] if r["kind"] == "payload"]
        full = [r for r in asked if "delta" not in r["name"]]
        assert bool(full) is spoilt, asked
        assert ("delta-refused" in node.log.read_text()) is spoilt
        node.power_off()


def test_from_a_file_without_a_server(site: Site, make_node: MakeNode) -> None:
    """The same trust rules: a signed file installs, one signed by a stranger does not."""
    two = site.image("2.0.0")
    good = site.payload(two, "2.0.0")
    node = make_node(settings='[server]\nurl = "disabled"\n')
    node.power_on()
    assert node.updatectl("update").returncode == 6
    stranger = site.folder / "stranger"
    site.mock("keygen", str(stranger))
    bad = site.folder / "bad.bin"
    site.mock(
        "pack", "--image", str(two), "--key", str(stranger / "update.key.pem"), "-o", str(bad)
    )
    assert node.updatectl("update", "--file", str(bad)).returncode == 10
    assert node.flags("B")[0] == 0
    done = node.updatectl("update", "--file", str(good))
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.reboot() == "B"
    assert node.release() == "2.0.0"
