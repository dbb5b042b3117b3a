"""Figures and times in words, colours, and text that a terminal can be given safely."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

__all__ = ["Paint", "ago", "columns", "duration", "moment", "printable", "rate", "size"]

_CONTROLS = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


def printable(text: str) -> str:
    """`text` without control characters: what a server sends must not move the cursor."""
    return text.translate(_CONTROLS)


def size(count: float) -> str:
    """Bytes in decimal units, as payload sizes are published: ``44.4 MB``."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    if unit == "B" or value >= 99.95:
        return f"{value:.0f} {unit}"
    return f"{value:.1f} {unit}"


def rate(bytes_per_second: float) -> str:
    return f"{size(bytes_per_second)}/s"


def duration(seconds: float) -> str:
    """The two largest units: ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part) or "0 s"


def moment(unix: float) -> str:
    """Local date and time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))
    except (OverflowError, OSError, ValueError):
        return f"@{unix:.0f}"


def ago(unix: float, now: float) -> str:
    """``3 min ago``, ``in 20 min``, ``never``."""
    if unix <= 0:
        return "never"
    distance = unix - now
    if abs(distance) < 1:
        return "now"
    return f"in {_rough(distance)}" if distance > 0 else f"{_rough(-distance)} ago"


def _rough(seconds: float) -> str:
    """One unit is enough from two of it on."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return duration(seconds)


def columns(rows: Iterable[Sequence[str]], indent: str = "", gap: str = "  ") -> list[str]:
    """Left-aligned columns as wide as their widest cell."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        indent
        + gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


class Paint:
    """Colours, where they help: on a terminal, unless ``NO_COLOR`` is set (no-color.org)."""

    def __init__(self, stream: TextIO) -> None:
        self.on = (
            stream.isatty()
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "") != "dumb"
        )

    def _with(self, code: str) -> Callable[[str], str]:
        return lambda text: f"\x1b[{code}m{text}\x1b[0m" if self.on else text

    def good(self, text: str) -> str:
        return self._with("32")(text)

    def bad(self, text: str) -> str:
        return self._with("31")(text)

    def warn(self, text: str) -> str:
        return self._with("33")(text)

    def strong(self, text: str) -> str:
        return self._with("1")(text)

    def faint(self, text: str) -> str:
        return self._with("2")(text)
