"""A boot of the other slot for one time: what the ledger says of it, and how it ends.

The ledger's record is durable before the flags change and goes after they are as they were, so
every power cut ends in a host that boots the slot it ran from, and whose other slot is good again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bascule.engine.boot import BootBackend
from bascule.engine.ledger import Ledger, Record
from bascule.formats.slots import Slot


class Detour(enum.Enum):
    """Where a boot for one time stands."""

    WAITING = "it comes with the next boot"
    RUNNING = "this is it"
    OVER = "it is over"


@dataclass(frozen=True, slots=True)
class Once:
    """What the ledger says.

    Attributes:
        target: the slot that is booted for one time; `version` its release.
        origin: the slot that ran, and runs again after it; `origin_version` its release.
        boot_id: the boot in which it was asked for.
        at: unix seconds.
        ran: id of the one boot, or "".
    """

    target: Slot
    origin: Slot
    boot_id: str
    at: int
    version: str = ""
    origin_version: str = ""
    ran: str = ""

    def stands(self, booted: Slot, boot_id: str) -> Detour:
        """Where it stands in this boot. A second boot of the target means that the origin did not
        come back: nothing is left to wait for."""
        if booted is self.origin:
            return Detour.WAITING if boot_id == self.boot_id else Detour.OVER
        if boot_id == self.boot_id:
            return Detour.OVER
        return Detour.RUNNING if self.ran in ("", boot_id) else Detour.OVER

    def sentence(self, detour: Detour) -> str:
        """How it stands, for an operator."""
        target = self.target.name + (f" ({self.version})" if self.version else "")
        origin = self.origin.name + (f" ({self.origin_version})" if self.origin_version else "")
        match detour:
            case Detour.WAITING:
                return (
                    f"Slot {target} starts once with the next reboot; "
                    f"the boot after it is slot {origin} again."
                )
            case Detour.RUNNING:
                return (
                    f"This boot of slot {target} is for once; "
                    f"the next reboot goes back to slot {origin}."
                )
            case _:
                return f"The one boot of slot {target} is over."

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in `ledger.Record.once`."""
        return {
            "target": self.target.name,
            "origin": self.origin.name,
            "boot_id": self.boot_id,
            "at": self.at,
            "version": self.version,
            "origin_version": self.origin_version,
            "ran": self.ran,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Once | None:
        """The inverse; None for nothing, and for what no agent of this version wrote."""
        if not data:
            return None
        try:
            found = cls(
                target=Slot(data["target"]),
                origin=Slot(data["origin"]),
                boot_id=str(data["boot_id"]),
                at=int(data["at"]),
                version=str(data.get("version") or ""),
                origin_version=str(data.get("origin_version") or ""),
                ran=str(data.get("ran") or ""),
            )
        except (KeyError, TypeError, ValueError):
            return None
        return found if found.target is not found.origin else None


def begin_once(backend: BootBackend, ledger: Ledger, once: Once) -> None:
    """Record it, then let the target boot once. Blocks. Raises BootError, StorageError."""
    ledger.set(once=once.as_dict())
    try:
        backend.once(once.target)
    except BaseException:
        end_once(backend, ledger, once)
        raise


def end_once(backend: BootBackend, ledger: Ledger, once: Once) -> None:
    """The flags as they were, then the record goes. Blocks. Raises BootError, StorageError."""
    backend.reinstate(once.target, once.origin)
    ledger.set(once={})


def settle_once(
    backend: BootBackend, ledger: Ledger, record: Record, boot_id: str
) -> tuple[Once, Detour] | None:
    """Bring flags and ledger to where the boot for one time stands. Blocks. Idempotent.

    In the one boot the target's success is given back at once: it must be there to fall back to
    if the origin fails to boot.
    """
    once = Once.from_dict(record.once)
    if once is None:
        if record.once:
            ledger.set(once={})
        return None
    detour = once.stands(backend.booted, boot_id)
    match detour:
        case Detour.RUNNING:
            backend.reinstate(once.target, once.origin)
            if not once.ran:
                once = replace(once, ran=boot_id)
                ledger.set(once=once.as_dict())
        case Detour.OVER:
            end_once(backend, ledger, once)
    return once, detour
