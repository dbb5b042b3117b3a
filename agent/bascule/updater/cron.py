"""Five-field cron expressions (crontab(5)): when next?

Where the clocks change, cron's own rule holds: an entry at a fixed hour that the change skips runs
after it, one that would run twice runs once; an entry of every hour follows elapsed time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta, tzinfo

from bascule.errors import SettingsError
from bascule.updater.zone import unix, wall, zone

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
# The longest gap of one that fires at all: 29 February across 2100.
_HORIZON_DAYS = 8 * 366 + 2


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression. Weekdays count from 0 for Sunday, as in crontab(5)."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    every_hour: bool
    zone: str = ""

    def _on(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_date = day.day in self.days
        by_weekday = day.isoweekday() % 7 in self.weekdays
        return by_date or by_weekday if self.either_day else by_date and by_weekday

    def _seconds_on(self, day: date, where: tzinfo) -> list[int]:
        found: set[int] = set()
        for hour in self.hours:
            for minute in self.minutes:
                shown = hour * 3600 + minute * 60
                first = unix(day, shown, where)
                if not self.every_hour:
                    found.add(first)
                    continue
                for at in (first, unix(day, shown, where, fold=1)):
                    there = wall(at, where)
                    if (there.hour, there.minute) == (hour, minute):
                        found.add(at)
        return sorted(found)

    def next(self, after: float) -> int | None:
        """The first unix second after `after` at which it fires; None where it never does.

        Raises SettingsError for an unknown zone.
        """
        where = zone(self.zone)
        day = wall(after, where).date() - timedelta(days=1)
        for _ in range(_HORIZON_DAYS):
            if self._on(day):
                for at in self._seconds_on(day, where):
                    if at > after:
                        return at
            day += timedelta(days=1)
        return None

    def __str__(self) -> str:
        return f"{self.text} {self.zone}".rstrip()


def parse_cron(text: str, zone_name: str = "") -> Cron:
    """Parse five fields or a nickname such as ``@daily``.

    Raises:
        SettingsError: the field that is wrong is named.
    """
    body = text.strip()
    expanded = _NICKNAMES.get(body.lower(), body)
    fields = expanded.split()
    if len(text) > 512 or len(fields) != 5:
        raise SettingsError(f"{text[:64]!r} is not a cron expression of five fields")
    minute, hour, day, month, weekday = fields
    days = _field(day, "day of month", 1, 31)
    weekdays = frozenset(d % 7 for d in _field(weekday, "day of week", 0, 7, _DAYS))
    hours = tuple(sorted(_field(hour, "hour", 0, 23)))
    zone(zone_name)
    return Cron(
        text=" ".join(body.split()),
        minutes=tuple(sorted(_field(minute, "minute", 0, 59))),
        hours=hours,
        days=days,
        months=_field(month, "month", 1, 12, ("", *_MONTHS)),
        weekdays=weekdays,
        either_day=not day.startswith(("*", "?")) and not weekday.startswith(("*", "?")),
        every_hour=len(hours) == 24,
        zone=zone_name,
    )


_PART = re.compile(
    r"(?:(?P<all>[*?])|(?P<first>[0-9]{1,4}|[A-Za-z]{3})(?:-(?P<last>[0-9]{1,4}|[A-Za-z]{3}))?)"
    r"(?:/(?P<step>[0-9]{1,4}))?",
    re.ASCII,
)


def _field(
    text: str, what: str, low: int, high: int, names: tuple[str, ...] = ()
) -> frozenset[int]:
    def wrong(why: str) -> SettingsError:
        return SettingsError(f"{what} {text[:32]!r} of a cron expression {why}")

    def number(word: str) -> int:
        if word.isdecimal():
            value = int(word)
        elif word.lower() in names:
            value = names.index(word.lower())
        else:
            raise wrong(f"has the unknown name {word!r}")
        if not low <= value <= high:
            raise wrong(f"is not within {low}–{high}")
        return value

    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise wrong("cannot be read")
        step = int(match["step"]) if match["step"] else 1
        if step == 0:
            raise wrong("has the step 0")
        if match["all"]:
            first, last = low, high
        else:
            first = number(match["first"])
            last = number(match["last"]) if match["last"] else (high if match["step"] else first)
            if last < first:
                raise wrong("has a range that runs backwards")
        found.update(range(first, last + 1, step))
    return frozenset(found)
