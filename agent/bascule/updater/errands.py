"""Errands as jobs: started, heard, and brought together with the ledger when they end.

Whatever an errand says last, what is believed is what the ledger and the slots say after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from bascule.errors import BasculeError, Busy, ErrandCrashed, NoUpdate, Stopped, from_dict
from bascule.updater.machine import INSTALLING, Event
from bascule.updater.rate import Rate
from bascule.updater.status import Failure, State
from bascule.updater.steering import Actor, Job
from bascule.updater.verdict import Verdict

if TYPE_CHECKING:
    from bascule.updater.updater import Updater


class Errand(Protocol):
    """A running child process: its messages, and a way to stop it."""

    def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]: ...

    def stop(self) -> None:
        """Ask it to end; it keeps its checkpoint."""
        ...


Launch = Callable[[Mapping[str, Any]], Awaitable[Errand]]


class Errands:
    """The errands of one `Updater`, one at a time.

    Args:
        launch: starts one.
        monotonic: for rates, seconds.

    Attributes:
        end: the last words of the last one.
    """

    def __init__(self, updater: Updater, *, launch: Launch, monotonic: Callable[[], float]) -> None:
        self._updater = updater
        self._launch = launch
        self._rate = Rate(monotonic)
        self._jobs = 0
        self._job: Job | None = None
        self._errand: Errand | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_asked: BasculeError | None = None
        self.end: dict[str, Any] = {}

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
            raise Busy(self._updater.status.state.words)
        if (
            kind == "update"
            and actor.via == "schedule"
            and (self._updater.detour or self._updater.giveup)
        ):
            kind = "check"
        self._jobs += 1
        job = self._job = Job(self._jobs, kind)
        self._stop_asked = None
        self._task = asyncio.create_task(self._run(job, kind, dict(options), actor))
        self._updater.tell_job(job)
        return job

    async def _run(self, job: Job, kind: str, options: dict[str, Any], actor: Actor) -> None:
        end: Mapping[str, Any] = {}
        error: BasculeError | None = None
        if kind != "ping":
            self._updater.move(
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
        self._rate.reset()
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
        self.end = dict(end)
        try:
            await self._close(job, kind, end, error)
        except BasculeError as raised:
            self._updater.tell("settlement-failed", error=raised.as_dict())
            job.error = job.error or raised
            job.result = "failed"
            self._abandon()
        finally:
            self._job = None
            self._updater.tell_job(job)

    # ── what it says ─────────────────────────────────────────────────────────────────────────

    def _hear(self, message: Mapping[str, Any]) -> None:
        match message.get("say"):
            case "event":
                event = Event[str(message["event"])]
                fields = {
                    k: message[k]
                    for k in ("new_version", "new_size", "attempt", "bytes_total", "phase")
                    if k in message
                }
                self._updater.move(event, **fields)
            case "progress":
                done = int(message.get("done", 0))
                self._updater.show(
                    bytes_done=done,
                    bytes_total=int(message.get("total", 0)),
                    bytes_written=int(message.get("written", 0)),
                    bytes_skipped=int(message.get("skipped", 0)),
                    phase=str(message.get("phase", "")),
                    rate=self._rate.at(done),
                )
            case "phase":
                sizes = {k: int(message[k]) for k in ("new_size", "bytes_total") if k in message}
                self._updater.show(phase=str(message.get("phase", "")), **sizes)
            case "checked":
                self._updater.show(
                    last_checked=int(message.get("at", 0)),
                    extra={**self._updater.status.extra, "answer": str(message.get("answer", ""))},
                )
            case "note":
                self._updater.tell(
                    str(message.get("note", "note")), **dict(message.get("facts") or {})
                )
            case _:
                self._updater.tell("errand-unknown-word", word=str(message.get("say")))

    async def _close(
        self, job: Job, kind: str, end: Mapping[str, Any], error: BasculeError | None
    ) -> None:
        """Bring state and ledger together after an errand, however it ended."""
        if self._stop_asked is not None and error is not None and not end.get("staged"):
            error = self._stop_asked
        if kind == "ping":
            job.result, job.error = ("failed", error) if error else ("done", None)
            if self._updater.status.state is State.UPDATED_NEED_REBOOT:
                self._updater.move(Event.PINGED)
            return
        verdict = await self._updater.settle()
        if verdict is Verdict.WAITING:
            self._updater.staged()
            if self._updater.status.state is State.FINALIZING:
                self._updater.move(Event.STAGED, phase="")
            elif self._updater.status.state is not State.UPDATED_NEED_REBOOT:
                self._abandon()
                self._updater.move(Event.FOUND_STAGED, phase="")
            job.result = "done"
            facts = dict(end.get("outcome") or {})
            job.outcome = {**facts, "staged": self._updater.status.new_version}
            self._updater.tell("staged", attempt=self._updater.status.attempt, **facts)
            return
        if error is None:
            self._end_quietly()
            job.result = str(end.get("result") or "done")
            job.outcome = dict(end.get("outcome") or {})
            if job.outcome.get("what") == "prepared":
                job.outcome = {**job.outcome, "sentence": self._updater.status.sentence}
                self._updater.tell(
                    "prepared", attempt=self._updater.status.attempt, **dict(end["outcome"])
                )
            if job.result == "no-update":
                job.error = NoUpdate(str(job.outcome.get("why", "")))
            return
        job.result, job.error = "failed", error
        if isinstance(error, Stopped):
            self._abandon()
            return
        failure = Failure(
            error.id, error.number, str(error), error.remedy, int(self._updater.clock())
        )
        if self._updater.status.state is not State.REPORTING_ERROR_EVENT:
            self._updater.move(Event.FAILED, failure=failure, phase="")
        self._updater.tell(
            "attempt-failed", error=error.as_dict(), attempt=self._updater.status.attempt
        )
        self._updater.move(
            Event.FAILURE_TOLD, failure=failure, phase="", new_version="", new_size=0, rate=0.0
        )

    def _end_quietly(self) -> None:
        rest: dict[str, Any] = {"phase": "", "new_version": "", "new_size": 0, "rate": 0.0}
        if self._updater.status.state is State.FINALIZING:
            self._updater.move(Event.PREPARED, failure=None, **rest)
        elif self._updater.status.state in (State.CHECKING_FOR_UPDATE, State.UPDATE_AVAILABLE):
            self._updater.move(Event.NOTHING_OFFERED, failure=None, **rest)
        else:
            self._abandon()

    def _abandon(self) -> None:
        if self._updater.status.state in INSTALLING:
            self._updater.move(Event.STOPPED, phase="", new_version="", new_size=0, rate=0.0)

    async def stop(self, reason: BasculeError) -> None:
        """Stop the errand, if there is one, and wait for its end."""
        self._stop_asked = reason
        if self._errand is not None:
            self._errand.stop()
        await self.idle()
