"""The documents that the daemon serves besides the updater's own: settings, history, plan and others."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bascule.engine.history import Verification
from bascule.settings import SECRETS

if TYPE_CHECKING:
    from bascule.daemon import Daemon

HISTORY_DEFAULT = 50
HISTORY_MOST = 10_000
"""Records of history that one answer holds, without and with a wish."""


class Documents:
    """Puts its documents into ``updater.documents``; each is asked for by name over the bus."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        daemon.updater.documents.update({"config": self._config, "history": self._history})

    async def _config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        daemon = self._daemon
        daemon.reread()
        error = daemon.settings_error
        return {
            "settings": [
                {
                    "name": name,
                    "value": "(secret)" if name in SECRETS and value else value,
                    "origin": origin,
                }
                for name, value, origin in daemon.settings.items()
            ],
            "error": error.as_dict() if error else None,
        }

    async def _history(self, options: Mapping[str, Any]) -> dict[str, Any]:
        history = self._daemon.assembly.history()
        if options.get("verify"):
            found = await asyncio.to_thread(history.verify)
            return {
                "sentence": chain_sentence(found),
                "verify": dataclasses.asdict(found),
                "whole": found.flaw is None,
            }
        wish = int(options.get("last") or options.get("limit") or HISTORY_DEFAULT)
        records = await asyncio.to_thread(history.read, max(1, min(wish, HISTORY_MOST)))
        return {"history": records}


def chain_sentence(found: Verification) -> str:
    """What `history verify` says."""
    if found.flaw is not None:
        where = f"{found.flaw.file}, line {found.flaw.line}" if found.flaw.line else found.flaw.file
        return f"History does not hold: {found.flaw.why} ({where})."
    if not found.records:
        return "There is no history yet."
    began = "" if found.first == 1 else f", from record {found.first} on (older ones are not kept)"
    torn = (
        " A power cut left the last line unfinished; it counts for nothing." if found.torn else ""
    )
    return f"All {found.records} records follow from each other{began}.{torn}"
