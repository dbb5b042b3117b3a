"""`prepare`, `activate`, `deactivate` on a whole host, with the server away when it must not matter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from node import BIN, Node, tool, well
from publisher import Site

MakeNode = Callable[..., Node]


def payload_requests(site: Site) -> list[dict[str, object]]:
    return [r for r in site.requests() if r["kind"] == "payload"]


def test_prepare_then_activate_without_a_server(site: Site, make_node: MakeNode) -> None:
    kernel = site.folder / "vmlinuz"
    kernel.write_bytes(b"k" * 70_001)
    two = site.publish("2.0.0", kernel=kernel)
    node = make_node(kernel=kernel)
    node.power_on()

    assert "prepared in slot B" in well(node.updatectl("prepare"))
    status = node.status()
    assert (status["state"], status["new_version"]) == ("IDLE", "")
    assert status["sentence"] == (
        "Release 2.0.0 is prepared in slot B; `updatectl activate` lets it boot next."
    )
    assert node.flags("B") == (0, 0, 0)
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
    assert not (node.run / "reboot-required").exists()
    assert node.reboot() == "A"
    assert node.status()["verdict"] == "NOTHING_PENDING"

    site.stop()
    for _ in range(2):
        assert "starts with the next reboot" in well(node.updatectl("activate"))
    assert node.status()["state"] == "UPDATED_NEED_REBOOT"
    assert node.flags("B") == (2, 1, 0)
    assert (node.run / "reboot-required").exists()
    assert node.kernel("B").read_bytes() == kernel.read_bytes()

    assert "stays prepared" in well(node.updatectl("deactivate"))
    assert node.flags("B") == (0, 0, 0)
    assert not (node.run / "reboot-required").exists()
    again = node.updatectl("deactivate", "--json")
    assert json.loads(again.stdout)["error"]["id"] == "nothing-pending"
    assert node.reboot() == "A"

    well(node.updatectl("activate"))
    assert node.reboot() == "B"
    on_trial = node.updatectl("deactivate", "--json")
    assert json.loads(on_trial.stdout)["error"]["id"] == "nothing-pending"
    assert json.loads(node.updatectl("activate", "--json").stdout)["error"]["id"] == (
        "booted-not-blessed"
    )
    assert node.finish_boot()
    assert node.status()["verdict"] == "UPDATED"
    gone = node.updatectl("activate", "--json")
    assert json.loads(gone.stdout)["error"]["id"] == "nothing-pending"
    assert node.kernel("B").read_bytes() == kernel.read_bytes()
    assert len(payload_requests(site)) == 1


def test_staged_then_deactivated_comes_back_without_a_download(
    site: Site, make_node: MakeNode
) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    well(node.updatectl("update"))
    well(node.updatectl("deactivate"))
    assert node.reboot() == "A"
    # A tick by the clock, or a check by hand, does not stage it behind its operator's back.
    well(node.updatectl("check"))
    assert node.flags("B") == (0, 0, 0)
    # `update` is the operator's word too: it fetches the signature only.
    well(node.updatectl("update"))
    assert node.status()["state"] == "UPDATED_NEED_REBOOT"
    fetched = [int(str(r["sent"])) for r in payload_requests(site)]
    assert len(fetched) == 2 and 0 < fetched[1] < 4096 < fetched[0]
    well(node.updatectl("cancel"))
    assert node.updatectl("activate").returncode != 0


def test_something_newer_takes_the_place_of_what_was_prepared(
    site: Site, make_node: MakeNode
) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    well(node.updatectl("prepare"))
    well(node.updatectl("prepare"))
    three = site.publish("3.0.0")
    well(node.updatectl("prepare"))
    assert "3.0.0 is prepared" in str(node.status()["sentence"])
    well(node.updatectl("activate"))
    assert node.reboot() == "B"
    assert node.release() == "3.0.0"
    assert node.slot_bytes("B", three.stat().st_size) == three.read_bytes()


def test_damage_to_a_prepared_slot_is_found_before_it_can_boot(
    site: Site, make_node: MakeNode
) -> None:
    two = site.publish("2.0.0")
    node = make_node()
    node.power_on()
    well(node.updatectl("prepare"))
    with node.disk.open("r+b") as disk:
        disk.seek(node.offset("B") + 5 * 4096)
        disk.write(b"bit rot")
    done = node.updatectl("activate", "--json")
    assert json.loads(done.stdout)["error"]["id"] == "slot-hash"
    assert node.flags("B") == (0, 0, 0)
    assert json.loads(node.updatectl("activate", "--json").stdout)["error"]["id"] == (
        "nothing-pending"
    )
    well(node.updatectl("update"))
    assert node.reboot() == "B"
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()


def test_given_up_by_cancel(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    well(node.updatectl("prepare"))
    assert "given up" in well(node.updatectl("cancel"))
    assert json.loads(node.updatectl("activate", "--json").stdout)["error"]["id"] == (
        "nothing-pending"
    )
    assert "prepared" not in str(node.status()["sentence"])


@pytest.mark.parametrize("after", [0.3, 0.9, 1.5])
def test_kills_while_activating(site: Site, make_node: MakeNode, after: float) -> None:
    """SIGKILL to daemon and errand at any moment: the old slot boots, or the new one, staged."""
    two = site.publish("2.0.0")
    node = make_node()
    node.power_on()
    well(node.updatectl("prepare"))
    site.stop()
    client = subprocess.Popen(
        [str(BIN / "updatectl"), "activate"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=node._env(),
    )
    node.pause(after)
    for pid in node.errands():
        os.kill(pid, signal.SIGKILL)
    node.stop_daemon(signal.SIGKILL)
    client.wait(60)
    flags = node.flags("B")
    assert flags in ((0, 0, 0), (2, 1, 0))
    assert node.power_on() == ("B" if flags[0] else "A")
    if node.slot == "A":
        assert "is prepared" in str(node.status()["sentence"]), node.ledger()
        well(node.updatectl("activate"))
        assert node.reboot() == "B"
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
    assert node.finish_boot()
    assert node.status()["verdict"] == "UPDATED"


def test_a_damaged_copy_of_the_table_is_mended_before_the_first_byte_and_told(
    site: Site, make_node: MakeNode
) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    with node.disk.open("r+b") as disk:
        disk.seek(-512, os.SEEK_END)
        disk.write(b"not a table")
    well(node.updatectl("prepare"))
    assert "is prepared" in " ".join(
        json.loads(well(node.updatectl("explain", "--json")))["sentences"]
    )
    entries = json.loads(well(node.updatectl("history", "--json")))["history"]
    mended = [e for e in entries if e["kind"] == "boot-repaired"]
    assert len(mended) == 1 and "backup" in mended[0]["facts"]["what"]
    assert any(e["kind"] == "prepared" for e in entries)
    checked = subprocess.run([tool("sgdisk"), "-v", str(node.disk)], capture_output=True, text=True)
    assert "No problems found" in checked.stdout
