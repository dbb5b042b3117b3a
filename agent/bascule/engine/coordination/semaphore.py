"""Locksmith's semaphore document: who may reboot, and how many at once (reference 7.1).

``{"semaphore":1,"max":1,"holders":null}``: places left, places in all, sorted machine ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

_LIMIT = 64 << 10
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Semaphore:
    """The document. `free` may be negative: locksmith's set-max below the number of holders."""

    free: int = 1
    places: int = 1
    holders: tuple[str, ...] = ()

    def taken_by(self, holder: str) -> Semaphore | None:
        """The document after `holder` took a place; None where there is none. Idempotent."""
        if holder in self.holders:
            return self
        if self.free <= 0:
            return None
        return Semaphore(self.free - 1, self.places, tuple(sorted({*self.holders, holder})))

    def released_by(self, holder: str) -> Semaphore:
        """The document after `holder` gave its place back. Idempotent."""
        if holder not in self.holders:
            return self
        left = tuple(h for h in self.holders if h != holder)
        return Semaphore(self.free + 1, self.places, left)

    def encode(self) -> bytes:
        """The bytes that Go's encoding/json makes of it."""
        text = json.dumps(
            {"semaphore": self.free, "max": self.places, "holders": list(self.holders) or None},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        for char in "<>&\u2028\u2029":
            text = text.replace(char, f"\\u{ord(char):04x}")
        return text.encode("utf-8", "replace")


def parse_semaphore(raw: bytes) -> Semaphore:
    """Read a document.

    Raises:
        ValueError: it is none; the text says why.
    """
    if len(raw) > _LIMIT:
        raise ValueError("it is too large")
    try:
        data = json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    free, places = data.get("semaphore"), data.get("max")
    holders = data.get("holders")
    holders = [] if holders is None else holders
    for number in (free, places):
        if not isinstance(number, int) or isinstance(number, bool) or abs(number) > _MOST:
            raise ValueError("it lacks a number")
    if not isinstance(holders, list) or not all(isinstance(h, str) and h for h in holders):
        raise ValueError("its holders are no list of names")
    if len(set(holders)) != len(holders):
        raise ValueError("it names a holder twice")
    assert isinstance(free, int) and isinstance(places, int)
    return Semaphore(free, places, tuple(sorted(holders)))
