"""A fleet's checks, minute by minute: no herd after a common boot, none after an outage. It counts."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bascule.updater.policy import Interval, first_pause, next_pause

NODES = 40_000
MINUTE, HOUR = 60.0, 3600.0
REGULAR, FUZZ = 45 * MINUTE, 10 * MINUTE
STEADY = NODES * MINUTE / REGULAR
"""Checks a minute of a fleet that never saw a common event."""


def checks(
    hours: float, *, spread: bool, down: tuple[float, float] = (0.0, 0.0), seed: int = 1
) -> Counter[int]:
    """Checks in each minute since a common boot; the server answers 503 in `down` (hours)."""
    rng = random.Random(seed)
    found: Counter[int] = Counter()
    for _ in range(NODES):
        at = first_pause(rng, first=7 * MINUTE, regular=REGULAR, fuzz=FUZZ, spread=spread)
        last = REGULAR
        while at < hours * HOUR:
            found[int(at // MINUTE)] += 1
            busy = down[0] <= at / HOUR < down[1]
            pause, last = next_pause(
                rng, last=last, http_status=503 if busy else None, spread=spread
            )
            at += pause
    return found


def rates(found: Counter[int], first: float, last: float) -> list[int]:
    return [found[minute] for minute in range(int(first * 60), int(last * 60))]


def peak_to_mean(counts: list[int]) -> float:
    return max(counts) * len(counts) / sum(counts)


def test_a_common_boot_makes_no_herd() -> None:
    found = checks(6, spread=True)
    # Nobody asks in the first two minutes, and from then on the rate is what it will always be.
    assert rates(found, 0, 2 / 60) == [0, 0]
    counts = rates(found, 2 / 60, 6)
    assert peak_to_mean(counts) < 1.2
    assert min(counts) > STEADY / 1.2
    assert sum(counts) / len(counts) == pytest.approx(STEADY, rel=0.02)


def test_the_originals_first_check_makes_one_for_hours() -> None:
    """Shows that the measure can fail: 7 ± 5 minutes, then 45 ± 5, as update_engine does."""
    found = checks(6, spread=False)
    assert peak_to_mean(rates(found, 0, 6)) > 4
    assert peak_to_mean(rates(found, 3, 6)) > 2


def test_an_outage_makes_no_herd() -> None:
    """The server is busy for two hours: fewer ask, and they come back without waves."""
    found = checks(20, spread=True, down=(4, 6))
    assert max(rates(found, 4, 6)) < 1.2 * STEADY
    after = rates(found, 6, 20)
    assert max(after) < 1.2 * STEADY
    # Once everybody is back, nothing of it is left.
    settled = rates(found, 12, 20)
    assert peak_to_mean(settled) < 1.2 and min(settled) > STEADY / 1.2
    asked = sum(rates(found, 5, 6)) / 60
    assert asked < STEADY / 1.5, "a busy server is spared"


@given(
    st.integers(),
    st.floats(0, 86400),
    st.floats(60, 86400),
    st.floats(0, 1),
    st.booleans(),
)
def test_the_first_pause_keeps_its_bounds(
    seed: int, first: float, regular: float, part: float, spread: bool
) -> None:
    fuzz = regular * part
    pause = first_pause(random.Random(seed), first=first, regular=regular, fuzz=fuzz, spread=spread)
    earliest = max(0.0, first - fuzz / 2)
    assert earliest <= pause
    assert pause <= earliest + (regular + fuzz / 2 if spread else fuzz) + 1e-6


def test_without_spread_both_pauses_are_the_originals() -> None:
    drawn = [
        first_pause(random.Random(n), first=420, regular=2700, fuzz=600, spread=False)
        for n in range(300)
    ]
    assert 120 <= min(drawn) < 130 and 710 < max(drawn) <= 720
    for n in range(300):
        pause, base = next_pause(random.Random(n), last=4 * HOUR, spread=False)
        assert base == REGULAR and 40 * MINUTE <= pause <= 50 * MINUTE


@given(st.integers(), st.floats(2701, 14400))
def test_the_pause_after_a_long_one_is_never_shorter_than_a_regular_one(
    seed: int, last: float
) -> None:
    pause, base = next_pause(random.Random(seed), last=last)
    assert base == REGULAR
    assert REGULAR <= pause <= 2 * REGULAR + FUZZ / 2


def test_what_is_left_of_a_pause_is_spread_as_it_must_be() -> None:
    """The mean residual life of a uniform pause is (mean² + variance) / (2 · mean)."""
    rng = random.Random(3)
    interval = Interval(2700, 2700)
    drawn = [interval.rest(rng) for _ in range(40_000)]
    expected = (2700**2 + 2700**2 / 12) / (2 * 2700)
    assert sum(drawn) / len(drawn) == pytest.approx(expected, rel=0.02)
    assert min(drawn) >= 0 and max(drawn) <= 2700 * 1.5
