"""Proves that the booted slot is what a delta starts from, before a blob of the payload is fetched.

A manifest says it in one of two ways: with a hash of the whole old part (major 1, and ours), or with
one for what each operation reads (major 2). The first is one hash from end to end and keeps one core
busy; the second leaves out what nobody reads and is spread over all of them, so it is preferred where
every operation that reads has one.

Where an operation only copies, its hash is that of what it makes, too. A target that has it already,
as most of a slot has that held the release before, is left alone and its source need not be read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bascule.engine.carry import Checked, check_source_of, spans
from bascule.engine.device import Device, open_source
from bascule.engine.region import Region
from bascule.engine.verify import sha256_of
from bascule.errors import SourceMismatch, Stopped, StorageError
from bascule.formats.manifest import Operation, OperationType, Part

_GROUP = 4 << 20
"""Bytes of source that a thread takes at a time."""


def reads_source(part: Part) -> bool:
    """Whether applying the part reads the booted slot."""
    return part.in_place or part.old is not None


def hashed_bytes(part: Part) -> int:
    """Bytes that `check_source` hashes."""
    if _by_operation(part):
        return sum(operation.source_length for operation in part.operations)
    return part.old.size if part.old is not None else 0


def check_source(
    part: Part,
    region: Region | None,
    block: int,
    *,
    target: Region | None = None,
    moved: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
    workers: int = 2,
) -> Checked:
    """Compare an old part with what the manifest says a delta starts from. Blocking.

    Args:
        block: bytes of a block.
        target: where the part goes, to find what is there already; only read.
        moved: told after each piece how many bytes it had, from any thread.
        stop: ends it early with `Stopped`.
        workers: threads that can hash at a time; as many again wait for the medium.

    Raises:
        SourceMismatch: it differs, or is too small (error number 20).
        StorageError: it cannot be read.
    """
    if part.old is None or region is None:
        return Checked()
    source = open_source(region)
    try:
        if source.size < part.old.size:
            raise SourceMismatch(
                f"old {part.name} has {source.size} bytes, the delta starts from {part.old.size}"
            )
        if _by_operation(part):
            there = _check_operations(
                part, source, target, block, moved, stop or threading.Event(), workers
            )
            return Checked(proven=True, there=there)
        found = sha256_of(source, part.old.size, moved=moved, stop=stop)
    finally:
        source.close()
    if found != part.old.sha256:
        raise SourceMismatch(
            f"{part.name} at {region.path} is {found.hex()[:16]}…, "
            f"the delta starts from {part.old.sha256.hex()[:16]}…",
            part=part.name,
        )
    return Checked(proven=True)


def _by_operation(part: Part) -> bool:
    """Whether each operation that reads says what it must find (reference payload_v2.md)."""
    if part.in_place:
        return False
    return all(o.source_sha256 is not None for o in part.operations if o.source)


def _check_operations(
    part: Part,
    source: Device,
    target: Region | None,
    block: int,
    moved: Callable[[int], None],
    stop: threading.Event,
    workers: int,
) -> frozenset[int]:
    there: set[int] = set()
    present = open_source(target) if target is not None and not target.file else None

    def check(group: list[Operation]) -> None:
        for operation in group:
            if stop.is_set():
                raise Stopped
            if present is not None and _is_there(operation, source, present, block, stop):
                there.add(operation.index)
            else:
                check_source_of(operation, source, block, stop)
            moved(operation.source_length)

    try:
        with ThreadPoolExecutor(2 * workers, "bascule-source") as pool:
            try:
                # In payload order: of several faults the first one is told.
                for _ in pool.map(check, _groups(part)):
                    pass
            except BaseException:
                stop.set()
                raise
    finally:
        if present is not None:
            present.close()
    return frozenset(there)


def _is_there(
    operation: Operation, source: Device, target: Device, block: int, stop: threading.Event
) -> bool:
    """Whether a copy's target has the copy's hash: looked at only if its first block is right."""
    if operation.type is not OperationType.SOURCE_COPY or not operation.source:
        return False
    wanted = spans(operation.target, block)
    if any(offset + length > target.size for offset, length in wanted):
        return False
    first = operation.source[0]
    if first.hole or (first.start + 1) * block > source.size:
        return False
    try:
        if target.read(wanted[0][0], block) != source.read(first.start * block, block):
            return False
        return target.sha256(wanted, stop) == operation.source_sha256
    except StorageError:
        # It is written, and the read-back has the last word.
        return False


def _groups(part: Part) -> Iterator[list[Operation]]:
    group: list[Operation] = []
    size = 0
    for operation in part.operations:
        if operation.source:
            group.append(operation)
            size += operation.source_length
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


__all__ = ["check_source", "hashed_bytes", "reads_source"]
