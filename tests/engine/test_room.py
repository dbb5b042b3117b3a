"""Room on file systems: one line for each that is short, whatever shares it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bascule.engine.room import Want, shortfalls
from bascule.errors import DeviceOpenError


class Free:
    f_frsize = 1024

    def __init__(self, size: int) -> None:
        self.f_bavail = size // 1024


def test_what_shares_a_file_system_shares_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: Free(10_240))
    one, two = Want("kernel", tmp_path / "boot", 6000), Want("policy", tmp_path / "boot/x", 6000)
    assert shortfalls([one]) == shortfalls([two]) == []
    assert shortfalls([one, two]) == [
        f"kernel (6000), policy (6000): {tmp_path}/boot, {tmp_path}/boot/x lacks 1760 bytes of "
        "12000, 10240 are free"
    ]


def test_what_gives_way_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: Free(0))
    old = tmp_path / "old"
    old.write_bytes(b"x" * 8192)
    (tmp_path / "link").symlink_to(old)
    assert shortfalls([Want("a", tmp_path, 8192, (old, old, tmp_path / "gone"))]) == []
    assert shortfalls([Want("a", tmp_path, 4096, (tmp_path / "link",))])
    wants = [Want("a", tmp_path, 8192, (old,)), Want("b", tmp_path, 4096, (old,))]
    assert "lacks 4096 bytes of 12288" in shortfalls(wants)[0]


def test_two_file_systems_two_lines(tmp_path: Path) -> None:
    """Nobody has an exbibyte free, here or in memory."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    found = shortfalls([Want("a", tmp_path, 1 << 60), Want("b", shm, 1 << 60)])
    assert [line[0] for line in found] == ["a", "b"]
    assert shortfalls([Want("a", tmp_path, 1), Want("b", shm, 1)]) == []


def test_a_folder_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "statvfs", broken)
    with pytest.raises(DeviceOpenError, match="Input/output"):
        shortfalls([Want("a", tmp_path / "not/there/yet", 1)])
