"""Verbs in the wrong order, on an updater whose errands are played: typed refusals, and no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bascule.errors import (
    BasculeError,
    BootedSlotNotBlessed,
    Busy,
    NothingPending,
    SlotNotBootable,
    UsageError,
)
from bascule.formats.omaha import Offer
from bascule.formats.slots import BootFlags, Slot
from bascule.updater.intent import Intent, Phase
from bascule.updater.prepared import Prepared
from bascule.updater.status import State
from bascule.updater.steering import Actor, Job
from bascule.updater.updater import Orders, Updater
from bascule.updater.verdict import Verdict
from slot_host import GOOD, Host

ME = Actor(via="bus", uid=0)
CLOCK = Actor(via="schedule")
NOW = 1_800_000_000.0
TWO = Offer("2.0.0", ("http://u/2",), "2", 1000, b"\2" * 32)
FRESH = {Slot.A: BootFlags(1, 0, True), Slot.B: BootFlags(0, 0, False)}


class Errand:
    def __init__(self, host: Host, kind: str, prepared: Prepared) -> None:
        self._host, self._kind, self._prepared = host, kind, prepared

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        host, target = self._host, self._host.booted.other
        if self._kind == "check":
            yield {"say": "end", "result": "no-update", "outcome": {"why": "nothing newer"}}
            return
        yield {"say": "event", "event": "OFFER_TAKEN", "new_version": "2.0.0"}
        host.backend().clear(target)
        yield {"say": "event", "event": "PAYLOAD_PROVEN"}
        host.ledger.set(prepared=self._prepared.as_dict())
        if self._kind == "prepare":
            facts = {"what": "prepared", "version": "2.0.0"}
            yield {"say": "end", "result": "done", "outcome": facts}
            return
        intent = Intent(
            attempt="a1",
            version="2.0.0",
            payload=TWO.sha256.hex(),
            target=target,
            origin=host.booted,
            origin_version="1.0.0",
            boot_id=host.boot_id,
            phase=Phase.STAGED,
            tries=1,
            at=int(NOW),
        )
        host.ledger.set(intent=intent.as_dict())
        host.backend().stage(SimpleNamespace(slot=target), 1)  # type: ignore[arg-type]
        yield {"say": "end", "result": "done", "staged": True, "outcome": {"version": "2.0.0"}}

    def stop(self) -> None: ...


class Bench:
    def __init__(self, folder: Path, flags: dict[Slot, BootFlags]) -> None:
        self.host = Host(folder, flags)
        self.told: list[str] = []
        self.launched: list[str] = []
        self.staged = self.withdrawn = 0
        self.boot()

    def orders(self) -> Orders:
        version = "2.0.0" if self.host.booted is Slot.B else "1.0.0"
        return Orders("apply", True, "", version, "stable", "http://u/", 0)

    def boot(self) -> None:
        async def launch(job: Mapping[str, Any]) -> Errand:
            self.launched.append(str(job["kind"]))
            prepared = Prepared("a1", TWO, self.host.booted.other, int(NOW))
            return Errand(self.host, str(job["kind"]), prepared)

        def count_staged() -> None:
            self.staged += 1

        def count_withdrawn() -> None:
            self.withdrawn += 1

        self.updater = Updater(
            orders=self.orders,
            boot=self.host.backend,
            boot_id=self.host.boot_id,
            ledger=self.host.ledger,
            launch=launch,
            tell=lambda event, **facts: self.told.append(event),
            staged=count_staged,
            withdrawn=count_withdrawn,
            clock=lambda: NOW,
        )

    async def reboot(self) -> Slot | None:
        booted = self.host.power_on()
        self.boot()
        await self.updater.start()
        return booted

    async def do(self, verb: str, **options: Any) -> Job | str:
        updater = self.updater
        match verb:
            case "update":
                job = await updater.update(options, ME)
            case "prepare":
                job = await updater.update({**options, "prepare": True}, ME)
            case "cancel":
                return await updater.cancel(ME)
            case "reset":
                return await updater.reset(ME)
            case "rollback":
                return await updater.rollback(options, ME)
            case _:
                return await updater.act(verb, options, ME)
        await updater.idle()
        assert job.error is None, job.error
        return job

    @property
    def sentence(self) -> str:
        return self.updater.status.sentence


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, FRESH)
    await made.updater.start()
    return made


@pytest.fixture
async def settled(tmp_path: Path) -> Bench:
    """Both slots are good; B runs 2.0.0, which came by an update."""
    made = Bench(tmp_path, GOOD)
    made.host.ledger.set(
        verdict={
            "verdict": "UPDATED",
            "slot": "B",
            "version": "2.0.0",
            "origin_version": "1.0.0",
            "payload": TWO.sha256.hex(),
            "told": True,
        },
        releases={"A": "1.0.0", "B": "2.0.0"},
    )
    await made.updater.start()
    return made


async def refused(kind: type[BasculeError], bench: Bench, verb: str, **options: Any) -> str:
    before = dict(bench.host.table)
    with pytest.raises(kind) as caught:
        await bench.do(verb, **options)
    assert bench.host.table == before
    assert caught.value.remedy
    return str(caught.value)


async def test_nothing_prepared(bench: Bench) -> None:
    await refused(NothingPending, bench, "activate")
    await refused(NothingPending, bench, "deactivate")
    await refused(NothingPending, bench, "cancel")
    assert bench.launched == []


async def test_the_right_order_twice_over(bench: Bench) -> None:
    job = await bench.do("prepare")
    assert isinstance(job, Job)
    assert job.outcome["sentence"] == bench.sentence
    assert "is prepared in slot B" in bench.sentence
    assert bench.updater.status.state is State.IDLE
    assert bench.updater.status.extra["prepared"] == "2.0.0"
    assert bench.updater.status.slots[1].words.startswith("prepared")
    for _ in range(2):
        assert "starts with the next reboot" in str(await bench.do("activate"))
        assert "starts with the next reboot" in str(await bench.do("activate"))
        assert bench.updater.status.state is State.UPDATED_NEED_REBOOT
        await refused(Busy, bench, "prepare")
        await refused(Busy, bench, "update")
        await refused(Busy, bench, "rollback")
        assert "stays prepared" in str(await bench.do("deactivate"))
        assert "is prepared and not staged" in await refused(NothingPending, bench, "deactivate")
    assert bench.launched == ["prepare", "activate", "activate"]
    assert (bench.staged, bench.withdrawn) == (2, 2)


async def test_on_trial(bench: Bench) -> None:
    await bench.do("update")
    assert await bench.reboot() is Slot.B
    assert bench.updater.verdict is Verdict.ON_TRIAL
    assert "on trial" in await refused(NothingPending, bench, "deactivate")
    await refused(BootedSlotNotBlessed, bench, "activate")
    await refused(BootedSlotNotBlessed, bench, "prepare")
    await refused(BootedSlotNotBlessed, bench, "rollback", once=True)


async def test_reset_and_cancel_forget_what_was_staged(bench: Bench) -> None:
    for verb in ("reset", "cancel"):
        await bench.do("update")
        await bench.do(verb)
        await refused(NothingPending, bench, "activate")


async def test_cancel_gives_a_prepared_release_up(bench: Bench) -> None:
    await bench.do("prepare")
    assert "given up" in str(await bench.do("cancel"))
    await refused(NothingPending, bench, "activate")
    assert bench.sentence == "No update is pending."


async def test_a_restart_keeps_what_is_prepared(bench: Bench) -> None:
    await bench.do("prepare")
    assert await bench.reboot() is Slot.A
    assert "is prepared in slot B" in bench.sentence
    # A flip by an errand that died leaves its markers to the next start.
    await bench.do("activate")
    bench.boot()
    before = bench.staged
    await bench.updater.start()
    assert bench.staged == before + 1


async def test_what_a_cut_left_behind_goes_on_by_itself_unless_it_is_taken_back(
    bench: Bench,
) -> None:
    await bench.do("update")
    record = bench.host.ledger.read()
    bench.host.ledger.set(prepared={**record.prepared, "asked": False})
    await bench.do("deactivate")
    assert bench.host.ledger.read().prepared["asked"] is True
    bench.host.ledger.set(prepared={**record.prepared, "asked": False})
    await bench.reboot()
    assert "the next check goes on with it" in bench.sentence


async def test_unknown_options(bench: Bench) -> None:
    await refused(UsageError, bench, "update", shiny=True)
    await refused(UsageError, bench, "rollback", shiny=True)
    await refused(UsageError, bench, "dance")


async def test_rollback_without_a_good_slot(bench: Bench) -> None:
    await refused(SlotNotBootable, bench, "rollback")
    await refused(SlotNotBootable, bench, "rollback", once=True)
    record = bench.host.ledger.read()
    assert (record.once, record.late, record.verdict) == ({}, {}, {})


async def test_rollback_taken_back(settled: Bench) -> None:
    before, table = settled.sentence, dict(settled.host.table)
    assert before.startswith("Updated from 1.0.0 to 2.0.0")
    await settled.do("rollback")
    assert "rolled back by hand" in settled.sentence
    assert "1.0.0 starts with the next reboot" in settled.sentence
    for verb in ("update", "prepare"):
        await refused(Busy, settled, verb)
    await refused(Busy, settled, "rollback", once=True)
    await settled.do("rollback")
    assert "taken back" in str(await settled.do("cancel"))
    assert settled.sentence == before
    assert settled.host.table == table
    assert settled.host.ledger.read().quarantine == {}
    assert await settled.reboot() is Slot.B


async def test_rollback_for_good(settled: Bench) -> None:
    await settled.do("rollback")
    assert await settled.reboot() is Slot.A
    assert "back on 1.0.0" in settled.sentence
    assert "will not be tried again" in settled.sentence
    await settled.do("quarantine-clear")
    assert "may be tried again" in settled.sentence
    await refused(NothingPending, settled, "quarantine-clear")


async def test_once_holds_updates_back(settled: Bench) -> None:
    await settled.do("rollback", once=True)
    assert "starts once" in settled.sentence
    for verb in ("update", "prepare"):
        await refused(Busy, settled, verb)
    await refused(Busy, settled, "rollback", once=True)
    settled.updater.begin("update", {}, CLOCK)
    await settled.updater.idle()
    assert settled.launched == ["check"]
    assert await settled.reboot() is Slot.A
    assert "for once" in settled.sentence
    await refused(Busy, settled, "update")
    assert await settled.reboot() is Slot.B
    assert settled.sentence.startswith("Updated from 1.0.0 to 2.0.0")
    assert settled.host.ledger.read().quarantine == {}


async def test_once_then_for_good(settled: Bench) -> None:
    await settled.do("rollback", once=True)
    await settled.do("rollback")
    assert "rolled back by hand" in settled.sentence
    assert await settled.reboot() is Slot.A
    assert all(f.successful for f in settled.host.table.values())
    assert await settled.reboot() is Slot.A


async def test_once_taken_back_while_it_runs(settled: Bench) -> None:
    await settled.do("rollback", once=True)
    await settled.reboot()
    assert "may be updated from now" in str(await settled.do("cancel"))
    assert settled.host.ledger.read().once == {}
    assert await settled.reboot() is Slot.B


async def test_a_quarantined_failure_is_forgotten_with_it(settled: Bench) -> None:
    await settled.do("rollback")
    await settled.reboot()
    status = settled.updater.status
    from bascule.updater.status import Failure

    settled.updater.show(failure=Failure("quarantined", 1, "x", "y", 1))
    assert replace(status, failure=None) == status
    await settled.do("quarantine-clear", version="2.0.0")
    assert settled.updater.status.failure is None


@pytest.mark.parametrize("health_at", [None, 25])
@pytest.mark.parametrize("passed", [40, -5, 31 * 86400])
async def test_downtime(bench: Bench, passed: int, health_at: int | None) -> None:
    """From the stop to the healthy boot; a clock that was set leaves it untold."""
    await bench.do("update")
    await bench.updater.note_stop()
    assert bench.host.ledger.read().reboot["stopped_at"] == int(NOW)
    await bench.reboot()
    assert bench.updater.verdict is Verdict.ON_TRIAL
    if health_at is not None:
        health = {"boot_id": bench.host.boot_id, "outcome": "PASS", "at": int(NOW) + health_at}
        bench.host.ledger.set(health=health)
    bench.host.backend().bless(Slot.B)
    bench.updater.clock = lambda: NOW + passed
    await bench.updater.settle()
    record = bench.host.ledger.read()
    assert record.verdict["verdict"] == "UPDATED"
    wanted = health_at if health_at is not None else passed if passed == 40 else None
    assert record.verdict.get("downtime_s") == wanted
    assert record.reboot == {}


async def test_a_restart_of_the_daemon_is_no_downtime(bench: Bench) -> None:
    await bench.do("update")
    await bench.updater.note_stop()
    bench.boot()
    await bench.updater.start()
    assert bench.host.ledger.read().reboot == {}
