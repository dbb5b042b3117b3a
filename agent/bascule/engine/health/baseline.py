"""What already failed before the reboot: a record that keeps old faults from condemning a new release."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bascule.engine.health.check import CheckResult, Outcome

_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Baseline:
    """The failures of the release that ran before.

    Attributes:
        version: the release that was judged.
        boot_id: the boot it was judged in (``/proc/sys/kernel/random/boot_id``).
        taken_at: unix seconds.
        failed: check name → what failed within it (unit names; empty for a plain check).
    """

    version: str
    boot_id: str
    taken_at: int
    failed: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, results: Iterable[CheckResult], *, version: str, boot_id: str, now: float
    ) -> Baseline:
        """Keep the failures among `results`; inconclusive ones excuse nothing later."""
        failed = {r.name: frozenset(r.subjects) for r in results if r.outcome is Outcome.FAIL}
        return cls(version, boot_id, int(now), failed)

    def as_dict(self) -> dict[str, Any]:
        """For the ledger."""
        return {
            "version": self.version,
            "boot_id": self.boot_id,
            "taken_at": self.taken_at,
            "failed": {name: sorted(subjects) for name, subjects in sorted(self.failed.items())},
        }

    @classmethod
    def from_dict(cls, data: Any) -> Baseline | None:
        """The reverse of `as_dict`; None where the record is not one: then nothing is excused."""
        if not isinstance(data, Mapping):
            return None
        failed, taken_at = data.get("failed"), data.get("taken_at")
        if not isinstance(failed, Mapping) or not isinstance(taken_at, int):
            return None
        if len(failed) > _LIMIT or not all(
            isinstance(name, str) and isinstance(subjects, list | tuple) and len(subjects) <= _LIMIT
            for name, subjects in failed.items()
        ):
            return None
        return cls(
            version=str(data.get("version", "")),
            boot_id=str(data.get("boot_id", "")),
            taken_at=taken_at,
            failed={n: frozenset(str(s) for s in subjects) for n, subjects in failed.items()},
        )


def passed_in(judged: Mapping[str, Any], boot_id: str) -> frozenset[str]:
    """Names of the checks that passed when boot `boot_id` was judged.

    Args:
        judged: what the ledger keeps of the last judgement (``ledger.Record.health``).
    """
    checks = judged.get("checks")
    if judged.get("boot_id") != boot_id or not isinstance(checks, list):
        return frozenset()
    return frozenset(
        str(check.get("name"))
        for check in checks
        if isinstance(check, Mapping) and check.get("outcome") == Outcome.PASS.name
    )
