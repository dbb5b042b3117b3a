"""From an offer to a plan: the last known good stays, the floor holds, what failed is not retried."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bascule.engine.ledger import Record
from bascule.errors import BelowFloor, BootedSlotNotBlessed, Pinned, Quarantined
from bascule.formats.omaha import Offer
from bascule.formats.omaha_offer import Package
from bascule.formats.slots import BootFlags, Slot
from bascule.updater.plan import InstallPlan, lacking_packages, make_plan
from bascule.updater.settle import quarantine

SHA = bytes.fromhex("ab" * 32)
GOOD = {Slot.A: BootFlags(1, 0, True), Slot.B: BootFlags(0, 0, False)}


def offer(version: str = "5.0", **changes: object) -> Offer:
    made = Offer(
        version=version, urls=("http://h/u.gz",), name="u.gz", size=10, sha256=SHA, max_failures=10
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def plan(
    record: Record | None = None,
    version: str = "5.0",
    flags: dict[Slot, BootFlags] | None = None,
    *,
    disable_backoff: bool = False,
    allow_downgrade: bool = False,
    wanted: str = "",
) -> InstallPlan:
    return make_plan(
        offer(version, disable_backoff=disable_backoff),
        attempt="a1",
        record=record or Record(),
        running="4.0",
        booted=Slot.A,
        flags=GOOD if flags is None else flags,
        allow_downgrade=allow_downgrade,
        wanted=wanted,
    )


def test_the_other_slot_is_written() -> None:
    made = plan()
    assert (made.target, made.origin, made.running, made.lowers_floor) == (
        Slot.B,
        Slot.A,
        "4.0",
        False,
    )


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {Slot.B: BootFlags(1, 0, True)},
        {Slot.A: BootFlags(2, 0, False), Slot.B: BootFlags(1, 0, True)},
        {Slot.A: BootFlags(2, 1, False), Slot.B: BootFlags(1, 0, True)},
    ],
)
def test_the_last_known_good_is_never_overwritten(flags: dict[Slot, BootFlags]) -> None:
    with pytest.raises(BootedSlotNotBlessed):
        plan(flags=flags)


@pytest.mark.parametrize("kind", ["verify", "postinst", "boot", "operator"])
@pytest.mark.parametrize("disable_backoff", [False, True])
def test_what_failed_here_is_refused_whatever_the_server_says_of_back_off(
    kind: str, disable_backoff: bool
) -> None:
    record = quarantine(
        Record(), SHA.hex(), version="5.0", kind=kind, reason="nginx did not start", now=1
    )
    for version in ("5.0", "9.0"):  # the payload counts, not the number that is put on it
        with pytest.raises(Quarantined, match="nginx did not start") as caught:
            plan(
                record,
                version,
                disable_backoff=disable_backoff,
                allow_downgrade=True,
                wanted=version,
            )
        assert caught.value.context["payload"] == SHA.hex()
    cleared = dataclasses.replace(record, quarantine={})
    assert plan(cleared).offer.version == "5.0"


def test_the_floor_holds_unless_the_operator_says_otherwise() -> None:
    record = Record(floor="5.1")
    with pytest.raises(BelowFloor, match=r"5\.0 is older than 5\.1"):
        plan(record)
    assert plan(record, allow_downgrade=True).lowers_floor
    assert not plan(record, "5.1").lowers_floor
    assert not plan(record, "5.2", allow_downgrade=True).lowers_floor


def test_asking_for_a_version_does_not_lower_the_floor() -> None:
    with pytest.raises(BelowFloor):
        plan(Record(floor="5.1"), wanted="5.0")
    with pytest.raises(Pinned):
        plan(wanted="5.1")


@given(st.text(max_size=12), st.text(max_size=12))
def test_no_version_breaks_the_plan(version: str, floor: str) -> None:
    try:
        made = plan(Record(floor=floor), version)
    except BelowFloor:
        return
    assert made.offer.version == version


def test_packages_go_by_their_file_names() -> None:
    there = (
        Package("oem-qemu.gz", 1, None, required=False),
        Package("1.0/flatcar-zfs.gz?sig=a/b.gz", 1, None, required=False),
    )
    found = offer(packages=there)
    assert lacking_packages(found, ["oem-qemu.gz", "flatcar-zfs.gz"]) == []
    assert lacking_packages(found, ["b.gz", "oem", "oem-qemu.gz"]) == ["b.gz", "oem"]
    assert lacking_packages(offer(), []) == []
