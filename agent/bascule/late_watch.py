"""Watches a blessed release for as long as `reboot.late_window` says, and leaves it if it fails.

What is decided is durable before anything else happens (`updater.giveup`); the reboot is asked for
again until it comes. A host that has no other slot to boot is never rebooted: it says so instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from bascule.engine.unit_watch import UnitState, read_units
from bascule.errors import BasculeError, SlotNotBootable
from bascule.formats.slots import Slot
from bascule.updater.late import CrashLoops, excused_units, watched_until
from bascule.updater.status import Status
from bascule.wall import wall

if TYPE_CHECKING:
    from bascule.settings import Settings
    from bascule.updater.updater import Updater

RETRY = 60.0
"""Seconds after which a reboot that was refused is asked for again."""

QUIET = 3600.0
"""Seconds between looks where nothing is watched."""

Read = Callable[[Any, tuple[str, ...]], Awaitable[dict[str, UnitState]]]


class LateWatch:
    """For one daemon.

    Args:
        settings: the present ones.
        bus: the connected bus, or None.
        reboot: asks for the reboot, by lock and inhibitors. Raises NotRebootable.
        shout: tells whoever is logged in.
        read: asks systemd.
        clock: unix seconds.
    """

    def __init__(
        self,
        updater: Updater,
        *,
        settings: Callable[[], Settings],
        bus: Callable[[], Any],
        reboot: Callable[[str], Awaitable[None]],
        clock: Callable[[], float],
        shout: Callable[[str], Awaitable[None]] = wall,
        read: Read = read_units,
    ) -> None:
        self._updater = updater
        self._settings = settings
        self._bus = bus
        self._reboot = reboot
        self._shout = shout
        self._clock = clock
        self._read = read
        self._loops: tuple[str, CrashLoops] | None = None
        self._told = ""
        self._changed = asyncio.Event()
        updater.subscribe(self._on_status)
        updater.watched = self.watched

    def _on_status(self, old: Status, new: Status) -> None:
        if (old.verdict, old.sentence, old.state) != (new.verdict, new.sentence, new.state):
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            delay = await self.step()
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def until(self) -> int:
        """When the window over the running release ends, in unix seconds; 0 if there is none."""
        window = self._settings().reboot.late_window
        booted = next((s.name for s in self._updater.status.slots if s.booted), "")
        if window <= 0 or not booted:
            return 0
        record = await asyncio.to_thread(self._updater.ledger.read)
        return watched_until(record, Slot(booted), self._clock(), window)

    async def watched(self) -> bool:
        """Whether the running release is in its window."""
        return await self.until() > 0

    async def step(self) -> float:
        """One look; seconds until the next one is worth while."""
        try:
            giveup = self._updater.giveup
            if giveup is not None and giveup.reboot:
                return await self._leave(giveup.reason)
            return await self._look()
        except BasculeError as error:
            await self._complain(error)
            return RETRY

    async def _look(self) -> float:
        settings = self._settings()
        units, bus = settings.reboot.late_units, self._bus()
        until = await self.until()
        if not until or not units or bus is None:
            self._loops = None
            return QUIET if not until else min(QUIET, max(1.0, until - self._clock()))
        record = await asyncio.to_thread(self._updater.ledger.read)
        attempt = str(record.blessed.get("attempt"))
        if self._loops is None or self._loops[0] != attempt:
            loops = CrashLoops(settings.reboot.late_restarts, excused_units(record))
            self._loops = (attempt, loops)
        states: Mapping[str, UnitState] = await self._read(bus, units)
        reason = self._loops[1].look(states)
        if not reason or self._updater.busy:
            return max(0.1, settings.health.interval)
        self._loops = None
        await self._updater.leave_late(reason)
        return await self._leave(reason)

    async def _leave(self, reason: str) -> float:
        await self._reboot(f"the running release is given up: {reason}")
        return RETRY

    async def _complain(self, error: BasculeError) -> None:
        """Once for each trouble: what repeats every minute is read by nobody."""
        if str(error) == self._told:
            return
        self._told = str(error)
        self._updater.tell("late-trouble", error=error.as_dict())
        if isinstance(error, SlotNotBootable):
            await self._shout(
                f"The running release fails, but there is no other slot to go back to: {error}"
            )
