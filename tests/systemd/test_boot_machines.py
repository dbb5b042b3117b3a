"""`make test-boot` where a machine cannot be made: a reason, and no failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parents[1] / "boot" / "run.py"


def test_it_is_skipped_with_the_reason_where_qemu_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--only", "a"],
        env={"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    why = "qemu-system-x86" if os.geteuid() == 0 else "needs root"
    assert done.stdout.startswith("test-boot: skipped: ")
    assert why in done.stdout
    assert done.stderr == ""
