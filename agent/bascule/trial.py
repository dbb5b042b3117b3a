"""What one boot is to us: which slot, by which attempt, proven or not yet; and the clocks it is judged by."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bascule.assembly import Assembly
from bascule.engine.boot import BootBackend
from bascule.engine.ledger import Record
from bascule.errors import BasculeError
from bascule.updater.intent import Intent
from bascule.updater.verdict import Verdict
from bascule.updater.verdict import judge as judge_update


def uptime(proc: Path = Path("/proc")) -> float:
    """Seconds since this boot began."""
    try:
        return float((proc / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Clocks:
    """How time passes; a test gives its own.

    Attributes:
        monotonic: seconds.
        sleep: waits so many of them.
        uptime: seconds since the boot began, from the folder that plays /proc.
        wall: unix seconds.
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uptime: Callable[[Path], float] = uptime
    wall: Callable[[], float] = time.time


CLOCKS = Clocks()


@dataclass(frozen=True, slots=True)
class Boot:
    """What one boot is: which slot, on trial or not, and by which intent.

    Attributes:
        verdict: the update's fate as of now.
        good: the running slot is blessed.
        fallback: the bootloader would start the other slot if this one were given up.
    """

    backend: BootBackend
    record: Record
    intent: Intent | None
    verdict: Verdict
    boot_id: str
    good: bool
    fallback: bool

    @property
    def on_trial(self) -> bool:
        """Whether this very boot is the trial of the ledger's intent."""
        return self.verdict is Verdict.ON_TRIAL

    @property
    def unproven(self) -> bool:
        """Whether nobody has blessed the running slot, which is therefore given up if it ails.

        The table decides, not the ledger, which may be lost. A boot of the other slot for once is
        unblessed too, and is none of that.
        """
        return not self.good and self.verdict is not Verdict.WAITING and not self.record.once


def look(assembly: Assembly) -> Boot:
    """Read slots and ledger. Blocks. Raises what they raise."""
    backend = assembly.boot()
    flags = backend.flags()
    record = assembly.ledger().read()
    intent = Intent.from_dict(record.intent)
    boot_id = assembly.host.boot_id
    other = flags.get(backend.booted.other)
    return Boot(
        backend,
        record,
        intent,
        judge_update(intent, backend.booted, flags, boot_id),
        boot_id,
        flags[backend.booted].successful,
        other is not None and other.bootable,
    )


async def remember(assembly: Assembly, kind: str, boot: Boot, **facts: Any) -> None:
    """Into history, where it can be; a full disk must not cost a host its healthy boot."""
    attempt = boot.intent.attempt if boot.intent else ""
    try:
        await asyncio.to_thread(assembly.history().append, kind, attempt=attempt, facts=facts)
    except BasculeError as error:
        print(f"bascule: {error}", file=sys.stderr)
