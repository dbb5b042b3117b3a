"""The way of a byte: source → parser → trust → operations → device → flush → checkpoint.

What is proven, and when (decisions/0006): signed metadata is checked before the manifest is even
parsed, and then every blob is vouched for by its operation's hash before it is applied. A plain
major 1 payload carries its only signature at the end: it is streamed into a slot that cannot boot,
and the `SignedManifest` exists only after signature and digest have passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bascule.engine import digest as digests
from bascule.engine.apply import BUDGET, INTERVAL, Applier
from bascule.engine.boot import ClearedSlot
from bascule.engine.carry import Ground
from bascule.engine.checkpoint import Checkpoint, CheckpointStore, identity_of
from bascule.engine.lane import HashLane
from bascule.engine.openpgp import SignedDigests
from bascule.engine.parts import Parts
from bascule.engine.region import Region
from bascule.engine.thread import in_thread
from bascule.engine.verify import Begun, ReadBehind
from bascule.errors import (
    BasculeError,
    DeviceOpenError,
    LedgerError,
    MetadataSignatureMissing,
    NoKeys,
    NotEnoughSpace,
    PayloadError,
    PayloadHashMismatch,
    PayloadSizeMismatch,
    SignatureMissing,
    StorageError,
    TimestampTooOld,
    TrustError,
)
from bascule.formats.manifest import Limits, Manifest, PartInfo
from bascule.formats.payload import (
    Blob,
    End,
    Metadata,
    PayloadEvent,
    PayloadParser,
    SignatureBlob,
)
from bascule.formats.signature import (
    OPENPGP,
    PROOFS,
    RSA,
    SIGNED_METADATA,
    Evidence,
    PublicKey,
    SignedManifest,
    check,
    check_metadata,
)

FILE = "file"
"""Name of the running digest of every byte."""

FILE_SHA512 = "file-sha512"
"""The same in SHA-512, for OpenPGP lists that have no other (Flatcar's)."""

SIGNED = "signed"
"""Name of the running digest of what the payload signature covers (major 2)."""

_WHOLE = frozenset({FILE, FILE_SHA512})

_TELL_BYTES = 256 << 10


class ByteSource(Protocol):
    """Where a payload comes from."""

    def stream(self, offset: int) -> AsyncIterator[bytes]:
        """Bytes of the payload from `offset` to its end. Raises `TransferError`."""
        ...


@dataclass(frozen=True, slots=True)
class Announced:
    """What the server said of the payload.

    Attributes:
        size: bytes.
        sha256: of the whole file, 32 bytes.
        metadata_size: Omaha's ``MetadataSize``: bytes of header and manifest.
        metadata_signature: Omaha's ``MetadataSignatureRsa``, decoded: one raw signature.
    """

    size: int | None
    sha256: bytes | None
    metadata_size: int | None = None
    metadata_signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come.

    Attributes:
        phase: "source" (the old slot is hashed), "download" or "verify".
        bytes_done, bytes_total: bytes of the payload, or of the slot when hashing it.
        written, skipped: bytes of the slot that differed, and that were there already.
    """

    phase: str
    bytes_done: int
    bytes_total: int
    written: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """What an installation cost.

    Attributes:
        fetched: bytes that came from the source.
        written, skipped: bytes of the slot that differed, and that were there already.
        flushes: fdatasync calls on the devices.
        checkpoints: resume records made.
        peak: most bytes of payload and decoded pieces in flight at once.
    """

    fetched: int
    written: int
    skipped: int
    flushes: int
    checkpoints: int
    peak: int


@dataclass(frozen=True, slots=True)
class Installed:
    """A payload that is applied, flushed and proven; not yet read back to its end.

    Attributes:
        signed: the proven manifest.
        stats: what it cost.
        resumed: whether an earlier attempt was continued.
        carried: parts that the payload does not name, copied from the booted slot.
        begun: what was read back already, by name of part.
    """

    signed: SignedManifest
    stats: Stats
    resumed: bool
    carried: Mapping[str, PartInfo]
    begun: Mapping[str, Begun]


async def install(
    source: ByteSource,
    *,
    announced: Announced,
    keys: Callable[[], Sequence[PublicKey]],
    require: frozenset[str] = frozenset({RSA}),
    any_of: bool = False,
    listed: SignedDigests | None = None,
    cleared: ClearedSlot,
    targets: Mapping[str, Region],
    sources: Mapping[str, Region],
    checkpoint: CheckpointStore | None = None,
    observer: Callable[[Progress], None] = lambda _: None,
    workers: int = 2,
    lacking: Sequence[str] = (),
    not_before: int | None = None,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
    budget: int = BUDGET,
    interval: int = INTERVAL,
) -> Installed:
    """Bring a payload into a cleared slot and prove it.

    Args:
        source: the payload's bytes.
        announced: what the server said of it.
        keys: reads the trusted keys; called when something is to be verified, not before.
        require: which of `formats.signature.PROOFS` are required.
        any_of: one of them is enough.
        listed: digests that an OpenPGP-signed list gives for this payload.
        cleared: witness that nothing boots from the targets.
        targets: part name → where it goes.
        sources: part name → the same part of the booted slot; never written.
        checkpoint: where the resume record is kept; None for an attempt that cannot be resumed.
            Not used unless a digest was announced.
        observer: told of progress, on the event loop.
        workers: threads that decode and write.
        lacking: extra packages that this host needs and the offer has not; told together with
            every other shortfall.
        not_before: unix seconds; a payload whose ``max_timestamp`` is older is refused. One that
            has none is not: major 1 knows no such field.
        limits: see `formats.manifest.Limits`.
        clock: seconds, monotonic.
        budget: bytes in flight.
        interval: bytes of target between two checkpoints.

    Raises:
        PayloadError: damaged, not understood, or not proven (`TrustError`). The record is dropped.
        TransferError: the source gave up. The record is kept.
        StorageError: a device failed, is in use, or too small.
        asyncio.CancelledError: stopped; what was done is flushed and recorded.
    """
    if not require or not require <= PROOFS:
        raise TrustError(f"required proofs: {', '.join(sorted(require)) or 'none'}")
    if announced.sha256 is None:
        # Nothing tells this payload from another: its record could not be recognised.
        checkpoint = None
    attempt = _Installation(
        source=source,
        announced=announced,
        keys=keys,
        require=require,
        any_of=any_of,
        lacking=lacking,
        listed=listed,
        targets=targets,
        sources=sources,
        store=checkpoint,
        observer=observer,
        workers=workers,
        not_before=not_before,
        limits=limits,
        clock=clock,
        budget=budget,
        interval=interval,
    )
    return await attempt.run()


def resume_identity(
    announced: Announced, targets: Mapping[str, Region], sources: Mapping[str, Region]
) -> str:
    """The name under which a resume record of this payload and these slots is kept."""

    def facts(regions: Mapping[str, Region]) -> list[list[object]]:
        return [[n, str(r.path), r.offset, r.size, r.file] for n, r in sorted(regions.items())]

    return identity_of(
        {
            "size": announced.size,
            "sha256": announced.sha256.hex() if announced.sha256 else None,
            "targets": facts(targets),
            "sources": facts(sources),
        }
    )


@dataclass
class _Installation:
    source: ByteSource
    announced: Announced
    keys: Callable[[], Sequence[PublicKey]]
    require: frozenset[str]
    any_of: bool
    lacking: Sequence[str]
    listed: SignedDigests | None
    targets: Mapping[str, Region]
    sources: Mapping[str, Region]
    store: CheckpointStore | None
    observer: Callable[[Progress], None]
    workers: int
    not_before: int | None
    limits: Limits | None
    clock: Callable[[], float]
    budget: int
    interval: int

    def __post_init__(self) -> None:
        self._fetched = 0
        self._told = 0
        self._resumed = False
        self._metadata: Metadata | None = None
        self._manifest: Manifest | None = None
        self._record: Checkpoint | None = None
        self._parts: Parts | None = None
        self._lane: HashLane | None = None
        self._applier: Applier | None = None
        self._behind: ReadBehind | None = None
        self._names: frozenset[str] = frozenset()
        self._signed_sha256: bytes | None = None
        self._signatures = b""
        self._end: int | None = None

    async def run(self) -> Installed:
        try:
            return await self._run()
        except (DeviceOpenError, NotEnoughSpace, LedgerError):
            await self._stop(keep=True)
            raise
        except (PayloadError, StorageError) as error:
            # What is on the disk, or in the record, may be the reason: the next attempt is free.
            await self._stop(keep=False)
            first = self._applier.failure if self._applier is not None else None
            raise first or error from None
        except BaseException:
            await self._stop(keep=True)
            raise
        finally:
            await self._close()

    async def _run(self) -> Installed:
        parser = await self._resume()
        events: list[PayloadEvent] = []
        if parser is None:
            self._record = None
            parser = PayloadParser(
                limits=self.limits,
                size=self.announced.size,
                metadata_size=self.announced.metadata_size,
            )
        else:
            events = parser.feed(b"")
            await self._take(parser, events)
        if not parser.ended:
            async with contextlib.aclosing(self._chunks(parser.received)) as chunks:
                async for chunk in chunks:
                    await self._take(parser, parser.feed(chunk))
                    self._tell(parser.received)
            parser.finish()
        return await self._prove()

    async def _chunks(self, offset: int) -> AsyncGenerator[bytes, None]:
        async for chunk in self.source.stream(offset):
            self._fetched += len(chunk)
            yield chunk

    # ── events ───────────────────────────────────────────────────────────────────────────────

    async def _take(self, parser: PayloadParser, events: list[PayloadEvent]) -> None:
        pending = deque(events)
        while pending:
            event = pending.popleft()
            match event:
                case Metadata():
                    manifest = await self._accept(event)
                    pending.extend(parser.begin(manifest))
                case Blob(operation, data):
                    assert self._lane is not None and self._applier is not None
                    await self._lane.feed(data, self._names, operation.index + 1)
                    await self._applier.submit(operation, data)
                case SignatureBlob(data):
                    assert self._lane is not None
                    await self._lane.drain()
                    self._signed_sha256 = self._signed_digest()
                    self._signatures = data
                    await self._lane.feed(data, self._names & _WHOLE)
                case End(consumed):
                    self._end = consumed
        if self._applier is not None and self._lane is not None:
            self._lane.kick()
            self._applier.kick()

    async def _accept(self, metadata: Metadata) -> Manifest:
        """Prove what can be proven, parse, pre-flight, and open the devices."""
        self._check_metadata(metadata)
        manifest = await in_thread(lambda: metadata.parse(self.limits))
        self._check_manifest(manifest)
        self._metadata, self._manifest = metadata, manifest
        parts = self._parts = Parts(manifest, self.targets, self.sources)
        await in_thread(lambda: self._preflight(parts, metadata))
        await self._check_sources(parts)
        if self.store is not None:
            begin = self.store.begin
            identity = resume_identity(self.announced, self.targets, self.sources)
            self._record = await in_thread(
                lambda: begin(identity, metadata.raw, metadata.signature)
            )
        await in_thread(lambda: parts.open(resume=False))
        running = {name: digests.fresh(_kind(name)) for name in self._needed(manifest)}
        for name, digest in running.items():
            digest.update(metadata.raw)
            if name in _WHOLE:
                digest.update(metadata.signature)
        self._start(manifest, parts, running, first=0)
        self._tell(manifest.blobs_offset)
        return manifest

    def _start(
        self, manifest: Manifest, parts: Parts, running: Mapping[str, digests.Digest], first: int
    ) -> None:
        self._names = frozenset(running)
        lane = self._lane = HashLane(running, first=first, moved=self._moved)
        behind = self._behind = ReadBehind(manifest, self.targets)
        grounds: dict[str, Ground] = parts.grounds
        self._applier = Applier(
            manifest,
            grounds,
            first=first,
            workers=self.workers,
            clock=self.clock,
            lane=lane,
            record=self._save if self.store is not None else None,
            store=self.store,
            flushed=behind.advance,
            budget=self.budget,
            interval=self.interval,
        )

    def _moved(self) -> None:
        if self._applier is not None:
            self._applier.poke()

    # ── trust ────────────────────────────────────────────────────────────────────────────────

    def _check_metadata(self, metadata: Metadata) -> None:
        in_payload = metadata.signature
        announced = self.announced.metadata_signature or b""
        wanted = SIGNED_METADATA in self.require and not self.any_of
        if not (in_payload or announced):
            if wanted:
                raise MetadataSignatureMissing
            if self.require & {RSA, SIGNED_METADATA} and not self._only_openpgp():
                self._keys()
            return
        found = self.keys() if not self._only_openpgp() else self._keys_if_any()
        if found or not self._only_openpgp():
            check_metadata(metadata.raw, keys=found, in_payload=in_payload, announced=announced)

    def _only_openpgp(self) -> bool:
        """Whether OpenPGP may be the only proof, so that keys may be missing."""
        return self.require == {OPENPGP} or (self.any_of and OPENPGP in self.require)

    def _keys(self) -> Sequence[PublicKey]:
        found = self.keys()
        if not found:
            raise NoKeys
        return found

    def _keys_if_any(self) -> Sequence[PublicKey]:
        try:
            return self.keys()
        except NoKeys:
            return ()

    def _check_manifest(self, manifest: Manifest) -> None:
        """Refuse at once what would be refused in the end."""
        if self.announced.size is not None and manifest.size != self.announced.size:
            raise PayloadSizeMismatch(
                f"the manifest adds up to {manifest.size} bytes, "
                f"{self.announced.size} were announced"
            )
        if RSA in self.require and not self.any_of and manifest.signatures_offset is None:
            raise SignatureMissing
        stamp = manifest.max_timestamp
        # A partial update is judged by each part's own version (reference payload_v2.md 1.8).
        if manifest.partial or self.not_before is None or stamp is None:
            return
        if stamp < self.not_before:
            raise TimestampTooOld(f"built at {stamp}, the running release at {self.not_before}")

    def _needed(self, manifest: Manifest) -> list[str]:
        """Digests that must be carried along from the first byte to the last."""
        names = [FILE] if manifest.major == 1 else [SIGNED]
        if manifest.major == 2 and (self.announced.sha256 is not None or self.listed is not None):
            names.append(FILE)
        if self.listed is not None and "sha256" not in self.listed.digests:
            names.append(FILE_SHA512)
        return names

    def _signed_digest(self) -> bytes | None:
        """Of what the payload signature covers. In major 1 that is everything before it."""
        assert self._lane is not None and self._manifest is not None
        running = self._lane.digests.get(FILE if self._manifest.major == 1 else SIGNED)
        return running.digest() if running is not None else None

    def _listed_sha256(self, file_sha256: bytes | None) -> frozenset[bytes] | None:
        """What the OpenPGP list says, in SHA-256: its own, or ours if its SHA-512 fits."""
        assert self._lane is not None
        if self.listed is None:
            return None
        if "sha256" in self.listed.digests:
            return frozenset({self.listed.digests["sha256"]})
        found = self._lane.digests[FILE_SHA512].digest()
        if file_sha256 is None or found != self.listed.digests.get("sha512"):
            return frozenset()
        return frozenset({file_sha256})

    async def _prove(self) -> Installed:
        """Everything is here: finish the slot, then the original's order of proofs (1.6)."""
        assert self._manifest is not None and self._metadata is not None
        assert self._lane is not None and self._applier is not None and self._parts is not None
        assert self._behind is not None
        await self._lane.drain()
        await self._applier.complete()
        carried = await in_thread(self._parts.carry_over)
        if self.announced.size is not None and self._end != self.announced.size:
            raise PayloadSizeMismatch(f"{self._end} bytes, {self.announced.size} were announced")
        whole = self._lane.digests.get(FILE)
        file_sha256 = whole.digest() if whole is not None else None
        if self.announced.sha256 is not None and file_sha256 != self.announced.sha256:
            raise PayloadHashMismatch(
                f"{file_sha256.hex() if file_sha256 else 'unknown'}, "
                f"{self.announced.sha256.hex()} was announced"
            )
        evidence = Evidence(
            metadata_signatures=self._metadata.signature,
            announced_metadata_signature=self.announced.metadata_signature or b"",
            payload_signatures=self._signatures,
            signed_sha256=self._signed_sha256,
            file_sha256=file_sha256,
            listed_sha256=self._listed_sha256(file_sha256),
        )
        found = self._keys_if_any() if self._only_openpgp() else self.keys()
        signed = check(
            self._manifest, evidence, keys=found, require=self.require, any_of=self.any_of
        )
        await in_thread(self._parts.commit)
        begun = await self._behind.stop()
        return Installed(signed, self._stats(), self._resumed, carried, begun)

    def _preflight(self, parts: Parts, metadata: Metadata) -> None:
        parts.preflight(
            state=self.store.folder if self.store is not None else None,
            metadata=len(metadata.raw) + len(metadata.signature),
            packages=self.lacking,
        )

    # ── sources ──────────────────────────────────────────────────────────────────────────────

    async def _check_sources(self, parts: Parts) -> None:
        """The booted slot is what the delta starts from; known before the first blob is fetched."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        done = 0

        def moved(size: int) -> None:
            nonlocal done
            done += size
            self.observer(Progress("source", done, parts.source_bytes))

        def tell(size: int) -> None:
            loop.call_soon_threadsafe(moved, size)

        await in_thread(lambda: parts.check_sources(tell, stop, self.workers), stop)

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────

    def _save(self, prefix: int) -> None:
        """Called in the applier's sync thread, after the flush."""
        if self.store is None or self._record is None or self._lane is None:
            return
        self._record = replace(
            self._record, next_operation=prefix, digests=self._lane.states(prefix), resumes=0
        )
        self.store.save(self._record)

    async def _resume(self) -> PayloadParser | None:
        """Take up an earlier attempt; None to start at the first byte."""
        if self.store is None:
            return None
        store = self.store
        identity = resume_identity(self.announced, self.targets, self.sources)
        record = await in_thread(lambda: store.load(identity))
        if record is None or record.next_operation == 0:
            return None
        parser = PayloadParser(
            limits=self.limits,
            size=self.announced.size,
            metadata_size=self.announced.metadata_size,
        )
        events = parser.feed(record.metadata + record.metadata_signature)
        if len(events) != 1 or not isinstance(events[0], Metadata):
            return None
        metadata = events[0]
        self._check_metadata(metadata)
        manifest = await in_thread(lambda: metadata.parse(self.limits))
        self._check_manifest(manifest)
        first = record.next_operation
        if first > len(manifest.operations):
            return None
        running: dict[str, digests.Digest] = {}
        for name in self._needed(manifest):
            taken = digests.resume(record.digests.get(name), _kind(name))
            if taken is None:
                # Never skip a check: without the hash of the beginning there is no resuming.
                return None
            running[name] = taken
        parts = Parts(manifest, self.targets, self.sources)
        await in_thread(lambda: self._preflight(parts, metadata))
        await self._check_sources(parts)
        self._parts = parts
        if not await in_thread(lambda: parts.open(resume=True, done=first)):
            parts.abandon()
            self._parts = None
            return None
        self._record = await in_thread(lambda: store.count_resume(record))
        self._metadata, self._manifest = metadata, manifest
        self._resumed = True
        self._start(manifest, parts, running, first)
        return PayloadParser.resume(manifest, first, size=self.announced.size, limits=self.limits)

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    async def _stop(self, *, keep: bool) -> None:
        keep = keep and self.store is not None
        if self._applier is not None and self._lane is not None:
            # What has been fetched is not fetched again, and the first fault is found.
            await self._applier.settle(finish=True)
            if keep:
                with contextlib.suppress(BasculeError):
                    await self._lane.drain()
                    await self._applier.checkpoint()
            await self._applier.settle()
        if keep:
            return
        if self._parts is not None:
            self._parts.abandon()
        with contextlib.suppress(BasculeError):
            if self.store is not None:
                await in_thread(self.store.clear)

    async def _close(self) -> None:
        """Last in, first out; a second cancellation keeps none of them from being closed."""
        async with contextlib.AsyncExitStack() as stack:
            if self._parts is not None:
                stack.callback(self._parts.close)
            if self._lane is not None:
                stack.callback(self._lane.close)
            if self._behind is not None:
                stack.push_async_callback(self._behind.stop)
            if self._applier is not None:
                stack.callback(self._applier.close)
                stack.push_async_callback(self._applier.settle)

    def _stats(self) -> Stats:
        assert self._applier is not None and self._lane is not None and self._parts is not None
        return Stats(
            fetched=self._fetched,
            written=self._applier.written + self._parts.written,
            skipped=self._applier.skipped + self._parts.skipped,
            flushes=self._parts.flushes,
            checkpoints=self._applier.checkpoints,
            peak=self._applier.peak + self._lane.peak,
        )

    def _tell(self, received: int) -> None:
        total = self.announced.size or (self._manifest.size if self._manifest else 0)
        if self._applier is None or (received - self._told < _TELL_BYTES and received != total):
            return
        self._told = received
        self.observer(
            Progress("download", received, total, self._applier.written, self._applier.skipped)
        )


def _kind(name: str) -> str:
    return "sha512" if name == FILE_SHA512 else "sha256"
