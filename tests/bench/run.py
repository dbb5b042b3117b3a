#!/usr/bin/env python3
"""``make bench``: target, measured, verdict. Limits and subjects in one run, medians, noise said.

    python tests/bench/run.py [--quick] [--only bz2,memory] [--json FILE] [--svg FILE]

Images and payloads are made once and kept in ``build/bench`` (``--folder``). A fresh machine needs
some minutes more for them. Nothing here runs in `make test`: it measures time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from material import MIB, ROOT, Material  # noqa: E402
from rows import ROWS, Bench, Row  # noqa: E402


def draw(bench: Bench, path: Path) -> None:
    """The picture of one errand's way of a byte: xz over TLS."""
    import limits
    from timeline import picture

    payload = bench.material.full("xz")
    with bench.server() as (url, authority):
        limits.copy(bench.material.stale(), bench.slot)
        found = bench.install(payload, url=url + Path(payload.path).name, ca=authority, trace=True)
    title = f"One installation: {payload.image_size // MIB} MiB, xz, over TLS on the loopback"
    subtitle = (
        f"{found['wall_s']:.1f} s in all, {found['verify_s']:.1f} s of it read-back · "
        f"{os.cpu_count()} cores · the darker, the busier"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture(found["spans"], {"title": title, "subtitle": subtitle}))


def circumstances() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def tuned() -> None:
    """Begin again with the errand's allocator settings: a yardstick that lost a third of its time to
    page faults (zstd: each result is mapped anew) would flatter what is measured against it."""
    from bascule.child import ALLOCATOR

    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})


def main() -> int:
    tuned()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 MiB, 3 runs, fewer variants")
    parser.add_argument("--size-mib", type=int, help="bytes of the image (512)")
    parser.add_argument("--runs", type=int, help="of each subject and limit (5)")
    parser.add_argument("--only", default="", metavar="ROW,…", help=f"some rows: {', '.join(ROWS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw one errand's time line")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    wanted = [word for word in options.only.split(",") if word]
    if unknown := set(wanted) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if not wanted and not (options.svg and options.only):
        wanted = list(ROWS)

    def say(text: str) -> None:
        print(f"  {text} …", file=sys.stderr, flush=True)

    size = (options.size_mib or (64 if options.quick else 512)) * MIB
    runs = options.runs or (3 if options.quick else 5)
    work = options.folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    material = Material(options.folder, size, say)
    assert material.key
    bench = Bench(material, work, runs, options.quick, say)
    before, began = circumstances(), time.perf_counter()
    print(
        f"{before['cores']} cores, load {before['load'][0]}, Python {before['python']}, "
        f"medians of {runs}, image {size // MIB} MiB"
    )
    rows: list[Row] = []
    for name in wanted:
        for row in ROWS[name](bench):
            rows.append(row)
            verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
            print(
                f"{verdict:8}{row.what}\n        target   {row.target}\n        measured {row.measured}"
            )
            sys.stdout.flush()
    if options.svg:
        draw(bench, options.svg)
    after = circumstances()
    missed = sum(row.met is False for row in rows)
    print(
        f"{len(rows) - missed} of {len(rows)} met in {time.perf_counter() - began:.0f} s; "
        f"load {before['load'][0]} at the start, {after['load'][0]} at the end"
    )
    if options.json:
        report = {"before": before, "after": after, "runs": runs, "image_bytes": size}
        report["rows"] = [asdict(row) for row in rows]
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
