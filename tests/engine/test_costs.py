"""What an installation costs, in counts: bytes, flushes, passes, threads, memory. Never seconds.

`tests/bench/run.py` measures time by hand; these notice in `make test` that a pass, a copy or a
flush too many has come in.
"""

from __future__ import annotations

import os
import random
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bascule.engine import decode
from bascule.engine.apply import BUDGET
from bascule.engine.boot.files import clear_files
from bascule.engine.checkpoint import CheckpointStore
from bascule.engine.device import Device
from bascule.engine.lane import BACKLOG
from bascule.engine.local_file import FileSource
from bascule.engine.region import Region
from bascule.engine.stream import Announced, Stats, install
from bascule.engine.verify import read_back
from bascule.formats.signature import load_keys
from omaha_mock.pack import Image, Packed, pack
from omaha_mock.signing import keygen, load_signing_key

MIB = 1 << 20
READ_AHEAD = 3 * MIB
"""What the thread that reads back has read when it is stopped, and then reads again."""


@dataclass
class Costs:
    """Counters that the engine's calls feed."""

    read: int = 0
    flushes: int = 0
    durable: int = 0
    threads: set[str] = field(default_factory=set)
    most_threads: int = 0


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    found = Costs()
    read, read_into, update = Device.read, Device.read_into, Device.update
    fdatasync, fsync = os.fdatasync, os.fsync
    inside = threading.local()

    def counted_read_into(self: Device, offset: int, view: memoryview) -> None:
        found.read += len(view)
        inside.read = True
        read_into(self, offset, view)
        inside.read = False

    def counted_read(self: Device, offset: int, length: int, *, pad: bool = False) -> bytes:
        if not getattr(inside, "read", False):
            found.read += length
        return read(self, offset, length, pad=pad)

    def counted_update(self: Device, *args: object) -> tuple[int, int]:
        names = {thread.name.rpartition("_")[0] or thread.name for thread in threading.enumerate()}
        found.threads |= names
        found.most_threads = max(found.most_threads, threading.active_count())
        return update(self, *args)  # type: ignore[arg-type]

    def counted_fdatasync(fd: int) -> None:
        found.flushes += 1
        fdatasync(fd)

    def counted_fsync(fd: int) -> None:
        found.durable += 1
        fsync(fd)

    monkeypatch.setattr(Device, "read", counted_read)
    monkeypatch.setattr(Device, "read_into", counted_read_into)
    monkeypatch.setattr(Device, "update", counted_update)
    monkeypatch.setattr(os, "fdatasync", counted_fdatasync)
    monkeypatch.setattr(os, "fsync", counted_fsync)
    return found


@dataclass
class Ground:
    """One payload and the slot that it goes to."""

    folder: Path
    packed: Packed
    image: Path
    public: bytes
    old: Path | None = None

    @property
    def slot(self) -> Path:
        return self.folder / "slot"

    async def install(self, workers: int = 2) -> Stats:
        targets = {"usr": Region(self.slot)}
        cleared = clear_files(targets)
        installed = await install(
            FileSource(self.packed.path, size=self.packed.size),
            announced=Announced(self.packed.size, self.packed.sha256),
            keys=lambda: load_keys(self.public, "update.pub.pem"),
            cleared=cleared,
            targets=targets,
            sources={"usr": Region(self.old)} if self.old else {},
            checkpoint=CheckpointStore(self.folder / "state"),
            workers=workers,
            interval=8 * MIB,
        )
        await read_back(installed.signed, targets, cleared=cleared, begun=installed.begun)
        return installed.stats


def _ground(
    folder: Path, mib: int, *, major: int = 2, delta: bool = False, codec: str = "raw"
) -> Ground:
    folder.mkdir(exist_ok=True)
    rng = random.Random(mib)
    image, old = folder / "image", None
    data = b"".join(rng.randbytes(MIB) for _ in range(mib))
    if delta:
        old = folder / "old"
        old.write_bytes(data)
        data = data[: 3 * MIB] + rng.randbytes(MIB) + data[4 * MIB :]
    image.write_bytes(data)
    private, public = keygen(folder)
    packed = pack(
        [Image("usr", image, old)],
        folder / "payload",
        major=major,
        keys=[load_signing_key(private)],
        codecs=[codec],
    )
    return Ground(folder, packed, image, public.read_bytes(), old)


@pytest.mark.parametrize("major", [1, 2])
async def test_an_unlike_slot_is_written_once_and_read_back_once(
    major: int, tmp_path: Path, costs: Costs
) -> None:
    """Above that, only the first 8 MiB are looked at, and a piece of every 8 MiB after them."""
    ground = _ground(tmp_path / "ground", 24, major=major)
    ground.slot.write_bytes(b"\xaa" * 24 * MIB)
    stats = await ground.install()
    assert (stats.written, stats.skipped) == (24 * MIB, 0)
    # Two workers may each have one more piece under way when the count is full.
    assert costs.read <= (24 + 8 + 3 + 2) * MIB + READ_AHEAD
    assert stats.fetched == ground.packed.size


async def test_the_same_again_writes_nothing_and_reads_twice(tmp_path: Path, costs: Costs) -> None:
    """Once to compare, once to prove: a third pass would be needless."""
    ground = _ground(tmp_path / "ground", 12)
    ground.slot.write_bytes(ground.image.read_bytes())
    stats = await ground.install()
    assert (stats.written, stats.skipped) == (0, 12 * MIB)
    assert 2 * 12 * MIB <= costs.read <= 2 * 12 * MIB + READ_AHEAD


async def test_a_delta_onto_another_slot_reads_its_source_twice(
    tmp_path: Path, costs: Costs
) -> None:
    """Source: hashed, each operation's part read once more. Target: compared, read back."""
    ground = _ground(tmp_path / "ground", 12, delta=True)
    ground.slot.write_bytes(b"\xaa" * 12 * MIB)
    stats = await ground.install()
    assert stats.written == 12 * MIB
    assert costs.read <= 4 * 12 * MIB + READ_AHEAD


async def test_a_delta_leaves_alone_what_is_there(tmp_path: Path, costs: Costs) -> None:
    """Target: hashed, read back. Source: the first block of each operation, to see if that pays."""
    ground = _ground(tmp_path / "ground", 12, delta=True)
    assert ground.old is not None
    ground.slot.write_bytes(ground.old.read_bytes())
    stats = await ground.install()
    assert (stats.written, stats.skipped) == (MIB, 11 * MIB)
    assert costs.read <= 2 * 12 * MIB + MIB + READ_AHEAD


async def test_flushes_grow_with_the_interval_and_not_with_the_operations(
    tmp_path: Path, costs: Costs
) -> None:
    """24 MiB in 8 MiB steps; a record is two fsyncs (file, folder), `begin` makes two files."""
    ground = _ground(tmp_path / "ground", 24)
    ground.slot.write_bytes(b"\xaa" * 24 * MIB)
    stats = await ground.install()
    assert 1 <= stats.checkpoints <= 24 // 8 + 2
    assert costs.flushes <= stats.checkpoints + 2
    assert costs.durable <= 2 * (stats.checkpoints + 2) + 4


async def test_zstd_needs_no_decoder_that_works_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decoded into the memory that is written from: no window, no blocks, no joining."""
    made: list[object] = []
    monkeypatch.setattr(decode, "ZstdDecompressor", lambda **options: made.append(options))
    ground = _ground(tmp_path / "ground", 6, codec="zstd")
    ground.slot.write_bytes(b"\xaa" * 6 * MIB)
    stats = await ground.install()
    assert stats.written == 6 * MIB
    assert set(ground.packed.operations) == {"REPLACE_ZSTD"}
    assert not made


async def test_threads_are_the_workers_and_a_few_more(tmp_path: Path, costs: Costs) -> None:
    """Workers, one each to hash, to flush, to read back, the loop's own few; none an operation."""
    before = threading.active_count()
    ground = _ground(tmp_path / "ground", 16)
    ground.slot.write_bytes(b"\xaa" * 16 * MIB)
    await ground.install(workers=3)
    ours = {name for name in costs.threads if name.startswith("bascule")}
    assert ours <= {
        "bascule-apply",
        "bascule-behind",
        "bascule-hash",
        "bascule-read",
        "bascule-sync",
    }
    pool = min(32, (os.cpu_count() or 1) + 4)
    assert costs.most_threads - before <= 3 + 4 + pool


async def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """Peak of everything that Python has allocated while 8 and 32 MiB are installed."""
    peaks = []
    for mib in (8, 32):
        ground = _ground(tmp_path / str(mib), mib)
        ground.slot.write_bytes(b"\xaa" * mib * MIB)
        peaks.append(await _peak(ground.install))
    assert peaks[1] - peaks[0] <= 6 * MIB
    assert max(peaks) <= BUDGET + 2 * BACKLOG + 8 * MIB


async def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        await work()  # type: ignore[misc]
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
