"""The quarantine as operators see it: shown, and lifted by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bascule.engine.ledger import Record
from bascule.errors import NothingPending
from bascule.updater.steering import Actor

if TYPE_CHECKING:
    from bascule.updater.updater import Updater


class Quarantine:
    """Gives `updater` the document ``quarantine`` and the verb ``quarantine-clear``."""

    def __init__(self, updater: Updater) -> None:
        self._updater = updater
        updater.documents["quarantine"] = self._document
        updater.acts["quarantine-clear"] = self._clear

    async def _document(self, options: Mapping[str, Any]) -> dict[str, Any]:
        record = await asyncio.to_thread(self._updater.ledger.read)
        return {
            "quarantine": [
                {"payload": digest, **entry}
                for digest, entry in sorted(
                    record.quarantine.items(), key=lambda i: i[1].get("at", 0)
                )
            ]
        }

    async def _clear(self, options: Mapping[str, Any], actor: Actor) -> str:
        wanted = str(options.get("payload") or options.get("version") or "")
        cleared: list[str] = []

        def change(record: Record) -> Record:
            cleared.clear()
            kept = {}
            for digest, entry in record.quarantine.items():
                if not wanted or digest.startswith(wanted) or entry.get("version") == wanted:
                    cleared.append(str(entry.get("version") or digest[:12]))
                else:
                    kept[digest] = entry
            # Back-off would go on refusing what the operator has just allowed.
            return replace(record, quarantine=kept, payload_state={})

        await asyncio.to_thread(self._updater.ledger.update, change)
        await self._updater.settle()
        if not cleared:
            raise NothingPending(
                f"nothing in quarantine matches {wanted!r}" if wanted else "the quarantine is empty"
            )
        # What was refused, or failed, for its sake is no news any more.
        self._updater.show(failure=None)
        return f"Cleared: {', '.join(sorted(cleared))}."
