"""From an offer to an install plan, or to the reason why not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bascule.engine.ledger import Record
from bascule.errors import BelowFloor, BootedSlotNotBlessed, Pinned, Quarantined
from bascule.formats.omaha import Offer
from bascule.formats.slots import BootFlags, Slot
from bascule.formats.version import older
from bascule.updater.gather import pin_from_record


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """This offer into that slot.

    Attributes:
        attempt: id of the attempt that carries the plan out.
        target: the slot that will be written; `origin` the one that runs, and stays.
        running: the running release.
        url_index: the address to begin with (reference 3.5).
        downgrade: an older build is welcome: the operator said so, or the settings always do.
        lowers_floor: an explicit downgrade; the version floor follows it down once it is blessed.
    """

    attempt: str
    offer: Offer
    target: Slot
    origin: Slot
    running: str
    lowers_floor: bool
    url_index: int = 0
    downgrade: bool = False


def lacking_packages(offer: Offer, needed: Sequence[str]) -> list[str]:
    """Which of the extra packages that this host needs the offer does not carry.

    Args:
        needed: file names such as ``oem-qemu.gz``, without folders.
    """
    names = {package.name.partition("?")[0].rpartition("/")[2] for package in offer.packages}
    return [name for name in needed if name not in names]


def make_plan(
    offer: Offer,
    *,
    attempt: str,
    record: Record,
    running: str,
    booted: Slot,
    flags: Mapping[Slot, BootFlags],
    allow_downgrade: bool = False,
    wanted: str = "",
) -> InstallPlan:
    """Decide whether `offer` may be installed here.

    Args:
        allow_downgrade: the operator said so for this one update, or the settings always do.
        wanted: the only version that will do, or "".

    Raises:
        BootedSlotNotBlessed: the other slot is the last known good.
        Quarantined, BelowFloor, Pinned: as their names say.
    """
    mine = flags.get(booted)
    if mine is None or not mine.successful:
        raise BootedSlotNotBlessed(f"slot {booted.name} is on trial")
    entry = record.quarantine.get(offer.sha256.hex())
    if entry is not None:
        raise Quarantined(
            f"{offer.version or offer.sha256.hex()[:12]}: {entry.get('reason', 'it failed')}",
            payload=offer.sha256.hex(),
            version=offer.version,
        )
    if wanted and offer.version != wanted:
        raise Pinned(f"the server offers {offer.version}, asked for was {wanted}")
    pin = pin_from_record(record.pin)
    if pin is not None and not wanted and not pin.allows(offer.version):
        raise Pinned(f"the server offers {offer.version}, pinned is {pin}", pin=str(pin))
    below = older(offer.version, record.floor)
    if below and not allow_downgrade:
        raise BelowFloor(f"{offer.version} is older than {record.floor}", floor=record.floor)
    return InstallPlan(
        attempt, offer, booted.other, booted, running, below, downgrade=allow_downgrade
    )
