"""Is this boot healthy? Checks as values, asked all at once; the verdict is made elsewhere."""

from __future__ import annotations

from bascule.engine.health.baseline import Baseline, passed_in
from bascule.engine.health.check import (
    Answer,
    Attempt,
    Check,
    CheckResult,
    Host,
    Outcome,
    Pace,
)
from bascule.engine.health.probes import HttpProbe, TcpProbe
from bascule.engine.health.run import run
from bascule.engine.health.scripts import (
    SCRIPT_NAMES,
    Found,
    Script,
    green,
    greenboot,
    own,
    red,
)
from bascule.engine.health.units import NoFailedUnits, UnitActive

__all__ = [
    "SCRIPT_NAMES",
    "Answer",
    "Attempt",
    "Baseline",
    "Check",
    "CheckResult",
    "Found",
    "Host",
    "HttpProbe",
    "NoFailedUnits",
    "Outcome",
    "Pace",
    "Script",
    "TcpProbe",
    "UnitActive",
    "green",
    "greenboot",
    "own",
    "passed_in",
    "red",
    "run",
]
