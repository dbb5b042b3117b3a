"""One operation on its ground: whole blocks, short last ones, and what keeps its old bytes."""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bascule.engine.aligned import PIECE
from bascule.engine.carry import Ground, carry_out, check_blob, fitted
from bascule.engine.device import open_source, open_target
from bascule.engine.order import Run, Step
from bascule.engine.region import Region
from bascule.errors import OperationFailed, OperationHashMismatch, OperationHashMissing
from bascule.formats.manifest import HOLE, Extent, Operation, OperationType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 4096


def ground(folder: Path, size: int, *, old: bytes | None = None) -> Ground:
    """A target of `size` bytes of 0xEE in the middle of a file, so that a slip shows."""
    path = folder / "target"
    path.write_bytes(b"\xaa" * BLOCK + b"\xee" * size + b"\xaa" * (2 * BLOCK))
    target = open_target(Region(path, offset=BLOCK, size=size))
    source = None
    if old is not None:
        (folder / "source").write_bytes(old)
        source = open_source(Region(folder / "source"))
    return Ground(target, source, BLOCK)


def around(folder: Path, size: int) -> bytes:
    """The target's bytes, after a look at those on both sides of it."""
    data = (folder / "target").read_bytes()
    assert data[:BLOCK] == b"\xaa" * BLOCK
    assert data[BLOCK + size :] == b"\xaa" * (2 * BLOCK)
    return data[BLOCK : BLOCK + size]


def replace_of(blob: bytes, extents: Sequence[Extent], *, exact: bool = True) -> Operation:
    room = sum(extent.blocks for extent in extents) * BLOCK
    return Operation(
        0,
        "usr",
        OperationType.REPLACE,
        0,
        len(blob),
        (),
        tuple(extents),
        hashlib.sha256(blob).digest(),
        target_length=room if exact else None,
    )


def alone(operation: Operation, source: Sequence[Run] = (), bare: Sequence[int] = ()) -> Step:
    return Step(operation, tuple(source), frozenset(), 0, keeps=False, bare=frozenset(bare))


SHORT = 2 * BLOCK + 100
"""A target whose last block has 100 bytes."""


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]])
def test_the_short_last_block_may_come_at_any_place(order: list[int], tmp_path: Path) -> None:
    image = random.Random(0).randbytes(SHORT).ljust(3 * BLOCK, b"\0")
    place = ground(tmp_path, SHORT)
    blob = b"".join(image[n * BLOCK : (n + 1) * BLOCK] for n in order)
    done = carry_out(alone(replace_of(blob, [Extent(n, 1) for n in order])), blob, place)
    assert around(tmp_path, SHORT) == image[:SHORT]
    assert done.written == SHORT


@pytest.mark.parametrize("at", [100, 101, BLOCK - 1])
def test_padding_is_zeros_and_nothing_else(at: int, tmp_path: Path) -> None:
    place = ground(tmp_path, SHORT)
    blob = bytearray(3 * BLOCK)
    blob[2 * BLOCK + at] = 1
    with pytest.raises(OperationFailed, match="past the end"):
        carry_out(alone(replace_of(bytes(blob), [Extent(0, 3)])), bytes(blob), place)
    assert around(tmp_path, SHORT)[2 * BLOCK :] == b"\xee" * 100


def test_a_whole_block_of_zeros_past_the_end_is_no_padding(tmp_path: Path) -> None:
    for size, extent in ((2 * BLOCK, Extent(0, 3)), (SHORT, Extent(3, 1)), (SHORT, Extent(0, 4))):
        place = ground(tmp_path, size)
        blob = bytes(extent.blocks * BLOCK)
        with pytest.raises(OperationFailed, match="past the end"):
            carry_out(alone(replace_of(blob, [extent])), blob, place)
        around(tmp_path, size)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(size=st.integers(0, 5 * BLOCK), offset=st.integers(0, 6), blocks=st.integers(1, 6))
def test_never_a_byte_outside_the_target(
    size: int, offset: int, blocks: int, tmp_path: Path
) -> None:
    place = ground(tmp_path, size)
    try:
        written, skipped = fitted(place, offset * BLOCK, bytes(blocks * BLOCK), "it")
    except OperationFailed:
        assert (offset + blocks) * BLOCK - size >= BLOCK
    else:
        inside = min((offset + blocks) * BLOCK, size) - offset * BLOCK
        assert written + skipped == inside
        assert around(tmp_path, size)[offset * BLOCK :][:inside] == bytes(inside)
    finally:
        place.target.close()
    around(tmp_path, size)


def test_data_that_end_early_fill_their_block_and_leave_the_rest(tmp_path: Path) -> None:
    """Flatcar's generator declares 256 blocks for a short last chunk (reference 1.3)."""
    old = random.Random(1).randbytes(4 * BLOCK)
    place = ground(tmp_path, 4 * BLOCK, old=old)
    blob = b"x" * (BLOCK + 1)
    step = alone(replace_of(blob, [Extent(1, 256)], exact=False), bare=(2, 3))
    carry_out(step, blob, place)
    found = around(tmp_path, 4 * BLOCK)
    assert found[BLOCK : 3 * BLOCK] == blob.ljust(2 * BLOCK, b"\0")
    assert found[3 * BLOCK :] == old[3 * BLOCK :]
    assert found[:BLOCK] == b"\xee" * BLOCK


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), blocks=st.integers(1, 560), exact=st.booleans())
def test_zstd_lies_over_its_extents_wherever_they_begin(
    seed: int, blocks: int, exact: bool, tmp_path: Path
) -> None:
    """In one call or in pieces (2 MiB are 512 blocks), over blocks of which some are right already."""
    rng = random.Random(seed)
    data = b"".join(rng.randbytes(64) * (BLOCK // 64) for _ in range(blocks))
    data = data if exact else data[: -rng.randrange(1, BLOCK)]
    cuts = sorted({0, blocks, *(rng.randrange(blocks) for _ in range(rng.randrange(6)))})
    runs = [(start, end - start) for start, end in itertools.pairwise(cuts)]
    rng.shuffle(runs)
    size = blocks * BLOCK
    place = ground(tmp_path, size)
    wanted = bytearray(size)
    extents, at = [], 0
    for start, length in runs:
        extents.append(Extent(start, length))
        piece = data[at * BLOCK : (at + length) * BLOCK].ljust(length * BLOCK, b"\0")
        wanted[start * BLOCK : (start + length) * BLOCK] = piece
        at += length
    for block in rng.sample(range(blocks), rng.randrange(blocks + 1)):
        place.target.update(block * BLOCK, wanted[block * BLOCK : (block + 1) * BLOCK])
    blob = zstd.compress(data)
    made = replace(replace_of(blob, extents, exact=exact), type=OperationType.REPLACE_ZSTD)
    done = carry_out(alone(made), blob, place)
    place.target.close()
    assert around(tmp_path, size) == wanted
    assert done.written + done.skipped == size


def test_an_old_image_larger_than_the_target_keeps_nothing_behind_its_end(tmp_path: Path) -> None:
    old = random.Random(2).randbytes(9 * BLOCK)
    place = ground(tmp_path, SHORT, old=old)
    blob = b"x" * 10
    step = alone(replace_of(blob, [Extent(0, 256)], exact=False), bare=range(9))
    carry_out(step, blob, place)
    assert around(tmp_path, SHORT)[BLOCK:] == old[BLOCK:SHORT]
    place = ground(tmp_path, 3 * BLOCK, old=old)
    carry_out(step, blob, place)
    assert around(tmp_path, 3 * BLOCK)[BLOCK:] == old[BLOCK : 3 * BLOCK]


def test_holes_take_bytes_and_write_none(tmp_path: Path) -> None:
    place = ground(tmp_path, 2 * BLOCK)
    blob = random.Random(3).randbytes(4 * BLOCK)
    step = alone(replace_of(blob, [Extent(HOLE, 2), Extent(1, 1), Extent(HOLE, 1)]))
    carry_out(step, blob, place)
    found = around(tmp_path, 2 * BLOCK)
    assert found == b"\xee" * BLOCK + blob[2 * BLOCK : 3 * BLOCK]


def test_pieces_may_end_anywhere_inside_an_extent(tmp_path: Path) -> None:
    size = 2 * PIECE + 3 * BLOCK
    place = ground(tmp_path, size)
    blob = random.Random(4).randbytes(size)
    blocks = size // BLOCK
    order = [Extent(5, blocks - 5), Extent(0, 5)]
    carry_out(alone(replace_of(blob, order)), blob, place)
    split = (blocks - 5) * BLOCK
    assert around(tmp_path, size) == blob[split:] + blob[:split]


def test_a_blob_needs_its_own_hash(tmp_path: Path) -> None:
    operation = replace_of(b"x" * BLOCK, [Extent(0, 1)])
    check_blob(operation, b"x" * BLOCK)
    with pytest.raises(OperationHashMismatch):
        check_blob(operation, b"y" * BLOCK)
    bare = Operation(0, "usr", OperationType.REPLACE, 0, 5, (), (Extent(0, 1),), None)
    with pytest.raises(OperationHashMissing):
        check_blob(bare, b"xxxxx")
    place = ground(tmp_path, BLOCK)
    with pytest.raises(OperationHashMismatch):
        carry_out(alone(operation), b"y" * BLOCK, place)
    assert around(tmp_path, BLOCK) == b"\xee" * BLOCK
