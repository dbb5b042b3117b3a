"""A host of flags and a ledger, whose power can be cut at every write; boots are the firmware's rule.

The verbs on the flags are the agent's pure ones; which slot a power-on takes is written here again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bascule.engine.boot import CLEARER, ClearedSlot
from bascule.engine.ledger import Ledger, Record
from bascule.engine.verify import VerifiedSlot
from bascule.errors import BlessRefused, WouldTouchBootedSlot
from bascule.formats import slots
from bascule.formats.slots import BootFlags, Slot

GOOD = {Slot.A: BootFlags(1, 0, True), Slot.B: BootFlags(2, 0, True)}


class Cut(BaseException):
    """The power went."""


class Host:
    """`cut_at`: the power goes before the write of that number, counted from 0; None never."""

    def __init__(self, folder: Path, flags: dict[Slot, BootFlags] | None = None) -> None:
        self.table = dict(flags or GOOD)
        self.writes = 0
        self.cut_at: int | None = None
        self.boots = 0
        self.ledger = CutLedger(folder, self)
        self.booted = Slot.A
        self.power_on()

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def write(self) -> None:
        if self.cut_at is not None and self.writes >= self.cut_at:
            raise Cut
        self.writes += 1

    def power_on(self) -> Slot | None:
        best, highest = None, 0
        for slot in (Slot.A, Slot.B):
            f = self.table[slot]
            if f.priority > highest and (f.tries > 0 or f.successful):
                best, highest = slot, f.priority
        if best is None:
            return None
        f = self.table[best]
        if f.tries:
            self.table[best] = replace(f, tries=f.tries - 1)
        self.booted = best
        self.boots += 1
        self.writes, self.cut_at = 0, None
        return best

    def backend(self) -> Backend:
        return Backend(self)


class CutLedger(Ledger):
    def __init__(self, folder: Path, host: Host) -> None:
        super().__init__(folder)
        self._host = host

    def update(self, change: Callable[[Record], Record]) -> Record:
        before = self.read()
        if change(before) != before:
            self._host.write()
        return super().update(change)


class Backend:
    """`engine.boot.BootBackend` on the host's flags."""

    name = "table"

    def __init__(self, host: Host) -> None:
        self._host = host
        self.booted = host.booted

    def _change(self, after: dict[Slot, BootFlags]) -> None:
        if after != self._host.table:
            self._host.write()
            self._host.table = after

    def flags(self) -> dict[Slot, BootFlags]:
        return dict(self._host.table)

    def next(self) -> Slot | None:
        return slots.next_boot(self._host.table)

    def clear(self, slot: Slot) -> ClearedSlot:
        self._refuse(slot)
        self._change(slots.clear(self._host.table, slot))
        return ClearedSlot(slot, CLEARER)

    def stage(self, verified: VerifiedSlot, tries: int = 1) -> None:
        assert verified.slot is not None
        self._refuse(verified.slot)
        self._change(slots.stage(self._host.table, verified.slot, tries))

    def bless(self, slot: Slot) -> None:
        if slot is not self.booted:
            raise BlessRefused
        self._change(slots.bless(self._host.table, slot))

    def prefer(self, slot: Slot) -> None:
        self._change(slots.prefer(self._host.table, slot))

    def cancel(self, slot: Slot) -> None:
        self._refuse(slot)
        self._change(slots.cancel(self._host.table, slot, self.booted))

    def once(self, slot: Slot) -> None:
        self._refuse(slot)
        self._change(slots.once(self._host.table, slot, self.booted))

    def reinstate(self, slot: Slot, keep: Slot) -> None:
        self._change(slots.reinstate(self._host.table, slot, keep))

    def repair(self) -> str | None:
        return None

    def _refuse(self, slot: Slot) -> None:
        if slot is self.booted:
            raise WouldTouchBootedSlot
