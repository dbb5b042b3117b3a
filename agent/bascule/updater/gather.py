"""From what the ledger keeps to the facts that gates look at. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from bascule.engine.ledger import Record
from bascule.engine.limits import DataUse, period_ends
from bascule.errors import BasculeError, ServerRefused, UsageError
from bascule.updater.gates.facts import Answer, Answered, Budget, Facts, Quarantined
from bascule.updater.hold import Hold
from bascule.updater.payload_state import PayloadState
from bascule.updater.pin import Pin, parse_pin
from bascule.updater.prepared import Prepared
from bascule.updater.zone import zone

if TYPE_CHECKING:
    from bascule.formats.omaha import Offer

_DETAIL = 300
_STATUS = re.compile(r"\b(error-[A-Za-z0-9]{1,64}|restricted)\b", re.ASCII)


def with_record(facts: Facts, record: Record, now: float, *, budget_limit: int = 0) -> Facts:
    """`facts` with everything that the ledger knows.

    Args:
        now: unix seconds.
        budget_limit: `download.budget`, bytes; 0 for none.
    """
    state = PayloadState.from_dict(record.payload_state)
    answer = answer_from_record(record)
    prepared = Prepared.from_dict(record.prepared)
    return replace(
        facts,
        answer=answer,
        prepared=prepared.payload if prepared is not None and prepared.asked else "",
        prepared_words=prepared.sentence() if prepared is not None else "",
        hold=Hold.from_dict(record.hold),
        pin=pin_from_record(record.pin),
        floor=record.floor,
        quarantine={k: _quarantined(v) for k, v in record.quarantine.items()},
        # An offer may ask for no back-off at all; what an older one left behind is not about it.
        back_off_until=state.backoff_until if answer.backs_off else 0,
        failures=state.attempt,
        # What an interrupted attempt has fetched already is not known here.
        needed=answer.size if answer.kind is Answered.OFFERED and not record.intent else 0,
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
    """What a good answer of the server means, or an offer that was found elsewhere."""
    if offer is None:
        return Answer(Answered.CURRENT)
    url = offer.urls[0] if offer.urls else ""
    local = url.startswith("file:")
    return Answer(
        Answered.LOCAL if local else Answered.OFFERED,
        detail=unquote(url.removeprefix("file://")) if local else "",
        version=offer.version,
        payload=offer.sha256.hex(),
        size=offer.size,
        backs_off=not (offer.disable_backoff or offer.is_delta),
    )


def answer_from_error(error: BasculeError) -> Answer:
    """What a failed check means: the server said no, or could not be asked."""
    if isinstance(error, ServerRefused):
        status = str(error.context.get("status") or "") or _status(str(error))
        return Answer(Answered.REFUSED, status=status or "no status", error=error.id)
    return Answer(Answered.UNREACHABLE, detail=str(error)[:_DETAIL], error=error.id)


def kept_answer(answer: Answer, *, at: int, poll_interval: int = 0) -> dict[str, Any]:
    """An answer as the ledger keeps it, in ``Record.answer``.

    Args:
        at: unix seconds.
        poll_interval: seconds that the server asked for, 0 for none.
    """
    return {
        "kind": answer.kind.value,
        "status": answer.status,
        "detail": answer.detail,
        "version": answer.version,
        "payload": answer.payload,
        "size": answer.size,
        "backs_off": answer.backs_off,
        "error": answer.error,
        "poll_interval": poll_interval,
        "at": at,
    }


def answer_from_record(record: Record) -> Answer:
    """The last answer; from the words alone where an older agent wrote the ledger."""
    kept = record.answer
    try:
        kind = Answered(kept.get("kind"))
    except ValueError:
        return answer_from_words(record.last_answer)
    return Answer(
        kind,
        status=str(kept.get("status", ""))[:_DETAIL],
        detail=str(kept.get("detail", ""))[:_DETAIL],
        version=str(kept.get("version", ""))[:_DETAIL],
        payload=str(kept.get("payload", ""))[:_DETAIL],
        size=_seconds(kept.get("size")),
        backs_off=kept.get("backs_off") is not False,
        error=str(kept.get("error", ""))[:_DETAIL],
    )


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
    return Answer(Answered.UNREACHABLE, detail=words[:_DETAIL])


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
