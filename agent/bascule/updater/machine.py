"""The state machine: one table, one `step`. Nothing else moves the state.

States are update_engine's (reference 3.1). VERIFYING is kept as a name and never entered, as in the
original: read-back and post-installation are FINALIZING, and `Status.phase` tells them apart.
"""

from __future__ import annotations

import enum

from bascule.updater.status import State


class Event(enum.Enum):
    """What can happen to the updater."""

    CHECK_BEGAN = "a check begins"
    NOTHING_OFFERED = "the server offers nothing, or policy declines it"
    OFFER_TAKEN = "an offer is taken"
    BYTES_CAME = "the first payload byte arrives"
    PAYLOAD_PROVEN = "the payload is whole and proven"
    STAGED = "the slot is the next boot"
    PREPARED = "the slot is proven and waits for `updatectl activate`"
    FAILED = "a step failed"
    FAILURE_TOLD = "the failure is in the outbox"
    STOPPED = "the operator or a stop of the daemon ended it"
    WITHDRAWN = "a staged slot is undone"
    FOUND_STAGED = "at start, a staged slot is found"
    PINGED = "the server is told that this host waits for its reboot"


_S, _E = State, Event

TRANSITIONS: dict[tuple[State, Event], State] = {
    (_S.IDLE, _E.CHECK_BEGAN): _S.CHECKING_FOR_UPDATE,
    (_S.IDLE, _E.FOUND_STAGED): _S.UPDATED_NEED_REBOOT,
    (_S.CHECKING_FOR_UPDATE, _E.NOTHING_OFFERED): _S.IDLE,
    (_S.CHECKING_FOR_UPDATE, _E.OFFER_TAKEN): _S.UPDATE_AVAILABLE,
    (_S.CHECKING_FOR_UPDATE, _E.FAILED): _S.REPORTING_ERROR_EVENT,
    (_S.CHECKING_FOR_UPDATE, _E.STOPPED): _S.IDLE,
    (_S.UPDATE_AVAILABLE, _E.BYTES_CAME): _S.DOWNLOADING,
    (_S.UPDATE_AVAILABLE, _E.PAYLOAD_PROVEN): _S.FINALIZING,
    (_S.UPDATE_AVAILABLE, _E.NOTHING_OFFERED): _S.IDLE,
    (_S.UPDATE_AVAILABLE, _E.FAILED): _S.REPORTING_ERROR_EVENT,
    (_S.UPDATE_AVAILABLE, _E.STOPPED): _S.IDLE,
    (_S.DOWNLOADING, _E.PAYLOAD_PROVEN): _S.FINALIZING,
    (_S.DOWNLOADING, _E.FAILED): _S.REPORTING_ERROR_EVENT,
    (_S.DOWNLOADING, _E.STOPPED): _S.IDLE,
    (_S.FINALIZING, _E.STAGED): _S.UPDATED_NEED_REBOOT,
    (_S.FINALIZING, _E.PREPARED): _S.IDLE,
    (_S.FINALIZING, _E.FAILED): _S.REPORTING_ERROR_EVENT,
    (_S.FINALIZING, _E.STOPPED): _S.IDLE,
    (_S.REPORTING_ERROR_EVENT, _E.FAILURE_TOLD): _S.IDLE,
    (_S.REPORTING_ERROR_EVENT, _E.STOPPED): _S.IDLE,
    (_S.UPDATED_NEED_REBOOT, _E.PINGED): _S.UPDATED_NEED_REBOOT,
    (_S.UPDATED_NEED_REBOOT, _E.WITHDRAWN): _S.IDLE,
}
"""(state, event) → state. A pair that is not here cannot happen."""

INSTALLING = frozenset(
    {
        _S.CHECKING_FOR_UPDATE,
        _S.UPDATE_AVAILABLE,
        _S.DOWNLOADING,
        _S.FINALIZING,
        _S.REPORTING_ERROR_EVENT,
    }
)
"""States in which an errand is under way."""


class Impossible(RuntimeError):
    """An event met a state that has no transition for it: a defect of ours, never of input."""


def step(state: State, event: Event) -> State:
    """The state that follows.

    Raises:
        Impossible: the table has no such pair.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise Impossible(f"{event.name} in {state.name}") from None


def diagram() -> str:
    """The table as a Mermaid state diagram; agent/DESIGN.md holds a copy that a test compares."""
    lines = ["stateDiagram-v2", "    [*] --> IDLE"]
    lines += [
        f"    {before.name} --> {after.name}: {event.value}"
        for (before, event), after in TRANSITIONS.items()
    ]
    return "\n".join(lines) + "\n"
