"""Events for the server: kept in the ledger until the server has them.

A dead server delays an update and never breaks it (reference 2.3): what cannot be delivered now goes
out before the next thing that is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from bascule.engine.ledger import OUTBOX_LIMIT, Ledger, Record
from bascule.errors import ServerError, ServerHttpError
from bascule.formats.omaha import Client, OmahaEvent, build_request

_NOT_HEARD = frozenset({401, 403, 404, 407, 408, 429})
"""Statuses after which the server does not have the event. Any other 4xx is its answer to it:
go-omaha says 400 where it has heard, and sending again would block the queue for ever."""

Post = Callable[[bytes], Awaitable[bytes]]


class Outbox:
    """Queue and delivery of events.

    Args:
        post: sends one body; raises ServerError.
        installsource: ``scheduler`` or ``ondemandupdate``.
    """

    def __init__(self, ledger: Ledger, client: Client, post: Post, installsource: str) -> None:
        self._ledger = ledger
        self._client = client
        self._post = post
        self._installsource = installsource

    async def say(self, event: OmahaEvent) -> None:
        """Queue `event` durably, then try to deliver all that is queued."""
        await self.queue(event)
        await self.deliver()

    async def queue(self, event: OmahaEvent) -> None:
        """Make `event` durable. The same event twice in a row is one event."""
        item = event.as_dict()

        def change(record: Record) -> Record:
            if record.outbox and record.outbox[-1] == item:
                return record
            return replace(record, outbox=(*record.outbox, item)[-OUTBOX_LIMIT:])

        await asyncio.to_thread(self._ledger.update, change)

    async def deliver(self) -> bool:
        """Send what is queued, oldest first; False if the server did not take all of it."""
        while True:
            record = await asyncio.to_thread(self._ledger.read)
            if not record.outbox:
                return True
            item = record.outbox[0]
            try:
                event = OmahaEvent.from_dict(item)
            except ValueError:
                event = None
            if event is not None:
                body = build_request(
                    self._client, events=[event], installsource=self._installsource
                )
                try:
                    await self._post(body)
                except ServerHttpError as error:
                    if not 400 <= error.status < 500 or error.status in _NOT_HEARD:
                        return False
                except ServerError:
                    return False

            def drop(record: Record, item: object = item) -> Record:
                if record.outbox and record.outbox[0] == item:
                    return replace(record, outbox=record.outbox[1:])
                return record

            await asyncio.to_thread(self._ledger.update, drop)
