"""The late-regression window and the way back: a fake clock, and a cut at every write."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bascule.engine.ledger import Record
from bascule.engine.unit_watch import UnitState
from bascule.errors import SlotNotBootable
from bascule.formats.slots import BootFlags, Slot
from bascule.updater.giveup import GiveUp, given_up, settle_giveup
from bascule.updater.late import CLOCK_SLACK, CrashLoops, excused_units, watched_until
from slot_host import Cut, Host

PAYLOAD = "ab" * 32
AT = 1_800_000_000


def record(**more: Any) -> Record:
    return Record(
        blessed={"slot": "B", "boot_id": "x", "at": AT, "attempt": "a1"},
        verdict={"verdict": "UPDATED", "slot": "B", "attempt": "a1", "payload": PAYLOAD},
        releases={"A": "1.0.0", "B": "2.0.0"},
        **more,
    )


@given(now=st.integers(AT - 10_000, AT + 10_000), window=st.integers(0, 5000))
def test_the_window(now: int, window: int) -> None:
    until = watched_until(record(), Slot.B, now, window)
    assert bool(until) is (window > 0 and AT - CLOCK_SLACK <= now < AT + window)
    assert until in (0, AT + window)


@pytest.mark.parametrize(
    "other",
    [
        {"late": {"slot": "B"}},
        {"once": {"slot": "B"}},
        {"intent": {"attempt": "a2"}},
    ],
)
def test_no_window_while_something_else_is_meant(other: dict[str, Any]) -> None:
    assert watched_until(record(**other), Slot.B, AT + 1, 100) == 0


def test_no_window_over_what_no_update_brought() -> None:
    assert watched_until(Record(), Slot.B, AT, 100) == 0
    assert watched_until(record(), Slot.A, AT, 100) == 0


def looks(watch: CrashLoops, *states: tuple[str, int]) -> list[str]:
    return [watch.look({"web.service": UnitState(*s)}) for s in states]


def test_restarts_count_from_the_first_look() -> None:
    found = looks(CrashLoops(3), ("active", 7), ("active", 9), ("activating", 10))
    assert found == ["", "", "web.service keeps failing (3 restarts)"]


def test_a_start_by_hand_begins_the_count_anew() -> None:
    assert looks(CrashLoops(3), ("active", 2), ("active", 4), ("active", 0), ("active", 2)) == [
        "",
        "",
        "",
        "",
    ]


def test_failed_counts_when_it_lasts() -> None:
    assert looks(CrashLoops(3), ("failed", 0), ("active", 0), ("failed", 0), ("failed", 0)) == [
        "",
        "",
        "",
        "web.service failed",
    ]


def test_what_had_failed_before_the_update_is_excused() -> None:
    base = {"failed": {"unit:web.service": [], "no-failed-units": ["db.service"]}}
    excused = excused_units(record(baseline=base))
    assert excused == {"web.service", "db.service"}
    assert looks(CrashLoops(3, excused), ("failed", 0), ("failed", 0), ("failed", 0)) == [""] * 3


def test_unknown_units_prove_nothing() -> None:
    watch = CrashLoops(1)
    assert watch.look({}) == ""
    assert watch.look({"a.service": UnitState("failed")}) == ""
    assert watch.look({}) == ""


def decide(host: Host, by: str = "late") -> None:
    giveup = GiveUp(host.booted, by, "web.service failed", AT, reboot=by == "late")

    def change(before: Record) -> Record:
        return given_up(before, giveup, running="2.0.0", quarantined=True, tell_server=True)

    after = host.ledger.update(change)
    settle_giveup(host.backend(), host.ledger, after)


@pytest.mark.parametrize("by", ["late", "operator"])
@pytest.mark.parametrize("cut_at", range(4))
@pytest.mark.parametrize("again", range(3))
def test_cuts_at_every_write(tmp_path: Path, cut_at: int, again: int, by: str) -> None:
    """Decided or not; never a flip that nobody recorded, and what is recorded comes about."""
    host = Host(tmp_path)
    assert host.booted is Slot.B
    host.ledger.update(lambda _: record())
    host.writes, host.cut_at = 0, cut_at
    with contextlib.suppress(Cut):
        decide(host, by)
    decided = bool(host.ledger.read().late) or cut_at > 0
    assert host.power_on() is not None
    host.cut_at = again
    with contextlib.suppress(Cut):
        settle_giveup(host.backend(), host.ledger, host.ledger.read())
    for _ in range(2):
        host.power_on()
        settle_giveup(host.backend(), host.ledger, host.ledger.read())
    host.power_on()
    kept = host.ledger.read()
    assert host.booted is (Slot.A if decided else Slot.B)
    if decided:
        assert kept.late == {}
        assert kept.verdict["verdict"] == "ROLLED_BACK"
        assert kept.quarantine[PAYLOAD]["kind"] == ("boot" if by == "late" else "operator")
        assert kept.previous_version == "1.0.0"
    else:
        assert kept.verdict["verdict"] == "UPDATED"
    assert all(f.successful for f in host.table.values())


def test_no_other_slot_any_more(tmp_path: Path) -> None:
    """Recorded, and then the other slot went: it is said, dropped, and the host stays."""
    host = Host(tmp_path)
    host.ledger.update(lambda _: record())
    host.writes, host.cut_at = 0, 1
    with contextlib.suppress(Cut):
        decide(host)
    host.table[Slot.A] = BootFlags(0, 0, False)
    host.power_on()
    with pytest.raises(SlotNotBootable):
        settle_giveup(host.backend(), host.ledger, host.ledger.read())
    assert host.ledger.read().late == {}
    assert settle_giveup(host.backend(), host.ledger, host.ledger.read()) is None
    assert host.power_on() is Slot.B
