"""What the options of a call may be: one table of names, checked where they come in.

Whoever can reach the bus can send anything. An option of the wrong type is the caller's mistake and
is told so by name; nothing behind the faces has to ask again. Names that are not here pass: the
verb itself says which it knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bascule.errors import UsageError
from bascule.faces.bus_values import plain

__all__ = ["LONGEST", "name_of", "wishes"]

LONGEST = 4096
"""Characters of a text: the longest path that Linux takes."""

TEXTS = frozenset({"version", "file", "repository", "reason", "range", "payload"})
FLAGS = frozenset(
    {
        "allow_downgrade",
        "check",
        "clear",
        "force_full",
        "history",
        "indefinite",
        "no_quarantine",
        "no_reboot",
        "now",
        "once",
        "prepare",
        "verify",
    }
)
NUMBERS = {"seconds": 1e10, "until": 253_402_300_799, "last": 1 << 31, "limit": 1 << 31}
"""Zero up to: three lifetimes, the calendar's last day (9999-12-31), more than there can be."""


def wishes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of an a{sv} that came over the bus.

    Raises:
        UsageError: a value of the wrong type or out of bounds; the option is named.
    """
    values = plain(options)
    for name, value in values.items():
        if len(name) > LONGEST:
            raise UsageError("unknown option: its name is too long")
        if wrong := _wrong(name, value):
            raise UsageError(f"option {name} {wrong}")
    return values


def name_of(word: str) -> str:
    """`word` as the name of a verb or document. Raises UsageError for what can be none."""
    if len(word) > 64:
        raise UsageError("unknown verb or document: its name is too long")
    return word


def _wrong(name: str, value: Any) -> str:
    if name in TEXTS:
        if not isinstance(value, str):
            return "must be a text"
        return f"is longer than {LONGEST} characters" if len(value) > LONGEST else ""
    if name in FLAGS:
        return "" if isinstance(value, bool) else "must be true or false"
    if name in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a number"
        return "" if math.isfinite(value) and 0 <= value <= NUMBERS[name] else "is out of bounds"
    if isinstance(value, str) and len(value) > LONGEST:
        return f"is longer than {LONGEST} characters"
    return ""
