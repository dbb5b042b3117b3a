"""``bascule deadman``: a boot that is not confirmed in time, or found unhealthy, is given up.

Giving up is to write down why, run greenboot's ``red.d``, and reboot: the try is spent, so the
bootloader takes the old slot. A blessed slot is never rebooted from here, and a host without another
slot to boot stays up and says so.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bascule.assembly import Assembly
from bascule.engine.health import Outcome, red, run
from bascule.engine.ledger import Record
from bascule.errors import LedgerError, NotRebootable
from bascule.healthchecks import host_of, longest_asking
from bascule.trial import CLOCKS, Boot, Clocks, look, remember
from bascule.updater.health_verdict import Deadman, HealthVerdict, deadman, last_moment
from bascule.updater.intent import Intent
from bascule.wall import wall

LOOK_AGAIN = 60.0
"""Longest sleep, in seconds: slots and ledger are looked at anew after it."""

FORCES = (("systemctl", "--force", "reboot"), ("systemctl", "--force", "--force", "reboot"))
"""What is tried where logind cannot be asked; the last one asks nobody, not even systemd."""

_FORCE_TIMEOUT = 60.0


async def deadman_switch(
    options: argparse.Namespace, assembly: Assembly, clocks: Clocks = CLOCKS
) -> dict[str, Any]:
    """Wait until this boot is confirmed or due to be given up, and do that. Raises what `look` does."""
    settings = assembly.settings.health
    while True:
        boot = await asyncio.to_thread(look, assembly)
        judged = health_of(boot)
        order = deadman(
            on_trial=boot.unproven,
            fallback_bootable=boot.fallback,
            health=judged,
            uptime=clocks.uptime(assembly.root / "proc"),
            deadline=last_moment(
                deadline=settings.deadline,
                soak=settings.soak,
                timeout=longest_asking(settings),
                healthy=judged is not None and judged.outcome is Outcome.PASS,
            ),
        )
        if order.action is not Deadman.WAIT or options.once:
            break
        await clocks.sleep(min(order.seconds, LOOK_AGAIN))
    print(order.reason, file=sys.stderr)
    if order.action is Deadman.REBOOT:
        late = judged is None or judged.outcome is not Outcome.FAIL
        if not await asyncio.to_thread(_condemn, assembly, boot, order.reason, late):
            return {"action": Deadman.REST.value, "said": "The booted release is confirmed."}
        await _give_up(assembly, boot, order.reason, clocks)
    elif order.action is Deadman.STAY:
        await remember(assembly, "stays-up", boot, reason=order.reason)
        await _shout(order.reason)
    return {"action": order.action.value, "said": order.reason}


def health_of(boot: Boot) -> HealthVerdict | None:
    """What the health checks said of this very boot, as far as the ledger knows."""
    intent, told = boot.intent, boot.record.health
    if intent is not None and intent.failure and intent.trial_boot == boot.boot_id:
        return HealthVerdict(Outcome.FAIL, intent.failure)
    if told.get("boot_id") != boot.boot_id:
        return None
    outcome = Outcome.__members__.get(str(told.get("outcome")))
    return None if outcome is None else HealthVerdict(outcome, str(told.get("reason") or ""))


def _condemn(assembly: Assembly, boot: Boot, reason: str, late: bool) -> bool:
    """Write down why, unless the boot was confirmed at the last moment: False then.

    Under the ledger's lock, as the blessing is, so that only one of the two happens.
    """
    confirmed = False

    def change(record: Record) -> Record:
        nonlocal confirmed
        confirmed = boot.backend.flags()[boot.backend.booted].successful
        intent = Intent.from_dict(record.intent)
        if confirmed or intent is None or boot.intent is None:
            return record
        if intent.attempt != boot.intent.attempt:
            return record
        why = intent.failure if intent.trial_boot == boot.boot_id else ""
        why = why or ("it was not confirmed in time" if late else reason)
        failed = dataclasses.replace(intent, failure=why, trial_boot=boot.boot_id)
        return dataclasses.replace(record, intent=failed.as_dict())

    try:
        assembly.ledger().update(change)
    except LedgerError as error:
        # It is given up all the same; the verdict is then made from the spent try alone.
        print(f"bascule: {error}", file=sys.stderr)
    return not confirmed


async def _give_up(assembly: Assembly, boot: Boot, reason: str, clocks: Clocks) -> None:
    await remember(assembly, "given-up", boot, reason=reason)
    settings = assembly.settings.health
    if settings.greenboot:
        actions = red(Path(settings.root)).checks
        await run(
            actions, host=host_of(settings), clock=clocks.monotonic, limit=settings.timeout * 2
        )
    try:
        await assembly.rebooter().reboot(reason)
    except NotRebootable as error:
        if assembly.settings.reboot.via != "logind":
            print(error, file=sys.stderr)
            return
        # A host that is given up and cannot be asked to reboot is rebooted without being asked.
        print(f"{error}; forcing it", file=sys.stderr)
        await asyncio.to_thread(_force)


def _force() -> None:
    for words in FORCES:
        try:
            if subprocess.run(words, check=False, timeout=_FORCE_TIMEOUT).returncode == 0:
                return
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{' '.join(words)}: {error}", file=sys.stderr)


async def _shout(reason: str) -> None:
    """To the journal as an emergency, which journald shows on every terminal, and by wall."""
    if "JOURNAL_STREAM" in os.environ:
        print(f"<0>Bascule: {reason}", file=sys.stderr)
    await wall(reason)
