"""From what the ledger keeps to the facts that gates look at. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bascule.engine.ledger import Record
from bascule.engine.limits import DataUse, period_ends
from bascule.errors import BasculeError, ServerRefused, UsageError
from bascule.formats.omaha import Offer
from bascule.updater.gates.facts import Answer, Answered, Budget, Facts, Quarantined
from bascule.updater.hold import Hold
from bascule.updater.payload_state import PayloadState
from bascule.updater.pin import Pin, parse_pin
from bascule.updater.zone import zone

_STATUS = re.compile(r"\b(error-[A-Za-z0-9]{1,64}|restricted)\b", re.ASCII)


def with_record(
    facts: Facts, record: Record, now: float, *, budget_limit: int = 0, running: bool = False
) -> Facts:
    """`facts` with everything that the ledger knows.

    Args:
        now: unix seconds.
        budget_limit: `download.budget`, bytes; 0 for none.
        running: `facts.answer` is the daemon's own and newer than the ledger's words.
    """
    state = PayloadState.from_dict(record.payload_state)
    return replace(
        facts,
        answer=facts.answer if running else answer_from_words(record.last_answer),
        hold=Hold.from_dict(record.hold),
        pin=pin_from_record(record.pin),
        floor=record.floor,
        quarantine={k: _quarantined(v) for k, v in record.quarantine.items()},
        back_off_until=state.backoff_until,
        failures=state.attempt,
        budget=_budget(record.budget, budget_limit, now, facts.zone),
    )


def pin_from_record(text: str) -> Pin | None:
    """The pin that the ledger keeps. One that cannot be read any more allows nothing: damage must
    not set a host free."""
    if not text:
        return None
    try:
        return parse_pin(text)
    except UsageError:
        return Pin(text, ())


def answer_from_offer(offer: Offer | None) -> Answer:
    """What a good answer of the server means."""
    if offer is None:
        return Answer(Answered.CURRENT)
    return Answer(
        Answered.OFFERED, version=offer.version, payload=offer.sha256.hex(), size=offer.size
    )


def answer_from_error(error: BasculeError) -> Answer:
    """What a failed check means: the server said no, or could not be asked."""
    if isinstance(error, ServerRefused):
        status = str(error.context.get("status") or "") or _status(str(error))
        return Answer(Answered.REFUSED, status=status or "no status")
    return Answer(Answered.UNREACHABLE, detail=str(error))


def answer_from_words(words: str) -> Answer:
    """The answer behind the ledger's ``last_answer``, which survives a restart as text."""
    if not words:
        return Answer()
    if words == "nothing newer":
        return Answer(Answered.CURRENT)
    if words.startswith("offers"):
        return Answer(Answered.OFFERED, version=words.removeprefix("offers").strip())
    if status := _status(words):
        return Answer(Answered.REFUSED, status=status)
    return Answer(Answered.UNREACHABLE, detail=words[:300])


def _status(words: str) -> str:
    match = _STATUS.search(words)
    return match[1] if match else ""


def _quarantined(entry: Mapping[str, Any]) -> Quarantined:
    until = _seconds(entry.get("until"))
    return Quarantined(
        version=str(entry.get("version", "")),
        reason=str(entry.get("reason", "")),
        at=_seconds(entry.get("at")),
        until=until or None,
    )


def _budget(kept: Mapping[str, Any], limit: int, now: float, zone_name: str) -> Budget | None:
    if limit <= 0:
        return None
    # The months of the limiter in `engine.limits`: the host's own unless told otherwise.
    where = zone(zone_name) if zone_name else None
    return Budget(limit, DataUse.from_dict(kept).at(now, where).used, period_ends(now, where))


def _seconds(value: object) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40
    return int(value) if good else 0  # type: ignore[call-overload]
