"""A re-enacted firmware: which slot a power-on takes, decided on bytes.

It shares no code with the agent, on purpose: a parser used on both sides would agree with its
own mistakes. It re-enacts the rule of Flatcar's GRUB (`gptprio.next`): read both table copies,
repair in memory, take the highest priority among the partitions of the type that have a try
left or are marked successful, spend a try if there is one, write backup, then primary.

Besides it judges a table as three readers do: Linux (primary copy only, unless `gpt` is on the
command line), cgpt, and GRUB.

As a script: ``python tests/firmware.py DISK`` prints the partition number and spends the try;
``--look`` spends nothing.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import os
import struct
import sys
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

SLOT_TYPE = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"
Disk = bytes | bytearray | mmap.mmap
_FIELDS = "<8sIIIIQQQQ16sQIII"


@dataclass
class _Copy:
    """One copy of the table as some reader takes it."""

    lba: int
    header: bytes
    my_lba: int
    alternate: int
    first_usable: int
    last_usable: int
    disk_guid: bytes
    entries_lba: int
    count: int
    size: int
    entries_crc: int
    array: bytes

    @property
    def array_ok(self) -> bool:
        return zlib.crc32(self.array) == self.entries_crc

    @property
    def common(self) -> tuple[object, ...]:
        """What GRUB wants to be equal in both headers."""
        return (
            self.header[:16],
            self.first_usable,
            self.last_usable,
            self.disk_guid,
            self.count,
            self.size,
            self.entries_crc,
        )

    def entry(self, index: int) -> tuple[bytes, bytes, int, int, int]:
        return struct.unpack_from("<16s16sQQQ", self.array, index * self.size)

    def used(self) -> list[tuple[bytes, bytes, int, int, int]]:
        return [e for e in map(self.entry, range(self.count)) if e[0] != bytes(16)]


def _copy_at(disk: Disk, lba: int, ss: int) -> _Copy | None:
    """The copy whose header is at `lba`; None if that is no valid header."""
    sector = bytes(disk[lba * ss : (lba + 1) * ss])
    if len(sector) < ss or sector[:8] != b"EFI PART":
        return None
    f = struct.unpack_from(_FIELDS, sector)
    size = f[2]
    if f[1] != 0x10000 or not 92 <= size <= ss or f[4] != 0 or f[5] != lba:
        return None
    if zlib.crc32(sector[:16] + b"\0\0\0\0" + sector[20:size]) != f[3]:
        return None
    count, entry_size = f[11], f[12]
    if entry_size < 128 or entry_size % 128 or count * entry_size > 1 << 20:
        return None
    array = bytes(disk[f[10] * ss : f[10] * ss + count * entry_size])
    if len(array) != count * entry_size:
        return None
    return _Copy(
        lba, sector[:size], f[5], f[6], f[7], f[8], f[9], f[10], count, entry_size, f[13], array
    )


def _last(disk: Disk, ss: int) -> int:
    return len(disk) // ss - 1


# ── three readers ────────────────────────────────────────────────────────────────────────────


def linux(disk: Disk, sector_size: int = 512, *, gpt_word: bool = False) -> _Copy | None:
    """The table that Linux uses (block/partitions/efi.c).

    Protective MBR, then the primary copy. Only with the word `gpt` on the kernel command line
    (`gpt_word`) the MBR is not asked and the backup is looked for.
    """
    if gpt_word:
        last = _last(disk, sector_size)
        copies = (_copy_at(disk, lba, sector_size) for lba in (1, last))
        return next((c for c in copies if c and c.size == 128 and c.array_ok), None)
    if disk[510:512] != b"\x55\xaa" or 0xEE not in (disk[450 + 16 * i] for i in range(4)):
        return None
    copy = _copy_at(disk, 1, sector_size)
    if copy is None or copy.size != 128 or not copy.array_ok:
        return None
    if copy.first_usable > _last(disk, sector_size) or copy.last_usable > _last(disk, sector_size):
        return None
    return copy if copy.first_usable <= copy.last_usable else None


def grub(disk: Disk, sector_size: int = 512) -> _Copy | None:
    """The table that Flatcar's GRUB uses, repaired in memory.

    The backup counts only if the primary *header* is invalid or equal to the backup's in every
    common field, the checksum of the entries included.
    """
    primary = _copy_at(disk, 1, sector_size)
    if primary is not None and primary.array_ok:
        return primary
    where = primary.alternate if primary else _last(disk, sector_size)
    backup = _copy_at(disk, where, sector_size)
    if backup is None or not backup.array_ok:
        return None
    if primary is not None and primary.common != backup.common:
        return None
    return backup


def cgpt(disk: Disk, sector_size: int = 512) -> _Copy | None:
    """The table that cgpt uses: any good header with any good array; stricter about contents."""
    last = _last(disk, sector_size)
    headers = [c for c in (_copy_at(disk, 1, sector_size), _copy_at(disk, last, sector_size)) if c]
    headers = [c for c in headers if c.size == 128 and c.count == 128 and len(c.header) <= 512]
    headers = [c for c in headers if c.first_usable <= c.last_usable <= last]
    arrays = [c.array for c in headers]
    for header in headers:
        for array in arrays:
            if zlib.crc32(array) == header.entries_crc:
                candidate = _Copy(**{**header.__dict__, "array": array})
                if _contents_ok(candidate):
                    return candidate
    return None


def _contents_ok(copy: _Copy) -> bool:
    used = copy.used()
    if len({e[1] for e in used}) != len(used):
        return False
    spans = sorted((e[2], e[3]) for e in used)
    if any(not copy.first_usable <= a <= b <= copy.last_usable for a, b in spans):
        return False
    return all(left[1] < right[0] for left, right in itertools.pairwise(spans))


# ── the boot choice ──────────────────────────────────────────────────────────────────────────


def pick(copy: _Copy, type_guid: str = SLOT_TYPE) -> int | None:
    """The 1-based partition that `gptprio.next` takes from a table, or None."""
    wanted = uuid.UUID(type_guid).bytes_le
    best, best_priority = None, 0
    for index in range(copy.count):
        kind, _, _, _, attributes = copy.entry(index)
        priority, tries = attributes >> 48 & 15, attributes >> 52 & 15
        if kind == wanted and (tries or attributes >> 56 & 1) and priority > best_priority:
            best, best_priority = index + 1, priority
    return best


def spend(disk: bytearray | mmap.mmap, copy: _Copy, partition: int, sector_size: int = 512) -> bool:
    """Take one try from `partition` and write both copies, as GRUB does. False: none to take."""
    at = (partition - 1) * copy.size + 48
    attributes = struct.unpack_from("<Q", copy.array, at)[0]
    if not attributes >> 52 & 15:
        return False
    array = bytearray(copy.array)
    struct.pack_into("<Q", array, at, attributes - (1 << 52))
    primary = copy.lba == 1
    backup_lba = copy.alternate if primary else copy.lba
    sectors = -(-len(array) // sector_size)
    known = _copy_at(disk, backup_lba, sector_size)
    first = _copy_at(disk, 1, sector_size)
    places = (
        (backup_lba, 1, known.entries_lba if known else backup_lba - sectors),
        (1, backup_lba, first.entries_lba if first else 2),
    )
    for lba, other, entries_lba in places:
        if lba > _last(disk, sector_size):
            continue
        header = bytearray(copy.header)
        struct.pack_into("<QQ", header, 24, lba, other)
        struct.pack_into("<Q", header, 72, entries_lba)
        struct.pack_into("<I", header, 88, zlib.crc32(array))
        struct.pack_into("<I", header, 16, 0)
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        disk[lba * sector_size : lba * sector_size + len(header)] = header
        disk[entries_lba * sector_size : entries_lba * sector_size + len(array)] = array
    return True


def sector_size_of(path: str | Path) -> int:
    """512, or 4096 if that is where the disk has its header."""
    with Path(path).open("rb") as disk:
        head = disk.read(4104)
    return 4096 if head[4096:4104] == b"EFI PART" and head[512:520] != b"EFI PART" else 512


def flags(disk_path: str | Path, partition: int) -> tuple[int, int, int]:
    """(priority, tries, successful) of a partition, as the firmware reads them."""
    ss = sector_size_of(disk_path)
    with _mapped(disk_path, write=False) as disk:
        copy = grub(disk, ss)
    if copy is None:
        raise SystemExit("firmware: invalid GPT")
    attributes = copy.entry(partition - 1)[4]
    return attributes >> 48 & 15, attributes >> 52 & 15, attributes >> 56 & 1


def choose(disk_path: str | Path, *, type_guid: str = SLOT_TYPE, spend: bool = True) -> int | None:
    """One power-on: the 1-based partition that is booted, or None if nothing can be.

    With `spend` a try is taken from it, as the bootloader does, and written to the disk.
    """
    ss = sector_size_of(disk_path)
    with _mapped(disk_path, write=spend) as disk:
        copy = grub(disk, ss)
        partition = pick(copy, type_guid) if copy else None
        if copy and partition and spend and _spend(disk, copy, partition, ss):
            disk.flush()
        return partition


_spend = spend


def _mapped(path: str | Path, *, write: bool) -> mmap.mmap:
    with Path(path).open("r+b" if write else "rb") as file:
        size = file.seek(0, os.SEEK_END)
        return mmap.mmap(
            file.fileno(), size, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Power on: which partition is booted?")
    parser.add_argument("disk")
    parser.add_argument("--type-guid", default=SLOT_TYPE)
    parser.add_argument("--look", action="store_true", help="spend no try")
    args = parser.parse_args()
    partition = choose(args.disk, type_guid=args.type_guid, spend=not args.look)
    if partition is None:
        print("firmware: no such partition", file=sys.stderr)
        return 1
    print(partition)
    return 0


if __name__ == "__main__":
    sys.exit(main())
