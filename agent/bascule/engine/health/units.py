"""Checks that ask systemd, through ``systemctl``: its output for machines is a stable interface."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field

from bascule.engine.command import run_command
from bascule.engine.health.check import (
    PASSED,
    Answer,
    Attempt,
    Host,
    Outcome,
    Pace,
    Tail,
    sentence_of,
)

OWN_UNITS = (
    "bascule-health.service",
    "bascule-bless.service",
    "bascule-giveup.service",
    "bascule-deadman.*",
)
"""A second asking must not condemn the boot because the first one did."""


@dataclass(frozen=True, slots=True)
class UnitActive:
    """One unit must be active.

    Attributes:
        unit: full name, ``myapp.service``.
        max_restarts: more automatic restarts than this fail the check; None: any number is well.
    """

    unit: str
    required: bool = True
    pace: Pace = field(default_factory=lambda: Pace(timeout=10, retries=12, interval=5))
    max_restarts: int | None = None

    @property
    def name(self) -> str:
        """``unit:myapp.service``."""
        return f"unit:{self.unit}"

    async def ask(self, host: Host, attempt: Attempt) -> Answer:
        """``systemctl show``: active passes, on its way is inconclusive, anything else fails."""
        attempt.doing = "asking systemd"
        attempt.if_cut = Outcome.INCONCLUSIVE
        shown = await _systemctl(
            host,
            attempt,
            [
                "show",
                "--property=LoadState,ActiveState,SubState,Result,NRestarts",
                "--",
                self.unit,
            ],
        )
        if shown is None:
            return Answer(Outcome.INCONCLUSIVE, "systemd could not be asked")
        facts = dict(line.partition("=")[::2] for line in shown.splitlines())
        active, sub = facts.get("ActiveState", ""), facts.get("SubState", "")
        restarts = int(facts["NRestarts"]) if facts.get("NRestarts", "").isdigit() else 0
        if facts.get("LoadState") in ("not-found", "bad-setting", "error", "masked"):
            return Answer(Outcome.FAIL, f"{self.unit} cannot be loaded ({facts['LoadState']})")
        if sub == "auto-restart" or (
            self.max_restarts is not None and restarts > self.max_restarts
        ):
            return Answer(Outcome.FAIL, f"{self.unit} keeps failing ({restarts} restarts)")
        if active in ("active", "reloading"):
            return PASSED
        if active == "failed":
            why = facts.get("Result", "")
            more = f" ({why})" if why not in ("", "success", "exit-code") else ""
            return Answer(Outcome.FAIL, f"{self.unit} failed{more}")
        if active == "activating":
            return Answer(Outcome.INCONCLUSIVE, f"{self.unit} is still starting")
        if not active:
            return Answer(Outcome.INCONCLUSIVE, "systemd could not be asked")
        return Answer(Outcome.FAIL, f"{self.unit} is not running ({active})")


@dataclass(frozen=True, slots=True)
class NoFailedUnits:
    """No unit is in the state ``failed``; with a baseline, none that was not failed before.

    Attributes:
        ignore: names or shell patterns that are passed over.
    """

    ignore: tuple[str, ...] = ()
    required: bool = True
    pace: Pace = field(default_factory=lambda: Pace(timeout=10, retries=2, interval=5))

    @property
    def name(self) -> str:
        """``no-failed-units``."""
        return "no-failed-units"

    async def ask(self, host: Host, attempt: Attempt) -> Answer:
        """``systemctl list-units --state=failed``; `subjects` holds the names."""
        attempt.doing = "asking systemd"
        attempt.if_cut = Outcome.INCONCLUSIVE
        listed = await _systemctl(
            host,
            attempt,
            ["list-units", "--state=failed", "--all", "--plain", "--no-legend", "--full"],
        )
        if listed is None:
            return Answer(Outcome.INCONCLUSIVE, "systemd could not be asked")
        names = sorted(line.split()[0].lstrip("●*") for line in listed.splitlines() if line.split())
        failed = tuple(n for n in names if n and not self._ignored(n))
        if not failed:
            return PASSED
        return Answer(Outcome.FAIL, sentence_of(failed), failed)

    def _ignored(self, unit: str) -> bool:
        return any(fnmatch.fnmatchcase(unit, p) for p in (*OWN_UNITS, *self.ignore))


async def _systemctl(host: Host, attempt: Attempt, arguments: list[str]) -> str | None:
    """Standard output, or None where systemctl failed or could not be started."""
    said = Tail(1 << 20)

    def keep(data: bytes) -> None:
        said.add(data)
        attempt.output.add(data)

    environment = {**host.environment, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    try:
        status = await run_command(
            [host.systemctl, "--no-pager", *arguments], environment=environment, output=keep
        )
    except OSError:
        return None
    return said.text() if status == 0 else None
