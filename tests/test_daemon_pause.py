"""The daemon's pause between checks, from its settings, the ledger and the errand's last word."""

from __future__ import annotations

import random
from pathlib import Path

from bascule.daemon import Daemon
from bascule.errors import ServerHttpError


def daemon(folder: Path, more: str = "") -> Daemon:
    (folder / "etc").mkdir()
    (folder / "etc/machine-id").write_text("a" * 32 + "\n")
    config = folder / "bascule.toml"
    config.write_text(f'{more}\n[state]\nroot = "{folder}"\ndirectory = "{folder / "state"}"\n')
    return Daemon(folder, [config], random.Random(1))


def test_an_old_wish_does_not_hide_that_the_server_is_busy(tmp_path: Path) -> None:
    running = daemon(tmp_path)
    kept = {"kind": "current", "poll_interval": 3600, "at": 1}
    bases = []
    running._next_delay(kept)
    bases.append(running._interval)
    running.updater._errands.end = {"error": ServerHttpError("503", status=503).as_dict()}
    for _ in range(3):
        delay = running._next_delay(kept)
        bases.append(running._interval)
        assert running._interval / 2 <= delay <= running._interval * 1.5
    assert bases == [3600, 7200, 14400, 14400]
    running.updater._errands.end = {}
    running._next_delay({"kind": "current", "poll_interval": 0, "at": 2})
    assert running._interval == 2700
