from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus_fixture import private_bus
from node import Node
from publisher import IMAGE_MIB, Site

MakeNode = Callable[..., Node]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "publisher")
    site.start()
    yield site
    site.stop()


@pytest.fixture
def make_node(tmp_path: Path, site: Site) -> Iterator[MakeNode]:
    nodes: list[Node] = []
    with private_bus() as bus:

        def make(version: str = "1.0.0", *, settings: str = "", kernel: Path | None = None) -> Node:
            node = Node(
                tmp_path / f"node{len(nodes)}",
                site.url,
                bus.address,
                site.keys,
                slot_mib=IMAGE_MIB + 2,
                settings=settings,
            )
            nodes.append(node.make(site.image(version), kernel))
            return node

        yield make
        for node in nodes:
            node.power_off()
