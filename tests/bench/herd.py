#!/usr/bin/env python3
"""A thousand agents at once: does the mock answer in time, and do agents come in herds?

First part: `omaha-mock serve` in a process of its own, and AGENTS connections to it on the
loopback that each ask ROUNDS times for an update, all of them at the same moment each round.
Printed: the time from request to answer, p50, p99 and worst. Bounded by count and by --limit.

Second part: the schedule of 100,000 nodes, simulated with the agent's own policy: checks per
minute after a common boot and after a common outage of the server, peak against mean.

Run it by hand, never from a test: it measures time. ``python tests/bench/herd.py [--json]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "agent"), str(ROOT / "omaha-mock")]

from bascule.updater import policy  # noqa: E402

BODY = """<?xml version="1.0" encoding="UTF-8"?>
<request protocol="3.0" version="bascule" updaterversion="bascule" installsource="scheduler" ismachine="1">
    <os version="Chateau" platform="CoreOS" sp="1.0.0_x86_64"></os>
    <app appid="{{e96281a6-d1af-4bde-9a0a-97b76e56dc57}}" version="1.0.0" track="stable" bootid="{{d7d691f7-8c5a-4d2c-bf07-d4c730651df5}}" machineid="{number:032x}" lang="en-US" board="amd64-usr" hardware_class="" delta_okay="true" >
        <ping active="1"></ping>
        <updatecheck></updatecheck>
        <event eventtype="3" eventresult="2" previousversion=""></event>
    </app>
</request>
"""
STATE = """\
[group.stable]
rollout = 50

[[release]]
version = "2.0.0"
file = "release.bin"
size = 1000000
sha256 = "4E4I9eHEs+n05Vuhj9cfxGfD5rHYZo+TOoBqCJcTTp8="
"""


def _request(number: int, host: str) -> bytes:
    body = BODY.format(number=number).encode()
    head = (
        f"POST /v1/update/ HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/xml\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _agent(
    number: int, host: str, port: int, rounds: int, start: asyncio.Barrier
) -> tuple[list[float], int]:
    """(seconds of each answer, how many of them were an offer)."""
    request = _request(number, f"{host}:{port}")
    times: list[float] = []
    offers = 0
    for _ in range(rounds):
        await start.wait()
        began = time.perf_counter()
        # A connection per check, as agents that ask every 45 minutes have it.
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        times.append(time.perf_counter() - began)
        writer.close()
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"The server answered {head[:40]!r}")
        offers += b'status="ok">\n   <urls>' in body
    return times, offers


async def _poll(url: str, agents: int, rounds: int, limit: float) -> tuple[list[float], int]:
    parts = urlsplit(url)
    start = asyncio.Barrier(agents)
    async with asyncio.timeout(limit):
        results = await asyncio.gather(
            *(
                _agent(number, str(parts.hostname), int(parts.port or 0), rounds, start)
                for number in range(agents)
            )
        )
    return [t for times, _ in results for t in times], sum(offers for _, offers in results)


def polling(agents: int, rounds: int, limit: float) -> dict[str, Any]:
    """Start a server, ask it, stop it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * agents + 256
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    with tempfile.TemporaryDirectory(prefix="herd-") as directory:
        Path(directory, "releases.toml").write_text(STATE)
        server = subprocess.Popen(
            [sys.executable, "-m", "omaha_mock", "serve", directory],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "omaha-mock")},
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            began = time.perf_counter()
            times, offers = asyncio.run(_poll(url, agents, rounds, limit))
            wall = time.perf_counter() - began
        finally:
            server.terminate()
            server.wait(timeout=30)
        logged = len(Path(directory, "requests.jsonl").read_text().splitlines())
    times.sort()
    return {
        "agents": agents,
        "rounds": rounds,
        "answers": len(times),
        "logged": logged,
        "offers": offers,
        "p50_s": round(statistics.median(times), 4),
        "p99_s": round(times[int(len(times) * 0.99) - 1], 4),
        "worst_s": round(times[-1], 4),
        "answers_per_s": round(len(times) / wall),
        "server_cpu_s": round(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]), 2),
        "target_s": 1.0,
        "met": times[int(len(times) * 0.99) - 1] < 1.0,
    }


def _rates(minutes: Counter[int], first: int, last: int, ordinary: float) -> dict[str, Any]:
    counts = [minutes[minute] for minute in range(first, last)]
    mean = sum(counts) / len(counts)
    return {
        "peak_per_minute": max(counts),
        "mean_per_minute": round(mean, 1),
        "peak_to_mean": round(max(counts) / mean, 2),
        "peak_to_ordinary": round(max(counts) / ordinary, 2),
    }


def schedule(nodes: int, hours: int, seed: int = 1) -> dict[str, Any]:
    """Checks per minute of ``nodes`` nodes.

    ``boot``: all start at minute 0, as after a power cut of the site. ``outage``: they started at
    times of their own, the server answers 503 from hour 4 to hour 6, then works again.

    A herd is a minute that has far more checks than an ordinary one, so the busiest minute is
    compared with the fleet's mean when nothing is wrong. Its own window's mean is given too: after
    an outage that is lower, for hosts that were sent away come back little by little.
    """
    rng = random.Random(seed)
    end = hours * 3600.0
    report: dict[str, Any] = {}
    for name, spread, down in (
        ("boot", 0.0, (0.0, 0.0)),
        ("outage", 45 * 60.0, (4 * 3600.0, 6 * 3600.0)),
    ):
        minutes: Counter[int] = Counter()
        for _ in range(nodes):
            last = policy.REGULAR
            now = rng.uniform(0, spread) + policy.first_pause(
                rng, first=policy.FIRST, regular=last, fuzz=policy.FUZZ, spread=True
            )
            while now < end:
                minutes[int(now // 60)] += 1
                status = 503 if down[0] <= now < down[1] else None
                pause, last = policy.next_pause(rng, last=last, http_status=status)
                now += pause
        began, ordinary = int(down[1] // 60), nodes / (policy.REGULAR / 60)
        report[name] = {
            "whole": _rates(minutes, began, int(end // 60), ordinary),
            "after_two_hours": _rates(minutes, began + 120, int(end // 60), ordinary),
        }
    return {"nodes": nodes, "hours": hours, "target_peak_to_mean": 1.2, **report}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for the first part")
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--hours", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = {
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "polling": polling(options.agents, options.rounds, options.limit),
        "schedule": schedule(options.nodes, options.hours),
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    found, planned = report["polling"], report["schedule"]
    assert isinstance(found, dict) and isinstance(planned, dict)
    print(f"{report['cores']} cores, load {report['load']}")
    print(
        f"{found['agents']} agents × {found['rounds']} rounds at the same moment: "
        f"p50 {found['p50_s']} s, p99 {found['p99_s']} s, worst {found['worst_s']} s, "
        f"{found['answers_per_s']} answers/s: target p99 < 1 s "
        f"{'met' if found['met'] else 'NOT met'}"
    )
    for name in ("boot", "outage"):
        for window in ("whole", "after_two_hours"):
            rates = planned[name][window]
            print(
                f"{planned['nodes']} nodes after a common {name} ({window}): peak "
                f"{rates['peak_per_minute']}, mean {rates['mean_per_minute']} checks a minute: "
                f"{rates['peak_to_ordinary']} of an ordinary minute's, {rates['peak_to_mean']} of "
                f"these (target {planned['target_peak_to_mean']})"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
