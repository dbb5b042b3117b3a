"""What the doctor finds: one value for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def report(findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The document ``doctor``.

    Args:
        findings: in the form of `Finding.as_dict`.
    """
    errors = sum(f["severity"] == ERROR for f in findings)
    warnings = sum(f["severity"] == WARNING for f in findings)
    counted = [
        f"{count} {word}{'s' if count > 1 else ''}"
        for count, word in ((errors, "error"), (warnings, "warning"))
        if count
    ]
    sentences = [f"{' and '.join(counted)} found." if counted else "No damage was found."]
    for finding in findings:
        sentences += [f"{finding['severity']}: {finding['sentence']}", f"    {finding['remedy']}"]
    return {"sentences": sentences, "findings": list(findings), "ok": not counted}
