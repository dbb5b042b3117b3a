"""What an attempt means to do, as the ledger keeps it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bascule.formats.slots import Slot


class Phase(enum.Enum):
    """How far an intent got; recorded before the step it names."""

    WRITING = "writing"
    STAGING = "staging"
    STAGED = "staged"


@dataclass(frozen=True, slots=True)
class Intent:
    """What the ledger says is meant to happen.

    Attributes:
        attempt: id of the attempt.
        version, payload: release and hex SHA-256 of its payload.
        target: the slot that is written.
        origin: the slot that ran at the time; `origin_version` its release.
        boot_id: kernel boot id of the boot that staged it.
        phase: how far it got.
        tries: boots granted on trial.
        at: unix seconds of the last change.
        size: bytes of the payload.
        lowers_floor: the operator allowed this downgrade explicitly.
        cost: what the installation took: download_s, apply_s, bytes, written, skipped.
        failure: why a boot on trial was given up, in one sentence, or "".
        trial_boot: boot id of the boot on trial that health judged, or "".
    """

    attempt: str
    version: str
    payload: str
    target: Slot
    origin: Slot
    origin_version: str
    boot_id: str
    phase: Phase
    tries: int
    at: int
    size: int = 0
    lowers_floor: bool = False
    cost: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""
    trial_boot: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in `ledger.Record.intent`."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["cost"] = dict(self.cost)
        data.update(target=self.target.name, origin=self.origin.name, phase=self.phase.value)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Intent | None:
        """The inverse; None for nothing, and for what no agent of this version wrote."""
        if not data:
            return None
        try:
            return cls(
                **{
                    **{f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data},
                    "target": Slot(data["target"]),
                    "origin": Slot(data["origin"]),
                    "phase": Phase(data["phase"]),
                    "tries": int(data["tries"]),
                    "at": int(data["at"]),
                    "cost": dict(data.get("cost") or {}),
                }
            )
        except (KeyError, TypeError, ValueError):
            return None
