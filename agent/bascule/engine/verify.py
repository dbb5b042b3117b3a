"""Reads what was written back from the medium, and only then calls the slot verified.

Most of it can be done while the rest of the payload still arrives (`ReadBehind`): what is flushed,
and what no later operation writes, is as final as it will ever be. `read_back` goes on from there.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import hashlib
import mmap
import queue
import threading
from array import array
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

from bascule.engine.aligned import PIECE
from bascule.engine.boot import ClearedSlot
from bascule.engine.checkpoint import CheckpointStore
from bascule.engine.claim import shared
from bascule.engine.device import Device, open_source
from bascule.engine.region import Region
from bascule.engine.thread import finished, in_thread
from bascule.errors import (
    BasculeError,
    KernelMismatch,
    PartsMissing,
    SlotMismatch,
    Stopped,
    StorageError,
)
from bascule.formats.manifest import KERNEL, Manifest, Part, PartInfo
from bascule.formats.signature import SignedManifest
from bascule.formats.slots import Slot

if TYPE_CHECKING:
    from hashlib import _Hash

SWEEP = 4 << 20
"""Bytes read at once."""

_BUFFERS = 3
_MAKER = object()


@dataclass(frozen=True, slots=True)
class VerifiedSlot:
    """Witness: this slot was read back from the medium and is what `signed` says.

    Only `read_back` makes one.

    Attributes:
        slot: the slot, or None for plain files and devices that are no slot of this host.
        signed: the manifest that it was compared with.
    """

    slot: Slot | None
    signed: SignedManifest = field(repr=False)
    maker: InitVar[object] = None

    def __post_init__(self, maker: object) -> None:
        if maker is not _MAKER:
            raise TypeError("only verify.read_back() makes a VerifiedSlot")


@dataclass(frozen=True, slots=True)
class Begun:
    """What `ReadBehind` has read back of one part.

    Attributes:
        length: bytes from the part's start.
        digest: running over them.
    """

    length: int
    digest: _Hash


def sha256_of(
    device: Device,
    length: int,
    *,
    begun: Begun | None = None,
    moved: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> bytes:
    """SHA-256 of the first `length` bytes, read past the page cache.

    Reads in one thread and hashes in another, so the slower of the two sets the pace.

    Args:
        begun: what is known already; `moved` is told of its bytes first.
        moved: told after each piece how many bytes it had.
        stop: ends it early with `Stopped`.

    Raises:
        StorageError: the device is shorter or fails.
    """
    first, digest = (begun.length, begun.digest.copy()) if begun else (0, hashlib.sha256())
    if first and moved is not None:
        moved(first)
    if _sweep(device, digest, first, length, SWEEP, moved, stop) < length:
        raise Stopped
    return digest.digest()


def _sweep(
    device: Device,
    digest: _Hash,
    start: int,
    end: int,
    step: int,
    moved: Callable[[int], None] | None,
    stop: threading.Event | None,
) -> int:
    """Hash the bytes from `start` to `end`; where it came to, which is less if it was stopped."""
    buffers = [mmap.mmap(-1, step) for _ in range(_BUFFERS)]
    free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[int, int] | BaseException | None] = queue.SimpleQueue()
    for number in range(_BUFFERS):
        free.put(number)

    def read() -> None:
        try:
            for at in range(start, end, step):
                number = free.get()
                if number is None:
                    return
                size = min(step, end - at)
                device.read_into(at, memoryview(buffers[number])[:size])
                full.put((number, size))
            full.put(None)
        except BaseException as error:
            full.put(error)

    done = start
    reader = threading.Thread(target=read, name="bascule-read", daemon=True)
    reader.start()
    try:
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if stop is not None and stop.is_set():
                return done
            number, size = item
            with memoryview(buffers[number]) as view:
                digest.update(view[:size])
            done += size
            free.put(number)
            if moved is not None:
                moved(size)
    finally:
        free.put(None)
        reader.join()
    return done


class _Track:
    """One part of a `ReadBehind`.

    Attributes:
        read: bytes read and hashed.
        until: bytes that are final.
        unreadable: it is left to `read_back`, which meets the fault again and names the part.
    """

    def __init__(self, part: Part, region: Region, block: int) -> None:
        assert part.new is not None
        self.region = region
        self.read = self.until = 0
        self.unreadable = False
        self.digest = hashlib.sha256()
        self.device: Device | None = None
        self._size = part.new.size
        self._indices = array("Q")
        starts = array("Q")
        for operation in part.operations:
            written = [extent.start for extent in operation.target if not extent.hole]
            self._indices.append(operation.index)
            starts.append(min(min(written, default=self._size) * block, self._size))
        for number in range(len(starts) - 2, -1, -1):
            starts[number] = min(starts[number], starts[number + 1])
        self._lowest = starts

    @property
    def waits(self) -> bool:
        """There is something to read."""
        return self.read < self.until and not self.unreadable

    def advance(self, prefix: int) -> None:
        """Every operation below `prefix` is on the medium."""
        following = bisect.bisect_left(self._indices, prefix)
        end = self._lowest[following] if following < len(self._lowest) else self._size
        self.until = end // PIECE * PIECE


class ReadBehind:
    """Reads back and hashes, in a thread of its own, what is final while the payload still arrives.

    Final is what lies below the first block that an operation yet to be flushed writes. Parts that
    are changed in place are left to `read_back`: blocks that no operation writes are filled in last.
    So are files, which get their name in the end. A part that cannot be read is left to it too.
    """

    def __init__(self, manifest: Manifest, targets: Mapping[str, Region]) -> None:
        """
        Args:
            targets: part name → where it is written.
        """
        self._tracks = {
            part.name: _Track(part, targets[part.name], manifest.block_size)
            for part in manifest.parts
            if part.new is not None
            and part.name in targets
            and not (part.in_place or part.file or targets[part.name].file)
        }
        # What is final for a part is not, if another part is written over it.
        if shared(targets):
            self._tracks.clear()
        self._thread = ThreadPoolExecutor(1, "bascule-behind")
        self._stop = threading.Event()
        self._running: asyncio.Future[None] | None = None

    def advance(self, prefix: int) -> None:
        """Every operation below `prefix` is carried out and flushed."""
        for track in self._tracks.values():
            track.advance(prefix)
        self._start()

    async def stop(self) -> Mapping[str, Begun]:
        """End the thread after the piece that it is at; what was read, by name of part."""
        self._stop.set()
        try:
            if self._running is not None:
                await finished(self._running)
        finally:
            self._thread.shutdown(wait=True)
            for track in self._tracks.values():
                if track.device is not None:
                    track.device.close()
        return {
            name: Begun(track.read, track.digest)
            for name, track in self._tracks.items()
            if track.read and not track.unreadable
        }

    def _start(self) -> None:
        if self._running is not None or self._stop.is_set():
            return
        if any(track.waits for track in self._tracks.values()):
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(self._thread, self._work)
            self._running.add_done_callback(self._ended)

    def _ended(self, done: asyncio.Future[None]) -> None:
        self._running = None
        done.result()
        self._start()

    def _work(self) -> None:
        for track in self._tracks.values():
            if not track.waits:
                continue
            try:
                if track.device is None:
                    track.device = open_source(track.region)
                # Length and digest move together, whatever ends a sweep halfway.
                digest = track.digest.copy()
                come_to = _sweep(
                    track.device, digest, track.read, track.until, PIECE, None, self._stop
                )
                track.read, track.digest = come_to, digest
            except (BasculeError, OSError, MemoryError, RuntimeError):
                track.unreadable = True


async def read_back(
    signed: SignedManifest,
    targets: Mapping[str, Region],
    *,
    cleared: ClearedSlot,
    carried: Mapping[str, PartInfo] | None = None,
    begun: Mapping[str, Begun] | None = None,
    observer: Callable[[int, int], None] | None = None,
    checkpoint: CheckpointStore | None = None,
) -> VerifiedSlot:
    """Compare every part of the slot with the proven manifest.

    Args:
        signed: what must be there.
        targets: part name → where it was written.
        cleared: the slot that was written.
        carried: parts that the payload does not name and that were copied from the booted slot.
        begun: what was read back while the payload arrived.
        observer: told (bytes done, bytes total) on the event loop.
        checkpoint: dropped if the slot differs: the next attempt must write it again.

    Raises:
        SlotMismatch: a part differs (error number 15).
        KernelMismatch: the kernel differs (16).
        StorageError: it cannot be read.
    """
    wanted: list[tuple[str, Region, PartInfo, bool]] = []
    for part in signed.manifest.parts:
        if part.new is None or (part.name not in targets and skippable(part)):
            continue
        if part.name not in targets:
            raise PartsMissing(f"nothing was written for {part.name}")
        wanted.append((part.name, targets[part.name], part.new, part.file))
    for name, info in (carried or {}).items():
        wanted.append((name, targets[name], info, targets[name].file))
    total = sum(info.size for _, _, info, _ in wanted)
    loop = asyncio.get_running_loop()
    done = 0

    def moved(size: int) -> None:
        nonlocal done
        done += size
        if observer is not None:
            observer(done, total)

    def tell(size: int) -> None:
        loop.call_soon_threadsafe(moved, size)

    for name, region, info, file in wanted:
        stop = threading.Event()
        known = begun.get(name) if begun else None
        work = functools.partial(_compare, name, region, info, file, known, tell, stop)
        try:
            await in_thread(work, stop)
        except SlotMismatch:
            if checkpoint is not None:
                await in_thread(checkpoint.clear)
            raise
    return VerifiedSlot(cleared.slot, signed, maker=_MAKER)


def skippable(part: Part) -> bool:
    """Whether a part may go without a target: nothing boots from it."""
    return not part.known or part.name == "pcr-policy"


def _compare(
    name: str,
    region: Region,
    info: PartInfo,
    file: bool,
    begun: Begun | None,
    moved: Callable[[int], None],
    stop: threading.Event,
) -> None:
    kind = KernelMismatch if name == KERNEL else SlotMismatch
    try:
        device = open_source(region)
    except StorageError as error:
        raise kind(f"{name}: {error}", part=name) from error
    try:
        if device.size < info.size or (file and region.file and device.size != info.size):
            raise kind(
                f"{name} has {device.size} bytes instead of {info.size}",
                part=name,
                path=str(region.path),
            )
        found = sha256_of(device, info.size, begun=begun, moved=moved, stop=stop)
    finally:
        device.close()
    if found != info.sha256:
        raise kind(
            f"{name} at {region.path} reads back as {found.hex()[:16]}…, "
            f"not {info.sha256.hex()[:16]}…",
            part=name,
            path=str(region.path),
        )


__all__ = ["Begun", "ReadBehind", "VerifiedSlot", "read_back", "sha256_of", "skippable"]
