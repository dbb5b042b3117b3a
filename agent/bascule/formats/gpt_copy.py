"""One copy of a GUID partition table: its header, its entries, and whether it can be believed.

Source: UEFI specification 2.10, section 5.3; what a copy must satisfy beyond it follows cgpt
(reference 5.5), whose refusal would make a Flatcar release's own post-installation step fail.
"""

from __future__ import annotations

import itertools
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["PRIMARY_LBA", "SIGNATURE", "Copy", "Entry", "Header", "ReadAt", "judge", "used"]

ReadAt = Callable[[int, int], bytes]
"""(offset, length) → exactly that many bytes; fewer only if the disk ends earlier."""

PRIMARY_LBA = 1
SIGNATURE = b"EFI PART"
REVISION = 0x0001_0000
MAX_ARRAY = 1 << 20
"""Bytes: 64 times the usual array; more is not read into memory."""

MAX_ENTRY = 4096
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_UNUSED = bytes(16)


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose checksum is right, with the whole sector that it was read from.

    LBAs are in logical sectors. `size` is the header's own size, which may exceed 92: the bytes
    up to it are covered by the checksum, those after it are not, and both are kept.
    """

    sector: bytes
    size: int
    my_lba: int
    alternate_lba: int
    first_usable: int
    last_usable: int
    disk_guid: uuid.UUID
    entries_lba: int
    entry_count: int
    entry_size: int
    entries_crc: int

    @property
    def array_size(self) -> int:
        """Bytes of the entry array that its checksum covers."""
        return self.entry_count * self.entry_size

    @property
    def array_sectors(self) -> int:
        """Sectors that the entry array takes."""
        return -(-self.array_size // len(self.sector))

    def resealed(
        self,
        *,
        my_lba: int,
        alternate_lba: int,
        entries_lba: int,
        last_usable: int,
        entries_crc: int,
    ) -> bytes:
        """The sector with these fields and a right checksum; every other byte as it was."""
        sector = bytearray(self.sector)
        signature, revision, size, _, reserved, *_ = _HEADER.unpack_from(sector)
        _HEADER.pack_into(
            sector,
            0,
            *(signature, revision, size, 0, reserved, my_lba, alternate_lba),
            *(self.first_usable, last_usable, self.disk_guid.bytes_le),
            *(entries_lba, self.entry_count, self.entry_size, entries_crc),
        )
        struct.pack_into("<I", sector, 16, zlib.crc32(sector[: self.size]))
        return bytes(sector)


@dataclass(frozen=True, slots=True)
class Entry:
    """One used entry. `index` counts from 1, as partition numbers do; LBAs are inclusive."""

    index: int
    type_guid: uuid.UUID
    guid: uuid.UUID
    first_lba: int
    last_lba: int
    attributes: int
    name: str


@dataclass(frozen=True, slots=True)
class Copy:
    """One of the two copies as found.

    Attributes:
        name: ``primary`` or ``backup``.
        lba: where its header was looked for.
        sector: the header's sector, empty if that lies outside the disk.
        header: None if it is not one.
        array: the entry array in whole sectors, None if there is no header to say where.
        entries: the used entries, in table order; empty if there is a fault.
        fault: why this copy cannot be used; None if it can.
        damaged: whether the fault is one of checksums and places. An intact copy with a fault
            says exactly what somebody once wrote, and that contradicts itself.
    """

    name: str
    lba: int
    sector: bytes = b""
    header: Header | None = None
    array: bytes | None = None
    entries: tuple[Entry, ...] = ()
    fault: str | None = None
    damaged: bool = False


class _FaultError(Exception):
    def __init__(self, fault: str, *, damaged: bool = True) -> None:
        super().__init__(fault)
        self.damaged = damaged


def judge(read_at: ReadAt, name: str, lba: int, sectors: int, sector_size: int) -> Copy:
    """Read the copy whose header is at sector `lba`, of a disk of so many sectors, and judge it."""
    sector = read_at(lba * sector_size, sector_size)
    header = array = None
    try:
        header = _header(sector, lba, sectors, sector_size)
        array = read_at(header.entries_lba * sector_size, header.array_sectors * sector_size)
        if len(array) != header.array_sectors * sector_size:
            raise _FaultError("its entries lie beyond the end of the disk")
        if zlib.crc32(array[: header.array_size]) != header.entries_crc:
            raise _FaultError("the checksum of its entries is wrong")
        entries = tuple(used(array, header))
        _check_entries(entries, header)
    except _FaultError as fault:
        return Copy(name, lba, sector, header, array, (), str(fault), fault.damaged)
    return Copy(name, lba, sector, header, array, entries)


def _header(sector: bytes, lba: int, sectors: int, sector_size: int) -> Header:
    if len(sector) != sector_size or sector[:8] != SIGNATURE:
        raise _FaultError(f"there is no partition table header at sector {lba}")
    _, revision, size, crc, reserved, my_lba, alternate, first, last, guid, entries_lba, *rest = (
        _HEADER.unpack_from(sector)
    )
    count, entry_size, entries_crc = rest
    if revision != REVISION:
        raise _FaultError(f"its revision is 0x{revision:08x}, not 1.0")
    if not _HEADER.size <= size <= sector_size:
        raise _FaultError(f"its header claims {size} bytes")
    if zlib.crc32(sector[:16] + bytes(4) + sector[20:size]) != crc:
        raise _FaultError("the checksum of its header is wrong")
    if reserved:
        raise _FaultError("its reserved field is not zero")
    if my_lba != lba:
        raise _FaultError(f"its header says it belongs at sector {my_lba}, not {lba}")
    if entry_size % 128 or not 128 <= entry_size <= MAX_ENTRY or not count:
        raise _FaultError(f"it claims {count} entries of {entry_size} bytes")
    if count * entry_size > MAX_ARRAY:
        raise _FaultError(f"it claims {count} entries, more than can be taken for true")
    header = Header(
        sector=sector,
        size=size,
        my_lba=my_lba,
        alternate_lba=alternate,
        first_usable=first,
        last_usable=last,
        disk_guid=uuid.UUID(bytes_le=guid),
        entries_lba=entries_lba,
        entry_count=count,
        entry_size=entry_size,
        entries_crc=entries_crc,
    )
    if not PRIMARY_LBA < first <= last < sectors - 1:
        raise _FaultError(f"its usable range {first}–{last} does not fit {sectors} sectors")
    before = lba == PRIMARY_LBA
    low, high = (PRIMARY_LBA + 1, first) if before else (last + 1, lba)
    if not low <= entries_lba <= high - header.array_sectors:
        raise _FaultError(f"its entries at sector {entries_lba} are out of place")
    return header


def used(array: bytes | bytearray, header: Header) -> Iterator[Entry]:
    """The used entries of an array that `header` describes, in table order."""
    for index in range(header.entry_count):
        offset = index * header.entry_size
        if array[offset : offset + 16] == _UNUSED:
            continue
        type_guid, guid, first, last, attributes, name = _ENTRY.unpack_from(array, offset)
        yield Entry(
            index=index + 1,
            type_guid=uuid.UUID(bytes_le=type_guid),
            guid=uuid.UUID(bytes_le=guid),
            first_lba=first,
            last_lba=last,
            attributes=attributes,
            name=name.decode("utf-16-le", "replace").split("\0", 1)[0],
        )


def _check_entries(entries: tuple[Entry, ...], header: Header) -> None:
    seen: dict[uuid.UUID, int] = {}
    for entry in entries:
        if not header.first_usable <= entry.first_lba <= entry.last_lba <= header.last_usable:
            raise _FaultError(
                f"partition {entry.index} ({entry.first_lba}–{entry.last_lba}) lies outside the "
                f"usable range {header.first_usable}–{header.last_usable}",
                damaged=False,
            )
        if twin := seen.get(entry.guid):
            raise _FaultError(
                f"partitions {twin} and {entry.index} have the same GUID {entry.guid}",
                damaged=False,
            )
        seen[entry.guid] = entry.index
    placed = sorted(entries, key=lambda entry: entry.first_lba)
    for left, right in itertools.pairwise(placed):
        if left.last_lba >= right.first_lba:
            raise _FaultError(f"partitions {left.index} and {right.index} overlap", damaged=False)
