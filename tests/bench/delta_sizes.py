#!/usr/bin/env python3
"""How small are our deltas? Against the full payload, and against `bsdiff` of the whole image.

Builds two point releases of a Debian-like tree (fixtures/build.py) unless given a pair, packs
them, checks that each payload gives the new image, and prints a table or JSON. Run it by hand::

    python tests/bench/delta_sizes.py [--size-mib 64] [--pair OLD NEW] [--json]

Whole-image bsdiff needs 17 times the image in memory; it is left out above --bsdiff-limit-mib.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "omaha-mock"), str(ROOT / "tests")]

from mock_fixture import fixture_build  # noqa: E402
from omaha_mock.applying import apply  # noqa: E402
from omaha_mock.pack import Image, pack  # noqa: E402
from omaha_mock.reading import read_payload  # noqa: E402
from omaha_mock.signing import SigningKey, keygen, load_signing_key  # noqa: E402

MIB = 1 << 20


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds and CPU seconds of this process and its children."""

    def cpu() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)

    wall, used = time.perf_counter(), cpu()
    result = action()
    return result, time.perf_counter() - wall, cpu() - used


def measure(old: Path, new: Path, work: Path, bsdiff_limit: int) -> list[dict[str, Any]]:
    key: SigningKey = load_signing_key(keygen(work)[0])
    rows: list[dict[str, Any]] = []

    def payload(name: str, **options: Any) -> None:
        before = old if name.startswith("delta") else None
        out = work / "payload.bin"
        packed, wall, cpu = timed(
            lambda: pack([Image("usr", new, before)], out, keys=[key], **options)
        )
        made = work / "made.img"
        apply(read_payload(out), {"usr": made}, {"usr": old} if before else {})
        if made.read_bytes() != new.read_bytes():
            raise SystemExit(f"{name}: the payload does not give the new image")
        rows.append(
            {
                "what": name,
                "bytes": packed.size,
                "metadata": packed.metadata_size,
                "wall_s": round(wall, 2),
                "cpu_s": round(cpu, 2),
                "operations": packed.operations,
            }
        )

    payload("full v1 (bz2)", major=1)
    payload("full v2 (best of all)", major=2)
    payload("delta v1", major=1)
    payload("delta v2, BSDIFF40 only", major=2, bsdf2=False)
    payload("delta v2", major=2)
    payload("delta v2, zstd too", major=2, codecs=["raw", "zstd", "xz", "bz2"])
    program = shutil.which("bsdiff")
    if program and new.stat().st_size <= bsdiff_limit:
        patch = work / "patch"
        _, wall, cpu = timed(
            lambda: subprocess.run([program, str(old), str(new), str(patch)], check=True)
        )
        rows.append(
            {
                "what": "bsdiff of the whole image",
                "bytes": patch.stat().st_size,
                "metadata": 0,
                "wall_s": round(wall, 2),
                "cpu_s": round(cpu, 2),
                "operations": {},
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size-mib", type=int, default=64)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--bsdiff-limit-mib", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="delta-sizes-") as directory:
        work = Path(directory)
        if options.pair:
            old, new = options.pair
        else:
            old, new = fixture_build().tree_pair(
                work / "pair", size=options.size_mib * MIB, seed=options.seed
            )
        rows = measure(old, new, work, options.bsdiff_limit_mib * MIB)
        before, after = old.read_bytes(), new.read_bytes()
        changed = sum(
            before[at : at + 4096] != after[at : at + 4096] for at in range(0, len(after), 4096)
        ) / (len(after) / 4096)
    full = rows[0]["bytes"]
    whole = next((row["bytes"] for row in rows if row["what"].startswith("bsdiff")), None)
    for row in rows:
        row["of_full"] = round(row["bytes"] / full, 4)
        row["of_bsdiff"] = round(row["bytes"] / whole, 3) if whole else None
    report = {
        "image_bytes": len(after),
        "blocks_that_differ_in_place": round(changed, 3),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "rows": rows,
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    print(
        f"image {len(after) / MIB:.0f} MiB, {changed:.0%} of its blocks differ in place; "
        f"{report['cores']} cores, load {report['load'][0]}"
    )
    print(f"{'':28}{'bytes':>12}{'of full':>9}{'of bsdiff':>11}{'wall s':>8}{'CPU s':>8}")
    for row in rows:
        relative = f"{row['of_bsdiff']:.2f}" if row["of_bsdiff"] else "-"
        print(
            f"{row['what']:28}{row['bytes']:>12,}{row['of_full']:>9.1%}{relative:>11}"
            f"{row['wall_s']:>8.1f}{row['cpu_s']:>8.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
