"""One operation's bytes, decoded in bounded pieces.

`produce` never yields more than the operation's target can take, so a decompression bomb ends as
error 28 after at most one piece too many.
"""

from __future__ import annotations

import bz2
import lzma
import sys
from collections.abc import Iterator
from typing import Protocol

import brotli

from bascule.engine.at_once import zstd_at_once
from bascule.errors import BasculeError, OperationFailed, UnsupportedOperation
from bascule.formats.bsdiff import apply_patch
from bascule.formats.manifest import Operation, OperationType

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

PIECE = 1 << 20
"""Bytes yielded at once, at most; a blob that is no more than itself comes whole."""

XZ_MEMORY = 96 << 20
"""Bytes; enough for a 64 MiB dictionary, the most that AOSP's decoder takes."""

ZSTD_WINDOW_LOG = 27
"""128 MiB, zstd's own limit for decoders."""

_ZEROS = bytes(PIECE)

SUPPORTED = frozenset(
    {
        OperationType.REPLACE,
        OperationType.REPLACE_BZ,
        OperationType.REPLACE_XZ,
        OperationType.REPLACE_ZSTD,
        OperationType.ZERO,
        OperationType.DISCARD,
        OperationType.MOVE,
        OperationType.SOURCE_COPY,
        OperationType.BSDIFF,
        OperationType.SOURCE_BSDIFF,
        OperationType.BROTLI_BSDIFF,
    }
)


class Source(Protocol):
    """The concatenated source extents of one operation.

    Attributes:
        length: bytes.
    """

    length: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""


def produce(
    operation: Operation,
    blob: bytes,
    source: Source,
    room: int,
    *,
    into: memoryview | None = None,
) -> Iterator[bytes | memoryview]:
    """The bytes that `operation` lays over its target extents, in order.

    Args:
        blob: its data, already checked against its hash.
        source: what it reads; empty for operations that read nothing.
        room: bytes that the target extents hold.
        into: memory that an operation may be decoded into at once, if it fits (`engine.at_once`).
            What is yielded then lies there, and is overwritten by whoever uses it next.

    Raises:
        OperationFailed: the data are damaged, too long, or shorter than the format allows.
    """
    wanted = operation.target_length
    limit = room if wanted is None else min(room, wanted)
    done = 0
    try:
        for piece in _pieces(operation, blob, source, limit, into):
            done += len(piece)
            if done > limit:
                raise OperationFailed(
                    f"operation {operation.index} ({operation.type.name}) decodes to more than "
                    f"its {limit} bytes"
                )
            if piece:
                yield piece
    except BasculeError:
        raise
    except (OSError, EOFError, ValueError, lzma.LZMAError, ZstdError, brotli.error) as error:
        raise OperationFailed(
            f"operation {operation.index} ({operation.type.name}): {error}"
        ) from error
    if wanted is not None and done != wanted:
        raise OperationFailed(
            f"operation {operation.index} ({operation.type.name}) decodes to {done} bytes, "
            f"not {wanted}"
        )


def _pieces(
    operation: Operation, blob: bytes, source: Source, limit: int, into: memoryview | None
) -> Iterator[bytes | memoryview]:
    match operation.type:
        case OperationType.REPLACE:
            return iter((blob,))
        case OperationType.REPLACE_BZ:
            return _decompress(bz2.BZ2Decompressor(), blob, limit)
        case OperationType.REPLACE_XZ:
            xz = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
            return _decompress(xz, blob, limit)
        case OperationType.REPLACE_ZSTD:
            if into is not None and limit <= len(into) and (at_once := zstd_at_once()):
                made = at_once(blob, into[:limit])
                if made is not None:
                    return iter((into[:made],))
            window: dict[int, int] = {DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
            return _decompress(ZstdDecompressor(options=window), blob, limit)
        case OperationType.ZERO | OperationType.DISCARD:
            return _zeros(limit)
        case OperationType.MOVE | OperationType.SOURCE_COPY:
            return _copy(source)
        case OperationType.BSDIFF | OperationType.SOURCE_BSDIFF | OperationType.BROTLI_BSDIFF:
            return apply_patch(blob, read=source.read, source_size=source.length, target_size=limit)
        case _:
            raise UnsupportedOperation(f"operation {operation.index} ({operation.type.name})")


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _decompress(decompressor: _Decompressor, blob: bytes, limit: int) -> Iterator[bytes]:
    """One stream, all of it, and nothing behind it."""
    data = blob
    left = limit
    while not decompressor.eof:
        # One byte more than fits, so that "too long" shows without being decoded.
        piece = decompressor.decompress(data, min(PIECE, left + 1))
        data = b""
        left -= len(piece)
        yield piece
        if not piece and not decompressor.eof and decompressor.needs_input:
            raise OperationFailed("the compressed data end early")
    if decompressor.unused_data:
        raise OperationFailed(
            f"{len(decompressor.unused_data)} bytes follow the end of the compressed data"
        )


def _zeros(length: int) -> Iterator[bytes]:
    for start in range(0, length, PIECE):
        left = length - start
        yield _ZEROS if left >= PIECE else _ZEROS[:left]


def _copy(source: Source) -> Iterator[bytes]:
    for start in range(0, source.length, PIECE):
        yield source.read(start, min(PIECE, source.length - start))
