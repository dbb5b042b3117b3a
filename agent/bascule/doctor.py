"""``updatectl doctor``: puts every check together, and repairs what can be repaired. In the errand."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bascule.assembly import Assembly
from bascule.circumstances import Circumstances
from bascule.config_check import problems
from bascule.engine import checkup
from bascule.engine.findings import DOCTOR, ERROR, WARNING, Finding
from bascule.engine.stream import Announced, resume_identity
from bascule.engine.units import units
from bascule.errors import BasculeError, ServerUnreachable
from bascule.settings import SECRETS
from bascule.updater.intent import Intent, Phase
from bascule.updater.status import Status

if TYPE_CHECKING:
    from bascule.engine.ledger import Record


async def examine(assembly: Assembly, *, alone: bool = False) -> list[Finding]:
    """Everything that is not as it should be; changes nothing.

    Args:
        alone: the caller holds the errand's lock.
    """
    found = await asyncio.to_thread(_examine, assembly, alone)
    return found + await _lock(assembly)


async def document(assembly: Assembly) -> dict[str, Any]:
    """The findings, as `engine.findings.report` takes them."""
    return {"findings": [finding.as_dict() for finding in await examine(assembly)]}


async def repair(assembly: Assembly) -> dict[str, Any]:
    """Repair what can be; the caller holds the errand's lock.

    Returns:
        repaired, failed: sentences; sentence: both in one.
    """
    repaired: list[str] = []
    failed: list[str] = []
    for finding in await examine(assembly, alone=True):
        if finding.repair is None:
            continue
        try:
            repaired.append(await asyncio.to_thread(finding.repair))
        except (BasculeError, OSError) as error:
            failed.append(f"{finding.id} could not be repaired: {error}")
    sentence = " ".join(repaired + failed) or "There is nothing to repair."
    return {"sentence": sentence, "repaired": repaired, "failed": failed}


def _examine(assembly: Assembly, alone: bool) -> list[Finding]:
    settings = assembly.settings
    state, ledger = assembly.state_directory, assembly.ledger()
    try:
        record = ledger.read()
    except BasculeError:
        record = None
    trust = settings.trust
    checks: list[checkup.Check] = [
        partial(_boot, assembly),
        partial(_slots, assembly),
        partial(checkup.state_directory, state),
        partial(checkup.ledger, assembly.ledger()),
        partial(checkup.history, assembly.history()),
        partial(checkup.keys, Path(trust.keys)),
        partial(_secrets, assembly),
        partial(units, assembly.root),
        partial(_settings, assembly),
    ]
    if trust.openpgp_keyring:
        checks.append(
            partial(
                checkup.readable,
                Path(trust.openpgp_keyring),
                "The OpenPGP keyring",
                "trust.openpgp_keyring",
            )
        )
    if record is not None:
        intent = Intent.from_dict(record.intent)
        staged = intent is not None and intent.phase is not Phase.WRITING
        checks += [
            partial(checkup.markers, assembly.run_directory, staged=staged),
            partial(checkup.clock, time.time(), _references(assembly), record.last_checked),
        ]
        if alone or _idle(state):
            checks += [
                partial(checkup.leftovers, _folders(assembly)),
                partial(_checkpoint, assembly, record),
            ]
    return checkup.gather(checks)


def _boot(assembly: Assembly) -> Iterator[Finding]:
    """Both copies of the partition table, or the boot entries."""
    boot = assembly.boot()
    damage = boot.damage()
    if damage is None:
        return
    table = boot.name == "gpt"
    yield Finding(
        "partition-table" if table else "boot-entries",
        ERROR if table else WARNING,
        f"The partition table on {assembly.layout.disk} is not whole: {damage}."
        if table
        else f"The boot entries have leftovers: {damage}.",
        DOCTOR,
        partial(_repair_boot, assembly),
    )


def _repair_boot(assembly: Assembly) -> str:
    done = assembly.boot().repair()
    return f"Boot data: {done}." if done else "The boot data are in order."


def _slots(assembly: Assembly) -> Iterator[Finding]:
    boot = assembly.boot()
    if boot.next() is None:
        yield Finding(
            "no-slot-boots",
            ERROR,
            "No slot would boot: do not switch this host off.",
            f"`bascule disk prefer DISK --slot {boot.booted.name}` makes the running one bootable.",
        )


def _secrets(assembly: Assembly) -> Iterator[Finding]:
    settings = assembly.settings
    for name, value, origin in settings.items():
        if name in SECRETS and value and origin.startswith("/"):
            yield from checkup.secret(Path(origin), f"`{name}`")
    for path, setting in (
        (settings.server.client_key, "server.client_key"),
        (settings.reboot.key, "reboot.key"),
    ):
        if path:
            yield from checkup.readable(Path(path), "The client key", setting)
            yield from checkup.secret(Path(path), "a private key")


def _settings(assembly: Assembly) -> Iterator[Finding]:
    for problem in problems(assembly, time.time()):
        yield Finding(
            "settings", WARNING, problem, "Correct it; `updatectl config` names the files."
        )


def _references(assembly: Assembly) -> list[Path]:
    root = assembly.root
    return [
        root / "usr/lib/clock-epoch",
        root / "usr/lib/os-release",
        root / "usr/share/flatcar/release",
        Path(__file__),
    ]


def _folders(assembly: Assembly) -> list[Path]:
    """Where an interrupted write may leave something."""
    state = assembly.state_directory
    folders = [state, assembly.checkpoint().folder, assembly.keepsake().folder]
    layout = assembly.layout
    for region in layout.parts[layout.booted.other].values():
        if region.file:
            folders.append(region.path.parent)
    return list(dict.fromkeys(folders))


def _checkpoint(assembly: Assembly, record: Record) -> Iterator[Finding]:
    layout = assembly.layout
    targets, sources = layout.parts[layout.booted.other], layout.parts[layout.booted]
    wanted: set[str] = set()
    intent = Intent.from_dict(record.intent)
    offers = [(intent.payload, intent.size)] if intent is not None else []
    answer = record.answer
    offers.append((str(answer.get("payload") or ""), answer.get("size") or 0))
    offer = record.prepared.get("offer")
    if isinstance(offer, dict):
        offers.append((str(offer.get("sha256") or ""), offer.get("size") or 0))
    for payload, size in offers:
        try:
            digest = bytes.fromhex(payload)
        except ValueError:
            continue
        if digest and isinstance(size, int):
            wanted.add(resume_identity(Announced(size, digest), targets, sources))
    yield from checkup.checkpoint(assembly.checkpoint(), wanted)


def _idle(state: Path) -> bool:
    """Whether no errand is at work, whose files would look like leftovers."""
    try:
        handle = os.open(state / "errand.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


# ── the reboot lock ──────────────────────────────────────────────────────────────────────────


async def _lock(assembly: Assembly) -> list[Finding]:
    """A place in the reboot lock that this host keeps for no reboot."""
    if assembly.settings.reboot.strategy in ("off", "reboot"):
        return []
    try:
        view = await _circumstances(assembly).lock()
        record = await asyncio.to_thread(assembly.ledger().read)
    except BasculeError as error:
        return [Finding(error.id, WARNING, str(error), error.remedy)]
    if view is None:
        return []
    if view.trouble:
        return [
            Finding(
                "lock-unreachable",
                WARNING,
                f"The reboot lock ({view.strategy}) cannot be asked: {view.trouble}",
                "Check `reboot.endpoints` and the lock's server.",
            )
        ]
    if view.held and record.intent is None:
        return [
            Finding(
                "lock-stale",
                WARNING,
                f"This host holds a place in the reboot lock ({view.strategy}), but no reboot is due.",
                DOCTOR,
                partial(_release, assembly),
            )
        ]
    return []


def _release(assembly: Assembly) -> str:
    trouble = asyncio.run(_let_go(assembly))
    if trouble:
        raise ServerUnreachable(trouble)
    return "The place in the reboot lock is given back."


async def _let_go(assembly: Assembly) -> str:
    lock = _circumstances(assembly).coordinator()
    try:
        return await lock.release()
    finally:
        await lock.close()


def _circumstances(assembly: Assembly) -> Circumstances:
    return Circumstances(lambda: assembly, Status, lambda: None, time.time)
