"""Boot flags and the verbs on them, against cgpt and against the re-enacted firmware."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import firmware
from bascule.errors import BootError, SlotNotBootable, UsageError
from bascule.formats import slots
from bascule.formats.slots import BootFlags, Slot
from gpt_images import CHROMEOS_KERNEL, Part, attributes, cgpt, image

FLAGS = st.builds(BootFlags, st.integers(0, 15), st.integers(0, 15), st.booleans())
TABLES = st.dictionaries(st.integers(1, 24), FLAGS, min_size=1, max_size=20)

GOOD = BootFlags(1, 0, True)
EMPTY = BootFlags(0, 0, False)


def disk_with(table: dict[int, BootFlags], type_guid: str) -> bytearray:
    parts = [
        Part(n, 30 + 8 * n, 33 + 8 * n, attributes(f.priority, f.tries, f.successful), type_guid)
        for n, f in table.items()
    ]
    return image(parts, sectors=384)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots") / "disk.img"


def read_flags(disk: bytes, numbers: list[int]) -> dict[int, BootFlags]:
    copy = firmware.grub(disk)
    assert copy is not None
    return {n: slots.decode(copy.entry(n - 1)[4]) for n in numbers}


@given(value=st.integers(0, 2**64 - 1), flags=FLAGS)
def test_encoding_touches_only_the_nine_bits(value: int, flags: BootFlags) -> None:
    encoded = slots.encode(value, flags)
    assert slots.decode(encoded) == flags
    assert (encoded ^ value) & ~(0x1FF << 48) == 0


@given(table=TABLES)
@settings(max_examples=150, deadline=None)
def test_next_boot_is_what_the_firmware_takes(table: dict[int, BootFlags]) -> None:
    copy = firmware.grub(disk_with(table, firmware.SLOT_TYPE))
    assert copy is not None
    assert slots.next_boot(table) == firmware.pick(copy)


@given(table=TABLES, data=st.data())
@settings(max_examples=120, deadline=None)
def test_verbs_equal_cgpt(scratch: Path, table: dict[int, BootFlags], data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(sorted(table)))
    tries = data.draw(st.integers(1, 15))
    ours = {
        ("-S0", f"-T{tries}"): slots.stage(table, target, tries),
        ("-S1", "-T0"): slots.bless(table, target),
        (): slots.prioritize(table, target),
    }
    for arguments, expected in ours.items():
        scratch.write_bytes(disk_with(table, CHROMEOS_KERNEL))
        if arguments:
            cgpt("add", "-i", str(target), *arguments, scratch)
        cgpt("prioritize", "-i", str(target), scratch)
        assert read_flags(scratch.read_bytes(), sorted(table)) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, 1), (2, 1)),
        ((1, 2), (2, 1)),
        ((2, 1), (2, 1)),
        ((3, 0), (1, 0)),
        ((1, 1), (2, 1)),
        ((15, 14), (2, 1)),
        ((14, 15), (2, 1)),
    ],
)
def test_reference_cases_of_prioritize(before: tuple[int, int], after: tuple[int, int]) -> None:
    flags = {Slot.A: BootFlags(before[1], 0, True), Slot.B: BootFlags(before[0], 1, False)}
    result = slots.prioritize(flags, Slot.B)
    assert (result[Slot.B].priority, result[Slot.A].priority) == after


def test_the_life_of_an_update() -> None:
    flags = slots.clear({Slot.A: GOOD, Slot.B: BootFlags(1, 0, True)}, Slot.B)
    assert flags == {Slot.A: GOOD, Slot.B: EMPTY}
    assert slots.next_boot(flags) is Slot.A
    flags = slots.stage(flags, Slot.B)
    assert flags == {Slot.A: GOOD, Slot.B: BootFlags(2, 1, False)}
    assert slots.next_boot(flags) is Slot.B
    spent = {**flags, Slot.B: BootFlags(2, 0, False)}
    assert slots.next_boot(spent) is Slot.A
    assert slots.bless(spent, Slot.B) == {Slot.A: GOOD, Slot.B: BootFlags(2, 0, True)}


def test_order_of_the_mapping_does_not_matter_on_a_tie() -> None:
    assert slots.next_boot({Slot.B: GOOD, Slot.A: GOOD}) is Slot.A
    assert slots.next_boot({11: GOOD, 4: GOOD}) == 4


def test_cancel_of_a_trial_makes_it_unbootable() -> None:
    staged = slots.stage({Slot.A: GOOD, Slot.B: EMPTY}, Slot.B, 3)
    assert slots.cancel(staged, Slot.B, Slot.A) == {Slot.A: GOOD, Slot.B: EMPTY}


def test_cancel_of_a_preferred_slot_keeps_it_as_last_known_good() -> None:
    preferred = slots.prefer({Slot.A: BootFlags(2, 0, True), Slot.B: GOOD}, Slot.B)
    assert slots.next_boot(preferred) is Slot.B
    after = slots.cancel(preferred, Slot.B, Slot.A)
    assert slots.next_boot(after) is Slot.A
    assert after[Slot.B].bootable


@given(table=st.fixed_dictionaries({Slot.A: FLAGS, Slot.B: FLAGS}))
def test_cancel_never_leaves_nothing_to_boot(table: dict[Slot, BootFlags]) -> None:
    try:
        after = slots.cancel(table, Slot.B, Slot.A)
    except SlotNotBootable:
        assert not table[Slot.A].bootable
    else:
        assert slots.next_boot(after) is Slot.A


def test_refusals() -> None:
    flags = {Slot.A: GOOD, Slot.B: EMPTY}
    with pytest.raises(SlotNotBootable, match="slot B is empty"):
        slots.prefer(flags, Slot.B)
    for tries in (0, 16, -1):
        with pytest.raises(UsageError):
            slots.stage(flags, Slot.B, tries)
    with pytest.raises(BootError):
        slots.cancel(flags, Slot.A, Slot.A)


@given(flags=FLAGS)
def test_words_say_whether_it_can_boot(flags: BootFlags) -> None:
    says_boots = slots.words(flags).startswith(("good", "on trial"))
    assert says_boots == flags.bootable


def test_words() -> None:
    assert slots.words(BootFlags(2, 1, False)) == "on trial: 1 try left"
    assert slots.words(BootFlags(2, 3, False)) == "on trial: 3 tries left"
    assert slots.words(GOOD) == "good"
    assert slots.words(EMPTY) == "empty: never booted"
