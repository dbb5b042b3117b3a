"""The memory that devices are written from: aligned, one for each thread, and nothing copied twice."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bascule.engine.aligned import PIECE, ROOM, address, mine
from bascule.engine.device import Device
from bascule.engine.region import Region


def test_each_thread_has_its_own_for_good() -> None:
    with ThreadPoolExecutor(1) as other:
        assert other.submit(mine).result() is not mine()
    assert mine() is mine()
    assert len(mine().ours) == ROOM
    assert len(mine().theirs) == PIECE


def test_it_is_aligned_for_the_kernel() -> None:
    assert address(mine().ours) % mmap.PAGESIZE == 0
    assert address(mine().theirs) % mmap.PAGESIZE == 0
    assert address(mine().ours[4096:]) - address(mine().ours) == 4096
    assert address(mine().ours[:0]) == 0


def test_only_what_lies_elsewhere_is_copied() -> None:
    memory = mine()
    memory.ours[:8] = b"as it is"
    inside = memory.ours[3:8]
    assert memory.take(inside) is inside
    taken = memory.take(memoryview(b"another"))
    assert bytes(taken) == b"another"
    assert address(taken) == address(memory.ours)


def test_bytes_are_compared_where_they_lie() -> None:
    memory = mine()
    memory.ours[:8192] = bytes(4096) + b"x" * 4096
    memory.theirs[:4096] = b"x" * 4096
    assert memory.equal(memory.ours[4096:8192])
    assert not memory.equal(memory.ours[:4096])
    memory.theirs[4095] = 0
    assert not memory.equal(memory.ours[4096:8192])


@pytest.mark.parametrize("at", [0, 512, 4096, PIECE, PIECE + 4096])
@pytest.mark.parametrize("length", [4096, 8192, PIECE - 4096])
def test_what_lies_in_it_is_written_from_there(
    at: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in it the bytes begin: past the page cache if that is aligned, through it if not."""
    path = tmp_path / "slot"
    path.write_bytes(b"\xaa" * (2 * PIECE))
    data = os.urandom(length)
    memory = mine()
    memory.ours[at : at + length] = data
    wrote: list[int] = []
    write = os.pwrite

    def noted(fd: int, piece: memoryview, offset: int) -> int:
        wrote.append(address(piece))
        return write(fd, piece, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    device = Device(Region(path), write=True)
    try:
        assert device.update(8192, memory.ours[at : at + length]) == (length, 0)
        direct = device._direct is not None
    finally:
        device.close()
    assert path.read_bytes()[8192 : 8192 + length] == data
    assert path.read_bytes()[:8192] == b"\xaa" * 8192
    assert wrote == [address(memory.ours) + at]
    assert direct
