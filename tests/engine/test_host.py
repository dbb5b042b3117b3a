"""Who this host is, read below a root of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bascule.engine.host import Host, lookup, read_host

FILES = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "proc/sys/kernel/random/boot_id": "d7d691f7-8c5a-4d2c-bf07-d4c730651df5\n",
    "usr/share/flatcar/release": "FLATCAR_RELEASE_VERSION=3510.2.0\nFLATCAR_RELEASE_BOARD=amd64-usr\n",
    "usr/share/flatcar/update.conf": "GROUP=stable\n",
    "usr/share/oem/oem-release": "ID=qemu\nVERSION_ID=1.2.3\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path, name, text)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_flatcar_host(root: Path) -> None:
    assert read_host(root, machine="x86_64") == Host(
        version="3510.2.0",
        board="amd64-usr",
        machine="x86_64",
        machine_id="0123456789abcdef0123456789abcdef",
        boot_id="d7d691f7-8c5a-4d2c-bf07-d4c730651df5",
        oem="qemu",
        oem_version="1.2.3",
    )


@pytest.mark.parametrize(
    ("text", "built"),
    [
        ("2024-08-12-1740", 1_723_484_400),
        ('"2024-08-12-1740"', 1_723_484_400),
        ("20240812.1740", 1_723_484_400),
        ("2024-08-12T17:40Z", 1_723_484_400),
        ("2024-08-12", 1_723_420_800),
        ("rolling", 0),
        ("2024-13-40-9999", 0),
        ("1999999999", 0),
        ("0001-01-01", 0),
        ("", 0),
    ],
)
def test_when_the_running_release_was_built(text: str, built: int, root: Path) -> None:
    write(root, "etc/os-release", f"ID=flatcar\nBUILD_ID={text}\n")
    assert read_host(root).built == built


def test_the_administrators_file_wins(root: Path) -> None:
    write(root, "etc/flatcar/update.conf", "FLATCAR_RELEASE_VERSION=0.0.0\n")
    assert read_host(root).version == "0.0.0"
    assert read_host(root).board == "amd64-usr"
    assert lookup(root, "GROUP") == "stable"


def test_the_first_file_that_contains_a_key_wins_even_if_empty(root: Path) -> None:
    write(root, "etc/flatcar/update.conf", "GROUP=\n")
    assert lookup(root, "GROUP") == ""
    write(root, "etc/oem-release", "ID=\n")
    host = read_host(root)
    assert (host.oem, host.oem_version) == ("", "1.2.3")


def test_settings_win(root: Path) -> None:
    host = read_host(root, version="9.9.9", board="arm64-usr")
    assert (host.version, host.board) == ("9.9.9", "arm64-usr")


@pytest.mark.parametrize(
    ("machine", "board"), [("x86_64", "amd64-usr"), ("aarch64", "arm64-usr"), ("riscv64", "")]
)
def test_without_a_board_the_machine_decides(tmp_path: Path, machine: str, board: str) -> None:
    assert read_host(tmp_path, machine=machine).board == board


def test_another_distribution(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/os-release", 'ID=debian\nVERSION_ID="12"\n')
    assert read_host(tmp_path).version == "12"
    write(tmp_path, "etc/os-release", 'ID=own\nIMAGE_VERSION=2.5.0\nVERSION_ID="12"\n')
    assert read_host(tmp_path).version == "2.5.0"


def test_an_empty_root(tmp_path: Path) -> None:
    host = read_host(tmp_path, machine="x86_64")
    assert host == Host("", "amd64-usr", "x86_64", "", "")


def test_hostile_files(root: Path) -> None:
    write(root, "etc/machine-id", "x" * 100)
    (root / "proc/sys/kernel/random/boot_id").write_bytes(b"\xff\xfe\0")
    (root / "usr/share/oem/oem-release").unlink()
    (root / "usr/share/oem/oem-release").mkdir()
    (root / "usr/share/flatcar/release").unlink()
    os.mkfifo(root / "usr/share/flatcar/release")
    write(root, "etc/flatcar/update.conf", "A=" + "x" * (1 << 20) + "\nFLATCAR_RELEASE_VERSION=1\n")
    host = read_host(root, machine="x86_64")
    assert host == Host("", "amd64-usr", "x86_64", "", "")


def test_this_machine() -> None:
    host = read_host()
    assert host.machine == os.uname().machine
    assert len(host.boot_id) == 36
