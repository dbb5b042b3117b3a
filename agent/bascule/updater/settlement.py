"""Settlement: what ledger and slots say of each other after a start, a blessing or an errand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bascule.engine.boot import BootBackend
from bascule.engine.ledger import Ledger, Record
from bascule.errors import BasculeError, BootError
from bascule.formats.slots import Slot
from bascule.updater.giveup import GiveUp, settle_giveup
from bascule.updater.intent import Intent
from bascule.updater.once import Detour, Once, settle_once
from bascule.updater.settle import settle
from bascule.updater.shown import slot_statuses
from bascule.updater.status import SlotStatus
from bascule.updater.verdict import Verdict, judge


@dataclass(frozen=True, slots=True)
class Settled:
    """What was found.

    Attributes:
        detour: a boot for one time, as it stands or as it has just ended.
        giveup: the running release is given up and runs yet.
        troubles: what could not be brought to its end.
    """

    verdict: Verdict
    record: Record
    slots: tuple[SlotStatus, ...]
    detour: tuple[Once, Detour] | None
    giveup: GiveUp | None
    troubles: list[BasculeError]


def settle_all(
    backend: BootBackend, ledger: Ledger, boot_id: str, now: int, *, running: str
) -> Settled:
    """Judge what became of the last intent and act on it. Blocks. Idempotent.

    Args:
        boot_id: this boot's.
        now: unix seconds.
        running: the running release.
    """
    troubles: list[BasculeError] = []
    detour = giveup = None
    # Neither may keep the daemon from starting: a host whose slots are in disorder needs it.
    try:
        detour = settle_once(backend, ledger, ledger.read(), boot_id)
    except BootError as error:
        troubles.append(error)
    try:
        giveup = settle_giveup(backend, ledger, ledger.read())
    except BootError as error:
        troubles.append(error)
    flags = backend.flags()
    intent = Intent.from_dict(ledger.read().intent)
    verdict = judge(intent, backend.booted, flags, boot_id)
    record = ledger.update(lambda r: settle(r, verdict, now))
    if not record.aleph_version or backend.booted.name not in record.releases:
        record = _remember_running(ledger, backend.booted, running)
    return Settled(verdict, record, slot_statuses(backend, record), detour, giveup, troubles)


def _remember_running(ledger: Ledger, booted: Slot, version: str) -> Record:
    def change(record: Record) -> Record:
        return replace(
            record,
            aleph_version=record.aleph_version or version,
            releases={**record.releases, booted.name: version},
        )

    return ledger.update(change)
