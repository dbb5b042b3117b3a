"""The GPT boot backend on real images: allowed, refused, locked, read back, mended."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import firmware
from bascule.engine.boot import BootBackend, ClearedSlot, backends, open_backend, register
from bascule.engine.boot.files import clear_files
from bascule.engine.boot.gpt import GptBackend
from bascule.engine.layout import Layout, find
from bascule.engine.region import Region
from bascule.engine.table import DiskTable
from bascule.errors import (
    BlessRefused,
    BootedSlotNotBlessed,
    BootError,
    DeviceInUse,
    DeviceOpenError,
    SettingsError,
    SlotNotBootable,
    StorageError,
    TableBroken,
    UsageError,
    WouldTouchBootedSlot,
)
from bascule.formats.slots import BootFlags, Slot
from gpt_images import FLATCAR_USR, Part, attributes, cgpt, flatcar_disk, image, verdicts

GOOD, EMPTY = BootFlags(1, 0, True), BootFlags(0, 0, False)


def verified(slot: Slot | None) -> Any:
    """Stands for a slot that was read back; `stage` asks only which one."""
    return SimpleNamespace(slot=slot)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return flatcar_disk(tmp_path / "disk.img")


@pytest.fixture
def backend(disk: Path) -> GptBackend:
    return backend_on(disk)


def backend_on(disk: Path, booted: Slot = Slot.A, timeout: float = 0.2) -> GptBackend:
    table = DiskTable(disk, lock_timeout=timeout)
    return GptBackend(table, {Slot.A: 3, Slot.B: 4}, booted)


def test_the_life_of_an_update(disk: Path, backend: BootBackend) -> None:
    assert backend.flags() == {Slot.A: GOOD, Slot.B: EMPTY}
    assert backend.next() is Slot.A
    assert backend.clear(Slot.B).slot is Slot.B
    assert firmware.choose(disk) == 3
    backend.stage(verified(Slot.B))
    assert backend.flags() == {Slot.A: GOOD, Slot.B: BootFlags(2, 1, False)}
    assert backend.next() is Slot.B
    assert firmware.choose(disk) == 4
    assert backend.next() is Slot.A, "the try is spent: the next power-on is the old release"
    running_b = backend_on(disk, Slot.B)
    with pytest.raises(BootedSlotNotBlessed, match="slot B is unconfirmed"):
        running_b.clear(Slot.A)
    running_b.bless(Slot.B)
    assert firmware.choose(disk) == 4
    assert running_b.flags() == {Slot.A: GOOD, Slot.B: BootFlags(2, 0, True)}
    running_b.prefer(Slot.A)
    assert running_b.next() is Slot.A
    running_b.cancel(Slot.A)
    assert running_b.next() is Slot.B
    assert running_b.flags()[Slot.A].bootable
    assert verdicts(disk) == []


def test_a_trial_cancelled_is_never_booted(disk: Path, backend: BootBackend) -> None:
    backend.stage(verified(Slot.B), tries=3)
    backend.cancel(Slot.B)
    assert backend.flags() == {Slot.A: GOOD, Slot.B: EMPTY}


def test_refusals_leave_the_disk_as_it_was(disk: Path, backend: BootBackend) -> None:
    before = disk.read_bytes()
    with pytest.raises(WouldTouchBootedSlot):
        backend.clear(Slot.A)
    with pytest.raises(WouldTouchBootedSlot):
        backend.stage(verified(Slot.A))
    with pytest.raises(WouldTouchBootedSlot):
        backend.cancel(Slot.A)
    with pytest.raises(BlessRefused, match="slot A is running, not slot B"):
        backend.bless(Slot.B)
    with pytest.raises(SlotNotBootable, match="empty"):
        backend.prefer(Slot.B)
    with pytest.raises(SlotNotBootable):
        backend.stage(verified(None))
    for tries in (0, 16):
        with pytest.raises(UsageError):
            backend.stage(verified(Slot.B), tries)
    assert disk.read_bytes() == before


@pytest.mark.parametrize(("priority", "tries", "successful"), [(1, 3, 0), (0, 0, 1), (0, 0, 0)])
def test_the_last_known_good_is_kept(
    disk: Path, priority: int, tries: int, successful: int
) -> None:
    cgpt("add", "-i", "4", "-P", "1", "-S", "1", disk)
    cgpt("add", "-i", "3", f"-P{priority}", f"-T{tries}", f"-S{successful}", disk)
    with pytest.raises(BootedSlotNotBlessed):
        backend_on(disk).clear(Slot.B)


def test_a_witness_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="make a ClearedSlot"):
        ClearedSlot(Slot.B)


# ── the table on the disk ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lba", [1, 65535])
def test_a_bad_copy_is_mended_before_the_change(disk: Path, lba: int) -> None:
    with disk.open("r+b") as file:
        file.seek(lba * 512)
        file.write(bytes(512))
    backend = backend_on(disk)
    assert backend.flags()[Slot.A] == GOOD
    backend.stage(verified(Slot.B))
    assert verdicts(disk) == []
    assert backend.repair() is None


def test_repair_says_what_was_wrong(disk: Path, backend: BootBackend) -> None:
    with disk.open("r+b") as file:
        file.truncate((32 << 20) + (4 << 20))
    before = disk.read_bytes()
    assert backend.damage() == "the backup copy is not at the end of the disk"
    assert disk.read_bytes() == before
    assert backend.repair() == "the backup copy is not at the end of the disk"
    assert backend.damage() is None
    assert backend.repair() is None
    assert verdicts(disk) == []


def test_two_bad_copies_are_left_alone(disk: Path, backend: BootBackend) -> None:
    with disk.open("r+b") as file:
        file.seek(512)
        file.write(bytes(512))
        file.seek(-512, os.SEEK_END)
        file.write(bytes(512))
    before = disk.read_bytes()
    for step in (backend.flags, backend.next, backend.repair):
        with pytest.raises(TableBroken):
            step()
    with pytest.raises(TableBroken):
        backend.clear(Slot.B)
    assert disk.read_bytes() == before


def test_order_of_system_calls(backend: BootBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    write, flush = os.pwrite, os.fsync

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        seen.append(("write", offset, len(data)))
        return write(fd, data, offset)

    def fsync(fd: int) -> None:
        seen.append(("flush", 0, 0))
        flush(fd)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    backend.stage(verified(Slot.B))
    end = 32 << 20
    assert seen == [
        ("write", end - 33 * 512, 512),
        ("write", end - 512, 512),
        ("flush", 0, 0),
        ("write", 0, 4096),
        ("flush", 0, 0),
    ]
    seen.clear()
    backend.clear(Slot.B)
    backend.clear(Slot.B)
    assert len(seen) == 5, "clearing what is clear writes nothing"


def test_a_flush_that_fails_stops_before_the_primary(
    disk: Path, backend: BootBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = disk.read_bytes()

    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="cannot flush"):
        backend.stage(verified(Slot.B))
    assert disk.read_bytes()[:4096] == before[:4096]


def test_a_write_that_does_not_stick_is_noticed(
    backend: BootBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: len(data))
    with pytest.raises(StorageError, match="does not read back"):
        backend.stage(verified(Slot.B))


def test_read_errors_are_named(backend: BootBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def pread(fd: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(StorageError, match="Input/output error"):
        backend.flags()


def test_what_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(DeviceOpenError, match="No such file"):
        backend_on(tmp_path / "missing").flags()
    with pytest.raises(DeviceOpenError):
        backend_on(tmp_path).clear(Slot.B)
    with pytest.raises(DeviceOpenError, match="neither a disk nor a file"):
        backend_on(Path(os.devnull)).flags()


# ── several writers ──────────────────────────────────────────────────────────────────────────


def test_a_second_writer_waits_and_gives_up(disk: Path, backend: BootBackend) -> None:
    # Held by another process: a program of its own, as the real second writer would be.
    code = (
        "import sys, pathlib; from bascule.engine.table import DiskTable\n"
        "with DiskTable(pathlib.Path(sys.argv[1]))._opened(write=True):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(disk)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeviceInUse, match="another program holds the partition table"):
            backend.stage(verified(Slot.B))
        assert backend.next() is Slot.A, "looking needs no lock"
        holder.stdin.close()
        holder.wait()
    backend.stage(verified(Slot.B))


def test_whoever_writes_a_slot_of_the_same_image_is_not_in_the_way(
    disk: Path, backend: BootBackend
) -> None:
    with disk.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        backend.clear(Slot.B)


def test_writers_do_not_interleave(disk: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from bascule.engine.boot.gpt import edited\n"
        "from bascule.engine.table import DiskTable\n"
        "from bascule.formats import slots\n"
        "index = {slots.Slot.A: 3, slots.Slot.B: 4}\n"
        "table = DiskTable(pathlib.Path(sys.argv[1]), lock_timeout=120)\n"
        "for n in range(15):\n"
        "    table.change(lambda t: edited(t, index, lambda f: slots.stage(f, int(sys.argv[2]), n % 15 + 1)))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(disk), number])
        for number in ("3", "4", "3")
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert verdicts(disk) == []
    assert backend_on(disk).repair() is None


# ── real block devices ───────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def loop_device(path: Path, sector_size: int) -> Iterator[Path]:
    made = subprocess.run(
        ["losetup", "-f", "--show", "-b", str(sector_size), str(path)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", str(device)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_on_a_block_device(tmp_path: Path, sector_size: int) -> None:
    if os.geteuid():
        pytest.skip("loop devices need root")
    parts = [Part(3, 40, 60, attributes(1, 0, 1)), Part(4, 61, 80)]
    path = tmp_path / "disk.img"
    path.write_bytes(image(parts, sectors=1024, sector_size=sector_size))
    with loop_device(path, sector_size) as device:
        backend = backend_on(device)
        backend.clear(Slot.B)
        backend.stage(verified(Slot.B), tries=2)
        assert backend.flags() == {Slot.A: GOOD, Slot.B: BootFlags(2, 2, False)}
        with device.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(DeviceInUse):
                backend.cancel(Slot.B)
        if sector_size == 512:
            assert cgpt("show", "-i", "4", "-T", device).strip() == "2"
    assert firmware.choose(path) == 4
    assert firmware.flags(path, 4) == (2, 1, 0)


# ── the registry ─────────────────────────────────────────────────────────────────────────────


def test_backends_by_name(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = find(disk=disk, booted=Slot.A)
    backend = open_backend("gpt", layout)
    assert (backend.name, backend.booted, backend.next()) == ("gpt", Slot.A, Slot.A)
    with pytest.raises(SettingsError, match="'lilo' is unknown; there are gpt"):
        open_backend("lilo", layout)
    monkeypatch.setattr("bascule.engine.boot._openers", {})
    register("mine", lambda layout, options: backend)
    assert open_backend("mine", layout) is backend
    assert backends() == ["mine"]


def test_gpt_needs_a_disk(tmp_path: Path) -> None:
    layout = Layout(None, Slot.A, {}, {}, 512)
    with pytest.raises(SettingsError, match="partitions of one disk"):
        open_backend("gpt", layout)


def test_more_than_two_slots_are_ranked_together(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    third = Part(5, 81, 90, attributes(9, 0, 1), FLATCAR_USR)
    path.write_bytes(image([Part(3, 40, 60, attributes(1, 0, 1)), Part(4, 61, 80), third]))
    backend = backend_on(path)
    assert backend.next() is None, "the bootloader would take the third"
    backend.stage(verified(Slot.B))
    assert backend.flags() == {Slot.A: GOOD, Slot.B: BootFlags(3, 1, False)}
    assert firmware.flags(path, 5) == (2, 0, 1)
    assert firmware.choose(path) == 4


# ── plain files ──────────────────────────────────────────────────────────────────────────────


def test_plain_files_are_no_slot(tmp_path: Path) -> None:
    target = Region(tmp_path / "usr.img")
    assert clear_files({"usr": target}).slot is None
    (tmp_path / "usr.img").write_bytes(bytes(4096))
    assert clear_files({"usr": target, "kernel": Region(tmp_path / "k", file=True)}).slot is None
    with pytest.raises(BootError):
        clear_files({"usr": target}, booted=[Region(tmp_path / "usr.img", 0, 512)])
    with pytest.raises(DeviceOpenError):
        clear_files({"usr": Region(tmp_path)})


def test_once_and_reinstated(disk: Path, backend: GptBackend) -> None:
    """One boot of the other good slot, with the firmware's own rule in between."""
    with pytest.raises(SlotNotBootable, match="empty"):
        backend.once(Slot.B)
    backend.clear(Slot.B)
    backend.stage(verified(Slot.B))
    assert firmware.choose(disk) == 4
    running_b = backend_on(disk, Slot.B)
    with pytest.raises(SlotNotBootable):
        running_b.once(Slot.A)
    running_b.bless(Slot.B)
    good = running_b.flags()
    with pytest.raises(WouldTouchBootedSlot):
        running_b.once(Slot.B)
    running_b.once(Slot.A)
    assert running_b.flags() == {Slot.A: BootFlags(2, 1, False), Slot.B: GOOD}
    assert [firmware.choose(disk) for _ in range(3)] == [3, 4, 4]
    for _ in range(2):
        backend_on(disk, Slot.A).reinstate(Slot.A, Slot.B)
        assert running_b.flags() == good
    running_b.once(Slot.A)
    running_b.reinstate(Slot.A, Slot.B)
    assert [firmware.choose(disk) for _ in range(2)] == [4, 4]
    assert verdicts(disk) == []
