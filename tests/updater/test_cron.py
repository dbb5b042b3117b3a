"""Five-field cron expressions."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import SettingsError
from bascule.updater.cron import Cron, parse_cron


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    shown = datetime.fromisoformat(text)
    return round(shown.replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp())


def following(text: str, start: str, count: int, zone: str = "UTC") -> list[str]:
    cron = parse_cron(text, zone)
    moment: int | None = at(start, zone)
    found = []
    for _ in range(count):
        assert moment is not None
        moment = cron.next(moment)
        assert moment is not None
        shown = datetime.fromtimestamp(moment, ZoneInfo(zone))
        found.append(f"{shown:%a %m-%d %H:%M}")
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 2 * * *", ["Mon 01-01 02:00", "Tue 01-02 02:00"]),
        ("*/20 1 * * *", ["Mon 01-01 01:00", "Mon 01-01 01:20", "Mon 01-01 01:40", "Tue 01-02 01:00"]),
        ("30 4 1,15 * 5", ["Mon 01-01 04:30", "Fri 01-05 04:30", "Fri 01-12 04:30", "Mon 01-15 04:30"]),
        ("30 4 */2 * 5", ["Fri 01-05 04:30", "Fri 01-19 04:30"]),
        ("0 0 * jan-mar mon-fri/2", ["Wed 01-03 00:00", "Fri 01-05 00:00"]),
        ("5 0 * * 7", ["Sun 01-07 00:05", "Sun 01-14 00:05"]),
        ("5 0 * * 5-7", ["Fri 01-05 00:05", "Sat 01-06 00:05", "Sun 01-07 00:05"]),
        ("@weekly", ["Sun 01-07 00:00"]),
        ("@HOURLY", ["Mon 01-01 01:00", "Mon 01-01 02:00"]),
        ("0 0 29 2 *", ["Thu 02-29 00:00", "Tue 02-29 00:00"]),
        ("50/4 23 * * *", ["Mon 01-01 23:50", "Mon 01-01 23:54", "Mon 01-01 23:58"]),
    ],
)  # fmt: skip
def test_known_expressions(text: str, expected: list[str]) -> None:
    assert following(text, "2024-01-01T00:00", len(expected)) == expected


def test_a_day_that_never_comes_never_fires() -> None:
    assert parse_cron("0 0 31 2 *").next(0) is None
    assert parse_cron("0 0 30 2 *", "Europe/Berlin").next(1.7e9) is None


def test_a_skipped_hour_runs_after_it_and_a_repeated_one_once() -> None:
    berlin = "Europe/Berlin"
    assert following("30 2 * * *", "2024-03-30T12:00", 2, berlin) == [
        "Sun 03-31 03:30",
        "Mon 04-01 02:30",
    ]
    cron = parse_cron("30 2 * * *", berlin)
    first = cron.next(at("2024-10-27T00:00", berlin))
    assert first == at("2024-10-27T02:30", berlin)
    assert cron.next(first) == at("2024-10-28T02:30", berlin)


def test_an_entry_of_every_hour_follows_elapsed_time() -> None:
    cron = parse_cron("15 * * * *", "America/New_York")
    moment = at("2024-11-03T00:15", "America/New_York")
    for _ in range(5):
        following_one = cron.next(moment)
        assert following_one == moment + 3600
        moment = following_one


fields = st.tuples(
    st.lists(st.integers(0, 59), min_size=1, max_size=3),
    st.lists(st.integers(0, 23), min_size=1, max_size=3),
    st.one_of(st.just([]), st.lists(st.integers(1, 31), min_size=1, max_size=3)),
    st.one_of(st.just([]), st.lists(st.integers(1, 12), min_size=6, max_size=8)),
    st.one_of(st.just([]), st.lists(st.integers(0, 7), min_size=1, max_size=3)),
)


@settings(max_examples=150, deadline=None)
@given(fields, st.integers(1_700_000_000, 1_760_000_000))
def test_next_is_the_first_minute_that_matches(numbers: tuple[list[int], ...], after: int) -> None:
    text = " ".join(",".join(map(str, n)) or "*" for n in numbers)
    found = parse_cron(text, "UTC").next(after)
    minutes, hours, days, months, weekdays = map(set, numbers)
    expected = None
    day = datetime.fromtimestamp(after, ZoneInfo("UTC")).date()
    for step in range(3000):
        today: date = day + timedelta(days=step)
        by_date = today.day in days or not days
        by_weekday = today.isoweekday() in {w or 7 for w in weekdays} or not weekdays
        either = bool(days) and bool(weekdays)
        right = (by_date or by_weekday) if either else (by_date and by_weekday)
        if not right or (months and today.month not in months):
            continue
        moments = sorted(
            at(f"{today} {hour:02}:{minute:02}") for hour in hours for minute in minutes
        )
        expected = next((m for m in moments if m > after), None)
        if expected is not None:
            break
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["30 2 * * *", "*/15 * * * *", "0 1,2,3 * * *", "*/7 2 * * 0", "0 0 * * *"]),
    st.sampled_from(["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia"]),
    st.sampled_from([1711846800, 1729990800, 1541300400, 1518922800, 1728142200, 1325239200]),
    st.integers(-3 * 86400, 3 * 86400),
)
def test_it_goes_on_across_changes_of_the_clocks(
    text: str, zone: str, near: int, before: int
) -> None:
    cron = parse_cron(text, zone)
    moment = near + before
    seen = []
    for _ in range(12):
        following_one = cron.next(moment)
        assert following_one is not None
        assert moment < following_one <= moment + 9 * 86400
        assert cron.next(following_one - 1) == following_one
        moment = following_one
        seen.append(moment)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("@reboot", "five fields"),
        ("60 * * * *", "minute.*0–59"),
        ("* 24 * * *", "hour.*0–23"),
        ("* * 0 * *", "day of month.*1–31"),
        ("* * * 13 *", "month.*1–12"),
        ("* * * * 8", "day of week.*0–7"),
        ("*/0 * * * *", "step 0"),
        ("5-1 * * * *", "backwards"),
        ("* * * foo *", "unknown name 'foo'"),
        ("* * * * fri-mon", "backwards"),
        ("1,,2 * * * *", "cannot be read"),
        ("-1 * * * *", "cannot be read"),
        ("٣ * * * *", "cannot be read"),
    ],
)
def test_a_refusal_names_the_field(text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        parse_cron(text)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="*/,-?@0123456789 monjafriL#", max_size=20))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        assert isinstance(parse_cron(text), Cron)
    except SettingsError:
        return


def test_an_unknown_zone_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="Mars/Olympus"):
        parse_cron("0 0 * * *", "Mars/Olympus")
