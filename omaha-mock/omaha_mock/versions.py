"""Release versions by the rules of Semantic Versioning 2.0 (section 11), for any count of numbers."""

from __future__ import annotations

import re

__all__ = ["is_version", "newer", "order"]

_FORM = re.compile(r"(\d+(?:\.\d+)*)(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")

_Key = tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]


def is_version(text: str) -> bool:
    return len(text) <= 128 and _FORM.fullmatch(text) is not None


def order(text: str) -> _Key:
    """A sort key; what is no version sorts below every version."""
    match = _FORM.fullmatch(text) if len(text) <= 128 else None
    if match is None:
        return (), False, ()
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    words = match[2].split(".") if match[2] else []
    return (
        (0, *numbers),
        not words,
        tuple((not w.isdigit(), int(w) if w.isdigit() else 0, w) for w in words),
    )


def newer(left: str, right: str) -> bool:
    """Whether ``left`` is a later version than ``right``."""
    return order(left) > order(right)
