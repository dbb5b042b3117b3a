"""``explain``: gates and history as sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bascule.updater.gates import (
    Blocks,
    Facts,
    Gate,
    Verdict,
    blocking,
    concerned,
    evaluate,
    opens,
)
from bascule.updater.sentences import listed, say
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
    which = concerned(facts)
    what = f"the reboot into {facts.staged}" if facts.staged else "the update"
    closed = blocking(gates, *which)
    at = opens(gates, *which)
    found: list[Line] = []

    def add(reason: str, **told: object) -> None:
        found.append(Line(reason, say(reason, **told)))

    if facts.under_way:
        add("summary.under-way", phase=facts.under_way)
        return Explanation(tuple(found), tuple(gates), None)
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


def _names(gates: Iterable[Gate]) -> str:
    return listed([g.name for g in gates])
