"""Spans of time: Go's grammar, an operator's grammar, and back into words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bascule.errors import SettingsError

if TYPE_CHECKING:
    from fractions import Fraction

_SECOND = 10**9
_GO_UNITS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6,
    "s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND,
}  # fmt: skip
"""Nanoseconds, as Go counts."""

_SPAN_UNITS = {
    "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
_GO_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_SPAN_PART = re.compile(r"\s*([0-9]{1,9})\s*([a-z]+)", re.ASCII)
_GO_LIMIT = 2**63 - 1


def go_duration(text: str) -> Fraction:
    """Seconds of a Go duration such as ``1h30m`` or ``1.5h`` (``time.ParseDuration``).

    Raises:
        SettingsError: not in that grammar, or beyond Go's 64 bits of nanoseconds.
    """
    from fractions import Fraction  # and decimal: not before somebody sets a window

    wrong = SettingsError(f"{text[:64]!r} is not a duration such as 1h30m")
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return Fraction(0)
    if not body or len(body) > 128:
        raise wrong
    total = Fraction(0)
    at = 0
    while at < len(body):
        part = _GO_PART.match(body, at)
        if part is None or not (part[1] or part[2]):
            raise wrong
        places = part[2] or ""
        value = Fraction(int(part[1] or "0")) + Fraction(int(places or "0"), 10 ** len(places))
        total += value * _GO_UNITS[part[3]]
        at = part.end()
    if total > _GO_LIMIT:
        raise wrong
    return (-total if text[0] == "-" else total) / _SECOND


def span(text: str) -> int:
    """Whole seconds of ``48h``, ``7d``, ``2 weeks`` or ``1d12h``.

    Raises:
        SettingsError: not in that grammar, zero, or longer than 100 years.
    """
    total = 0
    at = 0
    body = text.strip().lower()
    while at < len(body):
        part = _SPAN_PART.match(body, at)
        if part is None or part[2] not in _SPAN_UNITS:
            raise SettingsError(f"{text[:64]!r} is not a span such as 48h, 7d or 2w")
        total += int(part[1]) * _SPAN_UNITS[part[2]]
        at = part.end()
    if not 0 < total <= 100 * 366 * 86400:
        raise SettingsError(f"{text[:64]!r} is not a span such as 48h, 7d or 2w")
    return total


def words(seconds: float) -> str:
    """A span for a sentence, in at most two units: ``9 d 4 h``, ``12 min``, ``40 s``."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
            left = rest
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"
