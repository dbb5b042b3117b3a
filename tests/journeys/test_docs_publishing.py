"""The commands of ``docs/publishing.md``, typed in their order; a host then installs what they made."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus_fixture import private_bus
from node import BIN, Node
from publisher import IMAGE_MIB, Site

PAGE = Path(__file__).resolve().parents[2] / "docs" / "publishing.md"


def boxes(kind: str) -> list[str]:
    """The page's boxes of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which every `sh` box of the page was run."""
    images = Site(tmp_path_factory.mktemp("images"))
    # gpg's agent has a socket there, whose path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="pub-") as name:
        folder = Path(name)
        images.image("1.0.0").rename(folder / "usr-1.img")
        images.image("2.0.0").rename(folder / "usr-2.img")
        script = "set -euo pipefail\n" + "\n".join(boxes("sh"))
        path = f"{BIN}:{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "-x", "-c", script], cwd=folder, capture_output=True, text=True,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        yield folder
        subprocess.run(
            ["gpgconf", "--homedir", str(folder / "gnupg"), "--kill", "all"], check=False
        )


def test_the_page_has_boxes_of_each_kind() -> None:
    assert len(boxes("sh")) >= 7
    assert len(boxes("serve")) == 1
    assert len(boxes("host")) == 1


def make_node(published: Path, folder: Path, url: str, bus: str, settings: str = "") -> Node:
    keys = folder / "keys"
    keys.mkdir()
    (keys / "update.pub.pem").write_bytes((published / "keys/update.pub.pem").read_bytes())
    node = Node(folder / "host", url, bus, keys, slot_mib=IMAGE_MIB + 2, settings=settings)
    return node.make(published / "usr-1.img")


@pytest.mark.parametrize("deltas", [False, True])
def test_a_host_installs_what_is_served(published: Path, tmp_path: Path, deltas: bool) -> None:
    (command,) = boxes("serve")
    words = command.split()
    words[words.index("--port") + 1] = "0"
    server = subprocess.Popen(
        [str(BIN / words[0]), *words[1:]], cwd=published, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = next(w for w in server.stdout.readline().split() if w.startswith("http"))
        wishes = f"[download]\ndeltas = {str(deltas).lower()}\n"
        with private_bus() as bus:
            node = make_node(published, tmp_path, url, bus.address, wishes)
            node.power_on()
            done = node.updatectl("update")
            assert done.returncode == 0, done.stdout + done.stderr
            image = (published / "usr-2.img").read_bytes()
            assert node.slot_bytes("B", len(image)) == image
            assert node.reboot() == "B"
            assert node.finish_boot()
            node.power_off()
        asked = (published / "site/requests.jsonl").read_text()
        assert ("1-to-2.bin" in asked) or not deltas
    finally:
        server.terminate()
        server.wait(20)
        assert server.stdout is not None
        server.stdout.close()


def test_a_host_installs_from_the_folder(published: Path, tmp_path: Path) -> None:
    (box,) = boxes("host")
    with private_bus() as bus:
        node = make_node(published, tmp_path, "disabled", bus.address)
        node.power_on()
        for line in box.splitlines():
            words = [
                str(published / word) if word == "repository" else word for word in line.split()
            ]
            assert words[0] == "updatectl"
            done = node.updatectl(*words[1:])
            assert done.returncode == 0, (line, done.stdout + done.stderr)
        assert node.flags("B") == (2, 1, 0)
        node.power_off()
