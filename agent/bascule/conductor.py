"""Lets gates decide: before an update, before a check by the clock, before a reboot, and for `explain`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bascule.assembly import Assembly
from bascule.circumstances import Circumstances
from bascule.engine.coordination.interface import LockView
from bascule.engine.ledger import Record
from bascule.errors import (
    BasculeError,
    NothingPending,
    PolicyRefusal,
    SettingsError,
    StorageError,
    UsageError,
    from_dict,
)
from bascule.updater.chronicle import explain_history
from bascule.updater.explain import explain
from bascule.updater.gates import Answer, Blocks, Facts, Gate, blocking, concerned, evaluate
from bascule.updater.hold import Hold, Warned, place_hold
from bascule.updater.pin import parse_pin
from bascule.updater.rebooting import Rebooting
from bascule.updater.status import State, Status
from bascule.updater.steering import Actor
from bascule.updater.updater import Updater
from bascule.updater.verdict import Verdict
from bascule.wall import wall

if TYPE_CHECKING:
    from bascule.daemon import Daemon

ASKED_ANYWAY = frozenset({"mode", "schedule", "server", "pin", "floor", "quarantine", "back-off"})
"""Gates that do not stop a request: whoever asks knows that it is not scheduled, and what the
server offers now is judged in the errand, not by what it offered last."""


LOOK_AGAIN = 3600.0
"""Seconds between looks at what holds this host back, where nothing changes by itself before."""


class Conductor:
    """Gates, holds, pins and reboots for one daemon."""

    def __init__(self, daemon: Daemon, updater: Updater) -> None:
        self._daemon = daemon
        self._updater = updater
        self._no_reboot = False
        self._moved = asyncio.Event()
        self._stale = asyncio.Event()
        self._warned = Warned()
        self._coordinator_trouble = ""
        self.warnings: tuple[str, ...] = ()
        self.circumstances = Circumstances(
            lambda: daemon.assembly, lambda: updater.status, lambda: daemon.message_bus, time.time
        )
        self.rebooting = Rebooting(
            facts=self._reboot_facts,
            coordinator=self.circumstances.coordinator,
            rebooter=lambda: daemon.assembly.rebooter(),  # noqa: PLW0108 - the assembly is replaced
            due=self._due,
            on_trial=lambda: updater.verdict is Verdict.ON_TRIAL,
            notice=self._notice,
            tell=daemon.tell,
            show=self._show,
            state=self._tell_neighbours,
            clock=time.time,
        )
        updater.permit = self.permit
        updater.reboot_now = self._reboot_by_hand
        updater.documents.update(
            {"explain": self._explain, "hold": self._hold_document, "pin": self._pin_document}
        )
        updater.acts.update({"hold": self._hold, "pin": self._pin})
        updater.subscribe(self._on_status)

    @property
    def _assembly(self) -> Assembly:
        return self._daemon.assembly

    def _on_status(self, old: Status, new: Status) -> None:
        if old.state is not new.state or old.verdict != new.verdict:
            self._moved.set()
        if _gated(old) != _gated(new):
            self._stale.set()

    async def changed(self) -> None:
        """Until the updater's state may have changed."""
        await self._moved.wait()
        self._moved.clear()

    async def _record(self) -> Record:
        return await asyncio.to_thread(self._updater.ledger.read)

    # ── updates ──────────────────────────────────────────────────────────────────────────────

    async def permit(self, options: Mapping[str, Any]) -> None:
        """As `Updater.permit`. Raises PolicyRefusal with every gate that is closed."""
        await self._stay(bool(options.get("no_reboot")))
        now = bool(options.get("now"))
        self._stale.set()
        local = str(options.get("file") or options.get("repository") or "")
        facts = await self.circumstances.facts(
            await self._record(),
            asked=True,
            local=local,
            allow_downgrade=bool(options.get("allow_downgrade")),
        )
        gates = evaluate(facts, time.time())
        # What lies prepared in its slot is not fetched.
        kinds = (Blocks.UPDATE, *(() if options.get("activate") else (Blocks.DOWNLOAD,)))
        closed = [g for g in blocking(gates, *kinds, overriding=now) if g.name not in ASKED_ANYWAY]
        if closed:
            raise _refusal(closed)
        passed = [g.name for g in blocking(gates, *kinds) if g.override]
        if now and passed:
            self._daemon.tell("overridden", gates=sorted(set(passed)))

    async def gates_for(self, answer: Answer, options: Mapping[str, Any]) -> list[Gate]:
        """Every gate as if `answer` were the server's, for whoever asks for it now."""
        facts = await self.circumstances.facts(
            await self._record(),
            asked=True,
            allow_downgrade=bool(options.get("allow_downgrade")),
            lock=await self.circumstances.lock(),
        )
        return evaluate(replace(facts, answer=answer, needed=answer.size), time.time())

    async def by_the_clock(self) -> str:
        """What a scheduled tick may do: ``update``, ``check`` or ``""`` for nothing."""
        await self._stay(False)
        self._stale.set()
        try:
            facts = await self.circumstances.facts(await self._record())
        except SettingsError as error:
            self._daemon.tell("settings-wrong", error=error.as_dict())
            return "check"
        gates = evaluate(facts, time.time())
        closed = [
            g
            for g in blocking(gates, Blocks.UPDATE, Blocks.DOWNLOAD)
            if g.name not in ASKED_ANYWAY or g.name == "mode"
        ]
        if any(g.reason == "mode.none" for g in closed):
            return ""
        return "check" if closed else "update"

    def next_scheduled(self, now: float) -> float | None:
        """Seconds until the next check by `policy.schedule`; None where there is no schedule."""
        try:
            at = self.circumstances.schedule().next_check(now)
        except SettingsError:
            return None
        return None if at is None else max(1.0, at - now)

    def _show(self, gates: list[Gate]) -> None:
        self._updater.show(blocked_by=tuple(g.as_dict() for g in gates))

    async def refresh(self) -> float:
        """Show what holds this host's next step back; seconds until that may change by itself.

        While a reboot is due, who waits for it shows what holds it back: it asks more often, and
        knows of the lock.
        """
        now = time.time()
        record = await self._record()
        self._claim()
        try:
            facts = await self.circumstances.facts(record)
        except BasculeError:
            # The tick says so.
            return LOOK_AGAIN
        gates = evaluate(facts, now)
        if not self._due():
            self._show(blocking(gates, *concerned(facts)))
        moments = [g.until for g in gates if g.until is not None]
        if (at := self._warn_of_hold(record, gates, now)) is not None:
            moments.append(at)
        return min([LOOK_AGAIN, *(m - now + 1 for m in moments if m > now)])

    def _warn_of_hold(self, record: Record, gates: list[Gate], now: float) -> int | None:
        """Speak of a hold before it ends, or every day; when to speak of it next."""
        held = Hold.from_dict(record.hold)
        warnings: tuple[str, ...] = ()
        if held is not None and held.warns(now):
            sentence = next(g for g in gates if g.name == "hold").evidence
            warnings = (sentence,)
            if self._warned.due(held, now):
                self._daemon.tell("hold-warning", sentence=sentence)
        if warnings != self.warnings:
            self.warnings = warnings
            self._daemon.warn()
        return held.next_warning(now) if held is not None else None

    async def _watch(self) -> None:
        while True:
            self._stale.clear()
            pause = await self.refresh()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stale.wait()

    # ── neighbours ───────────────────────────────────────────────────────────────────────────

    def _claim(self) -> None:
        """Reboots are ours while policy says so and locksmithd was not first; else they are not."""
        settings = self._assembly.settings
        wanted = settings.policy.mode == "apply" and settings.reboot.strategy != "off"
        file = self.circumstances.coordinator_file
        try:
            if not wanted:
                file.release()
            elif not file.ours and file.claim(settings.reboot.strategy) is None:
                file.tell(settings.reboot.strategy, "running")
        except StorageError as error:
            if str(error) != self._coordinator_trouble:
                self._coordinator_trouble = str(error)
                self._daemon.tell("coordinator-file", error=error.as_dict())

    def _tell_neighbours(self, state: str) -> None:
        with contextlib.suppress(StorageError):
            self.circumstances.coordinator_file.tell(self._assembly.settings.reboot.strategy, state)

    # ── reboots ──────────────────────────────────────────────────────────────────────────────

    def _due(self) -> bool:
        settings = self._assembly.settings
        return (
            self._updater.status.state is State.UPDATED_NEED_REBOOT
            and settings.policy.mode == "apply"
            and settings.reboot.strategy != "off"
            and not self._no_reboot
        )

    async def _stay(self, wanted: bool) -> None:
        """Remember ``--no-reboot``, over a restart of the daemon too."""
        if wanted != self._no_reboot:
            await asyncio.to_thread(self._updater.ledger.set, stay="asked" if wanted else "")
        self._no_reboot = wanted

    async def _reboot_facts(self, lock: LockView | None) -> Facts:
        return await self.circumstances.facts(await self._record(), lock=lock)

    async def _notice(self, sentence: str) -> None:
        """Wall, and the warning time, only where somebody is logged in (as locksmith does)."""
        found = await self.circumstances.surroundings()
        warn = self._assembly.settings.reboot.warn
        if not found.sessions or warn <= 0:
            return
        await wall(f"{sentence} In {int(warn)} seconds.")
        await asyncio.sleep(warn)

    async def _reboot_by_hand(self) -> None:
        await self.rebooting.by_hand("asked for by the operator")

    async def run(self) -> None:
        """Reboot when it is due, give the lock back when it is not, and show why, until cancelled."""
        self._no_reboot = bool((await self._record()).stay)
        watch = asyncio.create_task(self._watch())
        try:
            await self.rebooting.run(self.changed)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            if self.rebooting.asked_at is None:
                self.circumstances.coordinator_file.release()

    # ── documents and verbs ──────────────────────────────────────────────────────────────────

    async def _explain(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if options.get("history"):
            records = await asyncio.to_thread(self._assembly.history().read, 500)
            lines = explain_history(records)
            return {
                "sentences": [line.text for line in lines],
                "reasons": [line.reason for line in lines],
            }
        facts = await self.circumstances.facts(
            await self._record(),
            lock=await self.circumstances.lock(),
            wanted=str(options.get("version") or ""),
        )
        told = explain(facts, time.time(), by_hand=True)
        if not options.get("version"):
            self._show(blocking(told.gates, *concerned(facts)))
        return {
            "sentences": told.lines(),
            **{k: v for k, v in told.as_dict().items() if k != "schema"},
        }

    async def _hold_document(self, options: Mapping[str, Any]) -> dict[str, Any]:
        record = await self._record()
        held = Hold.from_dict(record.hold)
        facts = await self.circumstances.facts(record)
        gate = next(g for g in evaluate(facts, time.time()) if g.name == "hold")
        return {"sentence": gate.evidence, "hold": held.as_dict() if held else None}

    async def _pin_document(self, options: Mapping[str, Any]) -> dict[str, Any]:
        record = await self._record()
        text = f"Pinned to {record.pin}." if record.pin else "No pin is set."
        return {"sentence": text, "pin": record.pin}

    async def _hold(self, options: Mapping[str, Any], actor: Actor) -> str:
        if options.get("clear"):
            record = await self._record()
            if not record.hold:
                raise NothingPending("no hold is set")
            await asyncio.to_thread(self._updater.ledger.set, hold={})
            self._stale.set()
            self._daemon.tell("hold", actor=dataclasses.asdict(actor), cleared=True)
            return "The hold is lifted."
        until = options.get("until")
        held = place_hold(
            time.time(),
            lasting=f"{int(options['seconds'])}s" if options.get("seconds") else "",
            until=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(int(until)))
            if until
            else "",
            indefinite=bool(options.get("indefinite")),
            reason=str(options.get("reason") or ""),
            by=f"user id {actor.uid}" if actor.uid >= 0 else "",
        )
        await asyncio.to_thread(self._updater.ledger.set, hold=held.as_dict())
        self._stale.set()
        self._daemon.tell("hold", actor=dataclasses.asdict(actor), **held.as_dict())
        return str((await self._hold_document({}))["sentence"])

    async def _pin(self, options: Mapping[str, Any], actor: Actor) -> str:
        if options.get("clear"):
            await asyncio.to_thread(self._updater.ledger.set, pin="")
            self._stale.set()
            self._daemon.tell("pin", actor=dataclasses.asdict(actor), pin="")
            return "The pin is lifted."
        text = str(options.get("range") or "")
        pin = parse_pin(text)
        if pin.never_allows:
            raise UsageError(f"no release can satisfy {text}")
        await asyncio.to_thread(self._updater.ledger.update, lambda r: replace(r, pin=pin.text))
        self._stale.set()
        self._daemon.tell("pin", actor=dataclasses.asdict(actor), pin=pin.text)
        return f"Pinned to {pin.text}."


def _gated(status: Status) -> tuple[object, ...]:
    """The parts of a status that gates look at."""
    return (
        status.state,
        status.verdict,
        status.quarantine,
        status.next_check,
        status.last_checked,
        status.new_version,
        status.slots,
    )


def _refusal(closed: list[Gate]) -> BasculeError:
    """The error of the one gate that is closed, or of policy where several are."""
    ids = {gate.error for gate in closed}
    evidence = " ".join(gate.evidence for gate in closed)
    context = {"gates": [gate.as_dict() for gate in closed]}
    if len(ids) > 1:
        return PolicyRefusal(evidence, **context)
    return from_dict({"id": ids.pop(), "detail": evidence, "context": context})
