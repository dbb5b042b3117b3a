"""From a staged slot to the reboot: local gates first, then the lock, then the gates again.

The lock is taken last and kept shortest: it is given back when a gate closes while it is held, when
the update is taken back, when a reboot is refused, and when the new boot is settled. A process that
has just started does not know whether the one before it died with the lock in hand, so it gives back
what it may hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from bascule.engine.coordination.interface import (
    Grant,
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

LAST_WORD = 5.0
"""Seconds that giving the lock back may take when the daemon stops."""

_LOCKLESS = ("off", "reboot")


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
        on_trial: whether this boot is itself the trial of an update: its lock stays.
        notice: tells users before the reboot; awaited for as long as the warning lasts.
        tell: journal and history.
        show: shows which gates hold the reboot back.
        state: tells others on this host how far it is: running, reboot-planned, rebooting.

    Attributes:
        holds_lock: None where it is not known: at the start, while the server is asked, and after
            an answer that got lost.
        asked_at: when a reboot was asked for that is under way, unix seconds.
    """

    def __init__(
        self,
        *,
        facts: Callable[[LockView | None], Awaitable[Facts]],
        coordinator: Callable[[], RebootCoordinator],
        rebooter: Callable[[], Rebooter],
        due: Callable[[], bool],
        on_trial: Callable[[], bool] = lambda: False,
        notice: Notice,
        tell: Callable[..., None],
        show: Callable[[list[Gate]], None],
        state: Callable[[str], None] = lambda state: None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._facts = facts
        self._coordinator = coordinator
        self._rebooter = rebooter
        self._due = due
        self._on_trial = on_trial
        self._notice = notice
        self._tell = tell
        self._show = show
        self._state = state
        self._clock = clock
        self._sleep = sleep
        self._refusals = 0
        self._taken: RebootCoordinator | None = None
        self._trouble = ""
        self._releases = 0
        self._nudge = asyncio.Event()
        self.holds_lock: bool | None = None
        self.asked_at: float | None = None

    async def run(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. `changed` returns when the updater's state may have changed."""
        try:
            while True:
                self._nudge.clear()
                delay = await (self.step() if self._due() else self._rest())
                waiters = {
                    asyncio.ensure_future(changed()),
                    asyncio.ensure_future(self._nudge.wait()),
                }
                if delay is not None:
                    waiters.add(asyncio.ensure_future(self._sleep(delay)))
                try:
                    await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for waiter in waiters:
                        waiter.cancel()
                    await asyncio.gather(*waiters, return_exceptions=True)
        finally:
            # Nobody would give it back while the daemon is stopped or masked. Where a reboot is
            # under way the lock is its own.
            if self.holds_lock and self.asked_at is None:
                await self._last_word()

    async def _last_word(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORD):
                await self.give_back()
        except (BasculeError, TimeoutError):
            return

    async def _rest(self) -> float | None:
        """No reboot is due: let go. Seconds until it is worth while to try again, or None."""
        if self._on_trial():
            return None
        if self.asked_at is None:
            self._state("running")
        if self.asked_at is not None:
            left = self.asked_at + PATIENCE - self._clock()
            if left > 0:
                return left
        try:
            await self.give_back()
        except BasculeError as error:
            self._trouble_once(error)
            return LOOK_AGAIN
        if self.holds_lock is False:
            return None
        self._releases += 1
        return retry_delay(self._releases - 1)

    def _trouble_once(self, error: BasculeError) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            self._tell("reboot-trouble", error=error.as_dict())

    async def step(self) -> float:
        """One look; seconds until the next one is worth while."""
        try:
            delay = await self._step()
        except BasculeError as error:
            self._trouble_once(error)
            return LOOK_AGAIN
        self._trouble = ""
        return delay

    async def _step(self) -> float:
        closed = await self._closed()
        if closed:
            self._state("running")
            await self.give_back()
            at = opens(closed)
            wait = LOOK_AGAIN if at is None else max(1.0, at - self._clock())
            return min(wait, 3600.0)
        self._state("reboot-planned")
        coordinator = self._coordinator()
        try:
            answer = await self._acquire(coordinator)
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
        # Asking took time: a window may have closed, an inhibitor may have come.
        if await self._closed():
            await self.give_back()
            return LOOK_AGAIN
        await self._notice("This host reboots into its new release.")
        # So did the notice; and who read it may have taken the update back.
        if not self._due():
            await self.give_back()
            return 1.0
        if await self._closed():
            await self.give_back()
            return LOOK_AGAIN
        await self.now("the update's reboot is due")
        return PATIENCE

    async def _acquire(self, coordinator: RebootCoordinator) -> Grant | Refused:
        if self._taken is not None and self._taken.name != coordinator.name:
            await self.give_back()
        # Whoever is stopped here, or never gets the answer, may hold the lock all the same.
        self.holds_lock = None
        self._taken = coordinator
        answer = await coordinator.acquire()
        if not isinstance(answer, Refused):
            self.holds_lock = True
        elif not answer.unsure:
            self.holds_lock = False
        return answer

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
        self.asked_at = self._clock()
        self._state("rebooting")
        try:
            await self._rebooter().reboot(reason)
        except Exception:
            # Cancelled is not refused: the stop that cuts off the answer may be the reboot's own.
            self.asked_at = None
            raise

    async def by_hand(self, reason: str) -> None:
        """An operator's reboot: local gates do not matter, the lock and inhibitors do.

        Raises:
            NotRebootable: the lock is not to be had, or an inhibitor blocks.
        """
        try:
            coordinator = self._coordinator()
            try:
                if coordinator.name not in _LOCKLESS:
                    answer = await self._acquire(coordinator)
                    if isinstance(answer, Refused):
                        raise NotRebootable(answer.evidence)
            finally:
                await coordinator.close()
            facts = await self._facts(None)
            kept = blocking(evaluate(facts, self._clock()), Blocks.REBOOT, overriding=True)
            kept = [g for g in kept if g.name != "lock"]
            if kept:
                raise NotRebootable("; ".join(g.evidence for g in kept))
            await self.now(reason)
        except BaseException:
            # The loop gives the lock back, or goes on with it where a reboot is due anyway.
            self._nudge.set()
            raise

    async def give_back(self) -> None:
        """Release the lock unless it is known that this host does not hold it.

        Raises:
            SettingsError: the settings name no coordinator that can be asked.
        """
        if self.holds_lock is False:
            return
        # It was taken where the settings said so then; they may name another server by now.
        coordinator = self._taken or self._coordinator()
        if coordinator.name in _LOCKLESS:
            self.holds_lock, self._taken, self.asked_at = False, None, None
            return
        try:
            trouble = await coordinator.release()
        finally:
            await coordinator.close()
        if trouble:
            if trouble != self._trouble:
                self._tell("lock-not-released", why=trouble)
            self._trouble = trouble
            return
        if self.holds_lock:
            self._tell("lock-released")
        self.holds_lock = False
        self._taken = None
        self.asked_at = None
        self._trouble = ""
        self._releases = 0
