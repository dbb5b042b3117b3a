"""Slots and their boot flags: the words in which every boot decision is made.

Bit layout: ChromeOS/Flatcar GPT attributes (reference 5.1): priority 48–51, tries 52–55,
successful 56.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


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
