"""Computes what a payload would make of a part, without a target to write to.

Where every block has one writer and nothing is read from the target, the image is put together in
the order of its blocks and only hashed. Other parts (major 1 deltas with temporary blocks) are
carried out in an unnamed temporary file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from bascule.engine.aligned import PIECE
from bascule.engine.carry import Ground, carry_out, decoded
from bascule.engine.device import Device, open_source, open_target
from bascule.engine.order import Order, Step
from bascule.engine.region import Region
from bascule.errors import SlotMismatch, SourceMismatch, StorageError
from bascule.formats.manifest import Extent, Manifest, Operation, Part

_AHEAD = 8 << 20
"""Bytes of output up to which an operation is decoded ahead, in a thread."""

Read = Callable[[Operation], bytes]
"""Reads an operation's blob."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of the new image: `step` is None for blocks of the booted slot that stay."""

    start: int
    blocks: int
    step: Step | None
    at: int


def rehearse(
    manifest: Manifest,
    part: Part,
    read: Read,
    *,
    source: Region | None,
    workers: int = 2,
    moved: Callable[[int], None] = lambda _: None,
) -> bytes:
    """SHA-256 of what the part becomes. Blocking.

    Args:
        read: reads a blob of the payload.
        source: the old part, for a delta.
        workers: threads that decode.
        moved: told how many more bytes of the image are done.

    Raises:
        PayloadError: as when applying it. SourceMismatch: a delta without its source.
        StorageError: the source or the temporary file fails.
    """
    assert part.new is not None
    order = Order(manifest)
    steps = [s for s in map(order.step, manifest.operations) if s.operation.part == part.name]
    rest = list(order.untouched(part, manifest.block_size))
    if source is None and (rest or any(step.operation.source for step in steps)):
        raise SourceMismatch(f"{part.name} cannot be made without the old {part.name}")
    old = open_source(source) if source is not None else None
    try:
        simple = not any(
            step.after or step.bare or any(run.written for run in step.source) for step in steps
        )
        if not simple:
            return _in_a_file(manifest, part, steps, rest, read, old, moved)
        pieces = list(_pieces(steps))
        pieces += [_Piece(e.start, e.blocks, None, 0) for e in rest]
        pieces.sort(key=lambda piece: piece.start)
        with _Rehearsal(manifest.block_size, read, old, workers) as stage:
            return stage.hash(pieces, part.new.size, moved)
    finally:
        if old is not None:
            old.close()


def _pieces(steps: list[Step]) -> Iterator[_Piece]:
    for step in steps:
        at = 0
        for extent in step.operation.target:
            if not extent.hole:
                yield _Piece(extent.start, extent.blocks, step, at)
            at += extent.blocks


class _Rehearsal:
    """Decodes operations as the image's blocks come to need them."""

    def __init__(self, block: int, read: Read, old: Device | None, workers: int) -> None:
        self._block = block
        self._read = read
        self._old = old
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "bascule-rehearse")
        self._spool: BinaryIO | None = None
        self._places: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> _Rehearsal:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._spool is not None:
            self._spool.close()

    def hash(self, pieces: list[_Piece], size: int, moved: Callable[[int], None]) -> bytes:
        digest, done = hashlib.sha256(), 0
        for piece, ready in self._ahead(pieces):
            if done >= size:
                break
            if piece.start * self._block != done:
                raise SlotMismatch(f"nothing makes the bytes from {done} on")
            left = piece.blocks * self._block
            for data in [ready.result()] if ready is not None else self._bytes(piece):
                data = data[: min(left, size - done)]
                digest.update(data)
                done += len(data)
                left -= len(data)
                moved(len(data))
            # The last operation of a full payload may claim more blocks than it has data for.
            padding = min(-done % self._block, size - done)
            digest.update(bytes(padding))
            done += padding
        if done != size:
            raise SlotMismatch(f"the operations make {done} of {size} bytes")
        return digest.digest()

    def _ahead(self, pieces: list[_Piece]) -> Iterator[tuple[_Piece, Future[bytes] | None]]:
        """Pieces in order, small whole operations with their bytes already under way."""
        window: deque[tuple[_Piece, Future[bytes] | None]] = deque()
        for piece in pieces:
            ready = None
            if piece.step is not None and self._whole(piece):
                ready = self._pool.submit(self._all, piece.step)
            window.append((piece, ready))
            if len(window) > 2 * self._workers:
                yield window.popleft()
        yield from window

    def _whole(self, piece: _Piece) -> bool:
        assert piece.step is not None
        size = piece.blocks * self._block
        return len(piece.step.operation.target) == 1 and size <= _AHEAD

    def _all(self, step: Step) -> bytes:
        return b"".join(self._decode(step))

    def _decode(self, step: Step) -> Iterator[bytes]:
        blob = self._read(step.operation)
        return decoded(step, blob, self._block, self._old)

    def _bytes(self, piece: _Piece) -> Iterator[bytes]:
        size = piece.blocks * self._block
        if piece.step is None:
            assert self._old is not None
            for start in range(0, size, PIECE):
                at = piece.start * self._block + start
                yield self._old.read(at, min(PIECE, size - start), pad=True)
        elif len(piece.step.operation.target) == 1:
            yield from self._decode(piece.step)
        else:
            yield from self._spooled(piece, size)

    def _spooled(self, piece: _Piece, size: int) -> Iterator[bytes]:
        """Operations in several runs are decoded once, into an unnamed file."""
        assert piece.step is not None
        index = piece.step.operation.index
        try:
            if self._spool is None:
                self._spool = cast(BinaryIO, tempfile.TemporaryFile(prefix="bascule-"))  # noqa: SIM115
            spool = self._spool
            if index not in self._places:
                start = spool.seek(0, 2)
                for data in self._decode(piece.step):
                    spool.write(data)
                self._places[index] = (start, spool.tell())
            start, end = self._places[index]
            at = start + piece.at * self._block
            end = min(end, at + size)
            while at < end:
                spool.seek(at)
                data = spool.read(min(PIECE, end - at))
                at += len(data)
                yield data
        except OSError as error:
            raise StorageError(f"a temporary file: {error.strerror}") from error


def _in_a_file(
    manifest: Manifest,
    part: Part,
    steps: list[Step],
    rest: list[Extent],
    read: Read,
    old: Device | None,
    moved: Callable[[int], None],
) -> bytes:
    assert part.new is not None
    block = manifest.block_size
    with tempfile.NamedTemporaryFile(prefix="bascule-") as file:
        try:
            file.truncate(-(-part.new.size // block) * block)
        except OSError as error:
            raise StorageError(f"a temporary file: {error.strerror}") from error
        target = open_target(Region(Path(file.name)))
        try:
            ground = Ground(target, old, block)
            for step in steps:
                outcome = carry_out(step, read(step.operation), ground)
                moved(outcome.written + outcome.skipped)
            for extent in rest:
                assert old is not None
                size = extent.blocks * block
                for start in range(0, size, PIECE):
                    data = old.read(
                        extent.start * block + start, min(PIECE, size - start), pad=True
                    )
                    target.update(extent.start * block + start, data, block)
                    moved(len(data))
            digest = hashlib.sha256()
            for start in range(0, part.new.size, PIECE):
                digest.update(target.read(start, min(PIECE, part.new.size - start)))
            return digest.digest()
        finally:
            target.close()
