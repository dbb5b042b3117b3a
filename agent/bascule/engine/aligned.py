"""Memory that the kernel can write from and read into past the page cache (``O_DIRECT``).

Two runs of it for each thread: one for the bytes that are to be in the slot, one for those that are
there. Whoever makes bytes lays them into the first, so that they need not be copied there.
"""

from __future__ import annotations

import mmap
import threading

PIECE = 1 << 20
"""Bytes moved in one go."""

ROOM = 2 << 20
"""Bytes of `Memory.ours`: what one operation of a full payload makes (AOSP's default, and ours)."""


class Memory:
    """One thread's page-aligned memory.

    Attributes:
        ours: `ROOM` bytes for what is to be written. They last until this thread makes or writes
            something else.
        theirs: `PIECE` bytes for what is there.
    """

    def __init__(self) -> None:
        import ctypes  # not in the daemon, which writes nothing

        self._ours = mmap.mmap(-1, ROOM)
        self._theirs = mmap.mmap(-1, PIECE)
        self.ours = memoryview(self._ours)
        self.theirs = memoryview(self._theirs)
        self._memcmp = ctypes.CDLL(None).memcmp
        self._memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def take(self, data: memoryview) -> memoryview:
        """`data` in `ours`: itself if it lies there already, else a copy at the start."""
        if data.obj is self._ours:
            return data
        ours = self.ours[: len(data)]
        ours[:] = data
        return ours

    def equal(self, ours: memoryview) -> bool:
        """Whether `theirs` begins with the same bytes: `==` of Python would copy one of them first,
        or compare byte by byte."""
        return bool(self._memcmp(address(ours), address(self.theirs), len(ours)) == 0)


def address(view: memoryview) -> int:
    """Where a writable view lies; 0 for an empty one."""
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if view else 0


_threads = threading.local()


def mine() -> Memory:
    """This thread's own."""
    try:
        found: Memory = _threads.memory
    except AttributeError:
        found = _threads.memory = Memory()
    return found
