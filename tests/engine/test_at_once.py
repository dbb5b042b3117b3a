"""zstd straight into the memory that is written from: the same library, or the way in pieces."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import pytest

from bascule.engine import at_once
from bascule.engine.at_once import zstd_at_once
from bascule.engine.decode import produce
from bascule.formats.manifest import Extent, Operation, OperationType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 4096
DATA = bytes(range(256)) * 16
FRAME = zstd.compress(DATA)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    zstd_at_once.cache_clear()
    yield
    zstd_at_once.cache_clear()


def pieces(into: memoryview | None) -> list[bytes | memoryview]:
    made = Operation(
        index=0,
        part="usr",
        type=OperationType.REPLACE_ZSTD,
        data_offset=0,
        data_length=len(FRAME),
        source=(),
        target=(Extent(0, 1),),
        data_sha256=None,
        target_length=None,
    )
    return list(produce(made, FRAME, None, BLOCK, into=into))  # type: ignore[arg-type]


def test_an_operation_lies_where_it_is_written_from() -> None:
    memory = bytearray(2 * BLOCK)
    (piece,) = pieces(memoryview(memory))
    assert isinstance(piece, memoryview)
    assert piece.obj is memory
    assert bytes(piece) == DATA
    assert bytes(memory[BLOCK:]) == bytes(BLOCK)


def test_memory_that_is_too_small_is_left_alone() -> None:
    memory = bytearray(BLOCK - 1)
    assert b"".join(pieces(memoryview(memory))) == DATA
    assert not any(memory)


def test_nothing_behind_the_memory_is_written() -> None:
    decode = zstd_at_once()
    assert decode is not None
    memory = bytearray(2 * BLOCK)
    assert decode(FRAME, memoryview(memory)[: BLOCK - 1]) is None
    assert not any(memory[BLOCK - 1 :])


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        FRAME[:5],
        FRAME[:-1],
        FRAME + b"x",
        FRAME + FRAME,
        b"\x50\x2a\x4d\x18\4\0\0\0skip",
        b"\x50\x2a\x4d\x18\4\0\0\0skip" + FRAME,
        FRAME[:4] + b"\xff" * 60,
        # A block of 4096 bytes with a window of 3840: libzstd takes it at once, and not in pieces.
        FRAME[:4] + b"\0\x0f" + b"\x01\x80\0" + bytes(BLOCK),
    ],
)
def test_whatever_is_not_one_whole_frame_is_left_to_the_other_way(frame: bytes) -> None:
    decode = zstd_at_once()
    assert decode is not None
    assert decode(frame, memoryview(bytearray(BLOCK))) is None


def test_a_window_that_the_other_way_might_refuse_is_left_to_it() -> None:
    decode = zstd_at_once()
    assert decode is not None
    for log, taken in ((10, False), (17, True), (26, True), (27, False), (30, False)):
        options = {
            zstd.CompressionParameter.window_log: log,
            zstd.CompressionParameter.content_size_flag: 0,
        }
        packer = zstd.ZstdCompressor(options=options)
        frame = packer.compress(b"x" * BLOCK, zstd.ZstdCompressor.FLUSH_BLOCK)
        frame += packer.flush(zstd.ZstdCompressor.FLUSH_FRAME)
        made = decode(frame, memoryview(bytearray(BLOCK)))
        assert made == (BLOCK if taken else None), log


class Wrong:
    """A library whose decoder says that all is well."""

    def __init__(self) -> None:
        kind = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
        self.ZSTD_findFrameCompressedSize = kind(lambda _, length: length)
        four = ctypes.CFUNCTYPE(
            *(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t),
            *(ctypes.c_char_p, ctypes.c_size_t),
        )
        self.ZSTD_decompress = four(lambda *_: 3)


@pytest.mark.parametrize(
    "library",
    [ImportError("built in"), OSError("gone"), object(), Wrong()],
    ids=["built in", "gone", "other names", "wrong answers"],
)
def test_without_the_library_it_goes_in_pieces(
    library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(_: str) -> object:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(at_once, "_library", given)
    assert zstd_at_once() is None
    memory = bytearray(BLOCK)
    assert b"".join(pieces(memoryview(memory))) == DATA
    assert not any(memory)
