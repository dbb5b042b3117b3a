"""A private message bus for tests: a real ``dbus-daemon`` on a socket in a temporary folder.

``pytest_plugins = ["bus_fixture"]`` in a conftest, or ``from bus_fixture import private_bus``.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>{kind}</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  {more}
</busconfig>
"""


class PrivateBus:
    """One ``dbus-daemon`` process.

    Attributes:
        address: D-Bus address for clients and services.
        process: the daemon, for tests that end it.
    """

    def __init__(self, directory: Path, kind: str = "session", more: str = "") -> None:
        self.directory = directory
        self.socket = directory / "bus"
        self.address = f"unix:path={self.socket}"
        self._config = directory / "bus.conf"
        self._config.write_text(CONFIG.format(kind=kind, socket=self.socket, more=more))
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--print-address"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        # The address is printed once the socket listens.
        if not self.process.stdout.readline().strip():
            raise RuntimeError("dbus-daemon did not start")

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def private_bus(kind: str = "session", more: str = "") -> Iterator[PrivateBus]:
    """A running bus; `kind` is ``session`` or ``system``, `more` goes into its configuration."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed (Debian package dbus-daemon)")
    # Not tmp_path: a socket's path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="bus-") as directory:
        # Another user's process must be able to reach the socket.
        Path(directory).chmod(0o755)
        bus = PrivateBus(Path(directory), kind, more)
        bus.start()
        try:
            yield bus
        finally:
            bus.stop()


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    """A private bus of its own for one test."""
    with private_bus() as running:
        yield running


@pytest.fixture
def bus_address(bus: PrivateBus) -> str:
    """The address of a private bus of its own for one test."""
    return bus.address
