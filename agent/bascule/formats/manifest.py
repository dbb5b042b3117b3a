"""The payload's manifest as values, for both majors.

Formats: Flatcar ``update_metadata.proto`` (major 1, reference flatcar.md 1.2) and AOSP
``update_metadata.proto`` (major 2, reference payload_v2.md 1.2). The two reuse field numbers with
other meanings and are never parsed with one schema.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

HOLE = 2**64 - 1
"""``start_block`` of a sparse hole: consume (or supply zero) bytes, touch no block."""


class OperationType(enum.IntEnum):
    """InstallOperation.Type; numbers as on the wire."""

    REPLACE = 0
    REPLACE_BZ = 1
    MOVE = 2
    BSDIFF = 3
    SOURCE_COPY = 4
    SOURCE_BSDIFF = 5
    ZERO = 6
    DISCARD = 7
    REPLACE_XZ = 8
    PUFFDIFF = 9
    BROTLI_BSDIFF = 10
    ZUCCHINI = 11
    LZ4DIFF_BSDIFF = 12
    LZ4DIFF_PUFFDIFF = 13
    REPLACE_ZSTD = 14


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of blocks. ``start`` is `HOLE` for a sparse hole."""

    start: int
    blocks: int

    @property
    def hole(self) -> bool:
        """Whether this run lies nowhere on the device."""
        return self.start == HOLE


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a payload.

    Attributes:
        index: position in the payload's one order of operations, from 0.
        part: name of the part it writes.
        data_offset: bytes from the start of the blob area; meaningful if ``data_length`` > 0.
        data_length: bytes of blob; 0 for none.
        source: extents read, concatenated in order.
        target: extents written, in order.
        data_sha256: 32 bytes, or None where the manifest has none.
        source_sha256: 32 bytes, or None.
    """

    index: int
    part: str
    type: OperationType
    data_offset: int
    data_length: int
    source: tuple[Extent, ...]
    target: tuple[Extent, ...]
    data_sha256: bytes | None
    source_sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class PartInfo:
    """Size in bytes and SHA-256 of a part's first ``size`` bytes."""

    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """One partition or file that the payload fills.

    Attributes:
        name: ``usr``, ``kernel``, ``pcr-policy`` for major 1; the partition's own name for major 2.
        known: False for a v1 procedure of a type this agent does not know: its operations' bytes
            are consumed, never applied.
        file: the target is a file that is cut to ``new.size`` (v1 procedures), not a partition.
        old: what a delta must start from, if the manifest says so.
        new: what must be there in the end; None only where ``known`` is False.
        operations: indices are consecutive over the whole payload.
        in_place: v1 deltas: sources lie on the *target* numbering (MOVE, BSDIFF), see
            decisions/0004.
    """

    name: str
    known: bool
    file: bool
    old: PartInfo | None
    new: PartInfo | None
    operations: tuple[Operation, ...]
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed and checked manifest (not yet proven: see `signature.SignedManifest`).

    Attributes:
        major: 1 or 2.
        minor: 0 for full payloads and for major 1.
        block_size: bytes.
        metadata_size: bytes from the file's start to the manifest's end (v1: 20 + M, v2: 24 + M).
        blobs_offset: file offset of the blob area (v2 adds the metadata signature).
        signatures_offset: within the blob area; None if unsigned.
        signatures_size: bytes; None if unsigned.
        max_timestamp: unix seconds (v2), or None.
        sha256: of the metadata bytes, 32 bytes.
    """

    major: int
    minor: int
    block_size: int
    metadata_size: int
    blobs_offset: int
    parts: tuple[Part, ...]
    signatures_offset: int | None
    signatures_size: int | None
    max_timestamp: int | None
    sha256: bytes

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations in payload order."""
        return tuple(op for part in self.parts for op in part.operations)

    @property
    def delta(self) -> bool:
        """Whether anything is read from the booted slot."""
        return any(part.old is not None or part.in_place for part in self.parts)
