"""The updater: owns the state, starts errands, settles verdicts, and answers whoever steers.

It decides nothing about bytes. Each check or installation is an errand in a process of its own; what
the updater believes afterwards it reads from the ledger and the slots, not from the errand's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bascule.engine.boot import BootBackend
from bascule.engine.ledger import Ledger, Record
from bascule.errors import (
    BasculeError,
    BootedSlotNotBlessed,
    Busy,
    NothingPending,
    NoUpdate,
    PolicyRefusal,
    Stopped,
    UsageError,
)
from bascule.updater.errands import Errands, Launch
from bascule.updater.giveup import GiveUp
from bascule.updater.going_back import GoingBack
from bascule.updater.intent import Intent
from bascule.updater.machine import Event, step
from bascule.updater.once import Detour, Once
from bascule.updater.prepared import Prepared
from bascule.updater.preparing import Preparing
from bascule.updater.quarantining import Quarantine
from bascule.updater.settle import sentence
from bascule.updater.settlement import settle_all
from bascule.updater.shown import fields_of
from bascule.updater.status import SlotStatus, State, Status
from bascule.updater.steering import Actor, Job
from bascule.updater.verdict import Verdict

UPDATE_OPTIONS = frozenset(
    {
        "version",
        "now",
        "no_reboot",
        "allow_downgrade",
        "file",
        "repository",
        "force_full",
        "prepare",
    }
)


@dataclass(frozen=True, slots=True)
class Orders:
    """What the settings tell the updater, read anew before each check.

    Attributes:
        mode: none, check, stage or apply.
        enabled: False if the server is `disabled`; `disabled_why` says so in one sentence.
        current_version, group, server: shown in status.
        stale_after: seconds without a successful check before `warnings` says so; 0 never.
    """

    mode: str
    enabled: bool
    disabled_why: str
    current_version: str
    group: str
    server: str
    stale_after: float


Document = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
Act = Callable[[Mapping[str, Any], Actor], Awaitable[str]]
Tell = Callable[..., None]


def _nobody() -> None:
    return


async def _permit_all(options: Mapping[str, Any]) -> None:
    return


async def _unwatched() -> bool:
    return False


async def _no_reboot() -> None:
    raise NothingPending("no reboot is set up")


class Updater:
    """Implements `steering.Steering`.

    Args:
        orders: reads the settings anew.
        boot: opens the boot backend; called in a thread.
        boot_id: this boot's id.
        launch: starts an errand.
        tell: called as ``tell(event, **facts)`` for the journal and history.
        staged, withdrawn: a slot waits for its reboot, or was taken back: leaves and removes the
            markers that other programs watch.
        concluded: an update ended for good: what was kept to go on with it is of no more use.
        clock: wall clock, unix seconds.
        monotonic: for rates.
    """

    def __init__(
        self,
        *,
        orders: Callable[[], Orders],
        boot: Callable[[], BootBackend],
        boot_id: str,
        ledger: Ledger,
        launch: Launch,
        tell: Tell,
        staged: Callable[[], None] = _nobody,
        withdrawn: Callable[[], None] = _nobody,
        concluded: Callable[[], None] = _nobody,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._orders = orders
        self.boot = boot
        self.boot_id = boot_id
        self.ledger = ledger
        self.tell = tell
        self.staged = staged
        self._withdrawn = withdrawn
        self._concluded = concluded
        self.clock = clock
        self.permit: Callable[[Mapping[str, Any]], Awaitable[None]] = _permit_all
        """Raises PolicyRefusal if a gate holds back what was asked for."""
        self.reboot_now: Callable[[], Awaitable[None]] = _no_reboot
        """Reboots for an operator."""
        self.watched: Callable[[], Awaitable[bool]] = _unwatched
        """Whether the running release is in its late-regression window."""
        self._status = Status(since=int(clock()))
        self._listeners: list[Callable[[Status, Status], None]] = []
        self._job_listeners: list[Callable[[Job], None]] = []
        self.verdict = Verdict.NOTHING_PENDING
        self.detour: tuple[Once, Detour] | None = None
        """A boot for one time that waits or runs."""
        self.giveup: GiveUp | None = None
        """The running release is given up and runs yet."""
        self.documents: dict[str, Document] = {"slots": self._slots_document}
        self.acts: dict[str, Act] = {"settle": self._settle_act}
        self._errands = Errands(self, launch=launch, monotonic=monotonic)
        self._troubles: set[str] = set()
        self._going_back = GoingBack(self)
        Quarantine(self)
        Preparing(self)

    # ── what the faces read ──────────────────────────────────────────────────────────────────

    @property
    def status(self) -> Status:
        return self._status

    def subscribe(self, listener: Callable[[Status, Status], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def on_job(self, listener: Callable[[Job], None]) -> Callable[[], None]:
        self._job_listeners.append(listener)
        return lambda: self._job_listeners.remove(listener)

    def show(self, **fields: Any) -> None:
        """Replace fields of the status and tell the listeners if anything changed."""
        before, after = self._status, replace(self._status, **fields)
        if before == after:
            return
        self._status = after
        for listener in list(self._listeners):
            listener(before, after)

    def move(self, event: Event, **fields: Any) -> None:
        """One step of the machine, and what is shown with it."""
        state = step(self._status.state, event)
        if state is not self._status.state:
            fields["since"] = int(self.clock())
        self.show(state=state, **fields)

    def tell_job(self, job: Job) -> None:
        """A job has begun or ended."""
        for listener in list(self._job_listeners):
            listener(job)

    # ── start and settlement ─────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Judge what became of the last intent, act on it, and show it."""
        self.read_orders()
        record = await asyncio.to_thread(self.ledger.update, self._not_stopped)
        await self.settle()
        if self.verdict is Verdict.UNFINISHED and not record.prepared:
            # Settling forgets it: said once, until something else is known.
            self.show(
                verdict=self.verdict.name, sentence=sentence(self.verdict, record.intent or {})
            )
        if self.verdict is Verdict.WAITING and self._status.state is State.IDLE:
            # An errand that died after the flip did not come to it.
            self.staged()
            self.move(Event.FOUND_STAGED)

    def _not_stopped(self, record: Record) -> Record:
        """A daemon that starts again in the same boot has not been through a reboot."""
        same = record.reboot.get("boot_id") == self.boot_id
        return replace(record, reboot={}) if same else record

    async def note_stop(self) -> None:
        """The daemon stops while a release waits for its reboot: the downtime begins, maybe."""
        if self.verdict is not Verdict.WAITING:
            return
        reboot = {"stopped_at": int(self.clock()), "boot_id": self.boot_id}
        with contextlib.suppress(BasculeError):
            await asyncio.to_thread(self.ledger.set, reboot=reboot)

    def read_orders(self) -> Orders:
        """Read the settings anew and show what they say."""
        orders = self._orders()
        self.show(
            current_version=orders.current_version,
            group=orders.group,
            server=orders.server,
        )
        return orders

    async def settle(self) -> Verdict:
        """Judge and act on the ledger's intent; refresh slots, sentence and warnings."""

        version = self._status.current_version
        found = await asyncio.to_thread(
            lambda: settle_all(
                self.boot(), self.ledger, self.boot_id, int(self.clock()), running=version
            )
        )
        for trouble in found.troubles:
            if str(trouble) not in self._troubles:
                self._troubles.add(str(trouble))
                self.tell("no-way-back", error=trouble.as_dict())
        self.giveup = found.giveup
        over = found.detour[0] if found.detour and found.detour[1] is Detour.OVER else None
        self.detour = found.detour if over is None else None
        verdict, record, slots = found.verdict, found.record, found.slots
        if self.ledger.damage:
            self.tell("ledger-damaged", why=self.ledger.damage)
        self.verdict = verdict
        self._show_record(record, slots)
        await self._tell_verdict(record)
        if over is not None:
            self.tell("once-over", slot=over.target.name, version=over.version)
        return verdict

    async def _tell_verdict(self, record: Record) -> None:
        """Once for each verdict, whoever settled it: the blessing works without the daemon."""
        if not record.verdict or record.verdict.get("told"):
            return
        facts = {k: v for k, v in record.verdict.items() if k not in ("at", "payload")}
        self.tell("verdict", sentence=self._status.sentence, **facts)

        def mark(fresh: Record) -> Record:
            if fresh.verdict != record.verdict:
                return fresh
            return replace(fresh, verdict={**fresh.verdict, "told": True})

        if not record.prepared and not self.busy:
            await asyncio.to_thread(self._concluded)
        await asyncio.to_thread(self.ledger.update, mark)

    def _show_record(self, record: Record, slots: tuple[SlotStatus, ...]) -> None:
        fields = fields_of(record, self.verdict, slots, self._status.extra)
        if self.detour is not None:
            once, detour = self.detour
            fields["sentence"] = once.sentence(detour)
        if record.last_checked > self._status.last_checked:
            fields["last_checked"] = record.last_checked
        self.show(**fields)

    # ── errands ──────────────────────────────────────────────────────────────────────────────

    @property
    def busy(self) -> bool:
        """Whether an errand is under way."""
        return self._errands.busy

    async def idle(self) -> None:
        """Wait until no errand is under way."""
        await self._errands.idle()

    def begin(self, kind: str, options: Mapping[str, Any], actor: Actor) -> Job:
        """Start an errand. Raises Busy."""
        return self._errands.begin(kind, options, actor)

    async def stop_errand(self, reason: BasculeError) -> None:
        """Stop the errand, if there is one, and wait for its end."""
        await self._errands.stop(reason)

    @property
    def end_of_errand(self) -> Mapping[str, Any]:
        """The last words of the last errand."""
        return self._errands.end

    # ── what the faces ask ───────────────────────────────────────────────────────────────────

    async def check(self, actor: Actor) -> Job:
        self._require_idle()
        self._require_server()
        self.tell("asked", verb="check", actor=dataclasses.asdict(actor))
        return self.begin("check", {}, actor)

    async def update(self, options: Mapping[str, Any], actor: Actor) -> Job:
        unknown = set(options) - UPDATE_OPTIONS
        if unknown:
            raise UsageError(f"unknown option {', '.join(sorted(unknown))}")
        self._require_idle()
        await self._going_back.require_no_detour()
        if not options.get("file") and not options.get("repository"):
            self._require_server()
        if self.verdict is Verdict.ON_TRIAL:
            raise BootedSlotNotBlessed(self._status.sentence)
        await self.permit(options)
        self._require_idle()
        kind = "prepare" if options.get("prepare") else "update"
        self.tell("asked", verb=kind, actor=dataclasses.asdict(actor), options=dict(options))
        return self.begin(kind, options, actor)

    def require_not_busy(self) -> None:
        """Raises Busy while an errand is under way."""
        if self.busy:
            raise Busy(self._status.state.words)

    def _require_idle(self) -> None:
        self.require_not_busy()
        if self._status.state is State.UPDATED_NEED_REBOOT:
            raise Busy(f"{self._status.sentence} Reboot, or take it back with `updatectl cancel`.")

    def _require_server(self) -> None:
        orders = self.read_orders()
        if not orders.enabled:
            raise NoUpdate(orders.disabled_why)

    async def attempt_update(self, actor: Actor) -> None:
        with contextlib.suppress(Busy, BootedSlotNotBlessed, NoUpdate, PolicyRefusal):
            await self.update({}, actor)

    async def cancel(self, actor: Actor) -> str:
        self.tell("asked", verb="cancel", actor=dataclasses.asdict(actor))
        if self.busy:
            await self.stop_errand(Stopped("by the operator"))
            if self._status.state is not State.UPDATED_NEED_REBOOT:
                return "The attempt was stopped; it goes on where it was at the next update."
        if self._status.state is State.UPDATED_NEED_REBOOT:
            return await self.withdraw()
        if said := await self._going_back.cancel():
            return said
        record = await asyncio.to_thread(self.ledger.read)
        if self.verdict is Verdict.UNFINISHED:
            await asyncio.to_thread(self.ledger.set, intent=None, prepared={})
            await self.settle()
            return "The interrupted attempt was given up."
        if prepared := Prepared.from_dict(record.prepared):
            await asyncio.to_thread(self.ledger.set, prepared={})
            await self.settle()
            return f"The prepared release {prepared.version} was given up."
        raise NothingPending("no attempt is under way and no slot is staged")

    async def reset(self, actor: Actor) -> str:
        self.require_not_busy()
        if self._status.state is State.UPDATED_NEED_REBOOT:
            self.tell("asked", verb="reset", actor=dataclasses.asdict(actor))
            return await self.withdraw()
        self.show(failure=None)
        return "Nothing was staged."

    async def withdraw(self, *, keep: bool = False) -> str:
        """Take a staged slot back. Raises BootError, StorageError.

        Args:
            keep: it stays prepared, so that `activate` brings it back.
        """
        version = self._status.new_version

        def work() -> Prepared | None:
            record = self.ledger.read()
            intent = Intent.from_dict(record.intent)
            if intent is not None:
                self.boot().cancel(intent.target)

            # Flags first: an intent without a staged slot is harmless, the reverse boots unannounced.
            def change(record: Record) -> Record:
                gone = intent.target.name if intent is not None else ""
                return replace(
                    record,
                    intent=None,
                    previous_version="",
                    releases={k: v for k, v in record.releases.items() if k != gone},
                    prepared={**record.prepared, "asked": True} if keep and record.prepared else {},
                )

            return Prepared.from_dict(self.ledger.update(change).prepared)

        kept = await asyncio.to_thread(work)
        self._withdrawn()
        await self.settle()
        self.move(Event.WITHDRAWN, new_version="", new_size=0)
        self.tell("withdrawn", version=version)
        said = f"Release {version} is no longer staged; the next boot is the running release."
        if keep and kept is not None:
            return f"{said} It stays prepared: `updatectl activate` stages it again."
        return said

    async def rollback(self, options: Mapping[str, Any], actor: Actor) -> str:
        unknown = set(options) - {"once", "no_quarantine"}
        if unknown:
            raise UsageError(f"unknown option {', '.join(sorted(unknown))}")
        self.require_not_busy()
        if self._status.state is State.UPDATED_NEED_REBOOT:
            raise Busy(f"{self._status.sentence} Take it back with `updatectl cancel` instead.")
        if options.get("once"):
            return await self._going_back.once(actor)
        return await self._going_back.for_good(
            actor,
            quarantined=not options.get("no_quarantine"),
            watched=await self.watched(),
        )

    async def leave_late(self, reason: str) -> None:
        """Give the running release up after its blessing. Raises SlotNotBootable, StorageError."""
        await self._going_back.late(reason)

    async def reboot(self, actor: Actor) -> str:
        self.require_not_busy()
        await self.settle()
        following = next((s for s in self._status.slots if s.next and not s.booted), None)
        if following is None:
            raise NothingPending("the running slot boots next, so there is nothing to reboot into")
        self.tell("asked", verb="reboot", actor=dataclasses.asdict(actor))
        await self.reboot_now()
        return f"The reboot into {following.version or 'the other slot'} is under way."

    async def document(self, name: str, options: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
        if name not in self.documents:
            raise UsageError(
                f"unknown document {name}; known are {', '.join(sorted(self.documents))}"
            )
        return {"schema": 1, **await self.documents[name](options)}

    async def act(self, verb: str, options: Mapping[str, Any], actor: Actor) -> str:
        if verb not in self.acts:
            raise UsageError(f"unknown verb {verb}; known are {', '.join(sorted(self.acts))}")
        self.tell("asked", verb=verb, actor=dataclasses.asdict(actor), options=dict(options))
        return await self.acts[verb](options, actor)

    # ── documents and acts ───────────────────────────────────────────────────────────────────

    async def _slots_document(self, options: Mapping[str, Any]) -> dict[str, Any]:
        await self.settle()
        return {"slots": [dataclasses.asdict(s) for s in self._status.slots]}

    async def _settle_act(self, options: Mapping[str, Any], actor: Actor) -> str:
        if not self.busy:
            verdict = await self.settle()
            if verdict is Verdict.WAITING and self._status.state is State.IDLE:
                self.move(Event.FOUND_STAGED)
        return self._status.sentence
