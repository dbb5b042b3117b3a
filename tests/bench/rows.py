"""The rows of the table: each measures its subject and its limit in turn, so that noise hits both."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import errands
import idle
import limits
from material import MIB, Material, Payload

HERE = Path(__file__).resolve().parent


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what, target, measured: in words.
        met: the verdict; None for a line that only informs.
        figures: the numbers behind it.
    """

    what: str
    target: str
    measured: str
    met: bool | None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """What the rows share.

    Attributes:
        work: scratch; the slot lies here.
        runs: of each subject and limit.
        quick: less of everything.
    """

    material: Material
    work: Path
    runs: int
    quick: bool
    say: Callable[[str], None]

    @property
    def slot(self) -> Path:
        return self.work / "slot.img"

    def install(self, payload: Payload, **more: Any) -> dict[str, Any]:
        """One installation in a process of its own, see `subject.py`."""
        job = {
            "payload": payload.path,
            "size": payload.size,
            "sha256": payload.sha256,
            "metadata_size": payload.metadata_size,
            "metadata_signature": payload.metadata_signature,
            "source": payload.old,
            "keys": str(self.material.public),
            "target": str(self.slot),
            "state": str(self.work / "state"),
            "workers": min(4, os.cpu_count() or 1),
            **more,
        }
        limits.warm(Path(payload.path))
        done = subprocess.run(
            [sys.executable, str(HERE / "subject.py")],
            input=json.dumps(job) + "\n",
            capture_output=True,
            text=True,
            env=errands.environment(self.work),
        )
        if done.returncode:
            raise SystemExit(f"bench: {payload.name}: {done.stderr}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    @contextlib.contextmanager
    def server(self) -> Iterator[tuple[str, str]]:
        """A TLS server of the payloads: address and the file of its authority."""
        keys = self.work / "tls"
        keys.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, str(HERE / "tls_server.py"), str(self.material.folder), str(keys)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip(), str(keys / "ca.pem")
        finally:
            process.stdin.close()
            process.wait(30)


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def share(value: float) -> str:
    return f"{value:.0%}"


def _samples(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in report.items() if k != "spans"} for report in reports]


def full(bench: Bench, codec: str) -> Iterator[Row]:
    """A full payload against the limits of the machine."""
    payload = bench.material.full(codec)
    size, stale, slot = payload.image_size, bench.material.stale(), bench.slot
    blobs = limits.blobs(payload)
    reports: list[dict[str, Any]] = []
    decode: list[float] = []
    hashing: list[float] = []
    device: list[float] = []
    best = 0.0
    for _ in range(bench.runs):
        limits.copy(stale, slot)
        reports.append(bench.install(payload))
        decode.append(limits.decode(codec, blobs))
        if codec in ("zstd", "raw"):
            hashing.append(limits.sha256(blobs, 3))
            device.append(limits.write(slot, size) + limits.read(slot, size))
    wall = middle([r["wall_s"] for r in reports])
    named = {f"2-thread {codec} decode": middle(decode)}
    if hashing:
        named["2-thread sha256 × 3"] = middle(hashing)
        named["write + read of the device"] = middle(device)
    slowest = max(named, key=lambda name: named[name])
    wanted = 0.70 if hashing else 0.85
    best = named[slowest] / wall
    yield Row(
        f"full {codec} (v{payload.major}), {size // MIB} MiB: file → slot, flushed, re-read",
        f"≥ {share(wanted)} of {slowest}",
        f"{share(best)}: {wall:.2f} s against {named[slowest]:.2f} s "
        f"({size / MIB / wall:.0f} MiB/s, {middle([r['cpu_s'] for r in reports]):.2f} s CPU)",
        best >= wanted and all(r["written"] == size for r in reports),
        {"limits_s": named, "runs": _samples(reports), "decode_s": decode, "device_s": device},
    )


def identical(bench: Bench) -> Iterator[Row]:
    """The slot holds the image already."""
    for codec in ("raw",) if bench.quick else ("raw", "bz2"):
        payload = bench.material.full(codec)
        size = payload.image_size
        limits.copy(Path(payload.image), bench.slot)
        reports, base = [], []
        blobs = limits.blobs(payload)
        for _ in range(bench.runs):
            reports.append(bench.install(payload))
            # The payload is read and hashed (its operations, the whole), the slot compared, then
            # read back and hashed: what must be read, each as fast as it goes.
            hashed = limits.read(bench.slot, size, hashed=True)
            base.append(
                limits.file(Path(payload.path)) + limits.read(bench.slot, size) + hashed
                + limits.decode(codec, blobs)
            )  # fmt: skip
        wall, floor = middle([r["wall_s"] for r in reports]), middle(base)
        written = max(r["written"] for r in reports)
        yield Row(
            f"identical slot again, {codec}, {size // MIB} MiB",
            "0 bytes written; ≤ 1.2 × reading and hashing"
            + (" (and decoding)" if codec != "raw" else ""),
            f"{written} bytes; {wall / floor:.2f} × ({wall:.2f} s against {floor:.2f} s)",
            written == 0 and wall <= 1.2 * floor,
            {"runs": _samples(reports), "floor_s": base},
        )


def delta(bench: Bench) -> Iterator[Row]:
    """Deltas with 5 % changed, over a slot that holds the release before."""
    for major in (2,) if bench.quick else (2, 1):
        payload = bench.material.delta(major)
        size = payload.image_size
        reports, base = [], []
        for _ in range(bench.runs):
            limits.copy(Path(payload.old), bench.slot)
            reports.append(bench.install(payload))
            base.append(limits.read(bench.slot, size, hashed=True))
        wall, floor = middle([r["wall_s"] for r in reports]), middle(base)
        yield Row(
            f"delta v{major}, {size // MIB} MiB, 5 % changed "
            f"({payload.size / MIB:.1f} MiB of payload)",
            "≤ 1.5 × the read-back alone",
            f"{wall / floor:.2f} × ({wall:.2f} s against {floor:.2f} s; "
            f"{middle([r['written'] for r in reports]) / MIB:.0f} MiB written)",
            wall <= 1.5 * floor,
            {"runs": _samples(reports), "read_back_s": base},
        )


def network(bench: Bench) -> Iterator[Row]:
    """TLS on the loopback against the same payload from a file."""
    with bench.server() as (url, authority):
        for codec in ("xz",) if bench.quick else ("bz2", "xz"):
            payload = bench.material.full(codec)
            address = url + Path(payload.path).name
            wired, filed = [], []
            for _ in range(bench.runs):
                limits.copy(bench.material.stale(), bench.slot)
                wired.append(bench.install(payload, url=address, ca=authority))
                limits.copy(bench.material.stale(), bench.slot)
                filed.append(bench.install(payload))
            there = middle([r["wall_s"] for r in filed])
            here = middle([r["wall_s"] for r in wired])
            more = middle([r["cpu_s"] for r in wired]) - middle([r["cpu_s"] for r in filed])
            each = middle([r["cpu_s"] for r in wired]) / (payload.image_size / MIB)
            yield Row(
                f"network, {codec}: TLS on the loopback, aiohttp to slot",
                "≥ 80% of the file path",
                f"{share(there / here)}: {here:.2f} s against {there:.2f} s; client CPU "
                f"{each * 1000:.1f} ms per MiB of image, {more / payload.size * MIB * 1000:.2f} ms per "
                "MiB of payload more than from a file",
                there / here >= 0.80,
                {"network": _samples(wired), "file": _samples(filed)},
            )


def memory(bench: Bench) -> Iterator[Row]:
    """Peak RSS of real errands, by size of the image."""
    for kind, limit in (("full", 96), ("delta", 160)):
        sizes = (64, 256) if bench.quick else (64, 256, 512, 2048)
        if kind == "delta":
            sizes = (64,) if bench.quick else (64, 256, 1024)
        curve = {}
        for mib in sizes:
            if kind == "full":
                payload = bench.material.full("bz2", mib * MIB)
            else:
                payload = bench.material.delta(1, mib * MIB)
            found = errands.run_errand(bench.work, payload, bench.material.public)
            if not found["staged"]:
                raise SystemExit(f"bench: the errand failed: {found['error']}")
            curve[mib] = found["peak"] / MIB
        words = ", ".join(f"{mib} MiB: {peak:.0f}" for mib, peak in curve.items())
        flat = max(curve.values()) - min(curve.values()) <= 8
        yield Row(
            f"peak RSS of an errand, {kind}",
            f"≤ {limit} MiB, the same for every size (within 8)",
            f"{words} MiB",
            max(curve.values()) <= limit and flat,
            {"curve_mib": curve},
        )


def sleeping(bench: Bench) -> Iterator[Row]:
    """The idle daemon."""
    found = idle.measure_idle(bench.work, bench.runs, 20 if bench.quick else 130)
    yield Row(
        "idle daemon: RSS",
        "< 30 MB",
        f"{found['rss'] / 1e6:.1f} MB",
        found["rss"] < 30e6,
        found,
    )
    yield Row(
        "idle daemon: CPU to READY",
        "< 150 ms",
        f"{found['cpu_s'] * 1000:.0f} ms (a Python that does nothing: {found['bare_s'] * 1000:.0f} ms)",
        found["cpu_s"] < 0.150,
    )
    yield Row(
        f"idle daemon: wake-ups in {found['seconds']:.0f} s, watchdog aside",
        "no more often than once a minute",
        f"{found['wakes']} ({found['wakes_per_minute']:.1f} a minute)",
        found["wakes_per_minute"] <= 1,
    )


def asking(bench: Bench) -> Iterator[Row]:
    """``updatectl status``."""
    found = idle.measure_status(bench.work, max(5, 2 * bench.runs))
    yield Row(
        "`updatectl status`",
        "< 120 ms wall, < 60 ms CPU",
        f"{found['wall_s'] * 1000:.0f} ms wall, {found['cpu_s'] * 1000:.0f} ms CPU",
        found["wall_s"] < 0.120 and found["cpu_s"] < 0.060,
        found,
    )


def flushing(bench: Bench) -> Iterator[Row]:
    """What checkpoints cost: the same installation with them and without."""
    payload = bench.material.full("bz2" if not bench.quick else "xz")
    kept, bare = [], []
    for _ in range(bench.runs):
        limits.copy(bench.material.stale(), bench.slot)
        kept.append(bench.install(payload))
        limits.copy(bench.material.stale(), bench.slot)
        bare.append(bench.install(payload, state=""))
    more = middle([r["apply_s"] for r in kept]) / middle([r["apply_s"] for r in bare]) - 1
    yield Row(
        "fsync discipline: apply with checkpoints against apply without",
        "< 5% more",
        f"{more:+.1%}: {middle([r['checkpoints'] for r in kept]):.0f} checkpoints, "
        f"{middle([r['flushes'] for r in kept]):.0f} flushes of the slot",
        more < 0.05,
        {"with": _samples(kept), "without": _samples(bare)},
    )


def herd(bench: Bench) -> Iterator[Row]:
    """A thousand agents on the mock, and the schedule of 100,000."""
    import herd as herds

    found = herds.polling(1000, 2 if bench.quick else 5, 120.0)
    yield Row(
        "1,000 agents poll the mock at the same moment",
        "p99 < 1 s",
        f"p50 {found['p50_s']:.2f} s, p99 {found['p99_s']:.2f} s, {found['answers_per_s']} answers/s",
        bool(found["met"]),
        found,
    )
    planned = herds.schedule(100_000 if not bench.quick else 20_000, 12)
    for name in ("boot", "outage"):
        whole = planned[name]["whole"]
        rate = whole["peak_to_ordinary"]
        yield Row(
            f"schedule of {planned['nodes']:,} nodes after a common {name}: busiest minute",
            "< 1.2 × the mean",
            f"{rate} × the fleet's mean a minute in ordinary times, {whole['peak_to_mean']} × that "
            f"of the hours after (two hours later {planned[name]['after_two_hours']['peak_to_mean']})",
            rate < 1.2,
            planned[name],
        )


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "bz2": lambda bench: full(bench, "bz2"),
    "xz": lambda bench: full(bench, "xz"),
    "zstd": lambda bench: full(bench, "zstd"),
    "raw": lambda bench: full(bench, "raw"),
    "identical": identical,
    "delta": delta,
    "network": network,
    "memory": memory,
    "idle": sleeping,
    "status": asking,
    "fsync": flushing,
    "herd": herd,
}
