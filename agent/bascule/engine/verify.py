"""Reads what was written back from the medium, and only then calls the slot verified."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import mmap
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field

from bascule.engine.boot import ClearedSlot
from bascule.engine.checkpoint import CheckpointStore
from bascule.engine.device import Device, Region, open_source
from bascule.engine.thread import in_thread
from bascule.errors import (
    KernelMismatch,
    PartsMissing,
    SlotMismatch,
    Stopped,
    StorageError,
)
from bascule.formats.manifest import KERNEL, Part, PartInfo
from bascule.formats.signature import SignedManifest
from bascule.formats.slots import Slot

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


def sha256_of(
    device: Device,
    length: int,
    *,
    moved: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> bytes:
    """SHA-256 of the first `length` bytes, read past the page cache.

    Reads in one thread and hashes in another, so the slower of the two sets the pace.

    Args:
        moved: told after each piece how many bytes it had.
        stop: ends it early with `Stopped`.

    Raises:
        StorageError: the device is shorter or fails.
    """
    buffers = [mmap.mmap(-1, SWEEP) for _ in range(_BUFFERS)]
    free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[int, int] | BaseException | None] = queue.SimpleQueue()
    for number in range(_BUFFERS):
        free.put(number)

    def read() -> None:
        try:
            for start in range(0, length, SWEEP):
                number = free.get()
                if number is None:
                    return
                size = min(SWEEP, length - start)
                device.read_into(start, memoryview(buffers[number])[:size])
                full.put((number, size))
            full.put(None)
        except BaseException as error:
            full.put(error)

    digest = hashlib.sha256()
    reader = threading.Thread(target=read, name="bascule-read", daemon=True)
    reader.start()
    try:
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if stop is not None and stop.is_set():
                raise Stopped
            number, size = item
            with memoryview(buffers[number]) as view:
                digest.update(view[:size])
            free.put(number)
            if moved is not None:
                moved(size)
    finally:
        free.put(None)
        reader.join()
    return digest.digest()


async def read_back(
    signed: SignedManifest,
    targets: Mapping[str, Region],
    *,
    cleared: ClearedSlot,
    carried: Mapping[str, PartInfo] | None = None,
    observer: Callable[[int, int], None] | None = None,
    checkpoint: CheckpointStore | None = None,
) -> VerifiedSlot:
    """Compare every part of the slot with the proven manifest.

    Args:
        signed: what must be there.
        targets: part name → where it was written.
        cleared: the slot that was written.
        carried: parts that the payload does not name and that were copied from the booted slot.
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
        work = functools.partial(_compare, name, region, info, file, tell, stop)
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
        found = sha256_of(device, info.size, moved=moved, stop=stop)
    finally:
        device.close()
    if found != info.sha256:
        raise kind(
            f"{name} at {region.path} reads back as {found.hex()[:16]}…, "
            f"not {info.sha256.hex()[:16]}…",
            part=name,
            path=str(region.path),
        )


__all__ = ["VerifiedSlot", "read_back", "sha256_of", "skippable"]
