"""The partition table: judged as its other readers judge it, changed in nothing but nine bits."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import firmware
from bascule.errors import TableBroken, TableError, TableUnsound
from bascule.formats import gpt, gpt_writes, slots
from bascule.formats.gpt_writes import Flush, Step, Write
from bascule.formats.slots import BootFlags
from gpt_images import (
    CHROMEOS_KERNEL,
    Part,
    attributes,
    cgpt,
    flatcar_disk,
    image,
    seal,
    sgdisk,
    verdicts,
)

SLOTS = [Part(3, 40, 60, attributes(1, 0, 1)), Part(4, 61, 80)]
STAGED = BootFlags(2, 1, False)


def reader(disk: bytes | bytearray) -> gpt.ReadAt:
    return lambda offset, length: bytes(disk[offset : offset + length])


def examine(disk: bytes | bytearray, sector_size: int = 512) -> gpt.Copies:
    return gpt.examine(reader(disk), len(disk), sector_size)


def carry_out(disk: bytes | bytearray, steps: list[Step]) -> bytearray:
    after = bytearray(disk)
    for step in steps:
        if isinstance(step, Write):
            after[step.offset : step.offset + len(step.data)] = step.data
    return after


def with_flags(copies: gpt.Copies, flags: dict[int, BootFlags]) -> gpt.PartitionTable:
    table = copies.sound
    return table.with_attributes(
        {n: slots.encode(table.entry(n).attributes, f) for n, f in flags.items()}
    )


def flip(copies: gpt.Copies, flags: dict[int, BootFlags]) -> list[Step]:
    return gpt_writes.update(copies, with_flags(copies, flags))


def repaired(disk: bytes | bytearray, sector_size: int = 512) -> bytearray:
    after = bytearray(disk)
    for _ in range(3):
        after = carry_out(after, gpt_writes.repair(examine(after, sector_size)))
    assert not gpt_writes.repair(examine(after, sector_size))
    return after


def header_at(disk: bytearray, lba: int, ss: int = 512) -> bytearray:
    return disk[lba * ss : (lba + 1) * ss]


# ── reading ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_reads_what_is_there(sector_size: int) -> None:
    named = [*SLOTS, Part(7, 81, 81, 1 << 63, name="ÜSR €")]
    copies = examine(image(named, sector_size=sector_size), sector_size)
    assert copies.primary.fault is copies.backup.fault is None
    assert gpt_writes.repair_reason(copies) is None
    found = [(e.index, e.first_lba, e.last_lba, e.attributes, e.guid) for e in copies.sound.entries]
    assert found == [(p.index, p.first, p.last, p.attributes, p.guid) for p in named]
    assert copies.sound.entry(7).name == "ÜSR €"
    with pytest.raises(TableError, match="no partition 5"):
        copies.sound.entry(5)


def test_sector_size_of_an_image() -> None:
    for size in (512, 4096):
        assert gpt.sector_size_of(reader(image(SLOTS, sector_size=size))) == size
    assert gpt.sector_size_of(reader(bytes(8192))) == 512


def test_not_a_disk() -> None:
    with pytest.raises(TableError, match="not supported"):
        examine(image(SLOTS), 520)
    with pytest.raises(TableError, match="holds no partition table"):
        examine(bytes(1024))
    with pytest.raises(TableBroken, match="no partition table header"):
        _ = examine(bytes(1 << 20)).sound


Spoil = Callable[[bytearray], None]


def spoil_field(offset: int, value: int, width: str = "<I") -> Spoil:
    """Put `value` into a header field and a right checksum over it."""

    def spoil(header: bytearray) -> None:
        struct.pack_into(width, header, offset, value)
        if offset != 16:
            seal(header)

    return spoil


FAULTS: dict[str, tuple[Spoil, str]] = {
    "signature": (lambda h: h.__setitem__(slice(0, 8), b"CHROMEOS"), "no partition table header"),
    "checksum": (spoil_field(16, 1), "checksum of its header"),
    "revision": (spoil_field(8, 0x20000), "revision"),
    "header too small": (spoil_field(12, 91), "claims 91 bytes"),
    "header too large": (spoil_field(12, 513), "claims 513 bytes"),
    "reserved": (spoil_field(20, 1), "reserved"),
    "misplaced": (spoil_field(24, 2, "<Q"), "belongs at sector 2"),
    "first usable": (spoil_field(40, 0, "<Q"), "usable range"),
    "last usable": (spoil_field(48, 2**63, "<Q"), "usable range"),
    "entries before": (spoil_field(72, 1, "<Q"), "out of place"),
    "entries far": (spoil_field(72, 2**64 - 1, "<Q"), "out of place"),
    "entry size odd": (spoil_field(84, 129), "entries of 129 bytes"),
    "entry size zero": (spoil_field(84, 0), "entries of 0 bytes"),
    "entry size huge": (spoil_field(84, 2**31), "claims 128 entries"),
    "no entries": (spoil_field(80, 0), "claims 0 entries"),
    "entries without end": (spoil_field(80, 2**32 - 1), "more than can be taken for true"),
    "entries checksum": (spoil_field(88, 7), "checksum of its entries"),
}


@pytest.mark.parametrize("lba", [1, 255])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_copy_is_told_and_mended(fault: str, lba: int) -> None:
    good = image(SLOTS)
    disk = bytearray(good)
    spoil, words = FAULTS[fault]
    header = header_at(disk, lba)
    spoil(header)
    disk[lba * 512 : (lba + 1) * 512] = header
    copies = examine(disk)
    bad = copies.primary if lba == 1 else copies.backup
    assert bad.fault is not None and words in bad.fault
    assert bad.damaged
    reason = gpt_writes.repair_reason(copies)
    assert reason is not None and bad.name in reason
    with pytest.raises(TableError, match="repaired before"):
        flip(copies, {4: STAGED})
    assert repaired(disk) == good


@pytest.mark.parametrize("lba", [2, 223])
def test_bad_entries_are_mended(lba: int) -> None:
    good = image(SLOTS)
    disk = bytearray(good)
    disk[lba * 512 + 300] ^= 0x40
    assert repaired(disk) == good


def test_two_bad_copies_are_refused() -> None:
    disk = image(SLOTS)
    disk[512] ^= 1
    disk[223 * 512 + 3] ^= 1
    copies = examine(disk)
    with pytest.raises(TableBroken, match=r"primary: there is no .* backup: the checksum of its e"):
        _ = copies.sound
    with pytest.raises(TableBroken):
        gpt_writes.repair(copies)
    with pytest.raises(TableBroken):
        gpt_writes.update(copies, examine(image(SLOTS)).sound)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([Part(1, 40, 60), Part(2, 60, 70)], "1 and 2 overlap"),
        ([Part(1, 40, 90), Part(2, 60, 70)], "1 and 2 overlap"),
        ([Part(1, 20, 60)], "outside the usable range"),
        ([Part(1, 40, 250)], "outside the usable range"),
        ([Part(1, 60, 40)], "outside the usable range"),
        ([Part(1, 2**63, 2**64 - 1)], "outside the usable range"),
    ],
)
def test_contradictions_are_refused_as_cgpt_does(
    parts: list[Part], words: str, tmp_path: Path
) -> None:
    disk = image(parts)
    copies = examine(disk)
    with pytest.raises(TableUnsound, match=words):
        _ = copies.sound
    (tmp_path / "disk").write_bytes(disk)
    with pytest.raises(subprocess.CalledProcessError):
        cgpt("show", tmp_path / "disk")


def test_a_repeated_guid_is_refused() -> None:
    disk = image(SLOTS)
    array = disk[1024 : 1024 + 16384]
    array[3 * 128 + 16 : 3 * 128 + 32] = array[2 * 128 + 16 : 2 * 128 + 32]
    for lba, entries in ((1, 2), (255, 223)):
        disk[entries * 512 : entries * 512 + 16384] = array
        header = header_at(disk, lba)
        struct.pack_into("<I", header, 88, zlib.crc32(array))
        seal(header)
        disk[lba * 512 : (lba + 1) * 512] = header
    with pytest.raises(TableUnsound, match="partitions 3 and 4 have the same GUID"):
        _ = examine(disk).sound


def test_an_intact_but_unsound_primary_is_not_replaced_by_an_older_backup() -> None:
    old, new = image(SLOTS), image([Part(3, 40, 70), Part(4, 61, 80)])
    disk = new[: 128 * 512] + old[128 * 512 :]
    with pytest.raises(TableUnsound):
        gpt_writes.repair(examine(disk))


# ── repairing ────────────────────────────────────────────────────────────────────────────────


def test_two_good_copies_that_differ_want_repair_and_the_primary_wins() -> None:
    old, new = image(SLOTS), image([SLOTS[0], Part(4, 61, 80, attributes(2, 1, 0))])
    disk = new[: 128 * 512] + old[128 * 512 :]
    copies = examine(disk)
    assert gpt_writes.repair_reason(copies) == "the two copies differ"
    with pytest.raises(TableError, match="repaired before"):
        flip(copies, {4: STAGED})
    assert repaired(disk) == new


@pytest.mark.parametrize("more", [1, 7, 33, 34, 1000])
def test_a_grown_disk_gets_its_backup_moved(more: int, tmp_path: Path) -> None:
    disk = image(SLOTS) + bytes(more * 512)
    copies = examine(disk)
    assert gpt_writes.repair_reason(copies) == "the backup copy is not at the end of the disk"
    after = repaired(disk)
    table = examine(after).sound
    assert table.header.alternate_lba == 255 + more
    assert table.header.last_usable == 255 + more - 33
    assert table.array == copies.sound.array
    (tmp_path / "disk").write_bytes(after)
    assert not [v for v in verdicts(tmp_path / "disk") if not v.startswith("sfdisk")]


@pytest.mark.parametrize("more", [1, 7, 33, 34, 1000])
def test_a_grown_disk_with_bad_primary_entries(more: int) -> None:
    """Primary header good, so the backup at the old end is found; it must not be overwritten."""
    disk = image(SLOTS) + bytes(more * 512)
    disk[1024] ^= 1
    copies = examine(disk)
    first_round = gpt_writes.repair(copies)
    assert all(s.offset < 24 * 512 for s in first_round if isinstance(s, Write))
    table = examine(repaired(disk)).sound
    assert table.header.alternate_lba == 255 + more


def test_a_shrunk_disk_is_refused() -> None:
    disk = image(SLOTS)[: 200 * 512]
    with pytest.raises(TableBroken):
        gpt_writes.repair(examine(disk))


def test_a_backup_that_does_not_fit_is_refused() -> None:
    # A table whose backup once lay elsewhere; the last partition reaches too far for a new one.
    disk = image([Part(1, 40, 222)])
    header = header_at(disk, 1)
    struct.pack_into("<Q", header, 32, 240)
    struct.pack_into("<Q", header, 48, 230)
    seal(header)
    disk[512:1024] = header
    disk = disk[: 241 * 512]
    with pytest.raises(TableError, match="does not fit"):
        gpt_writes.repair(examine(disk))


@pytest.mark.parametrize("bad", ["primary", "backup"])
def test_same_repair_as_cgpt(bad: str, tmp_path: Path) -> None:
    disk = image(SLOTS)
    lba = 1 if bad == "primary" else 255
    disk[lba * 512 : (lba + 1) * 512] = bytes(512)
    path = tmp_path / "disk"
    path.write_bytes(disk)
    cgpt("repair", path)
    assert repaired(disk) == path.read_bytes()


def test_repair_writes_nothing_to_a_good_table() -> None:
    for size in (512, 4096):
        assert gpt_writes.repair(examine(image(SLOTS, sector_size=size), size)) == []


# ── changing ─────────────────────────────────────────────────────────────────────────────────


def test_the_flip_is_one_aligned_block() -> None:
    steps = flip(examine(image(SLOTS)), {4: STAGED})
    assert [type(s) for s in steps] == [Write, Write, Flush, Write, Flush]
    last = steps[-2]
    assert isinstance(last, Write)
    assert (last.offset, len(last.data)) == (0, 4096)


def test_nothing_to_change_writes_nothing() -> None:
    assert flip(examine(image(SLOTS)), {3: BootFlags(1, 0, True)}) == []


def test_with_4096_byte_sectors_the_header_goes_first() -> None:
    steps = flip(examine(image(SLOTS, sector_size=4096), 4096), {4: STAGED})
    assert [type(s) for s in steps] == [Write, Write, Flush, Write, Flush, Write, Flush]
    offsets = [(s.offset, len(s.data)) for s in steps if isinstance(s, Write)]
    assert offsets[2:] == [(4096, 4096), (8192, 4096)]


def test_entries_beyond_the_first_block() -> None:
    parts = [Part(24, 40, 50, attributes(1, 0, 1)), Part(25, 51, 60), Part(128, 61, 70)]
    disk = image(parts)
    flags = {24: BootFlags(1, 0, True), 25: STAGED, 128: BootFlags(3, 2, False)}
    steps = flip(examine(disk), flags)
    offsets = [(s.offset, len(s.data)) for s in steps if isinstance(s, Write)]
    assert offsets[-3:] == [(0, 4096), (4096, 4096), (16384, 1024)]
    table = examine(carry_out(disk, steps)).sound
    assert slots.decode(table.entry(25).attributes) == STAGED


def test_bytes_of_a_partition_next_to_the_table_are_never_written() -> None:
    parts = [Part(1, 3, 251, attributes(1, 0, 1))]
    disk = image(parts, count=4, fill=0xA5)
    for step in flip(examine(disk), {1: STAGED}):
        if isinstance(step, Write):
            assert step.offset + len(step.data) <= 3 * 512 or step.offset >= 252 * 512


@pytest.mark.parametrize("bit", [0, 2, 47, 57, 60, 63])
def test_other_bits_cannot_be_changed(bit: int) -> None:
    with pytest.raises(TableError, match="only boot flags"):
        examine(image(SLOTS)).sound.with_attributes({4: 1 << bit})


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"sector_size": 4096},
        {"header_size": 200, "tail": bytes(range(256)) * 2},
        {"entry_size": 256, "sectors": 512},
        {"count": 8},
        {"count": 5},
        {"fill": 0xA5, "tail": b"\xff" * 512},
    ],
    ids=str,
)
def test_every_other_byte_stays(shape: dict[str, object]) -> None:
    parts = [
        Part(3, 100, 110, attributes(1, 0, 1, 1 << 60)),
        Part(4, 111, 120, 0xFE00_FFFF_FFFF_FFFF),
    ]
    ss = int(str(shape.get("sector_size", 512)))
    disk = image(parts, **shape)  # type: ignore[arg-type]
    copies = examine(disk, ss)
    after = carry_out(disk, flip(copies, {4: STAGED}))
    changed = {i for i, (a, b) in enumerate(zip(disk, after, strict=True)) if a != b}
    allowed: set[int] = set()
    for copy in (copies.primary, copies.backup):
        assert copy.header is not None
        allowed |= set(range(copy.lba * ss + 16, copy.lba * ss + 20))
        allowed |= set(range(copy.lba * ss + 88, copy.lba * ss + 92))
        entry = copy.header.entries_lba * ss + 3 * copy.header.entry_size
        allowed |= {entry + 54, entry + 55}
    assert changed <= allowed
    again = examine(after, ss)
    assert gpt_writes.repair_reason(again) is None
    assert again.primary.header is not None
    assert again.primary.header.size == shape.get("header_size", 92)
    assert slots.decode(again.sound.entry(4).attributes) == STAGED


def test_a_real_disk_in_everybodys_eyes(tmp_path: Path) -> None:
    path = flatcar_disk(tmp_path / "disk")
    before = path.read_bytes()
    steps = flip(examine(before), {3: BootFlags(1, 0, True), 4: STAGED})
    path.write_bytes(carry_out(before, steps))
    assert verdicts(path) == []
    shown = [cgpt("show", "-i", "4", flag, path).strip() for flag in ("-P", "-T", "-S")]
    assert shown == ["2", "1", "0"]
    # Back again, and nothing has ever happened.
    back = flip(examine(path.read_bytes()), {3: BootFlags(1, 0, True), 4: BootFlags(0, 0, False)})
    assert carry_out(path.read_bytes(), back) == before


FLAGS = st.builds(BootFlags, st.integers(0, 15), st.integers(0, 15), st.booleans())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpt") / "disk.img"


@given(
    table=st.dictionaries(st.integers(1, 128), FLAGS, min_size=1, max_size=8),
    rest=st.integers(0, 2**48 - 1),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_the_image_equals_cgpts_byte_for_byte(
    scratch: Path, table: dict[int, BootFlags], rest: int, data: st.DataObject
) -> None:
    parts = [
        Part(n, 40 + n, 40 + n, slots.encode(rest, f), CHROMEOS_KERNEL) for n, f in table.items()
    ]
    disk = image(parts, sectors=512, fill=0x5A)
    target = data.draw(st.sampled_from(sorted(table)))
    tries = data.draw(st.integers(1, 15))
    scratch.write_bytes(disk)
    cgpt("add", "-i", str(target), "-S0", f"-T{tries}", scratch)
    cgpt("prioritize", "-i", str(target), scratch)
    ours = carry_out(disk, flip(examine(disk), slots.stage(table, target, tries)))
    assert ours == scratch.read_bytes()


def test_sgdisk_with_few_entries_and_a_moved_array(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 << 20))
    sgdisk(path, "-S", "8", "-j", "20", "-n1:2048:+1M", "-n2:0:+512K", "-A1:set:48", "-A1:set:56")
    before = path.read_bytes()
    path.write_bytes(carry_out(before, flip(examine(before), {2: STAGED})))
    assert "No problems found" in sgdisk(path, "-v")
    assert sgdisk(path, "-i", "2").count("0012000000000000") == 1


# ── power cuts ───────────────────────────────────────────────────────────────────────────────


def pieces(write: Write, size: int) -> list[Write]:
    return [
        Write(write.offset + at, write.data[at : at + size])
        for at in range(0, len(write.data), size)
    ]


def epochs(steps: list[Step]) -> list[list[Write]]:
    groups: list[list[Write]] = [[]]
    for step in steps:
        if isinstance(step, Write):
            groups[-1].append(step)
        else:
            groups.append([])
    return groups


def cut_states(disk: bytearray, steps: list[Step], unit: int) -> Iterator[bytearray]:
    """Every state that a cut can leave: flushed epochs whole, the last one in any part and order.

    `unit` is what the medium writes as one: 4096 bytes for the aligned block, 512 for the rest.
    """
    state = bytearray(disk)
    for group in epochs(steps):
        atoms: list[Write] = []
        for write in group:
            atomic = write.offset % unit == 0 and len(write.data) == unit
            atoms += [write] if atomic else pieces(write, 512)
        if len(atoms) <= 10:
            subsets = itertools.chain.from_iterable(
                itertools.combinations(atoms, n) for n in range(len(atoms) + 1)
            )
        else:
            ahead = [tuple(atoms[:n]) for n in range(len(atoms) + 1)]
            behind = [tuple(atoms[n:]) for n in range(len(atoms) + 1)]
            alone = [(atom,) for atom in atoms]
            subsets = itertools.chain(ahead, behind, alone)
        for subset in subsets:
            yield carry_out(state, list(subset))
        state = carry_out(state, list(group))


READERS = {"linux": firmware.linux, "grub": firmware.grub, "cgpt": firmware.cgpt}

FLIPS = {
    "clear": (attributes(1, 0, 1), attributes(1, 0, 1), {4: BootFlags(0, 0, False)}),
    "stage": (attributes(1, 0, 1), 0, {4: STAGED}),
    "bless": (attributes(1, 0, 1), attributes(2, 0, 0), {4: BootFlags(2, 0, True)}),
    "prefer": (
        attributes(2, 0, 1),
        attributes(1, 0, 1),
        {3: BootFlags(1, 0, True), 4: BootFlags(2, 0, True)},
    ),
    "cancel": (attributes(1, 0, 1), attributes(2, 1, 0), {4: BootFlags(0, 0, False)}),
}


@pytest.mark.parametrize("verb", FLIPS)
def test_a_cut_anywhere_leaves_a_table_for_every_reader(verb: str) -> None:
    a, b, flags = FLIPS[verb]
    disk = image([Part(3, 40, 60, a), Part(4, 61, 80, b)])
    steps = flip(examine(disk), flags)
    whole = carry_out(disk, steps)
    old, new = firmware.grub(disk), firmware.grub(whole)
    assert old and new
    allowed = {firmware.pick(old), firmware.pick(new)}
    assert None not in allowed
    for state in cut_states(disk, steps, 4096):
        for name, read in READERS.items():
            table = read(bytes(state))
            assert table is not None, name
            assert firmware.pick(table) in allowed, name
        assert repaired(state) in (disk, whole)


def test_the_real_cgpt_reads_every_cut_state(scratch: Path) -> None:
    disk = image([Part(3, 40, 60, attributes(1, 0, 1), CHROMEOS_KERNEL), SLOTS[1]])
    steps = flip(examine(disk), {3: BootFlags(1, 0, True), 4: STAGED})
    for state in cut_states(disk, steps, 512):
        readable = firmware.cgpt(bytes(state)) is not None
        scratch.write_bytes(state)
        assert readable == bool(cgpt("show", scratch, check=False))


@pytest.mark.parametrize("verb", FLIPS)
def test_a_torn_block_is_read_by_grub_and_cgpt_if_sectors_go_in_order(verb: str) -> None:
    """Media that tear an aligned 4 KiB write are beyond the promise; most is kept all the same.

    Linux reads only the primary copy: no order of sectors can save that reader.
    """
    a, b, flags = FLIPS[verb]
    disk = image([Part(3, 40, 60, a), Part(4, 61, 80, b)])
    steps = flip(examine(disk), flags)
    block = steps[-2]
    assert isinstance(block, Write)
    state = carry_out(disk, steps[:-2])
    for piece in pieces(block, 512):
        state = carry_out(state, [piece])
        for read in (firmware.grub, firmware.cgpt):
            table = read(bytes(state))
            assert table is not None and firmware.pick(table) in (3, 4)
        assert not gpt_writes.repair(examine(repaired(state)))


@pytest.mark.parametrize(
    ("numbers", "sector_size"), [((3, 4), 4096), ((30, 31), 512), ((3, 128), 512)]
)
def test_where_one_block_is_not_enough_grub_always_boots(
    numbers: tuple[int, int], sector_size: int
) -> None:
    first, second = numbers
    disk = image(
        [Part(first, 40, 60, attributes(1, 0, 1)), Part(second, 61, 80)], sector_size=sector_size
    )
    steps = flip(examine(disk, sector_size), {second: STAGED})
    for state in cut_states(disk, steps, 4096):
        table = firmware.grub(bytes(state), sector_size)
        assert table is not None
        assert firmware.pick(table) in numbers
        assert firmware.linux(bytes(state), sector_size, gpt_word=True) is not None
        # GRUB spends the try and by that writes both copies: Linux then finds a table.
        if firmware.pick(table) == second:
            assert firmware.spend(state, table, second, sector_size)
            assert firmware.linux(bytes(state), sector_size) is not None


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("damage", ["primary", "backup", "grown", "stale backup"])
def test_a_cut_during_repair_loses_nothing(damage: str, sector_size: int) -> None:
    ss = sector_size
    disk = image(SLOTS, sector_size=ss)
    last = len(disk) // ss - 1
    if damage == "primary":
        disk[ss : 2 * ss] = bytes(ss)
    elif damage == "backup":
        disk[last * ss : (last + 1) * ss] = bytes(ss)
    elif damage == "grown":
        disk += bytes(100 * ss)
    else:
        other = image([SLOTS[0]], sector_size=ss)
        disk = disk[: 128 * ss] + other[128 * ss :]
    before = examine(disk, ss).sound
    for state in cut_states(disk, gpt_writes.repair(examine(disk, ss)), 4096):
        assert examine(state, ss).sound.array == before.array
        assert firmware.grub(bytes(state), ss) is not None
        if damage != "primary":
            assert firmware.linux(bytes(state), ss) is not None


# ── hostile bytes ────────────────────────────────────────────────────────────────────────────

EDGES = st.sampled_from([0, 1, 2, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 512, 2**64 - 1])
FIELDS = [(8, "<I"), (12, "<I"), (20, "<I"), (24, "<Q"), (32, "<Q"), (40, "<Q"), (48, "<Q")]
FIELDS += [(72, "<Q"), (80, "<I"), (84, "<I"), (88, "<I")]


@given(
    edits=st.lists(
        st.tuples(st.sampled_from([1, 255]), st.sampled_from(FIELDS), EDGES | st.integers(0, 300)),
        max_size=4,
    ),
    noise=st.lists(st.tuples(st.integers(512, 20000), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 256),
    sector_size=st.sampled_from([512, 4096]),
)
@settings(max_examples=200, deadline=None)
def test_hostile_tables_only_raise_table_errors(
    edits: list[tuple[int, tuple[int, str], int]],
    noise: list[tuple[int, int]],
    cut: int,
    sector_size: int,
) -> None:
    disk = image(SLOTS)
    for lba, (offset, width), value in edits:
        header = header_at(disk, lba)
        struct.pack_into(width, header, offset, value % (1 << 8 * struct.calcsize(width)))
        seal(header)
        disk[lba * 512 : (lba + 1) * 512] = header
    for offset, value in noise:
        disk[offset] = value
    disk = disk[: len(disk) - cut * 512]
    asked: list[int] = []

    def read_at(offset: int, length: int) -> bytes:
        assert offset >= 0
        asked.append(length)
        return bytes(disk[offset : offset + length])

    try:
        copies = gpt.examine(read_at, len(disk), sector_size)
        steps = gpt_writes.repair(copies)
        after = carry_out(disk, steps)
    except TableError:
        pass
    else:
        assert len(after) == len(disk)
        assert examine(after, sector_size).sound.array == copies.sound.array
    assert all(0 <= length <= (1 << 20) + 4096 for length in asked)


@given(blob=st.binary(min_size=0, max_size=2048))
@settings(max_examples=60, deadline=None)
def test_noise_is_no_table(blob: bytes) -> None:
    disk = bytes(512) + blob + bytes(16384)
    with pytest.raises(TableError):
        _ = examine(disk).sound


def test_tools_are_here() -> None:
    assert all(map(shutil.which, ("sgdisk", "cgpt", "sfdisk")))
