#!/usr/bin/env python3
"""One installation in a process of its own: what `run.py` measures. A job in, one JSON line out.

The way of a byte as the errand goes it (`bascule.engine`): source, proof, operations, slot, flush,
read-back; the errand's allocator settings are in the environment. The clock runs from the first
byte asked for to the last one read back. With "trace" the moments of each step are recorded too.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "agent"))


def _status(word: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{word}:")[1].split()[0]) * 1024


async def _install(job: dict[str, Any]) -> dict[str, Any]:
    from bascule.engine.boot.files import clear_files
    from bascule.engine.checkpoint import CheckpointStore
    from bascule.engine.region import Region
    from bascule.engine.stream import Announced, install
    from bascule.engine.trust import read_keys
    from bascule.engine.verify import read_back

    targets = {"usr": Region(Path(job["target"]))}
    sources = {"usr": Region(Path(job["source"]))} if job.get("source") else {}
    source: Any
    if job.get("url"):
        from bascule.engine.fetch import HttpSource
        from bascule.engine.transport import Tls

        source = HttpSource([job["url"]], size=job["size"], tls=Tls(job["ca"], "", ""))
    else:
        from bascule.engine.local_file import FileSource

        source = FileSource(Path(job["payload"]), size=job["size"])
    store = CheckpointStore(Path(job["state"])) if job.get("state") else None
    if store is not None:
        store.clear()
    cleared = clear_files(targets)
    usage, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    installed = await install(
        source,
        announced=Announced(
            job["size"],
            bytes.fromhex(job["sha256"]),
            job["metadata_size"],
            bytes.fromhex(job["metadata_signature"]) or None,
        ),
        keys=lambda: read_keys(Path(job["keys"])),
        cleared=cleared,
        targets=targets,
        sources=sources,
        checkpoint=store,
        workers=job["workers"],
        **{name: job[name] for name in ("budget", "interval") if name in job},
    )
    applied = time.perf_counter()
    await read_back(
        installed.signed,
        targets,
        cleared=cleared,
        carried=installed.carried,
        begun=installed.begun,
    )
    ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    stats = installed.stats
    return {
        "apply_s": applied - began,
        "verify_s": ended - applied,
        "wall_s": ended - began,
        "cpu_s": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
        "written": stats.written,
        "skipped": stats.skipped,
        "flushes": stats.flushes,
        "checkpoints": stats.checkpoints,
        "in_flight": stats.peak,
        "peak_rss": _status("VmHWM"),
    }


def main() -> int:
    job = json.loads(sys.stdin.readline())
    trace = None
    if job.get("trace"):
        sys.path.insert(0, str(Path(__file__).parent))
        from timeline import Trace

        trace = Trace()
    report = asyncio.run(_install(job))
    if trace is not None:
        report["spans"] = trace.spans
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
