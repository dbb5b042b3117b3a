"""Gates: each reason for or against going on, as a pure function of facts and clock.

One evaluator serves the scheduler, ``explain``, the D-Bus property ``BlockedBy`` and ``--json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bascule.updater.gates.facts import (
    Answer,
    Answered,
    Budget,
    Facts,
    Locksmithd,
    Quarantined,
    Room,
)
from bascule.updater.gates.gate import Blocks, Gate, Verdict
from bascule.updater.gates.host import battery, budget, load, metered, space, unblessed
from bascule.updater.gates.reboot import inhibitors, lock, sessions, strategy
from bascule.updater.gates.release import back_off, busy, floor, pin, quarantine, server
from bascule.updater.gates.when import download_window, hold, mode, schedule, window

__all__ = [
    "GATES",
    "Answer",
    "Answered",
    "Blocks",
    "Budget",
    "Facts",
    "Gate",
    "Locksmithd",
    "Quarantined",
    "Room",
    "Verdict",
    "blocking",
    "concerned",
    "evaluate",
    "opens",
]

GATES: tuple[Callable[[Facts, float], Gate], ...] = (
    busy,
    mode,
    schedule,
    server,
    hold,
    pin,
    floor,
    quarantine,
    back_off,
    unblessed,
    space,
    battery,
    load,
    download_window,
    metered,
    budget,
    strategy,
    window,
    sessions,
    inhibitors,
    lock,
)


def evaluate(facts: Facts, now: float) -> list[Gate]:
    """Every gate, in the order in which an update meets them."""
    return [gate(facts, now) for gate in GATES]


def concerned(facts: Facts) -> tuple[Blocks, ...]:
    """What the next step of this host is: the reboot where a release waits for it, else the update.

    A gate about the other one holds nothing back now.
    """
    return (Blocks.REBOOT,) if facts.staged else (Blocks.UPDATE, Blocks.DOWNLOAD)


def blocking(gates: Iterable[Gate], *what: Blocks, overriding: bool = False) -> list[Gate]:
    """The gates that hold one of `what` back; with `overriding`, those that ``--now`` leaves."""
    return [
        g
        for g in gates
        if g.verdict is Verdict.BLOCK
        and (not what or g.blocks in what)
        and not (overriding and g.override)
    ]


def opens(gates: Iterable[Gate], *what: Blocks) -> int | None:
    """When all gates that hold `what` back open by themselves, unix seconds.

    None where one of them does not, or where none blocks.
    """
    moments = [g.until for g in blocking(gates, *what)]
    known = [m for m in moments if m is not None]
    return max(known) if known and len(known) == len(moments) else None
