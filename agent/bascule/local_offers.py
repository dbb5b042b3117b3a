"""Offers without an update server: the file or static repository that is named, on the daemon's own eyes.

What an operator names is seen from the service's sandbox: its ``/tmp`` is its own, its view of
``/home`` is read-only. A path that is not there is told as that, and not as a broken repository.
"""

from __future__ import annotations

import asyncio
import glob
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bascule.assembly import Assembly
from bascule.engine.ledger import Ledger, Record
from bascule.engine.static_repo import Asked, Found, ask_repository, offer_file
from bascule.errors import LocalFileNotSeen, UsageError
from bascule.updater.gather import answer_from_offer, kept_answer

if TYPE_CHECKING:
    from bascule.engine.transport import Patience, Tls
    from bascule.formats.omaha import Offer

REMEMBERED = 32
"""Repositories whose serial is remembered; the one that was not asked for the longest goes first."""


async def look_local(
    assembly: Assembly, options: Mapping[str, Any], *, tls: Tls, patience: Patience
) -> Offer | Found | None:
    """What the named file or repository holds; changes nothing.

    Args:
        options: ``file`` or ``repository`` (else the `server.repository` setting), ``version``,
            ``force_full``.

    Returns:
        The offer of a payload file, or what a repository says; None where neither is named.

    Raises:
        LocalFileNotSeen: there is nothing at that path for the daemon.
        UsageError: a relative path.
        IndexInvalid, IndexUntrusted, ServerError, TransferError, NoKeys: see `ask_repository`.
    """
    settings, host = assembly.settings, assembly.host
    named = str(options.get("file") or options.get("repository") or "")
    version = str(options.get("version") or "")
    if named and not is_address(named):
        await asyncio.to_thread(require_seen, named)
        if await asyncio.to_thread(Path(named).is_file) and Path(named).name != "index.json":
            return await asyncio.to_thread(offer_file, Path(named), version=version)
    where = named or settings.server.repository
    if not where:
        return None
    from bascule.engine.trust import read_keys

    record = await asyncio.to_thread(assembly.ledger().read)
    return await ask_repository(
        where,
        Asked(
            running=host.version,
            group=settings.server.group,
            board=host.board,
            wanted=version,
            deltas=settings.download.deltas and not options.get("force_full"),
            signed=settings.trust.signed_index,
            serials=serials(record),
        ),
        keys=lambda: read_keys(Path(settings.trust.keys)),
        now=time.time(),
        tls=tls,
        patience=patience,
    )


def is_address(named: str) -> bool:
    """Whether it is an address, not a path."""
    return named.startswith(("http://", "https://", "file:"))


def require_seen(named: str) -> None:
    """Blocks. Raises LocalFileNotSeen, UsageError."""
    path = Path(named)
    if not path.is_absolute():
        raise UsageError(f"{named!r} is not an absolute path, and the daemon works elsewhere")
    try:
        path.stat()
    except OSError as error:
        # A pattern names no file itself: `/run/media/*/bascule`.
        if glob.has_magic(named) and any(glob.iglob(named)):  # noqa: PTH207
            return
        raise LocalFileNotSeen(f"{named}: {error.strerror}", path=named) from None


def serials(record: Record) -> dict[str, int]:
    """Repository → the highest serial that a trusted index of it had."""
    return {
        where: int(entry["serial"])
        for where, entry in record.repositories.items()
        if isinstance(entry, dict) and isinstance(entry.get("serial"), int)
    }


def remember(ledger: Ledger, found: Found, now: float, *, configured: bool) -> str:
    """Note what a repository said. Blocks.

    A signed index's serial is kept, so that an older one is refused from now on. An unsigned index
    says what it likes: it must not lock this host out with a high number. The repository that the
    settings name takes the server's place, so asking it is a check.

    Returns:
        The answer in words, for status.
    """
    words = f"offers {found.offer.version}" if found.offer else "nothing newer"

    def change(record: Record) -> Record:
        if found.signer and found.serial > serials(record).get(found.where, -1):
            kept = {k: v for k, v in record.repositories.items() if isinstance(v, dict)}
            kept[found.where] = {"serial": found.serial, "at": int(now)}
            newest = sorted(kept.items(), key=_time)
            record = replace(record, repositories=dict(newest[-REMEMBERED:]))
        if configured:
            record = replace(
                record,
                last_checked=int(now),
                last_answer=words,
                answer=kept_answer(answer_from_offer(found.offer), at=int(now)),
            )
        return record

    ledger.update(change)
    return words


def _time(item: tuple[str, Mapping[str, Any]]) -> int:
    at = item[1].get("at")
    return at if isinstance(at, int) else 0
