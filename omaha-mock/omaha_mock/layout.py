"""Extents and operations: what a payload says about blocks, before or after it is bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omaha_mock.schema import HOLE, OPERATION_NAMES

__all__ = ["BLOCK", "Extent", "Info", "Operation", "Planned", "extents_of"]

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Extent:
    """``blocks`` blocks from block ``start`` on; a hole if ``start`` is 2^64-1."""

    start: int
    blocks: int

    @property
    def hole(self) -> bool:
        return self.start == HOLE


@dataclass(frozen=True, slots=True)
class Info:
    """Size in bytes and SHA-256 of a part."""

    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as read. ``offset`` is relative to the first blob; None if it has no blob."""

    type: int
    offset: int | None
    length: int
    source: tuple[Extent, ...]
    target: tuple[Extent, ...]
    data_sha256: bytes | None
    source_sha256: bytes | None

    @property
    def name(self) -> str:
        return OPERATION_NAMES.get(self.type, f"type {self.type}")


@dataclass(frozen=True, slots=True)
class Planned:
    """One operation to be written: its kind, its bytes, what it reads and what it makes.

    ``made`` is how many bytes come out: less than the target's blocks where the image ends within
    its last block.
    """

    kind: str
    blob: bytes
    source: tuple[Extent, ...]
    target: tuple[Extent, ...]
    source_sha256: bytes | None
    made: int = 0


def extents_of(blocks: Iterable[int]) -> tuple[Extent, ...]:
    """Blocks in the order given, as the fewest extents that keep this order."""
    extents: list[Extent] = []
    start = count = 0
    for block in blocks:
        if count and block == start + count:
            count += 1
        else:
            if count:
                extents.append(Extent(start, count))
            start, count = block, 1
    if count:
        extents.append(Extent(start, count))
    return tuple(extents)
