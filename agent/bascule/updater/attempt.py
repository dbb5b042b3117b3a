"""One attempt, told in order: ask, plan, clear, stream, prove, read back, stage, report.

Runs in the errand. Every line that a power cut could follow leaves the ledger telling the truth
about the slots: the intent is durable before the slot changes, the slot is proven before it is
staged, and it is called staged only after the flip.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from bascule.engine.boot import BootBackend, ClearedSlot
from bascule.engine.ledger import Ledger, Record
from bascule.errors import (
    BasculeError,
    LedgerError,
    NothingPending,
    PayloadError,
    PostinstallFailed,
    ServerError,
    SignatureMismatch,
    SignatureMissing,
    SlotMismatch,
    SourceMismatch,
    Stopped,
    UnsupportedMinor,
    UnsupportedOperation,
)
from bascule.formats.omaha import (
    Client,
    Offer,
    OmahaEvent,
    Response,
    build_request,
    check_event,
    parse_response,
)
from bascule.updater import events, payload_state
from bascule.updater.gather import answer_from_error, answer_from_offer, kept_answer
from bascule.updater.intent import Intent, Phase
from bascule.updater.outbox import Outbox, Post
from bascule.updater.plan import InstallPlan, make_plan
from bascule.updater.prepared import Prepared
from bascule.updater.settle import quarantine

if TYPE_CHECKING:
    from bascule.engine.stream import Installed
    from bascule.engine.verify import VerifiedSlot

DELTA_FAULTS = (SourceMismatch, UnsupportedOperation, UnsupportedMinor)
"""What makes a delta useless on this host while a full payload may do."""

UNPREPARES = (PayloadError, SlotMismatch, PostinstallFailed, NothingPending)
"""After these a prepared slot is not what it was taken for, or must not boot."""

Say = Callable[..., None]


class Hands(Protocol):
    """What an attempt needs done to disk and wire; the errand gives it real ones."""

    async def stream(self, plan: InstallPlan, cleared: ClearedSlot) -> Installed:
        """Fetch and apply the payload; returns what is proven. Raises many."""
        ...

    async def read_back(self, plan: InstallPlan, installed: Installed) -> VerifiedSlot:
        """Read the whole slot from the medium. Raises SlotMismatch."""
        ...

    async def postinstall(self, plan: InstallPlan, installed: Installed) -> bool:
        """Run the new image's own step; True if there was one. Raises PostinstallFailed."""
        ...

    async def baseline(self) -> Mapping[str, Any]:
        """Health of the running release, recorded before the reboot; {} where it is not asked."""
        ...

    def resumable(self, plan: InstallPlan) -> bool:
        """Whether a checkpoint of this very payload exists."""
        ...

    def keep(self, plan: InstallPlan, installed: Installed) -> None:
        """Keep, durably, what proves the slot again without a server. Raises LedgerError."""
        ...

    def forget(self) -> None:
        """Drop what `keep` kept: the slot it speaks of is about to be another's."""
        ...

    def remember_response(self, body: bytes, previous_version: str) -> None:
        """Write Flatcar's prefs that a postinst reads (reference 6.4)."""
        ...

    def mark_staged(self) -> None:
        """Write the markers that other programs watch."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What policy says about this one errand.

    Attributes:
        running: the running release.
        boot_id: this boot.
        tries: boots that a new release gets.
        interactive: somebody asked; False for the schedule.
        install: False to report an offer and leave it.
        server: its address; one that is not Flatcar's own sets bit 28 of error codes (2.3).
        dev_mode: /root/.dev_mode exists: no back-off, bit 29.
        allow_downgrade, wanted: as in `plan.make_plan`.
        now: the operator overrides back-off.
        on_trial: the running slot is not blessed yet: nothing may be reported about it.
        prepare: leave the proven slot as it is; the running one stays the next boot.
    """

    running: str
    boot_id: str
    tries: int
    interactive: bool
    install: bool
    server: str
    dev_mode: bool = False
    allow_downgrade: bool = False
    wanted: str = ""
    now: bool = False
    on_trial: bool = False
    prepare: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an errand ended well.

    Attributes:
        result: ``no-update``, ``available``, ``prepared`` or ``staged``.
        facts: for `--json` and history.
    """

    result: str
    facts: Mapping[str, Any]


class Attempt:
    """One errand from the first question to the last report.

    Args:
        say: called as ``say(word, **fields)``; the errand prints it for the daemon.
        jitter: uniform in [0, 1), for back-off.
    """

    def __init__(
        self,
        *,
        attempt: str,
        client: Client,
        post: Post,
        ledger: Ledger,
        boot: BootBackend,
        hands: Hands,
        terms: Terms,
        say: Say,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._attempt = attempt
        self._client = client
        self._post = post
        self._ledger = ledger
        self._boot = boot
        self._hands = hands
        self._terms = terms
        self._say = say
        self._clock = clock
        self._jitter = jitter
        self._resumed = False
        self._offline = False
        self._proven_at = 0.0
        self._whole = False
        source = "ondemandupdate" if terms.interactive else "scheduler"
        self._source = source
        self._outbox = Outbox(ledger, client, post, source)

    # ── the story ────────────────────────────────────────────────────────────────────────────

    async def run(self, offer: Offer | None = None) -> Outcome:
        """Ask the server (unless an offer is given), and install what it offers if policy says so.

        Raises:
            BasculeError: what went wrong; the server has been told, or will be.
        """
        try:
            if offer is None:
                offer = await self.ask()
            else:
                await self._remember_local(offer)
            if offer is None:
                return Outcome("no-update", {"why": "the server has nothing newer"})
            self._say_taken(offer)
            waiting = await self._waits_for_its_operator(offer)
            if waiting is not None:
                return Outcome("available", {"version": offer.version, "why": waiting})
            plan = await self.plan(offer)
            if not self._terms.install:
                return Outcome("available", {"version": offer.version, "size": offer.size})
            try:
                return await self.install(plan)
            except DELTA_FAULTS as error:
                full = await self._full_instead(plan, error)
                if full is None:
                    raise
                offer = full.offer
                return await self.install(full)
        except (Stopped, asyncio.CancelledError):
            raise
        except BasculeError as error:
            await self._report(error, offer)
            raise

    def _say_taken(self, offer: Offer) -> None:
        self._say(
            "event",
            event="OFFER_TAKEN",
            new_version=offer.version,
            new_size=offer.size,
            bytes_total=offer.size,
            attempt=self._attempt,
            phase="plan",
        )

    async def _waits_for_its_operator(self, offer: Offer) -> str | None:
        """Who prepared a release said that it shall not boot yet: the clock does not stage it."""
        if self._terms.interactive or not self._terms.install:
            return None
        record = await asyncio.to_thread(self._ledger.read)
        prepared = Prepared.from_dict(record.prepared)
        if prepared is None or not prepared.asked or prepared.offer.sha256 != offer.sha256:
            return None
        return prepared.sentence()

    async def activate(self) -> Outcome:
        """Prove the prepared slot again and stage it. Needs no server.

        Raises:
            NothingPending: nothing is prepared, or it cannot be proven without a download.
        """
        self._offline = True
        offer: Offer | None = None
        try:
            record = await asyncio.to_thread(self._ledger.read)
            prepared = Prepared.from_dict(record.prepared)
            if prepared is None:
                raise NothingPending("no release is prepared; `updatectl prepare` fetches one")
            offer = prepared.offer
            self._say_taken(offer)
            plan = make_plan(
                offer,
                attempt=self._attempt,
                record=record,
                running=self._terms.running,
                booted=self._boot.booted,
                flags=await asyncio.to_thread(self._boot.flags),
                allow_downgrade=self._terms.allow_downgrade or prepared.downgrade,
                wanted=offer.version,
            )
            if plan.target is not prepared.slot:
                raise NothingPending(
                    f"{prepared.version} was prepared in slot {prepared.slot.name}, which runs now"
                )
            cleared = await asyncio.to_thread(self._boot.clear, plan.target)
            installed, verified = await self._prove(plan, cleared)
            return await self._let_boot(plan, installed, verified, prepared.cost)
        except (Stopped, asyncio.CancelledError):
            raise
        except BasculeError as error:
            await self._report(error, offer)
            raise

    async def _full_instead(self, plan: InstallPlan, error: BasculeError) -> InstallPlan | None:
        """Another offer where a delta does not fit this host; None if there is no other.

        Asked only where we said that deltas are welcome: a server that sends one unasked has no
        full payload to offer.
        """
        if not self._client.delta_okay:
            return None
        facts = {"version": plan.offer.version, "why": str(error), "attempt": self._attempt}
        self._say("note", note="delta-refused", facts=facts)
        self._client = replace(self._client, delta_okay=False)
        offer = await self.ask()
        if offer is None or offer.sha256 == plan.offer.sha256:
            return None
        self._say("phase", phase="plan", new_size=offer.size, bytes_total=offer.size)
        return await self.plan(offer)

    async def ping(self) -> None:
        """Tell the server that this host lives and waits for its reboot. Raises ServerError."""
        await self._outbox.deliver()
        await self._post(build_request(self._client, ping=True, installsource=self._source))

    async def ask(self) -> Offer | None:
        """One update check. Raises ServerError."""
        await self._outbox.deliver()
        record = await asyncio.to_thread(self._ledger.read)
        events = []
        if not self._terms.on_trial:
            events.append(check_event(record.previous_version, self._terms.running))
        body = build_request(
            self._client, ping=True, updatecheck=True, events=events, installsource=self._source
        )
        answer = await self._post(body)
        try:
            response = parse_response(answer)
        finally:
            # The server has the event now, whatever it answered; and a postinst may want the body.
            previous = record.previous_version if self._terms.on_trial else ""
            await asyncio.to_thread(
                self._hands.remember_response, answer, record.previous_version or ""
            )
            await asyncio.to_thread(self._ledger.set, previous_version=previous)
        await self._checked(response)
        return response.offer

    async def _checked(self, response: Response) -> None:
        now = int(self._clock())
        offer = response.offer
        words = f"offers {offer.version}" if offer else "nothing newer"
        await asyncio.to_thread(
            self._ledger.set,
            last_checked=now,
            poll_interval=response.poll_interval or 0,
            last_answer=words,
            answer=kept_answer(
                answer_from_offer(offer), at=now, poll_interval=response.poll_interval or 0
            ),
        )
        self._say("checked", at=now, answer=words)

    async def _remember_local(self, offer: Offer) -> None:
        """An offer that did not come from the server is judged by the same gates, and explained."""
        await asyncio.to_thread(
            self._ledger.set,
            last_answer=f"offers {offer.version}",
            answer=kept_answer(answer_from_offer(offer), at=int(self._clock())),
        )

    async def plan(self, offer: Offer) -> InstallPlan:
        """Decide, and remember the offer for back-off. Raises PolicyRefusal, BootError."""
        flags = await asyncio.to_thread(self._boot.flags)
        terms = self._terms
        kept: dict[str, payload_state.PayloadState] = {}

        def change(record: Record) -> Record:
            state = payload_state.take_offer(
                payload_state.PayloadState.from_dict(record.payload_state), offer, self._clock()
            )
            kept["state"] = state
            return replace(record, payload_state=state.as_dict())

        record = await asyncio.to_thread(self._ledger.update, change)
        plan = make_plan(
            offer,
            attempt=self._attempt,
            record=record,
            running=terms.running,
            booted=self._boot.booted,
            flags=flags,
            allow_downgrade=terms.allow_downgrade,
            wanted=terms.wanted,
        )
        if not (terms.now or terms.dev_mode):
            payload_state.refuse_if_backing_off(kept["state"], offer, self._clock())
        return replace(plan, url_index=kept["state"].url_index)

    async def install(self, plan: InstallPlan) -> Outcome:
        """Carry `plan` out up to the proven slot, and stage it unless it is only to be prepared.

        Raises many; nothing is bootable unless it returns.
        """
        began = self._clock()
        cleared = await asyncio.to_thread(self._clear, plan)
        self._resumed = await asyncio.to_thread(self._hands.resumable, plan)
        await self._tell(events.DOWNLOADING)
        installed, verified = await self._prove(plan, cleared)
        cost = {
            "download_s": round(self._proven_at - began, 3),
            "apply_s": round(self._clock() - self._proven_at, 3),
            "bytes": installed.stats.fetched,
            "written": installed.stats.written,
            "skipped": installed.stats.skipped,
        }
        await asyncio.shield(asyncio.to_thread(self._keep, plan, installed, cost))
        if self._terms.prepare:
            facts = {"version": plan.offer.version, "slot": plan.target.name, **cost}
            return Outcome("prepared", {**facts, "resumed": installed.resumed})
        return await self._let_boot(plan, installed, verified, cost)

    async def _prove(
        self, plan: InstallPlan, cleared: ClearedSlot
    ) -> tuple[Installed, VerifiedSlot]:
        installed = await self._hands.stream(plan, cleared)
        self._say("event", event="PAYLOAD_PROVEN", phase="verify")
        if not self._offline:
            self._whole = True
            await self._tell(events.PROVEN)
        self._proven_at = self._clock()
        return installed, await self._hands.read_back(plan, installed)

    async def _let_boot(
        self,
        plan: InstallPlan,
        installed: Installed,
        verified: VerifiedSlot,
        cost: Mapping[str, Any],
    ) -> Outcome:
        self._say("phase", phase="postinstall")
        began = self._clock()
        await self._hands.postinstall(plan, installed)
        baseline = await self._hands.baseline()
        cost = {
            **cost,
            "apply_s": round(float(cost.get("apply_s", 0)) + self._clock() - began, 3),
        }

        self._say("phase", phase="stage")
        # From here to the end nothing may be interrupted halfway by a stop: it is a matter of
        # milliseconds, and a staged slot that nobody knows of is what the ledger exists to prevent.
        await asyncio.shield(asyncio.to_thread(self._stage, plan, verified, baseline, cost))
        await self._tell(events.INSTALLED)
        facts = {
            "version": plan.offer.version,
            "slot": plan.target.name,
            "resumed": installed.resumed,
            **cost,
            "flushes": installed.stats.flushes,
            "checkpoints": installed.stats.checkpoints,
        }
        return Outcome("staged", facts)

    async def _tell(self, event: OmahaEvent) -> None:
        """Queue an event, and deliver it where there is a server to wait for."""
        if self._offline:
            await self._outbox.queue(event)
        else:
            await self._outbox.say(event)

    # ── dangerous steps, in order ────────────────────────────────────────────────────────────

    def _intent(
        self, plan: InstallPlan, phase: Phase, cost: Mapping[str, Any] | None = None
    ) -> Intent:
        return Intent(
            attempt=plan.attempt,
            version=plan.offer.version,
            payload=plan.offer.sha256.hex(),
            target=plan.target,
            origin=plan.origin,
            origin_version=plan.running,
            boot_id=self._terms.boot_id,
            phase=phase,
            tries=self._terms.tries,
            at=int(self._clock()),
            size=plan.offer.size,
            lowers_floor=plan.lowers_floor,
            cost=cost or {},
        )

    def _count_download(self, record: Record, offer: Offer) -> Record:
        """Back-off begins with each whole download: one that boots badly is not fetched at once.

        It is counted with the outcome, not with the last byte: a power cut in between is nobody's
        failure, and what the checkpoint holds is not fetched again.
        """
        if not self._whole:
            return record
        state = payload_state.PayloadState.from_dict(record.payload_state)
        state = payload_state.downloaded(state, offer, self._clock(), self._jitter())
        return replace(record, payload_state=state.as_dict())

    def _clear(self, plan: InstallPlan) -> ClearedSlot:
        kept = Prepared.from_dict(self._ledger.read().prepared)
        same = kept is not None and kept.payload == plan.offer.sha256.hex()
        same = same and kept is not None and kept.slot is plan.target

        def change(record: Record) -> Record:
            return replace(
                record,
                intent=self._intent(plan, Phase.WRITING).as_dict(),
                releases={k: v for k, v in record.releases.items() if k != plan.target.name},
                prepared=record.prepared if same else {},
                # Whoever writes the other slot goes there neither for once nor for good.
                once={},
                late={},
            )

        self._ledger.update(change)
        if not same:
            self._hands.forget()
        mended = self._boot.repair()
        if mended:
            self._say("note", note="boot-repaired", facts={"what": mended})
        return self._boot.clear(plan.target)

    def _keep(self, plan: InstallPlan, installed: Installed, cost: Mapping[str, Any]) -> None:
        """The slot is proven: whatever becomes of it, it need not be fetched again."""
        try:
            self._hands.keep(plan, installed)
        except LedgerError as error:
            if self._terms.prepare:
                raise
            # What is staged can do without; only `deactivate` will have nothing to keep.
            self._say("note", note="not-kept", facts={"why": str(error)})
            return
        prepared = Prepared(
            attempt=plan.attempt,
            offer=plan.offer,
            slot=plan.target,
            at=int(self._clock()),
            downgrade=plan.downgrade,
            cost=cost,
            asked=self._terms.prepare,
        ).as_dict()

        def change(record: Record) -> Record:
            # One write: either the attempt is unfinished, or its fruit is there.
            intent = None if self._terms.prepare else record.intent
            return replace(record, prepared=prepared, intent=intent)

        self._ledger.update(change)

    def _stage(
        self,
        plan: InstallPlan,
        verified: VerifiedSlot,
        baseline: Mapping[str, Any],
        cost: Mapping[str, Any],
    ) -> None:
        self._ledger.set(
            intent=self._intent(plan, Phase.STAGING, cost).as_dict(), baseline=dict(baseline)
        )
        self._boot.stage(verified, self._terms.tries)
        done = self._intent(plan, Phase.STAGED, cost).as_dict()

        def change(record: Record) -> Record:
            record = self._count_download(record, plan.offer)
            # Whoever takes back what is staged wants it to wait.
            kept = {**record.prepared, "asked": True} if record.prepared else {}
            return replace(record, intent=done, previous_version=plan.running, prepared=kept)

        self._ledger.update(change)
        self._hands.mark_staged()

    # ── failure ──────────────────────────────────────────────────────────────────────────────

    async def _report(self, error: BasculeError, offer: Offer | None) -> None:
        """Tell ledger and server what went wrong. The error itself goes on to the caller."""
        terms = self._terms
        self._say("event", event="FAILED", phase="")
        now = int(self._clock())

        def change(record: Record) -> Record:
            intent = Intent.from_dict(record.intent)
            if (
                intent is not None
                and intent.attempt == self._attempt
                and intent.phase is Phase.WRITING
            ):
                record = replace(record, intent=None)
            if isinstance(error, UNPREPARES):
                record = replace(record, prepared={})
            if offer is not None and not self._offline:
                record = self._count_download(record, offer)
                state = payload_state.PayloadState.from_dict(record.payload_state)
                record = replace(
                    record,
                    payload_state=payload_state.failed(
                        state, offer, error.number, self._clock(), self._jitter()
                    ).as_dict(),
                )
            kind = quarantine_kind(error)
            if offer is not None and kind:
                record = quarantine(
                    record,
                    offer.sha256.hex(),
                    version=offer.version,
                    kind=kind,
                    reason=str(error),
                    now=now,
                )
            if offer is None and isinstance(error, ServerError):
                asked = error.context.get("poll_interval")
                told = kept_answer(
                    answer_from_error(error),
                    at=now,
                    poll_interval=asked if isinstance(asked, int) else 0,
                )
                record = replace(record, last_answer=str(error), answer=told)
            return record

        with contextlib.suppress(BasculeError):
            await asyncio.to_thread(self._ledger.update, change)
        event = (
            None
            if isinstance(error, NothingPending)
            else events.failure_event(
                error, server=terms.server, resumed=self._resumed, dev_mode=terms.dev_mode
            )
        )
        if event is not None:
            with contextlib.suppress(BasculeError):
                await self._tell(event)


def quarantine_kind(error: BasculeError) -> str:
    """Why this payload must not be tried again, or "" if the fault may lie elsewhere.

    A payload counts as bad only where all its bytes were the announced ones: a damaged download, a
    failing disk or a missing key are not the release's fault.
    """
    if isinstance(error, SignatureMissing | SignatureMismatch):
        return "verify"
    if isinstance(error, PostinstallFailed):
        return "postinst"
    return ""
