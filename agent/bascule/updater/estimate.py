"""How long an update would take here, by what earlier ones took. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LATEST = 5
"""Updates that count: lines and disks change."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What this host's last installations were like.

    Attributes:
        updates: how many they were, at least 1.
        download: bytes of payload per second while streaming (fetch and write go together).
        apply: bytes of image per second from the last byte to the staged slot (read-back, the new
            image's own step); 0.0 where unknown.
        kept: share of the image's bytes that the slot held already, 0.0 to 1.0.
        downtime: seconds that the last reboot took the host away, or None.
    """

    updates: int
    download: float
    apply: float
    kept: float
    downtime: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds; `downtime` None where no earlier update tells."""

    download: float
    apply: float
    downtime: float | None

    @property
    def total(self) -> float:
        """From the first byte to the staged slot."""
        return self.download + self.apply


def rates(records: Iterable[Mapping[str, Any]]) -> Rates | None:
    """From history records, oldest first; None where no installation is on record."""
    staged: list[Mapping[str, Any]] = []
    downtime: float | None = None
    for record in records:
        facts = record.get("facts")
        if not isinstance(facts, Mapping):
            continue
        if record.get("kind") == "staged" and _number(facts.get("download_s")) > 0:
            staged.append(facts)
        elif record.get("kind") == "verdict" and "downtime_s" in facts:
            downtime = _number(facts["downtime_s"]) or downtime
    staged = staged[-LATEST:]

    def total(name: str) -> float:
        return sum(_number(facts.get(name)) for facts in staged)

    fetched, image = total("bytes"), total("written") + total("skipped")
    if fetched <= 0:
        return None
    return Rates(
        updates=len(staged),
        download=fetched / total("download_s"),
        apply=image / total("apply_s") if total("apply_s") > 0 else 0.0,
        kept=total("skipped") / image if image > 0 else 0.0,
        downtime=downtime,
    )


def estimate(known: Rates, fetch: int, image: int, limit: int = 0) -> Estimate:
    """How long it takes at these rates.

    Args:
        fetch: bytes of payload that are still to come.
        image: bytes of the new image.
        limit: `download.rate_limit`, bytes per second; 0 for none.
    """
    rate = min(known.download, limit) if limit > 0 else known.download
    return Estimate(
        download=fetch / rate if rate > 0 else 0.0,
        apply=image / known.apply if known.apply > 0 else 0.0,
        downtime=known.downtime,
    )


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18:
        return float(value)
    return 0.0
