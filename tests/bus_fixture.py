"""A private message bus for tests: a real ``dbus-daemon`` on a socket in a temporary folder.

``pytest_plugins = ["bus_fixture"]`` in a conftest, or ``from bus_fixture import private_bus``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from private_bus import OPEN, PrivateBus


@contextmanager
def private_bus(
    kind: str = "session", policy: str = OPEN, include: Sequence[Path] = ()
) -> Iterator[PrivateBus]:
    """A running bus; `kind` is ``session`` or ``system``, `include` names services' policies."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed (Debian package dbus-daemon)")
    # Not tmp_path: a socket's path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="bus-") as directory:
        # Another user's process must be able to reach the socket.
        Path(directory).chmod(0o755)
        more = "".join(f"\n  <include>{path}</include>" for path in include)
        bus = PrivateBus(Path(directory), kind, policy + more)
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
