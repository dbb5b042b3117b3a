"""How fast and how much may be fetched: a token bucket and a data budget per calendar month.

Both are callables for `fetch.HttpSource`'s `limiter`: awaited with the number of bytes that came, in
front of handing them on. The socket is not read meanwhile, so the sender slows down by itself.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bascule.errors import BudgetSpent

Limiter = Callable[[int], Awaitable[None]]

SAVE_EVERY = 4 << 20
"""Bytes after which the use of a budget is made durable: a power cut forgets no more than that."""


@dataclass(slots=True)
class TokenBucket:
    """Pure arithmetic: tells how long to wait so that the mean rate is kept.

    Attributes:
        rate: bytes per second.
        burst: bytes that may pass at once after a pause.
    """

    rate: float
    burst: float
    _tokens: float = 0.0
    _at: float | None = None

    def take(self, count: int, now: float) -> float:
        """Take `count` bytes at the moment `now`; seconds to wait before going on."""
        if self._at is None:
            self._tokens = self.burst
        else:
            passed = max(0.0, now - self._at)
            self._tokens = min(self.burst, self._tokens + passed * self.rate)
        self._at = now
        self._tokens -= count
        return max(0.0, -self._tokens / self.rate)


class RateLimit:
    """Keeps a stream at or below `rate` bytes per second. A `Limiter`."""

    def __init__(
        self,
        rate: float,
        *,
        burst: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if rate <= 0:
            raise ValueError("a rate limit is more than zero")
        self._bucket = TokenBucket(rate, rate if burst is None else burst)
        self._clock = clock
        self._sleep = sleep

    async def __call__(self, count: int) -> None:
        """Wait as long as `count` more bytes are too many."""
        wait = self._bucket.take(count, self._clock())
        if wait > 0:
            await self._sleep(wait)


@dataclass(frozen=True, slots=True)
class DataUse:
    """Bytes fetched in one calendar month, as the ledger keeps it.

    Attributes:
        period: ``YYYY-MM``.
        used: bytes.
    """

    period: str = ""
    used: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"period": self.period, "used": self.used}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataUse:
        """Load; what makes no sense counts as nothing used."""
        period, used = data.get("period"), data.get("used")
        if not isinstance(period, str) or type(used) is not int or used < 0:
            return cls()
        return cls(period, used)

    def at(self, now: float, zone: datetime.tzinfo | None = None) -> DataUse:
        """The use in the month of `now`; a new month begins at nothing.

        A month in the future was written by a clock that was wrong: what was used still counts.
        """
        period = _moment(now, zone).strftime("%Y-%m")
        if self.period == period:
            return self
        return replace(self, period=period, used=self.used if self.period > period else 0)

    def plus(self, count: int) -> DataUse:
        """The same with `count` more bytes."""
        return replace(self, used=self.used + count)


def period_ends(now: float, zone: datetime.tzinfo | None = None) -> int:
    """Unix seconds of the first moment of the next calendar month in `zone` (None: local time)."""
    today = _moment(now, zone)
    year, month = (today.year + 1, 1) if today.month == 12 else (today.year, today.month + 1)
    return int(datetime.datetime(year, month, 1, tzinfo=zone).timestamp())


def _moment(now: float, zone: datetime.tzinfo | None) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now, zone)


class DataBudget:
    """Counts what is fetched and stops when the month's budget is spent. A `Limiter`.

    Args:
        limit: bytes per calendar month; 0 to count only.
        use: what the ledger has.
        save: makes the use durable; called every `SAVE_EVERY` bytes and by `settle`.
        enforce: False for an operator who overrides the budget: counts on, never stops.
        clock: unix seconds.
        zone: whose months count; None for local time, as a phone bill does.
    """

    def __init__(
        self,
        limit: int,
        use: DataUse,
        save: Callable[[Mapping[str, Any]], Awaitable[None]],
        *,
        enforce: bool = True,
        clock: Callable[[], float] = time.time,
        zone: datetime.tzinfo | None = None,
    ) -> None:
        self._limit = limit
        self._save = save
        self._enforce = enforce and limit > 0
        self._clock = clock
        self._zone = zone
        self._unsaved = 0
        self.use = use.at(clock(), zone)

    @property
    def left(self) -> int | None:
        """Bytes that may still be fetched this month, or None without a limit."""
        if self._limit <= 0:
            return None
        return max(0, self._limit - self.use.at(self._clock(), self._zone).used)

    async def __call__(self, count: int) -> None:
        """Count `count` bytes that came. Raises BudgetSpent once the budget is overdrawn."""
        now = self._clock()
        self.use = self.use.at(now, self._zone).plus(count)
        self._unsaved += count
        spent = self._enforce and self.use.used > self._limit
        if spent or self._unsaved >= SAVE_EVERY:
            await self.settle()
        if spent:
            raise BudgetSpent(
                f"{self.use.used} of {self._limit} bytes in {self.use.period}",
                used=self.use.used,
                limit=self._limit,
                until=period_ends(now, self._zone),
            )

    async def settle(self) -> None:
        """Make the use durable."""
        if self._unsaved:
            self._unsaved = 0
            await self._save(self.use.as_dict())


def both(first: Limiter | None, second: Limiter | None) -> Limiter | None:
    """One limiter made of two, either of which may be missing."""
    if first is None or second is None:
        return first or second

    async def limiter(count: int) -> None:
        await first(count)
        await second(count)

    return limiter
