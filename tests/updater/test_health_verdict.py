"""The health verdict, the baseline and the deadman, as properties over a fake clock."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bascule.engine.health import Baseline, CheckResult, Outcome
from bascule.updater.health_verdict import (
    BLESSING,
    DECIDING,
    Deadman,
    HealthVerdict,
    deadman,
    judge,
    last_moment,
)

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
UNITS = st.lists(st.sampled_from(["x.service", "y.service", "z.service"]), unique=True)


@st.composite
def results(draw: st.DrawFn) -> list[CheckResult]:
    names = draw(st.lists(NAMES, unique=True))
    made = []
    for name in names:
        outcome = draw(st.sampled_from(list(Outcome)))
        subjects = tuple(draw(UNITS)) if outcome is Outcome.FAIL else ()
        reason = "" if outcome is Outcome.PASS else f"{name} failed"
        made.append(CheckResult(name, draw(st.booleans()), outcome, reason, subjects))
    return made


TIMES = st.floats(0, 1e6)


@given(results(), TIMES, TIMES)
def test_wanted_checks_never_condemn(found: list[CheckResult], now: float, deadline: float) -> None:
    required_only = [r for r in found if r.required]
    one = judge(found, now=now, deadline=deadline)
    two = judge(required_only, now=now, deadline=deadline)
    assert (one.outcome, one.reason) == (two.outcome, two.reason)


@given(results(), TIMES, TIMES)
def test_fail_needs_a_failure_or_the_deadline(
    found: list[CheckResult], now: float, deadline: float
) -> None:
    verdict = judge(found, now=now, deadline=deadline)
    failed = any(r.required and r.outcome is Outcome.FAIL for r in found)
    open_ = any(r.required and r.outcome is Outcome.INCONCLUSIVE for r in found)
    if failed:
        assert verdict.outcome is Outcome.FAIL
    elif open_:
        assert verdict.outcome is (Outcome.INCONCLUSIVE if now < deadline else Outcome.FAIL)
    else:
        assert verdict.outcome is Outcome.PASS
    assert bool(verdict.reason) == (verdict.outcome is not Outcome.PASS)


@given(results(), st.sampled_from(list(Outcome)))
def test_deadline_decides_as_told(found: list[CheckResult], becomes: Outcome) -> None:
    open_ones = [r for r in found if r.outcome is not Outcome.FAIL]
    verdict = judge(open_ones, now=5, deadline=5, inconclusive_becomes=becomes)
    undecided = any(r.required and r.outcome is Outcome.INCONCLUSIVE for r in open_ones)
    assert verdict.outcome is (becomes if undecided else Outcome.PASS)


@given(results())
def test_what_failed_before_does_not_condemn(found: list[CheckResult]) -> None:
    baseline = Baseline.of(found, version="1", boot_id="b", now=1)
    verdict = judge(found, baseline=baseline, now=0, deadline=10)
    assert verdict.outcome is not Outcome.FAIL
    required = [r for r in found if r.required and r.outcome is Outcome.FAIL]
    assert len(verdict.excused) == len(required)
    assert verdict.condemned == ()


@given(results(), results())
def test_a_baseline_only_ever_excuses(before: list[CheckResult], after: list[CheckResult]) -> None:
    baseline = Baseline.of(before, version="1", boot_id="b", now=1)
    with_it = judge(after, baseline=baseline, now=0, deadline=10)
    without = judge(after, now=0, deadline=10)
    assert not (with_it.outcome is Outcome.FAIL and without.outcome is not Outcome.FAIL)
    assert with_it.undecided == without.undecided


def test_a_new_unit_condemns_although_an_old_one_is_excused() -> None:
    before = [
        CheckResult("no-failed-units", True, Outcome.FAIL, "old.service failed", ("old.service",))
    ]
    after = [
        CheckResult(
            "no-failed-units",
            True,
            Outcome.FAIL,
            "myapp.service, old.service failed",
            ("myapp.service", "old.service"),
        )
    ]
    baseline = Baseline.of(before, version="1", boot_id="b", now=1)
    verdict = judge(after, baseline=baseline, now=0, deadline=1)
    assert verdict.reason == "myapp.service failed"
    assert verdict.excused == ("old.service failed",)
    assert "not held against it: old.service failed." in "\n".join(verdict.report())


def test_same_reason_is_told_once() -> None:
    two = [
        CheckResult("unit:myapp.service", True, Outcome.FAIL, "myapp.service failed"),
        CheckResult(
            "no-failed-units", True, Outcome.FAIL, "myapp.service failed", ("myapp.service",)
        ),
        CheckResult("tcp:x:1", True, Outcome.FAIL, "nothing answers on x:1"),
    ]
    assert judge(two, now=0, deadline=1).reason == "myapp.service failed, and 1 more"
    assert judge(two[:2], now=0, deadline=1).reason == "myapp.service failed"


def test_expected_but_never_asked() -> None:
    verdict = judge([], expected=["tcp:x:1"], now=0, deadline=1)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert judge([], expected=["tcp:x:1"], now=1, deadline=1).outcome is Outcome.FAIL
    assert judge([], now=1, deadline=1).outcome is Outcome.PASS


@given(results())
def test_baseline_survives_json(found: list[CheckResult]) -> None:
    baseline = Baseline.of(found, version="1", boot_id="b", now=1.5)
    assert Baseline.from_dict(json.loads(json.dumps(baseline.as_dict()))) == baseline


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON | st.fixed_dictionaries({"failed": JSON, "taken_at": JSON}))
def test_baseline_from_anything(data: object) -> None:
    Baseline.from_dict(data)


@given(
    on_trial=st.booleans(),
    fallback=st.booleans(),
    health=st.none() | st.sampled_from(list(Outcome)),
    uptime=TIMES,
    deadline=TIMES,
)
def test_deadman(
    on_trial: bool, fallback: bool, health: Outcome | None, uptime: float, deadline: float
) -> None:
    verdict = None if health is None else HealthVerdict(health, "myapp.service failed")
    order = deadman(
        on_trial=on_trial,
        fallback_bootable=fallback,
        health=verdict,
        uptime=uptime,
        deadline=deadline,
    )
    due = health is Outcome.FAIL or uptime >= deadline
    if not on_trial:
        assert order.action is Deadman.REST
    elif not due:
        assert order.action is Deadman.WAIT
        assert uptime + order.seconds == pytest.approx(deadline)
        assert order.seconds > 0
    else:
        assert order.action is (Deadman.REBOOT if fallback else Deadman.STAY)
    assert order.reason.endswith(".")


WHOLE = st.integers(0, 10**7)


@given(deadline=WHOLE, soak=WHOLE, timeout=WHOLE, healthy=st.booleans())
def test_the_last_moment_leaves_time_for_what_is_still_to_come(
    deadline: int, soak: int, timeout: int, healthy: bool
) -> None:
    """Health may be decided as late as its deadline; then follow the soak, its last asking, the blessing."""
    at = last_moment(deadline=deadline, soak=soak, timeout=timeout, healthy=healthy)
    assert at >= deadline + DECIDING
    if healthy:
        assert at >= deadline + DECIDING + soak + BLESSING
        assert at == deadline + DECIDING + BLESSING + (soak + timeout if soak else 0)
    else:
        # A boot that nobody found healthy is not left waiting for a soak that cannot begin.
        assert at == deadline + DECIDING


@given(
    deadline=st.integers(1, 10**6),
    soak=st.integers(0, 10**6),
    timeout=st.integers(1, 10**4),
    decided=st.integers(0, 10**6),
    blessing=st.floats(0, BLESSING),
)
def test_a_healthy_boot_is_never_given_up_however_late_it_was_decided(
    deadline: int, soak: int, timeout: int, decided: int, blessing: float
) -> None:
    """The deadman, asked at any moment of a boot that goes well, waits."""
    decided_at = min(decided, deadline) + DECIDING / 2
    blessed_at = decided_at + soak + (timeout if soak else 0) + blessing
    healthy = HealthVerdict(Outcome.PASS)
    for uptime, health in (
        (0.0, None),
        (decided_at, None),
        (decided_at, healthy),
        (blessed_at, healthy),
    ):
        order = deadman(
            on_trial=True,
            fallback_bootable=True,
            health=health,
            uptime=uptime,
            deadline=last_moment(
                deadline=deadline, soak=soak, timeout=timeout, healthy=health is healthy
            ),
        )
        assert order.action is Deadman.WAIT
