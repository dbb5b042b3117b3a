"""The schedule and the words for the server, rule by rule (reference flatcar.md 2.3, 3.7)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bascule.errors import (
    DeferredByServer,
    ServerHttpError,
    ServerRefused,
    TransferError,
    TransferHttpError,
)
from bascule.updater.policy import (
    Interval,
    first_interval,
    http_status,
    next_check,
    next_interval,
    wished_pause,
)

MINUTE = 60.0
HOUR = 3600.0


@given(st.integers())
def test_the_first_check_is_after_seven_minutes_give_or_take_five(seed: int) -> None:
    assert 2 * MINUTE <= first_interval().draw(random.Random(seed)) <= 12 * MINUTE


@given(st.integers())
def test_later_checks_are_after_fortyfive_give_or_take_five(seed: int) -> None:
    interval = next_interval(last=7 * MINUTE)
    assert 40 * MINUTE <= interval.draw(random.Random(seed)) <= 50 * MINUTE


def test_draws_reach_both_ends() -> None:
    rng = random.Random(1)
    drawn = [first_interval().draw(rng) / MINUTE for _ in range(400)]
    assert min(drawn) < 2.2 and max(drawn) > 11.8


@pytest.mark.parametrize(
    ("poll", "base", "fuzz"),
    [
        (None, 45 * MINUTE, 10 * MINUTE),
        (0, 45 * MINUTE, 10 * MINUTE),
        (-5, 45 * MINUTE, 10 * MINUTE),
        (120, 45 * MINUTE, 10 * MINUTE),
        (2700, 2700, 2700),
        (7200, 7200, 7200),
        (14400, 14400, 14400),
        (14401, 14400, 14400),
        (10**9, 14400, 14400),
    ],
)
def test_poll_interval(poll: int | None, base: float, fuzz: float) -> None:
    assert next_interval(last=1, poll_interval=poll) == Interval(base, fuzz)
    assert next_interval(last=1, poll_interval=poll, http_status=503).base >= 45 * MINUTE


@pytest.mark.parametrize("status", [500, 503])
def test_a_busy_server_doubles_the_pause_up_to_four_hours(status: int) -> None:
    bases = []
    last = 45 * MINUTE
    for _ in range(5):
        interval = next_interval(last=last, http_status=status)
        last = interval.base
        bases.append(last / HOUR)
        assert interval.fuzz == interval.base
    assert bases == [1.5, 3.0, 4.0, 4.0, 4.0]
    assert next_interval(last=last, http_status=200) == Interval(45 * MINUTE, 10 * MINUTE)


@pytest.mark.parametrize("status", [None, 200, 404, 502, 429])
def test_other_statuses_do_not(status: int | None) -> None:
    assert next_interval(last=4 * HOUR, http_status=status).base == 45 * MINUTE


def test_the_servers_wish_beats_the_doubling() -> None:
    assert next_interval(last=4 * HOUR, poll_interval=3600, http_status=503).base == 3600


def test_only_the_last_answer_has_a_wish() -> None:
    kept = {"poll_interval": 3600}
    assert wished_pause({}, kept) == 3600
    assert wished_pause({}, {"poll_interval": 0}) is None
    assert wished_pause({}, {}) is None
    busy = ServerHttpError("503", status=503).as_dict()
    assert wished_pause(busy, kept) is None, "an old wish must not hide that the server is busy"
    limit = DeferredByServer("x", status="error-x", poll_interval=900).as_dict()
    assert wished_pause(limit, kept) == 900
    assert wished_pause(ServerRefused("x", poll_interval=None).as_dict(), kept) is None
    # The check went well, the download did not: the answer's wish beats the doubling.
    assert wished_pause(TransferHttpError("x", status=503).as_dict(), kept) == 3600


def test_a_server_that_wished_and_is_busy_now_is_asked_ever_more_seldom() -> None:
    kept = {"poll_interval": 3600}
    bases = [next_interval(last=2700, poll_interval=wished_pause({}, kept)).base]
    error = ServerHttpError("503", status=503)
    for _ in range(4):
        interval = next_interval(
            last=bases[-1],
            poll_interval=wished_pause(error.as_dict(), kept),
            http_status=http_status(error),
        )
        bases.append(interval.base)
    assert [b / HOUR for b in bases] == [1, 2, 4, 4, 4]


@given(
    st.fixed_dictionaries({}, optional={"id": st.text(max_size=5), "context": st.none()}),
    st.fixed_dictionaries({"poll_interval": st.none() | st.text() | st.floats() | st.booleans()}),
)
def test_odd_records_have_no_wish(error: dict[str, object], answer: dict[str, object]) -> None:
    assert wished_pause(error, answer) is None


def test_after_the_first_pause_a_doubling_is_still_the_regular_one() -> None:
    assert next_interval(last=7 * MINUTE, http_status=503) == Interval(45 * MINUTE, 10 * MINUTE)


def test_other_settings() -> None:
    assert next_interval(last=1, regular=60, fuzz=6) == Interval(60, 6)
    assert next_interval(last=1, regular=8 * HOUR, fuzz=6) == Interval(8 * HOUR, 6)
    assert next_interval(last=1, poll_interval=90, regular=60, fuzz=6) == Interval(90, 90)


@given(
    st.floats(0, 1e7),
    st.none() | st.integers(-10, 10**10),
    st.sampled_from([None, 200, 404, 500, 503]),
    st.integers(),
)
def test_a_pause_is_never_short_and_never_longer_than_six_hours(
    last: float, poll: int | None, status: int | None, seed: int
) -> None:
    interval = next_interval(last=last, poll_interval=poll, http_status=status)
    assert 45 * MINUTE <= interval.base <= 4 * HOUR
    due = next_check(1000.0, interval, random.Random(seed))
    assert 1000 + 22.5 * MINUTE <= due <= 1000 + 6 * HOUR


def test_http_status_of_an_error() -> None:
    assert http_status(ServerHttpError("x", status=503)) == 503
    assert http_status(TransferHttpError("x", status=500)) == 500
    assert http_status(TransferError("x")) is None
    assert http_status(ServerRefused("x", status="error-internal")) is None
    assert http_status(None) is None
