"""Carries operations out in parallel, and keeps the checkpoint one step behind the disk.

Operations are handed to worker threads in payload order as soon as their conditions hold
(`engine.order`). What is complete without a gap from the start is the prefix; a checkpoint flushes
the devices first and then records the prefix as it was before the flush.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from bascule.engine.aligned import PIECE
from bascule.engine.carry import Ground, Outcome, carry_out, keep
from bascule.engine.checkpoint import CheckpointStore
from bascule.engine.order import Order, Step
from bascule.engine.thread import finished
from bascule.errors import Stopped
from bascule.formats.manifest import Extent, Manifest, Operation

BUDGET = 8 << 20
"""Bytes of blobs and decoded pieces in flight; one larger operation may be in flight alone."""

INTERVAL = 64 << 20
"""Bytes of target between two checkpoints."""

PATIENCE = 5.0
"""Seconds after which a checkpoint is due however little was done."""

_RUN = 128
"""Bytes that one run of source blocks takes in memory; a hostile delta has very many."""

_BATCH_COST = 1 << 20
_BATCH_COUNT = 64

_TURN = 256
"""Operations that need no work between two turns of the event loop."""


class Lane(Protocol):
    """What the applier needs of `engine.lane.HashLane`."""

    marked: int

    def kick(self) -> None:
        """Hash what is there."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    step: Step
    blob: bytes
    cost: int


class Applier:
    """Applies the operations of one manifest.

    Attributes:
        prefix: every operation below this index is carried out.
        durable: every operation below this index is in a durable record.
        written, skipped: bytes of target that differed, and that were there already.
        checkpoints: records made.
        peak: most bytes that were in flight at once.
        failure: the error of the first operation that failed.
    """

    def __init__(
        self,
        manifest: Manifest,
        grounds: Mapping[str, Ground],
        *,
        first: int,
        workers: int,
        clock: Callable[[], float],
        lane: Lane,
        record: Callable[[int], None] | None,
        store: CheckpointStore | None,
        flushed: Callable[[int], None] = lambda _: None,
        budget: int = BUDGET,
        interval: int = INTERVAL,
    ) -> None:
        """
        Args:
            grounds: part name → devices; operations of other parts are stepped over.
            first: index of the first operation to carry out; all before it are on the medium.
            workers: threads.
            clock: seconds, monotonic.
            lane: hashes the payload; a checkpoint never passes what it has marked.
            record: makes a durable record of a prefix (called in a thread, after the flush), or
                None for an installation that cannot be resumed.
            store: where a journal goes.
            flushed: told on the loop of a prefix that is on the medium, while more is to come.
            budget, interval: bytes, see `BUDGET` and `INTERVAL`.
        """
        self.prefix = self.durable = first
        self.written = self.skipped = self.checkpoints = self.peak = 0
        self._manifest = manifest
        self._operations = manifest.operations
        self._grounds = grounds
        self._clock = clock
        self._lane = lane
        self._record = record
        self._store = store
        self._flushed = flushed
        self._budget = budget
        self._interval = interval
        self._order = Order(manifest)
        for operation in self._operations[:first]:
            self._order.step(operation)
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "bascule-apply")
        self._sync_thread = ThreadPoolExecutor(1, "bascule-sync")
        self._stop = threading.Event()
        self._changed = asyncio.Event()
        self.failure: BaseException | None = None
        self._failed = 0
        self._batch: list[_Job] = []
        self._batched: set[int] = set()
        self._in_flight = 0
        self._done: set[int] = set()
        self._running: set[asyncio.Future[list[Outcome]]] = set()
        self._sync_lock = asyncio.Lock()
        self._sync_task: asyncio.Task[None] | None = None
        self._since = 0
        self._last = clock()

    def poke(self) -> None:
        """Something that conditions depend on has moved."""
        self._changed.set()
        self._maybe_checkpoint()

    async def submit(self, operation: Operation, blob: bytes) -> None:
        """Hand over the next operation; waits while too much is in flight.

        Raises:
            BasculeError: an operation handed over earlier has failed.
        """
        step = self._order.step(operation)
        ground = self._grounds.get(operation.part)
        # No other operation writes these blocks: manifests where two do are refused (manifest_v2).
        there = ground is not None and operation.index in ground.checked.there
        if ground is None or there:
            self.skipped += _room(operation, self._manifest) if there else 0
            self._finish(operation.index)
            # As patient as the others: a record keeps up, a failure is heard of, the loop goes round.
            await self._until(lambda: self._sync_task is None or self._since < self._interval)
            if operation.index % _TURN == 0:
                await asyncio.sleep(0)
            return
        room = min(_room(operation, self._manifest), PIECE)
        job = _Job(step, blob, len(blob) + room + _RUN * len(step.source))
        if step.keeps:
            await self._alone(job)
            return
        waits = {i for i in step.after if not self._is_done(i)}
        full = self._in_flight > 0 and self._in_flight + job.cost > self._budget
        if full or step.barrier > self.durable or waits - self._batched:
            # Once the batch is on its way, what it holds can no longer be relied on by order.
            self.kick()
            await self._until(lambda: all(self._is_done(i) for i in waits))
            await self._reach(step.barrier)
            await self._until(
                lambda: not self._in_flight or self._in_flight + job.cost <= self._budget
            )
        # Nor may the disk run away from a record that is slow to make: a kill would lose all of it.
        await self._until(lambda: self._sync_task is None or self._since < self._interval)
        self._take(job)
        if (
            sum(each.cost for each in self._batch) >= _BATCH_COST
            or len(self._batch) >= _BATCH_COUNT
        ):
            self.kick()

    def kick(self) -> None:
        """Start what has been gathered: small operations go to a worker several at a time."""
        if self._batch:
            batch, self._batch, self._batched = self._batch, [], set()
            first = batch[0].step.operation.index
            self._start(lambda: self._work(batch), first, sum(job.cost for job in batch))

    async def complete(self) -> None:
        """Wait for all operations, copy what no operation writes, flush and record.

        Raises:
            BasculeError: something failed.
        """
        self.kick()
        await self._until(lambda: self.prefix == len(self._operations))
        for part in self._manifest.parts:
            ground = self._grounds.get(part.name)
            if part.in_place and ground is not None:
                for extent in self._order.untouched(part, self._manifest.block_size):
                    await self._fill(ground, extent)
        await self._until(lambda: not self._running)
        await self.checkpoint()

    async def checkpoint(self) -> None:
        """Flush the devices and record the prefix.

        Raises:
            StorageError: a flush failed; nothing was recorded.
        """
        async with self._sync_lock:
            prefix = min(self.prefix, self._lane.marked)
            self._since, self._last = 0, self._clock()
            loop = asyncio.get_running_loop()
            await finished(loop.run_in_executor(self._sync_thread, self._sync, prefix))
            self.durable = prefix
            self._changed.set()

    async def settle(self, *, finish: bool = False) -> None:
        """Wait until no thread touches a device any more. Never cancelled half-way.

        Args:
            finish: let what was handed over come to its end, instead of dropping it.
        """
        if finish:
            self.kick()
        else:
            self._stop.set()
            self._batch.clear()
        cancelled = False
        while self._running or self._sync_task is not None:
            waits: set[asyncio.Future[object]] = {*self._running}  # type: ignore[arg-type]
            if self._sync_task is not None:
                waits.add(self._sync_task)  # type: ignore[arg-type]
            try:
                await asyncio.wait(waits)
            except asyncio.CancelledError:
                cancelled = True
            await asyncio.sleep(0)
        if cancelled:
            raise asyncio.CancelledError

    def close(self) -> None:
        """End the threads. Call `settle` before."""
        self._pool.shutdown(wait=True)
        self._sync_thread.shutdown(wait=True)

    # ── conditions ───────────────────────────────────────────────────────────────────────────

    def _is_done(self, index: int) -> bool:
        return index < self.prefix or index in self._done

    async def _until(self, ready: Callable[[], bool]) -> None:
        while True:
            if self.failure is not None:
                raise self.failure
            if ready():
                return
            self._changed.clear()
            await self._changed.wait()

    async def _reach(self, barrier: int) -> None:
        """Wait until every operation below `barrier` is durable, or done if nothing is recorded."""
        if self._record is None:
            await self._until(lambda: self.prefix >= barrier)
            return
        while self.durable < barrier:
            self._lane.kick()
            await self._until(lambda: min(self.prefix, self._lane.marked) >= barrier)
            await self.checkpoint()

    async def _alone(self, job: _Job) -> None:
        """An operation that overwrites its own source: between two checkpoints, with a journal."""
        index = job.step.operation.index
        self.kick()
        await self._until(lambda: self.prefix == index)
        await self._reach(index)
        self._take(job)
        self.kick()
        await self._until(lambda: self.prefix > index)
        await self._reach(index + 1)
        if self._store is not None:
            self._store.drop_journal()

    # ── work ─────────────────────────────────────────────────────────────────────────────────

    def _take(self, job: _Job) -> None:
        self._batch.append(job)
        self._batched.add(job.step.operation.index)
        self._in_flight += job.cost
        self.peak = max(self.peak, self._in_flight)

    def _start(self, work: Callable[[], list[Outcome]], first: int, cost: int) -> None:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._pool, work)
        self._running.add(running)
        running.add_done_callback(lambda done: self._ended(done, first, cost))

    def _work(self, batch: list[_Job]) -> list[Outcome]:
        outcomes = []
        for job in batch:
            if self._stop.is_set():
                raise Stopped
            ground = self._grounds[job.step.operation.part]
            outcomes.append(carry_out(job.step, job.blob, ground, self._store))
        return outcomes

    def _ended(self, done: asyncio.Future[list[Outcome]], first: int, cost: int) -> None:
        self._running.discard(done)
        self._in_flight -= cost
        error = done.exception()
        if error is None:
            for outcome in done.result():
                self.written += outcome.written
                self.skipped += outcome.skipped
                if outcome.index >= 0:
                    self._finish(outcome.index)
        elif not isinstance(error, Stopped):
            self._fail(first, error)
        self._changed.set()

    def _fail(self, first: int, error: BaseException) -> None:
        """Of several failures the payload's first one counts, whichever thread met its own first."""
        if self.failure is None or first < self._failed:
            self.failure, self._failed = error, first

    def _finish(self, index: int) -> None:
        self._done.add(index)
        while self.prefix in self._done:
            self._done.remove(self.prefix)
            self._since += _room(self._operations[self.prefix], self._manifest)
            self.prefix += 1
        self._maybe_checkpoint()

    async def _fill(self, ground: Ground, extent: Extent) -> None:
        block = ground.block
        per = max(1, PIECE // block)
        for start in range(extent.start, extent.start + extent.blocks, per):
            blocks = min(per, extent.start + extent.blocks - start)
            await self._until(lambda: len(self._running) < 2 * self._workers)
            copy = functools.partial(_copy, ground, start, blocks)
            self._start(copy, len(self._operations), 0)

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────

    def _maybe_checkpoint(self) -> None:
        if self._record is None or self._sync_task is not None or self._stop.is_set():
            return
        if self._since < self._interval and self._clock() - self._last < PATIENCE:
            return
        if self._lane.marked < self.prefix:
            # A delta writes much of the slot from few bytes, which wait to become more.
            self._lane.kick()
        if min(self.prefix, self._lane.marked) <= self.durable:
            return
        self._sync_task = asyncio.ensure_future(self.checkpoint())
        self._sync_task.add_done_callback(self._synced)

    def _synced(self, task: asyncio.Task[None]) -> None:
        self._sync_task = None
        self._changed.set()
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._fail(len(self._operations), error)
        else:
            self._flushed(self.durable)

    def _sync(self, prefix: int) -> None:
        for ground in self._grounds.values():
            if ground.target.dirty:
                ground.target.flush()
        # A record that says nothing new would hide that a resume got no further.
        if self._record is not None and prefix > self.durable:
            self._record(prefix)
            self.checkpoints += 1


def _copy(ground: Ground, start: int, blocks: int) -> list[Outcome]:
    written, skipped = keep(ground, start, blocks)
    return [Outcome(-1, written, skipped)]


def _room(operation: Operation, manifest: Manifest) -> int:
    return sum(extent.blocks for extent in operation.target) * manifest.block_size


__all__ = ["BUDGET", "INTERVAL", "PATIENCE", "Applier"]
