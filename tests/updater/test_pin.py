"""Pins: which releases a host may go to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import UsageError
from bascule.updater.pin import parse_pin


@pytest.mark.parametrize(
    ("pin", "allowed", "refused"),
    [
        ("3510.2.0", "3510.2.0 3510.2 v3510.2.0+build", "3510.2.1 3511 3510.2.0-rc1"),
        ("=3.1", "3.1 3.1.0", "3.1.1 3.10"),
        ("==3.1", "3.1", "3.2"),
        (">=3.0,<4", "3.0 3.0.0 3.9.99 3.1+nightly", "2.9 4 4.0.1 4.0.0-beta 3.0-rc"),
        ("3.1.*", "3.1 3.1.0 3.1.9.4", "3 3.10.1 3.2 4.1"),
        ("!=3.1.2", "3.1.1 3.1.3", "3.1.2 3.1.2+x"),
        ("!=3.1.*", "3.2 2", "3.1 3.1.7"),
        (">3.1, <=3.3", "3.1.1 3.3", "3.1 3.3.1"),
        ("3510.* || >=4000", "3510.2 4081.0.0+nightly-20240101", "3600 3999.9"),
        ("4081.0.0+nightly", "4081.0.0 4081.0.0+nightly", "4081.0.1"),
        ("my-release", "my-release", "my-other-release 1.0"),
        ("<4-beta", "4-alpha 3", "4-beta 4"),
    ],
)
def test_known_pins(pin: str, allowed: str, refused: str) -> None:
    parsed = parse_pin(pin)
    assert [v for v in allowed.split() if not parsed.allows(v)] == []
    assert [v for v in refused.split() if parsed.allows(v)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "  ",
        ">",
        ">=",
        ">=x",
        ">=3.*",
        "a b",
        "1,,2",
        "1 ||",
        "~3",
        "*",
        "x.*",
        "3.*.*",
        "1" * 300,
    ],
)
def test_what_is_no_pin_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError):
        parse_pin(wrong)


@pytest.mark.parametrize(
    ("pin", "never"),
    [
        (">=4,<3", True),
        (">4,<4", True),
        (">=4,<=4", False),
        ("=3.1,>=4", True),
        ("=3.1,>=4 || 5", False),
        (">=3,<4", False),
        ("3.1.*", False),
    ],
)
def test_a_pin_that_allows_nothing_is_known(pin: str, never: bool) -> None:
    assert parse_pin(pin).never_allows is never


numbers = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(lambda n: ".".join(map(str, n)))


@settings(max_examples=200)
@given(numbers, numbers)
def test_operators_agree_with_each_other(version: str, other: str) -> None:
    def allows(text: str) -> bool:
        return parse_pin(text).allows(version)

    assert allows(f"={other}") != allows(f"!={other}")
    assert allows(f">={other}") == (allows(f">{other}") or allows(f"={other}"))
    assert allows(f"<={other}") == (allows(f"<{other}") or allows(f"={other}"))
    assert allows(f"<{other}") != allows(f">={other}")
    assert allows(f"={other} || !={other}")
    if parse_pin(f">{other},<={other}").never_allows:
        assert not allows(f">{other},<={other}")


@settings(max_examples=150)
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_parsed_or_refused(text: str, version: str) -> None:
    try:
        parse_pin(text).allows(version)
    except UsageError:
        return
