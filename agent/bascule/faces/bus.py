"""``org.bascule.Update1``: everything that status shows, every verb, and jobs that end.

Reading is open to everybody; each steering method asks polkit (`faces.authority`). Errors are
named ``org.bascule.Update1.Error.*`` and carry their remedy (`faces.bus_values.RefusedCall`).
The texts in `bus_docs` and in `bus_shown` are the interface's documentation: they are served with
its introspection data.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, cast

from dbus_fast import introspection as intr
from dbus_fast.annotations import DBusDict, DBusObjectPath, DBusSignature, DBusStr
from dbus_fast.service import ServiceInterface, dbus_method, dbus_signal

from bascule.errors import BasculeError
from bascule.faces.authority import Authority
from bascule.faces.bus_changes import Changes
from bascule.faces.bus_connection import BusConnection, current_call
from bascule.faces.bus_docs import documented
from bascule.faces.bus_shown import (
    JOB_SHOWN,
    NO_JOB,
    SHOWN,
    JobView,
    View,
    properties_of,
)
from bascule.faces.bus_values import RefusedCall, answered, as_text
from bascule.faces.bus_wishes import name_of, wishes
from bascule.updater.status import Status
from bascule.updater.steering import Job, Steering

__all__ = ["INTERFACE", "JOB_INTERFACE", "NAME", "PATH", "BusFace"]

NAME = "org.bascule.Update1"
PATH = "/org/bascule/Update1"
INTERFACE = "org.bascule.Update1"
JOB_INTERFACE = "org.bascule.Update1.Job"

DOCUMENT_SCHEMA = 1
KEPT_JOBS = 16
KEPT_REFUSALS = 32
PROGRESS_INTERVAL = 0.25

# Options of Update that set a gate aside: they need more than the right to update.
OVERRIDING_OPTIONS = frozenset({"now", "allow_downgrade", "force", "ignore_quarantine"})
# Verbs of Act that are not a change of settings.
ACTION_OF_VERB = {
    "prepare": "update",
    "activate": "update",
    "deactivate": "cancel",
    "doctor-repair": "repair",
    "quarantine-clear": "override",
}


REACHING_OUT = frozenset({"plan", "list"})
"""Documents for which a server is asked."""


def action_of_document(name: str, options: Mapping[str, Any]) -> str:
    """The action that a document needs; "" for those that are open to all.

    Root's eyes are not lent to everybody: a file or repository that the caller names is read, and
    a server that is asked is asked, only for those who may do so by the verbs too.
    """
    if options.get("file") or options.get("repository"):
        return "update"
    return "check" if name in REACHING_OUT else ""


@properties_of(JOB_SHOWN)
class _JobObject(ServiceInterface):
    """One job on the bus."""

    def __init__(self, view: JobView, interval: float) -> None:
        super().__init__(JOB_INTERFACE)
        self.view = view
        self.changes = Changes(self, JOB_SHOWN, interval)
        self.changes.start(view)

    def introspect(self) -> intr.Interface:
        return documented(super().introspect(), JOB_SHOWN)

    def show(self, view: JobView) -> None:
        self.view = view
        self.changes.show(view)

    @dbus_signal()
    def Finished(
        self, result: str, error_id: str, message: str
    ) -> Annotated[tuple[str, str, str], DBusSignature("sss")]:
        return (result, error_id, message)


@properties_of(SHOWN)
class _Update1(ServiceInterface):
    """The interface itself; what it knows is the face's."""

    def __init__(self, face: BusFace) -> None:
        super().__init__(INTERFACE)
        self._face = face

    def introspect(self) -> intr.Interface:
        return documented(super().introspect(), SHOWN)

    @property
    def view(self) -> View:
        return self._face.view

    @dbus_method()
    async def Check(self) -> DBusObjectPath:
        with self._face.answering():
            actor = await self._face.authority.require("check", current_call())
            return self._face.offer(await self._face.steering.check(actor))

    @dbus_method()
    async def Update(self, options: DBusDict) -> DBusObjectPath:
        with self._face.answering():
            asked = wishes(options)
            action = "override" if any(asked.get(key) for key in OVERRIDING_OPTIONS) else "update"
            actor = await self._face.authority.require(action, current_call())
            return self._face.offer(await self._face.steering.update(asked, actor))

    @dbus_method()
    async def Cancel(self) -> DBusStr:
        with self._face.answering():
            actor = await self._face.authority.require("cancel", current_call())
            return as_text(await self._face.steering.cancel(actor))

    @dbus_method()
    async def Rollback(self, options: DBusDict) -> DBusStr:
        with self._face.answering():
            actor = await self._face.authority.require("rollback", current_call())
            return as_text(await self._face.steering.rollback(wishes(options), actor))

    @dbus_method()
    async def Reboot(self) -> DBusStr:
        with self._face.answering():
            actor = await self._face.authority.require("reboot", current_call())
            return as_text(await self._face.steering.reboot(actor))

    @dbus_method()
    async def Reset(self) -> DBusStr:
        with self._face.answering():
            actor = await self._face.authority.require("cancel", current_call())
            return as_text(await self._face.steering.reset(actor))

    @dbus_method()
    async def Act(self, verb: DBusStr, options: DBusDict) -> DBusStr:
        with self._face.answering():
            action = ACTION_OF_VERB.get(name_of(verb), "configure")
            actor = await self._face.authority.require(action, current_call())
            return as_text(await self._face.steering.act(verb, wishes(options), actor))

    @dbus_method()
    def Refusal(self) -> DBusStr:
        return as_text(json.dumps(self._face.refusal_of(current_call().sender or ""), default=str))

    @dbus_method()
    async def Document(self, name: DBusStr, options: DBusDict) -> DBusStr:
        with self._face.answering():
            asked = wishes(options)
            authority, call = self._face.authority, current_call()
            if action := action_of_document(name_of(name), asked):
                actor = await authority.require(action, call)
            else:
                actor = await authority.caller(call, "bus")
            document = await self._face.steering.document(name, asked, actor)
            return as_text(json.dumps({"schema": DOCUMENT_SCHEMA, **document}))


class BusFace:
    """Puts a `Steering` on the bus as ``org.bascule.Update1``.

    Args:
        connection: where to export; it need not be connected yet.
        progress_interval: seconds between two reports of mere progress.
    """

    def __init__(
        self,
        steering: Steering,
        connection: BusConnection,
        *,
        authority: Authority | None = None,
        progress_interval: float = PROGRESS_INTERVAL,
    ) -> None:
        self.steering = steering
        self.authority = authority or Authority(connection)
        self._connection = connection
        self._interval = progress_interval
        self._jobs: OrderedDict[int, _JobObject] = OrderedDict()
        self._refusals: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._interface = _Update1(self)
        self._job = NO_JOB
        self._changes = Changes(self._interface, SHOWN, progress_interval)
        self._changes.start(self.view)
        connection.export(PATH, self._interface)
        self._unsubscribe: list[Callable[[], None]] = [
            steering.subscribe(self._on_status),
            steering.on_job(self._on_job),
        ]

    @property
    def view(self) -> View:
        return View(self.steering.status, self._job)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """`answered`, and the refusal is kept for whoever wants more of it than its text."""
        try:
            with answered():
                yield
        except RefusedCall as refused:
            self._refusals[current_call().sender or ""] = refused.error.as_dict()
            while len(self._refusals) > KEPT_REFUSALS:
                self._refusals.popitem(last=False)
            raise

    def refusal_of(self, sender: str) -> dict[str, Any]:
        """The last error that `sender` (a unique bus name) got, or nothing; it is told once."""
        return self._refusals.pop(sender, {})

    def offer(self, job: Job) -> str:
        """The object path of `job`, exported if it was not yet."""
        self._object_of(job)
        return _job_path(job)

    def close(self) -> None:
        """Stop listening to the updater; the objects stay until the connection closes."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        self._changes.stop()
        for job in self._jobs.values():
            job.changes.stop()

    def _object_of(self, job: Job) -> _JobObject:
        known = self._jobs.get(job.number)
        if known is None:
            known = _JobObject(_job_view(job, self.steering.status), self._interval)
            self._jobs[job.number] = known
            self._connection.export(_job_path(job), known)
            while len(self._jobs) > KEPT_JOBS:
                number, oldest = next(iter(self._jobs.items()))
                if not oldest.view.result:
                    break
                oldest.changes.stop()
                self._connection.unexport(f"{PATH}/job/{number}")
                del self._jobs[number]
        return known

    def _on_status(self, old: Status, new: Status) -> None:
        self._changes.show(View(new, self._job))
        for job in self._jobs.values():
            if not job.view.result and not job.view.job.result:
                job.show(_job_view(job.view.job, new))

    def _on_job(self, job: Job) -> None:
        known = self._object_of(job)
        ended = bool(job.result) and not known.view.result
        if not job.result:
            self._job = _job_path(job)
        elif self._job == _job_path(job):
            self._job = NO_JOB
        self._changes.show(self.view)
        if job.result:
            known.show(_job_view(job, self.steering.status))
            # Whoever hears Finished must find every property as it will stay.
            self._changes.flush()
            known.changes.flush()
        if ended:
            known.Finished(*_ending(job))


def _job_path(job: Job) -> str:
    return f"{PATH}/job/{job.number}"


def _job_view(job: Job, status: Status) -> JobView:
    # The updater changes its job in place; what was shown must stay to tell what has changed.
    job = dataclasses.replace(job)
    if job.result:
        return JobView(job, job.result, "", 1.0 if job.result == "done" else 0.0)
    total = max(0, status.bytes_total)
    done = max(0, min(status.bytes_done, total or status.bytes_done))
    return JobView(job, "", status.phase, done / total if total else 0.0, done, total)


def _ending(job: Job) -> tuple[str, str, str]:
    error: BasculeError | None = job.error
    if error is None:
        return (job.result, "", "")
    return (job.result, error.id, as_text(str(error)))


def introspection_xml() -> str:
    """The documented interfaces as XML, for ``/usr/share/dbus-1/interfaces`` and the docs."""
    from xml.etree import ElementTree

    node = ElementTree.Element("node")
    for interface in (
        _Update1(cast(BusFace, None)),
        _JobObject(JobView(Job(0, "")), PROGRESS_INTERVAL),
    ):
        node.append(interface.introspect().to_xml())
    ElementTree.indent(node)
    return ElementTree.tostring(node, encoding="unicode") + "\n"
