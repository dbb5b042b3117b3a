"""Is there room for everything that will be written into file systems? Asked once, for all of it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bascule.errors import DeviceOpenError


@dataclass(frozen=True, slots=True)
class Want:
    """Something that will be written.

    Attributes:
        what: its name in the message.
        folder: where; its nearest existing parent counts.
        size: bytes.
        gives_way: files that are gone before it is written, so their room counts as free.
    """

    what: str
    folder: Path
    size: int
    gives_way: tuple[Path, ...] = ()


def shortfalls(wants: Iterable[Want]) -> list[str]:
    """One line with figures for each file system that cannot hold all that it is to take.

    Raises:
        DeviceOpenError: a folder cannot be looked at.
    """
    systems: dict[int, list[tuple[Path, Want]]] = {}
    for want in wants:
        folder = _existing(want.folder)
        try:
            systems.setdefault(folder.stat().st_dev, []).append((folder, want))
        except OSError as error:
            raise DeviceOpenError(f"{folder}: {error.strerror}", path=str(folder)) from error
    return [line for found in systems.values() if (line := _judge(found))]


def _judge(found: list[tuple[Path, Want]]) -> str:
    folder = found[0][0]
    try:
        system = os.statvfs(folder)
    except OSError as error:
        raise DeviceOpenError(f"{folder}: {error.strerror}", path=str(folder)) from error
    free = system.f_bavail * system.f_frsize + _given({p for _, w in found for p in w.gives_way})
    needed = sum(want.size for _, want in found)
    if needed <= free:
        return ""
    what = ", ".join(f"{want.what} ({want.size})" for _, want in found)
    folders = ", ".join(dict.fromkeys(str(want.folder) for _, want in found))
    return f"{what}: {folders} lacks {needed - free} bytes of {needed}, {free} are free"


def _given(paths: set[Path]) -> int:
    blocks = 0
    for path in paths:
        with contextlib.suppress(OSError):
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                blocks += info.st_blocks
    return blocks * 512


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


__all__ = ["Want", "shortfalls"]
