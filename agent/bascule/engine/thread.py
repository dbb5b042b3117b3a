"""Blocking work beside the event loop that never outlives what it works on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def finished(future: asyncio.Future[T], stop: threading.Event | None = None) -> T:
    """Wait for `future` to its end even if cancelled, and only then pass the cancellation on.

    A thread cannot be cancelled; left alone, it would go on using devices that its owner closes.

    Args:
        stop: set on cancellation, for work that looks at it.
    """
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
            if stop is not None:
                stop.set()
    if cancelled:
        future.exception()
        raise asyncio.CancelledError
    return future.result()


async def in_thread(work: Callable[[], T], stop: threading.Event | None = None) -> T:
    """Run `work` in a thread of the loop's pool; see `finished`."""
    return await finished(asyncio.get_running_loop().run_in_executor(None, work), stop)
