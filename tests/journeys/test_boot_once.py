"""`rollback --once` and what a reboot cost, on a whole host."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

from node import Node, well
from publisher import Site

MakeNode = Callable[..., Node]


def updated(site: Site, make_node: MakeNode) -> Node:
    """A host that was updated from 1.0.0 in slot A to 2.0.0 in slot B."""
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    well(node.updatectl("update"))
    assert node.reboot() == "B"
    assert node.finish_boot()
    assert node.status()["verdict"] == "UPDATED"
    return node


def history(node: Node) -> list[dict[str, Any]]:
    done = node.updatectl("history", "--json")
    found: list[dict[str, Any]] = json.loads(well(done))["history"]
    return found


def test_the_other_slot_once_and_back_again(site: Site, make_node: MakeNode) -> None:
    node = updated(site, make_node)
    good = (node.flags("A"), node.flags("B"))
    told = [e for e in history(node) if e["kind"] == "verdict"]
    assert 0 <= told[-1]["facts"]["downtime_s"] < 600

    said = well(node.updatectl("rollback", "--once"))
    assert "starts once with the next reboot" in said
    assert "slot B (2.0.0) again" in said
    assert node.flags("A") == (2, 1, 0)
    assert json.loads(node.updatectl("update", "--json").stdout)["error"]["id"] == "busy"
    well(node.updatectl("cancel"))
    assert [f[2] for f in (node.flags("A"), node.flags("B"))] == [1, 1]
    assert node.reboot() == "B"

    well(node.updatectl("rollback", "--once"))
    node.stop_daemon(signal.SIGKILL)
    assert node.power_on() == "A"
    assert "for once" in str(node.status()["sentence"])
    # The slot is good again at once: it is what the host falls back to if B fails to come.
    assert node.flags("A")[1:] == (0, 1)
    assert node.flags("A")[0] < node.flags("B")[0]
    assert node.finish_boot()
    assert "for once" in str(node.status()["sentence"])
    assert node.flags("A")[0] < node.flags("B")[0]
    assert json.loads(node.updatectl("update", "--json").stdout)["error"]["id"] == "busy"
    assert node.reboot() == "B"
    assert node.release() == "2.0.0"
    status = node.status()
    assert status["verdict"] == "UPDATED"
    assert status["quarantine"] == 0
    assert (node.flags("A")[1:], node.flags("B")[1:]) == (good[0][1:], good[1][1:])
    assert node.reboot() == "B"
    assert any(e["kind"] == "once-over" for e in history(node))
    assert all(e.get("errorcode") != "44" for e in site.events())


def test_once_with_the_daemon_masked(site: Site, make_node: MakeNode) -> None:
    """The blessing is all that runs of ours in the one boot, and does not bless it."""
    node = updated(site, make_node)
    well(node.updatectl("rollback", "--once"))
    node.stop_daemon()
    assert node.power_on(daemon=False) == "A"
    assert node.finish_boot()
    assert node.flags("A")[0] < node.flags("B")[0]
    assert node.power_on(daemon=False) == "B"
    assert node.finish_boot()
    assert node.power_on() == "B"
    assert node.flags("A")[1:] == (0, 1)
    assert node.ledger()["once"] == {}


def test_once_into_a_slot_that_hangs(site: Site, make_node: MakeNode) -> None:
    """Nobody of ours runs in the one boot; the firmware goes back, the slot's success is given back."""
    node = updated(site, make_node)
    well(node.updatectl("rollback", "--once"))
    node.stop_daemon()
    assert node.power_on(daemon=False) == "A"
    assert node.flags("A") == (2, 0, 0)
    assert node.power_on() == "B"
    assert node.flags("A")[1:] == (0, 1)
    assert node.flags("A")[0] < node.flags("B")[0]
    assert node.status()["verdict"] == "UPDATED"


def test_once_is_refused_where_there_is_nothing_good(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    assert json.loads(node.updatectl("rollback", "--once", "--json").stdout)["error"]["id"] == (
        "slot-not-bootable"
    )
    assert node.ledger().get("once", {}) == {}
    well(node.updatectl("update"))
    assert json.loads(node.updatectl("rollback", "--once", "--json").stdout)["error"]["id"] == (
        "busy"
    )
    assert node.reboot() == "B"
    assert json.loads(node.updatectl("rollback", "--once", "--json").stdout)["error"]["id"] == (
        "booted-not-blessed"
    )


def test_rollback_for_good_is_told_and_lifted(site: Site, make_node: MakeNode) -> None:
    node = updated(site, make_node)
    well(node.updatectl("rollback"))
    status = node.status()
    assert status["sentence"] == (
        "Release 2.0.0 was rolled back by hand; 1.0.0 starts with the next reboot; "
        "2.0.0 will not be tried again."
    )
    assert node.reboot() == "A"
    assert "back on 1.0.0" in str(node.status()["sentence"])
    assert node.updatectl("update").returncode == 14
    well(node.updatectl("quarantine", "clear"))
    status = node.status()
    assert "2.0.0 may be tried again" in str(status["sentence"])
    assert status["last_error"] is None
    well(node.updatectl("update"))
