from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bascule.engine.ledger import Record
from bascule.formats.slots import BootFlags, Slot, next_boot
from bascule.updater.intent import Intent, Phase
from bascule.updater.settle import quarantine, sentence, settle
from bascule.updater.verdict import Verdict, judge

A_GOOD = BootFlags(1, 0, True)
STAGED = BootFlags(2, 1, False)
SPENT = BootFlags(2, 0, False)
CLEARED = BootFlags(0, 0, False)

INTENT = Intent(
    attempt="a1",
    version="3.1",
    payload="ab" * 32,
    target=Slot.B,
    origin=Slot.A,
    origin_version="3.0",
    boot_id="boot-1",
    phase=Phase.STAGED,
    tries=1,
    at=100,
)


def intent(**changes: object) -> Intent:
    return dataclasses.replace(INTENT, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "booted", "b", "boot_id", "expected"),
    [
        # power cut while the slot was written: it is cleared, nothing boots it
        (intent(phase=Phase.WRITING), Slot.A, CLEARED, "boot-1", Verdict.UNFINISHED),
        (intent(phase=Phase.WRITING), Slot.A, CLEARED, "boot-2", Verdict.UNFINISHED),
        # power cut before the flip
        (intent(phase=Phase.STAGING), Slot.A, CLEARED, "boot-1", Verdict.UNFINISHED),
        (intent(phase=Phase.STAGING), Slot.A, CLEARED, "boot-2", Verdict.UNFINISHED),
        # killed after the flip, before the ledger said so
        (intent(phase=Phase.STAGING), Slot.A, STAGED, "boot-1", Verdict.WAITING),
        # power cut after the flip: the new slot boots
        (intent(phase=Phase.STAGING), Slot.B, SPENT, "boot-2", Verdict.ON_TRIAL),
        (intent(phase=Phase.STAGING), Slot.A, SPENT, "boot-3", Verdict.ROLLED_BACK),
        # the plain way
        (intent(), Slot.A, STAGED, "boot-1", Verdict.WAITING),
        (intent(), Slot.B, SPENT, "boot-2", Verdict.ON_TRIAL),
        (intent(), Slot.B, BootFlags(2, 0, True), "boot-2", Verdict.UPDATED),
        (intent(), Slot.A, SPENT, "boot-3", Verdict.ROLLED_BACK),
        # the operator booted the old slot by hand: the try is still there
        (intent(), Slot.A, STAGED, "boot-2", Verdict.WAITING),
        # someone edited the table
        (intent(), Slot.A, CLEARED, "boot-1", Verdict.WITHDRAWN),
        (intent(), Slot.A, CLEARED, "boot-2", Verdict.WITHDRAWN),
        (intent(), Slot.A, SPENT, "boot-1", Verdict.WITHDRAWN),
        # blessed, and then someone went back
        (intent(), Slot.A, BootFlags(1, 0, True), "boot-3", Verdict.WITHDRAWN),
    ],
)  # fmt: skip
def test_fates(told: Intent, booted: Slot, b: BootFlags, boot_id: str, expected: Verdict) -> None:
    assert judge(told, booted, {Slot.A: A_GOOD, Slot.B: b}, boot_id) is expected


def test_no_intent_is_nothing_pending() -> None:
    assert judge(None, Slot.A, {Slot.A: A_GOOD}, "x") is Verdict.NOTHING_PENDING


flags = st.builds(BootFlags, st.integers(0, 15), st.integers(0, 15), st.booleans())


@given(
    a=flags, b=flags, phase=st.sampled_from(Phase), booted=st.sampled_from(Slot),
    same=st.booleans(), target=st.sampled_from(Slot),
)  # fmt: skip
def test_a_rollback_is_never_claimed_while_the_try_is_left(
    a: BootFlags, b: BootFlags, phase: Phase, booted: Slot, same: bool, target: Slot
) -> None:
    table = {Slot.A: a, Slot.B: b}
    told = intent(phase=phase, target=target, origin=target.other)
    verdict = judge(told, booted, table, "boot-1" if same else "boot-2")
    if verdict is Verdict.ROLLED_BACK:
        assert booted is not target
        assert not table[target].bootable
        assert not same
    if verdict is Verdict.WAITING:
        assert next_boot(table) is target
    if verdict in (Verdict.ON_TRIAL, Verdict.UPDATED):
        assert booted is target


@given(verdict=st.sampled_from(Verdict), phase=st.sampled_from(Phase), now=st.integers(0, 2**40))
def test_settling_twice_is_settling_once(verdict: Verdict, phase: Phase, now: int) -> None:
    record = Record(intent=intent(phase=phase).as_dict(), floor="3.0")
    once = settle(record, verdict, now)
    again_verdict = verdict if once.intent is not None else Verdict.NOTHING_PENDING
    assert settle(once, again_verdict, now + 5) == once


def test_rolled_back_is_quarantined_and_said_plainly() -> None:
    failed = intent(failure="myapp.service failed")
    after = settle(Record(intent=failed.as_dict()), Verdict.ROLLED_BACK, 200)
    assert after.intent is None
    assert after.quarantine["ab" * 32]["reason"] == "myapp.service failed"
    assert after.quarantine["ab" * 32]["kind"] == "boot"
    assert sentence(Verdict.ROLLED_BACK, after.verdict, "04:12") == (
        "Release 3.1 did not boot healthy (myapp.service failed); back on 3.0 since 04:12; "
        "3.1 will not be tried again."
    )


def test_updated_raises_the_floor_and_an_explicit_downgrade_lowers_it() -> None:
    up = settle(Record(intent=INTENT.as_dict(), floor="3.0"), Verdict.UPDATED, 200)
    assert (up.floor, up.last_updated, up.releases) == ("3.1", 200, {"B": "3.1"})
    stays = settle(Record(intent=INTENT.as_dict(), floor="9.0"), Verdict.UPDATED, 200)
    assert stays.floor == "9.0"
    down = settle(
        Record(intent=intent(lowers_floor=True).as_dict(), floor="9.0"), Verdict.UPDATED, 200
    )
    assert down.floor == "3.1"


def test_withdrawn_does_not_later_look_like_a_rollback() -> None:
    record = Record(intent=INTENT.as_dict(), previous_version="3.0")
    assert settle(record, Verdict.WITHDRAWN, 1).previous_version == ""


def test_updated_clears_the_quarantine_of_its_own_payload_only() -> None:
    record = quarantine(Record(), "ab" * 32, version="3.1", kind="boot", reason="r", now=1)
    record = quarantine(record, "cd" * 32, version="3.2", kind="boot", reason="r", now=1)
    after = settle(dataclasses.replace(record, intent=INTENT.as_dict()), Verdict.UPDATED, 2)
    assert set(after.quarantine) == {"cd" * 32}


@pytest.mark.parametrize(
    ("version", "stays"),
    [("3.0.9", False), ("3.1", False), ("3.1.1", True), ("", True), ("x", True)],
)
def test_a_blessed_release_supersedes_what_it_replaces(version: str, stays: bool) -> None:
    """Another payload of the same release, or one that the floor refuses anyhow."""
    record = quarantine(Record(), "cd" * 32, version=version, kind="boot", reason="r", now=1)
    after = settle(dataclasses.replace(record, intent=INTENT.as_dict()), Verdict.UPDATED, 2)
    assert bool(after.quarantine) is stays
    back = intent(version="2.0", lowers_floor=True)
    after = settle(dataclasses.replace(record, intent=back.as_dict()), Verdict.UPDATED, 2)
    assert after.quarantine, "what is newer than a release that one went back to has still failed"


@given(
    st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=8)))
)
def test_a_foreign_intent_is_no_intent(data: dict[str, object]) -> None:
    assert Intent.from_dict(data) is None


def test_every_verdict_has_a_sentence() -> None:
    for verdict in Verdict:
        text = sentence(verdict, INTENT.as_dict())
        assert text.endswith(".") and "{" not in text
