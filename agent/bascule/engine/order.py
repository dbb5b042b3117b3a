"""What an operation must wait for, and where each block that it reads lies.

Major 1 deltas are written for a partition that starts as a copy of the old one and is changed in
place. Bascule makes no such copy: a block that the payload has not written yet reads from the
booted slot, a written one from the target (decisions/0004). From that follow three rules:

* an operation waits for those that wrote what it reads or writes (`Step.after`);
* before it overwrites a block that an earlier one read from the target, that one must be in a
  durable checkpoint, or a crash would leave it nothing to be repeated from (`Step.barrier`);
* an operation that overwrites what it itself reads from the target needs a journal (`Step.keeps`).

Full payloads and major 2 read nothing from the target, so only the first rule can ever bite.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from bascule.formats.manifest import Extent, Manifest, Operation, OperationType, Part

_NOBODY = -1


@dataclass(frozen=True, slots=True)
class Run:
    """A run of source blocks that lie together.

    Attributes:
        start: first block; `formats.manifest.HOLE` for zeros.
        blocks: how many.
        written: in the target, because this payload wrote it; else in the booted slot.
    """

    start: int
    blocks: int
    written: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, ready to be carried out once its conditions hold.

    Attributes:
        source: what it reads, in order.
        after: indices of operations that must be done.
        barrier: every operation below this index must be in a durable checkpoint.
        keeps: it overwrites what it reads from the target.
        bare: target blocks that nothing wrote before, in the order of the target extents; filled
            only for in-place REPLACE, whose data may end before its extents do.
    """

    operation: Operation
    source: tuple[Run, ...]
    after: frozenset[int]
    barrier: int
    keeps: bool
    bare: frozenset[int]


class _Ground:
    """Who last wrote, and who last read from the target, each block of one part."""

    def __init__(self, blocks: int, in_place: bool) -> None:
        self.blocks = blocks
        self.in_place = in_place
        self.writer = array("i", [_NOBODY]) * blocks
        self.reader = array("i", [_NOBODY]) * (blocks if in_place else 0)

    def clip(self, extent: Extent) -> tuple[int, int]:
        if extent.hole or extent.start >= self.blocks:
            return (0, 0)
        return (extent.start, min(extent.start + extent.blocks, self.blocks))


class Order:
    """Walks the operations once, in payload order.

    Memory: 4 bytes a block, 8 for in-place parts. Compare sizes with the devices before.
    """

    def __init__(self, manifest: Manifest) -> None:
        block = manifest.block_size
        self._ground: dict[str, _Ground] = {}
        for part in manifest.parts:
            if part.known and part.new is not None:
                old = part.old.size if part.old is not None else 0
                blocks = -(-max(part.new.size, old) // block)
                self._ground[part.name] = _Ground(blocks, part.in_place)

    def step(self, operation: Operation) -> Step:
        """The next operation's conditions. Every operation, in order, exactly once."""
        ground = self._ground.get(operation.part)
        if ground is None:
            return Step(operation, (), frozenset(), 0, keeps=False, bare=frozenset())
        index = operation.index
        after: set[int] = set()
        if ground.in_place:
            source = tuple(self._runs(ground, operation, after))
        else:
            source = tuple(Run(e.start, e.blocks, written=False) for e in operation.source)
        barrier, keeps = 0, False
        bare: set[int] = set()
        for extent in operation.target:
            start, end = ground.clip(extent)
            if start == end:
                continue
            writers = ground.writer[start:end]
            after.update(writers)
            if ground.in_place:
                for reader in set(ground.reader[start:end]):
                    if reader == index:
                        keeps = True
                    else:
                        barrier = max(barrier, reader + 1)
                if operation.target_length is None:
                    bare.update(start + i for i, w in enumerate(writers) if w == _NOBODY)
        for extent in operation.target:
            start, end = ground.clip(extent)
            ground.writer[start:end] = array("i", [index]) * (end - start)
            if ground.in_place:
                ground.reader[start:end] = array("i", [_NOBODY]) * (end - start)
        after.discard(_NOBODY)
        after.discard(index)
        return Step(operation, source, frozenset(after), barrier, keeps, frozenset(bare))

    def untouched(self, part: Part, block_size: int) -> Iterator[Extent]:
        """Blocks of the new image that no operation writes. Call it after the last `step`."""
        if part.new is None:
            return
        ground = self._ground[part.name]
        start: int | None = None
        blocks = -(-part.new.size // block_size)
        for block in range(blocks):
            bare = ground.writer[block] == _NOBODY
            if bare and start is None:
                start = block
            elif not bare and start is not None:
                yield Extent(start, block - start)
                start = None
        if start is not None:
            yield Extent(start, blocks - start)

    def _runs(self, ground: _Ground, operation: Operation, after: set[int]) -> Iterator[Run]:
        for extent in operation.source:
            if extent.hole:
                yield Run(extent.start, extent.blocks, written=False)
                continue
            start = at = extent.start
            last = extent.start + extent.blocks
            written = self._written(ground, start)
            while at < last:
                now = self._written(ground, at)
                if now != written:
                    yield Run(start, at - start, written)
                    start, written = at, now
                if now:
                    after.add(ground.writer[at])
                    ground.reader[at] = operation.index
                at += 1
            yield Run(start, last - start, written)

    @staticmethod
    def _written(ground: _Ground, block: int) -> bool:
        return block < ground.blocks and ground.writer[block] != _NOBODY


def reads(operation: Operation) -> bool:
    """Whether the operation has a source."""
    return bool(operation.source) or operation.type is OperationType.MOVE
