"""One attempt, with the power cut before every durable write: prepare, update, activate, take back.

The disk's part is played: what is cut here is the order of ledger and flags.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bascule.engine.boot import ClearedSlot
from bascule.errors import NothingPending, SlotMismatch
from bascule.formats.omaha import Client, Offer
from bascule.formats.slots import BootFlags, Slot
from bascule.updater.attempt import Attempt, Outcome, Terms
from bascule.updater.intent import Intent
from bascule.updater.plan import InstallPlan
from bascule.updater.prepared import Prepared
from bascule.updater.settle import settle
from bascule.updater.verdict import Verdict, judge
from slot_host import Cut, Host

FRESH = {Slot.A: BootFlags(1, 0, True), Slot.B: BootFlags(0, 0, False)}
TWO = Offer("2.0.0", ("http://u/2",), "2", 1000, b"\2" * 32)
THREE = Offer("3.0.0", ("http://u/3",), "3", 1000, b"\3" * 32)
STATS = SimpleNamespace(fetched=1, written=2, skipped=3, flushes=4, checkpoints=5)


class Disk:
    """What the slots hold and what is kept of a payload; survives every cut."""

    def __init__(self) -> None:
        self.slot: dict[Slot, str] = {}
        self.kept = ""
        self.damaged = False
        self.fetched: list[str] = []


class FakeHands:
    def __init__(self, host: Host, disk: Disk, offline: bool) -> None:
        self._host, self._disk, self._offline = host, disk, offline

    async def stream(self, plan: InstallPlan, cleared: ClearedSlot) -> Any:
        assert cleared.slot is plan.target is not self._host.booted
        assert not self._host.table[plan.target].bootable
        if self._offline and self._disk.kept != plan.offer.version:
            raise NothingPending("gone")
        if not self._offline:
            self._disk.fetched.append(plan.offer.version)
        self._host.write()
        self._disk.slot[plan.target] = plan.offer.version
        return SimpleNamespace(stats=STATS, resumed=self._offline)

    async def read_back(self, plan: InstallPlan, installed: Any) -> Any:
        if self._disk.damaged:
            raise SlotMismatch("it differs")
        assert self._disk.slot[plan.target] == plan.offer.version
        return SimpleNamespace(slot=plan.target)

    async def postinstall(self, plan: InstallPlan, installed: Any) -> bool:
        return False

    async def baseline(self) -> Mapping[str, Any]:
        return {}

    def resumable(self, plan: InstallPlan) -> bool:
        return False

    def keep(self, plan: InstallPlan, installed: Any) -> None:
        self._host.write()
        self._disk.kept = plan.offer.version

    def forget(self) -> None:
        self._disk.kept = ""

    def remember_response(self, body: bytes, previous_version: str) -> None: ...

    def mark_staged(self) -> None: ...


def client() -> Client:
    return Client(
        version="1.0.0", track="stable", machineid="m", bootid="b", board="amd64-usr", machine="x"
    )


async def post(body: bytes) -> bytes:
    return b""


def attempt(
    host: Host, disk: Disk, *, prepare: bool = False, offline: bool = False, clock: bool = False
) -> Attempt:
    said: list[tuple[str, Mapping[str, Any]]] = []

    def say(word: str, **facts: Any) -> None:
        said.append((word, facts))

    made = Attempt(
        attempt=f"a{host.boots}",
        client=client(),
        post=post,
        ledger=host.ledger,
        boot=host.backend(),
        hands=FakeHands(host, disk, offline),
        terms=Terms(
            running="1.0.0",
            boot_id=host.boot_id,
            tries=1,
            interactive=not clock,
            install=True,
            server="http://u/",
            prepare=prepare,
        ),
        say=say,
        clock=lambda: 1_800_000_000.0,
        jitter=lambda: 0.5,
    )
    made.said = said  # type: ignore[attr-defined]
    return made


async def do(what: str, host: Host, disk: Disk, offer: Offer = TWO) -> Outcome:
    match what:
        case "prepare":
            return await attempt(host, disk, prepare=True).run(offer)
        case "update":
            return await attempt(host, disk).run(offer)
        case "tick":
            return await attempt(host, disk, clock=True).run(offer)
        case _:
            return await attempt(host, disk, offline=True).activate()


def look(host: Host) -> Verdict:
    """The daemon's settlement."""
    record = host.ledger.read()
    verdict = judge(Intent.from_dict(record.intent), host.booted, host.table, host.boot_id)
    host.ledger.update(lambda r: settle(r, verdict, 1))
    return verdict


def held(host: Host) -> Prepared | None:
    return Prepared.from_dict(host.ledger.read().prepared)


def sound(host: Host, disk: Disk) -> None:
    """The promises that no cut may break."""
    assert host.table[Slot.A].successful and host.table[Slot.A].bootable
    if host.table[Slot.B].bootable:
        assert disk.slot.get(Slot.B) in ("2.0.0", "3.0.0")
        assert look(host) is Verdict.WAITING


@pytest.mark.parametrize("cut_at", range(24))
@pytest.mark.parametrize("story", ["update", "prepare", "activate", "other", "again"])
async def test_cut_before_every_write(tmp_path: Path, story: str, cut_at: int) -> None:
    host, disk = Host(tmp_path, FRESH), Disk()
    if story != "update" and story != "prepare":
        await do("prepare", host, disk)
        assert held(host) is not None
    host.writes, host.cut_at = 0, cut_at
    cut = False
    try:
        match story:
            case "other":
                await do("prepare", host, disk, THREE)
            case "again":
                await do("update", host, disk)
            case _:
                await do(story, host, disk)
    except Cut:
        cut = True
    host.cut_at = None
    sound(host, disk)
    if story in ("activate", "again") and not host.table[Slot.B].bootable:
        # Nothing is lost by a cut: it can be activated still.
        look(host)
        assert held(host) is not None
    staged = host.table[Slot.B].bootable
    if not cut:
        assert staged is (story not in ("prepare", "other"))
    assert host.power_on() is (Slot.B if staged else Slot.A)
    if not staged:
        sound(host, disk)
        look(host)
        await do("update", host, disk)
        assert host.power_on() is Slot.B
    assert look(host) is Verdict.ON_TRIAL
    host.backend().bless(Slot.B)
    assert look(host) is Verdict.UPDATED
    assert held(host) is None


async def test_prepared_and_activated(tmp_path: Path) -> None:
    host, disk = Host(tmp_path, FRESH), Disk()
    assert (await do("prepare", host, disk)).result == "prepared"
    assert look(host) is Verdict.NOTHING_PENDING
    assert host.table == FRESH
    # The clock does not stage what an operator holds back, but takes what is newer.
    assert (await do("tick", host, disk)).result == "available"
    assert host.table == FRESH
    assert (await do("activate", host, disk)).result == "staged"
    assert disk.fetched == ["2.0.0"]
    assert look(host) is Verdict.WAITING
    intent = Intent.from_dict(host.ledger.read().intent)
    assert intent is not None and intent.cost["bytes"] == 1


async def test_clock_takes_what_is_newer(tmp_path: Path) -> None:
    host, disk = Host(tmp_path, FRESH), Disk()
    await do("prepare", host, disk)
    assert (await do("tick", host, disk, THREE)).result == "staged"
    found = held(host)
    assert found is not None and found.version == "3.0.0"


async def test_damage_drops_what_was_prepared(tmp_path: Path) -> None:
    host, disk = Host(tmp_path, FRESH), Disk()
    await do("prepare", host, disk)
    disk.damaged = True
    with pytest.raises(SlotMismatch):
        await do("activate", host, disk)
    assert held(host) is None
    assert host.table == FRESH
    with pytest.raises(NothingPending):
        await do("activate", host, disk)


async def test_a_booted_slot_is_never_activated(tmp_path: Path) -> None:
    """A record of a slot that runs now is stale, whatever it says."""
    host, disk = Host(tmp_path, FRESH), Disk()
    await do("prepare", host, disk)
    stale = host.ledger.read().prepared
    await do("activate", host, disk)
    host.power_on()
    host.backend().bless(Slot.B)
    look(host)
    host.ledger.set(prepared=stale)
    with pytest.raises(NothingPending, match="runs now"):
        await do("activate", host, disk)
    assert host.table[Slot.B].successful


async def test_writing_the_other_slot_ends_every_way_to_it(tmp_path: Path) -> None:
    host, disk = Host(tmp_path, FRESH), Disk()
    host.ledger.set(once={"target": "B"}, late={"slot": "A"})
    with contextlib.suppress(Cut):
        await do("prepare", host, disk)
    record = host.ledger.read()
    assert (record.once, record.late) == ({}, {})


async def test_what_was_mended_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, disk = Host(tmp_path, FRESH), Disk()
    monkeypatch.setattr("slot_host.Backend.repair", lambda self: "the backup copy was damaged")
    made = attempt(host, disk)
    await made.run(TWO)
    notes = [f for w, f in made.said if w == "note"]  # type: ignore[attr-defined]
    assert {"note": "boot-repaired", "facts": {"what": "the backup copy was damaged"}} in notes
