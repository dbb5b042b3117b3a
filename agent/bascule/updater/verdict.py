"""The last update's fate, judged at daemon start: a pure function of ledger, booted slot and flags."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from bascule.formats.slots import BootFlags, Slot, next_boot
from bascule.updater.intent import Intent, Phase


class Verdict(enum.Enum):
    """What became of the last intent."""

    NOTHING_PENDING = "no update is pending"
    UNFINISHED = "an attempt was interrupted before its slot was staged"
    WAITING = "the staged slot is the next boot"
    ON_TRIAL = "the new slot runs and is not blessed yet"
    UPDATED = "the new slot runs and is blessed"
    ROLLED_BACK = "the new slot was tried and the old one runs again"
    WITHDRAWN = "the staged slot was taken back by someone else's hand"


def judge(
    intent: Intent | None, booted: Slot, flags: Mapping[Slot, BootFlags], boot_id: str
) -> Verdict:
    """The fate of `intent`.

    The staged slot counts as tried only if its tries are spent: whoever boots the old slot by hand
    leaves the try, and the update still waits.
    """
    if intent is None:
        return Verdict.NOTHING_PENDING
    target = flags.get(intent.target, BootFlags(0, 0, False))
    if intent.phase is Phase.WRITING:
        return Verdict.UNFINISHED
    if booted is intent.target:
        if intent.boot_id == boot_id:
            return Verdict.UNFINISHED
        return Verdict.UPDATED if target.successful else Verdict.ON_TRIAL
    if next_boot(flags) is intent.target and not target.successful:
        return Verdict.WAITING
    spent = target.priority > 0 and not target.bootable
    if intent.boot_id != boot_id and spent:
        return Verdict.ROLLED_BACK
    return Verdict.UNFINISHED if intent.phase is Phase.STAGING else Verdict.WITHDRAWN
