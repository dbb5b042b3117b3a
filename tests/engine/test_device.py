"""Devices: exclusive, bounded, writing only what differs."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.aligned import PIECE
from bascule.engine.claim import Claim, place, refuse_booted, refuse_mounted
from bascule.engine.device import Device, open_source, open_target
from bascule.engine.region import Region
from bascule.errors import (
    DeviceInUse,
    DeviceOpenError,
    NotEnoughSpace,
    StorageError,
    WouldTouchBootedSlot,
)

KIB = 1 << 10


def make(folder: Path, size: int, name: str = "disk") -> Path:
    path = folder / name
    path.write_bytes(random.Random(size).randbytes(size))
    return path


# ── reading and writing ──────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    offset=st.integers(0, 40),
    data=st.binary(min_size=0, max_size=60),
    base=st.sampled_from([0, 512, 4096, 12288]),
)
def test_update_writes_what_differs_and_nothing_else(
    offset: int, data: bytes, base: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("d") / "disk"
    before = bytes(base) + bytes(64 * KIB) + b"tail"
    path.write_bytes(before)
    content = b"".join(bytes([value]) * 1024 for value in data)
    content = content[: 64 * KIB - offset * 512]
    target = open_target(Region(path, base, 64 * KIB))
    written, skipped = target.update(offset * 512, content)
    target.flush()
    target.close()
    after = bytearray(before)
    after[base + offset * 512 : base + offset * 512 + len(content)] = content
    assert path.read_bytes() == bytes(after)
    assert written + skipped == len(content)
    blocks = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    assert skipped == sum(len(b) for b in blocks if not any(b))


def test_a_large_update_counts_by_the_block(tmp_path: Path) -> None:
    path = make(tmp_path, 3 * PIECE + 8192)
    data = bytearray(path.read_bytes())
    for block in (0, 5, 6, 300, 768, 769):
        data[block * 4096] ^= 1
    target = open_target(Region(path))
    assert target.update(0, data) == (6 * 4096, len(data) - 6 * 4096)
    assert target.update(0, bytes(data)) == (0, len(data))
    assert target.update(0, memoryview(data)) == (0, len(data))
    target.close()
    assert path.read_bytes() == data


def test_zero_makes_zeros(tmp_path: Path) -> None:
    path = make(tmp_path, 2 * PIECE + 4096)
    target = open_target(Region(path))
    assert target.zero(4096, 2 * PIECE) == (2 * PIECE, 0)
    assert target.zero(4096, 2 * PIECE) == (0, 2 * PIECE)
    target.close()
    assert not any(path.read_bytes()[4096:])
    assert any(path.read_bytes()[:4096])


@pytest.mark.parametrize("direct", [True, False])
def test_with_and_without_direct_io_the_bytes_are_the_same(
    direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", 0)
    path = make(tmp_path, 64 * KIB)
    data = random.Random(9).randbytes(64 * KIB)
    target = open_target(Region(path))
    target.update(0, data)
    assert target.read(100, 1000) == data[100:1100]
    with mmap.mmap(-1, 64 * KIB) as buffer:
        with memoryview(buffer) as view:
            target.read_into(0, view)
        assert buffer[:] == data
    target.close()


def test_a_file_system_that_refuses_direct_io_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, 64 * KIB)
    target = open_target(Region(path))
    direct = target._direct
    pwrite, preadv = os.pwrite, os.preadv

    def refuse(real):  # type: ignore[no-untyped-def]
        def call(fd: int, *rest: object) -> object:
            if fd == direct:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(fd, *rest)

        return call

    monkeypatch.setattr(os, "pwrite", refuse(pwrite))
    monkeypatch.setattr(os, "preadv", refuse(preadv))
    data = random.Random(2).randbytes(64 * KIB)
    assert target.update(0, data) == (64 * KIB, 0)
    assert target._direct is None
    target.close()
    assert path.read_bytes() == data


def test_short_writes_and_reads_are_carried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, 64 * KIB)
    pwrite, pread, preadv = os.pwrite, os.pread, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, d, at: pwrite(fd, d[: len(d) // 2 or 1], at))
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, n // 2 or 1, at))
    monkeypatch.setattr(
        os, "preadv", lambda fd, b, at: preadv(fd, [b[0][: len(b[0]) // 2 or 1]], at)
    )
    data = random.Random(3).randbytes(64 * KIB)
    target = open_target(Region(path))
    target.update(0, data)
    assert target.read(0, 64 * KIB) == data
    target.close()


def test_an_unreadable_block_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, 8192)
    data = path.read_bytes()
    target = open_target(Region(path))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(os, "pread", broken)
    assert target.update(0, data) == (8192, 0)
    with pytest.raises(StorageError, match=str(path)):
        target.read(0, 10)
    target.close()


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, NotEnoughSpace), (errno.EDQUOT, NotEnoughSpace), (errno.EIO, StorageError)],
)
def test_errors_of_the_system_are_typed_and_name_the_path(
    number: int, error: type[StorageError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, 8192)
    target = open_target(Region(path))

    def broken(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", broken)
    monkeypatch.setattr(os, "fdatasync", broken)
    for step in (lambda: target.update(0, bytes(8192)), target.flush):
        with pytest.raises(error) as caught:
            step()
        assert str(path) in str(caught.value)
    assert target.dirty
    target.close()


@pytest.mark.parametrize(("offset", "length"), [(8192, 1), (0, 8193), (1 << 62, 4096), (8191, 2)])
def test_nothing_outside_the_region_is_touched(offset: int, length: int, tmp_path: Path) -> None:
    path = make(tmp_path, 64 * KIB)
    before = path.read_bytes()
    target = open_target(Region(path, 4096, 8192))
    with pytest.raises(StorageError):
        target.update(offset, bytes(length))
    with pytest.raises(StorageError):
        target.read(offset, length)
    target.close()
    assert path.read_bytes() == before


def test_reading_past_the_end_of_a_file_can_give_zeros(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"x" * 5000)
    source = open_source(Region(path))
    assert source.read(4096, 4096, pad=True) == b"x" * 904 + bytes(3192)
    assert source.read(8192, 10, pad=True) == bytes(10)
    source.close()


def test_a_region_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path, 8192)
    for region in (Region(path, 0, 8193), Region(path, 8193), Region(path, 4096, 8192)):
        with pytest.raises(DeviceOpenError):
            open_target(region)
    with pytest.raises(DeviceOpenError):
        open_target(Region(tmp_path / "missing"))
    Device(Region(path, 4096), write=False).close()


def test_flushes_are_counted_and_dirt_is_remembered(tmp_path: Path) -> None:
    path = make(tmp_path, 8192)
    target = open_target(Region(path))
    assert target.dirty
    target.flush()
    target.update(0, path.read_bytes())
    assert not target.dirty
    target.update(0, bytes(8192))
    assert target.dirty
    target.flush()
    assert (target.dirty, target.flushes) == (False, 2)
    target.close()
    target.close()


# ── alone ────────────────────────────────────────────────────────────────────────────────────


def test_another_process_that_locks_the_file_keeps_us_out(tmp_path: Path) -> None:
    path = make(tmp_path, 8192)
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DeviceInUse):
            open_target(Region(path))
    open_target(Region(path)).close()


def test_two_regions_of_one_file_share_its_lock(tmp_path: Path) -> None:
    path = make(tmp_path, 16384)
    first, second = open_target(Region(path, 0, 8192)), open_target(Region(path, 8192, 8192))
    first.close()
    with path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second.close()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_part_of_the_booted_slot_is_never_opened(tmp_path: Path) -> None:
    path = make(tmp_path, 16384)
    booted = [Region(path, 4096, 4096)]
    for region in (Region(path), Region(path, 0, 4097), Region(path, 8191, 1)):
        with pytest.raises(WouldTouchBootedSlot):
            open_target(region, booted=booted)
    open_target(Region(path, 8192, 4096), booted=booted).close()
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(WouldTouchBootedSlot):
        open_target(Region(link), booted=booted)


def test_folders_and_character_devices_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(DeviceOpenError):
            place(Region(path))


def test_a_mounted_device_is_named_with_its_mount_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    real = Path.stat

    def stat(self: Path, **options: bool) -> os.stat_result:
        info = real(self, **options)
        if self != disk:
            return info
        fields = list(info)
        fields[0] = 0o060600
        return os.stat_result(fields, {"st_rdev": os.makedev(8, 3)})

    monkeypatch.setattr(Path, "stat", stat)
    (tmp_path / "self").mkdir()
    table = tmp_path / "self" / "mountinfo"
    table.write_text("30 1 8:3 / /usr ro - ext4 /dev/sda3 ro\n")
    with pytest.raises(DeviceInUse, match="/usr"):
        refuse_mounted(disk, proc=tmp_path)
    table.write_text("30 1 8:30 / /usr ro - ext4 /dev/sda30 ro\n")
    refuse_mounted(disk, proc=tmp_path)


def test_partitions_and_loops_are_followed_to_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"sda3": (8, 3), "sda": (8, 0), "loop0": (7, 0)}
    nodes = {tmp_path / name: makedev for name, makedev in numbers.items()}
    for node in nodes:
        node.write_bytes(b"")
    image = make(tmp_path, 1 << 20, "image")
    real = Path.stat

    def stat(self: Path, **options: bool) -> os.stat_result:
        info = real(self, **options)
        if self not in nodes:
            return info
        fields = list(info)
        fields[0] = 0o060600
        return os.stat_result(fields, {"st_rdev": os.makedev(*nodes[self])})

    monkeypatch.setattr(Path, "stat", stat)
    block = tmp_path / "sys" / "dev" / "block"
    part = tmp_path / "sys" / "devices" / "sda" / "sda3"
    part.mkdir(parents=True)
    block.mkdir(parents=True)
    (part.parent / "dev").write_text("8:0\n")
    for name, value in (("partition", 3), ("start", 2048), ("size", 4096)):
        (part / name).write_text(f"{value}\n")
    (block / "8:3").symlink_to(part)
    (block / "7:0" / "loop").mkdir(parents=True)
    (block / "7:0" / "loop" / "backing_file").write_text(f"{image}\n")
    (block / "7:0" / "loop" / "offset").write_text("4096\n")
    sys = tmp_path / "sys"

    usr = place(Region(tmp_path / "sda3"), sys=sys)
    assert (usr.major, usr.minor, usr.start, usr.end) == (8, 0, 2048 * 512, 6144 * 512)
    booted = [Region(tmp_path / "sda3")]
    for offset, length in ((2048 * 512, 1), (0, 2048 * 512 + 1), (6144 * 512 - 1, 10)):
        with pytest.raises(WouldTouchBootedSlot):
            refuse_booted(Region(tmp_path / "sda", offset, length), booted, sys=sys)
    refuse_booted(Region(tmp_path / "sda", 6144 * 512, 512), booted, sys=sys)
    with pytest.raises(WouldTouchBootedSlot):
        refuse_booted(Region(tmp_path / "loop0", 0, 10), [Region(image, 4100, 1)], sys=sys)
    refuse_booted(Region(tmp_path / "loop0", 0, 4), [Region(image, 4100, 1)], sys=sys)


# ── real block devices ───────────────────────────────────────────────────────────────────────


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_a_loop_device_is_held_alone_and_refused_while_mounted(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4 << 20))
    made = subprocess.run(
        ["losetup", "--show", "-f", str(image)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip("no loop device to be had")
    loop = Path(made.stdout.strip())
    try:
        target = open_target(Region(loop))
        assert target.size == 4 << 20
        data = random.Random(1).randbytes(1 << 20)
        assert target.update(4096, data) == (1 << 20, 0)
        target.flush()
        with pytest.raises(OSError, match="busy"):
            os.close(os.open(loop, os.O_RDWR | os.O_EXCL))
        second = open_target(Region(loop, 2 << 20, 4096))
        second.close()
        target.close()
        assert image.read_bytes()[4096 : 4096 + (1 << 20)] == data
        held = os.open(loop, os.O_RDWR | os.O_EXCL)
        with pytest.raises(DeviceInUse):
            Claim(loop)
        os.close(held)
        with pytest.raises(WouldTouchBootedSlot):
            open_target(Region(loop), booted=[Region(image, 0, 10)])
    finally:
        subprocess.run(["losetup", "-d", str(loop)], check=False)


def test_a_slot_with_nothing_in_common_is_not_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading what is there saves no write there: only now and then it is looked for again."""
    path = tmp_path / "slot"
    length = 32 * PIECE
    path.write_bytes(b"\xaa" * length)
    read: list[int] = []
    peek = Device._peek
    monkeypatch.setattr(
        Device, "_peek", lambda self, at, view: (read.append(len(view)), peek(self, at, view))[1]
    )
    device = Device(Region(path), write=True)
    new = random.Random(3).randbytes(PIECE)
    for at in range(0, 24 * PIECE, PIECE):
        assert device.update(at, new) == (PIECE, 0)
    assert sum(read) == 8 * PIECE + 2 * PIECE
    # One equal block, met by the look at 24 MiB, and it reads everything again.
    same = b"\xaa" * 4096 + new[4096:]
    assert device.update(24 * PIECE, same) == (PIECE - 4096, 4096)
    read.clear()
    for at in range(25 * PIECE, length, PIECE):
        assert device.update(at, b"\xaa" * PIECE) == (0, PIECE)
    assert sum(read) == 7 * PIECE
    device.close()
    body = path.read_bytes()
    assert body == new * 24 + same + b"\xaa" * (7 * PIECE)


def test_equal_blocks_between_different_ones_are_left_alone_whatever_the_block(
    tmp_path: Path,
) -> None:
    """The last block may be short, and a run may begin where `O_DIRECT` cannot write."""
    rng = random.Random(4)
    for block in (512, 4096):
        old = bytearray(rng.randbytes(20 * block + 7))
        new = bytearray(old)
        changed = [1, 2, 5, 13, 20]
        for number in changed:
            new[number * block] ^= 1
        path = tmp_path / f"slot-{block}"
        path.write_bytes(old)
        device = Device(Region(path), write=True)
        written, skipped = device.update(0, bytes(new), block)
        device.close()
        assert written == 4 * block + 7
        assert written + skipped == len(new)
        assert path.read_bytes() == new
