"""Carries out one operation: hashes first, then source, decoding and the target's blocks."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bascule.engine.aligned import PIECE, mine
from bascule.engine.checkpoint import CheckpointStore, Journal
from bascule.engine.decode import Source, produce
from bascule.engine.device import Device
from bascule.engine.order import Run, Step
from bascule.errors import (
    OperationFailed,
    OperationHashMismatch,
    OperationHashMissing,
    SourceMismatch,
    StorageError,
)
from bascule.formats.manifest import HOLE, Extent, Operation

_HELD = 4 << 20
"""Bytes of source that are kept between hashing and use; longer ones are read twice."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one operation did to the target.

    Attributes:
        index: the operation's.
        written: bytes that differed.
        skipped: bytes that were there already.
    """

    index: int
    written: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of one part before it is applied (`engine.sources`).

    Attributes:
        proven: whatever operations read of the booted slot, those in `there` aside, is right.
        there: indices of operations whose targets hold already what they would write.
    """

    proven: bool = False
    there: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the operations of one part read and write.

    Attributes:
        target: the part in the cleared slot.
        source: the part in the booted slot, if the payload is a delta.
        block: bytes.
        checked: what is known of it.
    """

    target: Device
    source: Device | None
    block: int
    checked: Checked = Checked()


def check_blob(operation: Operation, blob: bytes) -> None:
    """Compare a blob with its hash.

    Raises:
        OperationHashMissing, OperationHashMismatch: error numbers 38 and 29.
    """
    if not operation.data_length:
        return
    if operation.data_sha256 is None:
        raise OperationHashMissing(f"operation {operation.index} of {operation.part}")
    if hashlib.sha256(blob).digest() != operation.data_sha256:
        raise OperationHashMismatch(
            f"operation {operation.index} ({operation.type.name}) of {operation.part}",
            operation=operation.index,
        )


def carry_out(
    step: Step, blob: bytes, ground: Ground, store: CheckpointStore | None = None
) -> Outcome:
    """Check, decode and write one operation whose conditions hold.

    Args:
        store: where the journal of an operation that overwrites its own source is kept; without
            one it goes to an unnamed temporary file, and a crash cannot be resumed from.

    Raises:
        PayloadError: the operation's data or source are not what the manifest says.
        StorageError: a device failed.
    """
    operation = step.operation
    check_blob(operation, blob)
    with contextlib.ExitStack() as stack:
        journal = None
        if step.keeps:
            journal = _keep(step, ground, store)
            stack.callback(journal.close)
        runs = Runs(step, ground.block, ground.target, ground.source, journal)
        # Once is enough: that it did not change since is what the read-back shows.
        source = runs if ground.checked.proven else _checked(operation, runs)
        writer = Writer(operation, ground)
        for piece in _produced(operation, blob, source, ground.block, into=mine().ours):
            writer.push(piece)
        writer.finish()
        if step.bare:
            writer.restore(step.bare)
    return Outcome(operation.index, writer.written, writer.skipped)


def decoded(step: Step, blob: bytes, block: int, source: Device | None) -> Iterator[bytes]:
    """What an operation that reads nothing from the target would write, checked likewise."""
    check_blob(step.operation, blob)
    runs = _checked(step.operation, Runs(step, block, None, source, None))
    return (bytes(piece) for piece in _produced(step.operation, blob, runs, block))


def check_source_of(
    operation: Operation, source: Device, block: int, stop: threading.Event | None = None
) -> None:
    """Compare what an operation of major 2 will read with the hash that it gives.

    Args:
        stop: ends it early with `Stopped`.

    Raises:
        SourceMismatch: it differs.
        StorageError: it cannot be read.
    """
    ends = max((e.start + e.blocks for e in operation.source if not e.hole), default=0) * block
    if ends > source.size or any(e.hole for e in operation.source):
        read = tuple(Run(e.start, e.blocks, written=False) for e in operation.source)
        step = Step(operation, read, frozenset(), 0, keeps=False, bare=frozenset())
        _checked(operation, Runs(step, block, None, source, None))
        return
    if source.sha256(spans(operation.source, block), stop) != operation.source_sha256:
        raise _mismatch(operation)


def spans(extents: Iterable[Extent], block: int) -> list[tuple[int, int]]:
    """Offset and length of each extent, in bytes; none of them a hole."""
    return [(extent.start * block, extent.blocks * block) for extent in extents]


def _produced(
    operation: Operation,
    blob: bytes,
    source: Source,
    block: int,
    into: memoryview | None = None,
) -> Iterator[bytes | memoryview]:
    room = sum(extent.blocks for extent in operation.target) * block
    return produce(operation, blob, source, room, into=into)


class Runs:
    """The source of one operation as one stretch of bytes."""

    def __init__(
        self,
        step: Step,
        block: int,
        target: Device | None,
        source: Device | None,
        journal: Journal | None,
    ) -> None:
        self._block = block
        self._target = target
        self._source = source
        self._journal = journal
        self._runs = step.source
        self._starts: list[int] = []
        self._kept: list[int] = []
        at = kept = 0
        for run in step.source:
            self._starts.append(at)
            self._kept.append(kept)
            at += run.blocks * block
            kept += run.blocks * block if run.written else 0
        self.length = min(at, step.operation.source_length)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        pieces: list[bytes] = []
        number = bisect.bisect_right(self._starts, offset) - 1
        while length > 0:
            run = self._runs[number]
            inside = offset - self._starts[number]
            piece = min(length, run.blocks * self._block - inside)
            pieces.append(self._read(number, run, inside, piece))
            offset += piece
            length -= piece
            number += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, number: int, run: Run, inside: int, length: int) -> bytes:
        if run.start == HOLE:
            return bytes(length)
        if run.written and self._journal is not None:
            return self._journal.read(self._kept[number] + inside, length)
        device = self._target if run.written else self._source
        if device is None:
            raise SourceMismatch("the payload reads an old part and there is none")
        return device.read(run.start * self._block + inside, length, pad=True)

    def kept(self) -> Iterator[bytes]:
        """The bytes that lie in the target, in pieces: what a journal must hold."""
        for number, run in enumerate(self._runs):
            if run.written:
                size = run.blocks * self._block
                for start in range(0, size, PIECE):
                    yield self._read(number, run, start, min(PIECE, size - start))


class _Held:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def _checked(operation: Operation, source: Runs) -> Runs | _Held:
    """The source, compared with its hash if the manifest has one, before anything is written."""
    if operation.source_sha256 is None:
        return source
    held = source.read(0, source.length) if 0 < source.length <= _HELD else None
    digest = hashlib.sha256(held or b"")
    if held is None:
        for start in range(0, source.length, PIECE):
            digest.update(source.read(start, min(PIECE, source.length - start)))
    if digest.digest() != operation.source_sha256:
        raise _mismatch(operation)
    return source if held is None else _Held(held)


def _mismatch(operation: Operation) -> SourceMismatch:
    return SourceMismatch(
        f"operation {operation.index} ({operation.type.name}) of {operation.part}",
        operation=operation.index,
    )


def _keep(step: Step, ground: Ground, store: CheckpointStore | None) -> Journal:
    runs = Runs(step, ground.block, ground.target, ground.source, None)
    length = sum(run.blocks for run in step.source if run.written) * ground.block
    if store is None:
        try:
            fd, name = tempfile.mkstemp(prefix="bascule-")
            os.unlink(name)  # noqa: PTH108
            return Journal.fill(fd, runs.kept(), length)
        except OSError as error:
            raise StorageError(f"no temporary file: {error.strerror}") from error
    index = step.operation.index
    journal = store.open_journal(index)
    if journal is None:
        store.write_journal(index, runs.kept(), length)
        journal = store.open_journal(index)
    if journal is None or journal.length != length:
        raise StorageError(f"the journal of operation {index} does not read back")
    return journal


def fitted(ground: Ground, offset: int, data: bytes | memoryview, what: str) -> tuple[int, int]:
    """Write whole blocks; zeros that only fill a short target's last block are left out.

    Args:
        what: who writes, for the error.

    Returns:
        Bytes written, and bytes that were there already.

    Raises:
        OperationFailed: anything but such zeros lies past the target's end.
        StorageError: the device fails.
    """
    over = offset + len(data) - ground.target.size
    if over > 0:
        # Zeros that fill the last block of a file are padding, whoever added them.
        if over >= ground.block or any(data[-over:]):
            raise OperationFailed(f"{what} writes past the end ({ground.target.size} bytes)")
        data = data[:-over]
    return ground.target.update(offset, data, ground.block)


def keep(ground: Ground, start: int, blocks: int) -> tuple[int, int]:
    """Copy blocks from the booted slot, as far as the target reaches; as `fitted`.

    Raises:
        StorageError: a device fails, or there is no booted part.
    """
    if ground.source is None:
        raise StorageError("blocks that no operation writes, and no booted part to take them from")
    at = start * ground.block
    length = min(blocks * ground.block, ground.target.size - at)
    if length <= 0:
        return 0, 0
    return ground.target.update(at, ground.source.read(at, length, pad=True), ground.block)


class Writer:
    """Lays a stream of bytes over target extents, block by block.

    Attributes:
        written, skipped: bytes.
    """

    def __init__(self, operation: Operation, ground: Ground) -> None:
        self.written = 0
        self.skipped = 0
        self._what = f"operation {operation.index} of {operation.part}"
        self._ground = ground
        self._extents: list[Extent] = list(operation.target)
        self._number = 0
        self._inside = 0
        self._rest = b""

    def push(self, piece: bytes | memoryview) -> None:
        """The next bytes."""
        if self._rest:
            piece = self._rest + piece
        whole = len(piece) - len(piece) % self._ground.block
        # Kept before anything is written: the piece may lie in the memory that is written from.
        self._rest = bytes(piece[whole:])
        self._lay(memoryview(piece)[:whole])

    def finish(self) -> None:
        """No more bytes: the last one's block is filled with zeros."""
        rest, self._rest = self._rest, b""
        if rest:
            self._lay(memoryview(rest.ljust(self._ground.block, b"\0")))

    def restore(self, bare: frozenset[int]) -> None:
        """Blocks of the extents that got no bytes keep what the booted slot has there.

        Args:
            bare: those of them that nothing has written before.
        """
        block, source = self._ground.block, self._ground.source
        ends = source.size if source is not None else 0
        while self._number < len(self._extents):
            extent = self._extents[self._number]
            if not extent.hole:
                for at in range(extent.start + self._inside, extent.start + extent.blocks):
                    if at in bare and source is not None and at * block < ends:
                        self._count(keep(self._ground, at, 1))
            self._number += 1
            self._inside = 0

    def _lay(self, view: memoryview) -> None:
        block = self._ground.block
        while view:
            if self._number >= len(self._extents):
                raise OperationFailed(f"{self._what} has more data than extents")
            extent = self._extents[self._number]
            length = min(len(view), (extent.blocks - self._inside) * block)
            if not extent.hole:
                offset = (extent.start + self._inside) * block
                self._count(fitted(self._ground, offset, view[:length], self._what))
            view = view[length:]
            self._inside += length // block
            if self._inside == extent.blocks:
                self._number += 1
                self._inside = 0

    def _count(self, result: tuple[int, int]) -> None:
        self.written += result[0]
        self.skipped += result[1]
