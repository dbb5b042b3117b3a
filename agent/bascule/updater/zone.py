"""Wall clocks: from a time zone's name to unix seconds and back.

A wall-clock time that a change of the clocks skips is read with the offset before the change, and
one that occurs twice means its first occurrence (RFC 5545, section 3.3.5); Python's ``fold=0``
(PEP 495) is that rule.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from pathlib import Path

from bascule.errors import SettingsError

_LOCALTIME = Path("/etc/localtime")
_DATABASE = Path("/usr/share/zoneinfo")


def zone(name: str) -> tzinfo:
    """The time zone of that IANA name; ``""`` and ``local`` mean the host's own.

    Raises:
        SettingsError: no such zone on this host (its name is in the message).
    """
    if name in ("", "local"):
        return _host_zone()
    if name == "UTC":
        return UTC
    return _named(name)


@lru_cache(maxsize=16)
def _named(name: str) -> tzinfo:
    # zoneinfo is only read by hosts that name a zone: the idle daemon stays small without it.
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        known = (_DATABASE / "UTC").exists()
        why = (
            "there is no such zone in its database"
            if known
            else "its time zone database (package tzdata) is missing"
        )
        raise SettingsError(
            f"time zone {name[:64]!r} is not known on this host: {why}", zone=name[:64]
        ) from None


def _host_zone() -> tzinfo:
    try:
        about = _LOCALTIME.stat()
    except OSError:
        return UTC
    return _host_zone_of(about.st_ino, about.st_mtime_ns)


@lru_cache(maxsize=1)
def _host_zone_of(inode: int, changed: int) -> tzinfo:
    from zoneinfo import ZoneInfo

    try:
        with _LOCALTIME.open("rb") as file:
            return ZoneInfo.from_file(file, "local")
    except (OSError, ValueError):
        return UTC


def wall(at: float, where: tzinfo) -> datetime:
    """The wall clock (aware) at unix second `at`."""
    return datetime.fromtimestamp(at, where)


def unix(day: date, second: int, where: tzinfo, *, fold: int = 0) -> int:
    """Unix second at which the clock shows `second` seconds after midnight of `day`.

    `second` may exceed 86 400: the day after is meant then.
    """
    day += timedelta(days=second // 86400)
    second %= 86400
    shown = datetime(
        day.year,
        day.month,
        day.day,
        second // 3600,
        second // 60 % 60,
        second % 60,
        tzinfo=where,
        fold=fold,
    )
    return round(shown.timestamp())


def clock_words(at: float, where: tzinfo) -> str:
    """A moment for a sentence: ``Thu 2024-03-28 23:00 CET``."""
    try:
        shown = wall(at, where)
    except (ValueError, OverflowError, OSError):
        # A moment out of a damaged file must not end a sentence in a traceback.
        return f"@{at:.0f}"
    return f"{_DAYS[shown.weekday()]} {shown:%Y-%m-%d %H:%M} {shown.tzname() or ''}".rstrip()


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
