"""How the bytes of an operation are packed: the smallest of several codecs wins."""

from __future__ import annotations

import bz2
import lzma
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from omaha_mock.errors import PayloadError, UsageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["CODECS", "chosen", "decode", "in_order", "smallest"]

T = TypeVar("T")

_MAX_XZ_MEMORY = 160 << 20


def _xz(data: bytes) -> bytes:
    # No check (the operation's own hash covers it) and no dictionary larger than the chunk, so
    # that the client reserves no more than it needs.
    dictionary = 1 << max(12, (len(data) - 1).bit_length())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": dictionary}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters)


def _zstd(data: bytes) -> bytes:
    return zstd.compress(data, level=19)


def _raw(data: bytes) -> bytes:
    return data


def _bz2(data: bytes) -> bytes:
    return bz2.compress(data, 9)


# In the order of what is cheapest to decode: on a tie the earlier one wins.
CODECS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "raw": ("REPLACE", _raw),
    "zstd": ("REPLACE_ZSTD", _zstd),
    "xz": ("REPLACE_XZ", _xz),
    "bz2": ("REPLACE_BZ", _bz2),
}


def chosen(text: str) -> tuple[str, ...]:
    """Parse ``raw,bz2,…`` into codec names in our order. Raises UsageError."""
    wanted = {word.strip() for word in text.split(",") if word.strip()}
    unknown = wanted - set(CODECS)
    if unknown or not wanted:
        raise UsageError(
            f"Codecs are {', '.join(CODECS)}; not {', '.join(sorted(unknown)) or 'none'}."
        )
    return tuple(name for name in CODECS if name in wanted)


def smallest(data: bytes, codecs: Sequence[str]) -> tuple[str, bytes]:
    """Operation name and blob of the codec that packs ``data`` best."""
    best: tuple[str, bytes] | None = None
    for name in CODECS:
        if name in codecs:
            operation, pack = CODECS[name]
            blob = pack(data)
            if best is None or len(blob) < len(best[1]):
                best = (operation, blob)
    if best is None:
        raise UsageError("No codec was chosen.")
    return best


def decode(operation: str, blob: bytes, limit: int) -> bytes:
    """Unpack the blob of a REPLACE operation; one stream exactly, at most ``limit`` bytes out."""
    decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor | zstd.ZstdDecompressor
    match operation:
        case "REPLACE":
            data = blob
        case "REPLACE_BZ" | "REPLACE_XZ" | "REPLACE_ZSTD":
            if operation == "REPLACE_BZ":
                decoder = bz2.BZ2Decompressor()
            elif operation == "REPLACE_XZ":
                decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)
            else:
                decoder = zstd.ZstdDecompressor()
            try:
                data = decoder.decompress(blob, limit + 1)
                if not decoder.eof and len(data) <= limit:
                    data += decoder.decompress(b"", 1)
            except (OSError, EOFError, lzma.LZMAError, zstd.ZstdError) as error:
                raise PayloadError(f"A {operation} blob does not unpack: {error}.") from error
            if len(data) <= limit and (not decoder.eof or decoder.unused_data):
                raise PayloadError(f"A {operation} blob is not exactly one stream.")
        case _:
            raise PayloadError(f"{operation} is not a REPLACE operation.")
    if len(data) > limit:
        raise PayloadError(f"A {operation} blob holds more than its {limit} bytes of extents.")
    return data


def in_order(jobs: Iterable[Callable[[], T]], *, workers: int, ahead: int = 2) -> Iterator[T]:
    """Run jobs on threads and yield the results in the order of the jobs.

    The codecs and hashes release the GIL, so threads use all cores. At most
    ``workers * ahead`` results are held, which bounds memory.
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) >= workers * ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
