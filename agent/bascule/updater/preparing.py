"""`updatectl activate` and `deactivate`: a proven slot is let boot, or kept from it, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bascule.errors import BasculeError, BootedSlotNotBlessed, NothingPending
from bascule.updater.intent import Intent
from bascule.updater.prepared import Prepared
from bascule.updater.status import State
from bascule.updater.steering import Actor, Job
from bascule.updater.verdict import Verdict

if TYPE_CHECKING:
    from bascule.updater.updater import Updater

PATIENCE = 40.0
"""Seconds after which `activate` answers before its end: the bus gives up after a minute."""


class Preparing:
    """Gives `updater` the verbs ``activate`` and ``deactivate``."""

    def __init__(self, updater: Updater, patience: float = PATIENCE) -> None:
        self._updater = updater
        self._patience = patience
        updater.acts["activate"] = self._activate
        updater.acts["deactivate"] = self._deactivate

    async def _prepared(self) -> Prepared | None:
        return Prepared.from_dict((await asyncio.to_thread(self._updater.ledger.read)).prepared)

    async def _activate(self, options: Mapping[str, Any], actor: Actor) -> str:
        updater = self._updater
        updater.require_not_busy()
        if updater.status.state is State.UPDATED_NEED_REBOOT:
            return updater.status.sentence
        if updater.verdict is Verdict.ON_TRIAL:
            raise BootedSlotNotBlessed(updater.status.sentence)
        prepared = await self._prepared()
        if prepared is None:
            raise NothingPending("no release is prepared; `updatectl prepare` fetches one")
        await updater.permit({"activate": True, "file": f"slot {prepared.slot.name}"})
        updater.require_not_busy()
        job = updater.begin("activate", {}, actor)
        ended = await self._end_of(job)
        if not ended:
            return (
                f"Release {prepared.version} is being proven again; `updatectl watch` follows it."
            )
        if job.error is not None:
            raise job.error
        return updater.status.sentence

    async def _end_of(self, job: Job) -> bool:
        try:
            async with asyncio.timeout(self._patience):
                await self._updater.idle()
        except TimeoutError:
            return bool(job.result)
        return True

    async def _deactivate(self, options: Mapping[str, Any], actor: Actor) -> str:
        updater = self._updater
        updater.require_not_busy()
        if updater.status.state is State.UPDATED_NEED_REBOOT:
            return await updater.withdraw(keep=True)
        raise await self._nothing_to_deactivate()

    async def _nothing_to_deactivate(self) -> BasculeError:
        updater = self._updater
        record = await asyncio.to_thread(updater.ledger.read)
        intent = Intent.from_dict(record.intent)
        if updater.verdict is Verdict.ON_TRIAL and intent is not None:
            return NothingPending(
                f"release {intent.version} runs already, on trial; a reboot that it does not "
                "outlive brings the old one back"
            )
        if prepared := Prepared.from_dict(record.prepared):
            return NothingPending(f"release {prepared.version} is prepared and not staged")
        return NothingPending("no release is staged")
