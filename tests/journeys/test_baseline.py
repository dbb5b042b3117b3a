"""What failed under the old release does not condemn the new one, and nothing else is excused."""

from __future__ import annotations

from collections.abc import Callable

from node import Node, well
from publisher import Site

MakeNode = Callable[..., Node]
QUICK = '[health]\nretries = 1\ninterval = "0.1s"\n'


def check(node: Node, name: str, body: str) -> None:
    path = node.root / "etc/bascule/health.d" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_what_was_broken_before_is_excused_and_told(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node(settings=QUICK)
    check(node, "30-scanner", "echo no scanner; exit 1")
    node.power_on()
    node.finish_boot()
    well(node.updatectl("update"))
    assert node.ledger()["baseline"]["failed"] == {"health.d:30-scanner": []}  # type: ignore[index]
    assert node.reboot() == "B"
    assert node.finish_boot()
    assert node.status()["verdict"] == "UPDATED"
    assert "30-scanner" in str(node.ledger()["health"]["report"])  # type: ignore[index]


def test_what_fails_in_the_confined_errand_only_condemns_when_it_fails(
    site: Site, make_node: MakeNode
) -> None:
    """A check that needs what the daemon's sandbox hides passed when this boot was judged."""
    site.publish("2.0.0")
    node = make_node(settings=QUICK)
    release = node.root / "usr/share/flatcar/release"
    confined = "grep -q errand /proc/$PPID/cmdline && exit 1"
    check(node, "30-scanner", f"{confined}; ! grep -q VERSION=2.0.0 {release}")
    node.power_on()
    assert node.finish_boot()
    well(node.updatectl("update"))
    assert node.ledger()["baseline"]["failed"] == {}  # type: ignore[index]
    assert node.reboot() == "B"
    assert not node.finish_boot()
