"""A sentence to whoever is logged in, by wall(1)."""

from __future__ import annotations

import asyncio
import contextlib

TIMEOUT = 10.0
"""Seconds; a terminal that takes no more must not hold up a reboot."""


async def wall(sentence: str) -> None:
    """Tell every terminal. A host without ``wall`` has told its journal; nothing is raised."""
    try:
        process = await asyncio.create_subprocess_exec("wall", f"Bascule: {sentence}")
    except OSError:
        return
    try:
        async with asyncio.timeout(TIMEOUT):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


__all__ = ["TIMEOUT", "wall"]
