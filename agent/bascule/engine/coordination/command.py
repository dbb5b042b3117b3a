"""``command``: an executable of the operator's decides.

It is run as ``argv… acquire``, ``argv… release`` and ``argv… view``. Exit code 0 means yes (for
``view``: this host holds the lock), 75 (EX_TEMPFAIL) not now, 69 (EX_UNAVAILABLE) that nobody could
be asked; any other is taken as a refusal. The first line of its output is shown to the operator.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence

from bascule.engine.coordination.interface import Grant, LockView, Refused, clean

_UNAVAILABLE, _NOT_NOW = 69, 75
_MAX = 4096


class Command:
    """One executable.

    Args:
        argv: executable and arguments; run without a shell.
        timeout: seconds after which it is killed with all its children.
    """

    name = "command"

    def __init__(
        self, argv: Sequence[str], machine_id: str, *, group: str = "", timeout: float = 60.0
    ) -> None:
        self._argv = tuple(argv)
        self._timeout = timeout
        self._environment = {"BASCULE_MACHINE_ID": machine_id, "BASCULE_GROUP": group}

    async def acquire(self) -> Grant | Refused:
        """0 is yes."""
        code, line = await self._run("acquire")
        if code == 0:
            return Grant(self.name, line)
        if code == _NOT_NOW:
            return Refused(self.name, line or "The reboot command says: not now.")
        # One that was killed, or died, may have taken a lock before.
        unsure = code is None or code < 0
        return Refused(
            self.name,
            f"The reboot command failed ({code_words(code)}): {line or '-'}",
            unsure=unsure,
        )

    async def release(self) -> str:
        """0 is done."""
        code, line = await self._run("release")
        return "" if code == 0 else f"the reboot command failed ({code_words(code)}): {line or '-'}"

    async def view(self) -> LockView:
        """0 is held; 75 is not held; else trouble."""
        code, line = await self._run("view")
        trouble = "" if code in (0, _NOT_NOW) else f"{line or '-'} ({code_words(code)})"
        return LockView(self.name, held=code == 0, trouble=trouble)

    async def close(self) -> None:
        """Nothing to give back."""

    async def _run(self, verb: str) -> tuple[int | None, str]:
        """(exit code, first line of output); None where it could not be run or was killed."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                verb,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return None, clean(error)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._timeout):
                output = b""
                while piece := await process.stdout.read(_MAX):
                    output = (output + piece)[:_MAX]
                code = await process.wait()
        except (TimeoutError, asyncio.CancelledError) as stopped:
            # What it started goes with it: its process group is its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if isinstance(stopped, asyncio.CancelledError):
                raise
            return None, f"it did not end within {self._timeout:g} s"
        lines = output.decode("utf-8", "replace").strip().splitlines()
        return code, clean(lines[0]) if lines else ""


def code_words(code: int | None) -> str:
    """An exit code for a sentence."""
    if code is None:
        return "no exit code"
    if code == _UNAVAILABLE:
        return "nobody could be asked"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
