"""What the ledger and the slots say, as fields of the status. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bascule.engine.boot import BootBackend
from bascule.engine.ledger import Record
from bascule.formats.slots import Slot, words
from bascule.updater.intent import Intent, Phase
from bascule.updater.prepared import Prepared
from bascule.updater.settle import sentence
from bascule.updater.status import SlotStatus
from bascule.updater.verdict import Verdict

PREPARED = "prepared: not bootable until it is activated"


def slot_statuses(backend: BootBackend, record: Record) -> tuple[SlotStatus, ...]:
    """Both slots as an operator sees them. Reads the slots, so it blocks."""
    flags = backend.flags()
    following = backend.next()
    intent = Intent.from_dict(record.intent)
    prepared = Prepared.from_dict(record.prepared)
    out = []
    for slot in (Slot.A, Slot.B):
        if slot not in flags:
            continue
        flag = flags[slot]
        version, told = record.releases.get(slot.name, ""), words(flag)
        if intent is not None and slot is intent.target:
            if intent.phase is not Phase.WRITING:
                version = intent.version
        elif prepared is not None and slot is prepared.slot and not flag.bootable:
            version, told = prepared.version, PREPARED
        out.append(
            SlotStatus(
                slot.name,
                slot is backend.booted,
                slot is following,
                flag.priority,
                flag.tries,
                flag.successful,
                version,
                told,
            )
        )
    return tuple(out)


def fields_of(
    record: Record,
    verdict: Verdict,
    slots: tuple[SlotStatus, ...],
    extra: Mapping[str, Any],
    local: Callable[[float], time.struct_time] = time.localtime,
) -> dict[str, Any]:
    """Fields of `Status` that follow from the ledger.

    Args:
        verdict: over the ledger's intent, if it has one.
        extra: the status's present one.
    """
    intent = Intent.from_dict(record.intent)
    prepared = Prepared.from_dict(record.prepared)
    extra = {k: v for k, v in extra.items() if k != "prepared"}
    if prepared is not None:
        extra["prepared"] = prepared.version
    fields: dict[str, Any] = {
        "slots": slots,
        "quarantine": len(record.quarantine),
        "last_updated": record.last_updated,
        "extra": extra,
    }
    if intent is not None:
        fields.update(
            verdict=verdict.name,
            sentence=sentence(verdict, intent.as_dict()),
            attempt=intent.attempt,
        )
        if verdict is Verdict.WAITING:
            fields.update(new_version=intent.version, new_size=intent.size)
        return fields
    told = record.verdict
    kind = Verdict.__members__.get(str(told.get("verdict")), Verdict.NOTHING_PENDING)
    at = told.get("at")
    when = time.strftime("%H:%M", local(at)) if isinstance(at, int) else ""
    if told:
        extra["verdict_attempt"] = str(told.get("attempt") or "")
    facts = {
        **told,
        "running": any(s.booted and s.name == told.get("slot") for s in slots),
        "quarantined": str(told.get("payload")) in record.quarantine,
    }
    fields.update(verdict=kind.name, sentence=sentence(kind, facts, when))
    if prepared is not None:
        fields["sentence"] = prepared.sentence()
    return fields
