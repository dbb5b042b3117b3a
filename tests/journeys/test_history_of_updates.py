"""What an update cost stands in history, and whoever changes history is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from node import Node
from publisher import Site

MakeNode = Callable[..., Node]


def records(node: Node, *words: str) -> list[dict[str, Any]]:
    done = node.updatectl("history", *words, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["history"]
    return found


def test_each_update_tells_what_it_cost(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    assert node.updatectl("update").returncode == 0
    assert node.reboot() == "B"
    assert node.finish_boot()
    node.status()
    assert node.updatectl("hold", "--for", "1h").returncode == 0
    told = records(node)
    (verdict,) = [r for r in told if r["kind"] == "verdict"]
    facts = verdict["facts"]
    assert facts["verdict"] == "UPDATED"
    assert facts["download_s"] > 0 and facts["apply_s"] > 0
    assert facts["bytes"] > 1 << 20
    assert facts["written"] + facts["skipped"] >= 4 << 20
    assert facts["downtime_s"] >= 0
    assert [r["kind"] for r in records(node, "-n", "1")] == ["hold"]
    # The plan goes by it, downtime included.
    site.publish("3.0.0")
    plan = json.loads(node.updatectl("plan", "--json").stdout)
    assert plan["time"]["downtime_s"] is not None

    done = node.updatectl("history", "verify")
    assert done.returncode == 0 and "follow from each other" in done.stdout
    path = node.state / "history.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (
        whole.replace(b"2.0.0", b"9.9.9", 1),
        b"".join(lines[:1] + lines[2:]),
        b"".join(lines[:-1]),
    ):
        path.write_bytes(damaged)
        done = node.updatectl("history", "verify")
        assert done.returncode == 1 and "does not hold" in done.stdout, done.stdout
        assert node.updatectl("doctor").returncode == 1
    path.write_bytes(whole)
    assert node.updatectl("history", "verify").returncode == 0
