"""Schedules: recurrences, turns, and what `config check` finds in them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import SettingsError
from bascule.updater.calendar import Calendar
from bascule.updater.cron import Cron
from bascule.updater.schedule import Mode, Schedule, parse_recurrence, parse_schedule
from bascule.updater.windows import Window, Windows, parse_windows

NOW = 1_711_800_000.0  # Sat 2024-03-30 12:00 UTC


def test_both_kinds_of_expression_are_known_by_their_look() -> None:
    assert isinstance(parse_recurrence("0 2 * * *"), Cron)
    assert isinstance(parse_recurrence("@daily"), Cron)
    assert isinstance(parse_recurrence("daily"), Calendar)
    assert isinstance(parse_recurrence("Mon..Fri 02:00 UTC"), Calendar)
    assert isinstance(parse_recurrence("@1395716396"), Calendar)
    with pytest.raises(SettingsError):
        parse_recurrence("every now and then")


def test_the_earliest_of_several_expressions_counts() -> None:
    schedule = parse_schedule("check", checks=["0 3 * * *", "Sat 13:00"], zone_name="UTC")
    assert schedule.mode is Mode.CHECK
    assert schedule.next_check(NOW) == NOW + 3600
    assert schedule.next_check(NOW + 3600) == NOW + 15 * 3600
    assert parse_schedule().next_check(NOW) is None


@settings(max_examples=100)
@given(st.text(max_size=10), st.integers(0, 7200), st.integers(0, 10**6))
def test_jitter_is_a_hosts_own_and_loses_no_check(machine: str, jitter: int, after: int) -> None:
    plain = parse_schedule(checks=["*/10 * * * *"], zone_name="UTC")
    late = parse_schedule(
        checks=["*/10 * * * *"], zone_name="UTC", machine_id=machine, jitter=jitter
    )
    assert 0 <= late.check_offset <= jitter
    moment = late.next_check(NOW + after)
    assert moment is not None and NOW + after < moment <= NOW + after + 600
    assert (moment - late.check_offset) % 600 == 0
    assert plain.check_offset == 0


def test_a_turn_is_told_beforehand() -> None:
    reboots = parse_windows(["Sun 02:00-04:00 UTC"])
    schedule = parse_schedule(reboots=reboots, machine_id="a" * 32)
    turn = schedule.reboot_turn(NOW)
    assert turn is not None
    assert turn.open == 1_711_850_400
    assert turn.open <= turn.at <= turn.open + 3600
    assert parse_schedule(reboots=reboots, spread=False).reboot_turn(NOW) == (
        turn.open,
        turn.open,
        turn.close,
    )


def test_nothing_is_wrong_with_the_defaults_and_with_good_settings() -> None:
    assert parse_schedule().problems(NOW) == []
    good = parse_schedule(
        checks=["0 2 * * *"],
        downloads=parse_windows(["daily 22:00-06:00"]),
        reboots=parse_windows(["Sun 02:00 1h"]),
    )
    assert good.problems(NOW) == []


def test_a_window_that_never_opens_is_reported() -> None:
    never = Windows((Window(frozenset(range(7)), 0, 0),))
    schedule = Schedule(downloads=never, reboots=never)
    found = schedule.problems(NOW)
    assert [(p.fatal, p.setting) for p in found] == [
        (True, "download.windows"),
        (True, "reboot.windows"),
    ]
    assert "no payload will ever be fetched" in found[0].sentence
    assert "will never reboot by itself" in found[1].sentence


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]
# Around changes of the clocks in those zones, and anywhere else in two years.
MOMENTS = st.one_of(
    st.builds(
        lambda at, off: at + off,
        st.sampled_from([1_711_846_800, 1_729_990_800, 1_710_054_000, 1_712_415_600]),
        st.integers(-3 * 86400, 3 * 86400),
    ),
    st.integers(1_704_067_200, 1_767_225_600),
)
some_windows = st.lists(
    st.builds(
        Window,
        days=st.frozensets(st.integers(0, 6)),
        start=st.integers(0, 1439).map(lambda m: m * 60),
        length=st.sampled_from([0, 60, 3600, 86400, 3 * 86400]),
        zone=st.sampled_from(ZONES),
        end_by_clock=st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(some_windows, MOMENTS)
def test_a_window_is_reported_if_and_only_if_it_never_opens(found: list[Window], now: int) -> None:
    """The promise of `config check`: whoever is told nothing has a window within nine days."""
    windows = Windows(tuple(found))
    schedule = Schedule(reboots=windows, downloads=windows, machine_id="a" * 32)
    fatal = {p.setting for p in schedule.problems(now) if p.fatal}
    opens = windows.next_open(now)
    if fatal:
        assert fatal == {"reboot.windows", "download.windows"}
        assert opens is None and schedule.reboot_turn(now) is None
        assert all(not windows.contains(now + day * 3600) for day in range(0, 14 * 24, 7))
    else:
        assert opens is not None and now <= opens <= now + 9 * 86400
        assert windows.contains(opens)
        turn = schedule.reboot_turn(now)
        assert turn is not None and windows.contains(turn.at)


def test_one_of_several_that_never_opens_and_a_short_one_are_reported() -> None:
    windows = Windows((Window(frozenset({0}), 0, 0), Window(frozenset({1}), 0, 300)))
    found = Schedule(reboots=windows).problems(NOW)
    assert [(p.fatal, p.sentence) for p in found] == [
        (False, "The window Mon 00:00 for 0 s never opens."),
        (False, "The window Tue 00:00 for 5 min is open for 5 min only."),
    ]


def test_a_schedule_that_never_comes_is_reported() -> None:
    found = parse_schedule(checks=["0 0 31 2 *"]).problems(NOW)
    assert found[0].fatal and "no check will ever be made" in found[0].sentence
    found = parse_schedule(checks=["2003-03-05", "daily"]).problems(NOW)
    assert [p.fatal for p in found] == [False]
    assert "'2003-03-05' never comes again" in found[0].sentence


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(SettingsError, match="always"):
        parse_schedule("always")
