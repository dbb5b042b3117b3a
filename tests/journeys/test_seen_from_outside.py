"""Figures, the staleness alarm and the login message, from the real daemon."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exposition import Samples, parse
from node import BIN, Node
from publisher import Site

MakeNode = Callable[..., Node]
MOTD = Path(__file__).resolve().parents[2] / "systemd/update-motd.d/60-bascule"


def scrape(path: Path) -> Samples:
    """What the socket says to an HTTP client."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    return parse(body.decode())


def test_the_socket_tells_of_updates_and_failures(
    site: Site, make_node: MakeNode, tmp_path: Path
) -> None:
    place = tmp_path / "m.sock"
    node = make_node(settings=f'[metrics]\nmode = "socket"\npath = "{place}"\n')
    node.power_on()
    before = scrape(place)
    assert before["bascule_attempts_total", (("result", "updated"),)] == 0
    assert before["bascule_last_check_timestamp_seconds", ()] == 0
    site.publish("2.0.0")
    assert node.updatectl("update").returncode == 0
    assert node.reboot() == "B"
    assert node.finish_boot()
    assert node.status()["verdict"] == "UPDATED"
    site.publish("3.0.0", "broken")
    assert node.updatectl("update").returncode == 0
    node.reboot()
    node.finish_boot()
    assert node.reboot() == "B"
    found = scrape(place)
    assert found["bascule_attempts_total", (("result", "updated"),)] == 1
    assert found["bascule_attempts_total", (("result", "rolled-back"),)] == 1
    assert found["bascule_quarantine_releases", ()] == 1
    assert found["bascule_fetched_bytes_total", ()] > 1 << 20
    assert found["bascule_last_update_duration_seconds", (("phase", "download"),)] > 0
    assert found["bascule_state", (("state", "idle"),)] == 1
    assert 0 <= found["bascule_last_success_age_seconds", ()] < 3600
    info = [labels for name, labels in found if name == "bascule_build_info"]
    assert dict(info[0])["release"] == "2.0.0"
    node.stop_daemon()
    assert not place.exists()


def test_the_file_is_for_the_node_exporter(site: Site, make_node: MakeNode, tmp_path: Path) -> None:
    place = tmp_path / "bascule.prom"
    node = make_node(settings=f'[metrics]\nmode = "textfile"\npath = "{place}"\n')
    node.power_on()
    deadline = time.monotonic() + 30
    while not place.exists() and time.monotonic() < deadline:
        node.pause(0.05)
    assert parse(place.read_text())["bascule_state", (("state", "idle"),)] == 1


def test_a_place_that_cannot_be_used_stops_nothing(site: Site, make_node: MakeNode) -> None:
    node = make_node(settings='[metrics]\nmode = "socket"\npath = "/proc/nowhere/m.sock"\n')
    node.power_on()
    assert node.status()["state"] == "IDLE"
    assert "Figures are not shown" in node.log.read_text()


@pytest.mark.parametrize("checked", [0, 40])
def test_a_host_that_hears_nothing_says_so(site: Site, make_node: MakeNode, checked: int) -> None:
    node = make_node(settings='[policy]\nstale_after = "14d"\n')
    node.power_on()
    assert node.status()["stale"] is False
    node.stop_daemon()
    ledger = node.ledger()
    assert ledger["begun"]
    now = int(time.time())
    ledger |= {"begun": now - 90 * 86400, "last_checked": now - checked * 86400 if checked else 0}
    (node.state / "ledger.json").write_text(json.dumps(ledger))
    node.start_daemon()
    status = node.status()
    assert status["stale"] is True
    (warning,) = status["warnings"]  # type: ignore[misc]
    assert (f"succeeded for {checked} d" if checked else "since this agent first ran") in warning
    # The login message is one line, and silent where no daemon answers.
    env = {**node._env(), "PATH": f"{BIN}:{os.environ['PATH']}"}
    told = subprocess.run(["sh", str(MOTD)], capture_output=True, text=True, env=env, timeout=60)
    assert warning in told.stdout and told.stdout.count("\n") == 1
    # One success ends it.
    site.publish("1.0.0")
    assert node.updatectl("check").returncode == 6
    node.stop_daemon()
    env = {**node._env(), "PATH": f"{BIN}:{os.environ['PATH']}"}
    told = subprocess.run(["sh", str(MOTD)], capture_output=True, text=True, env=env, timeout=60)
    assert told.stdout == "" and told.stderr == ""
    node.start_daemon()
    assert node.status()["stale"] is False and node.status()["warnings"] == []
