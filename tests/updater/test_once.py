"""A boot of the other slot for one time: every cut ends where the host came from."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from bascule.errors import SlotNotBootable
from bascule.formats import slots
from bascule.formats.slots import BootFlags, Slot
from bascule.updater.once import Detour, Once, begin_once, end_once, settle_once
from slot_host import GOOD, Cut, Host


def once_of(host: Host) -> Once:
    return Once(
        target=host.booted.other,
        origin=host.booted,
        boot_id=host.boot_id,
        at=1,
        version="1.0.0",
        origin_version="2.0.0",
    )


def settle(host: Host) -> tuple[Once, Detour] | None:
    return settle_once(host.backend(), host.ledger, host.ledger.read(), host.boot_id)


def test_there_and_back(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.booted is Slot.B
    begin_once(host.backend(), host.ledger, once_of(host))
    found = settle(host)
    assert found is not None and found[1] is Detour.WAITING
    assert "starts once with the next reboot" in found[0].sentence(found[1])
    assert host.power_on() is Slot.A
    found = settle(host)
    assert found is not None and found[1] is Detour.RUNNING
    assert "goes back to slot B (2.0.0)" in found[0].sentence(found[1])
    assert host.table[Slot.A].successful
    assert settle(host) == found
    assert host.power_on() is Slot.B
    found = settle(host)
    assert found is not None and found[1] is Detour.OVER
    assert host.ledger.read().once == {}
    assert settle(host) is None
    assert {s: f.successful for s, f in host.table.items()} == {Slot.A: True, Slot.B: True}
    assert host.power_on() is Slot.B


@pytest.mark.parametrize("settles", [True, False], ids=["agent-runs", "agent-never-runs"])
@pytest.mark.parametrize("asking", range(4))
@pytest.mark.parametrize("during", range(4))
@pytest.mark.parametrize("after", range(4))
def test_cuts_at_every_write(
    tmp_path: Path, asking: int, during: int, after: int, settles: bool
) -> None:
    """However often the power goes, the host comes back to its slot with both slots good."""
    host = Host(tmp_path)
    host.cut_at = asking
    with contextlib.suppress(Cut):
        begin_once(host.backend(), host.ledger, once_of(host))
    for cut_at in (during, after):
        assert host.power_on() is not None
        host.cut_at = cut_at
        if settles:
            with contextlib.suppress(Cut):
                settle(host)
    for _ in range(2):
        assert host.power_on() is Slot.B
        settle(host)
    assert host.ledger.read().once == {}
    assert all(f.successful and f.priority and not f.tries for f in host.table.values())
    assert slots.next_boot(host.table) is Slot.B


def test_the_one_boot_happens_once_only(tmp_path: Path) -> None:
    host = Host(tmp_path)
    begin_once(host.backend(), host.ledger, once_of(host))
    assert [host.power_on() for _ in range(4)] == [Slot.A, Slot.B, Slot.B, Slot.B]


def test_an_origin_that_does_not_come_back(tmp_path: Path) -> None:
    """The slot of the one boot is what is left: it is good, and nothing waits any more."""
    host = Host(tmp_path)
    begin_once(host.backend(), host.ledger, once_of(host))
    host.power_on()
    settle(host)
    b = host.table[Slot.B]
    host.table[Slot.B] = BootFlags(b.priority, 0, False)
    assert host.power_on() is Slot.A
    with pytest.raises(SlotNotBootable):
        settle(host)
    host.table[Slot.B] = b
    found = settle(host)
    assert found is not None and found[1] is Detour.OVER
    assert host.table[Slot.A].successful


def test_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    for spoilt in (Slot.A, Slot.B):
        flags = {**GOOD, spoilt: BootFlags(GOOD[spoilt].priority, 1, False)}
        host = Host(tmp_path / spoilt.name, flags)
        before = dict(host.table)
        with pytest.raises(SlotNotBootable):
            host.backend().once(host.booted.other)
        assert host.table == before


def test_taken_back_before_it_happens(tmp_path: Path) -> None:
    host = Host(tmp_path)
    once = once_of(host)
    begin_once(host.backend(), host.ledger, once)
    end_once(host.backend(), host.ledger, once)
    assert host.power_on() is Slot.B
    assert all(f.successful for f in host.table.values())


def test_emptied_meanwhile_stays_empty() -> None:
    flags = {Slot.A: BootFlags(0, 0, False), Slot.B: BootFlags(1, 0, True)}
    assert slots.reinstate(flags, Slot.A, Slot.B)[Slot.A] == BootFlags(0, 0, False)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"target": "A"},
        {"target": "A", "origin": "A", "boot_id": "x", "at": 1},
        {"target": "C", "origin": "A", "boot_id": "x", "at": 1},
        {"target": "A", "origin": "B", "boot_id": "x", "at": "soon"},
        {"target": [], "origin": "B", "boot_id": "x", "at": 1},
    ],
)
def test_what_nobody_wrote_is_nothing(data: dict[str, object]) -> None:
    assert Once.from_dict(data) is None
