"""The documents that the daemon serves besides the updater's own: settings, history, plan and others."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bascule.engine.findings import ERROR, Finding, report
from bascule.engine.history import Verification
from bascule.errors import Busy, UsageError, from_dict
from bascule.settings import SECRETS
from bascule.updater.gates import Answer, Answered, Gate, blocking
from bascule.updater.status import State
from bascule.updater.steering import Actor

if TYPE_CHECKING:
    from bascule.daemon import Daemon
    from bascule.updater.estimate import Estimate

HISTORY_DEFAULT = 50
HISTORY_MOST = 10_000
"""Records of history that one answer holds, without and with a wish."""


PLAN_OPTIONS = frozenset({"version", "file", "repository", "allow_downgrade", "force_full"})
LIST_OPTIONS = frozenset({"file", "repository"})

MOST_WAITING = 4
"""Callers that may wait for a child at the same time."""

RATED = 500
"""Records of history among which rates are looked for."""


def _known(options: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Raises UsageError."""
    if unknown := set(options) - known:
        raise UsageError(f"unknown option {', '.join(sorted(unknown))}")
    return dict(options)


class Documents:
    """Puts its documents into ``updater.documents``; each is asked for by name over the bus."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._asking = asyncio.Lock()
        self._waiting = 0
        daemon.updater.documents.update(
            {
                "config": self._config,
                "history": self._history,
                "plan": self._plan,
                "list": self._list,
                "doctor": self._doctor,
            }
        )
        daemon.updater.acts["doctor-repair"] = self._repair

    async def _inquire(self, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Ask a child, which may import and read what the daemon must not; one at a time.

        Raises:
            Busy: too many wait for such an answer; each costs a process.
            ErrandCrashed: it ended without an answer; or whatever it met.
        """
        if self._waiting >= MOST_WAITING:
            raise Busy("others are asking the same kind of thing")
        self._waiting += 1
        try:
            return await self._ask(kind, options)
        finally:
            self._waiting -= 1

    async def _ask(self, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
        async with self._asking:
            child = await self._daemon.launch({"kind": kind, "options": dict(options)})
            end: Mapping[str, Any] = {}
            try:
                async for message in child:
                    if message.get("say") == "end":
                        end = message
            finally:
                child.stop()
        if isinstance(end.get("error"), dict):
            raise from_dict(end["error"])
        return dict(end.get("outcome") or {})

    async def _plan(self, options: Mapping[str, Any]) -> dict[str, Any]:
        from bascule.updater.estimate import estimate, rates  # asked for now and then
        from bascule.updater.preview import plan_sentences

        daemon = self._daemon
        daemon.reread()
        wishes = _known(options, PLAN_OPTIONS)
        found = await self._inquire("plan", wishes)
        records = await asyncio.to_thread(daemon.assembly.history().read, RATED)
        known = rates(records)
        release = found.get("release")
        status = daemon.updater.status
        if release and status.state is State.UPDATED_NEED_REBOOT:
            busy = Busy(f"{status.sentence} Reboot, or take it back with `updatectl cancel`.")
            found["refused"] = busy.as_dict()
        time_: Estimate | None = None
        gates: list[Gate] = []
        if release:
            if known is not None:
                fetch = int(release["size"]) - int(found["resumed_bytes"])
                image = int(found["image_bytes"]) or int(release["size"])
                limit = daemon.settings.download.rate_limit
                time_ = estimate(known, fetch, image, limit)
            gates = await daemon.conductor.gates_for(
                Answer(
                    Answered.OFFERED,
                    version=str(release["version"]),
                    payload=str(release["sha256"]),
                    size=int(release["size"]),
                ),
                wishes,
            )
        return {
            "sentences": plan_sentences(found, known, time_, gates),
            **found,
            "time": {
                "download_s": round(time_.download, 1),
                "apply_s": round(time_.apply, 1),
                "downtime_s": time_.downtime,
                "updates": known.updates,
            }
            if known is not None and time_ is not None
            else None,
            "gates": [gate.as_dict() for gate in blocking(gates)],
        }

    async def _doctor(self, options: Mapping[str, Any]) -> dict[str, Any]:
        daemon = self._daemon
        daemon.reread()
        found = await self._inquire("doctor", _known(options, frozenset()))
        findings = list(found["findings"])
        error = daemon.settings_error
        if error is not None:
            told = f"{error} The last good settings stay in force."
            findings.append(Finding(error.id, ERROR, told, error.remedy).as_dict())
        return report(findings)

    async def _repair(self, options: Mapping[str, Any], actor: Actor) -> str:
        daemon = self._daemon
        if daemon.updater.busy:
            raise Busy(daemon.updater.status.state.words)
        daemon.reread()
        done = await self._inquire("doctor-repair", {})
        daemon.tell("repaired", actor=dataclasses.asdict(actor), **done)
        await daemon.updater.settle()
        return str(done["sentence"])

    async def _list(self, options: Mapping[str, Any]) -> dict[str, Any]:
        self._daemon.reread()
        return await self._inquire("list", _known(options, LIST_OPTIONS))

    async def _config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        daemon = self._daemon
        daemon.reread()
        error = daemon.settings_error
        checked: dict[str, Any] = {}
        if options.get("check") and error is None:
            checked = await self._inquire("config-check", {})
        return {
            **checked,
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
        wish = options.get("last") or options.get("limit") or HISTORY_DEFAULT
        if not isinstance(wish, int):
            raise UsageError(f"{wish!r} is not a number of records")
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
