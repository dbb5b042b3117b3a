"""No update server: a payload, a folder, a web server, a stick. The same rules of trust."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node import BIN, Node
from publisher import Site

MakeNode = Callable[..., Node]
OFFLINE = '[server]\nurl = "disabled"\n'


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(site: Site) -> Iterator[str]:
    """The published directory on a plain web server, one that knows no ranges."""
    handler = functools.partial(Quiet, directory=str(site.served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def in_folder(node: Node, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`updatectl` as typed in that folder."""
    return subprocess.run(
        [str(BIN / "updatectl"), *words],
        capture_output=True, text=True, env=node._env(), timeout=120, cwd=folder,
    )  # fmt: skip


def test_a_stick_by_a_relative_path(site: Site, make_node: MakeNode, tmp_path: Path) -> None:
    site.publish("2.0.0")
    site.publish("3.0.0", "ok", "--group", "beta")
    site.index()
    stick = tmp_path / "media" / "a stick"
    shutil.copytree(site.served, stick)
    site.stop()
    node = make_node(settings=OFFLINE)
    node.power_on()
    listed = in_folder(node, tmp_path / "media", "list", "--file", "a stick", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = {r["version"]: r for r in json.loads(listed.stdout)["releases"]}
    assert rows["2.0.0"]["install"] and "other groups" in rows["3.0.0"]["why_not"]
    planned = in_folder(node, tmp_path / "media", "plan", "--file", "a stick", "--json")
    assert json.loads(planned.stdout)["release"]["version"] == "2.0.0"
    assert "repositories" not in node.ledger() or not node.ledger()["repositories"]
    done = in_folder(node, tmp_path / "media", "update", "--file", "a stick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.reboot() == "B"
    assert node.finish_boot()
    assert node.release() == "2.0.0"
    assert (
        in_folder(node, tmp_path / "media", "update", "--repository", "./a stick").returncode == 6
    )


def test_a_folder_in_the_servers_place(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    site.index()
    node = make_node(settings=f'[server]\nurl = "disabled"\nrepository = "{site.served}"\n')
    node.power_on()
    done = node.updatectl("update")
    assert done.returncode == 0, done.stdout + done.stderr
    status = node.status()
    assert (status["new_version"], status["server"]) == ("2.0.0", str(site.served))
    assert status["last_checked"] and node.ledger()["last_answer"] == "offers 2.0.0"


def test_any_web_server_will_do(site: Site, make_node: MakeNode, web: str) -> None:
    two = site.publish("2.0.0")
    site.index()
    node = make_node(settings=OFFLINE)
    node.power_on()
    assert json.loads(node.updatectl("plan", "--json").stdout)["release"] is None
    (row,) = json.loads(node.updatectl("list", "--file", web, "--json").stdout)["releases"]
    assert row["install"] and row["from"] == web
    done = node.updatectl("update", "--repository", web)
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()


def test_an_old_index_does_not_come_back(site: Site, make_node: MakeNode, tmp_path: Path) -> None:
    site.publish("1.0.0")
    site.index()
    old = {n: (site.served / n).read_bytes() for n in ("index.json", "index.json.sig")}
    site.index()
    node = make_node(settings=OFFLINE)
    node.power_on()
    stick = str(site.served)
    assert node.updatectl("update", "--file", stick).returncode == 6
    assert node.ledger()["repositories"][stick]["serial"] == 2  # type: ignore[index]
    for name, body in old.items():
        (site.served / name).write_bytes(body)
    refused = node.updatectl("update", "--file", stick, "--json")
    assert refused.returncode == 10
    assert "serial 1, but 2 was seen" in json.loads(refused.stdout)["error"]["message"]
    assert node.updatectl("list", "--file", stick).returncode == 10


def test_an_unsigned_index_needs_the_setting(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    site.mock("index", str(site.served), "--unsigned", "--serial", "999999")
    node = make_node(settings=OFFLINE)
    node.power_on()
    assert node.updatectl("update", "--file", str(site.served)).returncode == 10
    node.power_off()
    free = make_node(settings=OFFLINE + "[trust]\nsigned_index = false\n")
    free.power_on()
    assert free.updatectl("update", "--file", str(site.served)).returncode == 0
    # What nobody signed must not lock the host out with a high number.
    assert not free.ledger()["repositories"]


def test_a_path_that_the_daemon_does_not_see(
    site: Site, make_node: MakeNode, tmp_path: Path
) -> None:
    node = make_node(settings=OFFLINE)
    node.power_on()
    for verb in ("update", "plan", "list"):
        done = node.updatectl(verb, "--file", str(tmp_path / "nowhere.bin"), "--json")
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["id"]) == (2, "file-not-seen"), verb
        assert "/tmp" in error["remedy"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert node.updatectl("update", "--file", str(empty)).returncode == 8
