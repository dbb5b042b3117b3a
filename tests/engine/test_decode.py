"""Decoding: right bytes, bounded, and every broken stream refused as error 28."""

from __future__ import annotations

import bz2
import contextlib
import lzma
import random
import sys
import tracemalloc

import bsdiff4
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine import decode
from bascule.engine.aligned import ROOM
from bascule.engine.decode import PIECE, SUPPORTED, produce
from bascule.errors import OperationFailed, UnsupportedOperation
from bascule.formats.manifest import Extent, Operation, OperationType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 4096
REPLACE, BZ = OperationType.REPLACE, OperationType.REPLACE_BZ
XZ, ZSTD = OperationType.REPLACE_XZ, OperationType.REPLACE_ZSTD
PACK = {
    REPLACE: bytes,
    BZ: bz2.compress,
    XZ: lzma.compress,
    ZSTD: zstd.compress,
}


class Held:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.length = len(data)
        self.asked = 0

    def read(self, offset: int, length: int) -> bytes:
        self.asked = max(self.asked, length)
        return self.data[offset : offset + length]


def operation(
    kind: OperationType, blob: bytes, blocks: int, length: int | None = None
) -> Operation:
    return Operation(
        index=3,
        part="usr",
        type=kind,
        data_offset=0,
        data_length=len(blob),
        source=(),
        target=(Extent(0, blocks),),
        data_sha256=None,
        target_length=length,
    )


def run(
    kind: OperationType,
    blob: bytes,
    blocks: int,
    length: int | None = None,
    source: bytes = b"",
) -> bytes:
    """In pieces, and into memory at once where that is possible: with the same end."""
    made = operation(kind, blob, blocks, length)
    memory = memoryview(bytearray(ROOM))
    ends: list[bytes | OperationFailed] = []
    for into in (None, memory):
        try:
            pieces = produce(made, blob, Held(source), blocks * BLOCK, into=into)
            ends.append(b"".join(pieces))
        except OperationFailed as error:
            ends.append(error)
    first, second = ends
    assert str(first) == str(second)
    if isinstance(first, OperationFailed):
        raise first
    return first


@pytest.mark.parametrize("kind", PACK)
@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=1, max_size=3 * BLOCK))
def test_packed_data_come_out_as_they_went_in(kind: OperationType, data: bytes) -> None:
    assert run(kind, PACK[kind](data), 3) == data
    assert run(kind, PACK[kind](data), 3, len(data)) == data


@pytest.mark.parametrize("kind", PACK)
def test_large_data_come_in_bounded_pieces(kind: OperationType) -> None:
    data = random.Random(1).randbytes(3 * PIECE // 2) + bytes(2 * PIECE)
    blob = PACK[kind](data)
    blocks = -(-len(data) // BLOCK)
    pieces = list(produce(operation(kind, blob, blocks), blob, Held(b""), blocks * BLOCK))
    assert b"".join(pieces) == data
    # A blob that is not packed is in memory whole already: to cut it would only copy it.
    assert pieces == [blob] if blob == data else max(map(len, pieces)) <= PIECE


@pytest.mark.parametrize("kind", [BZ, XZ, ZSTD])
def test_a_bomb_is_stopped_at_the_targets_size(kind: OperationType) -> None:
    blob = PACK[kind](bytes(256 << 20)) if kind is not BZ else bz2.compress(bytes(64 << 20))
    tracemalloc.start()
    got = 0
    with pytest.raises(OperationFailed):
        for piece in produce(operation(kind, blob, 2), blob, Held(b""), 2 * BLOCK):
            got += len(piece)
    assert got <= 2 * BLOCK
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [BZ, XZ, ZSTD])
def test_broken_streams_are_refused(kind: OperationType) -> None:
    data = random.Random(2).randbytes(2 * BLOCK)
    good = PACK[kind](data)
    for blob in (
        b"",
        b"\0" * 50,
        good[:-1],
        good[: len(good) // 2],
        good + b"x",
        good + good,
        b"x" + good,
    ):
        with pytest.raises(OperationFailed) as caught:
            run(kind, blob, 2)
        assert caught.value.number == 28
        assert "operation 3" in str(caught.value) or "data" in str(caught.value)


@pytest.mark.parametrize("kind", PACK)
def test_the_wrong_length_is_refused(kind: OperationType) -> None:
    blob = PACK[kind](b"x" * BLOCK)
    with pytest.raises(OperationFailed):
        run(kind, blob, 2, 2 * BLOCK)
    with pytest.raises(OperationFailed):
        run(kind, blob, 1, BLOCK - 1)


@pytest.mark.parametrize("kind", PACK)
@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=300), at=st.integers(0, 5000), bit=st.integers(0, 7))
def test_damage_gives_other_bytes_or_error_28_and_nothing_else(
    kind: OperationType, noise: bytes, at: int, bit: int
) -> None:
    good = bytearray(PACK[kind](b"what was there " * 500))
    good[at % len(good)] ^= 1 << bit
    for blob in (bytes(good), noise):
        with contextlib.suppress(OperationFailed):
            run(kind, blob, 2)


def test_a_dictionary_or_window_beyond_the_limit_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}]
    huge = lzma.compress(b"x" * BLOCK, format=lzma.FORMAT_XZ, filters=filters)
    with pytest.raises(OperationFailed):
        run(XZ, huge, 1)
    options = {
        zstd.CompressionParameter.window_log: 30,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    packer = zstd.ZstdCompressor(options=options)
    wide = packer.compress(b"x" * BLOCK, zstd.ZstdCompressor.FLUSH_BLOCK)
    wide += packer.flush(zstd.ZstdCompressor.FLUSH_FRAME)
    with pytest.raises(OperationFailed):
        run(ZSTD, wide, 1)


@pytest.mark.parametrize("kind", [OperationType.ZERO, OperationType.DISCARD])
def test_blank_operations_make_zeros(kind: OperationType) -> None:
    assert run(kind, b"", 2, 2 * BLOCK) == bytes(2 * BLOCK)
    blocks = 2 * PIECE // BLOCK + 1
    pieces = produce(operation(kind, b"", blocks, blocks * BLOCK), b"", Held(b""), blocks * BLOCK)
    assert [len(piece) for piece in pieces] == [PIECE, PIECE, BLOCK]


@pytest.mark.parametrize("kind", [OperationType.MOVE, OperationType.SOURCE_COPY])
def test_copies_read_in_pieces(kind: OperationType) -> None:
    data = random.Random(3).randbytes(2 * PIECE + BLOCK)
    source = Held(data)
    blocks = len(data) // BLOCK
    made = operation(kind, b"", blocks, len(data))
    assert b"".join(produce(made, b"", source, len(data))) == data
    assert source.asked <= PIECE
    with pytest.raises(OperationFailed):
        list(produce(made, b"", Held(data[:-BLOCK]), len(data)))


@pytest.mark.parametrize(
    "kind", [OperationType.BSDIFF, OperationType.SOURCE_BSDIFF, OperationType.BROTLI_BSDIFF]
)
def test_patches_are_applied(kind: OperationType) -> None:
    old = random.Random(4).randbytes(3 * BLOCK)
    new = old[BLOCK:] + b"x" * BLOCK
    blob = bsdiff4.diff(old, new)
    assert run(kind, blob, 3, len(new), old) == new
    for wrong in (b"", blob[:40], b"BSDIFF41" + blob[8:]):
        with pytest.raises(OperationFailed):
            run(kind, wrong, 3, len(new), old)
    with pytest.raises(OperationFailed):
        run(kind, blob, 2, 2 * BLOCK, old)


def test_every_other_kind_is_refused_by_name() -> None:
    for kind in set(OperationType) - SUPPORTED:
        with pytest.raises(UnsupportedOperation, match=kind.name):
            run(kind, b"", 1)


def test_a_decoder_of_no_bytes_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        eof = False
        needs_input = True
        unused_data = b""

        def decompress(self, data: bytes, max_length: int = -1) -> bytes:
            return b""

    with pytest.raises(OperationFailed):
        list(decode._decompress(Idle(), b"x", 10))
