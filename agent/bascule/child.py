"""Errands as child processes: a job in, JSON lines out, and an end whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

from bascule.errors import ErrandCrashed

LINE_LIMIT = 1 << 20
GRACE = 30.0
"""Seconds that a stopped errand gets to reach its next safe point before it is killed."""

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_ARENA_MAX": "1",
}
"""Without the thresholds glibc gives every 64–256 KiB buffer back to the kernel: 2–3 times the CPU
of a download (reference python.md 3). With an arena for each thread, what one thread frees another
cannot use: 8 MiB more, for no gain in speed, as all but the smallest pieces are few and large
(decisions/0008). In the errand only: its memory goes back when it ends."""


class ChildErrand:
    """One running errand. Implements `errands.Errand`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._killer: asyncio.TimerHandle | None = None

    @classmethod
    async def launch(cls, job: Mapping[str, Any]) -> ChildErrand:
        """Start the child and hand it its job."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bascule",
            "errand",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **ALLOCATOR},
            limit=LINE_LIMIT,
        )
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            await process.stdin.drain()
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def stop(self) -> None:
        """End of input asks it to stop; it is killed if it does not within `GRACE`."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._killer is None:
            self._killer = asyncio.get_running_loop().call_later(GRACE, self._kill)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        assert self._process.stdout is not None
        ended = whole = False
        try:
            while line := await self._line():
                message = json.loads(line)
                if isinstance(message, dict):
                    ended = ended or message.get("say") == "end"
                    yield message
            whole = True
        except ValueError:
            raise ErrandCrashed("it said something that is not a line of JSON") from None
        finally:
            if not whole:
                # It talks nonsense or nobody listens any more: it must not go on writing.
                self._kill()
            code = await self._process.wait()
            if self._killer is not None:
                self._killer.cancel()
            if self._process.stdin is not None:
                self._process.stdin.close()
        if not ended:
            raise ErrandCrashed(f"by signal {-code}" if code < 0 else f"with exit code {code}")

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()
