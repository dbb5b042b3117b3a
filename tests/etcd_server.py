"""A real etcd server on loopback, from Debian's etcd-server package."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(folder: Path, *options: str, scheme: str = "http", ca: str = "") -> Iterator[str]:
    client, peer = free_port(), free_port()
    url = f"{scheme}://127.0.0.1:{client}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["etcd", "--data-dir", str(folder / "data"), "--listen-client-urls", url,
             "--advertise-client-urls", url, "--listen-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-cluster", f"default=http://127.0.0.1:{peer}", *options],
            stdout=log, stderr=log, env={"ETCD_UNSUPPORTED_ARCH": "arm64", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        try:
            for _ in range(300):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    with socket.create_connection(("127.0.0.1", client), 1):
                        if ca or _healthy(url):
                            break
                except OSError:
                    pass
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return b"true" in answer.read()
    except (OSError, urllib.error.URLError):
        return False
