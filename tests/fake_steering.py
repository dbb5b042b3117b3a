"""An updater in memory: it obeys the `Steering` protocol and moves when a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bascule.errors import BasculeError, Busy, NothingPending, SlotNotBootable, UsageError
from bascule.updater.status import SlotStatus, State, Status
from bascule.updater.steering import Actor, Job

SLOTS = (
    SlotStatus("A", True, True, 2, 0, True, "3510.2.0", "good: boots next"),
    SlotStatus("B", False, False, 0, 0, False, "", "empty: not bootable"),
)


class FakeSteering:
    """Verbs are recorded in `asked`; `begin`, `move` and `end` tell the story of a job."""

    def __init__(self, status: Status | None = None) -> None:
        self._status = status or Status(
            current_version="3510.2.0", group="stable", server="http://update/", slots=SLOTS
        )
        self.asked: list[tuple[str, dict[str, Any], Actor]] = []
        self.jobs: list[Job] = []
        self.documents: dict[str, dict[str, Any]] = {"history": {"entries": []}}
        self.refuse: BasculeError | None = None
        self.options = {"version", "file", "now", "no_reboot", "allow_downgrade"}
        self._listeners: list[Callable[[Status, Status], None]] = []
        self._job_listeners: list[Callable[[Job], None]] = []

    @property
    def status(self) -> Status:
        return self._status

    def subscribe(self, listener: Callable[[Status, Status], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def on_job(self, listener: Callable[[Job], None]) -> Callable[[], None]:
        self._job_listeners.append(listener)
        return lambda: self._job_listeners.remove(listener)

    def move(self, state: State | None = None, **changes: Any) -> None:
        old = self._status
        if state is not None:
            changes["state"] = state
        self._status = replace(old, **changes)
        for listener in list(self._listeners):
            listener(old, self._status)

    def begin(self, kind: str) -> Job:
        job = Job(len(self.jobs) + 1, kind)
        self.jobs.append(job)
        for listener in list(self._job_listeners):
            listener(job)
        return job

    def end(
        self,
        job: Job,
        result: str = "done",
        error: BasculeError | None = None,
        outcome: Mapping[str, Any] | None = None,
    ) -> None:
        job.result, job.error, job.outcome = result, error, dict(outcome or {})
        for listener in list(self._job_listeners):
            listener(job)

    def _note(self, verb: str, options: Mapping[str, Any], actor: Actor) -> None:
        self.asked.append((verb, dict(options), actor))
        if self.refuse is not None:
            raise self.refuse

    def _start(self, kind: str, options: Mapping[str, Any], actor: Actor) -> Job:
        self._note(kind, options, actor)
        if self._status.state is not State.IDLE:
            raise Busy(self._status.state.name)
        job = self.begin(kind)
        self.move(State.CHECKING_FOR_UPDATE)
        return job

    async def check(self, actor: Actor) -> Job:
        return self._start("check", {}, actor)

    async def update(self, options: Mapping[str, Any], actor: Actor) -> Job:
        if unknown := set(options) - self.options:
            raise UsageError(f"unknown option {sorted(unknown)[0]}")
        return self._start("update", options, actor)

    async def attempt_update(self, actor: Actor) -> None:
        if self._status.state is State.IDLE:
            self._start("update", {}, actor)
        else:
            self._note("attempt_update", {}, actor)

    async def cancel(self, actor: Actor) -> str:
        self._note("cancel", {}, actor)
        if self._status.state is State.IDLE:
            raise NothingPending()
        self.move(State.IDLE, new_version="", new_size=0)
        return "The download was stopped."

    async def reset(self, actor: Actor) -> str:
        self._note("reset", {}, actor)
        if self._status.state is State.IDLE:
            return "Nothing was staged."
        if self._status.state is not State.UPDATED_NEED_REBOOT:
            raise Busy(self._status.state.name)
        self.move(State.IDLE, new_version="", new_size=0)
        return "The staged release will not boot."

    async def rollback(self, options: Mapping[str, Any], actor: Actor) -> str:
        self._note("rollback", options, actor)
        if not any(slot.successful for slot in self._status.slots if not slot.booted):
            raise SlotNotBootable("slot B: empty: not bootable", slot="B")
        return "Slot B boots next."

    async def reboot(self, actor: Actor) -> str:
        self._note("reboot", {}, actor)
        return "Rebooting."

    async def document(self, name: str, options: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
        self._note(f"document {name}", options, actor)
        if name not in self.documents:
            raise UsageError(f"unknown document {name}")
        return self.documents[name]

    async def act(self, verb: str, options: Mapping[str, Any], actor: Actor) -> str:
        self._note(f"act {verb}", options, actor)
        return f"{verb}: done."
