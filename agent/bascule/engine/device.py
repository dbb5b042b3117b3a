"""Where the bytes of a part lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Region"]


@dataclass(frozen=True, slots=True)
class Region:
    """A run of bytes in a block device, a disk image or a plain file.

    Attributes:
        path: the device node or file.
        offset: first byte within `path`.
        size: bytes; None means up to the end of `path`.
        file: a plain file of its own (a kernel on /boot): written under a temporary name,
            flushed and renamed, and cut to the size of what it holds.
    """

    path: Path
    offset: int = 0
    size: int | None = None
    file: bool = False
