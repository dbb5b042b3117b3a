"""Slots and their boot flags: the words in which every boot decision is made.

Bit layout: ChromeOS/Flatcar GPT attributes (reference 5.1): priority 48–51, tries 52–55,
successful 56.

The verbs are pure: flags of every slot in, flags of every slot out. They speak of ``Slot`` or
of 1-based partition numbers, because `cgpt prioritize`, whose results they equal, ranks every
partition of the type, not only two. Whether a verb is *allowed* (the booted slot is never
cleared) is for the boot backend to say; here is only what it means.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from bascule.errors import BootError, SlotNotBootable, UsageError

__all__ = [
    "BootFlags",
    "Slot",
    "bless",
    "cancel",
    "clear",
    "decode",
    "encode",
    "next_boot",
    "once",
    "prefer",
    "prioritize",
    "reinstate",
    "stage",
    "words",
]

PRIORITY_SHIFT = 48
TRIES_SHIFT = 52
SUCCESSFUL_SHIFT = 56
FLAGS_MASK = (0xF << PRIORITY_SHIFT) | (0xF << TRIES_SHIFT) | (1 << SUCCESSFUL_SHIFT)
HIGHEST = 15


class Slot(enum.Enum):
    """One of the two stable positions. Compared by name; ``A`` is the lower table index."""

    A = "A"
    B = "B"

    @property
    def other(self) -> Slot:
        """The slot that this one is not."""
        return Slot.B if self is Slot.A else Slot.A


@dataclass(frozen=True, slots=True)
class BootFlags:
    """What a bootloader knows of one slot.

    Attributes:
        priority: 0–15; 0 means never boot.
        tries: 0–15 boots that may still be spent on trial.
        successful: a boot of this slot was blessed.
    """

    priority: int
    tries: int
    successful: bool

    @property
    def bootable(self) -> bool:
        """Whether a bootloader may choose this slot at all."""
        return self.priority > 0 and (self.tries > 0 or self.successful)


Key = TypeVar("Key", Slot, int)


def decode(attributes: int) -> BootFlags:
    """The flags within a 64-bit GPT attribute field."""
    return BootFlags(
        priority=attributes >> PRIORITY_SHIFT & 0xF,
        tries=attributes >> TRIES_SHIFT & 0xF,
        successful=bool(attributes >> SUCCESSFUL_SHIFT & 1),
    )


def encode(attributes: int, flags: BootFlags) -> int:
    """`attributes` with `flags` put in; the bits that are not flags stay as they are."""
    return (
        attributes & ~FLAGS_MASK
        | flags.priority << PRIORITY_SHIFT
        | flags.tries << TRIES_SHIFT
        | flags.successful << SUCCESSFUL_SHIFT
    )


def next_boot(flags: Mapping[Key, BootFlags]) -> Key | None:
    """The slot that the bootloader takes at the next power-on, or None if it finds none.

    GRUB's ``gptprio.next`` (reference 5.6): the highest priority above 0 among those with a try
    left or blessed; the first in the table on a tie.
    """
    best: Key | None = None
    for key in _table_order(flags):
        candidate = flags[key]
        if candidate.bootable and (best is None or candidate.priority > flags[best].priority):
            best = key
    return best


def prioritize(flags: Mapping[Key, BootFlags], slot: Key) -> dict[Key, BootFlags]:
    """`slot` above all others, whose order among themselves stays (reference 5.4).

    Nothing but `slot` is ever raised from priority 0, and nothing above 0 is lowered to it.
    """
    levels = sorted({f.priority for k, f in flags.items() if k != slot and f.priority > 0})
    ranks = {level: index for index, level in enumerate(reversed(levels), start=1)}
    highest = min(len(levels) + 1, HIGHEST)
    result = {}
    for key, old in flags.items():
        rank = 0 if key == slot else ranks.get(old.priority)
        priority = 0 if rank is None else max(highest - rank, 1)
        result[key] = replace(old, priority=priority)
    return result


def clear(flags: Mapping[Key, BootFlags], slot: Key) -> dict[Key, BootFlags]:
    """`slot` as before its first byte is written: never booted (``cgpt add -P0 -T0 -S0``)."""
    return {**flags, slot: BootFlags(priority=0, tries=0, successful=False)}


def stage(flags: Mapping[Key, BootFlags], slot: Key, tries: int = 1) -> dict[Key, BootFlags]:
    """`slot` is booted next, on trial (``cgpt add -S0 -T<tries>``, ``cgpt prioritize``).

    Raises:
        UsageError: `tries` is not within 1–15.
    """
    if not 1 <= tries <= HIGHEST:
        raise UsageError(f"a slot can have 1 to 15 tries, not {tries}")
    return prioritize({**flags, slot: replace(flags[slot], tries=tries, successful=False)}, slot)


def bless(flags: Mapping[Key, BootFlags], slot: Key) -> dict[Key, BootFlags]:
    """`slot` is good and is booted from now on (``cgpt add -S1 -T0``, ``cgpt prioritize``)."""
    return prioritize({**flags, slot: replace(flags[slot], tries=0, successful=True)}, slot)


def prefer(flags: Mapping[Key, BootFlags], slot: Key) -> dict[Key, BootFlags]:
    """`slot` is booted next if it can be booted at all (``cgpt prioritize``).

    Raises:
        SlotNotBootable: a bootloader would not take it, whatever its rank.
    """
    if not flags[slot].bootable:
        raise SlotNotBootable(f"{_name(slot)} is {words(flags[slot])}")
    return prioritize(flags, slot)


def cancel(flags: Mapping[Key, BootFlags], slot: Key, keep: Key) -> dict[Key, BootFlags]:
    """Undo what made `slot` the next boot: `keep` is booted next.

    A slot on trial becomes as if cleared: it must not be booted by accident months later, when
    `keep` is gone. A blessed one (after ``prefer``) loses only its rank: it is the last known
    good, and one cancels a step, not a release.

    Raises:
        BootError: `slot` and `keep` are the same.
        SlotNotBootable: `keep` cannot be booted, so nothing would be left.
    """
    if slot == keep:
        raise BootError(f"{_name(slot)} cannot be cancelled in favour of itself")
    if not flags[keep].bootable:
        raise SlotNotBootable(f"{_name(keep)} is {words(flags[keep])}, so nothing could be booted")
    return prioritize(flags if flags[slot].successful else clear(flags, slot), keep)


def once(flags: Mapping[Key, BootFlags], slot: Key, keep: Key) -> dict[Key, BootFlags]:
    """A good `slot` is booted next, for one time: it has one try, and `keep` is good and follows.

    While it lasts the table cannot tell it from a trial; `reinstate` makes it good again.

    Raises:
        BootError: `slot` and `keep` are the same.
        SlotNotBootable: one of the two was never found good.
    """
    if slot == keep:
        raise BootError(f"{_name(slot)} is running; one boot of it changes nothing")
    for key in (slot, keep):
        if not (flags[key].bootable and flags[key].successful):
            raise SlotNotBootable(f"{_name(key)} is {words(flags[key])}")
    return stage(flags, slot, 1)


def reinstate(flags: Mapping[Key, BootFlags], slot: Key, keep: Key) -> dict[Key, BootFlags]:
    """End `once`: `slot` is good as it was, and `keep` is booted next.

    What somebody has emptied meanwhile (priority 0) stays empty.

    Raises:
        SlotNotBootable: `keep` cannot be booted.
    """
    if not flags[keep].bootable:
        raise SlotNotBootable(f"{_name(keep)} is {words(flags[keep])}")
    good = flags[slot]
    if good.priority:
        good = replace(good, tries=0, successful=True)
    return prioritize({**flags, slot: good}, keep)


def words(flags: BootFlags) -> str:
    """The flags as an operator reads them."""
    if flags.priority == 0:
        return "switched off: was good, never booted" if flags.successful else "empty: never booted"
    if flags.successful:
        return "good"
    if flags.tries == 0:
        return "unconfirmed: no try left, not booted again"
    return f"on trial: {flags.tries} {'try' if flags.tries == 1 else 'tries'} left"


def _table_order(flags: Mapping[Key, BootFlags]) -> list[Key]:
    return sorted(flags, key=lambda key: key.value if isinstance(key, Slot) else f"{key:020d}")


def _name(key: Slot | int) -> str:
    return f"slot {key.value}" if isinstance(key, Slot) else f"partition {key}"
