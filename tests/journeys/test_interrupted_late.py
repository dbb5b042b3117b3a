"""What is cut off after the last byte has come is no failure: it goes on, and is not put off."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node import Node
from publisher import Site

MakeNode = Callable[..., Node]

KILLS_ITS_ERRAND = """#!/bin/sh
# The baseline runs in the errand, when the slot is proven and not yet staged.
[ -e {done} ] && exit 0
touch {done}
kill -9 $PPID
"""


@pytest.mark.parametrize("daemon_too", [False, True])
def test_killed_between_proof_and_flip(site: Site, make_node: MakeNode, daemon_too: bool) -> None:
    two = site.publish("2.0.0")
    releases = site.served / "releases.toml"
    offered = releases.read_text()
    releases.write_text(offered.replace("disable_backoff = true", "disable_backoff = false"))
    assert releases.read_text() != offered
    node = make_node()
    check = node.root / "etc/bascule/health.d/20-kill"
    check.write_text(KILLS_ITS_ERRAND.format(done=node.folder / "killed"))
    check.chmod(0o755)
    node.power_on()
    assert node.updatectl("update").returncode != 0
    assert (node.folder / "killed").exists()
    if daemon_too:
        assert node.power_on() == "A"
    fetched = len([r for r in site.requests() if r["kind"] == "payload"])
    done = node.updatectl("update")
    assert done.returncode == 0, done.stdout + done.stderr
    again = [r for r in site.requests() if r["kind"] == "payload"][fetched:]
    assert len(again) <= 1, again
    assert node.reboot() == "B"
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
    assert node.finish_boot()
    node.until(lambda: node.status()["verdict"] == "UPDATED")
    # What was kept to go on with is of no more use, and the doctor would wonder whose it is.
    node.until(lambda: not (node.state / "checkpoint/record").exists())
    assert not (node.state / "prepared").exists()
