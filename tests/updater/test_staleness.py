"""When silence becomes an alarm."""

from __future__ import annotations

import pytest

from bascule.updater.staleness import is_stale, warning

DAY = 86400
NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("last", "begun", "after", "stale"),
    [
        (NOW - 14 * DAY, NOW - 99 * DAY, 14 * DAY, False),
        (NOW - 14 * DAY - 1, NOW - 99 * DAY, 14 * DAY, True),
        (NOW - 99 * DAY, 0, 0, False),
        (0, NOW - 15 * DAY, 14 * DAY, True),
        (0, NOW - DAY, 14 * DAY, False),
        (0, 0, 14 * DAY, False),
        (NOW + DAY, 0, 1, False),
    ],
)
def test_stale(last: int, begun: int, after: float, stale: bool) -> None:
    assert is_stale(last, begun, after, NOW) is stale


def test_the_sentence_names_the_span() -> None:
    assert "for 40 d" in warning(NOW - 40 * DAY, 1, NOW)
    assert "never" not in warning(0, NOW - 3 * DAY, NOW)
    assert "3 d ago" in warning(0, NOW - 3 * DAY, NOW)
