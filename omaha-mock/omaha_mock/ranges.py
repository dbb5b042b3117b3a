"""HTTP byte ranges, as far as payload downloads need them (RFC 9110 section 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Span", "requested"]

_FORM = re.compile(r"bytes=(\d{1,19})?-(\d{1,19})?")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``start`` to ``end`` (exclusive); ``partial`` if a range was asked for."""

    start: int
    end: int
    partial: bool


def requested(header: str, size: int) -> Span | None:
    """What a Range header asks of a file of ``size`` bytes; None if it cannot be satisfied.

    Anything but one plain range is ignored, as the standard allows, and means the whole file.
    """
    match = _FORM.fullmatch(header.strip())
    if match is None or (match[1] is None and match[2] is None):
        return Span(0, size, False)
    if match[1] is None:
        length = min(int(match[2]), size)
        return Span(size - length, size, True) if length else None
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] is not None else size
    if start >= size:
        return None
    if end <= start:
        return Span(0, size, False)
    return Span(start, end, True)
