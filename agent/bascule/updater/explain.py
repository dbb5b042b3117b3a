"""``explain``: gates and history as sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bascule.updater.duration import words
from bascule.updater.gates import Blocks, Facts, Gate, Verdict, blocking, evaluate, opens
from bascule.updater.sentences import listed, say, size_words
from bascule.updater.zone import clock_words, zone

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence with its stable id."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why not now.

    Attributes:
        summary: the answer in a few sentences.
        gates: every gate in the order in which an update meets them.
        opens: unix seconds at which all gates that hold it back are open, if that is known.
    """

    summary: tuple[Line, ...]
    gates: tuple[Gate, ...]
    opens: int | None

    def lines(self) -> list[str]:
        """For a terminal: the summary, then every gate with its verdict."""
        marks = {Verdict.PASS: "open", Verdict.BLOCK: "closed", Verdict.UNKNOWN: "unknown"}
        width = max((len(g.name) for g in self.gates), default=0)
        return [line.text for line in self.summary] + [
            f"{marks[g.verdict]:<8}{g.name:<{width}}  {g.evidence}" for g in self.gates
        ]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "schema": SCHEMA,
            "summary": [{"reason": s.reason, "text": s.text} for s in self.summary],
            "gates": [g.as_dict() for g in self.gates],
            "opens": self.opens or 0,
        }


def explain(facts: Facts, now: float, *, by_hand: bool = False) -> Explanation:
    """What holds the next step back: the update, or the reboot where one is staged.

    Args:
        by_hand: also say what ``--now`` would override.
    """
    gates = evaluate(facts, now)
    # A staged release that a newer offer may replace is still due for its reboot first.
    which = (Blocks.REBOOT,) if facts.staged else (Blocks.UPDATE, Blocks.DOWNLOAD)
    what = f"the reboot into {facts.staged}" if facts.staged else "the update"
    closed = blocking(gates, *which)
    at = opens(gates, *which)
    found: list[Line] = []

    def add(reason: str, **told: object) -> None:
        found.append(Line(reason, say(reason, **told)))

    if not closed:
        if facts.staged:
            add("summary.free-reboot", version=facts.staged)
        else:
            add("summary.free")
    elif len(closed) == 1:
        add("summary.one", what=what, gates=closed[0].name)
    else:
        add("summary.several", count=len(closed), what=what, gates=_names(closed))
    if at is not None:
        add("summary.at", when=clock_words(at, zone(facts.zone)))
    elif closed and (waiting := [g for g in closed if g.until is None]):
        add("summary.someone", gates=_names(waiting))
    unsure = [g for g in gates if g.verdict is Verdict.UNKNOWN and g.blocks in which]
    if unsure:
        add("summary.unknown", gates=_names(unsure))
    if by_hand:
        found.extend(overrides(gates, *which))
    return Explanation(tuple(found), tuple(gates), at)


def overrides(gates: Iterable[Gate], *which: Blocks) -> list[Line]:
    """What ``--now`` goes past, and what it leaves standing."""
    closed = blocking(gates, *which)
    passed = [g for g in closed if g.override]
    kept = [g for g in closed if not g.override]
    found = []
    if passed:
        found.append(Line("now.overrides", say("now.overrides", gates=_names(passed))))
    else:
        found.append(Line("now.nothing", say("now.nothing")))
    if kept:
        found.append(Line("now.keeps", say("now.keeps", gates=_names(kept))))
    return found


def explain_history(
    records: Sequence[Mapping[str, Any]], *, zone_name: str = "", limit: int = 8
) -> list[Line]:
    """Why the host rebooted, was updated or rolled back: newest first.

    Args:
        records: as `engine.history.History.read` gives them, oldest first.
    """
    where = zone(zone_name)
    found: list[Line] = []
    for record in reversed(records):
        facts = record.get("facts")
        told = facts if isinstance(facts, Mapping) else {}
        when = clock_words(_number(record.get("time")), where)
        line = _line(str(record.get("kind", "")), told, record.get("actor"), when)
        if line is not None:
            found.append(line)
        if len(found) >= limit:
            break
    return found or [Line("history.empty", say("history.empty"))]


def _line(kind: str, told: Mapping[str, Any], actor: object, when: str) -> Line | None:
    version = str(told.get("version") or "the new release")
    origin = str(told.get("origin_version") or "the old release")
    why = str(told.get("failure") or told.get("why") or told.get("reason") or "").rstrip(". ")
    who = actor_words(actor if actor else told.get("actor"))
    error = told.get("error")
    match kind, str(told.get("verdict", "")), str(told.get("verb", "")):
        case "verdict", "UPDATED", _:
            reason, facts = "history.updated", {"origin": origin, "cost": _cost(told)}
        case "verdict", "ROLLED_BACK", _:
            reason = "history.rolled-back"
            facts = {"origin": origin, "why": why or "it did not boot far enough to say why"}
        case ("verdict", "WITHDRAWN", _) | ("withdrawn", _, _):
            reason = "history.withdrawn"
            facts = {"why": why or "somebody chose otherwise"}
        case "reboot", _, _:
            reason, facts = "history.rebooted", {"why": why or "an update was staged"}
        case "asked", _, "reboot":
            reason, facts = "history.asked", {"actor": who}
        case "rollback", _, _:
            reason, facts = "history.chosen", {"actor": _capital(who)}
        case "attempt-failed", _, _:
            message = error.get("message") if isinstance(error, Mapping) else ""
            reason, facts = (
                "history.failed",
                {"why": str(message or why or "no reason recorded").rstrip(". ")},
            )
        case _:
            return None
    return Line(reason, say(reason, **{"version": version, "when": when, **facts}))


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


def _cost(told: Mapping[str, Any]) -> str:
    parts = []
    if fetched := _number(told.get("bytes")):
        parts.append(size_words(fetched))
    for key, what in (("download_s", "download"), ("apply_s", "apply"), ("downtime_s", "downtime")):
        if seconds := _number(told.get(key)):
            parts.append(f"{what} {words(seconds)}")
    return f" ({', '.join(parts)})" if parts else ""


def _number(value: object) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and -1 <= value < 1e15 else 0.0  # type: ignore[operator, arg-type]


def _names(gates: Iterable[Gate]) -> str:
    return listed([g.name for g in gates])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
