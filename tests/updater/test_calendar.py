"""systemd calendar expressions, compared with the real `systemd-analyze`."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bascule.errors import SettingsError
from bascule.updater.calendar import parse_calendar

real = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]


class GaveUpError(Exception):
    """systemd does not know."""


def systemd(text: str, base: int, count: int) -> list[int] | None:
    """What systemd says: the next moments, [] for never, None where it refuses."""
    result = subprocess.run(
        ["systemd-analyze", "calendar", f"--base-time=@{base}", f"--iterations={count}", text],
        capture_output=True,
        text=True,
        env={"TZ": "UTC", "LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    # systemd 252 gives up on some jumps over many months (EDEADLK of its own loop guard).
    if "Resource deadlock avoided" in result.stderr:
        raise GaveUpError
    if result.returncode != 0:
        return None
    found = re.findall(
        r"(?:Next elapse|Iter\. #\d+|Iteration #\d+): \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC",
        result.stdout,
    )
    return [int(datetime.fromisoformat(f).replace(tzinfo=UTC).timestamp()) for f in found]


def ours(text: str, base: int, count: int) -> list[int] | None:
    try:
        calendar = parse_calendar(text, "UTC")
    except SettingsError:
        return None
    found: list[int] = []
    at: int | None = base
    while len(found) < count:
        assert at is not None
        at = calendar.next(at)
        if at is None:
            break
        found.append(at)
    return found


EXPRESSIONS = """\
Sat,Thu,Mon..Wed,Sat..Sun|Mon,Sun 12-*-* 2,1:23|Wed *-1|Wed..Wed,Wed *-1|Wed, 17:48
Wed..Sat,Tue 12-10-15 1:2:3|*-*-7 0:0:0|10-15|monday *-12-* 17:00|Mon,Fri *-*-3,1,2 *:30:45
12,14,13,12:20,10,30|12..14:10,20,30|mon,fri *-1/2-1,3 *:30:45|03-05 08:05:40|08:05:40|05:40
Sat,Sun 12-05 08:05:40|Sat,Sun 08:05:40|2003-03-05 05:40|2003-02..04-05|2003-03-05 05:40 UTC
2003-03-05|03-05|hourly|daily|daily UTC|monthly|weekly|weekly Pacific/Auckland|yearly|annually
quarterly|semi-annually|biannually|*:2/3|minutely|*-*-31|*-02-30|*-02-29|Mon *-02-29|Mon *-05~07/1
*-02~03|*-*~4/3|*-*~4/3,1|*-*~1..7|*-*~3/3|*-*~7..1|*-*-1/40|*-*-*/2|*-13-01|24:00|23:60|5..5:00
1969-1-1|1970-1-1|2199-*-*|2200-1-1|70-1-1|69-1-1|Mon 12:00 *-*-*|Mon...Wed|Mon-Wed 3:4|12:00 utc
12:00 Europe/Nowhere|Utc|Mon UTC|*|*-*|5|5:|daily Europe/Berlin|*:0/15 Asia/Kolkata|*:*|0..10/3:5
*-1,3,5-* 1,2..5/2,7:0|*:0/61|*:30/31|*:30/29|Mon..Sun|Fri..Mon|@abc|@1395716396|@99999999999
2024-02-29~1|2024/4-02-29|9..17/9:30|9..17/10:30|10..12/0:00|*/0:00|+5:00|Tue,,|Sun..Tue|30..10:00
1/2-1-1 UTC|Mon,|,Mon|Mon..|..Mon|*-*-*-*|*--*|1:2:3:4|12:00 12:00|Mon Tue|*-*-01..03/2|*-*~01/1
*-*~28|*-*~29|*-*~1..28/3|*-*~31/3|*-*~28/5|*-*~*
"""


@real
@pytest.mark.parametrize("text", re.split(r"[|\n]", EXPRESSIONS.strip()))
def test_known_expressions_give_what_systemd_gives(text: str) -> None:
    base = 1711800000
    assert ours(text, base, 3) == systemd(text, base, 3)


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    one = st.integers(low, high)
    link = st.one_of(
        one.map(str),
        st.tuples(one, one).map(lambda p: f"{min(p)}..{max(p)}"),
        st.tuples(one, st.integers(1, high)).map(lambda p: f"{p[0]}/{p[1]}"),
        st.tuples(one, one, st.integers(1, 9)).map(lambda p: f"{min(p[:2])}..{max(p[:2])}/{p[2]}"),
    )
    return st.one_of(st.just("*"), st.lists(link, min_size=1, max_size=3).map(",".join))


day_name = st.sampled_from(["Mon", "tue", "Wednesday", "Thu", "Fri", "Sat", "sun"])
weekdays = st.one_of(
    st.just(""),
    st.lists(
        st.one_of(day_name, st.tuples(day_name, day_name).map("..".join)), min_size=1, max_size=3
    ).map(lambda p: ",".join(p) + " "),
)
years = st.one_of(
    st.just("*-"), st.just(""), st.integers(2023, 2030).map(lambda y: f"{y}-"), st.just("2024/3-")
)
dates = st.builds(
    lambda y, m, s, d: f"{y}{m}{s}{d}",
    years,
    numbers(1, 12),
    st.sampled_from("---~"),
    st.one_of(numbers(1, 28), numbers(1, 31)),
)
times = st.builds(lambda *p: ":".join(p), numbers(0, 23), numbers(0, 59))
expressions = st.builds(
    lambda w, d, t, z: " ".join((w + " ".join(x for x in (d, t, z) if x)).split()),
    weekdays,
    st.one_of(st.just(""), dates),
    times,
    st.sampled_from(ZONES),
)


@real
@settings(max_examples=150, deadline=None)
@given(text=expressions, base=st.integers(1_704_067_200, 1_767_225_600))
@example(text="*-1/8-* *:* Europe/Berlin", base=1_759_269_480)
def test_random_expressions_give_what_systemd_gives(text: str, base: int) -> None:
    try:
        theirs = systemd(text, base, 2)
    except GaveUpError:
        return
    if theirs is None and re.search("~[^ ]*,", text):
        return  # systemd 252 refuses some lists of days from the end (~1,2,23, not ~1,2,5).
    assert ours(text, base, 2) == theirs, text


@real
@settings(max_examples=60, deadline=None)
@given(
    near=st.sampled_from(
        [1711846800, 1729990800, 1710054000, 1730613600, 1712415600, 1728142200]
    ),  # changes of the clocks in Berlin, New York and Lord Howe, 2024
    before=st.integers(-7200, 36000),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    time=st.sampled_from(["02:30", "*:0/30", "1..3:15,45", "02:00", "01:45", "03:00", "*:*"]),
)
def test_changes_of_the_clocks_are_met_as_systemd_meets_them(
    near: int, before: int, zone: str, time: str
) -> None:
    base = near - before
    assert ours(f"{time} {zone}", base, 4) == systemd(f"{time} {zone}", base, 4)


def test_a_refusal_names_the_expression_and_the_manual() -> None:
    with pytest.raises(SettingsError, match=r"Fri\.\.Mon.*backwards.*systemd\.time"):
        parse_calendar("Fri..Mon 02:00")
    with pytest.raises(SettingsError, match="fractions of a second"):
        parse_calendar("12:00:00.5")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_calendar(text)
    except SettingsError:
        return


def test_an_expression_that_never_comes_says_so() -> None:
    assert parse_calendar("*-02-30").next(0) is None
    assert parse_calendar("2003-03-05").next(1_700_000_000) is None
