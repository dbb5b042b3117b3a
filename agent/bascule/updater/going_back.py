"""The ways back to the other slot: by hand, for one boot, and for a release that fails late."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from bascule.engine.ledger import Record
from bascule.errors import BootedSlotNotBlessed, Busy, SlotNotBootable
from bascule.formats.slots import words
from bascule.updater.giveup import GiveUp, given_up, settle_giveup, taken_back
from bascule.updater.once import Detour, Once, begin_once, end_once
from bascule.updater.status import State
from bascule.updater.steering import Actor
from bascule.updater.verdict import Verdict

if TYPE_CHECKING:
    from bascule.updater.updater import Updater


class GoingBack:
    """For one `Updater`."""

    def __init__(self, updater: Updater) -> None:
        self._updater = updater

    # ── for good ─────────────────────────────────────────────────────────────────────────────

    async def for_good(self, actor: Actor, *, quarantined: bool, watched: bool = False) -> str:
        """`updatectl rollback`. Raises SlotNotBootable.

        Args:
            quarantined: the release that is left must not come again.
            watched: within the late-regression window; the server is told of a rollback.
        """
        updater = self._updater
        version, slot = await asyncio.to_thread(
            self._give_up, "operator", "rolled back by the operator", quarantined, watched, False
        )
        updater.tell(
            "rollback", actor=dataclasses.asdict(actor), version=version, slot=slot, once=False
        )
        await updater.settle()
        return f"{version} (slot {slot}) starts at the next boot and after; reboot when it suits."

    async def late(self, reason: str) -> None:
        """The running release failed after its blessing. Raises SlotNotBootable, StorageError."""
        updater = self._updater
        await asyncio.to_thread(self._give_up, "late", reason, True, True, True)
        await updater.settle()

    def _give_up(
        self, by: str, reason: str, quarantined: bool, tell_server: bool, reboot: bool
    ) -> tuple[str, str]:
        updater = self._updater
        backend = updater.boot()
        booted, other = backend.booted, backend.booted.other
        flags = backend.flags().get(other)
        if flags is None or not flags.bootable:
            told = words(flags) if flags else "not there"
            raise SlotNotBootable(f"slot {other.name} is {told}", slot=other.name)
        if by == "late" and not flags.successful:
            raise SlotNotBootable(f"slot {other.name} is {words(flags)}", slot=other.name)
        giveup = GiveUp(booted, by, reason, int(updater.clock()), reboot)
        running = updater.status.current_version

        def change(record: Record) -> Record:
            return given_up(
                record,
                giveup,
                running=running,
                quarantined=quarantined,
                tell_server=tell_server,
            )

        before = updater.ledger.read()
        once = Once.from_dict(before.once)
        if once is not None and once.target is other:
            end_once(backend, updater.ledger, once)
        record = updater.ledger.update(change)
        settle_giveup(backend, updater.ledger, record)
        return record.releases.get(other.name, "") or f"slot {other.name}", other.name

    # ── once ─────────────────────────────────────────────────────────────────────────────────

    async def once(self, actor: Actor) -> str:
        """`updatectl rollback --once`. Raises SlotNotBootable, BootedSlotNotBlessed, Busy."""
        updater = self._updater
        if updater.verdict is Verdict.ON_TRIAL:
            raise BootedSlotNotBlessed(updater.status.sentence)
        await self.require_no_detour()

        def work() -> Once:
            backend = updater.boot()
            record = updater.ledger.read()
            booted = backend.booted
            once = Once(
                target=booted.other,
                origin=booted,
                boot_id=updater.boot_id,
                at=int(updater.clock()),
                version=record.releases.get(booted.other.name, ""),
                origin_version=updater.status.current_version,
            )
            flags = backend.flags()
            for slot in (once.target, once.origin):
                # Asked here too: nothing is recorded of what is refused anyway.
                if slot not in flags or not (flags[slot].bootable and flags[slot].successful):
                    told = words(flags[slot]) if slot in flags else "not there"
                    raise SlotNotBootable(f"slot {slot.name} is {told}", slot=slot.name)
            begin_once(backend, updater.ledger, once)
            return once

        once = await asyncio.to_thread(work)
        updater.tell(
            "rollback",
            actor=dataclasses.asdict(actor),
            version=once.version or f"slot {once.target.name}",
            slot=once.target.name,
            once=True,
        )
        await updater.settle()
        return once.sentence(Detour.WAITING)

    async def require_no_detour(self) -> None:
        """Raises Busy while the other slot is the one to go to, or to go back to."""
        if self._updater.giveup is not None:
            raise Busy(self._updater.status.sentence)
        if self._updater.detour is not None:
            once, detour = self._updater.detour
            raise Busy(once.sentence(detour))

    async def cancel(self) -> str:
        """Take a boot for one time, or a rollback by hand, back; "" if there is none."""
        updater = self._updater
        giveup = updater.giveup
        if giveup is not None and giveup.by == "operator":
            # Flags first: what is not recorded is not made up for.
            await asyncio.to_thread(lambda: updater.boot().prefer(giveup.slot))
            await asyncio.to_thread(updater.ledger.update, lambda r: taken_back(r, giveup))
            await updater.settle()
            return "The rollback was taken back; the running release stays."
        if updater.detour is None or updater.status.state is not State.IDLE:
            return ""
        once, detour = updater.detour

        await asyncio.to_thread(lambda: end_once(updater.boot(), updater.ledger, once))
        await updater.settle()
        if detour is Detour.WAITING:
            return f"Slot {once.target.name} does not boot; the running release stays."
        return (
            f"Slot {once.target.name} may be updated from now; "
            f"the next boot is still slot {once.origin.name}."
        )
