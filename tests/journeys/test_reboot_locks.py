"""Whole hosts and one reboot lock: one at a time, and a dead one is named and freed.

Real daemons on buses of their own, a real etcd, and a FleetLock server of the tests' own.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bus_fixture import private_bus
from etcd_server import serve
from node import BIN, Node
from publisher import IMAGE_MIB, Site

NEVER_NOW = "Sun 04:00 10m"
PATIENCE = 180.0


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait for `condition`; a deadline for hosts that hang, not a measure of speed."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        Node.pause(0.2)
    return found


@pytest.fixture
def hosts(tmp_path: Path, site: Site) -> Iterator[Callable[..., Node]]:
    """Makes hosts, each with a message bus of its own."""
    nodes: list[Node] = []
    with ExitStack() as stack:

        def make(settings: str) -> Node:
            bus = stack.enter_context(private_bus())
            node = Node(
                tmp_path / f"host{len(nodes)}",
                site.url,
                bus.address,
                site.keys,
                slot_mib=IMAGE_MIB + 2,
                settings=settings,
            )
            nodes.append(node.make(site.image("1.0.0")))
            return node

        yield make
        for node in nodes:
            node.power_off()


def reboots(strategy: str, url: str, *more: str) -> str:
    lines = [f'strategy = "{strategy}"', f'endpoints = ["{url}"]', "warn = 0", *more]
    return "\n".join(["[reboot]", *lines, ""])


def change(node: Node, settings: str) -> None:
    (node.folder / "more.toml").write_text(settings)


def machine(node: Node) -> str:
    return (node.root / "etc/machine-id").read_text().strip()


def gate(node: Node, name: str) -> dict[str, Any]:
    done = node.updatectl("explain", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = next(g for g in json.loads(done.stdout)["gates"] if g["name"] == name)
    return found


def lock(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "bascule"), "lock", *words, "--root", str(node.root), "--config",
         str(node.config), "--config", str(node.folder / "more.toml")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def holders(node: Node) -> list[str]:
    done = lock(node, "show", "--json")
    assert done.returncode == 0, done.stderr
    return [h["id"] for h in json.loads(done.stdout)["holders"]]


def update(node: Node) -> None:
    done = node.updatectl("update")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd-server is not installed (Debian)")
def test_two_hosts_and_a_real_etcd(site: Site, hosts: Callable[..., Node], tmp_path: Path) -> None:
    folder = tmp_path / "etcd"
    folder.mkdir()
    server = serve(folder)
    url = next(server)
    try:
        first = hosts(reboots("etcd-lock", url, 'stale_after = "1s"'))
        second = hosts(reboots("etcd-lock", url, 'stale_after = "1s"'))
        site.publish("2.0.0")
        for node in (first, second):
            assert node.power_on() == "A"
        update(first)
        eventually(lambda: first.reboot_requested, "the first host asks for its reboot")
        assert holders(first) == [machine(first)]
        coordinator = (first.run / "update-engine/coordinator.conf").read_text()
        assert "NAME=bascule" in coordinator and "STATE=rebooting" in coordinator

        # One at a time: the other one waits, and says for whom and since when.
        update(second)
        told = eventually(
            lambda: (g := gate(second, "lock"))["verdict"] == "block" and g,
            "the second host is refused",
        )
        assert machine(first) in told["evidence"]
        assert not second.reboot_requested
        blocked = second.status()["blocked_by"]
        assert isinstance(blocked, list)
        assert {g["blocks"] for g in blocked} <= {"reboot"}

        # The first one boots; its daemon is masked, and the blessing frees the place all the same.
        first.stop_daemon()
        assert first.power_on(daemon=False) == "B"
        assert holders(second) == [machine(first)], "on trial it keeps its place"
        assert first.finish_boot()
        assert machine(first) not in holders(second)
        eventually(lambda: second.reboot_requested, "the second host asks for its reboot")
        assert holders(first) == [machine(second)]

        # It is killed while it holds the lock, and never comes back.
        second.power_off()
        site.publish("3.0.0")
        first.start_daemon()
        update(first)
        told = eventually(
            lambda: (g := gate(first, "lock"))["reason"] == "lock.stale" and g,
            "the holder is called stale",
        )
        assert f"{machine(second)} for " in told["evidence"]
        command = told["evidence"].rpartition("release it: ")[2].rstrip(".")
        assert command == f"bascule lock release {machine(second)}"
        assert not first.reboot_requested
        freed = lock(first, *shlex.split(command)[2:])
        assert freed.returncode == 0, freed.stderr
        eventually(lambda: first.reboot_requested, "the first host asks for its reboot again")
        assert holders(first) == [machine(first)]
    finally:
        server.close()


# ── FleetLock


class FleetLockServer:
    """The protocol as written: idempotent requests, one place, error bodies of kind and value."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = outer.answer(self.path, dict(self.headers), body)
                raw = json.dumps(answer).encode() if answer else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *words: Any) -> None:
                return

        self.holders: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.broken = ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str] | None]:
        if {k.lower(): v for k, v in headers.items()}.get("fleet-lock-protocol") != "true":
            return 400, {"kind": "missing_header", "value": "no fleet-lock-protocol header"}
        who = json.loads(body)["client_params"]["id"]
        self.asked.append((path, who))
        if path == "/v1/steady-state":
            self.holders.discard(who)
            return 200, None
        if self.broken == "after":
            # Taken, and then the answer is an error: the client cannot know.
            self.holders.add(who)
            return 500, {"kind": "failed_lock", "value": "the database went away"}
        if self.holders - {who}:
            return 409, {"kind": "all_semaphore_slots_taken", "value": "all slots are taken"}
        self.holders.add(who)
        return 200, None

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fleetlock() -> Iterator[FleetLockServer]:
    server = FleetLockServer()
    yield server
    server.stop()


def test_a_fleetlock_server_and_what_it_says(
    site: Site, hosts: Callable[..., Node], fleetlock: FleetLockServer
) -> None:
    open_ = reboots("fleetlock", fleetlock.url)
    closed = reboots("fleetlock", fleetlock.url, f'windows = ["{NEVER_NOW}"]')
    node = hosts(open_)
    site.publish("2.0.0")
    assert node.power_on() == "A"
    eventually(lambda: fleetlock.asked, "the daemon gives back what it may hold")
    assert fleetlock.asked == [("/v1/steady-state", machine(node))]

    # Somebody else holds it.
    fleetlock.holders.add("another")
    update(node)
    eventually(lambda: "all slots are taken" in node.log.read_text(), "the refusal is told")
    assert "all_semaphore_slots_taken" in node.log.read_text()
    assert not node.reboot_requested

    # It becomes free, but the answer gets lost after the place was taken; then the window closes.
    node.stop_daemon()
    fleetlock.holders.clear()
    fleetlock.broken = "after"
    node.start_daemon()
    eventually(lambda: machine(node) in fleetlock.holders, "the server takes the host in")
    assert not node.reboot_requested
    change(node, closed)
    fleetlock.broken = ""
    node.stop_daemon(signal.SIGKILL)
    node.start_daemon()
    eventually(lambda: not fleetlock.holders, "a daemon that knows nothing gives the place back")
    assert not node.reboot_requested
    assert gate(node, "window")["verdict"] == "block"

    # The window opens again; the host reboots, and its blessing lets go.
    node.stop_daemon()
    change(node, open_)
    node.start_daemon()
    eventually(lambda: node.reboot_requested, "the host asks for its reboot")
    assert fleetlock.holders == {machine(node)}
    assert node.reboot() == "B"
    assert node.status()["verdict"] == "ON_TRIAL"
    assert fleetlock.holders == {machine(node)}, "on trial it keeps its place"
    assert node.finish_boot()
    eventually(lambda: not fleetlock.holders, "the blessed host lets go")
    assert node.status()["verdict"] == "UPDATED"
