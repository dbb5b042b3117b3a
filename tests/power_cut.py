"""Cuts the power in the middle of an installation, without leaving the process.

Every write, operation, flush and durable record is one event. At the chosen event everything stops: nothing
reaches a disk any more. What had not been flushed by then is lost or kept block by block, by lot,
as a disk's cache would have it.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from typing import Any

from bascule.engine import apply
from bascule.engine.carry import Outcome
from bascule.engine.checkpoint import CheckpointStore
from bascule.engine.device import Device

GRAIN = 4096


class PowerCut(BaseException):
    """The lights went out."""


class Grid:
    """Counts events and cuts the power at one of them.

    Attributes:
        events: so far.
        log: what kind each was.
    """

    def __init__(self, rng: random.Random, fuse: int | None, keep: bool) -> None:
        self.events = 0
        self.log: list[str] = []
        self._rng = rng
        self._fuse = fuse
        self._keep = keep
        self._dead = False
        self._lock = threading.RLock()
        self._open: dict[str, dict[int, list[bytes]]] = {}

    def tick(self, what: str) -> None:
        """One event; raises `PowerCut` at the chosen one and ever after."""
        with self._lock:
            if not self._dead and self.events == self._fuse:
                self._dead = True
            if self._dead:
                raise PowerCut(what)
            self.events += 1
            self.log.append(what)

    def note(self, path: str, offset: int, before: bytes, after: bytes) -> None:
        """A write that no flush has followed yet."""
        blocks = self._open.setdefault(path, {})
        for at in range(0, len(after), GRAIN):
            known = blocks.setdefault(offset + at, [before[at : at + GRAIN]])
            known.append(after[at : at + GRAIN])

    def flushed(self, path: str) -> None:
        """Everything written to `path` is on the medium."""
        self._open.pop(path, None)

    def settle(self) -> None:
        """What the disks hold when the power is back: any version of each unflushed block."""
        for path, blocks in self._open.items():
            if not os.path.exists(path):
                continue
            with open(path, "r+b") as file:
                for offset, versions in blocks.items():
                    file.seek(offset)
                    file.write(versions[-1] if self._keep else self._rng.choice(versions))
        self._open.clear()


@contextlib.contextmanager
def grid(rng: random.Random, fuse: int | None = None, *, keep: bool = False) -> Iterator[Grid]:
    """Run an installation on a grid whose power fails at event `fuse`.

    Args:
        keep: what was written and not flushed survives, as after a kill.
    """
    found = Grid(rng, fuse, keep)
    write, flush = Device._write, Device.flush
    save, discard = CheckpointStore._write, CheckpointStore._discard

    def watched_write(self: Device, offset: int, data: memoryview, direct: bool) -> None:
        with found._lock:
            found.tick("write")
            absolute = self.region.offset + offset
            with open(self.region.path, "rb") as file:
                file.seek(absolute)
                before = file.read(len(data))
            found.note(str(self.region.path), absolute, before, bytes(data))
            write(self, offset, data, direct)

    def watched_flush(self: Device) -> None:
        with found._lock:
            found.tick("flush")
            flush(self)
            found.flushed(str(self.region.path))
            found.tick("flushed")

    def watched_save(self: CheckpointStore, name: str, *rest: object) -> None:
        found.tick(f"save {name}")
        save(self, name, *rest)  # type: ignore[arg-type]
        found.tick(f"saved {name}")

    def watched_discard(self: CheckpointStore, name: str) -> None:
        found.tick(f"drop {name}")
        discard(self, name)
        found.tick(f"dropped {name}")

    carry_out = apply.carry_out

    def watched_operation(*arguments: Any) -> Outcome:
        outcome = carry_out(*arguments)
        found.tick("operation")
        return outcome

    watched = [
        (apply, "carry_out", watched_operation),
        (Device, "_write", watched_write),
        (Device, "flush", watched_flush),
        (CheckpointStore, "_write", watched_save),
        (CheckpointStore, "_discard", watched_discard),
    ]
    # By hand and not by pytest's monkeypatch: children that are killed import this too.
    before = [(kind, name, getattr(kind, name)) for kind, name, _ in watched]
    try:
        for kind, name, function in watched:
            setattr(kind, name, function)
        yield found
    finally:
        for kind, name, function in before:
            setattr(kind, name, function)
