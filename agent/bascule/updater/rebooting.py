"""From a staged slot to the reboot: local gates first, then the lock, then the gates again.

The lock is taken last and kept shortest: it is given back when a gate closes while it is held, when
the update is taken back, and when the new boot is settled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from bascule.engine.coordination.interface import (
    LockView,
    RebootCoordinator,
    Refused,
    retry_delay,
)
from bascule.engine.reboot import Rebooter
from bascule.errors import BasculeError, NotRebootable
from bascule.updater.gates import Blocks, Facts, Gate, blocking, evaluate, opens

LOOK_AGAIN = 60.0
"""Seconds between looks at gates that do not say when they open."""

PATIENCE = 600.0
"""Seconds after which a reboot that was granted and did not come is asked for again."""


class Notice(Protocol):
    """Tells logged-in users."""

    async def __call__(self, sentence: str) -> None: ...


class Rebooting:
    """Waits until this host may reboot, and asks for it.

    Args:
        facts: gathers facts; the lock's view is passed in where it was looked at.
        coordinator: the strategy's coordinator, built anew from the settings.
        rebooter: how the host is rebooted.
        due: whether a staged slot waits for its reboot and policy wants it now.
        notice: tells users before the reboot; awaited for as long as the warning lasts.
        tell: journal and history.
        show: shows which gates hold the reboot back.
    """

    def __init__(
        self,
        *,
        facts: Callable[[LockView | None], Awaitable[Facts]],
        coordinator: Callable[[], RebootCoordinator],
        rebooter: Callable[[], Rebooter],
        due: Callable[[], bool],
        notice: Notice,
        tell: Callable[..., None],
        show: Callable[[list[Gate]], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._facts = facts
        self._coordinator = coordinator
        self._rebooter = rebooter
        self._due = due
        self._notice = notice
        self._tell = tell
        self._show = show
        self._clock = clock
        self._sleep = sleep
        self._refusals = 0
        self.holds_lock = False

    async def run(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. `changed` returns when the updater's state may have changed."""
        while True:
            if not self._due():
                await self.give_back()
                await changed()
                continue
            delay = await self.step()
            waiters = {asyncio.ensure_future(changed()), asyncio.ensure_future(self._sleep(delay))}
            try:
                await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiter in waiters:
                    waiter.cancel()
                await asyncio.gather(*waiters, return_exceptions=True)

    async def step(self) -> float:
        """One look; seconds until the next one is worth while."""
        try:
            return await self._step()
        except BasculeError as error:
            self._tell("reboot-trouble", error=error.as_dict())
            return LOOK_AGAIN

    async def _step(self) -> float:
        closed = await self._closed()
        if closed:
            await self.give_back()
            at = opens(closed)
            wait = LOOK_AGAIN if at is None else max(1.0, at - self._clock())
            return min(wait, 3600.0)
        coordinator = self._coordinator()
        try:
            answer = await coordinator.acquire()
            if isinstance(answer, Refused):
                facts = await self._facts(await coordinator.view())
                self._show(blocking(evaluate(facts, self._clock()), Blocks.REBOOT))
                self._refusals += 1
                if self._refusals == 1:
                    self._tell("reboot-refused", evidence=answer.evidence)
                return PATIENCE if answer.final else retry_delay(self._refusals - 1)
        finally:
            await coordinator.close()
        self._refusals = 0
        self.holds_lock = True
        # Asking took time: a window may have closed, an inhibitor may have come.
        if await self._closed():
            await self.give_back()
            return LOOK_AGAIN
        await self._notice("This host reboots into its new release.")
        if not self._due():
            await self.give_back()
            return 1.0
        await self.now("the update's reboot is due")
        return PATIENCE

    async def _closed(self) -> list[Gate]:
        facts = await self._facts(None)
        closed = [
            g for g in blocking(evaluate(facts, self._clock()), Blocks.REBOOT) if g.name != "lock"
        ]
        self._show(closed)
        return closed

    async def now(self, reason: str) -> None:
        """Reboot, all gates aside. Raises NotRebootable."""
        self._tell("reboot", reason=reason)
        await self._rebooter().reboot(reason)

    async def by_hand(self, reason: str) -> None:
        """An operator's reboot: local gates do not matter, the lock and inhibitors do.

        Raises:
            NotRebootable: the lock is not to be had, or an inhibitor blocks.
        """
        coordinator = self._coordinator()
        try:
            if coordinator.name not in ("off", "reboot"):
                answer = await coordinator.acquire()
                if isinstance(answer, Refused):
                    raise NotRebootable(answer.evidence)
                self.holds_lock = True
        finally:
            await coordinator.close()
        facts = await self._facts(None)
        kept = blocking(evaluate(facts, self._clock()), Blocks.REBOOT, overriding=True)
        kept = [g for g in kept if g.name != "lock"]
        if kept:
            await self.give_back()
            raise NotRebootable("; ".join(g.evidence for g in kept))
        await self.now(reason)

    async def give_back(self) -> None:
        """Release the lock if this process holds it."""
        if not self.holds_lock:
            return
        coordinator = self._coordinator()
        try:
            trouble = await coordinator.release()
        finally:
            await coordinator.close()
        if trouble:
            self._tell("lock-not-released", why=trouble)
        else:
            self.holds_lock = False

    async def settle(self) -> None:
        """After a boot that is decided: give back a lock that the last boot took."""
        coordinator = self._coordinator()
        try:
            if coordinator.name in ("off", "reboot"):
                return
            trouble = await coordinator.release()
        finally:
            await coordinator.close()
        if trouble:
            self._tell("lock-not-released", why=trouble)
