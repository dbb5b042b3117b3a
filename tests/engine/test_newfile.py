"""Parts that are files of their own: written aside, put in place, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bascule.engine.newfile import NewFile, partial_path
from bascule.engine.region import Region
from bascule.errors import DeviceOpenError, NotEnoughSpace, StorageError, WouldTouchBootedSlot


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_only_when_put_in_place_and_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz-b"
    path.write_bytes(b"old")
    new = NewFile(Region(path, file=True), 8192, resume=False)
    new.device.update(0, b"k" * 8192)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["vmlinuz-b", "vmlinuz-b.partial"]
    new.commit(5000)
    assert path.read_bytes() == b"k" * 5000
    assert names(tmp_path) == ["vmlinuz-b"]


def test_everything_is_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = NewFile(Region(tmp_path / "k", file=True), 4096, resume=False)
    calls: list[str] = []
    fsync, rename, cut = os.fsync, Path.rename, os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda fd, n: calls.append("cut") or cut(fd, n))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(Path, "rename", lambda self, to: calls.append("rename") or rename(self, to))
    new.commit(100)
    assert calls == ["cut", "fsync", "rename", "fsync"]


def test_abandoned_it_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(b"old")
    new = NewFile(Region(path, file=True), 4096, resume=False)
    new.abandon()
    assert names(tmp_path) == ["k"]
    assert path.read_bytes() == b"old"


def test_leftovers_give_way_unless_they_are_resumed(tmp_path: Path) -> None:
    path = tmp_path / "k"
    partial_path(path).write_bytes(b"x" * 4096)
    kept = NewFile(Region(path, file=True), 8192, resume=True)
    assert kept.kept
    assert kept.device.read(0, 4096) == b"x" * 4096
    kept.close()
    fresh = NewFile(Region(path, file=True), 8192, resume=False)
    assert not fresh.kept
    assert fresh.device.read(0, 8192) == bytes(8192)
    fresh.abandon()


def test_a_short_file_system_is_found_out_before_and_left_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k"
    path.write_bytes(b"o" * 4096)

    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    # The old file of the cleared slot gives way, so its room counts.
    with pytest.raises(NotEnoughSpace, match="lacks 4096 bytes of 12288, 8192 are free"):
        NewFile(Region(path, file=True), 12288, resume=False)
    assert names(tmp_path) == ["k"]


def test_the_old_file_gives_way_if_both_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k"
    path.write_bytes(b"old")
    real = os.posix_fallocate

    def allocate(fd: int, offset: int, length: int) -> None:
        if path.exists():
            raise OSError(28, "No space left on device")
        real(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    NewFile(Region(path, file=True), 8192, resume=False).abandon()
    assert names(tmp_path) == []


def test_a_file_system_that_is_full_after_all_is_left_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NotEnoughSpace):
        NewFile(Region(tmp_path / "k", file=True), 8192, resume=False)
    assert names(tmp_path) == []


def test_the_booted_kernel_and_strange_places_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(b"running")
    with pytest.raises(WouldTouchBootedSlot):
        NewFile(Region(path, file=True), 4096, resume=False, booted=[Region(path, file=True)])
    assert path.read_bytes() == b"running"
    with pytest.raises(DeviceOpenError):
        NewFile(Region(tmp_path / "nowhere" / "k", file=True), 4096, resume=False)
    partial_path(path).symlink_to("/dev/null")
    NewFile(Region(path, file=True), 4096, resume=False).abandon()
    assert path.read_bytes() == b"running"


def test_a_rename_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = NewFile(Region(tmp_path / "k", file=True), 4096, resume=False)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageError):
        new.commit(100)
    new.abandon()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_on_a_real_small_file_system(tmp_path: Path) -> None:
    import subprocess

    mount = tmp_path / "boot"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], check=False
    )
    if made.returncode:
        pytest.skip("no tmpfs to be had")
    try:
        path = mount / "vmlinuz-b"
        path.write_bytes(b"o" * (600 << 10))
        with pytest.raises(NotEnoughSpace):
            NewFile(Region(path, file=True), 1200 << 10, resume=False)
        assert names(mount) == ["vmlinuz-b"]
        new = NewFile(Region(path, file=True), 800 << 10, resume=False)
        new.device.update(0, b"n" * (800 << 10))
        new.commit(800 << 10)
        assert path.read_bytes() == b"n" * (800 << 10)
    finally:
        subprocess.run(["umount", str(mount)], check=False)
