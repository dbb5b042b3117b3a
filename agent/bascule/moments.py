"""The moments of a boot that belong to us: ``bascule health``, ``bless`` and ``deadman``.

Each is a process of its own that systemd starts, and none needs the daemon: a masked daemon must
not cost a host its healthy boot. What they find is made durable in the ledger before they act on it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from bascule import endings
from bascule.assembly import LOG_STYLES, Assembly
from bascule.engine.health import Baseline, CheckResult, Outcome, green, run
from bascule.engine.ledger import Ledger, Record
from bascule.errors import BasculeError, BlessRefused, LedgerError, SettingsError, Unhealthy
from bascule.faces.journal import configure_logging
from bascule.formats.text import printable
from bascule.giving_up import deadman_switch
from bascule.healthchecks import checks_of, host_of, left_out, longest_asking
from bascule.settings import Settings, load, load_what_is_right
from bascule.trial import CLOCKS, Boot, Clocks, look, remember
from bascule.updater.health_verdict import HealthVerdict, judge
from bascule.updater.intent import Intent, Phase
from bascule.updater.once import Detour, settle_once
from bascule.updater.settle import settle
from bascule.updater.verdict import Verdict

OUTPUT_KEPT = 2000
"""Characters of each check's output that ledger and history keep."""

SOAK_PAUSE = 1.0
"""Shortest pause between two askings during the soak, in seconds."""


# ── health ───────────────────────────────────────────────────────────────────────────────────


async def ask_health(
    assembly: Assembly, baseline: Baseline | None, deadline: float, clocks: Clocks
) -> tuple[HealthVerdict, list[CheckResult]]:
    """Ask until it is decided, `deadline` (on the monotonic clock) at the latest."""
    health, clock = assembly.settings.health, clocks.monotonic
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
        await clocks.sleep(min(health.interval, max(0.1, deadline - clock())))


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
            "reason": verdict.reason,
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

    try:
        ledger.update(change)
    except LedgerError as error:
        # What was found is told by the exit status too; a full disk is not the release's fault.
        print(f"bascule: {error}", file=sys.stderr)


async def _note_health(
    assembly: Assembly,
    boot: Boot,
    verdict: HealthVerdict,
    results: list[CheckResult],
    clocks: Clocks,
) -> None:
    """What was found, to ledger and history, and with every check's output to the journal."""
    await asyncio.to_thread(
        remember_health, assembly.ledger(), boot, verdict, results, int(clocks.wall())
    )
    skipped = left_out(assembly.settings.health, [result.name for result in results])
    await remember(
        assembly,
        "health",
        boot,
        outcome=verdict.outcome.name,
        report=list(verdict.report()),
        checks=[
            {"name": r.name, "outcome": r.outcome.name, "output": r.output[-OUTPUT_KEPT:]}
            for r in results
        ],
        **({"left_out": skipped} if skipped else {}),
    )
    for result in results:
        why = f" ({result.reason})" if result.reason else ""
        print(f"{result.name}: {result.outcome.value}{why}", file=sys.stderr)
        for line in result.output[-OUTPUT_KEPT:].splitlines():
            print(f"  {printable(line)}", file=sys.stderr)
    for sentence in (*skipped, *verdict.report()):
        print(sentence, file=sys.stderr)


async def health(
    options: argparse.Namespace, assembly: Assembly, clocks: Clocks = CLOCKS
) -> dict[str, Any]:
    """``bascule health``. Raises Unhealthy."""
    boot = await asyncio.to_thread(look, assembly)
    settings = assembly.settings.health
    baseline = Baseline.from_dict(boot.record.baseline) if boot.on_trial else None
    left = max(1.0, settings.deadline - clocks.uptime(assembly.root / "proc"))
    try:
        verdict, results = await ask_health(assembly, baseline, clocks.monotonic() + left, clocks)
    except SettingsError as error:
        await asyncio.to_thread(_cannot_ask, assembly, boot, error, clocks)
        raise
    await _note_health(assembly, boot, verdict, results, clocks)
    if verdict.outcome is Outcome.FAIL:
        raise Unhealthy(verdict.reason, report=list(verdict.report()))
    if settings.greenboot:
        actions = green(Path(settings.root)).checks
        limit = settings.timeout * 2
        await run(actions, host=host_of(settings), clock=clocks.monotonic, limit=limit)
    return {"outcome": verdict.outcome.name, "report": list(verdict.report())}


def _cannot_ask(assembly: Assembly, boot: Boot, error: SettingsError, clocks: Clocks) -> None:
    """Whoever gives this boot up finds out why from this, and need not wait for the deadline."""
    verdict = HealthVerdict(Outcome.FAIL, error.detail or str(error))
    remember_health(assembly.ledger(), boot, verdict, [], int(clocks.wall()))


# ── blessing ─────────────────────────────────────────────────────────────────────────────────


async def bless(
    options: argparse.Namespace, assembly: Assembly, clocks: Clocks = CLOCKS
) -> dict[str, Any]:
    """``bascule bless``. Raises BlessRefused, Unhealthy."""
    boot = await asyncio.to_thread(look, assembly)
    if boot.record.once:
        found = await asyncio.to_thread(
            settle_once, boot.backend, assembly.ledger(), boot.record, boot.boot_id
        )
        if found is not None and found[1] is Detour.RUNNING:
            return {"said": found[0].sentence(found[1]), "blessed": False}
        boot = await asyncio.to_thread(look, assembly)
    slot = boot.backend.booted
    if boot.verdict is Verdict.WAITING:
        return {"said": "Another slot is staged; the running one stays as it is.", "blessed": False}
    if boot.good and not boot.on_trial and boot.verdict is not Verdict.UPDATED:
        await _let_go(assembly)
        return {"said": f"Slot {slot.name} is already good.", "blessed": False}
    intent = boot.intent
    if boot.on_trial and intent is not None:
        _refuse_what_is_not_this_boot(boot, intent)
        soak = 0.0 if options.now else assembly.settings.health.soak
        if soak > 0:
            await _soak(assembly, boot, soak, clocks)
    await asyncio.to_thread(_bless, assembly, boot, int(clocks.wall()))
    await remember(assembly, "blessed", boot, slot=slot.name)
    await _let_go(assembly)
    version = intent.version if intent is not None and boot.on_trial else assembly.host.version
    return {"said": f"Slot {slot.name} ({version}) is confirmed and stays.", "blessed": True}


async def _soak(assembly: Assembly, boot: Boot, soak: float, clocks: Clocks) -> None:
    """Ask health again and again for `soak` seconds, and once when they are over."""
    settings = assembly.settings.health
    end, once = clocks.monotonic() + soak, longest_asking(settings)
    baseline = Baseline.from_dict(boot.record.baseline)
    print(
        f"Soaking for {soak:g} s before slot {boot.backend.booted.name} is confirmed.",
        file=sys.stderr,
    )
    while (left := end - clocks.monotonic()) > 0:
        await clocks.sleep(min(left, max(settings.interval, SOAK_PAUSE)))
        verdict, results = await ask_health(
            assembly, baseline, max(end, clocks.monotonic()) + once, clocks
        )
        if verdict.outcome is Outcome.FAIL:
            await _note_health(assembly, boot, verdict, results, clocks)
            raise Unhealthy(f"while soaking: {verdict.reason}", report=list(verdict.report()))


def _refuse_what_is_not_this_boot(boot: Boot, intent: Intent) -> None:
    """Slot, attempt and boot id belong together. Raises BlessRefused."""
    slot = boot.backend.booted
    if intent.target is not slot:
        return
    if intent.phase is Phase.WRITING:
        raise BlessRefused(
            f"release {intent.version} was never written whole into slot {slot.name}"
        )
    if intent.boot_id == boot.boot_id:
        raise BlessRefused(
            f"slot {slot.name} was staged in this very boot, so this boot cannot come from it"
        )
    if intent.trial_boot == boot.boot_id and intent.failure:
        raise BlessRefused(f"this boot was judged: {intent.failure}")


def _bless(assembly: Assembly, boot: Boot, now: int) -> None:
    def change(record: Record) -> Record:
        """Under the ledger's lock: whoever gives the boot up writes that down under it too."""
        fresh = _set_good(assembly, boot)
        slot, intent = fresh.backend.booted, fresh.intent
        told = {
            "slot": slot.name,
            "boot_id": fresh.boot_id,
            "at": now,
            "attempt": intent.attempt if intent else "",
        }
        record = dataclasses.replace(record, blessed=told)
        if intent is None or intent.target is not slot:
            return record
        return settle(record, Verdict.UPDATED, now)

    try:
        assembly.ledger().update(change)
    except LedgerError as error:
        # A state directory that is full or gone must not cost a host its healthy boot. The next
        # look finds the slot good, and settles the ledger.
        _set_good(assembly, boot)
        print(f"bascule: {error}", file=sys.stderr)


def _set_good(assembly: Assembly, boot: Boot) -> Boot:
    """Bless the running slot's flags if this is still the boot that `boot` was. Raises BlessRefused.

    Flags before ledger: a good slot that the ledger calls on trial is found good at the next look;
    the reverse would be a release that the ledger calls good and the bootloader leaves.
    """
    # Anew from the ground: what was found out about this host when the soak began counts for nothing.
    fresh = look(Assembly(assembly.settings))
    attempts = [b.intent.attempt if b.intent else None for b in (fresh, boot)]
    slot = fresh.backend.booted
    if (
        attempts[0] != attempts[1]
        or slot is not boot.backend.booted
        or fresh.boot_id != boot.boot_id
    ):
        raise BlessRefused("slots or ledger have changed meanwhile")
    if fresh.intent is not None:
        _refuse_what_is_not_this_boot(fresh, fresh.intent)
    fresh.backend.bless(slot)
    return fresh


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


def _settings(options: argparse.Namespace, moment: Moment) -> Settings:
    """A release that brings wrong settings is given up like any other, and the deadman does without them."""
    try:
        return load(options.root, options.config)
    except SettingsError as error:
        if moment is bless:
            raise
        right = load_what_is_right(options.root, options.config)[0]
        if moment is health:
            with contextlib.suppress(BasculeError):
                assembly = Assembly(right)
                _cannot_ask(assembly, look(assembly), error, CLOCKS)
            raise
        print(f"bascule: {error}", file=sys.stderr)
        return right


def _runner(moment: Moment) -> Callable[[argparse.Namespace], int]:
    def run_moment(options: argparse.Namespace) -> int:
        def work() -> Mapping[str, Any]:
            settings = _settings(options, moment)
            configure_logging(level=settings.log.level, style=LOG_STYLES[settings.log.format])
            return asyncio.run(moment(options, Assembly(settings)))

        return endings.end(options, work)

    return run_moment
