"""What the answers of the health checks mean for a boot: pure, with the clock passed in.

A required check that fails condemns the boot, unless it failed before the update too. A wanted
check never condemns. An inconclusive one is asked again until the deadline, and then becomes what
the settings say.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bascule.engine.health.baseline import Baseline
from bascule.engine.health.check import CheckResult, Outcome, sentence_of


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """The judgement over one boot at one moment.

    Attributes:
        outcome: pass, fail, or inconclusive (ask again).
        reason: one clause, ``myapp.service failed``; "" on a clean pass.
        condemned: reasons of the required checks that failed.
        undecided: reasons of the required checks without an answer.
        excused: reasons of failures that were there before the update.
        warnings: reasons of wanted checks that did not pass.
    """

    outcome: Outcome
    reason: str = ""
    condemned: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    excused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def report(self) -> tuple[str, ...]:
        """Whole sentences for the journal and history, the verdict first."""
        head = {
            Outcome.PASS: "This boot is healthy.",
            Outcome.FAIL: f"This boot is not healthy: {self.reason}.",
            Outcome.INCONCLUSIVE: f"The health of this boot is not known yet: {self.reason}.",
        }[self.outcome]
        return (
            head,
            *(f"Failed: {r}." for r in self.condemned),
            *(f"No answer: {r}." for r in self.undecided),
            *(f"Failed before the update too, so not held against it: {r}." for r in self.excused),
            *(f"Wanted, not required: {r}." for r in self.warnings),
        )


def judge(
    results: Sequence[CheckResult],
    *,
    expected: Iterable[str] = (),
    baseline: Baseline | None = None,
    now: float,
    deadline: float,
    inconclusive_becomes: Outcome = Outcome.FAIL,
) -> HealthVerdict:
    """The verdict over `results`.

    Args:
        expected: names of required checks; one without a result counts as inconclusive.
        baseline: what failed before the update; None where there was none.
        now, deadline: seconds on the same clock; at the deadline inconclusive is decided.
        inconclusive_becomes: what it is decided to be.
    """
    condemned: list[str] = []
    undecided: list[str] = []
    excused: list[str] = []
    warnings: list[str] = []
    for result in results:
        reason = result.reason or f"{result.name} did not pass"
        if result.outcome is Outcome.PASS:
            continue
        if not result.required:
            warnings.append(reason)
        elif result.outcome is Outcome.INCONCLUSIVE:
            undecided.append(reason)
        else:
            new, old = _against(result, reason, baseline)
            condemned += new
            excused += old
    answered = {r.name for r in results}
    undecided += [f"{name} has not been asked" for name in expected if name not in answered]

    if condemned:
        outcome, reason = Outcome.FAIL, _clause(condemned)
    elif not undecided:
        outcome, reason = Outcome.PASS, ""
    elif now < deadline:
        outcome, reason = Outcome.INCONCLUSIVE, _clause(undecided)
    else:
        outcome = inconclusive_becomes
        reason = f"{_clause(undecided)} when time was up"
    return HealthVerdict(
        outcome, reason, tuple(condemned), tuple(undecided), tuple(excused), tuple(warnings)
    )


def _against(
    result: CheckResult, reason: str, baseline: Baseline | None
) -> tuple[list[str], list[str]]:
    """(what is new, what was there before) of one failure."""
    before = baseline.failed.get(result.name) if baseline else None
    if before is None:
        return [reason], []
    if not result.subjects:
        return [], [reason]
    new = [s for s in result.subjects if s not in before]
    old = [s for s in result.subjects if s in before]
    return ([sentence_of(new)] if new else []), ([sentence_of(old)] if old else [])


def _clause(reasons: Sequence[str]) -> str:
    # no-failed-units and the unit's own check say the same thing in the same words.
    told = list(dict.fromkeys(reasons))
    return told[0] if len(told) == 1 else f"{told[0]}, and {len(told) - 1} more"


DECIDING = 10.0
"""Seconds that the health checks may need to write down what they decided at their deadline."""

BLESSING = 60.0
"""Seconds that a blessing may need once it is due: programs start slowly on a loaded host."""


def last_moment(*, deadline: float, soak: float, timeout: float, healthy: bool) -> float:
    """Seconds after the boot began at which a boot that is not blessed yet is given up.

    Args:
        deadline: seconds after boot by which health is decided.
        soak: seconds between healthy and blessed.
        timeout: longest run of one check; health is asked once more when the soak ends.
        healthy: health was decided, for the better: possibly only at the deadline.
    """
    if not healthy:
        return deadline + DECIDING
    return deadline + DECIDING + soak + (timeout if soak else 0.0) + BLESSING


class Deadman(enum.Enum):
    """What the deadman does now."""

    REST = "rest"
    WAIT = "wait"
    REBOOT = "reboot"
    STAY = "stay"


@dataclass(frozen=True, slots=True)
class DeadmanOrder:
    """What to do, why (one sentence), and for WAIT, seconds until to ask again."""

    action: Deadman
    reason: str
    seconds: float = 0.0


def deadman(
    *,
    on_trial: bool,
    fallback_bootable: bool,
    health: HealthVerdict | None,
    uptime: float,
    deadline: float,
) -> DeadmanOrder:
    """Decide over a boot that may still be on trial.

    Args:
        on_trial: the booted slot is not blessed.
        fallback_bootable: the bootloader would start the other slot if this one is given up.
        health: the verdict of this boot's health checks, or None while there is none.
        uptime, deadline: seconds since the boot began.
    """
    if not on_trial:
        return DeadmanOrder(Deadman.REST, "The booted release is confirmed.")
    if health is not None and health.outcome is Outcome.FAIL:
        why = health.reason or "its health checks failed"
    elif uptime >= deadline:
        why = f"it was not confirmed within {deadline:g} s"
    else:
        return DeadmanOrder(
            Deadman.WAIT, "The booted release is still on trial.", deadline - uptime
        )
    if not fallback_bootable:
        return DeadmanOrder(
            Deadman.STAY,
            f"The booted release is not healthy ({why}), but there is no other slot to boot, "
            "so it stays up.",
        )
    return DeadmanOrder(Deadman.REBOOT, f"The booted release is given up: {why}.")
