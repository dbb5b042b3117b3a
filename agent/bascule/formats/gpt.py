"""The GUID partition table: two copies in, one judged table out.

Nothing here reads a disk: `examine` is given a function that returns bytes. Only the boot flags
(attribute bits 48–56) of an entry can be changed; how a change reaches the disk is the business
of `bascule.formats.gpt_writes`. What makes a copy good is in `bascule.formats.gpt_copy`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from bascule.errors import TableBroken, TableError, TableUnsound
from bascule.formats.gpt_copy import (
    PRIMARY_LBA,
    SIGNATURE,
    Copy,
    Entry,
    Header,
    ReadAt,
    judge,
    used,
)
from bascule.formats.slots import FLAGS_MASK

__all__ = [
    "BLOCK",
    "PRIMARY_LBA",
    "Copies",
    "Copy",
    "Entry",
    "Header",
    "PartitionTable",
    "ReadAt",
    "examine",
    "sector_size_of",
]

BLOCK = 4096
"""Bytes that media and page cache write as one unit."""

SECTOR_SIZES = (512, 4096)


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """The table that counts. `array` is the entry array in whole sectors."""

    sector_size: int
    sectors: int
    header: Header
    array: bytes
    entries: tuple[Entry, ...]

    def entry(self, index: int) -> Entry:
        """The entry of partition `index` (1-based).

        Raises:
            TableError: there is no such partition.
        """
        for entry in self.entries:
            if entry.index == index:
                return entry
        raise TableError(f"there is no partition {index}")

    def with_attributes(self, attributes: Mapping[int, int]) -> PartitionTable:
        """The table with other boot flags; keys are partition numbers.

        Raises:
            TableError: no such partition, or a bit would change that is not a boot flag.
        """
        array = bytearray(self.array)
        for index, value in attributes.items():
            if (self.entry(index).attributes ^ value) & ~FLAGS_MASK:
                raise TableError(f"only boot flags may change, not 0x{value:016x} as a whole")
            struct.pack_into("<Q", array, (index - 1) * self.header.entry_size + 48, value)
        return PartitionTable(
            sector_size=self.sector_size,
            sectors=self.sectors,
            header=self.header,
            array=bytes(array),
            entries=tuple(used(array, self.header)),
        )


@dataclass(frozen=True, slots=True)
class Copies:
    """Both copies of one disk, judged.

    Attributes:
        sector_size: logical, 512 or 4096 bytes.
        sectors: size of the disk in logical sectors.
        head: the 4 KiB block that the primary header lies in (LBA 0–7, or LBA 1 alone), cut
            where partitions may begin.
    """

    sector_size: int
    sectors: int
    head: bytes
    primary: Copy
    backup: Copy

    @property
    def sound(self) -> PartitionTable:
        """The table that counts: the primary if it is good, as for GRUB, cgpt and Linux.

        Raises:
            TableUnsound: intact, but overlapping partitions, repeated GUIDs or the like.
            TableBroken: both copies are damaged.
        """
        # An intact primary is what the running system lives by, even if it contradicts
        # itself: an older backup must not silently replace it.
        if self.primary.fault and not self.primary.damaged:
            raise TableUnsound(self.primary.fault)
        for copy in (self.primary, self.backup):
            if copy.fault is None and copy.header is not None and copy.array is not None:
                return PartitionTable(
                    self.sector_size, self.sectors, copy.header, copy.array, copy.entries
                )
        kind = TableBroken if self.backup.damaged else TableUnsound
        raise kind(f"primary: {self.primary.fault}; backup: {self.backup.fault}")


def sector_size_of(read_at: ReadAt) -> int:
    """The logical sector size that an image file was partitioned with; 512 if it does not tell."""
    return next((s for s in SECTOR_SIZES if read_at(s, len(SIGNATURE)) == SIGNATURE), 512)


def examine(read_at: ReadAt, disk_size: int, sector_size: int) -> Copies:
    """Read and judge both copies.

    Args:
        read_at: see `ReadAt`.
        disk_size: bytes.
        sector_size: logical, in bytes.

    Raises:
        TableError: the disk is too small, or its sectors are neither 512 nor 4096 bytes.
            Damage is not raised but told in the copies.
    """
    if sector_size not in SECTOR_SIZES:
        raise TableError(f"sectors of {sector_size} bytes are not supported")
    sectors = disk_size // sector_size
    if sectors < 6:
        raise TableError(f"a disk of {disk_size} bytes holds no partition table")
    last = sectors - 1
    primary = judge(read_at, "primary", PRIMARY_LBA, sectors, sector_size)
    alternate = primary.header.alternate_lba if primary.header else last
    # A disk that has grown keeps its backup at the old end; one that has shrunk lost it.
    backup_lba = alternate if PRIMARY_LBA < alternate <= last else last
    backup = judge(read_at, "backup", backup_lba, sectors, sector_size)
    start = sector_size // BLOCK * BLOCK
    limits = [c.header.first_usable * sector_size for c in (primary, backup) if c.header]
    head = read_at(start, min(BLOCK, *(limit - start for limit in limits)) if limits else BLOCK)
    return Copies(sector_size, sectors, head, primary, backup)
