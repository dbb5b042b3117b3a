"""The payload's manifest as values, for both majors.

Formats: Flatcar ``update_metadata.proto`` (major 1, reference flatcar.md 1.2) and AOSP
``update_metadata.proto`` (major 2, reference payload_v2.md 1.2). The two reuse field numbers with
other meanings and are never parsed with one schema: `manifest_v1` and `manifest_v2` read them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bascule.errors import MetadataSizeError, PayloadSizeMismatch, UnsupportedMajor

__all__ = [
    "HOLE",
    "KERNEL",
    "PCR_POLICY",
    "USR",
    "Extent",
    "Limits",
    "Manifest",
    "Operation",
    "OperationType",
    "Part",
    "PartInfo",
    "Postinstall",
    "parse_manifest",
]

USR = "usr"
"""Name of the part that a major 1 payload's ``partition_operations`` fill."""
KERNEL = "kernel"
"""Name of the part that a major 1 KERNEL procedure fills."""
PCR_POLICY = "pcr-policy"
"""Name of the part that a major 1 PCR_POLICY procedure fills."""

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
class Limits:
    """How large a payload's pieces may be before memory is spent on them.

    Attributes:
        manifest: bytes of the manifest's protobuf.
        blob: bytes of one operation's blob.
        operations: in the whole payload.
        extents: in the whole payload, sources and targets together.
        signatures: bytes of one ``Signatures`` message.
        blocks: of all images, old and new together; who carries operations out needs 4 to 8 bytes of
            memory for each.
    """

    manifest: int = 64 << 20
    blob: int = 256 << 20
    operations: int = 1 << 17
    extents: int = 1 << 19
    signatures: int = 64 << 10
    blocks: int = 1 << 26


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
        data_offset: bytes from the start of the blob area; where the data of the operation before it
            end, with or without data of its own.
        data_length: bytes of blob; 0 for none.
        source: extents read, concatenated in order.
        target: extents written, in order.
        data_sha256: 32 bytes, or None where the manifest has none (only without data, or in a part
            that is not ``known``).
        source_sha256: of the source extents' bytes, 32 bytes, or None.
        source_length: bytes to read of the source extents; what lies beyond reads as nothing. Equal
            to the extents' size but for a v1 BSDIFF whose old file ends inside its last block.
        target_length: bytes that must come out, or None where the format leaves it open (v1 REPLACE
            and REPLACE_BZ: at most the target extents' size; zero-padded to a block).
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
    source_length: int = 0
    target_length: int | None = None

    @property
    def data_end(self) -> int:
        """Offset in the blob area just behind this operation's data."""
        return self.data_offset + self.data_length


@dataclass(frozen=True, slots=True)
class PartInfo:
    """Size in bytes and SHA-256 of a part's first ``size`` bytes."""

    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Postinstall:
    """A program inside the new partition that the publisher wants run (v2).

    Attributes:
        path: relative to the partition's root.
        optional: a failure does not fail the update.
        filesystem: type to mount, or "" if the payload does not say.
    """

    path: str
    optional: bool
    filesystem: str


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
        in_place: v1 deltas: sources lie on the *target* numbering (MOVE, BSDIFF) and blocks that no
            operation writes are those of the booted slot; see decisions/0004.
        uncovered: blocks of the new image that no operation writes (v1 only; v2 refuses them). In
            a part that is not ``in_place`` they must happen to be right already.
        postinstall: a program to run, or None (v2).
        version: the partition's own version (v2: seconds, as text), or "".
    """

    name: str
    known: bool
    file: bool
    old: PartInfo | None
    new: PartInfo | None
    operations: tuple[Operation, ...]
    in_place: bool = False
    uncovered: int = 0
    postinstall: Postinstall | None = None
    version: str = ""


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
        partial: v2 ``partial_update``: parts that it does not name stay as they are in the booted
            slot.
        groups: names of v2 dynamic partition groups. Informative: every part must be mapped to a
            region anyhow, and Bascule never resizes one.
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
    partial: bool = False
    groups: tuple[str, ...] = ()

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations in payload order."""
        return tuple(op for part in self.parts for op in part.operations)

    @property
    def delta(self) -> bool:
        """Whether anything is read from the booted slot."""
        return self.partial or any(part.old is not None or part.in_place for part in self.parts)

    @property
    def blobs_size(self) -> int:
        """Bytes of all operations' blobs: where the payload signature begins in the blob area."""
        return next((p.operations[-1].data_end for p in reversed(self.parts) if p.operations), 0)

    @property
    def size(self) -> int:
        """Bytes of the whole payload, signature included."""
        return self.blobs_offset + self.blobs_size + (self.signatures_size or 0)

    def check_size(self, announced: int | None) -> None:
        """Compare the payload's size with the announced one, if there is one.

        Raises:
            PayloadSizeMismatch: they differ.
        """
        if announced is not None and announced != self.size:
            raise PayloadSizeMismatch(
                f"the manifest adds up to {self.size} bytes, {announced} were announced"
            )

    def offset_of(self, first_operation: int) -> int:
        """File offset from which a resumed transfer must continue.

        Args:
            first_operation: index of the first operation not carried out yet; the number of
                operations if only the signature is left.
        """
        if not first_operation:
            return self.blobs_offset
        return self.blobs_offset + self.operations[first_operation - 1].data_end


def parse_manifest(
    raw: bytes,
    *,
    major: int,
    metadata: bytes,
    signature_size: int = 0,
    size: int | None = None,
    limits: Limits | None = None,
) -> Manifest:
    """Parse and check a manifest. It is *not* thereby proven: see `bascule.formats.signature`.

    Args:
        raw: the manifest's protobuf.
        major: 1 or 2, from the header.
        metadata: header and manifest together, as they lie at the file's start.
        signature_size: bytes of the v2 metadata signature that follows; 0 for major 1.
        size: bytes of the whole payload, if it was announced: what does not fill it is refused.
        limits: see `Limits`.

    Raises:
        PayloadError: a subclass names what is wrong, with the number that update_engine reports
            for it, though most of these it reports only after it has written the slot.
    """
    limits = limits or Limits()
    if len(raw) > limits.manifest:
        raise MetadataSizeError(f"manifest of {len(raw)} bytes; at most {limits.manifest}")
    if major == 1:
        from bascule.formats import manifest_v1

        manifest = manifest_v1.read(raw, metadata=metadata, size=size, limits=limits)
    elif major == 2:
        from bascule.formats import manifest_v2

        manifest = manifest_v2.read(
            raw, metadata=metadata, signature_size=signature_size, size=size, limits=limits
        )
    else:
        raise UnsupportedMajor(f"major version {major}")
    manifest.check_size(size)
    return manifest
