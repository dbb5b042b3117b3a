"""Bandwidth limit and data budget: arithmetic with clocks of our own."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.limits import (
    SAVE_EVERY,
    DataBudget,
    DataUse,
    RateLimit,
    TokenBucket,
    both,
    period_ends,
)
from bascule.errors import BudgetSpent

UTC = datetime.UTC


def moment(text: str, zone: datetime.tzinfo = UTC) -> float:
    """Unix seconds of a date and time."""
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


class Passing:
    """A clock that sleeping moves on."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


# ── rate ─────────────────────────────────────────────────────────────────────────────────────


def test_the_burst_is_free_and_the_rest_waits() -> None:
    bucket = TokenBucket(rate=100, burst=50)
    assert bucket.take(50, 0.0) == 0.0
    assert bucket.take(100, 0.0) == 1.0
    assert bucket.take(100, 1.0) == 1.0
    assert bucket.take(0, 9.0) == 0.0
    assert bucket.take(60, 9.0) == pytest.approx(0.1)


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket = TokenBucket(rate=100, burst=0)
    assert bucket.take(100, 10.0) == 1.0
    assert bucket.take(0, 5.0) == 1.0


@settings(max_examples=100)
@given(
    st.floats(10, 1e7),
    st.floats(0, 1e6),
    st.lists(st.tuples(st.integers(0, 1 << 21), st.floats(0, 5)), max_size=40),
)
def test_the_mean_rate_is_never_above_the_limit(
    rate: float, burst: float, chunks: list[tuple[int, float]]
) -> None:
    bucket, now, passed = TokenBucket(rate, burst), 0.0, 0
    for count, pause in chunks:
        now += pause
        now += bucket.take(count, now)
        passed += count
        assert passed <= burst + rate * now * (1 + 1e-9) + 1e-3


async def test_the_limiter_sleeps_as_the_bucket_says() -> None:
    clock = Passing()
    limit = RateLimit(1000, clock=clock, sleep=clock.sleep)
    for _ in range(10):
        await limit(500)
    assert clock.now == pytest.approx(50.0 + 4.0)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        RateLimit(0)


# ── budget ───────────────────────────────────────────────────────────────────────────────────


def test_a_new_month_begins_at_nothing() -> None:
    use = DataUse("2026-11", 500)
    assert use.at(moment("2026-11-30 23:59:59"), UTC) == use
    assert use.at(moment("2026-12-01 00:00:00"), UTC) == DataUse("2026-12", 0)
    assert use.at(moment("2027-01-05 00:00:00"), UTC) == DataUse("2027-01", 0)


def test_a_month_in_the_future_still_counts() -> None:
    assert DataUse("2099-01", 500).at(moment("2026-11-01 00:00:00"), UTC) == DataUse("2026-11", 500)


@pytest.mark.parametrize(
    ("now", "zone", "ends"),
    [
        ("2026-11-21 10:00:00", "UTC", "2026-12-01 00:00:00"),
        ("2026-12-31 23:59:59", "UTC", "2027-01-01 00:00:00"),
        ("2028-02-29 12:00:00", "UTC", "2028-03-01 00:00:00"),
        ("2026-03-10 12:00:00", "Europe/Berlin", "2026-04-01 00:00:00"),
        ("2026-10-31 12:00:00", "America/New_York", "2026-11-01 00:00:00"),
    ],
)
def test_the_month_ends_at_the_hosts_midnight(now: str, zone: str, ends: str) -> None:
    where = ZoneInfo(zone)
    assert period_ends(moment(now, where), where) == moment(ends, where)


@given(st.floats(0, 4e9), st.sampled_from(["UTC", "Asia/Kolkata", "Pacific/Apia", "Europe/Berlin"]))
def test_the_end_of_a_month_is_the_begin_of_another(now: float, name: str) -> None:
    zone = ZoneInfo(name)
    ends = period_ends(now, zone)
    assert now < ends <= now + 32 * 86400
    use = DataUse().at(now, zone).plus(7)
    assert use.at(ends - 1, zone) == use
    assert use.at(ends, zone).used == 0


@pytest.mark.parametrize(
    "data", [{}, {"period": 5, "used": 1}, {"period": "2026-11"}, {"period": "x", "used": -1}]
)
def test_a_damaged_use_is_none(data: dict[str, Any]) -> None:
    assert DataUse.from_dict(data) == DataUse()


class Kept(list[Mapping[str, Any]]):
    """What was made durable."""

    async def save(self, state: Mapping[str, Any]) -> None:
        self.append(json.loads(json.dumps(state)))


NOVEMBER = moment("2026-11-21 10:00:00")


def budget(limit: int, used: int, kept: Kept, **options: Any) -> DataBudget:
    use = DataUse("2026-11", used)
    return DataBudget(limit, use, kept.save, **{"clock": lambda: NOVEMBER, "zone": UTC, **options})


async def test_the_budget_is_spent_to_the_byte() -> None:
    kept = Kept()
    limit = budget(1000, 900, kept)
    assert limit.left == 100
    await limit(100)
    assert limit.left == 0 and kept == []
    with pytest.raises(BudgetSpent) as caught:
        await limit(1)
    assert caught.value.context == {
        "used": 1001,
        "limit": 1000,
        "until": moment("2026-12-01 00:00:00"),
    }
    assert kept == [{"period": "2026-11", "used": 1001}]


async def test_an_operator_may_overdraw_and_it_counts() -> None:
    kept = Kept()
    limit = budget(1000, 900, kept, enforce=False)
    await limit(5000)
    await limit.settle()
    assert kept == [{"period": "2026-11", "used": 5900}]


async def test_without_a_limit_it_only_counts() -> None:
    kept = Kept()
    limit = budget(0, 0, kept)
    await limit(1 << 30)
    assert limit.left is None and kept[-1]["used"] == 1 << 30


async def test_use_is_saved_every_few_mebibytes_and_at_the_end() -> None:
    kept = Kept()
    limit = budget(1 << 40, 0, kept)
    for _ in range(10):
        await limit(SAVE_EVERY // 4)
    assert [k["used"] for k in kept] == [SAVE_EVERY, 2 * SAVE_EVERY]
    await limit.settle()
    await limit.settle()
    assert kept[-1]["used"] == 10 * SAVE_EVERY // 4 and len(kept) == 3


async def test_a_month_that_ends_during_the_download() -> None:
    kept, clock = Kept(), Passing()
    clock.now = moment("2026-11-30 23:59:59")
    limit = budget(1000, 1000, kept, clock=clock)
    clock.now += 2
    await limit(600)
    assert limit.use == DataUse("2026-12", 600)
    assert limit.left == 400


async def test_both() -> None:
    seen: list[str] = []

    async def first(count: int) -> None:
        seen.append(f"first {count}")

    async def second(count: int) -> None:
        seen.append(f"second {count}")

    assert both(None, None) is None
    assert both(first, None) is first and both(None, second) is second
    joined = both(first, second)
    assert joined is not None
    await joined(3)
    assert seen == ["first 3", "second 3"]
