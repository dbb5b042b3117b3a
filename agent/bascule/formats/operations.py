"""The rules that every operation of a payload keeps, whichever major it is of.

Sources: reference flatcar.md 1.3–1.5, payload_v2.md 1.3–1.4. The numbers of the errors are those of
update_engine, which meets most of these faults only while it writes; here they are met before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bascule.errors import (
    ManifestError,
    OperationFailed,
    OperationHashMismatch,
    OperationHashMissing,
    PayloadSizeMismatch,
    UnsupportedOperation,
)
from bascule.formats.manifest import Extent, Limits, OperationType, PartInfo

__all__ = [
    "Blobs",
    "Cover",
    "Images",
    "Work",
    "block_size",
    "blocks_of",
    "extents",
    "info",
    "operation_type",
    "total",
]


def block_size(message: Any) -> int:
    """The manifest's block size in bytes: a power of two from 512 to 65536, 4096 if absent.

    Raises:
        OperationFailed: it is anything else. update_engine crashes on 0, and on others its
            operations outgrow their extents.
    """
    if not message.HasField("block_size"):
        return 4096
    size = int(message.block_size)
    if not 512 <= size <= 65536 or size & (size - 1):
        raise OperationFailed(f"none can be, in blocks of {size} bytes")
    return size


def blocks_of(size: int, block: int) -> int:
    """Blocks that `size` bytes need."""
    return -(-size // block)


def info(message: Any, field: str, what: str) -> PartInfo | None:
    """Size and SHA-256 of one side of a part; None where the manifest has no such field.

    Raises:
        ManifestError: the size is absent or beyond 2**63, or the hash is not 32 bytes.
    """
    if not message.HasField(field):
        return None
    found = getattr(message, field)
    if not found.HasField("size") or not 0 <= found.size < 1 << 63:
        raise ManifestError(f"{field} of {what} has no possible size")
    if len(found.hash) != 32:
        raise ManifestError(f"{field} of {what} has a hash of {len(found.hash)} bytes, not 32")
    return PartInfo(size=int(found.size), sha256=bytes(found.hash))


def operation_type(message: Any, what: str) -> OperationType:
    """The operation's type.

    Raises:
        ManifestError: it has none.
        UnsupportedOperation: the number is not in the enumeration.
    """
    if not message.HasField("type"):
        raise ManifestError(f"{what} has no type")
    try:
        return OperationType(message.type)
    except ValueError:
        raise UnsupportedOperation(f"{what} has the unknown type {message.type}") from None


def extents(messages: Iterable[Any], block: int, what: str, *, holes: bool) -> tuple[Extent, ...]:
    """Extents as values; every byte address they speak of is below 2**63.

    Raises:
        OperationFailed: an empty or impossible extent, or a hole where the format has none.
    """
    most = (1 << 63) // block
    found = []
    blocks = 0
    for message in messages:
        extent = Extent(int(message.start_block), int(message.num_blocks))
        blocks += extent.blocks
        if extent.hole:
            if not holes:
                raise OperationFailed(f"{what} reads from a hole")
        elif extent.start + extent.blocks > most:
            raise OperationFailed(f"{what} has an extent at block {extent.start}, beyond any disk")
        if not extent.blocks or blocks > most:
            raise OperationFailed(f"{what} has an extent of {extent.blocks} blocks")
        found.append(extent)
    return tuple(found)


def total(run: Iterable[Extent], block: int) -> int:
    """Bytes that the extents hold together, holes included."""
    return sum(extent.blocks for extent in run) * block


class Blobs:
    """Walks the operations in payload order and sees that their data lie end to end.

    Attributes:
        end: bytes of the blob area that the operations so far have taken.
        count: operations so far, which is the next one's index.
    """

    def __init__(self, limits: Limits, start: int, size: int | None) -> None:
        """`start` is the blob area's file offset, `size` that of the whole file if it is known."""
        self.end = 0
        self.count = 0
        self._limits = limits
        self._room = None if size is None else size - start

    def take(self, message: Any, what: str, *, hashed: bool) -> tuple[int, int, bytes | None]:
        """Account for one operation: where its data begin, how many bytes, and their SHA-256.

        Args:
            message: an InstallOperation.
            what: the operation in words, for errors.
            hashed: data without a hash are refused.

        Raises:
            OperationFailed: its data do not begin where those of the last one ended.
            OperationHashMissing: data and no hash.
            OperationHashMismatch: the hash has not 32 bytes, so nothing can equal it.
            PayloadSizeMismatch: they end behind the end of the file.
            UnsupportedOperation: a blob over the limit.
        """
        offset, length = int(message.data_offset), int(message.data_length)
        sha256 = bytes(message.data_sha256_hash) or None
        if length and offset != self.end:
            raise OperationFailed(f"data of {what} begin at {offset} and not at {self.end}")
        self._check_room(what, length)
        if length > self._limits.blob:
            raise UnsupportedOperation(
                f"{what} has {length} bytes of data; at most {self._limits.blob}"
            )
        if hashed and length:
            if sha256 is None:
                raise OperationHashMissing(what)
            if len(sha256) != 32:
                raise OperationHashMismatch(f"{what} has a hash of {len(sha256)} bytes")
        offset = self.end
        self.end += length
        self.count += 1
        return offset, length, sha256 if length else None

    def signatures(self, message: Any) -> tuple[int | None, int | None]:
        """Offset and size of the payload signature; (None, None) if there is none.

        Raises:
            OperationFailed: it does not begin where the last operation's data end.
            PayloadSizeMismatch: it is over the limit, or ends behind the end of the file.
        """
        if not message.HasField("signatures_offset"):
            return None, None
        offset, size = int(message.signatures_offset), int(message.signatures_size)
        if offset != self.end:
            raise OperationFailed(f"the signature begins at {offset} and not at {self.end}")
        self._check_room("the signature", size)
        if size > self._limits.signatures:
            raise PayloadSizeMismatch(
                f"a signature of {size} bytes; at most {self._limits.signatures} are read"
            )
        return (offset, size) if size else (None, None)

    def _check_room(self, what: str, length: int) -> None:
        if self._room is not None and self.end + length > self._room:
            raise PayloadSizeMismatch(
                f"{what} has {length} bytes where {self._room - self.end} are left"
            )


class Work:
    """Sees that the operations of one part do not read and write its blocks over and over.

    Extents are cheap to name: half a million of them, each the whole image, fit into a manifest of
    a few mebibytes and would keep a host busy for hours before anything is proven.
    """

    TIMES = 16
    """All operations together: this many times the old and the new image."""

    SLACK = 1 << 16
    """Blocks; a small kernel's one operation declares 256 blocks."""

    def __init__(self, new: int, old: int) -> None:
        """`new` and `old` are the images' blocks."""
        self._each = new + old + self.SLACK
        self._left = self.TIMES * (new + old) + self.SLACK

    def add(self, what: str, run: Iterable[Extent]) -> None:
        """Account for the source or target extents of one operation, holes included.

        Raises:
            OperationFailed: too many blocks for images of this size.
        """
        blocks = sum(extent.blocks for extent in run)
        self._left -= blocks
        if blocks > self._each or self._left < 0:
            raise OperationFailed(f"{what} names {blocks} blocks, too many for images of this size")


class Images:
    """Adds up the blocks of the images that a manifest speaks of."""

    def __init__(self, limits: Limits) -> None:
        self._left = limits.blocks

    def add(self, name: str, *blocks: int) -> None:
        """Account for one part's images.

        Raises:
            ManifestError: too many blocks to keep account of.
        """
        self._left -= sum(blocks)
        if self._left < 0:
            raise ManifestError(f"{name} has {sum(blocks)} blocks, more than can be accounted for")


class Cover:
    """Which blocks of one part are written, and whether any is written twice."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []

    def add(self, run: Iterable[Extent]) -> None:
        """Note the target extents of one operation."""
        self._runs.extend((e.start, e.start + e.blocks) for e in run if not e.hole)

    def measure(self, blocks: int) -> tuple[int, int | None, int | None]:
        """Compare with a part of `blocks` blocks.

        Returns:
            How many of its blocks are not written, the first such block, and the first block
            that is written more than once.
        """
        reached = missing = 0
        first = twice = None
        for start, end in sorted(self._runs):
            if start < reached and twice is None:
                twice = start
            gap = min(start, blocks) - reached
            if gap > 0:
                missing += gap
                first = reached if first is None else first
            reached = max(reached, end)
        if reached < blocks:
            missing += blocks - reached
            first = reached if first is None else first
        return missing, first, twice
