"""How fast a download goes, smoothed for the eye."""

from __future__ import annotations

from collections.abc import Callable

SPACING = 0.5
"""Seconds between two measurements at least."""


class Rate:
    """Bytes per second over the life of one errand.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._mark: tuple[float, int] | None = None
        self._rate = 0.0

    def reset(self) -> None:
        """A new errand begins."""
        self._mark, self._rate = None, 0.0

    def at(self, done: int) -> float:
        """The rate, now that `done` bytes are there; it begins anew where that goes back."""
        now = self._monotonic()
        if self._mark is None or done < self._mark[1]:
            self._mark, self._rate = (now, done), 0.0
            return 0.0
        then, before = self._mark
        if now - then < SPACING:
            return self._rate
        fresh = (done - before) / (now - then)
        self._mark = (now, done)
        self._rate = fresh if self._rate == 0 else 0.7 * self._rate + 0.3 * fresh
        return self._rate
