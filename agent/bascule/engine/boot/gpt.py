"""Boot decisions in GPT attribute bits: Flatcar's and ChromeOS's way (reference 5.1–5.6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bascule.engine.boot import CLEARER, ClearedSlot
from bascule.engine.table import DiskTable
from bascule.errors import (
    BlessRefused,
    BootedSlotNotBlessed,
    SettingsError,
    SlotNotBootable,
    WouldTouchBootedSlot,
)
from bascule.formats import gpt_writes, slots
from bascule.formats.gpt import PartitionTable
from bascule.formats.slots import BootFlags, Slot

if TYPE_CHECKING:
    from bascule.engine.layout import Layout
    from bascule.engine.verify import VerifiedSlot

__all__ = ["GptBackend", "edited", "flags_of", "open_gpt"]

Verb = Callable[[Mapping[int, BootFlags]], dict[int, BootFlags]]


def flags_of(table: PartitionTable, index: Mapping[Slot, int]) -> dict[int, BootFlags]:
    """The flags of every partition that the bootloader ranks with the slots, in table order.

    Those are all partitions that have the type of a slot: there may be more than two.

    Raises:
        TableError: a slot's partition does not exist.
    """
    types = {table.entry(number).type_guid for number in index.values()}
    return {e.index: slots.decode(e.attributes) for e in table.entries if e.type_guid in types}


def edited(table: PartitionTable, index: Mapping[Slot, int], verb: Verb) -> PartitionTable:
    """`table` after `verb`, a function of the flags by partition number."""
    after = verb(flags_of(table, index))
    return table.with_attributes(
        {n: slots.encode(table.entry(n).attributes, flags) for n, flags in after.items()}
    )


class GptBackend:
    """See `bascule.engine.boot.BootBackend`.

    Args:
        table: of the disk that holds both slots.
        index: 1-based partition number of each slot.
        booted: the running slot.
    """

    name = "gpt"

    def __init__(self, table: DiskTable, index: Mapping[Slot, int], booted: Slot) -> None:
        self.booted = booted
        self._table = table
        self._index = dict(index)

    def flags(self) -> dict[Slot, BootFlags]:
        """As the protocol."""
        found = flags_of(self._table.examine().sound, self._index)
        return {slot: found[number] for slot, number in self._index.items()}

    def next(self) -> Slot | None:
        """As the protocol."""
        number = slots.next_boot(flags_of(self._table.examine().sound, self._index))
        return next((slot for slot, own in self._index.items() if own == number), None)

    def clear(self, slot: Slot) -> ClearedSlot:
        """As the protocol."""
        self._refuse_booted(slot)
        booted = self._index[self.booted]

        def verb(flags: Mapping[int, BootFlags]) -> dict[int, BootFlags]:
            running = flags[booted]
            if not (running.bootable and running.successful):
                raise BootedSlotNotBlessed(
                    f"slot {self.booted.value} is {slots.words(running)}", slot=self.booted.value
                )
            return slots.clear(flags, self._index[slot])

        self._change(verb)
        return ClearedSlot(slot, CLEARER)

    def stage(self, verified: VerifiedSlot, tries: int = 1) -> None:
        """As the protocol."""
        slot = verified.slot
        if slot is None:
            raise SlotNotBootable("what was verified is no slot of this host")
        self._refuse_booted(slot)
        self._change(lambda flags: slots.stage(flags, self._index[slot], tries))

    def bless(self, slot: Slot) -> None:
        """As the protocol."""
        if slot is not self.booted:
            raise BlessRefused(f"slot {self.booted.value} is running, not slot {slot.value}")
        self._change(lambda flags: slots.bless(flags, self._index[slot]))

    def prefer(self, slot: Slot) -> None:
        """As the protocol."""
        self._change(lambda flags: slots.prefer(flags, self._index[slot]))

    def cancel(self, slot: Slot) -> None:
        """As the protocol."""
        self._refuse_booted(slot)
        keep = self._index[self.booted]
        self._change(lambda flags: slots.cancel(flags, self._index[slot], keep))

    def once(self, slot: Slot) -> None:
        """As the protocol: one try, spent by the bootloader, and no success."""
        self._refuse_booted(slot)
        keep = self._index[self.booted]
        self._change(lambda flags: slots.once(flags, self._index[slot], keep))

    def reinstate(self, slot: Slot, keep: Slot) -> None:
        """As the protocol."""
        self._change(lambda flags: slots.reinstate(flags, self._index[slot], self._index[keep]))

    def damage(self) -> str | None:
        """As the protocol."""
        copies = self._table.examine()
        return gpt_writes.repair_reason(copies) if gpt_writes.repair(copies) else None

    def repair(self) -> str | None:
        """As the protocol."""
        return self._table.repair()

    def _change(self, verb: Verb) -> None:
        self._table.change(lambda table: edited(table, self._index, verb))

    def _refuse_booted(self, slot: Slot) -> None:
        if slot is self.booted:
            raise WouldTouchBootedSlot(f"slot {slot.value} is running", slot=slot.value)


def open_gpt(layout: Layout, options: Mapping[str, str]) -> GptBackend:
    """The backend for a layout on one GPT disk; `options` are for others.

    Raises:
        SettingsError: the slots are not partitions of one disk.
    """
    if layout.disk is None or set(layout.index) != set(Slot):
        raise SettingsError("the gpt boot backend needs both slots as partitions of one disk")
    return GptBackend(DiskTable(layout.disk, layout.sector_size), layout.index, layout.booted)
