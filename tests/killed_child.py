"""Installs a recorded payload and kills itself with SIGKILL at one event (see `power_cut`)."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bascule.engine.boot.files import clear_files
from bascule.engine.stream import Announced
from payload_vectors import Bytes, case, key
from power_cut import Grid, grid
from slot_files import SlotFiles


def main() -> None:
    """Arguments: payload, folder of the slot, event at which to die."""
    what = case(sys.argv[1])
    place = SlotFiles.reopen(Path(sys.argv[2]), old=what.old, new=what.new, files=what.files)
    fuse = int(sys.argv[3])
    told = Announced(len(what.data), what.sha256)
    tick = Grid.tick

    def deadly(self: Grid, event: str) -> None:
        # Writers tick in threads of their own, so that a number may be passed over.
        if self.events >= fuse:
            os.kill(os.getpid(), signal.SIGKILL)
        tick(self, event)

    Grid.tick = deadly  # type: ignore[method-assign]
    place.cleared = clear_files(place.targets)
    with grid(random.Random(0)):
        place.run(
            Bytes(what.data, chunk=16 << 10), [key(what.key)], announced=told, interval=256 << 10
        )


if __name__ == "__main__":
    main()
