"""Gates about the release: the server's answer, pin, floor, quarantine, back-off."""

from __future__ import annotations

from bascule.formats.omaha_words import refusal
from bascule.formats.version import older
from bascule.updater.gates.facts import Answered, Facts
from bascule.updater.gates.gate import Blocks, Gate, blocks, passes, unknown
from bascule.updater.gates.when import moment, next_check
from bascule.updater.sentences import size_words


def server(facts: Facts, now: float) -> Gate:
    """The last answer, with the server's status words in plain language."""
    answer = facts.answer
    again = facts.next_check or None
    coming = next_check(facts, now)
    match answer.kind:
        case Answered.OFFERED:
            size = f" ({size_words(answer.size)})" if answer.size else ""
            return passes(
                Blocks.UPDATE, "server.offered", version=answer.version or "(unnamed)", size=size
            )
        case Answered.LOCAL:
            return passes(
                Blocks.UPDATE,
                "server.local",
                version=answer.version or "(unnamed)",
                source=answer.detail,
            )
        case Answered.CURRENT:
            group = f" in group {facts.group}" if facts.group else ""
            return blocks(
                Blocks.UPDATE,
                "server.current",
                until=again,
                running=facts.running or "what runs",
                group=group,
            )
        case Answered.REFUSED:
            meaning = refusal(answer.status)
            return blocks(
                Blocks.UPDATE,
                "server.deferred" if meaning.deferred else "server.refused",
                until=again,
                words=meaning.sentence,
                status=answer.status,
                next_check=coming,
            )
        case Answered.UNREACHABLE:
            return blocks(
                Blocks.UPDATE,
                "server.unreachable",
                until=again,
                detail=answer.detail.rstrip(". ") or "it did not answer",
                next_check=coming,
                error=answer.error,
            )
        case Answered.DISABLED:
            return blocks(Blocks.UPDATE, "server.disabled", server=facts.server)
        case _:
            return unknown(Blocks.UPDATE, "server.not-asked", until=again, next_check=coming)


def busy(facts: Facts, now: float) -> Gate:
    """One attempt at a time, and none over a release that waits for its reboot."""
    if facts.under_way:
        return blocks(Blocks.UPDATE, "busy.under-way", phase=facts.under_way)
    if facts.staged:
        return blocks(Blocks.UPDATE, "busy.staged", version=facts.staged)
    if facts.way_back:
        return blocks(Blocks.UPDATE, "busy.way-back", words=facts.way_back)
    if facts.prepared and facts.prepared == facts.answer.payload and not facts.asked:
        # Whoever prepared it said when it boots; the clock does not.
        return blocks(Blocks.UPDATE, "busy.prepared", words=facts.prepared_words)
    return passes(Blocks.UPDATE, "busy.idle")


def pin(facts: Facts, now: float) -> Gate:
    """The operator's pin, or the one release that was asked for, which goes before it."""
    version = facts.answer.version
    if facts.wanted and version:
        told = {"version": version, "wanted": facts.wanted}
        if version != facts.wanted:
            return blocks(Blocks.UPDATE, "pin.other", told=told)
        return passes(Blocks.UPDATE, "pin.wanted", told=told)
    if facts.pin is None:
        return passes(Blocks.UPDATE, "pin.none")
    if not version:
        return passes(Blocks.UPDATE, "pin.waits", pin=facts.pin)
    if facts.pin.allows(version):
        return passes(Blocks.UPDATE, "pin.allows", version=version, pin=facts.pin)
    return blocks(Blocks.UPDATE, "pin.refuses", version=version, pin=facts.pin)


def floor(facts: Facts, now: float) -> Gate:
    """The version floor (anti-rollback)."""
    if not facts.floor:
        return passes(Blocks.UPDATE, "floor.none")
    version = facts.answer.version
    if not version:
        return passes(Blocks.UPDATE, "floor.waits", floor=facts.floor)
    if not older(version, facts.floor):
        return passes(Blocks.UPDATE, "floor.above", version=version, floor=facts.floor)
    if facts.allow_downgrade:
        return passes(Blocks.UPDATE, "floor.lowered", version=version, floor=facts.floor)
    return blocks(Blocks.UPDATE, "floor.below", version=version, floor=facts.floor)


def quarantine(facts: Facts, now: float) -> Gate:
    """Releases that failed on this host, by payload digest."""
    kept = {k: v for k, v in facts.quarantine.items() if v.until is None or v.until > now}
    if not kept:
        return passes(Blocks.UPDATE, "quarantine.none")
    entry = kept.get(facts.answer.payload)
    if entry is None:
        count = len(kept)
        words = "One release is" if count == 1 else f"{count} releases are"
        return passes(Blocks.UPDATE, "quarantine.others", count=words)
    told = {
        "version": facts.answer.version or entry.version or "(unnamed)",
        "since": moment(facts, entry.at),
        "reason": entry.reason.rstrip(". ") or "the reason was not recorded",
    }
    if entry.until is None:
        return blocks(Blocks.UPDATE, "quarantine.this", told=told)
    return blocks(
        Blocks.UPDATE,
        "quarantine.until",
        until=entry.until,
        when=moment(facts, entry.until),
        told=told,
    )


def back_off(facts: Facts, now: float) -> Gate:
    """Payload back-off after failures."""
    if facts.back_off_until <= now:
        return passes(Blocks.UPDATE, "back-off.none")
    return blocks(
        Blocks.UPDATE,
        "back-off.until",
        until=facts.back_off_until,
        override=True,
        version=facts.answer.version or "(unnamed)",
        when=moment(facts, facts.back_off_until),
        failures=facts.failures,
    )
