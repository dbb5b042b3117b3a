"""What a face may ask of the updater. The faces know this interface and nothing behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bascule.errors import BasculeError
from bascule.updater.status import Status


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: for history and the journal.

    Attributes:
        via: ``bus``, ``legacy-bus``, ``schedule`` or ``signal``.
        sender: unique bus name, or "".
        uid: numeric user id, or -1 where unknown.
        pid: process id, or -1.
    """

    via: str
    sender: str = ""
    uid: int = -1
    pid: int = -1


@dataclass(slots=True)
class Job:
    """One thing asked for, with an end. Changed by the updater only.

    Attributes:
        number: counts from 1 in the life of the daemon.
        kind: the verb.
        result: "" while it runs, then ``done``, ``no-update`` or ``failed``.
        error: why it failed.
        outcome: facts of the end, for ``--json``.
    """

    number: int
    kind: str
    result: str = ""
    error: BasculeError | None = None
    outcome: Mapping[str, Any] = field(default_factory=dict)


class Steering(Protocol):
    """The updater as the faces see it. Every verb may raise a `BasculeError`."""

    @property
    def status(self) -> Status:
        """The present status; a new value after every change."""
        ...

    def subscribe(self, listener: Callable[[Status, Status], None]) -> Callable[[], None]:
        """Call ``listener(old, new)`` in the loop after every change; returns the unsubscriber."""
        ...

    def on_job(self, listener: Callable[[Job], None]) -> Callable[[], None]:
        """Call ``listener(job)`` when a job begins and when it ends; returns the unsubscriber."""
        ...

    async def check(self, actor: Actor) -> Job:
        """Ask the server now, install nothing. Raises Busy."""
        ...

    async def update(self, options: Mapping[str, Any], actor: Actor) -> Job:
        """Ask the server and install what it offers. Raises Busy, UsageError (unknown option)."""
        ...

    async def attempt_update(self, actor: Actor) -> None:
        """The legacy AttemptUpdate: starts an update if idle, is silently ignored otherwise."""
        ...

    async def cancel(self, actor: Actor) -> str:
        """Stop what runs, or undo what is staged; returns one sentence. Raises NothingPending."""
        ...

    async def reset(self, actor: Actor) -> str:
        """The legacy ResetStatus, mended: undoes a staged slot. Raises Busy."""
        ...

    async def rollback(self, options: Mapping[str, Any], actor: Actor) -> str:
        """Prefer the other slot for the next boot; returns one sentence. Raises SlotNotBootable."""
        ...

    async def reboot(self, actor: Actor) -> str:
        """Reboot into what is staged, as policy allows; returns one sentence."""
        ...

    async def document(self, name: str, options: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
        """A read document (``history``, ``explain``, ``quarantine``, ``config`` …). Raises UsageError."""
        ...

    async def act(self, verb: str, options: Mapping[str, Any], actor: Actor) -> str:
        """Any further steering verb (``hold``, ``pin``, ``quarantine-clear`` …); returns one sentence. Raises UsageError."""
        ...
