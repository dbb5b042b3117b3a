"""Reading back: every byte, from the medium, and the only way to a `VerifiedSlot`."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
from pathlib import Path

import pytest

from bascule.engine.boot import CLEARER, ClearedSlot
from bascule.engine.device import Device, open_source
from bascule.engine.region import Region
from bascule.engine.stream import Installed
from bascule.engine.verify import SWEEP, VerifiedSlot, read_back, sha256_of
from bascule.errors import KernelMismatch, PartsMissing, SlotMismatch, Stopped, StorageError
from bascule.formats.signature import load_keys
from bascule.formats.slots import Slot
from payload_builder import IMAGE, KERNEL_IMAGE, draft_v1, public_pem
from slot_files import SlotFiles


async def installed(folder: Path) -> tuple[SlotFiles, Installed]:
    place = SlotFiles(
        folder, old={}, new={"usr": IMAGE, "kernel": KERNEL_IMAGE}, files=frozenset({"kernel"})
    )
    keys = load_keys(public_pem(), "update")
    return place, await place.install(draft_v1().build(), keys)


async def test_the_witness_names_slot_and_proof(tmp_path: Path) -> None:
    place, done = await installed(tmp_path)
    told: list[tuple[int, int]] = []
    verified = await read_back(
        done.signed,
        place.targets,
        cleared=ClearedSlot(Slot.B, CLEARER),
        observer=lambda at, of: told.append((at, of)),
    )
    assert verified.slot is Slot.B
    assert verified.signed is done.signed
    assert told[-1] == (len(IMAGE) + len(KERNEL_IMAGE), len(IMAGE) + len(KERNEL_IMAGE))
    with pytest.raises(TypeError):
        VerifiedSlot(Slot.B, done.signed)


@pytest.mark.parametrize("at", [0, 1, len(IMAGE) // 2, len(IMAGE) - 1])
async def test_one_other_bit_in_the_partition_is_15(at: int, tmp_path: Path) -> None:
    place, done = await installed(tmp_path)
    path = place.targets["usr"].path
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(SlotMismatch) as caught:
        await place.verify(done)
    assert caught.value.number == 15


@pytest.mark.parametrize("fault", ["bit", "short", "long", "gone"])
async def test_another_kernel_is_16(fault: str, tmp_path: Path) -> None:
    place, done = await installed(tmp_path)
    path = place.targets["kernel"].path
    data = path.read_bytes()
    match fault:
        case "bit":
            path.write_bytes(b"?" + data[1:])
        case "short":
            path.write_bytes(data[:-1])
        case "long":
            path.write_bytes(data + b"\0")
        case _:
            path.unlink()
    with pytest.raises(KernelMismatch) as caught:
        await place.verify(done)
    assert caught.value.number == 16


async def test_what_lies_behind_the_image_does_not_matter(tmp_path: Path) -> None:
    place, done = await installed(tmp_path)
    path = place.targets["usr"].path
    path.write_bytes(path.read_bytes() + b"noise")
    await place.verify(done)


async def test_a_part_that_was_not_written_is_no_slot(tmp_path: Path) -> None:
    place, done = await installed(tmp_path)
    del place.targets["kernel"]
    with pytest.raises(PartsMissing):
        await place.verify(done)


async def test_a_mismatch_drops_the_resume_record(tmp_path: Path) -> None:
    place, done = await installed(tmp_path)
    place.store.begin("x", b"m", b"")
    path = place.targets["usr"].path
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(SlotMismatch):
        await read_back(done.signed, place.targets, cleared=place.cleared, checkpoint=place.store)
    assert place.store.load("x") is None


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, SWEEP, SWEEP + 1, 3 * SWEEP + 777])
def test_any_length_is_hashed(length: int, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    data = random.Random(length).randbytes(length)
    path.write_bytes(data + b"rest")
    device = open_source(Region(path))
    assert sha256_of(device, length) == hashlib.sha256(data).digest()
    with pytest.raises(StorageError):
        sha256_of(device, length + 5)
    device.close()


def test_reading_bypasses_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 * SWEEP + 100))
    device = open_source(Region(path))
    direct = device._direct
    used: list[int] = []
    dropped: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, b, at: used.append(fd) or preadv(fd, b, at))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *_: dropped.append(fd))
    sha256_of(device, 2 * SWEEP + 100)
    if direct is not None:
        assert used.count(direct) >= 2
    # The unaligned end cannot be read directly: its pages are dropped first.
    assert len(dropped) >= 1
    device.close()


def test_a_failing_read_ends_both_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(3 * SWEEP))
    device = open_source(Region(path))
    before = threading.active_count()

    def fail(self: Device, offset: int, view: memoryview) -> None:
        raise StorageError("broken")

    monkeypatch.setattr(Device, "read_into", fail)
    with pytest.raises(StorageError):
        sha256_of(device, 3 * SWEEP)
    monkeypatch.undo()
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        sha256_of(device, 3 * SWEEP, stop=stop)
    assert threading.active_count() == before
    device.close()


async def test_it_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, done = await installed(tmp_path)
    begun, gate = threading.Event(), threading.Event()
    read = Device.read_into

    def slow(self: Device, offset: int, view: memoryview) -> None:
        begun.set()
        gate.wait(10)
        read(self, offset, view)

    monkeypatch.setattr(Device, "read_into", slow)
    task = asyncio.create_task(place.verify(done))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
