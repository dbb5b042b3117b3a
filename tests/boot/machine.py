"""One virtual machine: QEMU with firmware, a serial shell, and no way to stay up across a reboot."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from build import FIRMWARE, CannotBuild

SLOW = 5
"""All limits are this many times what a quiet machine needs under TCG."""

KVM = Path("/dev/kvm")

LEASH = ("setpriv", "--pdeathsig", "KILL")
"""util-linux: no machine outlives the tests, however they end."""

_ANSWER = re.compile(rb"@(ready|-?\d+):([^@]*)@")


class GuestFailed(Exception):
    """The guest did not do what it should."""


def accelerators(wanted: str) -> list[str]:
    """QEMU's words for ``auto``, ``kvm`` or ``tcg``. Raises CannotBuild where KVM is no help."""
    # Without arch-capabilities: a hypervisor inside another may not set that register (MSR 0x10a).
    kvm = ["-accel", "kvm", "-cpu", "host,arch-capabilities=off"]
    if wanted != "tcg" and KVM.exists() and _starts(kvm):
        return kvm
    if wanted == "kvm":
        raise CannotBuild(f"no machine with our firmware starts with {KVM} here")
    return ["-accel", "tcg", "-cpu", "qemu64"]


def _starts(accelerator: Sequence[str]) -> bool:
    """Whether the firmware comes to the point where it looks for something to boot.

    The node alone promises nothing, nor that the kernel makes machines: nested in a software
    hypervisor, KVM was seen to give up in the firmware's first instructions.
    """
    code, _ = firmware()
    process = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-machine", "pc", *accelerator, "-m", "256", "-nodefaults"),
            *("-display", "none", "-no-reboot", "-net", "none", "-serial", "stdio"),
            *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    bell = threading.Timer(60, process.kill)
    bell.start()
    try:
        assert process.stdout
        for line in process.stdout:
            if b"BdsDxe" in line or b"KVM internal error" in line:
                return b"BdsDxe" in line
        return False
    finally:
        bell.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def firmware() -> tuple[Path, Path]:
    """The firmware's code, and its variables as they are at first."""
    return next((c, v) for c, v in FIRMWARE if c.exists())


class Machine:
    """A disk image and what runs from it. Every boot is a QEMU of its own: a reset ends it.

    Args:
        words: QEMU's for accelerator and cores.
    """

    def __init__(self, disk: Path, folder: Path, words: Sequence[str]) -> None:
        self.disk = disk
        self._words = tuple(words)
        self.folder = folder
        self.boots = 0
        self.before_power_on: Callable[[Path], None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._shell: socket.socket | None = None
        self._heard = b""
        code, variables = firmware()
        self._code = code
        self._variables = folder / "firmware.fd"
        shutil.copy(variables, self._variables)

    @property
    def console(self) -> Path:
        """What this boot printed."""
        return self.folder / f"console-{self.boots}.log"

    def start(self) -> None:
        """Power on."""
        self.boots += 1
        if self.before_power_on:
            self.before_power_on(self.disk)
        path = self.folder / "shell"
        path.unlink(missing_ok=True)
        words = [
            *LEASH,
            *("qemu-system-x86_64", "-machine", "pc", *self._words),
            *("-m", "768", "-display", "none", "-monitor", "none", "-no-reboot"),
            *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={self._code}"),
            *("-drive", f"if=pflash,format=raw,unit=1,file={self._variables}"),
            # Power is cut by killing QEMU: what it has handed to the host's cache survives that, so
            # a flush need not reach the host's medium, where a busy one takes it half a minute.
            *("-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={self.disk}"),
            *("-device", "nvme,drive=disk,serial=bascule"),
            *("-nic", "user,model=virtio-net-pci"),
            *("-chardev", f"socket,id=shell,path={path},server=on,wait=off"),
            *("-serial", f"file:{self.console}", "-serial", "chardev:shell"),
        ]
        log = (self.folder / "qemu.log").open("ab")
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        log.close()
        self._heard = b""
        for _ in range(200):
            if path.exists():
                with contextlib.suppress(ConnectionRefusedError):
                    self._shell = socket.socket(socket.AF_UNIX)
                    self._shell.connect(str(path))
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise CannotBuild(f"QEMU did not start: {(self.folder / 'qemu.log').read_text()[-500:]}")

    def boot(self, limit: float = 60 * SLOW) -> str:
        """Power on and wait for the shell; the boot id."""
        for attempt in range(2):
            self.start()
            try:
                return self.wait_ready(limit)
            except GuestFailed:
                # Seen once under load, and TCG's own fault.
                if attempt or "IO-APIC + timer doesn't work" not in self.said():
                    raise
                self.kill()
        raise AssertionError

    def wait_ready(self, limit: float = 60 * SLOW) -> str:
        """Wait until systemd has started the shell."""
        return self._answer(limit, ready=True)[1].decode()

    def run(self, command: str, limit: float = 60 * SLOW) -> tuple[int, str]:
        """Run a shell command in the guest: (exit status, output)."""
        assert self._shell
        try:
            self._shell.sendall(command.replace("\n", " ").encode() + b"\n")
        except OSError as error:
            raise GuestFailed(f"the machine is gone ({error}), asked: {command}") from error
        status, output = self._answer(limit)
        return int(status), base64.b64decode(output).decode("utf-8", "replace")

    def check(self, command: str, limit: float = 60 * SLOW) -> str:
        """Run a command that must succeed."""
        status, output = self.run(command, limit)
        if status:
            raise GuestFailed(f"{command}: {status}: {output[-1500:]}")
        return output

    def wait_off(self, limit: float = 90 * SLOW) -> None:
        """Wait for a reset or power-off."""
        assert self._process
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise GuestFailed(f"still up after {limit:g} s:\n{self.said()[-1500:]}") from None
        self._close()

    def reboot(self) -> None:
        """Ask for a reboot the ordinary way, and wait until the machine is off."""
        with contextlib.suppress(GuestFailed):
            self.run("systemctl --no-block reboot", 20 * SLOW)
        self.wait_off()

    def kill(self) -> None:
        """Cut the power."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._close()

    @property
    def up(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        """The console's output of this boot."""
        try:
            return self.console.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _answer(self, limit: float, ready: bool = False) -> tuple[bytes, bytes]:
        assert self._shell
        end = time.monotonic() + limit
        while True:
            while match := _ANSWER.search(self._heard):
                self._heard = self._heard[match.end() :]
                if (match[1] == b"ready") == ready:
                    return match[1], match[2]
            left = end - time.monotonic()
            if left <= 0:
                raise GuestFailed(f"no answer in {limit:g} s; console:\n{self.said()[-1500:]}")
            self._shell.settimeout(min(left, 5))
            try:
                data = self._shell.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                raise GuestFailed(f"the machine went off; console:\n{self.said()[-1500:]}")
            self._heard += data

    def _close(self) -> None:
        if self._shell:
            self._shell.close()
            self._shell = None
