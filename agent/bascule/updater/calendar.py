"""systemd calendar event expressions (systemd.time(7)): when next?

Read as systemd 252 reads them, apart from fractions of a second, which are refused. As there, a
time that a change of the clocks skips does not come on that day, and of one that comes twice the
first counts.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import date, timedelta

from bascule.errors import SettingsError
from bascule.updater.zone import unix, wall, zone

_LAST_YEAR = 2199
_END = 7_258_118_400
_SHORTHANDS = {
    "minutely": "*-*-* *:*:00",
    "hourly": "*-*-* *:00:00",
    "daily": "*-*-* 00:00:00",
    "monthly": "*-*-01 00:00:00",
    "weekly": "Mon *-*-* 00:00:00",
    "yearly": "*-01-01 00:00:00",
    "annually": "*-01-01 00:00:00",
    "anually": "*-01-01 00:00:00",
    "quarterly": "*-01,04,07,10-01 00:00:00",
    "semiannually": "*-01,07-01 00:00:00",
    "semi-annually": "*-01,07-01 00:00:00",
    "biannually": "*-01,07-01 00:00:00",
    "bi-annually": "*-01,07-01 00:00:00",
}
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, slots=True)
class Calendar:
    """A parsed expression.

    Attributes:
        weekdays: 0 for Monday.
        years: None for every year.
        days: counted from the month's end (1 for its last day) if `from_end`.
        at: the one moment that it names (``@1395716396``); nothing else counts then.
    """

    text: str
    weekdays: frozenset[int]
    years: frozenset[int] | None
    months: frozenset[int]
    days: frozenset[int]
    from_end: bool
    times: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    zone: str = ""
    at: int | None = None

    def _dates(self, first: date) -> list[date] | None:
        """Matching dates of the first month from `first` on that has any; None at the end."""
        year, month = first.year, first.month
        while year <= _LAST_YEAR:
            if self.years is not None and year not in self.years:
                year, month = year + 1, 1
                continue
            if month in self.months:
                length = monthrange(year, month)[1]
                found = []
                for number in range(1, length + 1):
                    day = date(year, month, number)
                    counted = length + 1 - number if self.from_end else number
                    if day >= first and counted in self.days and day.weekday() in self.weekdays:
                        found.append(day)
                if found:
                    return found
            year, month = (year + 1, 1) if month == 12 else (year, month + 1)
        return None

    def next(self, after: float) -> int | None:
        """The first unix second after `after` that matches; None where none does up to 2199.

        Raises SettingsError for an unknown zone.
        """
        if self.at is not None:
            return self.at if self.at > after else None
        where = zone(self.zone)
        shown = wall(after, where)
        today, passed = shown.date(), shown.hour * 3600 + shown.minute * 60 + shown.second
        first = today
        hours, minutes, seconds = self.times
        while (dates := self._dates(first)) is not None:
            for day in dates:
                for hour in hours:
                    if day == today and hour * 3600 + 3599 <= passed:
                        continue
                    for minute in minutes:
                        for second in seconds:
                            clock = hour * 3600 + minute * 60 + second
                            if day == today and clock <= passed:
                                continue
                            at = unix(day, clock, where)
                            if at <= after:
                                at = unix(day, clock, where, fold=1)
                            there = wall(at, where)
                            exists = (there.hour, there.minute, there.second) == (
                                hour,
                                minute,
                                second,
                            )
                            if exists and there.date() == day and at > after:
                                return at
            first = dates[-1] + timedelta(days=1)
        return None

    def __str__(self) -> str:
        return self.text


def parse_calendar(text: str, zone_name: str = "") -> Calendar:
    """Parse an expression; `zone_name` counts where it names no zone of its own.

    Raises:
        SettingsError: not in the grammar of systemd.time(7).
    """
    body = " ".join(text.split())
    if not body or len(text) > 512:
        raise _wrong(text, "is empty or too long")
    words = body.split(" ")
    if len(words) > 1 and _is_zone(words[-1]):
        name = words.pop()
        zone_name = "UTC" if name == "utc" else name
    zone(zone_name)
    if len(words) == 1 and words[0].startswith("@"):
        stamp = words[0][1:]
        if (
            not (stamp.isascii() and stamp.isdecimal() and int(stamp[:12]) < _END)
            or len(stamp) > 12
        ):
            raise _wrong(text, "names no moment up to 2199")
        return Calendar(body, frozenset(), None, frozenset(), frozenset(), False, ((), (), ()),
                        "UTC", int(stamp))  # fmt: skip
    if len(words) == 1 and words[0].lower() in _SHORTHANDS:
        words = _SHORTHANDS[words[0].lower()].split(" ")
    weekdays = frozenset(range(7))
    if words and words[0][0].isalpha():
        weekdays = _weekdays(words.pop(0), text)
    years: frozenset[int] | None = None
    months, days, from_end = frozenset(range(1, 13)), frozenset(range(1, 32)), False
    if words and ":" not in words[0]:
        years, months, days, from_end = _date(words.pop(0), text)
    times: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((0,), (0,), (0,))
    if words:
        times = _time(words.pop(0), text)
    if words:
        raise _wrong(text, f"goes on with {words[0]!r}")
    return Calendar(body, weekdays, years, months, days, from_end, times, zone_name)


def _wrong(text: str, why: str) -> SettingsError:
    return SettingsError(f"calendar expression {text[:64]!r} {why}; see systemd.time(7)")


def _is_zone(word: str) -> bool:
    """Whether the last word is a zone; nothing else of the grammar looks like one."""
    if word in ("UTC", "utc"):
        return True
    if not word[0].isalpha() or word.lower() in _SHORTHANDS or "," in word or ".." in word:
        return False
    first = re.split(r"[-.,]", word.lower())[0]
    return not any(first == d or first == d[:3] for d in _DAYS)


def _weekdays(word: str, text: str) -> frozenset[int]:
    found: set[int] = set()
    # One comma at the end is allowed, as in "Wed, 17:48".
    for part in word.lower().removesuffix(",").split(","):
        names = re.split(r"\.\.|-", part)
        if len(names) > 2:
            raise _wrong(text, f"has the odd weekday {part!r}")
        numbers = []
        for name in names:
            matches = [i for i, d in enumerate(_DAYS) if name in (d, d[:3])]
            if not matches:
                raise _wrong(text, f"has the unknown weekday {name!r}")
            numbers.append(matches[0])
        if numbers[-1] < numbers[0]:
            raise _wrong(text, f"has the weekdays {part!r} backwards")
        found.update(range(numbers[0], numbers[-1] + 1))
    return frozenset(found)


_DATE = re.compile(r"(?:([^-~]+)-)?([^-~]+)([-~])([^-~]+)")


def _date(
    word: str, text: str
) -> tuple[frozenset[int] | None, frozenset[int], frozenset[int], bool]:
    match = _DATE.fullmatch(word)
    if match is None:
        raise _wrong(text, f"has the odd date {word!r}")
    years = None
    if match[1] is not None and match[1] != "*":
        years = _chain(match[1], text, 1970, _LAST_YEAR)
    from_end = match[3] == "~" and match[4] != "*"
    months = _chain(match[2], text, 1, 12)
    # From the end, 28 at most: every month has that many.
    days = _chain(match[4], text, 1, 28 if from_end else 31, from_end=from_end)
    return years, months, days, from_end


def _time(word: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    parts = word.split(":")
    if len(parts) not in (2, 3):
        raise _wrong(text, f"has the odd time {word!r}")
    if len(parts) == 3 and re.search(r"(?<!\.)\.(?!\.)", parts[2]):
        raise _wrong(text, "has fractions of a second, which Bascule does not follow")
    hours, minutes, seconds = (
        tuple(sorted(_chain(part, text, 0, high)))
        for part, high in zip((*parts, "0")[:3], (23, 59, 59), strict=True)
    )
    return hours, minutes, seconds


_LINK = re.compile(r"([0-9]{1,4})(?:\.\.([0-9]{1,4}))?(?:/([0-9]{1,4}))?", re.ASCII)


def _chain(word: str, text: str, low: int, high: int, *, from_end: bool = False) -> frozenset[int]:
    if word == "*":
        return frozenset(range(low, high + 1))
    found: set[int] = set()
    for part in word.split(","):
        match = _LINK.fullmatch(part)
        if match is None:
            raise _wrong(text, f"has the odd part {part!r}")
        first = _year(int(match[1]), low)
        last = None if match[2] is None else _year(int(match[2]), low)
        step = None if match[3] is None else int(match[3])
        within = low <= first <= high and (last is None or first <= last <= high)
        if not within or step == 0:
            raise _wrong(text, f"has {part!r}, which is out of range")
        if last is None and step is None:
            found.add(first)
        elif last is not None:
            found.update(range(first, last + 1, step or 1))
        else:
            assert step is not None
            steps = range(first, low - 1, -step) if from_end else range(first, high + 1, step)
            if len(steps) < 2:
                raise _wrong(text, f"has {part!r}, whose step leads out of range")
            found.update(steps)
    return frozenset(found)


def _year(value: int, low: int) -> int:
    if low == 1970 and value < 100:
        return value + (1900 if value >= 70 else 2000)
    return value
