"""In which order a partition table reaches the disk, so that a power cut never costs the boot.

The order (design §7, reference 5.7) is: backup copy, flush, primary, flush.

With 512-byte sectors LBA 0–7 hold the header and entries 1–24 in **one aligned 4 KiB block**,
which media and page cache write as a unit: at every moment Linux, cgpt and GRUB see the old
table or the new one, whole.

Where header and changed entries do not share a block (4096-byte sectors; entries beyond the
24th) no order satisfies everyone. The header goes first, then, after a flush, the entries: in
between, GRUB takes the backup, because its header equals the primary's in all common fields;
with the entries first it would take neither and not boot. Linux alone, without ``gpt`` on its
command line, finds no table in that moment; but after `stage` GRUB spends a try and so writes
both copies anew before Linux looks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from bascule.errors import TableError
from bascule.formats.gpt import BLOCK, PRIMARY_LBA, Copies, Copy, PartitionTable

__all__ = ["Flush", "Step", "Write", "repair", "repair_reason", "update"]


@dataclass(frozen=True, slots=True)
class Write:
    """Put `data` at byte `offset`; whole logical sectors."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """Everything before this is on the medium before anything after it is sent."""


Step = Write | Flush


def update(copies: Copies, table: PartitionTable) -> list[Step]:
    """The steps that turn `copies` into `table`, which differs in boot flags only.

    No steps if there is nothing to change.

    Raises:
        TableError: the copies want a repair first.
        TableBroken, TableUnsound: as `Copies.sound`.
    """
    if reason := repair_reason(copies):
        raise TableError(f"it must be repaired before it is changed ({reason})")
    target = _Target.of(copies, table)
    return _backup_steps(copies, target) + _primary_steps(copies, target)


def repair(copies: Copies) -> list[Step]:
    """The steps that make both copies whole, equal and in their places; none if they are.

    A backup that is not at the end of the disk (the disk has grown) is moved there, and the
    usable range extended, as ``cgpt repair`` does. The good copy is not touched before the
    other one is whole; a damaged primary *and* a misplaced backup therefore take two rounds:
    examine and call again until there are no steps.

    Raises:
        TableError: the backup does not fit behind the last partition.
        TableBroken, TableUnsound: as `Copies.sound`.
    """
    table = copies.sound
    target = _Target.of(copies, table)
    backup, primary = _backup_steps(copies, target), _primary_steps(copies, target)
    return backup + primary if copies.primary.fault is None else primary + backup


def repair_reason(copies: Copies) -> str | None:
    """Why a repair is wanted, or None.

    Raises:
        TableError, TableBroken, TableUnsound: as `repair`.
    """
    if not repair(copies):
        return None
    last = copies.sectors - 1
    if copies.primary.fault:
        return f"the primary copy is damaged: {copies.primary.fault}"
    if copies.primary.header and copies.primary.header.alternate_lba != last:
        return "the backup copy is not at the end of the disk"
    if copies.backup.fault:
        return f"the backup copy is damaged: {copies.backup.fault}"
    return "the two copies differ"


@dataclass(frozen=True, slots=True)
class _Target:
    """Both copies as they shall be: header sectors, array places, one array."""

    primary_sector: bytes
    primary_entries_lba: int
    backup_lba: int
    backup_sector: bytes
    backup_entries_lba: int
    array: bytes

    @classmethod
    def of(cls, copies: Copies, table: PartitionTable) -> _Target:
        header = table.header
        # A good backup that is not at the end stays where it is until the primary is whole.
        last = copies.sectors - 1 if copies.primary.fault is None else copies.backup.lba
        known = copies.primary.header
        primary_entries = known.entries_lba if known else PRIMARY_LBA + 1
        if primary_entries + header.array_sectors > header.first_usable:
            raise TableError("the entries do not fit before the first usable sector")
        known = copies.backup.header if copies.backup.lba == last else None
        backup_entries = last - header.array_sectors
        in_place = last in (header.alternate_lba, header.my_lba)
        if known and in_place and header.last_usable < known.entries_lba <= backup_entries:
            backup_entries = known.entries_lba
        last_usable = min(header.last_usable, backup_entries - 1)
        if not in_place:
            last_usable = backup_entries - 1
        if any(entry.last_lba > last_usable for entry in table.entries):
            raise TableError("the backup copy does not fit behind the last partition")
        crc = zlib.crc32(table.array[: header.array_size])
        return cls(
            primary_sector=header.resealed(
                my_lba=PRIMARY_LBA,
                alternate_lba=last,
                entries_lba=primary_entries,
                last_usable=last_usable,
                entries_crc=crc,
            ),
            primary_entries_lba=primary_entries,
            backup_lba=last,
            backup_sector=_with_tail(
                header.resealed(
                    my_lba=last,
                    alternate_lba=PRIMARY_LBA,
                    entries_lba=backup_entries,
                    last_usable=last_usable,
                    entries_crc=crc,
                ),
                known.sector if known else None,
                header.size,
            ),
            backup_entries_lba=backup_entries,
            array=table.array,
        )


def _with_tail(sector: bytes, own: bytes | None, header_size: int) -> bytes:
    """`sector`, but with what this copy itself keeps behind its header."""
    return sector if own is None else sector[:header_size] + own[header_size:]


def _backup_steps(copies: Copies, target: _Target) -> list[Step]:
    old, size = copies.backup, copies.sector_size
    same_place = old.lba == target.backup_lba
    sector = old.sector if same_place else b""
    array = _array_at(old, target.backup_entries_lba) if same_place else None
    writes = [
        # Whole sectors only, unaligned: the 4 KiB block that the array begins in may end a
        # partition, whose owner is writing it now.
        *_runs(array, target.array, target.backup_entries_lba * size, size),
        *_runs(sector, target.backup_sector, target.backup_lba * size, size),
    ]
    return [*writes, Flush()] if writes else []


def _primary_steps(copies: Copies, target: _Target) -> list[Step]:
    size = copies.sector_size
    start = PRIMARY_LBA * size // BLOCK * BLOCK
    head = bytearray(copies.head)
    _overlay(head, start, PRIMARY_LBA * size, target.primary_sector)
    base = target.primary_entries_lba * size
    inside = min(max(0, start + len(head) - base), len(target.array))
    _overlay(head, start, base, target.array[:inside])
    old = _array_at(copies.primary, target.primary_entries_lba)
    steps: list[Step] = []
    if head != copies.head:
        steps += [Write(start, bytes(head)), Flush()]
    rest = list(
        _runs(old and old[inside:], target.array[inside:], base + inside, size, align=BLOCK)
    )
    return [*steps, *rest, Flush()] if rest else steps


def _array_at(copy: Copy, entries_lba: int) -> bytes | None:
    if copy.header is None or copy.header.entries_lba != entries_lba:
        return None
    return copy.array


def _overlay(block: bytearray, start: int, offset: int, data: bytes) -> None:
    if data:
        block[offset - start : offset - start + len(data)] = data


def _runs(
    old: bytes | None, new: bytes, base: int, sector_size: int, align: int = 1
) -> Iterator[Write]:
    """The runs of sectors that differ, widened to `align` bytes as far as `new` reaches."""
    if old is None or len(old) != len(new):
        if new:
            yield Write(base, new)
        return
    end = -1
    begin = 0
    for at in range(0, len(new), sector_size):
        if old[at : at + sector_size] == new[at : at + sector_size]:
            continue
        low = max((base + at) // align * align - base, 0)
        high = min(-(-(base + at + sector_size) // align) * align - base, len(new))
        if end < 0:
            begin, end = low, high
        elif low <= end:
            end = max(end, high)
        else:
            yield Write(base + begin, new[begin:end])
            begin, end = low, high
    if end >= 0:
        yield Write(base + begin, new[begin:end])
