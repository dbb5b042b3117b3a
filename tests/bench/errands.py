"""Real errands (``bascule errand``) on an image of any size: how much memory they take."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from material import MIB, Payload

RELEASE = "FLATCAR_RELEASE_VERSION=1.0.0\nFLATCAR_RELEASE_BOARD=amd64-usr\n"


def environment(work: Path) -> dict[str, str]:
    """The errand's environment; byte code is kept, as an installed package has it."""
    from bascule.child import ALLOCATOR

    return {**compiled(work), **ALLOCATOR}


def compiled(work: Path) -> dict[str, str]:
    """What we were started with, but for the allocator settings, and a place for byte code."""
    from bascule.child import ALLOCATOR

    ours = {"PYTHONDONTWRITEBYTECODE", *ALLOCATOR}
    cleaned = {k: v for k, v in os.environ.items() if k not in ours}
    return {**cleaned, "PYTHONPYCACHEPREFIX": str(work / "byte-code")}


def memory_of(pid: int) -> dict[str, int]:
    """VmRSS, VmHWM and RssAnon of a process in bytes; empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        return {
            word: int(text.split(f"{word}:")[1].split()[0]) * 1024
            for word in ("VmRSS", "VmHWM", "RssAnon")
        }
    except (OSError, IndexError):
        return {}


class _Watch(threading.Thread):
    """Looks at the high-water mark until the process is gone."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            self.look()
            time.sleep(0.01)

    def look(self) -> None:
        self.peak = max(self.peak, memory_of(self._pid).get("VmHWM", 0))


def run_errand(work: Path, payload: Payload, public: Path) -> dict[str, Any]:
    """Install `payload` from its file on a re-enacted host; how it ended and its peak RSS."""
    from bascule.settings import load
    from node import Node

    folder = work / "host"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mib = payload.image_size // MIB
    node = Node(folder, "http://127.0.0.1:9/", "unix:path=/nonexistent", public, slot_mib=mib)
    first = folder / "first.img"
    old = Path(payload.old) if payload.old else Path(payload.image)
    first.symlink_to(old)
    try:
        node.make(first)
        node.power_on(daemon=False)
        (node.root / "usr/share/flatcar/release").write_text(RELEASE)
        job = {
            "kind": "update",
            "attempt": "bench",
            "interactive": True,
            "options": {"file": payload.path, "version": "2.0.0"},
            "settings": load(node.root, [node.config]).as_dict(),
        }
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "bascule", "errand"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(work),
        )
        assert process.stdin is not None and process.stdout is not None
        watch = _Watch(process.pid)
        watch.start()
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        end: dict[str, Any] = {}
        for line in process.stdout:
            said = json.loads(line)
            if said.get("say") == "end":
                end = said
                watch.look()
        process.wait()
        watch.over.set()
        return {
            "staged": bool(end.get("staged")),
            "error": end.get("error"),
            "peak": watch.peak,
            "wall_s": time.perf_counter() - began,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
