"""A hold: the operator says "not now", for a while, until a moment, or until further notice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from bascule.errors import SettingsError, UsageError
from bascule.updater.calendar import parse_calendar
from bascule.updater.duration import span
from bascule.updater.zone import zone

DAY = 86400
_LONGEST_REASON = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold as the ledger keeps it.

    Attributes:
        since: unix seconds at which it was placed.
        until: unix seconds at which it ends by itself; None for an indefinite one.
        reason: the operator's words, or "".
        by: who placed it, in words.
    """

    since: int
    until: int | None
    reason: str = ""
    by: str = ""

    def active(self, now: float) -> bool:
        """Whether it still holds at unix second `now`."""
        return self.until is None or now < self.until

    def warns(self, now: float, before: int = DAY) -> bool:
        """Whether it is time to speak of it: it ends within `before` seconds, or never ends."""
        if not self.active(now):
            return False
        return self.until is None or self.until - now <= before

    def next_warning(self, now: float, before: int = DAY) -> int | None:
        """When to speak of it next: `before` seconds before its end; every day if it never ends.

        None where nothing is left to say after `now`.
        """
        if self.until is not None:
            at = max(self.since, self.until - before)
            return at if at > now and self.active(now) else None
        days = max(1, int(now - self.since) // DAY + 1)
        return self.since + days * DAY

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in ``ledger.Record.hold``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Hold | None:
        """The inverse; None for no hold. What cannot be read counts as an indefinite hold.

        A hold is a promise to the operator: damage must not end it.
        """
        if not data:
            return None
        since, until = data.get("since"), data.get("until")
        valid_until = isinstance(until, int) and not isinstance(until, bool)
        return cls(
            since=since if isinstance(since, int) and not isinstance(since, bool) else 0,
            until=until if valid_until else None,
            reason=str(data.get("reason", ""))[:_LONGEST_REASON],
            by=str(data.get("by", ""))[:_LONGEST_REASON],
        )


@dataclass(slots=True)
class Warned:
    """What was said of a hold already.

    Attributes:
        hold: which one it was about.
        at: when to speak of it again, unix seconds; None for not again.
    """

    hold: Hold | None = None
    at: float | None = None

    def due(self, hold: Hold, now: float) -> bool:
        """Whether it is time to speak of `hold`; then it counts as said."""
        if hold == self.hold and (self.at is None or now < self.at):
            return False
        self.hold, self.at = hold, hold.next_warning(now)
        return True


def place_hold(
    now: float,
    *,
    lasting: str = "",
    until: str = "",
    indefinite: bool = False,
    reason: str = "",
    by: str = "",
    zone_name: str = "",
) -> Hold:
    """The hold that ``hold --for / --until / --indefinite`` asks for; exactly one of them is given.

    `until` is an ISO 8601 date or time, or a calendar expression such as ``Mon 08:00``, of which
    the next occurrence counts.

    Raises:
        UsageError: none or several of them, one that cannot be read, or one in the past.
    """
    if (bool(lasting), bool(until), indefinite).count(True) != 1:
        raise UsageError("a hold takes one of --for, --until and --indefinite")
    words = _CONTROL.sub(" ", reason).strip()[:_LONGEST_REASON]
    start = int(now)
    if indefinite:
        return Hold(start, None, words, by)
    try:
        ends = start + span(lasting) if lasting else _moment(until, now, zone_name)
    except SettingsError as error:
        raise UsageError(error.detail) from None
    if ends <= now:
        raise UsageError(f"{until!r} is past already")
    return Hold(start, ends, words, by)


def _moment(text: str, now: float, zone_name: str) -> int:
    try:
        shown = datetime.fromisoformat(text.strip())
        if shown.tzinfo is None:
            shown = shown.replace(tzinfo=zone(zone_name))
        return int(shown.timestamp())
    except (ValueError, OverflowError):
        found = parse_calendar(text, zone_name).next(now)
    if found is None:
        raise SettingsError(f"{text[:64]!r} never comes")
    return found
