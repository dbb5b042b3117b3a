"""Proves that the booted slot is what a delta starts from, before a blob of the payload is fetched.

A manifest says it in one of two ways: with a hash of the whole old part (major 1, and ours), or with
one for what each operation reads (major 2). The first is one hash from end to end and keeps one core
busy; the second leaves out what nobody reads and is spread over all of them, so it is preferred where
every operation that reads has one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bascule.engine.carry import check_source_of
from bascule.engine.device import Device, Region, open_source
from bascule.engine.verify import sha256_of
from bascule.errors import SourceMismatch, Stopped
from bascule.formats.manifest import Operation, Part

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
    moved: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
    workers: int = 2,
) -> bool:
    """Compare an old part with what the manifest says a delta starts from. Blocking.

    Args:
        block: bytes of a block.
        moved: told after each piece how many bytes it had, from any thread.
        stop: ends it early with `Stopped`.
        workers: threads that hash.

    Returns:
        Whether the manifest says enough to know that whatever is read is right.

    Raises:
        SourceMismatch: it differs, or is too small (error number 20).
        StorageError: it cannot be read.
    """
    if part.old is None or region is None:
        return False
    source = open_source(region)
    try:
        if source.size < part.old.size:
            raise SourceMismatch(
                f"old {part.name} has {source.size} bytes, the delta starts from {part.old.size}"
            )
        if _by_operation(part):
            _check_operations(part, source, block, moved, stop or threading.Event(), workers)
            return True
        found = sha256_of(source, part.old.size, moved=moved, stop=stop)
    finally:
        source.close()
    if found != part.old.sha256:
        raise SourceMismatch(
            f"{part.name} at {region.path} is {found.hex()[:16]}…, "
            f"the delta starts from {part.old.sha256.hex()[:16]}…",
            part=part.name,
        )
    return True


def _by_operation(part: Part) -> bool:
    """Whether each operation that reads says what it must find (reference payload_v2.md)."""
    if part.in_place:
        return False
    return all(o.source_sha256 is not None for o in part.operations if o.source)


def _check_operations(
    part: Part,
    source: Device,
    block: int,
    moved: Callable[[int], None],
    stop: threading.Event,
    workers: int,
) -> None:
    def check(group: list[Operation]) -> None:
        for operation in group:
            if stop.is_set():
                raise Stopped
            check_source_of(operation, source, block)
            moved(operation.source_length)

    with ThreadPoolExecutor(workers, "bascule-source") as pool:
        try:
            # In payload order: of several faults the first one is told.
            for _ in pool.map(check, _groups(part)):
                pass
        except BaseException:
            stop.set()
            raise


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
