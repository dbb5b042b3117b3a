"""Empty files in the run directory while a staged slot waits (reference 6.2, 7.3).

``reboot-required`` is what kured polls; ``update_engine_autoupdate_completed`` is the original's own.
A reboot clears both, for the directory is a tmpfs; a withdrawal must.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MARKERS = ("reboot-required", "update_engine_autoupdate_completed")


def leave_markers(directory: Path) -> list[str]:
    """Create the markers; returns one sentence for each that could not be."""
    troubles = []
    for name in MARKERS:
        path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        except OSError as error:
            troubles.append(f"{path}: {error.strerror}")
    return troubles


def remove_markers(directory: Path) -> None:
    """Remove the markers: kured must not reboot for an update that was taken back."""
    for name in MARKERS:
        with contextlib.suppress(OSError):
            (directory / name).unlink()
