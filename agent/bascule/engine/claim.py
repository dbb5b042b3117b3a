"""Who else uses a device: nobody may, before it is written.

Linux lets one holder open a block device with ``O_EXCL``; a mount, device-mapper and md are such
holders. Regular files (disk images) have only advisory locks.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bascule.errors import DeviceInUse, DeviceOpenError, WouldTouchBootedSlot

if TYPE_CHECKING:
    from bascule.engine.region import Region

_SECTOR = 512
"""Unit of ``start`` and ``size`` in sysfs, whatever the device's own sector is."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a region lies in the end: a whole disk or a file, and a range of bytes in it."""

    kind: str
    major: int
    minor: int
    inode: int
    start: int
    end: int

    def touches(self, other: Place) -> bool:
        """Whether the two share at least one byte."""
        same = (self.kind, self.major, self.minor, self.inode) == (
            other.kind,
            other.major,
            other.minor,
            other.inode,
        )
        return same and self.start < other.end and other.start < self.end


def place(region: Region, *, sys: Path = Path("/sys")) -> Place:
    """Follow partition nodes to their disk and loop devices to their file.

    Raises:
        DeviceOpenError: it does not exist or is neither a block device nor a regular file.
    """
    try:
        return _place(region.path, region.offset, region.size, sys, depth=0)
    except OSError as error:
        raise DeviceOpenError(f"{region.path}: {error.strerror}", path=str(region.path)) from error


def _place(path: Path, start: int, size: int | None, sys: Path, depth: int) -> Place:
    info = path.stat()
    if stat.S_ISREG(info.st_mode):
        end = start + size if size is not None else 1 << 63
        device = info.st_dev
        return Place("file", os.major(device), os.minor(device), info.st_ino, start, end)
    if not stat.S_ISBLK(info.st_mode):
        raise DeviceOpenError(
            f"{path} is neither a block device nor a regular file", path=str(path)
        )
    major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    node = sys / "dev" / "block" / f"{major}:{minor}"
    if (node / "partition").exists():
        first = int((node / "start").read_text()) * _SECTOR
        length = int((node / "size").read_text()) * _SECTOR
        outer = (node.resolve().parent / "dev").read_text().strip().split(":")
        end = start + (size if size is not None else length - start)
        return Place("block", int(outer[0]), int(outer[1]), 0, first + start, first + end)
    backing = node / "loop" / "backing_file"
    if backing.exists() and depth < 8:
        file = Path(backing.read_text().rstrip("\n"))
        shift = int((node / "loop" / "offset").read_text())
        if file.is_file():
            return _place(file, shift + start, size, sys, depth + 1)
    return Place("block", major, minor, 0, start, start + size if size is not None else 1 << 63)


def refuse_booted(region: Region, booted: Iterable[Region], *, sys: Path = Path("/sys")) -> None:
    """Raise `WouldTouchBootedSlot` if `region` shares a byte with a part of the booted slot."""
    if not region.path.exists():
        return
    mine = place(region, sys=sys)
    for other in booted:
        if other.path.exists() and mine.touches(place(other, sys=sys)):
            raise WouldTouchBootedSlot(
                f"{region.path} is part of the running slot", path=str(region.path)
            )


def shared(regions: Mapping[str, Region]) -> tuple[str, str] | None:
    """Names of two of `regions` that share a byte, or that are one file yet to be made.

    Raises:
        DeviceOpenError: as `place`.
    """
    seen: list[tuple[str, Path, Place | None]] = []
    for name, region in sorted(regions.items()):
        where = place(region) if region.path.exists() else None
        for other, path, taken in seen:
            if where.touches(taken) if where and taken else region.path == path:
                return other, name
        seen.append((name, region.path, where))
    return None


def refuse_mounted(path: Path, *, proc: Path = Path("/proc")) -> None:
    """Raise `DeviceInUse` if the block device at `path` is mounted.

    ``O_EXCL`` finds this out as well; this check can name the mount point.
    Format of mountinfo: proc(5), field 3 is major:minor, field 5 the mount point.
    """
    info = path.stat()
    if not stat.S_ISBLK(info.st_mode):
        return
    wanted = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    try:
        lines = (proc / "self" / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 4 and fields[2] == wanted:
            raise DeviceInUse(f"{path} is mounted at {fields[4]}", path=str(path), mount=fields[4])


@dataclass
class _Held:
    fd: int
    count: int


_held: dict[tuple[str, int, int], _Held] = {}
_lock = threading.Lock()


class Claim:
    """The exclusive right to write one device or file, shared by the regions in it.

    Raises:
        DeviceInUse: somebody else holds it.
        DeviceOpenError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._key: tuple[str, int, int] | None = None
        try:
            info = path.stat()
            block = stat.S_ISBLK(info.st_mode)
            key = ("b", info.st_rdev, 0) if block else ("f", info.st_dev, info.st_ino)
            with _lock:
                held = _held.get(key)
                if held is None:
                    held = _held[key] = _Held(_seize(path, block), 0)
                held.count += 1
        except BlockingIOError as error:
            raise DeviceInUse(f"another process writes {path}", path=str(path)) from error
        except OSError as error:
            if error.errno == 16:  # EBUSY
                raise DeviceInUse(
                    f"{path} is held by a mount, device-mapper, md or another program",
                    path=str(path),
                ) from error
            raise DeviceOpenError(f"{path}: {error.strerror}", path=str(path)) from error
        self._key = key

    def release(self) -> None:
        """Give it back; more than once is fine."""
        if self._key is None:
            return
        with _lock:
            held = _held[self._key]
            held.count -= 1
            if held.count == 0:
                os.close(held.fd)
                del _held[self._key]
        self._key = None


def _seize(path: Path, block: bool) -> int:
    if block:
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd
