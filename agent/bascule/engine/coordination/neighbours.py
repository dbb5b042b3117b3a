"""Living with others who reboot: locksmithd's coordinator file.

Coordinator file: exclusive flock, lines ``NAME=``, ``STRATEGY=``, ``STATE=`` without an end of line
after the last (reference 7.1). Whoever holds the lock reboots this host; the other keeps out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from bascule.engine.coordination.interface import clean
from bascule.errors import StorageError

COORDINATOR = Path("update-engine/coordinator.conf")
"""Below the run directory."""
STATES = ("starting", "running", "reboot-planned", "rebooting")
_MAX = 4096


@dataclass(frozen=True, slots=True)
class Coordinator:
    """Who coordinates reboots on this host, as the file says."""

    name: str
    strategy: str
    state: str


class CoordinatorFile:
    """Our side of ``coordinator.conf``. Methods block, briefly.

    Raises (claim, tell):
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def ours(self) -> bool:
        """Whether this process holds the file."""
        return self._handle is not None

    def claim(self, strategy: str) -> Coordinator | None:
        """Become the coordinator. None if it worked; otherwise who is already."""
        if self._handle is not None:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = _parse(os.read(handle, _MAX))
            os.close(handle)
            return other
        self._handle = handle
        self.tell(strategy, "starting")
        return None

    def tell(self, strategy: str, state: str) -> None:
        """Write our state, one of `STATES`; does nothing unless the file is ours."""
        if self._handle is None:
            return
        body = f"NAME=bascule\nSTRATEGY={strategy}\nSTATE={state}".encode()
        try:
            os.pwrite(self._handle, body, 0)
            os.ftruncate(self._handle, len(body))
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error

    def release(self) -> None:
        """Let somebody else coordinate."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
        os.close(self._handle)
        self._handle = None

    def other(self) -> Coordinator | None:
        """Who else coordinates now; None if nobody does. Changes nothing."""
        if self._handle is not None:
            return None
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _parse(os.read(handle, _MAX))
        finally:
            os.close(handle)
        # A file that nobody holds was left behind.
        return None


def _parse(raw: bytes) -> Coordinator:
    values = dict(line.partition("=")[::2] for line in raw.decode("utf-8", "replace").splitlines())
    return Coordinator(
        clean(values.get("NAME") or "somebody", 64),
        clean(values.get("STRATEGY") or "unknown", 64),
        clean(values.get("STATE") or "unknown", 64),
    )
