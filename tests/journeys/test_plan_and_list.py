"""`updatectl plan` and `list` by the real command and daemon: they tell, and change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bascule.errors import UsageError
from bascule.faces.json_schema import schema
from json_shape import fits
from node import Node
from publisher import Site

MakeNode = Callable[..., Node]


def asked(node: Node, *words: str) -> dict[str, Any]:
    done = node.updatectl(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert fits(document, schema()["$defs"][f"document-{words[0]}"]) == []
    return document


def test_a_plan_tells_and_changes_nothing(site: Site, make_node: MakeNode) -> None:
    two = site.publish("2.0.0", mib=8)
    node = make_node()
    node.slot_mib = 10
    node.power_on()
    ledger, disk = node.ledger(), node.disk.read_bytes()
    plan = asked(node, "plan")
    assert plan["release"]["version"] == "2.0.0"
    assert plan["slot"] == "B"
    assert plan["image_bytes"] == two.stat().st_size
    assert plan["time"] is None
    assert node.ledger() == ledger
    assert node.disk.read_bytes() == disk
    assert site.events() == []
    # Only the beginning of the payload went over the wire.
    payload = [r for r in site.requests() if r["kind"] == "payload"]
    assert [r["range"] for r in payload] == ["bytes=0-65535"]
    assert plan["metadata"]["read_bytes"] <= 1 << 16 < plan["release"]["size"]
    text = node.updatectl("plan").stdout
    assert "Release 2.0.0 (full payload) would go into slot B." in text
    assert "no estimate" in text
    assert "not proven yet" in text


def test_a_plan_knows_gates_rates_and_refusals(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    assert node.updatectl("update").returncode == 0
    plan = asked(node, "plan")
    assert plan["refused"]["id"] == "busy" and "updatectl cancel" in plan["refused"]["message"]
    assert node.reboot() == "B"
    assert node.finish_boot()
    site.publish("3.0.0")
    assert node.updatectl("hold", "--for", "2h").returncode == 0
    assert len(asked(node, "history")["history"]) > 3
    assert len(asked(node, "config")["settings"]) > 50
    plan = asked(node, "plan")
    assert plan["time"]["updates"] == 1 and plan["time"]["download_s"] > 0
    assert "hold" in [g["name"] for g in plan["gates"]]
    assert plan["refused"] is None
    text = node.updatectl("plan").stdout
    assert "Held back by hold:" in text and "going by the last update here" in text
    assert node.updatectl("hold", "--clear").returncode == 0
    assert node.updatectl("pin", "=2.0.0").returncode == 0
    plan = asked(node, "plan")
    assert plan["refused"]["id"] == "pinned"
    assert node.updatectl("plan", "--version", "9.9").returncode == 0


def test_no_plan_where_nothing_is_newer(site: Site, make_node: MakeNode) -> None:
    site.publish("1.0.0")
    node = make_node()
    node.power_on()
    assert asked(node, "plan")["release"] is None
    assert "nothing newer" in node.updatectl("plan").stdout
    assert asked(node, "list")["releases"] == []
    assert "no release" in node.updatectl("list").stdout


def test_a_plan_of_signed_metadata_is_proven(site: Site, make_node: MakeNode) -> None:
    image = site.image("2.0.0")
    payload = site.payload(image, "2.0.0", "--major", "2")
    node = make_node(settings='[server]\nurl = "disabled"\n')
    node.power_on()
    plan = asked(node, "plan", "--file", str(payload))
    assert plan["metadata"]["proven_by"] == "update.pub.pem"
    stranger = site.folder / "stranger"
    site.mock("keygen", str(stranger))
    bad = site.folder / "bad.bin"
    site.mock(
        "pack", "--major", "2", "--image", str(image), "--key",
        str(stranger / "update.key.pem"), "-o", str(bad),
    )  # fmt: skip
    assert asked(node, "plan", "--file", str(bad))["refused"]["id"] == "metadata-signature"
    # Without a server and without a file there is nothing to plan.
    done = node.updatectl("plan")
    assert done.returncode == 0 and "disabled" in done.stdout


def test_a_list_says_why_not(site: Site, make_node: MakeNode, tmp_path: Path) -> None:
    site.publish("2.0.0")
    node = make_node()
    node.power_on()
    (row,) = asked(node, "list")["releases"]
    assert (row["version"], row["install"], row["why_not"]) == ("2.0.0", True, "")
    assert node.updatectl("pin", "<2").returncode == 0
    (row,) = asked(node, "list")["releases"]
    assert not row["install"] and "pin" in row["why_not"]
    assert site.events() == []
    assert "2.0.0" in node.updatectl("list").stdout


def test_odd_wishes_are_the_callers_mistake(site: Site, make_node: MakeNode) -> None:
    from bascule.faces.bus_client import BusClient, options

    node = make_node()
    node.power_on()
    client = BusClient(node.bus, "org.bascule.Update1", interactive=False)
    path, interface = "/org/bascule/Update1", "org.bascule.Update1"
    for name, wish in (
        ("history", {"last": "many"}),
        ("plan", {"nonsense": True}),
        ("list", {"version": "1"}),
        ("list", {"file": "relative"}),
        ("doctor", {"deep": True}),
    ):
        with pytest.raises(UsageError):
            client.call(path, interface, "Document", "sa{sv}", (name, options(wish)))
    client.close()
