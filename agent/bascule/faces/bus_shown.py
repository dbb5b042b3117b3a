"""What ``org.bascule.Update1`` shows: each property once, with its reader and documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from dbus_fast import PropertyAccess, Variant
from dbus_fast.annotations import DBusSignature
from dbus_fast.service import dbus_property

import bascule
from bascule.faces.bus_values import dictionary
from bascule.updater.status import Failure, SlotStatus, Status
from bascule.updater.steering import Job

__all__ = ["JOB_SHOWN", "NO_JOB", "SHOWN", "JobView", "Shown", "View", "properties_of"]

NO_JOB = "/"


@dataclass(frozen=True, slots=True)
class View:
    """What the properties of ``org.bascule.Update1`` are read from."""

    status: Status
    job: str = NO_JOB


@dataclass(frozen=True, slots=True)
class JobView:
    """What the properties of a job are read from; the job itself changes, so it is copied."""

    job: Job
    result: str = ""
    phase: str = ""
    progress: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class Shown:
    """One read-only property.

    Attributes:
        name: as it is called on the bus.
        signature: its D-Bus type.
        read: its value, of a `View` or `JobView`, in the shape that dbus-fast wants.
        doc: its documentation, in the introspection data.
        fluid: it moves during a download, so its changes are gathered and sent at most four
            times a second.
    """

    name: str
    signature: str
    read: Callable[[Any], Any]
    doc: str
    fluid: bool = False


def _slot(slot: SlotStatus) -> dict[str, Variant]:
    return dictionary(
        {
            "name": slot.name,
            "booted": slot.booted,
            "next": slot.next,
            "priority": slot.priority,
            "tries": slot.tries,
            "successful": slot.successful,
            "version": slot.version,
            "words": slot.words,
        }
    )


def _failure(failure: Failure | None) -> dict[str, Variant]:
    if failure is None:
        return {}
    return dictionary(
        {
            "id": failure.id,
            "number": failure.number,
            "message": failure.message,
            "remedy": failure.remedy,
            "at": failure.at,
        }
    )


def _part(done: int, total: int) -> float:
    return min(1.0, done / total) if total > 0 else 0.0


def _s(name: str, read: Callable[[Status], Any], doc: str) -> Shown:
    return Shown(name, "s", lambda view: read(view.status), doc)


def _x(name: str, read: Callable[[Status], Any], doc: str, fluid: bool = False) -> Shown:
    return Shown(name, "x", lambda view: read(view.status), doc, fluid)


def _t(name: str, read: Callable[[Status], Any], doc: str, fluid: bool = True) -> Shown:
    return Shown(name, "t", lambda view: max(0, read(view.status)), doc, fluid)


SHOWN: tuple[Shown, ...] = (
    Shown("Version", "s", lambda view: bascule.__version__, "The version of the daemon."),
    _s(
        "State",
        lambda s: s.state.name,
        "IDLE, CHECKING_FOR_UPDATE, UPDATE_AVAILABLE, DOWNLOADING, VERIFYING, FINALIZING, "
        "UPDATED_NEED_REBOOT or REPORTING_ERROR_EVENT.",
    ),
    _x("Since", lambda s: s.since, "When this state began, in unix seconds."),
    _s(
        "Sentence",
        lambda s: s.sentence,
        "One plain sentence about where this host stands; empty if there is nothing to say.",
    ),
    _s(
        "Verdict",
        lambda s: s.verdict,
        "The fate of the last update: NOTHING_PENDING, UNFINISHED, WAITING, ON_TRIAL, UPDATED, "
        "ROLLED_BACK or WITHDRAWN.",
    ),
    _s("CurrentVersion", lambda s: s.current_version, "The release that is running."),
    _s("NewVersion", lambda s: s.new_version, "The release on offer or installed, or empty."),
    _t("NewSize", lambda s: s.new_size, "The size of its payload in bytes, or 0.", fluid=False),
    _s(
        "Attempt",
        lambda s: s.attempt,
        "The id of the attempt under way; it appears in every log line and request of it.",
    ),
    _s("Group", lambda s: s.group, "The group (channel) that the update server is asked for."),
    _s("Server", lambda s: s.server, "The address of the update server."),
    _x("LastChecked", lambda s: s.last_checked, "Last successful check, unix seconds, 0: never."),
    _x("LastUpdated", lambda s: s.last_updated, "Last successful update, unix seconds, 0: never."),
    _x("NextCheck", lambda s: s.next_check, "When the server is asked next, unix seconds, 0: no."),
    _s("Phase", lambda s: s.phase, "What the attempt does now, for example download or verify."),
    Shown(
        "Progress",
        "d",
        lambda view: _part(view.status.bytes_done, view.status.bytes_total),
        "How much of the present phase is done, 0.0 to 1.0.",
        fluid=True,
    ),
    _t("BytesDone", lambda s: s.bytes_done, "Bytes of the present phase that are done."),
    _t("BytesTotal", lambda s: s.bytes_total, "Bytes of the present phase, 0 where unknown."),
    _t("BytesWritten", lambda s: s.bytes_written, "Bytes written to the other slot."),
    _t(
        "BytesSkipped",
        lambda s: s.bytes_skipped,
        "Bytes that the other slot held already, so they were not written.",
    ),
    Shown(
        "Rate", "d", lambda view: float(view.status.rate), "Bytes per second, 0.0: unknown.", True
    ),
    _x("Eta", lambda s: s.eta, "Seconds to the end of the download, -1 where unknown.", True),
    Shown(
        "Slots",
        "aa{sv}",
        lambda view: [_slot(slot) for slot in view.status.slots],
        "Both slots: name, booted, next, priority, tries, successful, version, words.",
    ),
    Shown(
        "LastError",
        "a{sv}",
        lambda view: _failure(view.status.failure),
        "The last error: id, number, message, remedy, at; empty if there is none.",
    ),
    Shown(
        "Quarantine",
        "u",
        lambda view: max(0, view.status.quarantine),
        "How many releases failed here and are not tried again.",
    ),
    Shown(
        "BlockedBy",
        "aa{sv}",
        lambda view: [dictionary(gate) for gate in view.status.blocked_by],
        "The gates that hold the next step back (the reboot where a release is staged, else the "
        "update): name, blocks, verdict, reason, evidence, until, override, error; empty: none.",
    ),
    Shown(
        "Warnings",
        "as",
        lambda view: list(view.status.warnings),
        "Sentences about what an operator should look at.",
    ),
    Shown(
        "Stale",
        "b",
        lambda view: view.status.stale,
        "No check has succeeded for longer than `policy.stale_after`.",
    ),
    Shown(
        "Extra",
        "a{sv}",
        lambda view: dictionary(view.status.extra),
        "Further facts, whose keys may come and go between versions.",
    ),
    Shown(
        "Job",
        "o",
        lambda view: view.job,
        "The job under way, or / if there is none.",
    ),
)

JOB_SHOWN: tuple[Shown, ...] = (
    Shown("Number", "u", lambda view: view.job.number, "Counts from 1 in the daemon's life."),
    Shown(
        "Kind",
        "s",
        lambda view: view.job.kind,
        "What it does: activate, check, ping, prepare or update.",
    ),
    Shown(
        "State",
        "s",
        lambda view: "ended" if view.result else "running",
        "running or ended.",
    ),
    Shown(
        "Result",
        "s",
        lambda view: view.result,
        "Empty while it runs, then done, no-update or failed.",
    ),
    Shown("Phase", "s", lambda view: view.phase, "What it does now.", True),
    Shown("Progress", "d", lambda view: view.progress, "Of the present phase, 0.0 to 1.0.", True),
    Shown("BytesDone", "t", lambda view: view.bytes_done, "Bytes of the phase, done.", True),
    Shown("BytesTotal", "t", lambda view: view.bytes_total, "Bytes of the phase, or 0.", True),
    Shown(
        "Error",
        "a{sv}",
        lambda view: dictionary(view.job.error.as_dict()) if view.job.error else {},
        "Why it failed: id, number, message, detail, remedy, exit, context; else empty.",
    ),
    Shown(
        "Outcome",
        "a{sv}",
        lambda view: dictionary(view.job.outcome),
        "Facts of its end; empty while it runs.",
    ),
)


def properties_of(shown: tuple[Shown, ...]) -> Callable[[type[Any]], type[Any]]:
    """Class decorator: give a `ServiceInterface` one read-only property per entry.

    The class must have a ``view`` to read them from.
    """

    def give(cls: type[Any]) -> type[Any]:
        for entry in shown:
            setattr(cls, entry.name, _property(entry))
        return cls

    return give


def _property(entry: Shown) -> Any:
    def getter(self: Any) -> Any:
        return entry.read(self.view)

    getter.__name__ = getter.__qualname__ = entry.name
    getter.__doc__ = entry.doc
    getter.__annotations__ = {"return": Annotated[Any, DBusSignature(entry.signature)]}
    return dbus_property(access=PropertyAccess.READ, name=entry.name)(getter)
