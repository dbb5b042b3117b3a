"""The daemon when nothing happens, and the operator who asks it how it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errands import compiled, memory_of
from material import MIB


def cpu_of(pid: int) -> float:
    """Seconds of processor time of a process so far, all threads."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def switches_of(pid: int) -> int:
    """How often its threads have gone to sleep by themselves: once a wake-up."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        total += int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return total


@dataclass
class Idle:
    """One daemon that says it is ready.

    Attributes:
        pid: its process.
        ready_cpu_s: processor time until it said so.
        environment: what a client needs.
    """

    pid: int
    ready_cpu_s: float
    environment: dict[str, str]


@contextlib.contextmanager
def daemon(work: Path) -> Iterator[Idle]:
    """A daemon on a host of its own, ready and idle."""
    from bascule.child import ALLOCATOR
    from node import BIN, Node, release_header
    from private_bus import PrivateBus

    # A socket's path may have no more than 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    bus = PrivateBus(folder)
    bus.start()
    process = None
    try:
        image = folder / "first.img"
        image.write_bytes(release_header("1.0.0") + bytes(MIB))
        node = Node(folder / "host", "http://127.0.0.1:9/", bus.address, folder, slot_mib=4)
        node.make(image).power_on(daemon=False)
        environment = {**node._env(), **compiled(work)}
        for name in ALLOCATOR:
            environment.pop(name, None)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(folder / "notify"))
            notify.settimeout(60)
            process = subprocess.Popen(
                [str(BIN / "bascule"), "run", *node._arguments()],
                env={**environment, "NOTIFY_SOCKET": str(folder / "notify")},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while b"READY=1" not in notify.recv(4096):
                pass
            yield Idle(process.pid, cpu_of(process.pid), environment)
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        bus.stop()
        shutil.rmtree(folder, ignore_errors=True)


def measure_idle(work: Path, starts: int, seconds: float) -> dict[str, Any]:
    """RSS, CPU to READY (medians of `starts`), and wake-ups in the last one's idle `seconds`.

    Beside them what a Python takes that does nothing: it tells a slow day from a slow daemon.
    """
    rss, cpu, bare, wakes = [], [], [], 0
    with daemon(work):
        pass  # the first one compiles
    for number in range(starts):
        bare.append(_bare_s())
        with daemon(work) as idle:
            cpu.append(idle.ready_cpu_s)
            time.sleep(5)
            rss.append(memory_of(idle.pid)["VmRSS"])
            if number == starts - 1:
                before = switches_of(idle.pid)
                time.sleep(seconds)
                wakes = switches_of(idle.pid) - before
    return {
        "rss": statistics.median(rss),
        "cpu_s": statistics.median(cpu),
        "bare_s": statistics.median(bare),
        "wakes": wakes,
        "wakes_per_minute": wakes * 60 / seconds,
        "seconds": seconds,
    }


def _bare_s() -> float:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], os.environ)
    _, _, usage = os.wait4(pid, 0)
    return usage.ru_utime + usage.ru_stime


def measure_status(work: Path, runs: int) -> dict[str, Any]:
    """Wall and processor seconds of ``updatectl status`` as a process, medians."""
    from node import BIN

    wall, cpu = [], []
    with daemon(work) as idle:
        time.sleep(1)
        for number in range(runs + 1):
            began = time.perf_counter()
            pid = os.posix_spawn(
                str(BIN / "updatectl"),
                ["updatectl", "status"],
                idle.environment,
                file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
            )
            _, code, usage = os.wait4(pid, 0)
            if code:
                raise SystemExit(f"updatectl status ended with {code}")
            if number:
                wall.append(time.perf_counter() - began)
                cpu.append(usage.ru_utime + usage.ru_stime)
    return {"wall_s": statistics.median(wall), "cpu_s": statistics.median(cpu)}
