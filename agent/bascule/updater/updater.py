"""The updater: owns the state, starts errands, settles verdicts, and answers whoever steers.

It decides nothing about bytes. Each check or installation is an errand in a process of its own; what
the updater believes afterwards it reads from the ledger and the slots, not from the errand's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bascule.engine.boot import BootBackend
from bascule.engine.ledger import Ledger, Record
from bascule.errors import (
    BasculeError,
    BootedSlotNotBlessed,
    Busy,
    ErrandCrashed,
    NothingPending,
    NoUpdate,
    PolicyRefusal,
    Stopped,
    UsageError,
    from_dict,
)
from bascule.formats.slots import Slot, words
from bascule.updater.intent import Intent, Phase
from bascule.updater.machine import INSTALLING, Event, step
from bascule.updater.settle import quarantine, sentence, settle
from bascule.updater.status import Failure, SlotStatus, State, Status
from bascule.updater.steering import Actor, Job
from bascule.updater.verdict import Verdict, judge

UPDATE_OPTIONS = frozenset(
    {"version", "now", "no_reboot", "allow_downgrade", "file", "repository", "force_full"}
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


class Errand(Protocol):
    """A running child process: its messages, and a way to stop it."""

    def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]: ...

    def stop(self) -> None:
        """Ask it to end; it keeps its checkpoint."""
        ...


Launch = Callable[[Mapping[str, Any]], Awaitable[Errand]]
Document = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
Act = Callable[[Mapping[str, Any], Actor], Awaitable[str]]
Tell = Callable[..., None]


class Updater:
    """Implements `steering.Steering`.

    Args:
        orders: reads the settings anew.
        boot: opens the boot backend; called in a thread.
        boot_id: this boot's id.
        launch: starts an errand.
        tell: called as ``tell(event, **facts)`` for the journal and history.
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
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._orders = orders
        self._boot = boot
        self._boot_id = boot_id
        self.ledger = ledger
        self._launch = launch
        self._tell = tell
        self._clock = clock
        self._monotonic = monotonic
        self._status = Status(since=int(clock()))
        self._listeners: list[Callable[[Status, Status], None]] = []
        self._job_listeners: list[Callable[[Job], None]] = []
        self._jobs = 0
        self._job: Job | None = None
        self._errand: Errand | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_asked: BasculeError | None = None
        self._rate_mark: tuple[float, int] | None = None
        self.verdict = Verdict.NOTHING_PENDING
        self.documents: dict[str, Document] = {
            "quarantine": self._quarantine_document,
            "slots": self._slots_document,
        }
        self.acts: dict[str, Act] = {
            "quarantine-clear": self._clear_quarantine,
            "settle": self._settle_act,
        }
        self.end_of_errand: dict[str, Any] = {}

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

    def _move(self, event: Event, **fields: Any) -> None:
        state = step(self._status.state, event)
        if state is not self._status.state:
            fields["since"] = int(self._clock())
        self.show(state=state, **fields)

    def _tell_job(self, job: Job) -> None:
        for listener in list(self._job_listeners):
            listener(job)

    # ── start and settlement ─────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Judge what became of the last intent, act on it, and show it."""
        self.read_orders()
        await self.settle()
        if self.verdict is Verdict.WAITING and self._status.state is State.IDLE:
            self._move(Event.FOUND_STAGED)

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

        def work() -> tuple[Verdict, Record, tuple[SlotStatus, ...]]:
            backend = self._boot()
            flags = backend.flags()
            before = self.ledger.read()
            intent = Intent.from_dict(before.intent)
            verdict = judge(intent, backend.booted, flags, self._boot_id)
            record = self.ledger.update(lambda r: settle(r, verdict, int(self._clock())))
            if not record.aleph_version or backend.booted.name not in record.releases:
                record = self._remember_running(backend.booted)
            return verdict, record, slot_statuses(backend, record)

        verdict, record, slots = await asyncio.to_thread(work)
        if self.ledger.damage:
            self._tell("ledger-damaged", why=self.ledger.damage)
        self.verdict = verdict
        self._show_record(record, slots)
        await self._tell_verdict(record)
        return verdict

    async def _tell_verdict(self, record: Record) -> None:
        """Once for each verdict, whoever settled it: the blessing works without the daemon."""
        if not record.verdict or record.verdict.get("told"):
            return
        facts = {k: v for k, v in record.verdict.items() if k not in ("at", "payload")}
        self._tell("verdict", sentence=self._status.sentence, **facts)

        def mark(fresh: Record) -> Record:
            if fresh.verdict != record.verdict:
                return fresh
            return replace(fresh, verdict={**fresh.verdict, "told": True})

        await asyncio.to_thread(self.ledger.update, mark)

    def _remember_running(self, booted: Slot) -> Record:
        version = self._status.current_version

        def change(record: Record) -> Record:
            return replace(
                record,
                aleph_version=record.aleph_version or version,
                releases={**record.releases, booted.name: version},
            )

        return self.ledger.update(change)

    def _show_record(self, record: Record, slots: tuple[SlotStatus, ...]) -> None:
        intent = Intent.from_dict(record.intent)
        fields: dict[str, Any] = {
            "slots": slots,
            "quarantine": len(record.quarantine),
            "last_updated": record.last_updated,
        }
        if record.last_checked > self._status.last_checked:
            fields["last_checked"] = record.last_checked
        if intent is not None:
            fields.update(
                verdict=self.verdict.name,
                sentence=sentence(self.verdict, intent.as_dict()),
                attempt=intent.attempt,
            )
            if self.verdict is Verdict.WAITING:
                fields.update(new_version=intent.version, new_size=intent.size)
        elif record.verdict:
            told = record.verdict
            kind = Verdict.__members__.get(str(told.get("verdict")), Verdict.NOTHING_PENDING)
            at = told.get("at")
            when = time.strftime("%H:%M", time.localtime(at)) if isinstance(at, int) else ""
            fields.update(
                verdict=kind.name,
                sentence=sentence(kind, told, when),
                extra={**self._status.extra, "verdict_attempt": str(told.get("attempt") or "")},
            )
        else:
            fields.update(
                verdict=Verdict.NOTHING_PENDING.name,
                sentence=sentence(Verdict.NOTHING_PENDING, {}),
            )
        self.show(**fields)

    # ── errands ──────────────────────────────────────────────────────────────────────────────

    @property
    def busy(self) -> bool:
        """Whether an errand is under way."""
        return self._task is not None and not self._task.done()

    async def idle(self) -> None:
        """Wait until no errand is under way."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    def begin(self, kind: str, options: Mapping[str, Any], actor: Actor) -> Job:
        """Start an errand. Raises Busy."""
        if self.busy:
            raise Busy(f"{self._status.state.name.lower().replace('_', ' ')}")
        self._jobs += 1
        job = self._job = Job(self._jobs, kind)
        self._stop_asked = None
        self._task = asyncio.create_task(self._run(job, kind, dict(options), actor))
        self._tell_job(job)
        return job

    async def _run(self, job: Job, kind: str, options: dict[str, Any], actor: Actor) -> None:
        end: Mapping[str, Any] = {}
        error: BasculeError | None = None
        if kind != "ping":
            self._move(
                Event.CHECK_BEGAN,
                bytes_done=0,
                bytes_total=0,
                bytes_written=0,
                bytes_skipped=0,
                rate=0.0,
                phase="check",
                attempt="",
                new_version="",
                new_size=0,
            )
        self._rate_mark = None
        try:
            self._errand = await self._launch(
                {"kind": kind, "options": options, "interactive": actor.via != "schedule"}
            )
            if self._stop_asked is not None:
                self._errand.stop()
            async for message in self._errand:
                if message.get("say") == "end":
                    end = message
                else:
                    self._hear(message)
            if not end:
                raise ErrandCrashed()
            if isinstance(end.get("error"), dict):
                error = from_dict(end["error"])
        except BasculeError as raised:
            error = raised
        except Exception as raised:
            error = BasculeError(f"{type(raised).__name__}: {raised}")
        finally:
            self._errand = None
        self.end_of_errand = dict(end)
        try:
            await self._close(job, kind, end, error)
        except BasculeError as raised:
            self._tell("settlement-failed", error=raised.as_dict())
            job.error = job.error or raised
            job.result = "failed"
            self._abandon()
        finally:
            self._job = None
            self._tell_job(job)

    def _hear(self, message: Mapping[str, Any]) -> None:
        match message.get("say"):
            case "event":
                event = Event[str(message["event"])]
                fields = {
                    k: message[k]
                    for k in ("new_version", "new_size", "attempt", "bytes_total", "phase")
                    if k in message
                }
                self._move(event, **fields)
            case "progress":
                done = int(message.get("done", 0))
                self.show(
                    bytes_done=done,
                    bytes_total=int(message.get("total", 0)),
                    bytes_written=int(message.get("written", 0)),
                    bytes_skipped=int(message.get("skipped", 0)),
                    phase=str(message.get("phase", "")),
                    rate=self._rate(done),
                )
            case "phase":
                sizes = {k: int(message[k]) for k in ("new_size", "bytes_total") if k in message}
                self.show(phase=str(message.get("phase", "")), **sizes)
            case "checked":
                self.show(
                    last_checked=int(message.get("at", 0)),
                    extra={**self._status.extra, "answer": str(message.get("answer", ""))},
                )
            case "note":
                self._tell(str(message.get("note", "note")), **dict(message.get("facts") or {}))
            case _:
                self._tell("errand-unknown-word", word=str(message.get("say")))

    def _rate(self, done: int) -> float:
        now = self._monotonic()
        if self._rate_mark is None or done < self._rate_mark[1]:
            self._rate_mark = (now, done)
            return 0.0
        then, before = self._rate_mark
        if now - then < 0.5:
            return self._status.rate
        fresh = (done - before) / (now - then)
        self._rate_mark = (now, done)
        old = self._status.rate
        return fresh if old == 0 else 0.7 * old + 0.3 * fresh

    async def _close(
        self, job: Job, kind: str, end: Mapping[str, Any], error: BasculeError | None
    ) -> None:
        """Bring state and ledger together after an errand, however it ended."""
        if self._stop_asked is not None and error is not None and not end.get("staged"):
            error = self._stop_asked
        if kind == "ping":
            job.result, job.error = ("failed", error) if error else ("done", None)
            if self._status.state is State.UPDATED_NEED_REBOOT:
                self._move(Event.PINGED)
            return
        verdict = await self.settle()
        if verdict is Verdict.WAITING:
            if self._status.state is State.FINALIZING:
                self._move(Event.STAGED, phase="")
            elif self._status.state is not State.UPDATED_NEED_REBOOT:
                self._abandon()
                self._move(Event.FOUND_STAGED, phase="")
            job.result = "done"
            facts = dict(end.get("outcome") or {})
            job.outcome = {**facts, "staged": self._status.new_version}
            self._tell("staged", attempt=self._status.attempt, **facts)
            return
        if error is None:
            self._end_quietly()
            job.result = str(end.get("result") or "done")
            job.outcome = dict(end.get("outcome") or {})
            if job.result == "no-update":
                job.error = NoUpdate(str(job.outcome.get("why", "")))
            return
        job.result, job.error = "failed", error
        if isinstance(error, Stopped):
            self._abandon()
            return
        failure = Failure(error.id, error.number, str(error), error.remedy, int(self._clock()))
        if self._status.state is not State.REPORTING_ERROR_EVENT:
            self._move(Event.FAILED, failure=failure, phase="")
        self._tell("attempt-failed", error=error.as_dict(), attempt=self._status.attempt)
        self._move(
            Event.FAILURE_TOLD, failure=failure, phase="", new_version="", new_size=0, rate=0.0
        )

    def _end_quietly(self) -> None:
        if self._status.state in (State.CHECKING_FOR_UPDATE, State.UPDATE_AVAILABLE):
            self._move(
                Event.NOTHING_OFFERED, failure=None, phase="", new_version="", new_size=0, rate=0.0
            )
        else:
            self._abandon()

    def _abandon(self) -> None:
        if self._status.state in INSTALLING:
            self._move(Event.STOPPED, phase="", new_version="", new_size=0, rate=0.0)

    # ── what the faces ask ───────────────────────────────────────────────────────────────────

    async def check(self, actor: Actor) -> Job:
        self._require_idle()
        self._require_server()
        self._tell("asked", verb="check", actor=dataclasses.asdict(actor))
        return self.begin("check", {}, actor)

    async def update(self, options: Mapping[str, Any], actor: Actor) -> Job:
        unknown = set(options) - UPDATE_OPTIONS
        if unknown:
            raise UsageError(f"unknown option {', '.join(sorted(unknown))}")
        self._require_idle()
        if not options.get("file") and not options.get("repository"):
            self._require_server()
        if self.verdict is Verdict.ON_TRIAL:
            raise BootedSlotNotBlessed(self._status.sentence)
        await self.permit(options)
        self._require_idle()
        self._tell("asked", verb="update", actor=dataclasses.asdict(actor), options=dict(options))
        return self.begin("update", options, actor)

    def _require_idle(self) -> None:
        if self.busy:
            raise Busy(self._status.state.name.lower().replace("_", " "))
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
        self._tell("asked", verb="cancel", actor=dataclasses.asdict(actor))
        if self.busy:
            await self.stop_errand(Stopped("by the operator"))
            if self._status.state is not State.UPDATED_NEED_REBOOT:
                return "The attempt was stopped; it goes on where it was at the next update."
        if self._status.state is State.UPDATED_NEED_REBOOT:
            return await self._withdraw()
        if self.verdict is Verdict.UNFINISHED:
            await asyncio.to_thread(self.ledger.set, intent=None)
            return "The interrupted attempt was given up."
        raise NothingPending("no attempt is under way and no slot is staged")

    async def reset(self, actor: Actor) -> str:
        if self.busy:
            raise Busy(self._status.state.name.lower().replace("_", " "))
        if self._status.state is State.UPDATED_NEED_REBOOT:
            self._tell("asked", verb="reset", actor=dataclasses.asdict(actor))
            return await self._withdraw()
        self.show(failure=None)
        return "Nothing was staged."

    async def _withdraw(self) -> str:
        version = self._status.new_version

        def work() -> None:
            record = self.ledger.read()
            intent = Intent.from_dict(record.intent)
            if intent is not None:
                self._boot().cancel(intent.target)
            # Flags first: an intent without a staged slot is harmless, the reverse boots unannounced.
            self.ledger.update(
                lambda r: replace(
                    r,
                    intent=None,
                    previous_version="",
                    releases={
                        k: v
                        for k, v in r.releases.items()
                        if intent is None or k != intent.target.name
                    },
                )
            )

        await asyncio.to_thread(work)
        self.on_withdrawn()
        await self.settle()
        self._move(Event.WITHDRAWN, new_version="", new_size=0)
        self._tell("withdrawn", version=version)
        return f"Release {version} is no longer staged; the next boot is the running release."

    def on_withdrawn(self) -> None:
        """Remove the markers that other programs watch; the daemon replaces this."""

    async def rollback(self, options: Mapping[str, Any], actor: Actor) -> str:
        unknown = set(options) - {"once", "no_quarantine"}
        if unknown:
            raise UsageError(f"unknown option {', '.join(sorted(unknown))}")
        if options.get("once"):
            raise UsageError("a rollback for one boot only is not built yet; leave --once away")
        if self.busy:
            raise Busy(self._status.state.name.lower().replace("_", " "))
        if self._status.state is State.UPDATED_NEED_REBOOT:
            raise Busy(f"{self._status.sentence} Take it back with `updatectl cancel` instead.")

        def work() -> tuple[str, str]:
            backend = self._boot()
            other, running = backend.booted.other, backend.booted
            backend.prefer(other)
            now = int(self._clock())

            def change(record: Record) -> Record:
                intent = Intent.from_dict(record.intent)
                payload = intent.payload if intent and intent.target is running else ""
                told = record.verdict
                if not payload and told.get("slot") == running.name:
                    payload = str(told.get("payload") or "")
                if payload and not options.get("no_quarantine"):
                    record = quarantine(
                        record,
                        payload,
                        version=record.releases.get(running.name, ""),
                        kind="operator",
                        reason="rolled back by the operator",
                        now=now,
                    )
                return replace(record, intent=None, previous_version="")

            record = self.ledger.update(change)
            return record.releases.get(other.name, "") or f"slot {other.name}", other.name

        version, slot = await asyncio.to_thread(work)
        self._tell(
            "rollback",
            actor=dataclasses.asdict(actor),
            version=version,
            slot=slot,
            once=bool(options.get("once")),
        )
        await self.settle()
        how = "once, at the next boot" if options.get("once") else "at the next boot and after"
        return f"{version} (slot {slot}) starts {how}; reboot when it suits."

    async def reboot(self, actor: Actor) -> str:
        if self._status.state is not State.UPDATED_NEED_REBOOT:
            raise NothingPending("no release is staged, so there is nothing to reboot into")
        self._tell("asked", verb="reboot", actor=dataclasses.asdict(actor))
        await self.reboot_now()
        return f"The reboot into {self._status.new_version} is under way."

    async def permit(self, options: Mapping[str, Any]) -> None:
        """Raise PolicyRefusal if a gate holds back what was asked for; the daemon replaces this."""

    async def reboot_now(self) -> None:
        """Reboot for an operator; the daemon replaces this."""
        raise NothingPending("no reboot is set up")

    async def document(self, name: str, options: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
        if name not in self.documents:
            raise UsageError(
                f"unknown document {name}; known are {', '.join(sorted(self.documents))}"
            )
        return {"schema": 1, **await self.documents[name](options)}

    async def act(self, verb: str, options: Mapping[str, Any], actor: Actor) -> str:
        if verb not in self.acts:
            raise UsageError(f"unknown verb {verb}; known are {', '.join(sorted(self.acts))}")
        self._tell("asked", verb=verb, actor=dataclasses.asdict(actor), options=dict(options))
        return await self.acts[verb](options, actor)

    async def stop_errand(self, reason: BasculeError) -> None:
        """Stop the errand, if there is one, and wait for its end."""
        self._stop_asked = reason
        if self._errand is not None:
            self._errand.stop()
        await self.idle()

    # ── documents and acts ───────────────────────────────────────────────────────────────────

    async def _quarantine_document(self, options: Mapping[str, Any]) -> dict[str, Any]:
        record = await asyncio.to_thread(self.ledger.read)
        return {
            "quarantine": [
                {"payload": digest, **entry}
                for digest, entry in sorted(
                    record.quarantine.items(), key=lambda i: i[1].get("at", 0)
                )
            ]
        }

    async def _slots_document(self, options: Mapping[str, Any]) -> dict[str, Any]:
        await self.settle()
        return {"slots": [dataclasses.asdict(s) for s in self._status.slots]}

    async def _clear_quarantine(self, options: Mapping[str, Any], actor: Actor) -> str:
        wanted = str(options.get("payload") or options.get("version") or "")
        cleared: list[str] = []

        def change(record: Record) -> Record:
            cleared.clear()
            kept = {}
            for digest, entry in record.quarantine.items():
                if not wanted or digest.startswith(wanted) or entry.get("version") == wanted:
                    cleared.append(str(entry.get("version") or digest[:12]))
                else:
                    kept[digest] = entry
            # Back-off would go on refusing what the operator has just allowed.
            return replace(record, quarantine=kept, payload_state={})

        await asyncio.to_thread(self.ledger.update, change)
        await self.settle()
        if not cleared:
            raise NothingPending(
                f"nothing in quarantine matches {wanted!r}" if wanted else "the quarantine is empty"
            )
        return f"Cleared: {', '.join(sorted(cleared))}."

    async def _settle_act(self, options: Mapping[str, Any], actor: Actor) -> str:
        if not self.busy:
            verdict = await self.settle()
            if verdict is Verdict.WAITING and self._status.state is State.IDLE:
                self._move(Event.FOUND_STAGED)
        return self._status.sentence


def slot_statuses(backend: BootBackend, record: Record) -> tuple[SlotStatus, ...]:
    """Both slots as an operator sees them."""
    flags = backend.flags()
    following = backend.next()
    intent = Intent.from_dict(record.intent)
    out = []
    for slot in (Slot.A, Slot.B):
        if slot not in flags:
            continue
        version = record.releases.get(slot.name, "")
        if intent is not None and slot is intent.target and intent.phase is not Phase.WRITING:
            version = intent.version
        flag = flags[slot]
        out.append(
            SlotStatus(
                slot.name,
                slot is backend.booted,
                slot is following,
                flag.priority,
                flag.tries,
                flag.successful,
                version,
                words(flag),
            )
        )
    return tuple(out)
