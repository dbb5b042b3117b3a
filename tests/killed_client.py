"""Fetches a payload over HTTP, installs it, and kills itself with SIGKILL at one event.

Arguments: a JSON file with url, size, sha256, key, folder, old and new (part name → image file), and
the event at which to die. Events are writes, flushes, records (see `power_cut`) and pieces that
come from the network. What came is noted in ``received`` of the folder as it comes: a line a run,
"first last".
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bascule.engine import lane
from bascule.engine.boot.files import clear_files
from bascule.engine.fetch import HttpSource
from bascule.engine.stream import Announced
from bascule.formats.signature import load_keys
from power_cut import Grid, grid
from slot_files import SlotFiles

CHUNK = 16 << 10
INTERVAL = 512 << 10
BUDGET = 512 << 10
BACKLOG = 256 << 10


class Counted:
    """A source that notes what came of it, where a kill cannot take it away."""

    def __init__(self, source: HttpSource, power: Grid, log: Path) -> None:
        self._source = source
        self._power = power
        self._log = log

    async def stream(self, offset: int) -> AsyncIterator[bytes]:
        handle = os.open(self._log, os.O_RDWR | os.O_CREAT)
        start = os.lseek(handle, 0, os.SEEK_END)
        first = offset
        async for chunk in self._source.stream(offset):
            # However fast the network is against the disk: as many events, so as many kills.
            for at in range(0, len(chunk), CHUNK):
                piece = chunk[at : at + CHUNK]
                offset += len(piece)
                os.pwrite(handle, b"%012d %012d\n" % (first, offset), start)
                self._power.tick("piece")
                yield piece
        os.close(handle)


async def all_of_it(count: int) -> None:
    """A limiter that limits nothing; with one the pieces are small."""


def main() -> None:
    """One run, to its end or to the event."""
    told = json.loads(Path(sys.argv[1]).read_text())
    fuse = int(sys.argv[2])
    old, new = ({n: Path(p).read_bytes() for n, p in told[k].items()} for k in ("old", "new"))
    folder = Path(told["folder"])
    place = SlotFiles.reopen(folder, old=old, new=new)
    keys = load_keys(Path(told["key"]).read_bytes(), "update")
    tick = Grid.tick

    def deadly(self: Grid, event: str) -> None:
        # Writers tick in threads of their own, so that a number may be passed over.
        if self.events >= fuse:
            os.kill(os.getpid(), signal.SIGKILL)
        tick(self, event)

    Grid.tick = deadly  # type: ignore[method-assign]
    lane.BACKLOG = BACKLOG
    place.cleared = clear_files(place.targets)
    source = HttpSource(
        [told["url"]], size=told["size"], limiter=all_of_it, read_buffer=CHUNK, environ={}
    )
    with grid(random.Random(0)) as power:
        place.run(
            Counted(source, power, folder / "received"),  # type: ignore[arg-type]
            keys,
            announced=Announced(told["size"], bytes.fromhex(told["sha256"])),
            interval=INTERVAL,
            budget=BUDGET,
        )


if __name__ == "__main__":
    main()
