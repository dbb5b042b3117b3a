"""Partition tables for tests, made by hand and by the field's own tools. No agent code."""

from __future__ import annotations

import struct
import subprocess
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FLATCAR_USR = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"
CHROMEOS_KERNEL = "fe3a2a5d-4f32-41a7-b725-accc3285a309"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"


@dataclass(frozen=True)
class Part:
    """One entry of a hand-made table."""

    index: int
    first: int
    last: int
    attributes: int = 0
    type_guid: str = FLATCAR_USR
    name: str = ""

    @property
    def guid(self) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_OID, f"part {self.index}")


def attributes(priority: int, tries: int, successful: int, rest: int = 0) -> int:
    return rest | priority << 48 | tries << 52 | successful << 56


def image(
    parts: Sequence[Part],
    *,
    sectors: int = 256,
    sector_size: int = 512,
    count: int = 128,
    entry_size: int = 128,
    header_size: int = 92,
    tail: bytes = b"",
    fill: int = 0,
) -> bytearray:
    """A whole disk: protective MBR, both copies, `fill` everywhere else."""
    ss = sector_size
    disk = bytearray(bytes([fill]) * (sectors * ss))
    disk[:ss] = bytes(ss)
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, sectors - 1)
    disk[510:512] = b"\x55\xaa"
    array = bytearray(count * entry_size)
    for p in parts:
        struct.pack_into(
            "<16s16sQQQ72s",
            array,
            (p.index - 1) * entry_size,
            uuid.UUID(p.type_guid).bytes_le,
            p.guid.bytes_le,
            p.first,
            p.last,
            p.attributes,
            p.name.encode("utf-16-le"),
        )
    room = -(-len(array) // ss)
    for lba, other, entries in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - room)):
        header = bytearray(tail.ljust(ss, b"\0")[:ss])
        guid = uuid.uuid5(uuid.NAMESPACE_OID, "disk").bytes_le
        struct.pack_into(
            "<8sIIIIQQQQ16sQIII",
            header,
            0,
            *(b"EFI PART", 0x10000, header_size, 0, 0, lba, other),
            *(2 + room, sectors - 2 - room, guid, entries, count, entry_size, zlib.crc32(array)),
        )
        seal(header)
        disk[lba * ss : (lba + 1) * ss] = header
        disk[entries * ss : entries * ss + len(array)] = array
    return disk


def seal(header: bytearray) -> None:
    """Put the right checksum into a header sector."""
    struct.pack_into("<I", header, 16, 0)
    size = struct.unpack_from("<I", header, 12)[0]
    struct.pack_into("<I", header, 16, zlib.crc32(header[:size]))


def sgdisk(path: Path, *arguments: str) -> str:
    """Run sgdisk on `path`; its output."""
    done = subprocess.run(
        ["sgdisk", *arguments, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout


def cgpt(*arguments: str | Path, check: bool = True) -> str:
    """Run cgpt; its output."""
    done = subprocess.run(
        ["cgpt", *map(str, arguments)], capture_output=True, text=True, check=check
    )
    return done.stdout


_EDGE = 64 << 10
_made: dict[tuple[int, str], tuple[bytes, bytes]] = {}


def flatcar_disk(path: Path, *, size: int = 32 << 20, slot_size: str = "4M") -> Path:
    """A disk as Flatcar's installer leaves it: USR-A good, USR-B empty; made by sgdisk and cgpt.

    sgdisk sleeps for a second after it has written, so its work is kept for the next test.
    """
    with path.open("w+b") as file:
        file.truncate(size)
        if (size, slot_size) not in _made:
            _partition(path, slot_size)
            head = file.read(_EDGE)
            file.seek(-_EDGE, 2)
            _made[size, slot_size] = (head, file.read())
        head, tail = _made[size, slot_size]
        file.seek(0)
        file.write(head)
        file.seek(-_EDGE, 2)
        file.write(tail)
    return path


def _partition(path: Path, slot_size: str) -> None:
    sgdisk(
        path,
        *("-n1:0:+1M", "-t1:ef00", "-c1:EFI-SYSTEM", "-n2:0:+1M", "-t2:ef02", "-A2:set:2"),
        *(f"-n3:0:+{slot_size}", f"-t3:{FLATCAR_USR}", "-c3:USR-A", "-A3:set:60"),
        *(f"-n4:0:+{slot_size}", f"-t4:{FLATCAR_USR}", "-c4:USR-B", "-A4:set:60"),
        *("-n9:0:0", "-c9:ROOT"),
    )
    cgpt("add", "-i", "3", "-P", "1", "-S", "1", path)


def verdicts(path: Path) -> list[str]:
    """What sgdisk, sfdisk and cgpt have against the table; empty if nothing."""
    complaints = []
    checked = subprocess.run(["sgdisk", "-v", str(path)], capture_output=True, text=True)
    if "No problems found" not in checked.stdout:
        complaints.append(f"sgdisk: {checked.stdout}{checked.stderr}")
    checked = subprocess.run(["sfdisk", "--verify", str(path)], capture_output=True, text=True)
    if checked.returncode or "No errors detected" not in checked.stdout:
        complaints.append(f"sfdisk: {checked.stdout}{checked.stderr}")
    checked = subprocess.run(["cgpt", "show", "-v", str(path)], capture_output=True, text=True)
    if checked.returncode or "INVALID" in checked.stdout or "ERROR" in checked.stderr:
        complaints.append(f"cgpt: {checked.stdout}{checked.stderr}")
    return complaints
