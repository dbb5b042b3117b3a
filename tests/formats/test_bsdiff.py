"""The streaming patch applier against bsdiff4, Debian's bsdiff, Android's generator, and malice."""

from __future__ import annotations

import bz2
import contextlib
import lzma
import random
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path

import brotli
import bsdiff4
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import OperationFailed
from bascule.formats.bsdiff import CHUNK, apply_patch
from bascule.formats.manifest import Extent, OperationType
from bascule.formats.payload import Blob
from payload_reading import V1, V2, needs_vectors, read

Triple = tuple[int, int, int]
COMPRESS = {1: bz2.compress, 2: lambda data: brotli.compress(data, quality=4)}


def patched(patch: bytes, old: bytes, size: int) -> bytes:
    asked: list[tuple[int, int]] = []

    def source(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return old[offset : offset + length]

    pieces = list(apply_patch(patch, read=source, source_size=len(old), target_size=size))
    assert all(0 < len(piece) <= CHUNK for piece in pieces)
    assert all(a >= 0 and 0 < n <= CHUNK and a + n <= len(old) for a, n in asked)
    return b"".join(pieces)


def integer(value: int) -> bytes:
    return (abs(value) | (1 << 63 if value < 0 else 0)).to_bytes(8, "little")


def make(
    triples: Iterable[Triple],
    differences: bytes,
    extra: bytes,
    size: int,
    compressors: Sequence[int] | None = None,
    streams: Sequence[bytes | None] = (None, None, None),
) -> bytes:
    """A patch of the given steps; BSDIFF40 unless compressors are named."""
    control = b"".join(integer(n) for triple in triples for n in triple)
    kinds = (1, 1, 1) if compressors is None else compressors
    packed = [
        COMPRESS[kind](raw) if given is None else given
        for kind, raw, given in zip(kinds, (control, differences, extra), streams, strict=True)
    ]
    magic = b"BSDIFF40" if compressors is None else b"BSDF2" + bytes(compressors)
    head = magic + integer(len(packed[0])) + integer(len(packed[1])) + integer(size)
    return head + b"".join(packed)


def edited(old: bytes, rng: random.Random) -> bytes:
    """Cut, moved, changed and new bytes."""
    new = bytearray()
    for _ in range(rng.randrange(1, 12)):
        start = rng.randrange(len(old) + 1)
        piece = bytearray(old[start : start + rng.randrange(5000)])
        for _ in range(rng.randrange(20)):
            if piece:
                piece[rng.randrange(len(piece))] = rng.randrange(256)
        new += piece + rng.randbytes(rng.randrange(300))
    return bytes(new)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 20_000))
def test_equals_bsdiff4(seed: int, size: int) -> None:
    rng = random.Random(seed)
    old = rng.randbytes(size // 2) + bytes(size - size // 2)
    new = edited(old, rng)
    patch = bsdiff4.diff(old, new)
    assert patched(patch, old, len(new)) == bsdiff4.patch(old, patch) == new


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.tuples(*[st.sampled_from([1, 2])] * 3))
def test_each_stream_has_its_own_compressor(seed: int, compressors: tuple[int, int, int]) -> None:
    rng = random.Random(seed)
    old = rng.randbytes(8000)
    new = edited(old, rng)
    control, differences, extra = bsdiff4.core.diff(old, new)
    given_control = COMPRESS[compressors[0]](control)
    patch = make([], differences, extra, len(new), compressors, (given_control, None, None))
    assert patched(patch, old, len(new)) == new


@pytest.mark.skipif(shutil.which("bsdiff") is None, reason="Debian's bsdiff is not here")
@pytest.mark.parametrize("seed", range(4))
def test_equals_debians_bsdiff(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    old = rng.randbytes(300_000)
    new = edited(old, rng) * 3
    for name, data in (("old", old), ("new", new)):
        (tmp_path / name).write_bytes(data)
    subprocess.run(["bsdiff", "old", "new", "patch"], cwd=tmp_path, check=True)
    assert patched((tmp_path / "patch").read_bytes(), old, len(new)) == new


def at(image: bytes, extents: Iterable[Extent], block: int) -> bytes:
    return b"".join(image[e.start * block : (e.start + e.blocks) * block] for e in extents)


@needs_vectors
@pytest.mark.parametrize("name", ["delta_minor2.bin", "delta_minor4.bin"])
def test_every_patch_of_androids_generator(name: str) -> None:
    images = {"system": "ext", "squash": "sq", "erofs": "er", "boot": "raw"}
    image = {
        (part, age): lzma.decompress((V2 / "images" / f"{file}_{age}.img.xz").read_bytes())
        for part, file in images.items()
        for age in ("old", "new")
    }
    magics = set()
    for event in read([(V2 / "payloads" / name).read_bytes()]).events:
        if not isinstance(event, Blob) or "BSDIFF" not in event.operation.type.name:
            continue
        op = event.operation
        old = at(image[op.part, "old"], op.source, 4096)
        assert op.target_length is not None
        magics.add(event.data[:8])
        new = patched(event.data, old, op.target_length)
        assert new == at(image[op.part, "new"], op.target, 4096)
    assert magics


@needs_vectors
def test_kernel_patch_of_flatcars_generator() -> None:
    old, new = (
        lzma.decompress((V1 / "images" / f"vmlinuz_{v}.xz").read_bytes()) for v in ("v1", "v2")
    )
    reading = read([(V1 / "payloads" / "delta_v1_v2_kernel.bin").read_bytes()])
    (blob,) = (e for e in reading.events if isinstance(e, Blob) and e.operation.part == "kernel")
    op = blob.operation
    assert op.type is OperationType.BSDIFF
    assert (op.source_length, op.target_length) == (len(old), len(new))
    assert patched(blob.data, old, len(new)) == new


def test_bytes_outside_the_old_file_count_as_zero() -> None:
    old = b"abcdefgh"
    ones = b"\x01" * 12
    shifted = bytes(b + 1 for b in old)
    # From before the beginning, over the end, far behind it, far before it, and back again.
    steps = [(0, 0, -2), (12, 0, 10**15), (12, 0, -(10**16)), (12, 0, 0)]
    patch = make(steps, ones * 3, b"", 36)
    assert patched(patch, old, 36) == b"\x01\x01" + shifted + b"\x01\x01" + ones + ones
    assert patched(make([(5, 0, 0)], bytes(5), b"", 5), b"", 5) == bytes(5)


def test_additions_wrap_at_256() -> None:
    every = bytes(range(256))
    for shift in range(256):
        patch = make([(256, 0, 0)], bytes([shift]) * 256, b"", 256)
        assert patched(patch, every, 256) == bytes((b + shift) & 255 for b in every)


@pytest.mark.parametrize("compressors", [None, (1, 1, 1), (2, 2, 2), (1, 2, 1)])
def test_empty_result_and_empty_streams(compressors: Sequence[int] | None) -> None:
    assert patched(make([], b"", b"", 0, compressors), b"old", 0) == b""
    assert patched(make([(3, 0, 0)], bytes(3), b"", 3, compressors), b"old", 3) == b"old"
    assert patched(make([(0, 3, 0)], b"", b"new", 3, compressors), b"old", 3) == b"new"


def test_an_empty_stream_may_have_no_bytes() -> None:
    """Android's writer never starts a brotli encoder that gets nothing."""
    extra = make([(3, 0, 0)], bytes(3), b"", 3, (2, 2, 2), (None, None, b""))
    assert patched(extra, b"old", 3) == b"old"
    differences = make([(0, 3, 0)], b"", b"new", 3, (2, 2, 2), (None, b"", None))
    assert patched(differences, b"old", 3) == b"new"
    with pytest.raises(OperationFailed, match="difference stream ends too early"):
        patched(make([(3, 0, 0)], b"", b"", 3, (2, 2, 2), (None, b"", b"")), b"old", 3)


GOOD = make([(4, 4, 0)], bytes(4), b"tail", 8, (1, 2, 1))


@pytest.mark.parametrize("cut", [0, 7, 8, 31, 32, 40, 70, 100])
def test_cut_patches(cut: int) -> None:
    with pytest.raises(OperationFailed):
        patched(GOOD[:cut], b"head", 8)


@pytest.mark.parametrize(
    "head",
    [
        b"BSDIFF41" + GOOD[8:],
        b"BSDF2\x00\x01\x01" + GOOD[8:],
        b"BSDF2\x01\x03\x01" + GOOD[8:],
        b"PUF1" + GOOD[4:],
        GOOD[:8] + integer(-1) + GOOD[16:],
        GOOD[:8] + integer(2**62) + GOOD[16:],
        GOOD[:8] + b"\xff" * 8 + GOOD[16:],
        GOOD[:16] + integer(-1) + GOOD[24:],
        GOOD[:16] + integer(2**63 - 1) + GOOD[24:],
        GOOD[:24] + integer(-8) + GOOD[32:],
        GOOD[:24] + integer(9) + GOOD[32:],
        GOOD[:24] + integer(2**63 - 1) + GOOD[32:],
    ],
)
def test_bad_headers_are_refused_at_once(head: bytes) -> None:
    with pytest.raises(OperationFailed):
        apply_patch(head, read=lambda *_: b"", source_size=0, target_size=8)


@pytest.mark.parametrize(
    "triples",
    [
        [],
        [(4, 3, 0)],
        [(5, 4, 0)],
        [(4, 5, 0)],
        [(-1, 9, 0)],
        [(9, -1, 0)],
        [(2**63 - 1, 0, 0)],
        [(4, 4 - 2**63, 0)],
        [(0, 0, 1)] * 20_000,
    ],
)
def test_bad_steps(triples: list[Triple]) -> None:
    patch = make(triples, bytes(64), bytes(64), 8)
    with pytest.raises(OperationFailed):
        patched(patch, b"old bytes", 8)


def test_steps_that_only_move_are_allowed() -> None:
    steps = [(0, 0, 1), (0, 0, 1), (2, 0, -3), (0, 0, -1), (2, 0, 0)]
    assert patched(make(steps, bytes(4), b"", 4), b"abcd", 4) == b"cdab"


@pytest.mark.parametrize("kind", [1, 2])
def test_streams_that_are_no_streams(kind: int) -> None:
    for which in range(3):
        streams: list[bytes | None] = [None, None, None]
        streams[which] = b"this is not compressed at all"
        patch = make([(4, 4, 0)], bytes(4), b"tail", 8, (kind,) * 3, streams)
        with pytest.raises(OperationFailed):
            patched(patch, b"head", 8)


@pytest.mark.parametrize("kind", [1, 2])
def test_bombs_are_not_unpacked(kind: int) -> None:
    bomb = COMPRESS[kind](bytes(200 << 20))
    patches = [
        make([(4, 4, 0)], b"", b"", 8, (kind,) * 3, (None, bomb, bomb)),
        make([], b"", b"", 8, (kind,) * 3, (bomb, None, None)),
    ]
    for patch in patches:
        tracemalloc.start()
        with contextlib.suppress(OperationFailed):
            patched(patch, b"head", 8)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 << 20


def test_memory_does_not_grow_with_the_result() -> None:
    size = 64 << 20
    old = bytes(1 << 20)
    patch = make(
        [(1 << 20, size - (1 << 20), 0)], b"\x01" * (1 << 20), bytes(size - (1 << 20)), size
    )
    made = 0
    tracemalloc.start()
    for piece in apply_patch(
        patch, read=lambda o, n: old[o : o + n], source_size=len(old), target_size=size
    ):
        made += len(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made == size
    assert peak < 4 << 20


def test_a_source_that_falls_short() -> None:
    patch = make([(8, 0, 0)], bytes(8), b"", 8)
    with pytest.raises(OperationFailed, match="source"):
        list(apply_patch(patch, read=lambda o, n: b"x", source_size=8, target_size=8))


@settings(max_examples=150)
@given(st.integers(0, len(GOOD) * 8 - 1), st.integers(0, len(GOOD) * 8 - 1))
def test_turned_bits_give_bytes_or_a_typed_error(one: int, two: int) -> None:
    broken = bytearray(GOOD)
    for bit in {one, two}:
        broken[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(OperationFailed):
        assert len(patched(bytes(broken), b"head", 8)) == 8
