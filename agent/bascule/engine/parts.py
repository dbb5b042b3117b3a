"""The parts of one installation: does everything fit, and who holds the devices open."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bascule.engine.aligned import PIECE
from bascule.engine.carry import Checked, Ground
from bascule.engine.claim import refuse_booted, shared
from bascule.engine.device import Device, open_source, open_target
from bascule.engine.newfile import NewFile, partial_path
from bascule.engine.region import Region
from bascule.engine.room import Want, shortfalls
from bascule.engine.sources import check_source, hashed_bytes, reads_source
from bascule.engine.verify import sha256_of, skippable
from bascule.errors import (
    NotEnoughSpace,
    PackagesMissing,
    PartsMissing,
    SourceMismatch,
    StorageError,
)
from bascule.formats.manifest import Manifest, Part, PartInfo

_RECORD = 64 << 10
"""Bytes that a record, its predecessor and their file system's own needs take."""


class Parts:
    """Targets and sources of one manifest.

    Attributes:
        grounds: part name → open devices, between `open` and `close`.
        written, skipped: bytes, by `carry_over`.
        source_bytes: bytes that `check_sources` hashes.
    """

    def __init__(
        self, manifest: Manifest, targets: Mapping[str, Region], sources: Mapping[str, Region]
    ) -> None:
        self.grounds: dict[str, Ground] = {}
        self.written = self.skipped = 0
        self._manifest = manifest
        self._targets = targets
        self._sources = sources
        self._files: dict[str, NewFile] = {}
        self._devices: list[Device] = []
        self._checked: dict[str, Checked] = {}
        self._carried_info: Mapping[str, PartInfo] = {}
        self._wanted: list[Part] = [
            part for part in manifest.parts if part.known and part.name in targets
        ]
        named = {part.name for part in manifest.parts}
        # A booted slot without a kernel file of its own boots without one, and so will the other.
        self._carried: list[str] = sorted(
            name for name in set(targets) - named if _exists(sources.get(name))
        )
        self.source_bytes = sum(map(hashed_bytes, self._wanted))

    @property
    def flushes(self) -> int:
        """fdatasync calls so far."""
        return sum(device.flushes for device in self._devices)

    def preflight(
        self, *, state: Path | None = None, metadata: int = 0, packages: Sequence[str] = ()
    ) -> None:
        """Everything that can be known to be wrong before a byte of data is fetched.

        Args:
            state: folder of the resume record, if one is kept.
            metadata: bytes of the payload's metadata, which the record keeps.
            packages: extra packages that this host needs and the offer has not.

        Raises:
            PackagesMissing: of `packages`, if nothing else is wrong.
            PartsMissing: payload and host have different parts.
            SourceMismatch: a delta's source is missing or too small.
            NotEnoughSpace: targets are too small; the message has every figure.
            WouldTouchBootedSlot: a target is part of the booted slot.
        """
        self._check_names()
        for name in (*(part.name for part in self._wanted), *self._carried):
            refuse_booted(self._targets[name], self._sources.values())
        names = [*(part.name for part in self._wanted), *self._carried]
        if both := shared({name: self._targets[name] for name in names}):
            raise PartsMissing(f"{' and '.join(both)} go to the same place")
        short = [line for name, size in self._sizes() for line in self._too_small(name, size)]
        short += shortfalls(self._files_wanted(state, metadata))
        absent = [f"the offer has no package {name}" for name in packages]
        if short:
            raise NotEnoughSpace("; ".join(short + absent), shortfalls=short + absent)
        if absent:
            raise PackagesMissing("; ".join(absent), packages=list(packages))
        for part in self._wanted:
            if not reads_source(part):
                continue
            if part.name not in self._sources:
                raise SourceMismatch(f"{part.name} is a delta and there is no old {part.name}")

    def check_sources(
        self, moved: Callable[[int], None], stop: threading.Event, workers: int
    ) -> None:
        """Hash each source that the manifest has hashes for. Blocking; see `check_source`.

        Raises:
            SourceMismatch: error number 20.
        """
        block = self._manifest.block_size
        for part in self._wanted:
            self._checked[part.name] = check_source(
                part,
                self._sources.get(part.name),
                block,
                target=self._targets[part.name],
                moved=moved,
                stop=stop,
                workers=workers,
            )

    def open(self, *, resume: bool, done: int = 0) -> bool:
        """Open every device.

        Args:
            resume: keep what an earlier attempt wrote into files.
            done: operations below this index are on the medium.

        Returns:
            Whether what an earlier attempt wrote is still there (always true unless `resume`).
        """
        block = self._manifest.block_size
        booted = tuple(self._sources.values())
        for part in self._wanted:
            region = self._targets[part.name]
            assert part.new is not None
            if region.file:
                begun = bool(part.operations) and part.operations[0].index < done
                if resume and begun and not self._still_there(part, done):
                    return False
                room = -(-part.new.size // block) * block
                file = NewFile(region, room, resume=resume and begun, booted=booted)
                self._files[part.name] = file
                target = file.device
            else:
                target = open_target(region, booted=booted)
            self._devices.append(target)
            source = None
            if reads_source(part):
                source = open_source(self._sources[part.name])
                self._devices.append(source)
            checked = self._checked.get(part.name, Checked())
            self.grounds[part.name] = Ground(target, source, block, checked)
        return True

    def carry_over(self) -> Mapping[str, PartInfo]:
        """Copy the parts that the payload does not name from the booted slot. Blocking."""
        carried: dict[str, PartInfo] = {}
        for name in self._carried:
            source = open_source(self._sources[name])
            self._devices.append(source)
            region = self._targets[name]
            if region.file:
                self._files[name] = NewFile(
                    region, source.size, resume=False, booted=self._sources.values()
                )
                target = self._files[name].device
            else:
                target = open_target(region, booted=self._sources.values())
            self._devices.append(target)
            if target.size < source.size:
                raise NotEnoughSpace(f"{name} has {target.size} bytes of {source.size} needed")
            digest = hashlib.sha256()
            for start in range(0, source.size, PIECE):
                data = source.read(start, min(PIECE, source.size - start))
                digest.update(data)
                written, skipped = target.update(start, data)
                self.written += written
                self.skipped += skipped
            target.flush()
            carried[name] = PartInfo(source.size, digest.digest())
        self._carried_info = carried
        return carried

    def commit(self) -> None:
        """Put the files in place: the payload is proven."""
        sizes = {part.name: part.new.size for part in self._wanted if part.new is not None}
        sizes |= {name: info.size for name, info in self._carried_info.items()}
        for name, file in self._files.items():
            file.commit(sizes[name])

    def abandon(self) -> None:
        """Close everything; unfinished files vanish."""
        for file in self._files.values():
            with contextlib.suppress(StorageError):
                file.abandon()
        self.close()

    def close(self) -> None:
        """Close everything; unfinished files stay for a later attempt."""
        for device in self._devices:
            device.close()

    def _check_names(self) -> None:
        missing = [
            part.name
            for part in self._manifest.parts
            if part.name not in self._targets and not skippable(part)
        ]
        if missing:
            raise PartsMissing(f"the payload fills {', '.join(missing)}, which has no target here")
        if not self._carried:
            return
        may = self._manifest.partial or self._manifest.major == 1
        without = [n for n in self._carried if not may or n not in self._sources]
        if without:
            raise PartsMissing(f"the payload has nothing for {', '.join(without)}")

    def _sizes(self) -> Iterator[tuple[str, int]]:
        """Every part that will be written, and its bytes."""
        for part in self._wanted:
            assert part.new is not None
            yield part.name, part.new.size
        for name in self._carried:
            source = self._sources.get(name)
            if source is not None:
                yield name, _size_of(source)

    def _too_small(self, name: str, size: int) -> Iterator[str]:
        region = self._targets[name]
        if not region.file and (found := _size_of(region)) < size:
            yield f"{name}: {region.path} has {found} bytes of {size} needed"

    def _files_wanted(self, state: Path | None, metadata: int) -> Iterator[Want]:
        block = self._manifest.block_size
        for name, size in self._sizes():
            region = self._targets[name]
            if region.file:
                # The slot is cleared, so its old file and an unfinished one give way.
                room = -(-size // block) * block
                path = region.path
                yield Want(name, path.parent, room, (path, partial_path(path)))
        if state is not None:
            room = metadata + max(map(_overlap, self._wanted), default=0) * block + _RECORD
            kept = tuple(state / each for each in ("metadata", "journal", "record"))
            yield Want("the resume record", state, room, kept)

    def _still_there(self, part: Part, done: int) -> bool:
        """Whether the bytes of an unfinished file are there, or were put in place already."""
        region = self._targets[part.name]
        aside = partial_path(region.path)
        if aside.is_file():
            return True
        assert part.new is not None
        if part.operations[-1].index >= done or not region.path.is_file():
            return False
        finished = open_source(region)
        try:
            if finished.size != part.new.size:
                return False
            if sha256_of(finished, part.new.size) != part.new.sha256:
                return False
        finally:
            finished.close()
        # Nothing boots from the slot, so the file may go back to being unfinished.
        try:
            region.path.rename(aside)
        except OSError as error:
            raise StorageError(f"{region.path}: {error.strerror}") from error
        return True


def _size_of(region: Region) -> int:
    device = open_source(region)
    size = device.size
    device.close()
    return size


def _overlap(part: Part) -> int:
    """Most blocks that one operation both reads and writes: its journal holds no more than it reads."""
    most = 0
    for operation in part.operations if part.in_place else ():
        spans = [(e.start, e.start + e.blocks) for e in operation.target if not e.hole]
        reads = [e for e in operation.source if not e.hole]
        low = min((start for start, _ in spans), default=0)
        high = max((end for _, end in spans), default=0)
        if any(e.start < high and low < e.start + e.blocks for e in reads):
            most = max(most, sum(e.blocks for e in reads))
    return most


def _exists(region: Region | None) -> bool:
    return region is None or not region.file or region.path.exists()


__all__ = ["Parts"]
