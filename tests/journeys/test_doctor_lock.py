"""A place in a real etcd's semaphore that this host keeps for no reboot: found, and given back."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bascule.engine.coordination.interface import Grant
from bascule.engine.coordination.registry import Credentials, coordinator
from etcd_server import serve
from node import Node

MakeNode = Callable[..., Node]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed")
    folder = tmp_path / "etcd"
    folder.mkdir()
    yield from serve(folder)


async def take(url: str, machine: str) -> bool:
    """Take the lock in this host's name, as a daemon does that is then lost."""
    lock = coordinator(
        "etcd-lock",
        machine_id=machine,
        group="",
        endpoints=[url],
        command=(),
        credentials=Credentials(),
        clock=time.time,
    )
    try:
        return isinstance(await lock.acquire(), Grant)
    finally:
        await lock.close()


def findings(node: Node, *words: str) -> set[str]:
    done = node.updatectl("doctor", *words, "--json")
    return {finding["id"] for finding in json.loads(done.stdout)["findings"]}


def test_a_lock_kept_for_nothing_is_given_back(etcd: str, make_node: MakeNode) -> None:
    node = make_node(settings=f'[reboot]\nstrategy = "etcd-lock"\nendpoints = ["{etcd}"]\n')
    node.power_on()
    assert findings(node) == {"systemd-absent"}
    machine = (node.root / "etc/machine-id").read_text().strip()
    assert asyncio.run(take(etcd, machine))
    assert "lock-stale" in findings(node)
    assert not asyncio.run(take(etcd, "another"))
    assert findings(node, "--repair") == {"systemd-absent"}
    assert asyncio.run(take(etcd, "another"))


def test_a_lock_that_cannot_be_asked_is_told(make_node: MakeNode) -> None:
    node = make_node(
        settings='[reboot]\nstrategy = "etcd-lock"\nendpoints = ["http://127.0.0.1:1"]\n'
    )
    node.power_on()
    assert "lock-unreachable" in findings(node)
