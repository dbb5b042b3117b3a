#!/usr/bin/env python3
"""How much memory: RSS of the idle daemon, peak RSS of an errand on a 256 MiB image.

    python tests/bench/memory.py [--size-mib 256] [--json]

Figures only; `run.py --only idle,memory` has the targets and the curve over the sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import errands
import idle
from material import MIB, ROOT, Material


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    work = options.folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    material = Material(options.folder, options.size_mib * MIB)
    assert material.key
    with idle.daemon(work):
        pass  # the first one compiles
    with idle.daemon(work) as found:
        time.sleep(5)
        resting = errands.memory_of(found.pid)
    errand = errands.run_errand(work, material.full("bz2"), material.public)
    if not errand["staged"]:
        raise SystemExit(f"memory: the errand failed: {errand['error']}")
    report = {
        "idle_daemon_rss_bytes": resting["VmRSS"],
        "idle_daemon_anonymous_bytes": resting["RssAnon"],
        "errand_peak_rss_bytes": errand["peak"],
        "image_bytes": options.size_mib * MIB,
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    print(
        f"idle daemon: {resting['VmRSS'] / 1e6:.1f} MB RSS, "
        f"{resting['RssAnon'] / 1e6:.1f} MB of it anonymous"
    )
    print(f"errand, full bz2, {options.size_mib} MiB: peak {errand['peak'] / MIB:.1f} MiB RSS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
