"""Going back to the other slot for good: what the ledger says of it until it is done. Pure but for
`settle_giveup`.

The ledger is written first: a cut before the flip is made up for at the next settlement, while a
flip that nobody recorded would be a release that is installed again the next hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bascule.engine.boot import BootBackend
from bascule.engine.ledger import Ledger, Record
from bascule.formats.slots import Slot
from bascule.updater.intent import Intent
from bascule.updater.settle import quarantine
from bascule.updater.verdict import Verdict


@dataclass(frozen=True, slots=True)
class GiveUp:
    """What the ledger says.

    Attributes:
        slot: the slot that is left.
        by: ``operator`` or ``late``.
        reason: one clause.
        at: unix seconds.
        reboot: the agent itself wants the reboot.
        flipped: the other slot was made the next boot.
        before: the verdict that it took the place of, for whoever takes it back.
    """

    slot: Slot
    by: str
    reason: str
    at: int
    reboot: bool
    flipped: bool = False
    before: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in `ledger.Record.late`."""
        return {
            "slot": self.slot.name,
            "by": self.by,
            "reason": self.reason,
            "at": self.at,
            "reboot": self.reboot,
            "flipped": self.flipped,
            "before": dict(self.before),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> GiveUp | None:
        """The inverse; None for nothing, and for what no agent of this version wrote."""
        if not data:
            return None
        try:
            return cls(
                slot=Slot(data["slot"]),
                by=str(data["by"]),
                reason=str(data["reason"]),
                at=int(data["at"]),
                reboot=bool(data["reboot"]),
                flipped=bool(data.get("flipped")),
                before=dict(data.get("before") or {}),
            )
        except (KeyError, TypeError, ValueError):
            return None


def given_up(
    record: Record, giveup: GiveUp, *, running: str, quarantined: bool, tell_server: bool
) -> Record:
    """The ledger after the decision and before the flip.

    Args:
        running: the release that is left.
        quarantined: its payload, where it is known, must not come again.
        tell_server: the next check from the other slot reports a rollback (3/0 with 44).
    """
    intent, asked = Intent.from_dict(record.intent), GiveUp.from_dict(record.late)
    told, slot = record.verdict, giveup.slot
    payload, attempt = "", ""
    if intent is not None and intent.target is slot:
        payload, attempt = intent.payload, intent.attempt
    elif told.get("slot") == slot.name:
        payload, attempt = str(told.get("payload") or ""), str(told.get("attempt") or "")
    back = record.releases.get(slot.other.name, "")
    if payload and quarantined:
        record = quarantine(
            record,
            payload,
            version=running,
            kind="operator" if giveup.by == "operator" else "boot",
            reason=giveup.reason,
            now=giveup.at,
        )
    verdict = {
        "verdict": Verdict.ROLLED_BACK.name,
        "attempt": attempt,
        "version": running,
        "origin_version": back,
        "slot": slot.name,
        "payload": payload,
        "failure": giveup.reason,
        "by": giveup.by,
        "at": giveup.at,
    }
    if giveup.by == "operator":
        # The request itself is in history.
        verdict["told"] = True
    return replace(
        record,
        intent=None,
        verdict=verdict,
        previous_version=back if tell_server else "",
        # Asked twice, it is still the first one's verdict that comes back.
        late=replace(giveup, before=asked.before if asked is not None else told).as_dict(),
        once={},
        prepared={},
    )


def taken_back(record: Record, giveup: GiveUp) -> Record:
    """The ledger after an operator's rollback was undone before its reboot."""
    payload = record.verdict.get("payload")
    entry = record.quarantine.get(str(payload), {})
    lifted = {str(payload)} if entry.get("kind") == "operator" else set()
    return replace(
        record,
        late={},
        previous_version="",
        verdict={**giveup.before, "told": True} if giveup.before else {},
        quarantine={k: v for k, v in record.quarantine.items() if k not in lifted},
    )


def settle_giveup(backend: BootBackend, ledger: Ledger, record: Record) -> GiveUp | None:
    """Make up for a flip that a power cut prevented; forget what is done. Blocks. Idempotent.

    Returns what is still to be done: its slot runs yet.

    Raises:
        SlotNotBootable: there is nothing to go back to any more. The record is dropped.
    """
    giveup = GiveUp.from_dict(record.late)
    if giveup is None or giveup.slot is not backend.booted:
        if record.late:
            ledger.set(late={})
        return None
    if not giveup.flipped:
        try:
            backend.prefer(giveup.slot.other)
        except BaseException:
            ledger.set(late={})
            raise
        giveup = replace(giveup, flipped=True)
        ledger.set(late=giveup.as_dict())
    return giveup
