"""When the next check is due, and who starts it. The arithmetic is in `policy`; this only waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Scheduler:
    """Calls `tick` again and again.

    Args:
        first: seconds until the first tick.
        tick: does what is due and returns the seconds until the next tick.
        due: called with the wall-clock time of the next tick whenever it is known anew.
        clock: wall clock, unix seconds.
        sleep: waits; asyncio.sleep except in tests.
    """

    def __init__(
        self,
        *,
        first: float,
        tick: Callable[[], Awaitable[float]],
        due: Callable[[int], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._first = first
        self._tick = tick
        self._due = due
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Until cancelled."""
        delay = self._first
        while True:
            self._due(int(self._clock() + delay))
            await self._sleep(delay)
            delay = await self._tick()
