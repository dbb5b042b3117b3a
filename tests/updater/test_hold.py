"""Holds: for, until, indefinite; a warning before they end; damage does not end one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import UsageError
from bascule.updater.duration import span, words
from bascule.updater.hold import DAY, Hold, Warned, place_hold

NOW = 1_711_800_000.0  # Sat 2024-03-30 12:00 UTC

holds = st.builds(
    Hold,
    since=st.integers(0, 10**9),
    until=st.one_of(st.none(), st.integers(10**9, 2 * 10**9)),
    reason=st.text(max_size=20),
    by=st.text(max_size=20),
)


def test_for_a_while() -> None:
    hold = place_hold(NOW, lasting="48h", reason="moving the\nrack", by="uid 1000")
    assert hold == Hold(int(NOW), int(NOW) + 2 * DAY, "moving the rack", "uid 1000")
    assert hold.active(NOW) and hold.active(hold.until - 1)  # type: ignore[operator]
    assert not hold.active(NOW + 2 * DAY)


@pytest.mark.parametrize(
    ("until", "ends"),
    [
        ("2024-04-02", 1_712_008_800),
        ("2024-04-02 08:00", 1_712_037_600),
        ("2024-04-02T08:00:00Z", 1_712_044_800),
        ("Mon 08:00", 1_711_951_200),
        ("daily UTC", 1_711_843_200),
    ],
)
def test_until_a_moment_in_its_zone(until: str, ends: int) -> None:
    assert place_hold(NOW, until=until, zone_name="Europe/Berlin").until == ends


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"lasting": "1h", "indefinite": True},
        {"lasting": "1h", "until": "2030-01-01"},
        {"lasting": "soon"},
        {"lasting": "0h"},
        {"lasting": "-1h"},
        {"lasting": "99999999w"},
        {"until": "2024-03-30T11:59:00Z"},
        {"until": "2003-03-05 05:40 UTC"},
        {"until": "yesterday"},
        {"until": "*-02-30"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        place_hold(NOW, **wrong)  # type: ignore[arg-type]


def test_it_warns_a_day_before_it_ends() -> None:
    hold = place_hold(NOW, lasting="1w")
    assert hold.until is not None
    assert not hold.warns(NOW)
    assert hold.next_warning(NOW) == hold.until - DAY
    assert hold.warns(hold.until - DAY)
    assert hold.next_warning(hold.until - DAY) is None
    assert not hold.warns(hold.until)


def test_an_indefinite_one_is_spoken_of_every_day() -> None:
    hold = place_hold(NOW, indefinite=True)
    assert hold.active(NOW * 2)
    assert hold.warns(NOW)
    first = hold.next_warning(NOW)
    assert first == NOW + DAY
    assert hold.next_warning(first) == NOW + 2 * DAY


@settings(max_examples=150)
@given(holds, st.integers(0, 3 * 10**9), st.integers(0, 10**7))
def test_warnings_come_before_the_end_and_go_on_in_time(hold: Hold, now: int, before: int) -> None:
    warning = hold.next_warning(now, before)
    if warning is not None:
        assert warning > now
        assert hold.active(warning - 1)
    if hold.warns(now, before):
        assert hold.active(now)


@settings(max_examples=100)
@given(holds)
def test_the_ledgers_form_comes_back(hold: Hold) -> None:
    assert Hold.from_dict(hold.as_dict()) == hold


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from(["since", "until", "reason", "by", "x"]),
        st.one_of(st.none(), st.text(), st.booleans(), st.integers(), st.lists(st.integers())),
        min_size=1,
    )
)
def test_a_damaged_hold_still_holds(data: dict[str, object]) -> None:
    hold = Hold.from_dict(data)
    assert hold is not None
    until = data.get("until")
    if isinstance(until, bool) or not isinstance(until, int):
        assert hold.active(10**12)


def test_no_hold_is_none() -> None:
    assert Hold.from_dict({}) is None
    assert Hold.from_dict(None) is None


def test_spans_and_their_words() -> None:
    assert span("1d12h") == 129_600
    assert span(" 2 weeks ") == 14 * DAY
    assert span("90 min") == 5400
    assert words(span("9d4h30m")) == "9 d 4 h"
    assert words(0.2) == "0 s"
    assert words(59.6) == "1 min"
    assert words(3_600) == "1 h"
    assert words(-5) == "0 s"
    assert words(90_000) == "1 d 1 h"
    assert words(86_460) == "1 d"


def test_a_hold_is_spoken_of_once_before_it_ends_and_daily_if_it_does_not() -> None:
    ending, said = Hold(0, 10 * DAY), Warned()
    spoken = [day for day in range(12) if ending.warns(day * DAY) and said.due(ending, day * DAY)]
    assert spoken == [9]
    endless, said = Hold(0, None), Warned()
    hours = [h for h in range(24 * 4) if endless.warns(h * 3600) and said.due(endless, h * 3600)]
    assert hours == [0, 24, 48, 72]
    # Another hold is another matter.
    other = Hold(5, 10 * DAY)
    said = Warned()
    assert said.due(ending, 9 * DAY) and not said.due(ending, 9 * DAY + 1)
    assert said.due(other, 9 * DAY + 2)
