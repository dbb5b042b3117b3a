"""Where a part of a slot lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Region:
    """A run of bytes that holds one part of a slot.

    Attributes:
        path: block device, disk image or plain file.
        offset: bytes from the start of `path`.
        size: bytes, or None for "to the end".
        file: the part is a file of its own: written under a temporary name in the same folder,
            cut to size, flushed, renamed.
    """

    path: Path
    offset: int = 0
    size: int | None = None
    file: bool = False
