"""What a delta starts from is proven before its data, and what is there already is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from bascule.engine import sources
from bascule.engine.aligned import PIECE
from bascule.engine.carry import Checked
from bascule.engine.device import Device
from bascule.engine.region import Region
from bascule.engine.sources import check_source, hashed_bytes
from bascule.errors import PartsMissing, SourceMismatch, Stopped
from bascule.formats.manifest import HOLE, Extent, Operation, OperationType, Part, PartInfo
from bascule.formats.signature import load_keys
from payload_builder import (
    BLOCK,
    IMAGE,
    KERNEL_IMAGE,
    OLD_IMAGE,
    draft_v1,
    draft_v2,
    public_pem,
)
from slot_files import SlotFiles

IMAGE_BLOCKS = 600
OLD = random.Random(5).randbytes(IMAGE_BLOCKS * BLOCK)

KEYS = load_keys(public_pem(), "update")


def _copy(index: int, source: list[Extent], target: list[Extent], data: bytes) -> Operation:
    return Operation(
        index,
        "usr",
        OperationType.SOURCE_COPY,
        0,
        0,
        tuple(source),
        tuple(target),
        None,
        sha256(data).digest(),
        len(data),
        len(data),
    )


def _at(extent: Extent) -> bytes:
    if extent.hole:
        return bytes(extent.blocks * BLOCK)
    return OLD[extent.start * BLOCK : (extent.start + extent.blocks) * BLOCK]


def _part(*extents: list[Extent], same_place: bool = True) -> Part:
    operations = tuple(
        _copy(
            number,
            source,
            source if same_place else [Extent(0, sum(e.blocks for e in source))],
            b"".join(map(_at, source)),
        )
        for number, source in enumerate(extents)
    )
    info = PartInfo(len(OLD), sha256(OLD).digest())
    return Part("usr", True, False, info, info, operations)


@pytest.fixture
def place(tmp_path: Path) -> tuple[Region, Region]:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(OLD)
    new.write_bytes(OLD)
    return Region(old), Region(new)


WHOLE = [[Extent(0, 300)], [Extent(300, 44), Extent(400, 200)], [Extent(344, 56)]]


def _spoil(region: Region, at: int) -> None:
    data = bytearray(region.path.read_bytes())
    data[at] ^= 1
    region.path.write_bytes(data)


def test_what_the_target_has_needs_no_source(place: tuple[Region, Region]) -> None:
    """But for the first block of each operation, which tells whether it pays to look."""
    old, new = place
    part = _part(*WHOLE)
    everything = Checked(proven=True, there=frozenset({0, 1, 2}))
    assert check_source(part, old, BLOCK, target=new) == everything
    _spoil(old, 299 * BLOCK)
    assert check_source(part, old, BLOCK, target=new) == everything
    with pytest.raises(SourceMismatch, match="operation 0 "):
        check_source(part, old, BLOCK)


@pytest.mark.parametrize("at", [0, 5, 4096, 300 * BLOCK - 1])
def test_another_target_needs_its_source(at: int, place: tuple[Region, Region]) -> None:
    old, new = place
    _spoil(new, at)
    found = check_source(_part(*WHOLE), old, BLOCK, target=new)
    assert found == Checked(proven=True, there=frozenset({1, 2}))
    _spoil(old, 10 * BLOCK)
    with pytest.raises(SourceMismatch, match="operation 0 "):
        check_source(_part(*WHOLE), old, BLOCK, target=new)


def test_a_short_target_and_a_file_are_not_looked_at(place: tuple[Region, Region]) -> None:
    old, new = place
    short = replace(new, size=500 * BLOCK)
    assert check_source(_part(*WHOLE), old, BLOCK, target=short).there == {0, 2}
    assert not check_source(_part(*WHOLE), old, BLOCK, target=replace(new, file=True)).there
    assert not check_source(_part(*WHOLE, same_place=False), old, BLOCK, target=new).there - {0}


def test_holes_and_other_operations_are_hashed_but_not_taken_for_there(
    place: tuple[Region, Region],
) -> None:
    old, new = place
    holed = _part([Extent(HOLE, 2), Extent(2, 3)])
    assert check_source(holed, old, BLOCK, target=new) == Checked(proven=True)
    part = _part(*WHOLE)
    other = replace(part.operations[1], type=OperationType.SOURCE_BSDIFF)
    mixed = replace(part, operations=(part.operations[0], other, part.operations[2]))
    assert check_source(mixed, old, BLOCK, target=new).there == {0, 2}
    _spoil(old, 500 * BLOCK)
    with pytest.raises(SourceMismatch, match=r"operation 1 \(SOURCE_BSDIFF\)"):
        check_source(mixed, old, BLOCK, target=new)


def test_of_several_faults_the_first_is_told(place: tuple[Region, Region]) -> None:
    old, _ = place
    for at in (599, 350, 20):
        _spoil(old, at * BLOCK)
        for _ in range(3):
            with pytest.raises(SourceMismatch, match="operation"):
                check_source(_part(*WHOLE), old, BLOCK, workers=4)
    with pytest.raises(SourceMismatch, match="operation 0 "):
        check_source(_part(*WHOLE), old, BLOCK)


def test_it_stops(place: tuple[Region, Region]) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        check_source(_part(*WHOLE), place[0], BLOCK, stop=stop)


def test_progress_adds_up(place: tuple[Region, Region]) -> None:
    old, new = place
    for part in (
        _part(*WHOLE),
        replace(_part(*WHOLE), in_place=True),
        _part(*[[Extent(at, 1)] for at in range(IMAGE_BLOCKS)]),
    ):
        for target in (None, new):
            told: list[int] = []
            check_source(part, old, BLOCK, target=target, moved=told.append)
            assert sum(told) == hashed_bytes(part) == len(OLD)


def test_a_large_operation_is_hashed_in_pieces(tmp_path: Path) -> None:
    data = random.Random(6).randbytes(2 * PIECE + 3 * BLOCK)
    (tmp_path / "old").write_bytes(data)
    blocks = len(data) // BLOCK
    operation = _copy(0, [Extent(0, blocks)], [Extent(0, blocks)], data)
    info = PartInfo(len(data), sha256(data).digest())
    part = Part("usr", True, False, info, info, (operation,))
    region = Region(tmp_path / "old")
    assert check_source(part, region, BLOCK, target=region).there == {0}


async def test_a_delta_onto_what_is_there_already_writes_only_the_rest(tmp_path: Path) -> None:
    place = SlotFiles(tmp_path, old={"system": OLD_IMAGE}, new={"system": IMAGE})
    place.targets["system"].path.write_bytes(OLD_IMAGE)
    done = await place.install(draft_v2(delta=True).build(), KEYS)
    await place.verify(done)
    assert place.matches()
    assert done.stats.written + done.stats.skipped == len(IMAGE)
    assert done.stats.skipped >= 4 * BLOCK


def test_a_device_that_takes_no_direct_reads_is_read_by_all_threads(
    place: tuple[Region, Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first EINVAL ends direct reading for everybody, those inside a call included."""
    old, new = place
    preadv = os.preadv

    def refusing(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            # Everybody else comes in before the first one is told.
            for _ in range(100):
                os.sched_yield()
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refusing)
    monkeypatch.setattr(sources, "_GROUP", 1)
    part = _part(*[[Extent(at, 1)] for at in range(IMAGE_BLOCKS)])
    for _ in range(5):
        assert check_source(part, old, BLOCK, workers=4).proven
        assert len(check_source(part, old, BLOCK, target=new, workers=4).there) == IMAGE_BLOCKS


def test_it_stops_within_an_operation(
    place: tuple[Region, Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, reads = threading.Event(), []
    read = Device.read_into

    def once(self: Device, offset: int, view: memoryview) -> None:
        reads.append(offset)
        stop.set()
        read(self, offset, view)

    monkeypatch.setattr(Device, "read_into", once)
    with pytest.raises(Stopped):
        check_source(_part([Extent(0, IMAGE_BLOCKS)]), place[0], BLOCK, stop=stop)
    assert len(reads) == 1


async def test_two_parts_in_one_place_are_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    place = SlotFiles(tmp_path, old={}, new={"usr": IMAGE, "kernel": KERNEL_IMAGE})
    place.targets["kernel"] = place.targets["usr"]
    with pytest.raises(PartsMissing, match="kernel and usr go to the same place"):
        await place.install(draft_v1().build(), KEYS)
    assert set(place.targets["usr"].path.read_bytes()) == {0xEE}
    aside = Region(tmp_path / "not-yet", file=True)
    place.targets.update(usr=aside, kernel=aside)
    with pytest.raises(PartsMissing, match="go to the same place"):
        await place.install(draft_v1().build(), KEYS)
