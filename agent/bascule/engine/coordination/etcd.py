"""``etcd-lock``: locksmith's semaphore, over etcd's v3 API, or v2 where locksmith still uses it.

The document is locksmith's own. Beside it lies one key per holder with the time at which it took
its place, which locksmith ignores, so that a stale holder is named with its age.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote_plus

from bascule.engine.coordination.etcd_store import V2, V3, Store, Stored
from bascule.engine.coordination.http import LockServer, LockTrouble
from bascule.engine.coordination.interface import Grant, Holder, LockView, Refused, clean
from bascule.engine.coordination.registry import Credentials
from bascule.engine.coordination.semaphore import Semaphore, parse_semaphore
from bascule.errors import SettingsError

PREFIX = "coreos.com/updateengine/rebootlock"
_TRIES = 8
_SIGHTINGS: dict[str, Sightings] = {}
"""By key: what this process saw of holders that nobody dated. A lock object lives for one question."""


@dataclass(slots=True)
class Sightings:
    """Since when this process has seen each holder, in one state of the document.

    Attributes:
        revision: of the document. With the next one nothing is known of a holder's age any more:
            it may have let go and come back.
        since: holder → unix seconds.
    """

    revision: int = -1
    since: dict[str, int] = field(default_factory=dict)


class EtcdLock:
    """The lock of one group.

    Args:
        endpoints: client URLs; the first that answers is used.
        machine_id: this host's name among the holders.
        group: locksmith's group, "" for none.
        clock: unix seconds.
        timeout: seconds for one request.
        api: ``v3``, ``v2``, or ``auto``: v2 if the document is there already or if there is no
            v3, else v3. Unmodified locksmith knows v2 only.
        prefix: directory of the lock.
        release_command: how an operator frees a stale holder's place.
        sightings: what is known of holders that nobody dated; kept for the process by default.
    """

    name = "etcd-lock"

    def __init__(
        self,
        endpoints: Sequence[str],
        machine_id: str,
        *,
        group: str = "",
        credentials: Credentials | None = None,
        clock: Callable[[], float],
        timeout: float = 10.0,
        api: str = "auto",
        prefix: str = PREFIX,
        release_command: str = "bascule lock release {id}",
        sightings: Sightings | None = None,
    ) -> None:
        if not machine_id:
            raise SettingsError("this host has no machine id, so it cannot hold a lock")
        who = credentials or Credentials()
        self._server = LockServer(endpoints, who, timeout=timeout, basic_auth=False)
        self._server_v2 = LockServer(endpoints, who, timeout=timeout, basic_auth=True)
        stores: dict[str, Store] = {"v3": V3(self._server, who), "v2": V2(self._server_v2)}
        if api != "auto" and api not in stores:
            raise SettingsError(f"etcd API {api[:16]!r} is not one of auto, v3, v2")
        self._stores = stores if api == "auto" else {api: stores[api]}
        self._id = machine_id
        self._clock = clock
        self._release_command = release_command
        self._directory = f"{prefix}/groups/{quote_plus(group)}" if group else prefix
        self._key = f"{self._directory}/semaphore"
        self._seen = sightings or _SIGHTINGS.setdefault(self._key, Sightings())

    async def acquire(self) -> Grant | Refused:
        """Take a place. After an answer that got lost the place may be held all the same: asking
        again tells, and `release` gives it back."""
        try:
            store = await self._choose()
            for _ in range(_TRIES):
                stored = await store.get(self._key)
                present = self._parse(stored)
                wanted = present.taken_by(self._id)
                if wanted is None:
                    return self._refused(await self._look(store, stored, present))
                if wanted == present and stored is not None:
                    return Grant(self.name, "This host holds the lock already.")
                note = {"since": int(self._clock()), "by": "bascule"}
                if await store.swap(
                    self._key, stored, wanted.encode(), (self._note(self._id), _encode(note))
                ):
                    return Grant(self.name, f"{wanted.free} of {wanted.places} places are left.")
        except LockTrouble as trouble:
            return Refused(self.name, f"The reboot lock cannot be asked: {trouble}", unsure=True)
        return Refused(self.name, "Others take and release the reboot lock all the time.")

    async def release(self) -> str:
        """Give the place back, in whichever API it is held."""
        return await self._free(self._id)

    async def evict(self, holder: str) -> str:
        """Free a stale holder's place. "" or why it did not work."""
        return await self._free(holder)

    async def _free(self, holder: str) -> str:
        try:
            for store in self._stores.values():
                if not await store.available():
                    continue
                for _ in range(_TRIES):
                    stored = await store.get(self._key)
                    if stored is None:
                        break
                    present = self._parse(stored)
                    left = present.released_by(holder)
                    if left == present:
                        break
                    if await store.swap(
                        self._key, stored, left.encode(), (self._note(holder), None)
                    ):
                        break
                else:
                    return "others take and release the reboot lock all the time"
        except LockTrouble as trouble:
            return str(trouble)
        return ""

    async def view(self) -> LockView:
        """The semaphore, and the age of each holder as far as somebody recorded it."""
        try:
            store = await self._choose()
            stored = await store.get(self._key)
            return await self._look(store, stored, self._parse(stored))
        except LockTrouble as trouble:
            return LockView(self.name, trouble=str(trouble), release=self._release_command)

    async def close(self) -> None:
        """Give back connections."""
        await self._server.close()
        await self._server_v2.close()

    async def _choose(self) -> Store:
        v2, v3 = self._stores.get("v2"), self._stores.get("v3")
        if v3 is None or v2 is None:
            return next(iter(self._stores.values()))
        if await v2.available() and await v2.get(self._key) is not None:
            return v2
        return v3 if await v3.available() else v2

    async def _look(self, store: Store, stored: Stored | None, present: Semaphore) -> LockView:
        now = int(self._clock())
        revision = stored.revision if stored is not None else 0
        if revision != self._seen.revision:
            self._seen.revision = revision
            self._seen.since.clear()
        holders = []
        for holder in present.holders[:64]:
            since = await self._since(store, holder)
            if since is None:
                holders.append(
                    Holder(clean(holder), self._seen.since.setdefault(holder, now), True)
                )
            else:
                holders.append(Holder(clean(holder), since))
        return LockView(
            self.name,
            held=self._id in present.holders,
            free=present.free,
            places=present.places,
            holders=tuple(holders),
            release=self._release_command,
        )

    async def _since(self, store: Store, holder: str) -> int | None:
        note = await store.get(self._note(holder))
        try:
            since = json.loads(note.value)["since"] if note is not None else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        good = isinstance(since, int) and not isinstance(since, bool) and 0 < since < 2**40
        return since if good else None

    def _refused(self, view: LockView) -> Refused:
        who = ", ".join(h.id for h in view.holders) or "nobody"
        return Refused(
            self.name,
            f"All {view.places} places of the reboot lock are taken, by {who}."
            if view.holders
            else "The reboot lock has no place at all.",
            view.holders,
        )

    def _parse(self, stored: Stored | None) -> Semaphore:
        if stored is None:
            return Semaphore()
        try:
            return parse_semaphore(stored.value)
        except ValueError as error:
            raise LockTrouble(f"the document at {self._key} is not locksmith's: {error}") from None

    def _note(self, holder: str) -> str:
        return f"{self._directory}/bascule/{quote_plus(holder)}"


def _encode(note: dict[str, object]) -> bytes:
    return json.dumps(note, separators=(",", ":"), sort_keys=True).encode()
