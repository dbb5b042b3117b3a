"""`omaha-mock index`: what it writes is what the format says, and openssl finds the signature good."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bascule.formats.repository import choose, parse_index
from publisher import Site

EXE = Path(sys.executable).parent / "omaha-mock"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def refused(*words: str) -> str:
    done = subprocess.run([str(EXE), *words], capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def test_the_index_is_read_by_the_agents_own_reader(site: Site) -> None:
    site.publish("1.0.0")
    site.publish("2.0.0", "ok", "--group", "beta", "--board", "amd64-usr")
    folder = site.index("--expires", "2040-01-01T00:00:00", "--minimum", "0.9")
    index = parse_index((folder / "index.json").read_bytes())
    assert index.serial == 1 and index.expires == 2208988800
    assert [r.version for r in index.releases] == ["2.0.0", "1.0.0"]
    assert index.releases[0].boards == {"amd64-usr"} and index.releases[0].minimum == "0.9"
    for release in index.releases:
        for payload in release.payloads:
            assert (folder / payload.path).stat().st_size == payload.size
    choice = choose(index, running="0.9.5", group="stable", board="")
    assert choice is not None and choice.release.version == "1.0.0"


def test_the_serial_rises_and_openssl_agrees(site: Site) -> None:
    site.publish("1.0.0")
    site.index()
    folder = site.index()
    assert json.loads((folder / "index.json").read_text())["serial"] == 2
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", str(site.keys / "update.pub.pem"),
         "-signature", str(folder / "index.json.sig"), str(folder / "index.json")],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def test_what_is_wrong_is_said(site: Site) -> None:
    folder, key = str(site.served), str(site.key)
    assert "Nothing is published" in refused("index", folder, "--key", key)
    site.publish("1.0.0")
    assert "--unsigned" in refused("index", folder)
    assert "--unsigned" in refused("index", folder, "--key", key, "--unsigned")
    assert "moment" in refused("index", folder, "--key", key, "--expires", "soon")
    (site.served / "index.json").write_text("[")
    assert "--serial" in refused("index", folder, "--key", key)
    site.index("--serial", "7")
    site.mock("index", folder, "--unsigned")
    assert not (site.served / "index.json.sig").exists()
