"""The moments of a boot that belong to us: ``bascule health``, ``bless`` and ``deadman``.

Each is a process of its own that systemd starts, and none needs the daemon: a masked daemon must
not cost a host its healthy boot. What they find is made durable in the ledger before they act on it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bascule.assembly import LOG_STYLES, Assembly
from bascule.engine.boot import BootBackend
from bascule.engine.health import Baseline, CheckResult, Outcome, green, red, run
from bascule.engine.ledger import Ledger, Record
from bascule.errors import BasculeError, BlessRefused, Exit, NotRebootable, Unhealthy
from bascule.faces.journal import configure_logging
from bascule.healthchecks import checks_of, host_of
from bascule.settings import load
from bascule.updater.health_verdict import Deadman, HealthVerdict, deadman, judge
from bascule.updater.intent import Intent, Phase
from bascule.updater.settle import settle
from bascule.updater.verdict import Verdict
from bascule.updater.verdict import judge as judge_update

OUTPUT_KEPT = 2000
"""Characters of each check's output that ledger and history keep."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What one boot is: which slot, on trial or not, and by which intent.

    Attributes:
        verdict: the update's fate as of now.
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


# ── health ───────────────────────────────────────────────────────────────────────────────────


async def ask_health(
    assembly: Assembly, baseline: Baseline | None, deadline: float, clock: Callable[[], float]
) -> tuple[HealthVerdict, list[CheckResult]]:
    """Ask until it is decided, `deadline` (on `clock`) at the latest."""
    health = assembly.settings.health
    checks = checks_of(health)
    becomes = Outcome.PASS if health.inconclusive == "pass" else Outcome.FAIL
    while True:
        results = await run(
            checks, host=host_of(health), clock=clock, limit=max(1.0, deadline - clock())
        )
        verdict = judge(
            results,
            expected=[c.name for c in checks if c.required],
            baseline=baseline,
            now=clock(),
            deadline=deadline,
            inconclusive_becomes=becomes,
        )
        if verdict.outcome is not Outcome.INCONCLUSIVE:
            return verdict, results
        await asyncio.sleep(min(health.interval, max(0.1, deadline - clock())))


def uptime(proc: Path = Path("/proc")) -> float:
    """Seconds since this boot began."""
    try:
        return float((proc / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.monotonic()


def remember_health(
    ledger: Ledger, boot: Boot, verdict: HealthVerdict, results: list[CheckResult], now: int
) -> None:
    """Tie a verdict to attempt, slot and boot, durably, before anything acts on it."""

    def change(record: Record) -> Record:
        intent = Intent.from_dict(record.intent)
        if intent is not None and boot.on_trial and boot.intent is not None:
            if intent.attempt != boot.intent.attempt:
                return record
            failure = verdict.reason if verdict.outcome is Outcome.FAIL else ""
            intent = dataclasses.replace(intent, trial_boot=boot.boot_id, failure=failure)
            record = dataclasses.replace(record, intent=intent.as_dict())
        told = {
            "boot_id": boot.boot_id,
            "outcome": verdict.outcome.name,
            "report": list(verdict.report()),
            "at": now,
            "checks": [
                {
                    "name": r.name,
                    "required": r.required,
                    "outcome": r.outcome.name,
                    "reason": r.reason,
                    "output": r.output[-OUTPUT_KEPT:],
                    "attempts": r.attempts,
                    "seconds": round(r.seconds, 3),
                }
                for r in results
            ],
        }
        return dataclasses.replace(record, health=told)

    ledger.update(change)


async def health(options: argparse.Namespace, assembly: Assembly) -> dict[str, Any]:
    """``bascule health``. Raises Unhealthy."""
    boot = await asyncio.to_thread(look, assembly)
    settings = assembly.settings.health
    baseline = Baseline.from_dict(boot.record.baseline) if boot.on_trial else None
    left = max(1.0, settings.deadline - uptime(assembly.root / "proc"))
    verdict, results = await ask_health(assembly, baseline, time.monotonic() + left, time.monotonic)
    await asyncio.to_thread(
        remember_health, assembly.ledger(), boot, verdict, results, int(time.time())
    )
    await _record(
        assembly,
        "health",
        boot,
        outcome=verdict.outcome.name,
        report=list(verdict.report()),
        checks=[
            {"name": r.name, "outcome": r.outcome.name, "output": r.output[-OUTPUT_KEPT:]}
            for r in results
        ],
    )
    for sentence in verdict.report():
        print(sentence, file=sys.stderr)
    if verdict.outcome is Outcome.FAIL:
        raise Unhealthy(verdict.reason, report=list(verdict.report()))
    if settings.greenboot:
        actions = green(Path(settings.root)).checks
        await run(actions, host=host_of(settings), clock=time.monotonic, limit=settings.timeout * 2)
    return {"outcome": verdict.outcome.name, "report": list(verdict.report())}


async def _record(assembly: Assembly, kind: str, boot: Boot, **facts: Any) -> None:
    """Into history, where it can be; a full disk must not cost a host its healthy boot."""
    attempt = boot.intent.attempt if boot.intent else ""
    try:
        await asyncio.to_thread(assembly.history().append, kind, attempt=attempt, facts=facts)
    except BasculeError as error:
        print(f"bascule: {error}", file=sys.stderr)


# ── blessing ─────────────────────────────────────────────────────────────────────────────────


async def bless(options: argparse.Namespace, assembly: Assembly) -> dict[str, Any]:
    """``bascule bless``. Raises BlessRefused, Unhealthy."""
    boot = await asyncio.to_thread(look, assembly)
    slot = boot.backend.booted
    if boot.verdict is Verdict.WAITING:
        return {"said": "Another slot is staged; the running one stays as it is.", "blessed": False}
    if boot.good and not boot.on_trial and boot.verdict is not Verdict.UPDATED:
        await _let_go(assembly)
        return {"said": f"Slot {slot.name} is already good.", "blessed": False}
    intent = boot.intent
    if boot.on_trial and intent is not None:
        if intent.trial_boot == boot.boot_id and intent.failure:
            raise BlessRefused(f"this boot was judged: {intent.failure}")
        soak = 0.0 if options.now else assembly.settings.health.soak
        if soak > 0:
            await _soak(assembly, boot, soak)
    await asyncio.to_thread(_bless, assembly, boot)
    await _record(assembly, "blessed", boot, slot=slot.name)
    await _let_go(assembly)
    version = intent.version if intent is not None and boot.on_trial else assembly.host.version
    return {"said": f"Slot {slot.name} ({version}) is confirmed and stays.", "blessed": True}


async def _soak(assembly: Assembly, boot: Boot, soak: float) -> None:
    settings = assembly.settings.health
    end = time.monotonic() + soak
    baseline = Baseline.from_dict(boot.record.baseline)
    print(
        f"Soaking for {soak:g} s before slot {boot.backend.booted.name} is confirmed.",
        file=sys.stderr,
    )
    while True:
        left = end - time.monotonic()
        await asyncio.sleep(min(max(0.0, left), settings.interval))
        verdict, results = await ask_health(
            assembly, baseline, max(end, time.monotonic() + settings.timeout), time.monotonic
        )
        if verdict.outcome is Outcome.FAIL:
            await asyncio.to_thread(
                remember_health, assembly.ledger(), boot, verdict, results, int(time.time())
            )
            raise Unhealthy(f"while soaking: {verdict.reason}", report=list(verdict.report()))
        if left <= 0:
            return


def _bless(assembly: Assembly, boot: Boot) -> None:
    fresh = look(assembly)
    same = (fresh.intent.attempt if fresh.intent else None) == (
        boot.intent.attempt if boot.intent else None
    )
    if not same or fresh.backend.booted is not boot.backend.booted:
        raise BlessRefused("slots or ledger have changed meanwhile")
    slot = fresh.backend.booted
    # Flags first: a good slot that the ledger calls on trial is found good at the next look; the
    # reverse would be a release that the ledger calls good and the bootloader leaves.
    fresh.backend.bless(slot)
    now = int(time.time())
    told = {
        "slot": slot.name,
        "boot_id": fresh.boot_id,
        "at": now,
        "attempt": fresh.intent.attempt if fresh.intent else "",
    }

    def change(record: Record) -> Record:
        record = dataclasses.replace(record, blessed=told)
        intent = Intent.from_dict(record.intent)
        if intent is None or intent.target is not slot or intent.phase is Phase.WRITING:
            return record
        return settle(record, Verdict.UPDATED, now)

    assembly.ledger().update(change)


async def _let_go(assembly: Assembly) -> None:
    """This boot is decided: the daemon gives the reboot lock back, or we do where there is none."""
    if await _tell_daemon(assembly):
        return
    from bascule.reboot_lock import let_go

    if trouble := await let_go(assembly):
        print(f"bascule: the reboot lock is not released: {trouble}", file=sys.stderr)


async def _tell_daemon(assembly: Assembly) -> bool:
    """The daemon looks by itself within a minute; this spares the wait. Whether it has heard."""
    from bascule.faces.bus import INTERFACE, NAME, PATH
    from bascule.faces.bus_connection import BusConnection

    connection = BusConnection(assembly.settings.bus.address or None)
    try:
        async with asyncio.timeout(5):
            await connection.connect()
            await connection.call(NAME, PATH, INTERFACE, "Act", "sa{sv}", ["settle", {}])
        return True
    except Exception:
        return False
    finally:
        connection.close()


# ── deadman ──────────────────────────────────────────────────────────────────────────────────


async def deadman_switch(options: argparse.Namespace, assembly: Assembly) -> dict[str, Any]:
    """``bascule deadman``: give a boot on trial up when it failed or took too long."""
    deadline = assembly.settings.health.deadline + assembly.settings.health.soak
    while True:
        boot = await asyncio.to_thread(look, assembly)
        intent = boot.intent
        failed = (
            HealthVerdict(Outcome.FAIL, intent.failure)
            if intent is not None and intent.failure and intent.trial_boot == boot.boot_id
            else None
        )
        order = deadman(
            on_trial=boot.on_trial,
            fallback_bootable=boot.fallback,
            health=failed,
            uptime=uptime(assembly.root / "proc"),
            deadline=deadline,
        )
        if order.action is not Deadman.WAIT or options.once:
            break
        await asyncio.sleep(min(order.seconds, 60.0))
    print(order.reason, file=sys.stderr)
    if order.action is Deadman.REBOOT:
        await _give_up(assembly, boot, order.reason, failed is None)
    elif order.action is Deadman.STAY:
        _shout(order.reason)
    return {"action": order.action.value, "said": order.reason}


async def _give_up(assembly: Assembly, boot: Boot, reason: str, timed_out: bool) -> None:
    def change(record: Record) -> Record:
        intent = Intent.from_dict(record.intent)
        if intent is None or boot.intent is None or intent.attempt != boot.intent.attempt:
            return record
        why = intent.failure or ("its health was not decided in time" if timed_out else reason)
        return dataclasses.replace(
            record,
            intent=dataclasses.replace(intent, failure=why, trial_boot=boot.boot_id).as_dict(),
        )

    await asyncio.to_thread(assembly.ledger().update, change)
    await _record(assembly, "given-up", boot, reason=reason)
    settings = assembly.settings.health
    if settings.greenboot:
        actions = red(Path(settings.root)).checks
        await run(actions, host=host_of(settings), clock=time.monotonic, limit=settings.timeout * 2)
    try:
        await assembly.rebooter().reboot(reason)
    except NotRebootable as error:
        # A host that is given up and cannot be asked to reboot is rebooted without being asked.
        print(f"{error}; forcing it", file=sys.stderr)
        if assembly.settings.reboot.via == "logind":
            await asyncio.to_thread(
                subprocess.run, ["systemctl", "--force", "reboot"], check=False, timeout=60
            )


def _shout(reason: str) -> None:
    try:
        subprocess.run(["wall", f"Bascule: {reason}"], check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return


# ── command line ─────────────────────────────────────────────────────────────────────────────

Moment = Callable[[argparse.Namespace, Assembly], Coroutine[Any, Any, Mapping[str, Any]]]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``health``, ``bless`` and ``deadman``."""
    from bascule.__main__ import settings_arguments

    moments: dict[str, tuple[str, Moment]] = {
        "health": ("ask the health checks of this boot (started by systemd)", health),
        "bless": (
            "confirm the running slot (started by systemd after boot-complete.target)",
            bless,
        ),
        "deadman": (
            "reboot a boot on trial that failed or took too long (started by systemd)",
            deadman_switch,
        ),
    }
    for name, (sentence, moment) in moments.items():
        command = commands.add_parser(name, help=sentence, description=sentence)
        settings_arguments(command)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        if name == "bless":
            command.add_argument("--now", action="store_true", help="do not wait for the soak time")
        if name == "deadman":
            command.add_argument("--once", action="store_true", help="do not wait for the deadline")
        command.set_defaults(run=_runner(moment))


def _runner(moment: Moment) -> Callable[[argparse.Namespace], int]:
    def run_moment(options: argparse.Namespace) -> int:
        try:
            settings = load(options.root, options.config)
            configure_logging(level=settings.log.level, style=LOG_STYLES[settings.log.format])
            result = asyncio.run(moment(options, Assembly(settings)))
        except BasculeError as error:
            if options.json:
                print(json.dumps({"schema": 1, "ok": False, "error": error.as_dict()}))
            print(f"bascule: {error}", file=sys.stderr)
            print(f"  {error.remedy}", file=sys.stderr)
            return int(error.exit)
        if options.json:
            print(json.dumps({"schema": 1, "ok": True, **result}))
        elif result.get("said"):
            print(result["said"])
        return int(Exit.DONE)

    return run_moment
