"""The late-regression window: for how long a blessed release is watched, and what counts as failure.

Pure: clock, ledger and states of units are passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bascule.engine.ledger import Record
from bascule.engine.unit_watch import UnitState
from bascule.formats.slots import Slot
from bascule.updater.verdict import Verdict

CLOCK_SLACK = 300
"""Seconds by which a blessing may lie in the future; beyond that the clock was set."""

FAILED_LOOKS = 2
"""Looks in a row that must find a unit failed: somebody may be restarting it by hand."""


def watched_until(record: Record, booted: Slot, now: float, window: float) -> int:
    """When the window over the running release ends, in unix seconds; 0 if there is none.

    Only a release that came by an update, was blessed in this slot, and is not given up already is
    watched.

    Args:
        now: unix seconds.
        window: seconds.
    """
    at = record.blessed.get("at")
    if window <= 0 or not isinstance(at, int) or isinstance(at, bool):
        return 0
    if not record.blessed.get("attempt") or record.blessed.get("slot") != booted.name:
        return 0
    told = record.verdict
    if told.get("verdict") != Verdict.UPDATED.name or told.get("slot") != booted.name:
        return 0
    if record.late or record.once or record.intent is not None:
        return 0
    return int(at + window) if at - CLOCK_SLACK <= now < at + window else 0


class CrashLoops:
    """What the units did since the first look.

    Args:
        restarts: automatic restarts of one unit that count as failure.
        excused: units that had failed under the old release already.
    """

    def __init__(self, restarts: int, excused: Collection[str] = ()) -> None:
        self._limit = restarts
        self._excused = frozenset(excused)
        self._first: dict[str, int] = {}
        self._failed: dict[str, int] = {}

    def look(self, states: Mapping[str, UnitState]) -> str:
        """Why the release is given up, in one clause, or "". Unknown units prove nothing."""
        for unit, state in states.items():
            first = self._first.setdefault(unit, state.restarts)
            if state.restarts < first:
                # A start by hand begins the count anew.
                first = self._first[unit] = state.restarts
            rose = state.restarts - first
            if rose >= self._limit:
                return f"{unit} keeps failing ({rose} restarts)"
            if state.active != "failed" or unit in self._excused:
                self._failed.pop(unit, None)
                continue
            self._failed[unit] = self._failed.get(unit, 0) + 1
            if self._failed[unit] >= FAILED_LOOKS:
                return f"{unit} failed"
        return ""


def excused_units(record: Record) -> frozenset[str]:
    """Units that the health baseline, taken before the update, knows as failed."""
    failed = record.baseline.get("failed")
    found: set[str] = set()
    if isinstance(failed, Mapping):
        for name, subjects in failed.items():
            if str(name).startswith("unit:"):
                found.add(str(name).removeprefix("unit:"))
            if isinstance(subjects, list | tuple):
                found.update(str(subject) for subject in subjects)
    return frozenset(found)
