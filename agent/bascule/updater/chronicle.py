"""History as sentences: why the host was rebooted, updated or rolled back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bascule.updater.duration import words
from bascule.updater.explain import Line
from bascule.updater.sentences import say, size_words
from bascule.updater.zone import clock_words, zone

__all__ = ["KINDS", "actor_words", "explain_history"]

Told = Mapping[str, Any]


def explain_history(
    records: Sequence[Mapping[str, Any]], *, zone_name: str = "", limit: int = 12
) -> list[Line]:
    """What happened on this host, newest first.

    Args:
        records: as `engine.history.History.read` gives them, oldest first.
    """
    where = zone(zone_name)
    found: list[Line] = []
    for record in reversed(records):
        teller = KINDS.get(str(record.get("kind", "")))
        if teller is None:
            continue
        facts = record.get("facts")
        told = facts if isinstance(facts, Mapping) else {}
        actor = record.get("actor") or told.get("actor")
        reason, more = teller({**told, "actor": actor})
        filled = {
            "version": _text(told.get("version")) or "the new release",
            "when": clock_words(_number(record.get("time")), where),
            "actor": actor_words(actor),
            "Actor": _capital(actor_words(actor)),
            "slot": _text(told.get("slot")) or "?",
            **more,
        }
        found.append(Line(reason, say(reason, **filled)))
        if len(found) >= limit:
            break
    return found or [Line("history.empty", say("history.empty"))]


# ── one teller for each kind: (id of the sentence, what it is filled with)


def _verdict(told: Told) -> tuple[str, dict[str, str]]:
    origin = {"origin": _text(told.get("origin_version")) or "the old release"}
    match told.get("verdict"):
        case "UPDATED":
            return "history.updated", {**origin, "cost": _cost(told)}
        case "ROLLED_BACK":
            return "history.rolled-back", {
                **origin,
                "why": _why(told, "it did not boot far enough to say why"),
            }
        case "WITHDRAWN":
            return "history.withdrawn", {"why": _why(told, "somebody chose otherwise")}
        case other:
            words_ = (_text(other) or "unknown").lower().replace("_", " ")
            return "history.judged", {"verdict": words_}


def _asked(told: Told) -> tuple[str, dict[str, str]]:
    verb = _text(told.get("verb")) or "something"
    return ("history.asked-reboot", {}) if verb == "reboot" else ("history.asked", {"verb": verb})


def _rollback(told: Told) -> tuple[str, dict[str, str]]:
    if told.get("once"):
        return "history.once", {}
    if told.get("by") == "late":
        return "history.late", {"why": _why(told, "it failed after it was confirmed")}
    return "history.chosen", {}


def _hold(told: Told) -> tuple[str, dict[str, str]]:
    if told.get("cleared"):
        return "history.hold-lifted", {}
    until = told.get("until")
    return "history.held", {
        "until": f"until {clock_words(_number(until), zone(''))}"
        if isinstance(until, int)
        else "until further notice",
        "why": f" ({_text(told.get('reason'))})" if _text(told.get("reason")) else "",
    }


def _pin(told: Told) -> tuple[str, dict[str, str]]:
    pin = _text(told.get("pin"))
    return ("history.pinned", {"pin": pin}) if pin else ("history.pin-lifted", {})


def _health(told: Told) -> tuple[str, dict[str, str]]:
    if told.get("outcome") == "PASS":
        return "history.healthy", {}
    report = told.get("report")
    lines = [_text(line).rstrip(". ") for line in report] if isinstance(report, list) else []
    return "history.unhealthy", {"why": "; ".join(x for x in lines if x) or "no reason recorded"}


def _failed(told: Told) -> tuple[str, dict[str, str]]:
    return "history.failed", {"why": _message(told)}


def _plain(
    reason: str, default: str = "no reason recorded"
) -> Callable[[Told], tuple[str, dict[str, str]]]:
    return lambda told: (reason, {"why": _why(told, default)})


def _costly(reason: str) -> Callable[[Told], tuple[str, dict[str, str]]]:
    return lambda told: (reason, {"cost": _cost(told)})


def _troubled(reason: str) -> Callable[[Told], tuple[str, dict[str, str]]]:
    return lambda told: (reason, {"why": _message(told)})


KINDS: Mapping[str, Callable[[Told], tuple[str, dict[str, str]]]] = {
    "asked": _asked,
    "verdict": _verdict,
    "staged": _costly("history.staged"),
    "prepared": _costly("history.prepared"),
    "attempt-failed": _failed,
    "delta-refused": _plain("history.delta-refused"),
    "withdrawn": _plain("history.withdrawn", "somebody chose otherwise"),
    "rollback": _rollback,
    "reboot": _plain("history.rebooted", "an update was staged"),
    "boot": _plain("history.booted"),
    "boot-repaired": _plain("history.repaired"),
    "repaired": lambda told: (
        "history.doctor",
        {"done": _text(told.get("sentence")).rstrip(". ") or "nothing was to be done"},
    ),
    "once-over": _plain("history.once-over"),
    "no-way-back": _troubled("history.no-way-back"),
    "late-trouble": _troubled("history.late-trouble"),
    "health": _health,
    "blessed": _plain("history.blessed"),
    "given-up": _plain("history.given-up"),
    "stays-up": _plain("history.stays-up"),
    "ledger-damaged": _plain("history.ledger"),
    "hold": _hold,
    "pin": _pin,
}
"""A teller for each kind of record; a test holds it against what is written."""


def actor_words(actor: object) -> str:
    """Who did it, in words."""
    if not isinstance(actor, Mapping):
        return "nobody on record"
    via = str(actor.get("via", ""))
    uid = _number(actor.get("uid", -1))
    if via == "schedule":
        return "the schedule"
    if via == "signal":
        return "a signal to the daemon"
    if uid == 0:
        return "root"
    return f"user {uid:.0f}" if uid > 0 else "somebody on the bus"


def _why(told: Told, default: str) -> str:
    for key in ("failure", "why", "reason"):
        if text := _text(told.get(key)).rstrip(". "):
            return text
    return default


def _message(told: Told) -> str:
    error = told.get("error")
    message = _text(error.get("message")) if isinstance(error, Mapping) else ""
    return message.rstrip(". ") or _why(told, "no reason recorded")


def _cost(told: Told) -> str:
    parts = []
    if fetched := _number(told.get("bytes")):
        parts.append(size_words(fetched))
    for key, what in (("download_s", "download"), ("apply_s", "apply"), ("downtime_s", "downtime")):
        if seconds := _number(told.get(key)):
            parts.append(f"{what} {words(seconds)}")
    return f" ({', '.join(parts)})" if parts else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and -1 <= value < 1e15 else 0.0  # type: ignore[operator, arg-type]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
