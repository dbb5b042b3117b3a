"""Where the two slots are on this host, and which of them is running."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bascule.engine.booted import Kernel
from bascule.engine.region import Region
from bascule.engine.table import DiskTable
from bascule.errors import BasculeError, NotPermitted, SettingsError, SlotsNotFound, TableError
from bascule.formats.gpt import Entry, PartitionTable
from bascule.formats.slots import Slot

__all__ = ["FLATCAR_USR", "Layout", "choose_slots", "find", "mounted_slot"]

FLATCAR_USR = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"
"""Type GUID of USR-A and USR-B (reference 5.2)."""

_DEFAULT_PART = "usr"
_PARTITION = "partition:"
_LABEL = "label:"


@dataclass(frozen=True, slots=True)
class Layout:
    """The slots of a host.

    Attributes:
        disk: the disk or image whose table holds both slots; None if they are not in one.
        booted: the running slot.
        parts: slot → part name → where its bytes lie.
        index: slot → 1-based partition number on `disk`.
        sector_size: logical, in bytes, of `disk`.
    """

    disk: Path | None
    booted: Slot
    parts: Mapping[Slot, Mapping[str, Region]]
    index: Mapping[Slot, int]
    sector_size: int


def find(
    *,
    disk: Path | None = None,
    type_guid: str = FLATCAR_USR,
    parts: Mapping[Slot, Mapping[str, str]] | None = None,
    booted: Slot | None = None,
    booted_file: Path | None = None,
    sector_size: int | None = None,
    kernel_files: bool = True,
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
    dev: Path = Path("/dev"),
    boot: Path = Path("/boot"),
) -> Layout:
    """Find the slots: as `parts` say, else by partition type on the disk that is running.

    Args:
        disk: whole disk or image; None looks where the running system came from.
        type_guid: of the slots' partitions; the first in the table is A.
        parts: per slot, part name → ``partition:N``, ``label:TEXT``, or the path of a device or
            file. A slot that is not named here is found by `type_guid`.
        booted: the running slot where the kernel does not tell it (image files, tests).
        booted_file: file that holds ``A`` or ``B``, asked where `booted` is None.
        sector_size: logical, in bytes; None asks the device or looks into the image.
        kernel_files: also name Flatcar's kernel files on /boot, unless `parts` name them.
        proc, sys, dev, boot: roots, for tests.

    Raises:
        SlotsNotFound: there are not exactly two, or it is unclear which disk or slot is running.
        SettingsError: `parts` are malformed.
        TableError: the table of the disk cannot be used.
    """
    kernel = Kernel(proc, sys, dev)
    wanted = {slot: dict((parts or {}).get(slot, {})) for slot in Slot}
    home = disk or _disk_of_parts(wanted, kernel) or _disk_without_parts(wanted, type_guid, kernel)
    table = None
    index: dict[Slot, int] = {}
    if home is not None:
        table = DiskTable(home, sector_size).examine().sound
        index = _index(wanted, table, type_guid, kernel, home)
    running = _running(kernel, home, table, index) if home and kernel.knows(home) else None
    running = running or booted or _from_file(booted_file)
    if running is None:
        raise SlotsNotFound(
            "neither the mounts nor the kernel command line tell which slot is running; "
            "`slots.booted` can say it"
        )
    regions = {slot: _regions(wanted[slot], slot, table, index, kernel, home) for slot in Slot}
    if kernel_files and home is not None and kernel.knows(home):
        for slot, region in _kernel_files(boot).items():
            regions[slot].setdefault("kernel", region)
    return Layout(
        disk=home if index else None,
        booted=running,
        parts=regions,
        index=index,
        sector_size=table.sector_size if table else sector_size or 512,
    )


def choose_slots(table: PartitionTable, type_guid: str = FLATCAR_USR) -> dict[Slot, int]:
    """The two partitions of the type, in table order; among more, those labelled ``…-A``, ``…-B``.

    Raises:
        SlotsNotFound: there are fewer than two, or more and no two labels tell.
        SettingsError: `type_guid` is no GUID.
    """
    try:
        wanted = uuid.UUID(type_guid)
    except ValueError as error:
        raise SettingsError(f"slots.type_guid: {type_guid!r} is not a GUID") from error
    found = [entry for entry in table.entries if entry.type_guid == wanted]
    if len(found) == 2:
        return dict(zip(Slot, (entry.index for entry in found), strict=True))
    labelled = {slot: _labelled(found, slot) for slot in Slot}
    if len(found) > 2 and all(len(entries) == 1 for entries in labelled.values()):
        return {slot: entries[0].index for slot, entries in labelled.items()}
    numbers = ", ".join(str(entry.index) for entry in found)
    raise SlotsNotFound(
        f"there are {len(found)} partitions of type {wanted}"
        + (f" (numbers {numbers})" if found else "")
        + ", not 2",
        partitions=[entry.index for entry in found],
    )


def mounted_slot(
    disk: Path, index: Mapping[Slot, int], kernel: Kernel | None = None
) -> Slot | None:
    """The slot of `disk` that /usr or / is mounted from, or None."""
    kernel = kernel or Kernel()
    by_number = {number: slot for slot, number in index.items()}
    for name in kernel.mounted():
        partition = kernel.partition(name)
        if partition and partition.disk.resolve() == disk.resolve():
            slot = by_number.get(partition.number)
            if slot is not None:
                return slot
    return None


def _labelled(entries: list[Entry], slot: Slot) -> list[Entry]:
    return [entry for entry in entries if entry.name.upper().endswith(f"-{slot.value}")]


def _disk_of_parts(wanted: Mapping[Slot, Mapping[str, str]], kernel: Kernel) -> Path | None:
    disks = {
        partition.disk
        for named in wanted.values()
        for part, value in named.items()
        if part != "kernel" and not value.startswith((_PARTITION, _LABEL))
        for partition in [kernel.partition_of(Path(value))]
        if partition
    }
    if len(disks) > 1:
        names = ", ".join(sorted(map(str, disks)))
        raise SlotsNotFound(f"the slots lie on several disks: {names}")
    return next(iter(disks), None)


def _disk_without_parts(
    wanted: Mapping[Slot, Mapping[str, str]], type_guid: str, kernel: Kernel
) -> Path | None:
    files = [bool(set(named) - {"kernel"}) for named in wanted.values()]
    relative = any(
        value.startswith((_PARTITION, _LABEL))
        for named in wanted.values()
        for value in named.values()
    )
    if all(files) and not relative:
        return None
    return _running_disk(type_guid, kernel)


def _running_disk(type_guid: str, kernel: Kernel) -> Path:
    for name in kernel.mounted():
        partition = kernel.partition(name)
        if partition and _has_slots(partition.disk, type_guid):
            return partition.disk
    candidates = [disk for disk in kernel.disks() if _has_slots(disk, type_guid)]
    for kind, value in kernel.named_on_command_line():
        named = [disk for disk in candidates if _names(kind, value, disk, kernel)]
        if len(named) == 1:
            return named[0]
        if named:
            raise SlotsNotFound(
                f"{kind} {value} of the kernel command line is on several disks: "
                f"{', '.join(map(str, named))}; `slots.disk` can name the right one"
            )
    if len(candidates) == 1:
        return candidates[0]
    seen = ", ".join(map(str, candidates)) or "none"
    raise SlotsNotFound(f"disks with partitions of type {type_guid}: {seen}")


def _has_slots(disk: Path, type_guid: str) -> bool:
    try:
        choose_slots(DiskTable(disk).examine().sound, type_guid)
    except (SettingsError, NotPermitted):
        raise
    except BasculeError:
        return False
    return True


def _names(kind: str, value: str, disk: Path, kernel: Kernel) -> bool:
    if kind == "name":
        partition = kernel.partition(value)
        return partition is not None and partition.disk == disk
    return _entry_named(kind, value, DiskTable(disk).examine().sound) is not None


def _entry_named(kind: str, value: str, table: PartitionTable) -> int | None:
    for entry in table.entries:
        own = str(entry.guid) if kind == "PARTUUID" else entry.name
        if own == (value.lower() if kind == "PARTUUID" else value):
            return entry.index
    return None


def _index(
    wanted: Mapping[Slot, Mapping[str, str]],
    table: PartitionTable,
    type_guid: str,
    kernel: Kernel,
    disk: Path,
) -> dict[Slot, int]:
    named: dict[Slot, int] = {}
    for slot in Slot:
        numbers = [
            number
            for part, value in wanted[slot].items()
            if part != "kernel" and (number := _number(value, table, kernel, disk)) is not None
        ]
        # Of several partitions that make up a slot, one carries the flags.
        numbers.sort(key=lambda number: str(table.entry(number).type_guid) != type_guid.lower())
        if numbers:
            named[slot] = numbers[0]
    if set(named) == set(Slot):
        if named[Slot.A] == named[Slot.B]:
            raise SettingsError(f"both slots are partition {named[Slot.A]}")
        return named
    if named:
        missing = next(slot for slot in Slot if slot not in named)
        raise SettingsError(f"slots.{missing.value.lower()} does not name a partition of {disk}")
    if any(set(parts) - {"kernel"} for parts in wanted.values()):
        return {}
    return choose_slots(table, type_guid)


def _number(value: str, table: PartitionTable, kernel: Kernel, disk: Path) -> int | None:
    if value.startswith(_PARTITION):
        text = value[len(_PARTITION) :].strip()
        if not text.isdecimal():
            raise SettingsError(f"{value!r} is not {_PARTITION}N")
        return table.entry(int(text)).index
    if value.startswith(_LABEL):
        label = value[len(_LABEL) :].strip()
        found = [entry.index for entry in table.entries if entry.name == label]
        if len(found) != 1:
            raise SlotsNotFound(f"{len(found)} partitions of {disk} have the label {label!r}")
        return found[0]
    partition = kernel.partition_of(Path(value))
    return partition.number if partition and partition.disk.resolve() == disk.resolve() else None


def _running(
    kernel: Kernel, disk: Path, table: PartitionTable | None, index: Mapping[Slot, int]
) -> Slot | None:
    by_number = {number: slot for slot, number in index.items()}
    for number in _running_numbers(kernel, disk.resolve(), table):
        if number in by_number:
            return by_number[number]
    return None


def _running_numbers(
    kernel: Kernel, disk: Path, table: PartitionTable | None
) -> Iterator[int | None]:
    def on_disk(name: str) -> int | None:
        partition = kernel.partition(name)
        return partition.number if partition and partition.disk.resolve() == disk else None

    for name in kernel.mounted():
        yield on_disk(name)
    for kind, value in kernel.named_on_command_line():
        if kind == "name":
            yield on_disk(value)
        elif table is not None:
            yield _entry_named(kind, value, table)


def _from_file(path: Path | None) -> Slot | None:
    if path is None:
        return None
    try:
        text = path.read_text(errors="replace").strip()
    except OSError as error:
        raise SlotsNotFound(f"{path}: {error.strerror}") from error
    if text not in ("A", "B"):
        raise SlotsNotFound(f"{path} holds {text[:20]!r}, not A or B")
    return Slot(text)


def _regions(
    wanted: Mapping[str, str],
    slot: Slot,
    table: PartitionTable | None,
    index: Mapping[Slot, int],
    kernel: Kernel,
    disk: Path | None,
) -> dict[str, Region]:
    regions: dict[str, Region] = {}
    for part, value in wanted.items():
        number = None
        if table is not None and disk is not None:
            number = _number(value, table, kernel, disk)
        if number is not None and table is not None and disk is not None:
            regions[part] = _partition_region(table.entry(number), table, kernel, disk)
        else:
            path = Path(value)
            regions[part] = Region(path, file=not kernel.knows(path))
    if slot in index and not set(regions) - {"kernel"} and table is not None and disk is not None:
        entry = table.entry(index[slot])
        regions[_DEFAULT_PART] = _partition_region(entry, table, kernel, disk)
    return regions


def _partition_region(entry: Entry, table: PartitionTable, kernel: Kernel, disk: Path) -> Region:
    start = entry.first_lba * table.sector_size
    size = (entry.last_lba - entry.first_lba + 1) * table.sector_size
    known = kernel.partitions(disk).get(entry.index)
    if known is None:
        return Region(disk, start, size)
    if (known.start, known.size) != (start, size):
        raise TableError(
            f"{known.node} is {known.size} bytes at {known.start} for the kernel, but {size} at "
            f"{start} in the table; reboot before updating"
        )
    return Region(known.node, 0, size)


def _kernel_files(boot: Path) -> dict[Slot, Region]:
    """Flatcar's rule (reference 5.8): the old folder if either kernel is in it."""
    names = {slot: f"vmlinuz-{slot.value.lower()}" for slot in Slot}
    old = boot / "coreos"
    home = old if any((old / name).exists() for name in names.values()) else boot / "flatcar"
    return {slot: Region(home / name, file=True) for slot, name in names.items()}
