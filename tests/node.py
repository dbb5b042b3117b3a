"""A whole host, re-enacted in a folder without root: disk, firmware, boots, daemon, operator.

What is real: the GPT disk image (made by sgdisk), the agent's own processes, the message bus, the
server. What is re-enacted: the firmware (`firmware.py`, which shares no code with the agent), and
the kernel's and systemd's part of a boot. The running release is read from the booted slot's own
bytes, so a host that claims to run release 2 has booted release 2.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import firmware

BIN = Path(sys.executable).parent
MIB = 1 << 20
FIRST_MIB = 1
RELEASE_BYTES = 4096
"""The first block of every image says what release it is, in the form of a release file."""

HEALTH_CHECK = """#!/bin/sh
# What this release's application answers is written in the release itself.
if grep -qx APP=ok {release}; then echo "the application answers"; exit 0; fi
echo "the application does not answer"; exit 1
"""


def release_header(version: str, app: str = "ok") -> bytes:
    """The block that an image begins with."""
    text = f"FLATCAR_RELEASE_VERSION={version}\nFLATCAR_RELEASE_BOARD=amd64-usr\nAPP={app}\n"
    return text.encode().ljust(RELEASE_BYTES, b"\n")


def tool(name: str) -> str:
    """A program that may live in an sbin directory which is not on PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(name)
    return found


def well(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed that must have ended well."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Node:
    """One host.

    Attributes:
        folder: everything of it.
        server: address of its Omaha service.
        bus: address of its message bus.
        keys: folder of the publishers' public keys.
        slot_mib: size of each slot.
    """

    folder: Path
    server: str
    bus: str
    keys: Path
    slot_mib: int = 16
    settings: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    daemon: subprocess.Popen[bytes] | None = None
    boots: int = 0
    slot: str = ""

    # ── what it is made of ───────────────────────────────────────────────────────────────────

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def config(self) -> Path:
        return self.folder / "bascule.toml"

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    def offset(self, slot: str) -> int:
        """First byte of a slot on the disk."""
        return (FIRST_MIB + (self.slot_mib if slot == "B" else 0)) * MIB

    def kernel(self, slot: str) -> Path:
        return self.folder / "boot" / f"vmlinuz-{slot.lower()}"

    def make(self, image: Path, kernel: Path | None = None) -> Node:
        """A fresh installation of `image` in slot A; slot B is empty."""
        for directory in (
            self.root / "etc",
            self.root / "proc/sys/kernel/random",
            self.root / "usr/share/flatcar",
            self.root / "etc/bascule/health.d",
            self.run,
            self.folder / "boot",
        ):
            directory.mkdir(parents=True, exist_ok=True)
        (self.root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
        check = self.root / "etc/bascule/health.d/10-application"
        check.write_text(HEALTH_CHECK.format(release=self.root / "usr/share/flatcar/release"))
        check.chmod(0o755)
        with self.disk.open("wb") as file:
            file.truncate((2 * FIRST_MIB + 2 * self.slot_mib) * MIB)
        a = FIRST_MIB * 2048
        b = a + self.slot_mib * 2048
        subprocess.run(
            [tool("sgdisk"), "--clear",
             f"--new=3:{a}:{b - 1}", f"--typecode=3:{firmware.SLOT_TYPE}", "--change-name=3:USR-A",
             f"--new=4:{b}:{b + self.slot_mib * 2048 - 1}", f"--typecode=4:{firmware.SLOT_TYPE}",
             "--change-name=4:USR-B", str(self.disk)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        subprocess.run(
            [tool("cgpt"), "add", "-i", "3", "-P", "1", "-T", "0", "-S", "1", str(self.disk)],
            check=True,
        )
        with self.disk.open("r+b") as file:
            file.seek(self.offset("A"))
            file.write(image.read_bytes())
        if kernel is not None:
            self.kernel("A").write_bytes(kernel.read_bytes())
        self.write_config()
        return self

    def write_config(self) -> None:
        kernels = {s: f', kernel = "{self.kernel(s)}"' for s in "AB"}
        self.config.write_text(f"""
[server]
url = "{self.server}"
[check]
first = "1h"
[download]
retry_wait = "0.2s"
[slots]
disk = "{self.disk}"
booted_file = "{self.folder / "booted"}"
a = {{ usr = "partition:3"{kernels["A"]} }}
b = {{ usr = "partition:4"{kernels["B"]} }}
[trust]
keys = "{self.keys}"
[health]
root = "{self.root}"
timeout = "10s"
retries = 0
interval = "0.1s"
deadline = "20s"
[reboot]
via = "file"
strategy = "off"
[state]
directory = "{self.state}"
run_directory = "{self.run}"
prefs = "{self.folder / "prefs"}"
root = "{self.root}"
[bus]
address = "{self.bus}"
""")
        if self.settings:
            (self.folder / "more.toml").write_text(self.settings)

    def slot_bytes(self, slot: str, size: int) -> bytes:
        with self.disk.open("rb") as file:
            file.seek(self.offset(slot))
            return file.read(size)

    # ── power ────────────────────────────────────────────────────────────────────────────────

    def power_on(self, *, daemon: bool = True) -> str | None:
        """Firmware chooses a slot and spends its try; the slot's release runs. None: no slot boots."""
        partition = firmware.choose(self.disk)
        if partition is None:
            return None
        self.slot = {3: "A", 4: "B"}[partition]
        self.boots += 1
        (self.folder / "booted").write_text(self.slot)
        release = self.slot_bytes(self.slot, RELEASE_BYTES).rstrip(b"\n") + b"\n"
        (self.root / "usr/share/flatcar/release").write_bytes(release)
        (self.root / "proc/sys/kernel/random/boot_id").write_text(str(uuid.uuid4()) + "\n")
        (self.root / "proc/uptime").write_text("3.00 3.00\n")
        # /run is a tmpfs.
        shutil.rmtree(self.run)
        self.run.mkdir()
        if daemon:
            self.start_daemon()
        return self.slot

    def release(self) -> str:
        text = (self.root / "usr/share/flatcar/release").read_text()
        return text.split("FLATCAR_RELEASE_VERSION=")[1].split("\n")[0]

    def _env(self) -> dict[str, str]:
        return {
            **os.environ,
            "BASCULE_BUS_ADDRESS": self.bus,
            "NO_COLOR": "1",
            "LC_ALL": "C.UTF-8",
            **self.environment,
        }

    def _arguments(self) -> list[str]:
        more = ["--config", str(self.folder / "more.toml")] if self.settings else []
        return ["--root", str(self.root), "--config", str(self.config), *more]

    def start_daemon(self, timeout: float = 60) -> None:
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [str(BIN / "bascule"), "run", *self._arguments()],
                stdout=log,
                stderr=log,
                env=self._env(),
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.daemon.poll() is not None:
                raise RuntimeError(f"the daemon did not start:\n{self.log.read_text()[-4000:]}")
            if self.updatectl("status", "--json").returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError(f"the daemon does not answer:\n{self.log.read_text()[-4000:]}")

    def stop_daemon(self, how: int = signal.SIGTERM, timeout: float = 60) -> int | None:
        process, self.daemon = self.daemon, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(how)
        return process.wait(timeout)

    def power_off(self) -> None:
        """The mains plug: daemon and errand die without a word."""
        for pid in self.errands():
            os.kill(pid, signal.SIGKILL)
        self.stop_daemon(signal.SIGKILL)

    def errands(self) -> list[int]:
        """Process ids of the daemon's children."""
        if self.daemon is None or self.daemon.poll() is not None:
            return []
        pid = self.daemon.pid
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except OSError:
            return []
        return [int(word) for word in text.split()]

    def wait_for_errand(self, timeout: float = 30) -> None:
        """Until the daemon has an errand at work."""
        deadline = time.monotonic() + timeout
        while not self.errands():
            if time.monotonic() > deadline:
                raise TimeoutError("no errand began")
            time.sleep(0.01)

    @staticmethod
    def pause(seconds: float) -> None:
        time.sleep(seconds)

    def until(
        self, condition: Callable[[], bool], timeout: float = 60, every: float = 0.05
    ) -> None:
        """Until `condition` holds; TimeoutError, with the end of the log, if it never does."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(self.log.read_text()[-4000:])
            time.sleep(every)

    # ── the rest of a boot ───────────────────────────────────────────────────────────────────

    def bascule(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "bascule"), arguments[0], *self._arguments(), *arguments[1:]],
            capture_output=True, text=True, env=self._env(), timeout=timeout,
        )  # fmt: skip

    def finish_boot(self) -> bool:
        """What systemd does: health, then blessing, else the deadman. True if the boot stays."""
        if self.bascule("health").returncode == 0:
            blessed = self.bascule("bless")
            assert blessed.returncode == 0, blessed.stderr
            return True
        self.bascule("deadman", "--once")
        return not self.reboot_requested

    @property
    def reboot_requested(self) -> bool:
        return (self.run / "bascule-reboot-requested").exists()

    def reboot(self) -> str | None:
        """An orderly reboot."""
        self.stop_daemon()
        return self.power_on()

    # ── the operator ─────────────────────────────────────────────────────────────────────────

    def updatectl(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "updatectl"), *arguments],
            capture_output=True, text=True, env=self._env(), timeout=timeout,
        )  # fmt: skip

    def status(self) -> dict[str, object]:
        done = self.updatectl("status", "--json")
        assert done.returncode == 0, done.stderr
        data: dict[str, object] = json.loads(done.stdout)
        return data

    def ledger(self) -> dict[str, object]:
        data: dict[str, object] = json.loads((self.state / "ledger.json").read_text())
        return data

    def flags(self, slot: str) -> tuple[int, int, int]:
        """(priority, tries, successful) of a slot, read by other people's program's rule."""
        return firmware.flags(self.disk, {"A": 3, "B": 4}[slot])

    def cgpt(self, slot: str, *, priority: int, tries: int, successful: int) -> None:
        """Somebody else's hand on the table."""
        number = {"A": "3", "B": "4"}[slot]
        subprocess.run(
            [tool("cgpt"), "add", "-i", number, "-P", str(priority), "-T", str(tries),
             "-S", str(successful), str(self.disk)],
            check=True,
        )  # fmt: skip
