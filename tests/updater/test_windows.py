"""Weekly windows: grammar, openings, and the promise about changes of the clocks."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bascule.errors import SettingsError
from bascule.updater.windows import (
    DAY,
    EVERY_DAY,
    WEEK,
    Span,
    Turn,
    Window,
    Windows,
    offset,
    parse_line,
    parse_locksmith,
    parse_window,
    parse_windows,
    weekdays,
)

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Pacific/Apia",
    "Africa/Casablanca",
    "America/St_Johns",
]


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    shown = datetime.fromisoformat(text)
    return round(shown.replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp())


windows = st.builds(
    Window,
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=st.integers(0, DAY // 60 - 1).map(lambda m: m * 60),
    length=st.one_of(st.integers(60, DAY), st.integers(60, WEEK)),
    zone=st.sampled_from(ZONES),
    end_by_clock=st.booleans(),
)
# Changes of the clocks in each of the zones, and the day that Samoa skipped.
MOMENTS = [
    at("2024-03-31T01:00"),
    at("2024-10-27T01:00"),
    at("2024-03-10T07:00"),
    at("2024-11-03T06:00"),
    at("2018-11-04T03:00"),
    at("2018-02-18T02:00"),
    at("2024-04-06T15:00"),
    at("2024-10-05T15:30"),
    at("2011-12-30T10:00"),
    at("2024-03-10T02:00"),
    at("2024-04-14T02:00"),
]
moments = st.builds(lambda m, d: m + d, st.sampled_from(MOMENTS), st.integers(-9 * DAY, 9 * DAY))


@settings(max_examples=200, deadline=None)
@given(windows, moments)
def test_open_close_and_contains_agree(window: Window, now: int) -> None:
    those = Windows((window,))
    opens = those.next_open(now)
    assert opens is not None and opens >= now
    assert those.contains(opens)
    assert those.contains(now) == (opens == now)
    if not those.contains(now):
        assert not those.contains(opens - 1) or opens - 1 < now
        assert opens - now <= 8 * DAY + 7200
    closes = those.next_close(opens)
    if closes is not None:
        assert closes > opens
        assert not those.contains(closes)
        assert those.contains(closes - 1)


@settings(max_examples=150, deadline=None)
@given(windows, moments)
def test_it_opens_on_every_one_of_its_days_at_its_hour(window: Window, now: int) -> None:
    zone = ZoneInfo(window.zone)
    spans = list(islice(window.spans(now), 10))
    assert all(a.open <= b.open for a, b in pairwise(spans))
    for span in spans:
        shown = datetime.fromtimestamp(span.open, zone)
        seconds = shown.hour * 3600 + shown.minute * 60
        if window.zone == "Pacific/Apia" and f"{shown:%F}" == "2011-12-31":
            continue  # Samoa skipped the whole 30th: what it missed opens on the 31st.
        if seconds == window.start:
            assert shown.weekday() in window.days
            continue
        # Only a time that the clocks skip may begin at another hour: later, by what they skip.
        naive = datetime.fromtimestamp(span.open, zone).replace(tzinfo=None)
        before = datetime.fromtimestamp(span.open - 4 * 3600, zone).utcoffset()
        after = shown.utcoffset()
        assert before is not None and after is not None and after > before
        meant = naive - (after - before)
        assert meant.hour * 3600 + meant.minute * 60 == window.start


@settings(max_examples=150, deadline=None)
@given(windows, moments)
def test_a_length_is_elapsed_time_and_an_end_is_a_time_of_day(window: Window, now: int) -> None:
    zone = ZoneInfo(window.zone)
    for span in islice(window.spans(now), 5):
        if not window.end_by_clock:
            assert span.close - span.open == window.length
            continue
        closed = datetime.fromtimestamp(span.close, zone)
        by_clock = closed.hour * 3600 + closed.minute * 60 + closed.second
        kept = span.close - span.open == window.length
        changed = (
            datetime.fromtimestamp(span.close + 4 * 3600, zone).utcoffset()
            != datetime.fromtimestamp(span.close - 25 * 3600, zone).utcoffset()
        )
        assert by_clock == (window.start + window.length) % DAY or kept or changed


@settings(max_examples=150, deadline=None)
@given(st.lists(windows, min_size=2, max_size=4), moments)
def test_several_windows_are_open_where_any_of_them_is(several: list[Window], now: int) -> None:
    those = Windows(tuple(several))
    single = [Windows((w,)) for w in several]
    opens = those.next_open(now)
    assert opens == min(w.next_open(now) or 0 for w in single)
    assert those.contains(now) == any(w.contains(now) for w in single)
    closes = those.next_close(opens)
    if closes is not None:
        assert not any(w.contains(closes) for w in single)
        for moment in (closes - 1, opens, (opens + closes) // 2):
            assert any(w.contains(moment) for w in single)
    spans = list(islice(those.spans(now), 4))
    assert all(a.open <= a.close and a.close < b.open for a, b in pairwise(spans)) or closes is None


def test_a_window_that_starts_in_the_skipped_hour_starts_after_it_with_its_whole_length() -> None:
    window = Windows((parse_line("Sun 02:30 1h Europe/Berlin"),))
    opens = window.next_open(at("2024-03-31T00:00", "Europe/Berlin"))
    assert opens == at("2024-03-31T03:30", "Europe/Berlin")
    assert window.next_close(opens) == opens + 3600


def test_a_window_within_the_skipped_hour_is_not_lost() -> None:
    window = Windows((parse_line("daily 02:30-03:15 Europe/Berlin"),))
    opens = window.next_open(at("2024-03-31T00:00", "Europe/Berlin"))
    assert opens == at("2024-03-31T03:30", "Europe/Berlin")
    assert window.next_close(opens) == opens + 45 * 60


def test_a_window_in_the_repeated_hour_opens_once() -> None:
    window = Window(EVERY_DAY, 2 * 3600, 1800, "Europe/Berlin")
    first = at("2024-10-27T02:00", "Europe/Berlin")
    spans = list(islice(window.spans(first - 60), 2))
    assert spans[0] == Span(first, first + 1800)
    assert spans[1].open == at("2024-10-28T02:00", "Europe/Berlin")
    assert not Windows((window,)).contains(at("2024-10-27T02:10", "Europe/Berlin", fold=1))


def test_a_night_is_shorter_or_longer_by_the_clock_and_equal_by_length() -> None:
    by_clock = parse_line("Sat 22:00-06:00 Europe/Berlin")
    by_length = parse_line("Sat 22:00 8h Europe/Berlin")
    spring = at("2024-03-30T12:00", "Europe/Berlin")
    autumn = at("2024-10-26T12:00", "Europe/Berlin")
    lengths = [
        next(w.spans(t)).close - next(w.spans(t)).open
        for w in (by_clock, by_length)
        for t in (spring, autumn)
    ]
    assert lengths == [7 * 3600, 9 * 3600, 8 * 3600, 8 * 3600]


def test_across_midnight_and_the_weeks_end() -> None:
    window = Windows((parse_line("Sun 23:00-01:00 UTC"),))
    monday = at("2024-04-01T00:30")
    assert window.contains(monday)
    assert window.next_close(monday) == at("2024-04-01T01:00")
    assert not window.contains(at("2024-04-01T01:00"))
    assert window.next_open(at("2024-04-01T01:00")) == at("2024-04-07T23:00")


def test_several_windows_are_joined_where_they_touch() -> None:
    both = parse_windows(["Mon 22:00-24:00 UTC", "Tue 00:00 2h UTC", "Fri 01:00+30m UTC"])
    now = at("2024-04-01T22:30")
    assert both.next_close(now) == at("2024-04-02T02:00")
    assert both.next_open(at("2024-04-02T02:00")) == at("2024-04-05T01:00")


def test_no_window_is_always_open_and_a_whole_day_never_closes() -> None:
    assert Windows().contains(5) and Windows().next_open(5.5) == 6
    assert Windows().next_close(5) is None
    whole = parse_windows(["daily 00:00-24:00 Europe/Berlin"])
    assert whole.contains(MOMENTS[0]) and whole.next_close(MOMENTS[0]) is None
    assert parse_windows(["Mon 00:00 168h"]).next_close(MOMENTS[0]) is None


def test_a_window_that_never_opens_is_known() -> None:
    for window in (Window(frozenset(), 0, 60), Window(EVERY_DAY, 0, 0)):
        those = Windows((window,))
        assert those.never_opens
        assert not those.contains(0)
        assert those.next_open(0) is None
        assert those.next_close(0) is None
        assert those.turn(0, "m", 60) is None
    assert not Windows((Window(EVERY_DAY, 0, 0), Window(EVERY_DAY, 0, 1))).never_opens


@settings(max_examples=150, deadline=None)
@given(windows, moments, st.text(max_size=8), st.integers(0, DAY))
def test_a_hosts_turn_is_within_the_window_and_keeps_its_place(
    window: Window, now: int, machine: str, spread: int
) -> None:
    those = Windows((window,))
    turn = those.turn(now, machine, spread)
    assert turn is not None
    assert turn.open <= turn.at < turn.close
    assert turn.at >= now
    if turn.at > now:
        assert those.turn(turn.at, machine, spread) == turn
        assert those.turn(now + (turn.at - now) // 2, machine, spread) == turn


def test_turns_spread_a_fleet_over_the_window() -> None:
    window = parse_windows(["daily 02:00-04:00 UTC"])
    before = at("2024-05-01T00:00")
    turns = [window.turn(before, f"{i:032x}", 3600) for i in range(300)]
    places = [t.at - t.open for t in turns if t is not None]
    assert len(places) == 300
    assert 0 <= min(places) < 300 and 3300 < max(places) <= 3600
    assert len(set(places)) > 250
    assert window.turn(before, "a" * 32, 3600) == window.turn(before, "a" * 32, 3600)
    assert offset("x", 0) == 0


def test_without_windows_it_is_ones_turn_at_once() -> None:
    assert Windows().turn(7.2, "m", 3600) == Turn(8, 8, 8 + 2 * WEEK + DAY)


@pytest.mark.parametrize(
    ("start", "length", "words"),
    [
        ("Thu 23:00", "1h30m", "Thu 23:00 for 1 h 30 min"),
        ("thu 4:5xyz", "45m", "Thu 04:05 for 45 min"),
        ("14:00", "1h", "daily 14:00 for 1 h"),
        ("  Sat   00:00 ", "167h59m59s", "Sat 00:00 for 6 d 23 h"),
        ("00:00", "0", "daily 00:00 for 0 s"),
    ],
)
def test_locksmiths_grammar(start: str, length: str, words: str) -> None:
    assert str(parse_locksmith(start, length)) == words


@pytest.mark.parametrize(
    ("start", "length", "why"),
    [
        ("Thu 23:00", "", "both"),
        ("", "1h", "both"),
        ("Thursday 23:00", "1h", "three letters"),
        ("Xyz 23:00", "1h", "weekday"),
        ("24:00", "1h", "time of day"),
        ("23:60", "1h", "time of day"),
        ("-1:00", "1h", "time of day"),
        ("2300", "1h", "time of day"),
        ("Thu 23:00 UTC", "1h", "window start"),
        ("23:00", "24h", "24 h"),
        ("Thu 23:00", "168h", "7 days"),
        ("23:00", "-1h", "negative"),
        ("23:00", "1 hour", "duration"),
        ("23:00", "90", "duration"),
    ],
)
def test_what_locksmith_refuses_is_refused(start: str, length: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        parse_locksmith(start, length)


def test_no_locksmith_window_is_none() -> None:
    assert parse_locksmith("", "") is None


def test_locksmiths_end_is_within_a_second_of_ours() -> None:
    window = parse_locksmith("Thu 23:00", "1h30m", "UTC")
    assert window is not None
    opens = at("2024-03-28T23:00")
    assert next(window.spans(opens)) == Span(opens, opens + 5400)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Thu 23:00 1h30m Europe/Berlin", "Thu 23:00 for 1 h 30 min Europe/Berlin"),
        ("Sat,Sun 02:00-04:00", "Sat,Sun 02:00-04:00"),
        ("fri,23:00-01:00", "Fri 23:00-01:00"),
        ("Mon-Fri 01:00 +30m", "Mon-Fri 01:00 for 30 min"),
        ("02:00-02:00 UTC", "daily 02:00-02:00 UTC"),
        ("Sat..Mon 02:00 1h", "Mon,Sat,Sun 02:00 for 1 h"),
        ("daily 00:00-24:00", "daily 00:00-00:00"),
    ],
)
def test_one_line(line: str, shown: str) -> None:
    assert str(parse_line(line)) == shown


@pytest.mark.parametrize(
    "line",
    ["", "Mon", "Mon 25:00 1h", "Mon 02:00", "Mon 02:00-03:00 Nowhere/City", "02:00 200h",
     "Foo 02:00 1h", "Mon 24:00 1h", "Mon 02:00 h", "x" * 300],
)  # fmt: skip
def test_a_wrong_line_is_refused(line: str) -> None:
    with pytest.raises(SettingsError):
        parse_line(line)


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(SettingsError, match="Nowhere/City"):
        parse_line("Mon 02:00 1h Nowhere/City")
    with pytest.raises(SettingsError, match="etc"):
        list(islice(Window(EVERY_DAY, 0, 60, "../etc/passwd").spans(0), 1))


def test_a_table() -> None:
    window = parse_window(
        {"days": ["Mon-Wed", "sunday"], "start": "22:30", "end": "01:00", "zone": "UTC"}
    )
    assert window == Window(frozenset({0, 1, 2, 6}), 81000, 9000, "UTC", end_by_clock=True)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"start": "1:00", "length": "1h", "colour": "red"}, "colour"),
        ({"length": "1h"}, "start"),
        ({"start": "1:00"}, "length"),
        ({"start": "1:00", "length": "1h", "end": "2:00"}, "length"),
        ({"start": 100, "length": "1h"}, "start"),
        ({"start": "1:00", "length": "1h", "days": []}, "never open"),
        ({"start": "1:00", "length": "1h", "days": [1]}, "days"),
        ({"start": "1:00", "length": "1h", "days": "Mon-Foo"}, "Foo"),
        ({"start": "1:00", "length": "-1h"}, "negative"),
    ],
)
def test_a_wrong_table_is_refused_with_its_key(table: dict[str, object], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        parse_window(table)


@settings(max_examples=200, deadline=None)
@example("Mon,,Tue 02:00 1h")
@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_line, weekdays, lambda t: parse_locksmith(t, t)):
        try:
            parse(text)
        except SettingsError:
            continue


def test_the_hosts_own_zone_is_the_default() -> None:
    window = parse_line("daily 00:00 1h")
    assert window.zone == ""
    assert next(window.spans(at("2024-01-01T12:00"))).open <= at("2024-01-03T12:00")
    assert datetime.fromtimestamp(0, UTC).year == 1970


def test_a_host_without_a_zone_database_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import zoneinfo

    from bascule.updater import zone as zones

    monkeypatch.setattr(zones, "_DATABASE", Path("/nonexistent"))
    monkeypatch.setitem(sys.modules, "tzdata", None)
    zoneinfo.reset_tzpath(to=[])
    zoneinfo.ZoneInfo.clear_cache()
    zones._named.cache_clear()
    try:
        with pytest.raises(SettingsError, match=r"'Asia/Tokyo'.*package tzdata.*missing"):
            parse_line("Mon 02:00 1h Asia/Tokyo")
        assert parse_line("Mon 02:00 1h UTC").zone == "UTC"
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()
        zones._named.cache_clear()


def test_a_changed_host_zone_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bascule.updater import zone as zones

    local = tmp_path / "localtime"
    monkeypatch.setattr(zones, "_LOCALTIME", local)
    zones._host_zone_of.cache_clear()
    midnight = []
    for name in ("Asia/Tokyo", "America/Lima"):
        local.unlink(missing_ok=True)
        local.write_bytes((Path("/usr/share/zoneinfo") / name).read_bytes())
        midnight.append(parse_windows(["daily 00:00 1h"]).next_open(at("2024-06-01T00:00")))
    local.write_bytes(b"broken")
    midnight.append(parse_windows(["daily 00:00 1h"]).next_open(at("2024-06-01T00:00")))
    local.unlink()
    midnight.append(parse_windows(["daily 00:00 1h"]).next_open(at("2024-06-01T00:00")))
    zones._host_zone_of.cache_clear()
    day = at("2024-06-01T00:00")
    assert midnight == [day + 15 * 3600, day + 5 * 3600, day, day]
