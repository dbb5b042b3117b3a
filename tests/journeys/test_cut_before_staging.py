"""The power goes between the proof of a slot and its staging: the next check goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from node import BIN, Node
from publisher import Site

MakeNode = Callable[..., Node]

EVERY_SECOND = '[check]\nfirst = "0.1s"\nfuzz = "0s"\ninterval = "1s"\n[policy]\nmode = "stage"\n'


def hold_the_baseline(node: Node) -> Path:
    """The health checks that are asked before staging wait until the file that is returned is gone."""
    held = node.folder / "held"
    held.touch()
    check = node.root / "etc/bascule/health.d/05-hold"
    check.write_text(f"#!/bin/sh\nwhile [ -e {held} ]; do sleep 0.1; done\n")
    check.chmod(0o755)
    return held


@pytest.mark.parametrize("who", ["operator", "clock"])
def test_it_is_staged_at_the_next_check_without_a_download(
    site: Site, make_node: MakeNode, who: str
) -> None:
    two = site.publish("2.0.0")
    catalogue = site.served / "releases.toml"
    catalogue.write_text(catalogue.read_text().replace("disable_backoff = true", ""))
    assert "disable_backoff" not in catalogue.read_text()
    node = make_node(settings="[download]\ndeltas = false\n")
    held = hold_the_baseline(node)
    node.power_on()
    client = subprocess.Popen(
        [str(BIN / "updatectl"), "update"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=node._env(),
    )
    try:
        node.until(
            lambda: bool((node.state / "ledger.json").exists() and node.ledger()["prepared"])
        )
        for pid in node.errands():
            os.kill(pid, signal.SIGKILL)
        node.power_off()
    finally:
        client.wait(60)
    assert node.flags("B") == (0, 0, 0)
    held.unlink()
    if who == "clock":
        node.settings += EVERY_SECOND
        node.write_config()
    assert node.power_on() == "A"
    if who == "operator":
        done = node.updatectl("update")
        assert done.returncode == 0, done.stdout + done.stderr
    node.until(lambda: node.status()["state"] == "UPDATED_NEED_REBOOT")
    assert node.flags("B") == (2, 1, 0)
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
    first, *more = [int(str(r["sent"])) for r in site.requests() if r["kind"] == "payload"]
    # What follows the last operation: the signature.
    assert sum(more) < 1024 < first
