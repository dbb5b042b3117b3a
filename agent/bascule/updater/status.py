"""What the updater shows of itself: one frozen value, replaced as a whole."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class State(enum.Enum):
    """update_engine's states (reference 3.1), so that the legacy signal needs no translation."""

    IDLE = 0
    CHECKING_FOR_UPDATE = 1
    UPDATE_AVAILABLE = 2
    DOWNLOADING = 3
    VERIFYING = 4
    FINALIZING = 5
    UPDATED_NEED_REBOOT = 6
    REPORTING_ERROR_EVENT = 7

    @property
    def legacy(self) -> str:
        """The string on ``com.coreos.update1``."""
        return f"UPDATE_STATUS_{self.name}"

    @property
    def words(self) -> str:
        """For people, such as ``checking for update``."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """One slot as an operator sees it.

    Attributes:
        name: ``A`` or ``B``.
        booted: this boot came from it.
        next: the bootloader would take it now.
        priority, tries, successful: its boot flags.
        version: the release it holds, or "" where unknown.
        words: its flags in plain words.
    """

    name: str
    booted: bool
    next: bool
    priority: int
    tries: int
    successful: bool
    version: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last error, as the catalogue describes it."""

    id: str
    number: int
    message: str
    remedy: str
    at: int


@dataclass(frozen=True, slots=True)
class Status:
    """Everything ``updatectl status`` shows. Times are unix seconds, 0 for never; sizes bytes."""

    state: State = State.IDLE
    since: int = 0
    attempt: str = ""
    current_version: str = ""
    new_version: str = ""
    new_size: int = 0
    last_checked: int = 0
    last_updated: int = 0
    next_check: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_written: int = 0
    bytes_skipped: int = 0
    rate: float = 0.0
    phase: str = ""
    group: str = ""
    server: str = ""
    verdict: str = "NOTHING_PENDING"
    sentence: str = ""
    slots: tuple[SlotStatus, ...] = ()
    failure: Failure | None = None
    quarantine: int = 0
    blocked_by: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    stale: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """0.0–1.0 while DOWNLOADING, 0.0 otherwise (as the original shows it)."""
        if self.state is not State.DOWNLOADING or self.bytes_total <= 0:
            return 0.0
        return min(1.0, self.bytes_done / self.bytes_total)

    @property
    def eta(self) -> int:
        """Seconds to the end of the download, or -1 where unknown."""
        if self.rate <= 0 or self.bytes_total <= self.bytes_done:
            return -1
        return int((self.bytes_total - self.bytes_done) / self.rate)

    def legacy(self) -> tuple[int, float, str, str, int]:
        """``(xdssx)`` of ``com.coreos.update1`` (reference 3.2)."""
        return (
            self.last_checked,
            self.progress,
            self.state.legacy,
            self.new_version or "0.0.0",
            self.new_size,
        )
