"""What the errand finds out without changing anything: a plan, the releases there are.

Nothing here writes to the ledger, sends an event to the server or touches a slot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bascule.assembly import DISABLED, Assembly
from bascule.engine.parts import Parts
from bascule.engine.peek import peek
from bascule.engine.stream import resume_identity
from bascule.errors import BasculeError, NoUpdate, TransferError, UsageError
from bascule.formats.omaha import Offer, build_request, parse_response
from bascule.formats.signature import check_metadata
from bascule.hands import RealHands, announced
from bascule.local_offers import look_local
from bascule.updater import payload_state
from bascule.updater.gather import pin_from_record
from bascule.updater.listing import Terms, against, newest_first, why_not
from bascule.updater.plan import make_plan

if TYPE_CHECKING:
    from bascule.engine.ledger import Record
    from bascule.engine.static_repo import Found
    from bascule.formats.manifest import Manifest
    from bascule.formats.payload import Metadata

NOTHING_NEWER = "The server has nothing newer for this host."


async def answer(
    kind: str, assembly: Assembly, say: Callable[..., None], job: Mapping[str, Any]
) -> dict[str, Any]:
    """The facts of the document `kind`. Raises many."""
    if kind == "config-check":
        from bascule.config_check import problems

        return {"problems": await asyncio.to_thread(problems, assembly, time.time())}
    if kind in ("doctor", "doctor-repair"):
        from bascule import doctor

        return await (doctor.document if kind == "doctor" else doctor.repair)(assembly)
    attempt = str(job["attempt"])
    inquiry = Inquiry(
        assembly, RealHands(assembly, say, attempt), attempt, job.get("options") or {}
    )
    match kind:
        case "plan":
            return await inquiry.plan()
        case "list":
            return await inquiry.releases()
        case _:
            raise UsageError(f"unknown document {kind}")


class Inquiry:
    """Plan and list.

    Args:
        hands: they ask servers and repositories.
        attempt: id sent along.
        options: of the document: ``version``, ``file``, ``repository``, ``allow_downgrade``.
    """

    def __init__(
        self, assembly: Assembly, hands: RealHands, attempt: str, options: Mapping[str, Any]
    ) -> None:
        self._assembly = assembly
        self._hands = hands
        self._attempt = attempt
        self._options = options

    # ── plan ─────────────────────────────────────────────────────────────────────────────────

    async def plan(self) -> dict[str, Any]:
        """What an update would fetch, write and skip.

        Returns:
            release (None: nothing, and ``why``), slot, resumed_bytes, image_bytes (0: not known),
            parts, metadata, refused (an error, or None).
        """
        record = await asyncio.to_thread(self._assembly.ledger().read)
        try:
            offer = await self._offer(record)
        except NoUpdate as error:
            return {"release": None, "why": error.detail}
        found: dict[str, Any] = {
            "release": {
                "version": offer.version,
                "source": offer.urls[0],
                "size": offer.size,
                "sha256": offer.sha256.hex(),
                "delta": offer.is_delta,
            },
            "slot": self._assembly.layout.booted.other.name,
            "resumed_bytes": 0,
            "image_bytes": 0,
            "parts": [],
            "metadata": {"read_bytes": 0, "proven_by": "", "why": "it was not looked into"},
            "refused": None,
        }
        try:
            await self._look_inside(offer, found)
        except BasculeError as error:
            found["refused"] = error.as_dict()
        try:
            await asyncio.to_thread(self._decide, offer, record)
        except BasculeError as error:
            # Policy speaks first in an attempt too.
            found["refused"] = error.as_dict()
        return found

    async def _offer(self, record: Record) -> Offer:
        """As the attempt would get it. Raises NoUpdate."""
        found = await self._look_local()
        if isinstance(found, Offer):
            return found
        if found is not None:
            if found.offer is None:
                raise NoUpdate(f"{found.where} has nothing newer for this host.")
            return found.offer
        offer = await self._ask_server(record)
        if offer is None:
            raise NoUpdate(NOTHING_NEWER)
        return offer

    async def _look_local(self) -> Offer | Found | None:
        hands = self._hands
        return await look_local(
            self._assembly, self._options, tls=hands.tls(), patience=hands.patience()
        )

    async def _ask_server(self, record: Record) -> Offer | None:
        """One update check that counts for nothing: no event, no ping. Raises ServerError."""
        if self._assembly.settings.server.url == DISABLED:
            raise NoUpdate("`server.url` is `disabled`, so no server is asked")
        body = build_request(
            self._assembly.client(record),
            ping=False,
            updatecheck=True,
            events=(),
            installsource="ondemandupdate",
        )
        return parse_response(await self._hands.post(body)).offer

    def _decide(self, offer: Offer, record: Record) -> None:
        """As the attempt would. Raises PolicyRefusal, BootError."""
        boot, options = self._assembly.boot(), self._options
        make_plan(
            offer,
            attempt=self._attempt,
            record=record,
            running=self._assembly.host.version,
            booted=boot.booted,
            flags=boot.flags(),
            allow_downgrade=bool(options.get("allow_downgrade"))
            or self._assembly.settings.policy.allow_downgrade,
            wanted=str(options.get("version") or ""),
        )
        if not self._assembly.dev_mode:
            now = time.time()
            state = payload_state.PayloadState.from_dict(record.payload_state)
            state = payload_state.take_offer(state, offer, now)
            payload_state.refuse_if_backing_off(state, offer, now)

    async def _look_inside(self, offer: Offer, found: dict[str, Any]) -> None:
        """Fill in what the payload's metadata tell. Raises PayloadError, StorageError."""
        download = self._assembly.settings.download
        try:
            glimpse = await peek(
                offer.urls,
                size=offer.size,
                metadata_size=offer.metadata_size,
                user=download.user,
                password=download.password,
                tls=self._hands.tls(),
                patience=self._hands.patience(),
            )
        except TransferError as error:
            found["metadata"] = {"read_bytes": 0, "proven_by": "", "why": str(error)}
            return
        metadata = glimpse.metadata
        found["metadata"] = {
            "read_bytes": glimpse.read,
            "proven_by": await asyncio.to_thread(self._proven_by, metadata, offer),
            "why": "",
        }
        manifest = await asyncio.to_thread(metadata.parse)
        manifest.check_size(offer.size)
        found["release"]["delta"] = offer.is_delta or manifest.delta
        parts = [
            {
                "name": part.name,
                "size": part.new.size if part.new is not None else 0,
                "operations": len(part.operations),
                "delta": part.old is not None or part.in_place,
            }
            for part in manifest.parts
        ]
        found["parts"] = parts
        found["image_bytes"] = sum(part["size"] for part in parts)
        found["resumed_bytes"] = await asyncio.to_thread(self._resumed, manifest, offer)
        layout = self._assembly.layout
        booted = layout.booted
        await asyncio.to_thread(
            Parts(manifest, layout.parts[booted.other], layout.parts[booted]).preflight
        )

    def _proven_by(self, metadata: Metadata, offer: Offer) -> str:
        """Name of the key that signed the metadata; "" where nothing can be said of it."""
        from bascule.engine.trust import read_keys

        key = check_metadata(
            metadata.raw,
            keys=read_keys(Path(self._assembly.settings.trust.keys)),
            in_payload=metadata.signature,
            announced=offer.metadata_signature or b"",
        )
        return key.name if key is not None else ""

    def _resumed(self, manifest: Manifest, offer: Offer) -> int:
        """Bytes of the payload that an earlier attempt has brought to the medium."""
        layout = self._assembly.layout
        booted = layout.booted
        kept = self._assembly.checkpoint().load(
            resume_identity(announced(offer), layout.parts[booted.other], layout.parts[booted])
        )
        if kept is None or not 0 < kept.next_operation <= len(manifest.operations):
            return 0
        return manifest.offset_of(kept.next_operation)

    # ── list ─────────────────────────────────────────────────────────────────────────────────

    async def releases(self) -> dict[str, Any]:
        """The releases that there are, each with the reason why it would not be installed.

        Returns:
            releases (version, kind, size, from, install, why_not, sha256), troubles.
        """
        record = await asyncio.to_thread(self._assembly.ledger().read)
        settings, host = self._assembly.settings, self._assembly.host
        terms = Terms(
            running=host.version,
            group=settings.server.group,
            board=host.board,
            floor=record.floor,
            pin=pin_from_record(record.pin),
            quarantine=frozenset(record.quarantine),
            deltas=settings.download.deltas,
            downgrades=settings.policy.allow_downgrade,
        )
        named = bool(self._options.get("file") or self._options.get("repository"))
        rows: list[dict[str, Any]] = []
        troubles: list[str] = []
        if named or settings.server.repository:
            try:
                rows += await self._local_rows(terms)
            except BasculeError as error:
                if named:
                    raise
                troubles.append(str(error))
        if not named and settings.server.url != DISABLED:
            try:
                offer = await self._ask_server(record)
            except BasculeError as error:
                if not settings.server.repository:
                    raise
                troubles.append(str(error))
            else:
                rows += [self._row(offer, terms, settings.server.url)] if offer else []
        return {
            "sentence": "" if rows or troubles else "There is no release for this host.",
            "releases": rows,
            "troubles": troubles,
        }

    def _row(self, offer: Offer, terms: Terms, source: str) -> dict[str, Any]:
        reason = against(offer.version, offer.sha256.hex(), terms)
        return {
            "version": offer.version or "(unnamed)",
            "kind": "delta" if offer.is_delta else "full",
            "size": offer.size,
            "from": source,
            "install": not reason,
            "why_not": reason,
            "sha256": offer.sha256.hex(),
        }

    async def _local_rows(self, terms: Terms) -> list[dict[str, Any]]:
        found = await self._look_local()
        if found is None:
            return []
        if isinstance(found, Offer):
            return [self._row(found, terms, found.urls[0])]
        rows = []
        for release in newest_first(found.releases):
            reason = why_not(release, terms)
            chosen = found.offer is not None and found.offer.version == release.version
            if not reason and not chosen and found.offer is not None:
                reason = f"{found.offer.version} is newer."
            full = next((p for p in release.payloads if not p.delta_from), release.payloads[0])
            payload = found.offer if chosen and found.offer is not None else full
            rows.append(
                {
                    "version": release.version,
                    "kind": "delta" if getattr(payload, "is_delta", False) else "full",
                    "size": payload.size,
                    "from": found.where,
                    "install": not reason,
                    "why_not": reason,
                    "sha256": payload.sha256.hex(),
                }
            )
        return rows
