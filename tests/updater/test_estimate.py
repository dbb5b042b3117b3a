"""Rates from history, and what they make of the next release."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bascule.updater.estimate import LATEST, estimate, rates


def staged(download: float = 10.0, **facts: Any) -> dict[str, Any]:
    told = {"download_s": download, "apply_s": 2.0, "bytes": 1000, "written": 600, "skipped": 200}
    return {"kind": "staged", "facts": {**told, **facts}}


def test_no_installation_is_no_estimate() -> None:
    assert rates([]) is None
    assert rates([{"kind": "verdict", "facts": {"downtime_s": 3.0}}, {"kind": "staged"}]) is None
    assert rates([staged(bytes=0)]) is None


def test_sums_over_the_latest() -> None:
    old = [staged(1000.0)] * 9
    known = rates([*old, *[staged()] * LATEST, {"kind": "verdict", "facts": {"downtime_s": 21.5}}])
    assert known is not None
    assert (known.updates, known.download, known.apply) == (LATEST, 100.0, 400.0)
    assert known.kept == 0.25
    assert known.downtime == 21.5


def test_a_limit_is_slower_than_the_line() -> None:
    known = rates([staged()])
    assert known is not None
    assert estimate(known, 1000, 800).total == 12.0
    assert estimate(known, 1000, 800, limit=50).download == 20.0
    assert estimate(known, 1000, 800, limit=5000).download == 10.0


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([])
facts = st.dictionaries(
    st.sampled_from(["download_s", "apply_s", "bytes", "written", "skipped", "downtime_s"]), values
)
records = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["staged", "verdict", "x"]), "facts": facts | values}
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records, st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_any_history_is_harmless(told: list[dict[str, Any]], fetch: int, image: int) -> None:
    known = rates(told)
    if known is not None:
        assert known.download >= 0 and 0 <= known.kept <= 1
        assert estimate(known, fetch, image).total >= 0
