"""zstd, decoded by one call straight into the memory that the slot is written from.

Python's decompressor keeps a window of its own, collects what it makes in blocks and joins them: a
fifth of the processor time of a zstd payload (decisions/0008). libzstd can do without, where all of an
operation fits into the place that it is to have. It is reached by ctypes through the extension
module that Python's decompressor is, so that it is the same library or none. Without it, and for
whatever is not one whole undamaged frame that fits, the answer is None, and the way in pieces
(`engine.decode`) has the word.

xz and bzip2 gain nothing from it: their decoders take ten times as long, and no less in one call.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
from collections.abc import Callable

from bascule.engine.aligned import address

Decoder = Callable[[bytes, memoryview], int | None]

_ABC = bytes.fromhex("28b52ffd2003190000616263")
"""A frame of "abc" (RFC 8878 section 3.1)."""

_MAGIC = _ABC[:4]
_SINGLE_SEGMENT = 0x20
_WINDOW_LOGS = range(17, 27)
"""From the largest block there is, 128 KiB, to less than 128 MiB."""


@functools.cache
def zstd_at_once() -> Decoder | None:
    """What decodes a zstd frame at once here, or None.

    The decoder takes a frame and writable memory. It gives the bytes made, or None if the frame is
    damaged, is not all there is, has a window of 128 MiB or more or one that its blocks might not fit
    into, or makes more than the memory holds; then the memory holds anything.
    """
    try:
        decode = _bind(_library("_zstd" if sys.version_info >= (3, 14) else "backports.zstd._zstd"))
    except (ImportError, OSError, AttributeError):
        return None
    with memoryview(bytearray(4)) as room:
        right = decode(_ABC, room) == 3 and bytes(room[:3]) == b"abc"
        right = right and decode(_ABC + b"\0", room) is None
        right = right and decode(_ABC, room[:2]) is None
    return decode if right else None


def _library(name: str) -> ctypes.CDLL:
    """What a Python extension module has, and what it is linked to."""
    path = importlib.import_module(name).__file__
    if path is None:
        raise ImportError(f"{name} is built in")
    return ctypes.CDLL(path)


def _bind(library: ctypes.CDLL) -> Decoder:
    """zstd.h: ZSTD_findFrameCompressedSize, ZSTD_decompress. The window is the memory given."""
    size = ctypes.c_size_t
    measure, decompress = library.ZSTD_findFrameCompressedSize, library.ZSTD_decompress
    measure.restype, measure.argtypes = size, [ctypes.c_char_p, size]
    decompress.restype = size
    decompress.argtypes = [ctypes.c_void_p, size, ctypes.c_char_p, size]

    def decode(frame: bytes, out: memoryview) -> int | None:
        # Though no window is needed: the other way refuses large ones, and blocks larger than it.
        if len(frame) < 6 or frame[:4] != _MAGIC:
            return None
        if not frame[4] & _SINGLE_SEGMENT and (frame[5] >> 3) + 10 not in _WINDOW_LOGS:
            return None
        # Errors are numbers just below 2 to the width of size_t: larger than any length.
        if measure(frame, len(frame)) != len(frame):
            return None
        made: int = decompress(address(out), len(out), frame, len(frame))
        return made if made <= len(out) else None

    return decode


__all__ = ["zstd_at_once"]
