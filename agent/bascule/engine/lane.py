"""The thread that hashes the payload as it arrives, with marks to resume from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from bascule.engine.digest import Digest

BATCH = 256 << 10
"""Bytes handed to the thread at once; fewer cost more in hand-overs than in hashing."""

BACKLOG = 4 << 20
"""Bytes that may wait to be hashed before the download has to."""


class HashLane:
    """Hashes in order, in one thread, and remembers the digests' states at each operation.

    Attributes:
        digests: name → running digest. Read them only after `drain`.
        marked: every byte of the operations below this index is hashed.
        peak: most bytes that ever waited.
    """

    def __init__(
        self, digests: Mapping[str, Digest], *, first: int, moved: Callable[[], None]
    ) -> None:
        """
        Args:
            first: index of the first operation whose bytes are still to come.
            moved: called on the loop whenever `marked` has changed.
        """
        self.digests = dict(digests)
        self.marked = first
        self.peak = 0
        self._moved = moved
        self._thread = ThreadPoolExecutor(1, "bascule-hash")
        self._batch: list[tuple[bytes, frozenset[str], int | None]] = []
        self._batch_size = 0
        self._waiting = 0
        self._failure: BaseException | None = None
        self._running: asyncio.Future[None] | None = None
        self._states: dict[int, Mapping[str, bytes]] = {}
        self._note(first)

    async def feed(self, data: bytes, names: frozenset[str], mark: int | None = None) -> None:
        """Hash `data` into the digests `names`.

        Args:
            mark: every operation below this index is complete with these bytes.
        """
        self._batch.append((data, names, mark))
        self._batch_size += len(data)
        self._waiting += len(data)
        self.peak = max(self.peak, self._waiting)
        while self._waiting > BACKLOG and self._running is not None:
            await asyncio.wait([self._running])
        if self._failure is not None:
            raise self._failure
        if self._batch_size >= BATCH:
            self._start()

    def kick(self) -> None:
        """Hash what is there, however little."""
        self._start()

    async def drain(self) -> None:
        """Wait until everything fed is hashed."""
        while self._batch or self._running is not None:
            self._start()
            if self._running is not None:
                await asyncio.wait([self._running])
        if self._failure is not None:
            raise self._failure

    def states(self, index: int) -> Mapping[str, bytes]:
        """States of the digests before operation `index`; empty where they cannot be exported.

        Forgets those of earlier operations.
        """
        for known in [k for k in self._states if k < index]:
            del self._states[known]
        return self._states.get(index, {})

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._batch.clear()
        self._thread.shutdown(wait=True)

    def _start(self) -> None:
        if self._running is not None or not self._batch:
            return
        batch, size = self._batch, self._batch_size
        self._batch, self._batch_size = [], 0
        loop = asyncio.get_running_loop()
        self._running = running = loop.run_in_executor(self._thread, self._hash, batch)
        running.add_done_callback(lambda done: self._hashed(done, batch[-1][2], size))

    def _hash(self, batch: list[tuple[bytes, frozenset[str], int | None]]) -> None:
        for data, names, mark in batch:
            if data:
                for name in names:
                    self.digests[name].update(data)
            if mark is not None:
                self._note(mark)

    def _note(self, mark: int) -> None:
        states = {name: digest.state() for name, digest in self.digests.items()}
        self._states[mark] = {name: s for name, s in states.items() if s is not None}

    def _hashed(self, done: asyncio.Future[None], mark: int | None, size: int) -> None:
        self._running = None
        self._waiting -= size
        if (error := done.exception()) is not None:
            self._failure = error
            self._batch.clear()
        elif mark is not None:
            self.marked = mark
        self._moved()
        self._start()
