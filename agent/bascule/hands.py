"""The hands of an attempt: streams, reads back, runs the new image's own step, leaves the markers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bascule.assembly import Assembly
from bascule.engine.fetch import Credentials, FetchEvent, HttpSource, Kind
from bascule.engine.keepsake import TailRecorder, TailSource
from bascule.engine.ledger import Record, write_durably
from bascule.engine.limits import DataBudget, DataUse, Limiter, RateLimit, both
from bascule.engine.local_file import FileSource, url_file
from bascule.engine.markers import leave_markers
from bascule.engine.omaha_client import post_omaha
from bascule.engine.stream import Announced, ByteSource, Installed, Progress, install
from bascule.engine.transport import Patience, Tls, paced_buffer
from bascule.engine.verify import VerifiedSlot, read_back
from bascule.errors import LedgerError, NoUpdate, OpenPgpError, TransferError
from bascule.updater.plan import InstallPlan, lacking_packages

if TYPE_CHECKING:
    from bascule.engine.boot import ClearedSlot
    from bascule.engine.openpgp import SignedDigests
    from bascule.formats.omaha import Offer

PROGRESS_INTERVAL = 0.2
"""Seconds between progress lines at least: more often nobody reads them."""


def announced(offer: Offer) -> Announced:
    """What the offer says of its payload's bytes."""
    return Announced(offer.size, offer.sha256, offer.metadata_size, offer.metadata_signature)


class RealHands:
    """Implements `updater.attempt.Hands`.

    Args:
        say: tells the daemon.
        attempt: id of the attempt, sent along with each request for the payload.
        now: the operator overrides the data budget.
        interactive: somebody waits for the answer; False for the schedule.
        offline: the payload is what an earlier attempt kept of it.
    """

    def __init__(
        self,
        assembly: Assembly,
        say: Callable[..., None],
        attempt: str,
        *,
        now: bool = False,
        interactive: bool = True,
        offline: bool = False,
    ) -> None:
        self._now = now
        self._interactive = interactive
        self._offline = offline
        self._keepsake = assembly.keepsake()
        self._recorded: TailRecorder | None = None
        self._list = b""
        self._assembly = assembly
        self._say = say
        self._attempt = attempt
        self._store = assembly.checkpoint()
        self._last = 0.0
        self._began = False
        self._cleared: ClearedSlot | None = None

    # ── wire ─────────────────────────────────────────────────────────────────────────────────

    def tls(self) -> Tls:
        """For servers and downloads."""
        server = self._assembly.settings.server
        return Tls(server.ca_file, server.client_certificate, server.client_key)

    def patience(self) -> Patience:
        """For servers and downloads."""
        download = self._assembly.settings.download
        return Patience(
            connect=download.connect_timeout,
            stall_rate=download.stall_rate,
            stall_time=download.stall_time,
        )

    async def post(self, body: bytes) -> bytes:
        """One Omaha request, tried again as often as the original does. Raises ServerError."""
        return await post_omaha(
            self._assembly.settings.server.url,
            body,
            tls=self.tls(),
            patience=self.patience(),
            retries=1 if self._interactive else 3,
            retry_wait=min(10.0, self._assembly.settings.download.retry_wait),
        )

    async def local_offer(self, options: Mapping[str, Any]) -> Offer | None:
        """The offer of a file or static repository that the operator or the settings name.

        None: neither is named, so the server is asked.

        Raises:
            NoUpdate: the repository has nothing for this host.
        """
        from bascule.formats.omaha import Offer
        from bascule.local_offers import look_local, remember

        found = await look_local(self._assembly, options, tls=self.tls(), patience=self.patience())
        if found is None or isinstance(found, Offer):
            return found
        now = time.time()
        configured = not (options.get("file") or options.get("repository"))
        ledger = self._assembly.ledger()
        words = await asyncio.to_thread(remember, ledger, found, now, configured=configured)
        if configured:
            self._say("checked", at=int(now), answer=words)
        if found.offer is None:
            raise NoUpdate(f"{found.where} has nothing newer for this host")
        return found.offer

    def _heard(self, event: FetchEvent) -> None:
        if event.kind is not Kind.ASKED:
            self._say(
                "note",
                note="download-trouble",
                facts={"what": event.kind.value, "offset": event.offset, "why": event.sentence},
            )

    def _limiter(self, record: Record, now: bool) -> tuple[Limiter | None, DataBudget]:
        download = self._assembly.settings.download
        ledger = self._assembly.ledger()

        async def save(use: Mapping[str, Any]) -> None:
            await asyncio.to_thread(ledger.set, budget=dict(use))

        budget = DataBudget(
            download.budget, DataUse.from_dict(record.budget), save, enforce=not now
        )
        rate = RateLimit(download.rate_limit) if download.rate_limit else None
        return both(rate, budget), budget

    def _source(self, plan: InstallPlan, limiter: Limiter | None) -> ByteSource:
        offer = plan.offer
        if self._offline:
            return TailSource(self._keepsake.tail(), size=offer.size)
        if offer.urls[0].startswith("file:"):
            return FileSource(url_file(offer.urls[0]), size=offer.size)
        download = self._assembly.settings.download
        credentials = Credentials(download.user, download.password) if download.user else None
        return HttpSource(
            offer.urls,
            size=offer.size,
            start=plan.url_index % len(offer.urls),
            max_failures=offer.max_failures,
            retry_wait=download.retry_wait,
            credentials=credentials,
            attempt=self._attempt,
            tls=self.tls(),
            patience=self.patience(),
            limiter=limiter,
            read_buffer=paced_buffer(download.rate_limit),
            on_event=self._heard,
        )

    async def _listed(self, plan: InstallPlan) -> SignedDigests | None:
        """Digests of the payload by its OpenPGP-signed list, where policy knows of such lists."""
        trust = self._assembly.settings.trust
        if "openpgp" not in trust.require:
            return None
        from bascule.engine.listing import fetch_list
        from bascule.engine.openpgp import check_list
        from bascule.formats.digest_list import listed_name

        offer = plan.offer
        try:
            if not trust.openpgp_keyring:
                raise OpenPgpError("`trust.openpgp_keyring` names no keyring")
            if self._offline:
                self._list = self._keepsake.digest_list()
            else:
                self._list = await fetch_list(
                    offer.urls,
                    tls=self.tls(),
                    patience=self.patience(),
                    retry_wait=self._assembly.settings.download.retry_wait,
                )
            return await asyncio.to_thread(
                check_list,
                self._list,
                name=listed_name(offer.name),
                keyring=Path(trust.openpgp_keyring),
            )
        except (OpenPgpError, TransferError) as error:
            if trust.match == "any":
                self._say("note", note="openpgp-not-proven", facts={"why": str(error)})
                return None
            if isinstance(error, OpenPgpError):
                raise
            raise OpenPgpError(f"it could not be fetched: {error}") from error

    # ── payload ──────────────────────────────────────────────────────────────────────────────

    def _observe(self, progress: Progress) -> None:
        if not self._began and progress.phase == "download" and progress.bytes_done > 0:
            self._began = True
            self._say("event", event="BYTES_CAME", phase="download")
        now = time.monotonic()
        if now - self._last < PROGRESS_INTERVAL and progress.bytes_done < progress.bytes_total:
            return
        self._last = now
        self._say(
            "progress",
            phase=progress.phase,
            done=progress.bytes_done,
            total=progress.bytes_total,
            written=progress.written,
            skipped=progress.skipped,
        )

    async def stream(self, plan: InstallPlan, cleared: ClearedSlot) -> Installed:
        """As `attempt.Hands`."""
        from bascule.engine.trust import read_keys

        settings, layout, offer = self._assembly.settings, self._assembly.layout, plan.offer
        self._cleared = cleared
        record = await asyncio.to_thread(self._assembly.ledger().read)
        limiter, budget = self._limiter(record, self._now)
        source = self._source(plan, limiter)
        self._recorded = TailRecorder(source)
        try:
            return await install(
                self._recorded,
                announced=announced(offer),
                keys=lambda: read_keys(Path(settings.trust.keys)),
                require=frozenset(settings.trust.require),
                any_of=settings.trust.match == "any",
                listed=await self._listed(plan),
                cleared=cleared,
                targets=layout.parts[plan.target],
                sources=layout.parts[plan.origin],
                checkpoint=self._store,
                observer=self._observe,
                workers=self._assembly.workers,
                lacking=lacking_packages(offer, settings.postinst.packages),
                not_before=None if plan.downgrade else self._assembly.host.built or None,
            )
        finally:
            await budget.settle()

    async def read_back(self, plan: InstallPlan, installed: Installed) -> VerifiedSlot:
        """As `attempt.Hands`."""

        def observe(done: int, total: int) -> None:
            self._observe(Progress("verify", done, total))

        assert self._cleared is not None
        verified = await read_back(
            installed.signed,
            self._assembly.layout.parts[plan.target],
            cleared=self._cleared,
            carried=installed.carried,
            begun=installed.begun,
            observer=observe,
            checkpoint=self._store,
        )
        await asyncio.to_thread(self._store.renew)
        return verified

    def resumable(self, plan: InstallPlan) -> bool:
        """As `attempt.Hands`."""
        return (self._store.folder / "record").exists()

    def keep(self, plan: InstallPlan, installed: Installed) -> None:
        """As `attempt.Hands`: the record of the whole payload stays, with what comes after it."""
        assert self._recorded is not None
        manifest = installed.signed.manifest
        start = manifest.offset_of(len(manifest.operations))
        self._keepsake.keep(self._recorded.since(start, plan.offer.size), self._list)

    def forget(self) -> None:
        """As `attempt.Hands`: a record that a keepsake belongs to is of a slot that has booted,
        or was given up."""
        if self._keepsake.exists:
            self._store.clear()
            self._keepsake.drop()

    # ── the new image's own step ─────────────────────────────────────────────────────────────

    async def postinstall(self, plan: InstallPlan, installed: Installed) -> bool:
        """As `attempt.Hands`."""
        from bascule.engine.postinst import NotThere, run_postinst

        settings = self._assembly.settings.postinst
        parts = self._assembly.layout.parts[plan.target]
        region = parts.get("usr") or next(iter(parts.values()))
        if settings.run == "never" or region.file:
            return False
        kernel = parts.get("kernel")

        def heard(line: str) -> None:
            self._say("note", note="postinst", facts={"line": line})

        done = await run_postinst(
            region,
            kernel=str(kernel.path) if kernel is not None and kernel.path.exists() else None,
            environ=os.environ,
            timeout=settings.timeout,
            on_line=heard,
        )
        return not isinstance(done, NotThere)

    async def baseline(self) -> Mapping[str, Any]:
        """As `attempt.Hands`: asked as patiently as after the reboot, or a check that needs its second
        asking would be excused there.

        An errand is confined as the daemon is, and the unit that asks after the reboot is not: a
        script that failed here, but not when this boot was judged, may have failed for that only.
        """
        from bascule.engine.health import Baseline, Script, passed_in, run
        from bascule.healthchecks import checks_of, host_of

        health = self._assembly.settings.health
        checks = checks_of(health)
        patience = max((check.pace.patience for check in checks), default=0.0)
        results = await run(checks, host=host_of(health), clock=time.monotonic, limit=patience)
        host = self._assembly.host
        record = await asyncio.to_thread(self._assembly.ledger().read)
        passed = passed_in(record.health, host.boot_id)
        scripts = {check.name for check in checks if isinstance(check, Script)}
        results = [r for r in results if not (r.name in scripts and r.name in passed)]
        return Baseline.of(
            results, version=host.version, boot_id=host.boot_id, now=time.time()
        ).as_dict()

    # ── markers ──────────────────────────────────────────────────────────────────────────────

    def remember_response(self, body: bytes, previous_version: str) -> None:
        """Flatcar's prefs for a postinst, `previous-version` first: it compares their mtimes (6.4)."""
        folder = self._assembly.settings.state.prefs
        if not folder:
            return
        prefs = Path(folder)
        try:
            prefs.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(prefs / "previous-version", previous_version.encode())
            write_durably(prefs / "full-response", body)
            if not (prefs / "aleph-version").exists():
                write_durably(prefs / "aleph-version", self._assembly.host.version.encode())
        except (OSError, LedgerError) as error:
            self._say("note", note="prefs-not-written", facts={"why": str(error)})

    def mark_staged(self) -> None:
        """The markers for kured and for Flatcar's scripts; a reboot clears them."""
        for trouble in leave_markers(self._assembly.run_directory):
            self._say("note", note="marker-not-written", facts={"why": trouble})
