"""What the doctor finds: one value for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Severities. A note is no damage and leaves the exit code alone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        id: stable name.
        severity: `ERROR` (updates or the way back are at stake), `WARNING` or `NOTE`.
        sentence: what was found.
        remedy: what to do about it.
        repair: does it and says what it did; None where the agent cannot. Blocks.
    """

    id: str
    severity: str
    sentence: str
    remedy: str
    repair: Callable[[], str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in ``updatectl doctor --json``."""
        return {
            "id": self.id,
            "severity": self.severity,
            "sentence": self.sentence,
            "remedy": self.remedy,
            "repairable": self.repair is not None,
        }


DOCTOR = "`updatectl doctor --repair` does it."
"""The remedy of whatever can be repaired."""
