from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from bascule.updater.machine import INSTALLING, TRANSITIONS, Event, Impossible, diagram, step
from bascule.updater.status import State, Status

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = ROOT.parent / "shared" / "vectors" / "omaha"


def walk(*events: Event) -> list[State]:
    states = [State.IDLE]
    for event in events:
        states.append(step(states[-1], event))
    return states


def test_a_good_update_walks_the_originals_states() -> None:
    assert walk(
        Event.CHECK_BEGAN, Event.OFFER_TAKEN, Event.BYTES_CAME, Event.PAYLOAD_PROVEN, Event.STAGED
    ) == [
        State.IDLE,
        State.CHECKING_FOR_UPDATE,
        State.UPDATE_AVAILABLE,
        State.DOWNLOADING,
        State.FINALIZING,
        State.UPDATED_NEED_REBOOT,
    ]


@pytest.mark.parametrize("run", ["full_kernel", "noupdate", "wrongkey", "rollback_1_update"])
def test_every_recorded_sequence_of_the_original_is_a_walk_of_ours(run: str) -> None:
    file = SIGNALS / run / "signals.txt"
    if not file.exists():
        pytest.skip("../shared/vectors is missing")
    names = re.findall(r"UPDATE_STATUS_(\w+)", file.read_text())
    seen = [State[n] for i, n in enumerate(names) if i == 0 or names[i - 1] != n]
    assert len(seen) > 2
    possible = {(before, after) for (before, _), after in TRANSITIONS.items()}
    for pair in pairwise(seen):
        assert pair in possible, pair


def test_what_is_not_in_the_table_cannot_happen() -> None:
    for state in State:
        for event in Event:
            if (state, event) not in TRANSITIONS:
                with pytest.raises(Impossible):
                    step(state, event)


def test_every_state_but_verifying_is_reached_and_left() -> None:
    reached = set(TRANSITIONS.values())
    left = {state for state, _ in TRANSITIONS}
    assert set(State) - reached == {State.VERIFYING}
    assert set(State) - left == {State.VERIFYING}


def test_every_errand_state_can_fail_or_stop() -> None:
    for state in INSTALLING:
        assert (state, Event.STOPPED) in TRANSITIONS


def test_the_design_shows_the_table_as_it_is() -> None:
    text = (ROOT / "agent" / "DESIGN.md").read_text()
    assert diagram() in text, "run `make docs`"


def test_legacy_tuple() -> None:
    status = Status(
        state=State.DOWNLOADING,
        last_checked=7,
        new_version="3.1",
        new_size=100,
        bytes_done=25,
        bytes_total=100,
    )
    assert status.legacy() == (7, 0.25, "UPDATE_STATUS_DOWNLOADING", "3.1", 100)
    assert Status().legacy() == (0, 0.0, "UPDATE_STATUS_IDLE", "0.0.0", 0)
