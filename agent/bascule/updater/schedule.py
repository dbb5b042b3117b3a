"""When to check, to download and to reboot: one frozen value made of recurrences and windows."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bascule.errors import SettingsError
from bascule.updater.calendar import parse_calendar
from bascule.updater.cron import parse_cron
from bascule.updater.duration import words
from bascule.updater.windows import Turn, Windows, offset

_SHORT = 600
# The spread of a fleet over a window; the rest of a long window is room to make up for delays.
_SPREAD = 3600


class Mode(enum.Enum):
    """How far the agent goes by itself (``policy.mode``)."""

    NONE = "none"
    CHECK = "check"
    STAGE = "stage"
    APPLY = "apply"


class Recurrence(Protocol):
    """A cron or calendar expression."""

    def next(self, after: float) -> int | None:
        """The first unix second after `after`; None where it never comes."""
        ...


class Problem(NamedTuple):
    """Something that ``config check`` reports.

    Attributes:
        fatal: nothing would ever happen with this setting.
        setting: ``section.key``.
        sentence: what is wrong, for an operator.
    """

    fatal: bool
    setting: str
    sentence: str


def parse_recurrence(text: str, zone_name: str = "") -> Recurrence:
    """A five-field cron expression, a cron nickname (``@daily``) or a calendar expression.

    Raises:
        SettingsError: neither of them.
    """
    stamp = text.strip()[1:2].isdecimal()
    if (text.lstrip().startswith("@") and not stamp) or len(text.split()) == 5:
        return parse_cron(text, zone_name)
    return parse_calendar(text, zone_name)


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that is a matter of the clock.

    Attributes:
        mode: how far to go without being asked.
        checks: when to check, instead of at intervals; none means at intervals.
        downloads: when payloads may be fetched.
        reboots: when the host may reboot by itself.
        machine_id: seed of this host's place in a window.
        spread: seconds over which hosts are spread in a reboot window, 0 for none.
        jitter: seconds over which hosts are spread after a scheduled check, 0 for none.
    """

    mode: Mode = Mode.APPLY
    checks: tuple[Recurrence, ...] = ()
    downloads: Windows = field(default_factory=Windows)
    reboots: Windows = field(default_factory=Windows)
    machine_id: str = ""
    spread: int = _SPREAD
    jitter: int = 0

    @property
    def check_offset(self) -> int:
        """Seconds by which this host is later than the expressions of `checks` say."""
        return offset(self.machine_id, self.jitter, purpose="check")

    def next_check(self, after: float) -> int | None:
        """This host's next scheduled check, unix seconds.

        None where there is no schedule, or where it never comes.
        """
        late = self.check_offset
        found = [m for c in self.checks if (m := c.next(after - late)) is not None]
        return min(found) + late if found else None

    def reboot_turn(self, now: float) -> Turn | None:
        """This host's turn in the present or next reboot window; None where none ever opens."""
        return self.reboots.turn(now, self.machine_id, self.spread)

    def problems(self, now: float) -> list[Problem]:
        """What would never happen, or hardly ever, with these settings."""
        found: list[Problem] = []
        if self.checks and self.next_check(now) is None:
            found.append(
                Problem(
                    True, "policy.schedule", "The schedule never comes: no check will ever be made."
                )
            )
        for recurrence in self.checks:
            if recurrence.next(now) is None:
                found.append(
                    Problem(False, "policy.schedule", f"{str(recurrence)!r} never comes again.")
                )
        for setting, windows, what in (
            ("download.windows", self.downloads, "no payload will ever be fetched"),
            ("reboot.windows", self.reboots, "this host will never reboot by itself"),
        ):
            if windows.never_opens or windows.next_open(now) is None:
                found.append(Problem(True, setting, f"The window never opens: {what}."))
            for window in windows.windows:
                if window.never_opens and not windows.never_opens:
                    found.append(Problem(False, setting, f"The window {window} never opens."))
                elif 0 < window.length < _SHORT:
                    found.append(
                        Problem(
                            False,
                            setting,
                            f"The window {window} is open for {words(window.length)} only.",
                        )
                    )
        return found


def parse_schedule(
    mode: str = "apply",
    *,
    checks: Sequence[str] = (),
    downloads: Windows | None = None,
    reboots: Windows | None = None,
    machine_id: str = "",
    spread: bool = True,
    jitter: int = 0,
    zone_name: str = "",
) -> Schedule:
    """A schedule from setting values.

    Raises:
        SettingsError: an unknown mode or an expression that cannot be read.
    """
    try:
        how_far = Mode(mode)
    except ValueError:
        raise SettingsError(f"{mode[:32]!r} is not one of none, check, stage, apply") from None
    return Schedule(
        mode=how_far,
        checks=tuple(parse_recurrence(text, zone_name) for text in checks),
        downloads=downloads or Windows(),
        reboots=reboots or Windows(),
        machine_id=machine_id,
        spread=_SPREAD if spread else 0,
        jitter=jitter,
    )
