"""Weekly windows: when a host may be updated or rebooted.

Three grammars give the same value: a TOML table of our own, one line of text, and locksmith's
pair of ``[Day ]HH:MM`` and a Go duration (reference 7.1).

A length is elapsed time; an end is a time of day. Opening and end follow `bascule.updater.zone`
where the clocks change, and a window that a change would swallow keeps its length.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from bascule.errors import SettingsError
from bascule.updater.duration import go_duration, words
from bascule.updater.zone import unix, wall, zone

DAY = 86400
WEEK = 7 * DAY
_FOREVER = 2 * WEEK + DAY
_NAMES = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FULL = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
EVERY_DAY = frozenset(range(7))


class Span(NamedTuple):
    """One opening, unix seconds; open at `open`, no longer open at `close`."""

    open: int
    close: int


class Turn(NamedTuple):
    """When this host's turn is within the next (or present) opening; unix seconds."""

    at: int
    open: int
    close: int


@dataclass(frozen=True, slots=True)
class Window:
    """One weekly window.

    Attributes:
        days: weekdays on which it opens, 0 for Monday.
        start: seconds after midnight, 0–86 399.
        length: seconds, 0–604 800.
        zone: IANA name, or "" for the host's own zone.
        end_by_clock: it closes at the time of day `start + length`, not after `length` seconds.
    """

    days: frozenset[int]
    start: int
    length: int
    zone: str = ""
    end_by_clock: bool = False

    @property
    def never_opens(self) -> bool:
        """Nothing ever falls into it."""
        return not self.days or self.length <= 0

    def spans(self, since: float) -> Iterator[Span]:
        """Every opening that closes after `since`, in order, without end.

        Raises SettingsError for an unknown zone.
        """
        if self.never_opens:
            return
        where = zone(self.zone)
        day = wall(since, where).date() - timedelta(days=self.length // DAY + 2)
        while True:
            if day.weekday() in self.days:
                opens = unix(day, self.start, where)
                closes = opens + self.length
                if self.end_by_clock:
                    by_clock = unix(day, self.start + self.length, where)
                    closes = by_clock if by_clock > opens else closes
                if closes > since:
                    yield Span(opens, closes)
            day += timedelta(days=1)

    def __str__(self) -> str:
        start = f"{self.start // 3600:02}:{self.start // 60 % 60:02}"
        if self.end_by_clock:
            end = (self.start + self.length) % DAY
            extent = f"-{end // 3600:02}:{end // 60 % 60:02}"
        else:
            extent = f" for {words(self.length)}"
        return " ".join(p for p in (day_words(self.days), start + extent, self.zone) if p)


@dataclass(frozen=True, slots=True)
class Windows:
    """Several windows: open where any of them is. None at all means always open."""

    windows: tuple[Window, ...] = ()

    @property
    def always(self) -> bool:
        """No window restricts anything."""
        return not self.windows

    @property
    def never_opens(self) -> bool:
        """There are windows, and nothing ever falls into them."""
        return bool(self.windows) and all(w.never_opens for w in self.windows)

    def spans(self, since: float) -> Iterator[Span]:
        """Every opening that closes after `since`, overlapping and touching ones joined.

        One that stays open for more than two weeks is given as closing then. Ends after a year,
        at once where nothing ever opens.
        """
        limit = since + 53 * WEEK
        joined: Span | None = None
        for opening in heapq.merge(*(w.spans(since) for w in self.windows)):
            if joined is None:
                joined = opening
            elif opening.open <= joined.close:
                joined = Span(joined.open, max(joined.close, opening.close))
            else:
                yield joined
                joined = opening
            if joined.close - max(joined.open, since) > _FOREVER:
                yield joined
                joined = None
            if opening.open > limit:
                break
        if joined is not None:
            yield joined

    def _span(self, now: float) -> Span | None:
        return next(self.spans(now), None)

    def contains(self, now: float) -> bool:
        """Whether it is open at unix second `now`."""
        if self.always:
            return True
        span = self._span(now)
        return span is not None and span.open <= now

    def next_open(self, now: float) -> int | None:
        """The first second from `now` on at which it is open; None where it never opens."""
        if self.always:
            return math.ceil(now)
        span = self._span(now)
        return None if span is None else max(span.open, math.ceil(now))

    def next_close(self, now: float) -> int | None:
        """When the present opening ends; None where it is closed now or never closes."""
        if self.always:
            return None
        span = self._span(now)
        if span is None or span.open > now or span.close - now > 2 * WEEK:
            return None
        return span.close

    def turn(self, now: float, machine_id: str, spread: int, *, reserve: int = 600) -> Turn | None:
        """This host's turn in the present or the next opening; None where it never opens.

        Hosts are spread over the first `spread` seconds of an opening, by machine id, so that a
        fleet does not reboot in the window's first second. The last `reserve` seconds (or the
        second half of a short window) are nobody's turn to begin.
        """
        if self.always:
            at = math.ceil(now)
            return Turn(at, at, at + _FOREVER)
        for span in self.spans(now):
            whole = span.close - span.open
            room = max(0, whole - min(reserve, whole // 2))
            at = span.open + offset(machine_id, min(spread, room))
            if at < span.close:
                return Turn(max(at, math.ceil(now)), span.open, span.close)
        return None

    def __str__(self) -> str:
        return "; ".join(map(str, self.windows)) or "always"


def offset(machine_id: str, spread: int, *, purpose: str = "window") -> int:
    """A host's own place in ``0 … spread`` seconds: always the same for one machine id."""
    if spread <= 0:
        return 0
    digest = hashlib.sha256(f"bascule:{purpose}:{machine_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (spread + 1)


def day_words(days: frozenset[int]) -> str:
    """``daily``, ``Mon-Fri``, ``Sat,Sun``; ``no day`` where empty."""
    if days == EVERY_DAY:
        return "daily"
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    named = [
        "-".join(_NAMES[d].capitalize() for d in (run[0], run[-1]))
        if len(run) > 2
        else ",".join(_NAMES[d].capitalize() for d in run)
        for run in runs
    ]
    return ",".join(named) or "no day"


def weekday(text: str) -> int:
    """0 for Monday; three letters or the full English name. Raises SettingsError."""
    lower = text.strip().lower()
    for names in (_NAMES, _FULL):
        if lower in names:
            return names.index(lower)
    raise SettingsError(f"{text[:32]!r} is not a weekday such as Mon")


def weekdays(text: str) -> frozenset[int]:
    """``Mon-Fri,Sun``, ``Sat..Mon`` (over the week's end), ``daily``. Raises SettingsError."""
    found: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        if part.lower() in ("daily", "*", "every-day"):
            found |= EVERY_DAY
            continue
        first, dash, last = part.replace("..", "-").partition("-")
        begin = weekday(first)
        end = weekday(last) if dash else begin
        found |= {(begin + step) % 7 for step in range((end - begin) % 7 + 1)}
    return frozenset(found)


_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?", re.ASCII)


def time_of_day(text: str) -> int:
    """Seconds after midnight of ``HH:MM`` or ``HH:MM:SS``; ``24:00`` is 86 400.

    Raises SettingsError.
    """
    match = _CLOCK.fullmatch(text.strip())
    if match is not None:
        hour, minute, second = int(match[1]), int(match[2]), int(match[3] or "0")
        at = hour * 3600 + minute * 60 + second
        if minute < 60 and second < 60 and at <= DAY:
            return at
    raise SettingsError(f"{text[:32]!r} is not a time of day such as 23:00")


def _length(text: str) -> int:
    seconds = math.ceil(go_duration(text.strip()))
    if not 0 <= seconds <= WEEK:
        raise SettingsError(f"a window of {text[:32]!r} is longer than a week or negative")
    return seconds


def parse_window(table: Mapping[str, object]) -> Window:
    """One TOML table: ``days``, ``start``, one of ``length`` and ``end``, ``zone``.

    ``days`` is a string (``"Mon-Fri,Sun"``) or an array of them; missing means daily. ``length`` is
    a Go duration up to 168h; ``end`` a time of day, on the next day if it is not after ``start``.

    Raises:
        SettingsError: unknown key, missing key or wrong value (the key is named).
    """
    unknown = sorted(set(table) - {"days", "start", "length", "end", "zone"})
    if unknown:
        raise SettingsError(f"a window has no key {unknown[0]!r}", key=unknown[0])
    values: dict[str, str] = {}
    for key, value in table.items():
        if key == "days" and isinstance(value, Sequence) and not isinstance(value, str):
            if not all(isinstance(v, str) for v in value):
                raise SettingsError("`days` of a window is not a list of weekdays", key=key)
            value = ",".join(value)
            if not value:
                raise SettingsError("`days` of a window is empty: it would never open", key=key)
        if not isinstance(value, str):
            raise SettingsError(f"`{key}` of a window is not a text", key=key)
        values[key] = value
    if "start" not in values:
        raise SettingsError("a window lacks its `start`", key="start")
    if ("length" in values) == ("end" in values):
        raise SettingsError("a window has either `length` or `end`", key="length")
    start = time_of_day(values["start"])
    if start == DAY:
        raise SettingsError("a window that starts at 24:00 starts at 00:00 of the next day")
    name = values.get("zone", "")
    zone(name)
    days = weekdays(values.get("days", "daily"))
    if "length" in values:
        return Window(days, start, _length(values["length"]), name)
    length = (time_of_day(values["end"]) - start) % DAY or DAY
    return Window(days, start, length, name, end_by_clock=True)


_LINE = re.compile(
    r"(?P<days>[A-Za-z*][A-Za-z*,.\-\s]*?)??[,\s]*(?P<start>[0-9]{1,2}:[0-9]{2})"
    r"(?:\s*-\s*(?P<end>[0-9]{1,2}:[0-9]{2})|(?:\s*\+\s*|\s+)(?P<length>[0-9.]+[0-9a-zµμ.]*))"
    r"(?:\s+(?P<zone>[A-Za-z0-9_+\-/]+))?",
    re.ASCII,
)


def parse_line(text: str) -> Window:
    """One window in one line: ``[days] HH:MM-HH:MM [zone]`` or ``[days] HH:MM 1h30m [zone]``.

    A ``+`` may stand before the duration.

    Raises:
        SettingsError: not in that grammar.
    """
    match = _LINE.fullmatch(text.strip()) if len(text) <= 200 else None
    if match is None:
        raise SettingsError(
            f"{text[:64]!r} is not a window such as 'Thu 23:00 1h30m' or "
            "'Sat,Sun 02:00-04:00 Europe/Berlin'"
        )
    return parse_window({k: v for k, v in match.groupdict().items() if v})


_GO_CLOCK = re.compile(r"([+-]?[0-9]{1,9}):([+-]?[0-9]{1,9})", re.ASCII)


def parse_locksmith(start: str, length: str, zone_name: str = "") -> Window | None:
    """The window of ``REBOOT_WINDOW_START`` and ``REBOOT_WINDOW_LENGTH`` (reference 7.1).

    Both empty means no window. As locksmith does, ``4:5`` is read as 04:05 and what follows the
    minutes is ignored.

    Raises:
        SettingsError: only one of them is set, or what locksmith refuses too.
    """
    if not start and not length:
        return None
    if not start or not length:
        raise SettingsError("a reboot window needs both its START and its LENGTH")
    fields = start.split()
    if len(fields) not in (1, 2):
        raise SettingsError(f"{start[:64]!r} is not a window start such as 'Thu 23:00'")
    weekly = len(fields) == 2
    days = EVERY_DAY
    if weekly:
        if len(fields[0]) != 3:
            raise SettingsError(f"{fields[0][:32]!r} is not a weekday of three letters")
        days = frozenset({weekday(fields[0])})
    clock = _GO_CLOCK.match(fields[-1])
    if clock is None or not (0 <= int(clock[1]) <= 23 and 0 <= int(clock[2]) <= 59):
        raise SettingsError(f"{fields[-1][:32]!r} is not a time of day such as 23:00")
    duration = go_duration(length.strip())
    if duration < 0:
        raise SettingsError(f"the window length {length[:32]!r} is negative")
    if duration >= (WEEK if weekly else DAY):
        raise SettingsError(
            f"the window length {length[:32]!r} is not shorter than {'7 days' if weekly else '24 h'}"
        )
    return Window(days, int(clock[1]) * 3600 + int(clock[2]) * 60, math.ceil(duration), zone_name)


def parse_windows(lines: Sequence[str]) -> Windows:
    """Windows from one line each. Raises SettingsError."""
    return Windows(tuple(parse_line(line) for line in lines))
